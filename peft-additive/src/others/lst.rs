//! # Ladder side-tuning                     family: additive / others
//! s_0 = D_0 h_0; s_i = f'_i(g_i s_(i-1) + (1 - g_i) D_i h_i), g_i = sigmoid(a_i / T); y = U s_L     h_i: [n, d], the frozen states; D_i: [d, d/r], U: [d/r, d], with biases; f'_i: a layer of the model's kind, all its widths divided by r
//! Paper: Sung et al., 2022, arXiv:2206.06522, section 3.   Reference: ylsung/Ladder-Side-Tuning
//! Oracle: code ylsung/Ladder-Side-Tuning seq2seq: `equals_the_derivation_of_lst`
//! Trains: the side layers and all D_i, U, a_i.      Merges: no, it is another network.
//! Identities:
//! - nothing of the backbone is differentiated, and its states are those that it has alone: `the_backbone_is_never_differentiated`
//! - r = 1, D_0 = U = I, g = 1 is the backbone: `a_side_network_of_full_width_is_the_backbone`
//! - g = 1 uses h_0 only, g = 0 each h_i: `gates_choose_between_the_side_and_the_backbone`
//! - the equation, g between its ends, T not 1: `a_side_layer_works_on_the_mixed_states`
//! - D_i, U and a_i start as in the reference: `each_form_starts_as_its_reference`
//! - h_i of a layer without a side layer is not used: `a_dropped_layer_has_no_rung`
//! - pruned matrices are parts of the base's, chosen by importance in the order of the forward: `pruning_keeps_the_most_important_units`, `equals_the_derivation_of_lst`
//! - by Fisher, the importance of a weight is the sum of its squared gradients: `fisher_is_the_sum_of_squared_gradients`, `a_run_starts_from_the_units_that_fisher_finds`
//!
//! Differs from the paper: h_0 has the dropout of the backbone's run, there is no second one. Without the reference's support of BERT, RoBERTa and LLaMA the first two take its BART encoder's form, LLaMA that of T5: classification reads the first token of y (BERT through the frozen pooler). Importances of maps that read the same are multiplied, as in the reference's T5. Its BART and BERT sum their logarithms and rank units by the absolute values, so that of numbers below 1, as squared gradients are, the smallest win: the least important units are kept. Where key and query heads differ in number, they choose their units apart. Widths are rounded up, those of rotary heads to an even number.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use peft_core::{
    Affine, Base, Batch, Cache, Error, Frame, Hidden, Hooks, Key, Method, Next, Part, Place, Procedure, Result,
    Sequence, Shape, Site, SiteMap, Slot, Stack, Tuner, Weight,
    random::{Noise, Random},
    slot_name, split_name,
    train::Probe,
    view::with_values,
};
use serde::{Deserialize, Serialize};

use super::pruning::{fisher, pruned};
use super::tap::{Tap, pooled, tapped};

/// What tells which units of the backbone the side layers start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Importance {
    /// The squared gradients of the weights, summed over training samples (the paper's). Before the first step the whole model is
    /// differentiated for them.
    #[default]
    Fisher,
    /// The weights' absolute values.
    Weights,
}

/// The configuration of ladder side-tuning, in the reference's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LstConfig {
    /// By how much r the widths of the side layers are divided.
    pub task_reduction_factor: usize,
    /// The encoder's layers that have a side layer; all, if absent.
    pub encoder_side_layers: Option<Vec<usize>>,
    /// The decoder's layers that have a side layer; all, if absent.
    pub decoder_side_layers: Option<Vec<usize>>,
    /// The temperature T of the gates.
    pub gate_temperature: f64,
    /// What the side layers start from.
    pub importance: Importance,
    /// Training samples for [`Importance::Fisher`], drawn by the run's seed.
    pub samples_for_fisher: usize,
}

impl Default for LstConfig {
    /// The paper's: widths of an eighth, importance by Fisher on 1024 samples; a side layer at every layer.
    fn default() -> Self {
        LstConfig {
            task_reduction_factor: 8,
            encoder_side_layers: None,
            decoder_side_layers: None,
            gate_temperature: 0.1,
            importance: Importance::Fisher,
            samples_for_fisher: 1024,
        }
    }
}

impl LstConfig {
    /// Side layers of widths divided by this number.
    pub fn new(task_reduction_factor: usize) -> Self {
        LstConfig { task_reduction_factor, ..Default::default() }
    }

    /// With side layers at these layers only, of each stack.
    pub fn with_side_layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        let layers: Vec<usize> = layers.into_iter().collect();
        (self.encoder_side_layers, self.decoder_side_layers) = (Some(layers.clone()), Some(layers));
        self
    }

    /// Started from the units that this finds important.
    pub fn with_importance(mut self, importance: Importance) -> Self {
        self.importance = importance;
        self
    }

    /// With this many training samples for [`Importance::Fisher`].
    pub fn with_samples_for_fisher(mut self, samples: usize) -> Self {
        self.samples_for_fisher = samples;
        self
    }

    /// Checks the settings; gives the shape of the side network and the places of its tensors.
    fn plan(&self, shape: &Shape) -> Result<(Shape, Vec<Place>)> {
        let r = self.task_reduction_factor;
        if !(1..=shape.head_width).contains(&r) {
            let expected = format!("1 to {}, the width of a head", shape.head_width);
            return Err(Error::config("task_reduction_factor", r, expected));
        }
        if !(self.gate_temperature.is_finite() && self.gate_temperature > 0.0) {
            return Err(Error::config("gate_temperature", self.gate_temperature, "a finite number above 0"));
        }
        if self.samples_for_fisher == 0 {
            return Err(Error::config("samples_for_fisher", 0, "at least 1"));
        }
        for (stack, layers) in shape.stacks() {
            let kept = self.side_layers(stack);
            let distinct: BTreeSet<_> = kept.into_iter().flatten().collect();
            let outside = distinct.last().is_some_and(|last| **last >= layers);
            if kept.is_some_and(|kept| kept.is_empty() || kept.len() != distinct.len()) || outside {
                let name = if stack == Stack::Encoder { "encoder_side_layers" } else { "decoder_side_layers" };
                let expected = format!("different layers from 0 to {}", layers - 1);
                return Err(Error::config(
                    name,
                    format!("{:?}", kept.into_iter().flatten().collect::<Vec<_>>()),
                    expected,
                ));
            }
        }
        let side = side_shape(shape, r);
        let places = side.places().into_iter().filter(|place| self.holds(place.site)).collect();
        Ok((side, places))
    }

    fn side_layers(&self, stack: Stack) -> Option<&Vec<usize>> {
        match stack {
            Stack::Encoder => self.encoder_side_layers.as_ref(),
            Stack::Decoder => self.decoder_side_layers.as_ref(),
        }
    }

    /// Whether a layer has a side layer.
    fn keeps(&self, site: Site) -> bool {
        self.side_layers(site.stack).is_none_or(|layers| layers.contains(&site.layer))
    }

    /// Whether the side network has a place of its own where the backbone has this one: embeddings and what is behind the layers are
    /// the backbone's.
    fn holds(&self, site: Site) -> bool {
        use Part::*;
        match site.part {
            Words | Positions | Types | NormEmbedding | Pooler | Vocabulary => false,
            RelativePositions | NormFinal => true,
            _ => self.keeps(site),
        }
    }

    /// The layers with a side layer.
    fn rungs(&self, shape: &Shape) -> Vec<Site> {
        shape.sites(Part::Layer).into_iter().filter(|site| self.keeps(*site)).collect()
    }
}

/// Each width divided by r. The word table, which is not used, has a single row.
pub(super) fn side_shape(shape: &Shape, r: usize) -> Shape {
    let family = shape.architecture.family();
    let head_width = shape.head_width.div_ceil(r).next_multiple_of(if family.rotary { 2 } else { 1 });
    let hidden = if family.heads_make_hidden { shape.heads * head_width } else { shape.hidden.div_ceil(r) };
    let intermediate = shape.intermediate.div_ceil(r);
    Shape { head_width, hidden, intermediate, vocab: 1, pooler: false, tied: true, ..shape.clone() }
}

/// A network beside the base.
#[derive(Module, Debug)]
pub struct Lst {
    /// Of the side layers, `[in, out]`, and tables of relative positions.
    weights: SiteMap<Param<Tensor<2>>>,
    /// Of the side layers' normalizations.
    gains: SiteMap<Param<Tensor<1>>>,
    /// Of the side layers.
    biases: SiteMap<Param<Tensor<1>>>,
    /// D_0 of each stack, `[hidden, side]`.
    starts: SiteMap<Affine>,
    /// D_i, `[hidden, side]`.
    downs: SiteMap<Affine>,
    /// a_i, `[1]`.
    gates: SiteMap<Param<Tensor<1>>>,
    /// U, `[side, hidden]`.
    up: Affine,
    #[module(skip)]
    config: LstConfig,
}

impl Method for LstConfig {
    const NAME: &'static str = "lst";
    const PEFT_TYPE: &'static str = "LADDER_SIDE_TUNING";
    type Tuner = Lst;

    fn init(&self, base: &Base, seed: u64) -> Result<Lst> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let (side, places) = self.plan(shape)?;
        let values = pruned(base, &side, |site| base.weight(site).dense().abs());
        let at = |slot: Slot| places.iter().filter(move |place| place.slot == slot).map(|place| place.site);
        let value = |site, slot| values[&(site, slot)].clone();
        let weight = |site| (site, Param::from_tensor(Tensor::from_data(value(site, Slot::Weight), &device)));
        let vector = |slot| {
            let (value, device) = (&value, &device);
            move |site| (site, Param::from_tensor(Tensor::from_data(value(site, slot), device)))
        };
        // As the reference starts linear maps that no checkpoint holds, in its T5 and in its BART.
        let std = if shape.pre_norm() { 0.01 } else { 0.02 };
        let linear =
            |dims: [usize; 2], name: &str| Affine::init(dims, std, Random::new(seed, &format!("lst.{name}")), &device);
        let down = |site: Site, name: &str| (site, linear([shape.hidden, side.hidden], &format!("{name}.{site}")));
        let first = shape.sites(Part::Layer).into_iter().filter(|site| site.layer == 0);
        let rungs = self.rungs(shape);
        let gate = |site: &Site| (*site, Param::from_tensor(Tensor::zeros([1], &device)));
        Ok(Lst {
            weights: at(Slot::Weight).map(weight).collect(),
            gains: at(Slot::Gain).map(vector(Slot::Gain)).collect(),
            biases: at(Slot::Bias).map(vector(Slot::Bias)).collect(),
            starts: first.map(|site| down(site, "start")).collect(),
            downs: rungs.iter().map(|site| down(*site, "down")).collect(),
            gates: rungs.iter().map(gate).collect(),
            up: linear([side.hidden, shape.hidden], "up"),
            config: self.clone(),
        })
    }

    /// Not to be pruned from the base anew.
    fn for_loading(&self, base: &Base) -> Result<Lst> {
        LstConfig { importance: Importance::Weights, ..self.clone() }.init(base, 0)
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let (side, places) = self.plan(shape)?;
        let layers: usize = places.iter().map(Place::count).sum();
        let down = (shape.hidden + 1) * side.hidden;
        let rungs = self.rungs(shape).len() * (down + 1);
        Ok(layers + rungs + shape.stacks().len() * down + (side.hidden + 1) * shape.hidden)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let named = |name: String, leaf: &str| {
            let name = format!("base_model.model.{name}");
            match leaf {
                "weight" => Key::transposed(name + ".weight"),
                "bias" => Key::plain(name + ".bias"),
                _ => Key::plain(name),
            }
        };
        if let Some(leaf) = name.strip_prefix("up.") {
            return named("side_final_upsample".into(), leaf);
        }
        let (field, site, leaf) = split_name(name);
        let stack = if site.stack == Stack::Encoder { "encoder" } else { "decoder" };
        let slot = match field {
            "starts" => return named(format!("{stack}.side_first_downsample"), leaf),
            "downs" => return named(format!("{stack}.side_downsamples.{}", site.layer), leaf),
            "gates" => return named(format!("{stack}.side_gate_params.{}", site.layer), leaf),
            "weights" => Slot::Weight,
            "gains" => Slot::Gain,
            _ => Slot::Bias,
        };
        let places = shape.places();
        let place = places.iter().find(|place| place.site == site && place.slot == slot);
        let place = place.expect("the side network has the places of the model");
        Key { name: format!("base_model.model.side.{}", shape.file_name(place)), transposed: place.transposed }
    }
}

/// The side network during one run: its tensors, and at each of its layers the rung that leads in from the backbone.
struct Climb<'a> {
    lst: &'a Lst,
    tap: Tap,
}

impl Hooks for Climb<'_> {
    fn layer(&self, _frame: &Frame<'_>, site: Site, mut x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        let Lst { starts, downs, gates, config, .. } = self.lst;
        if let (Some(start), Some(states)) = (starts.get(site), self.tap.starts.borrow().get(&site.stack)) {
            x.hidden = start.forward(states.clone());
        }
        let (Some(down), Some(gate)) = (downs.get(site), gates.get(site)) else { return x };
        if let Some(states) = self.tap.layers.borrow().get(&site) {
            let gate = activation::sigmoid(gate.val() / config.gate_temperature).unsqueeze::<3>();
            x.hidden = x.hidden * gate.clone() + down.forward(states.clone()) * (gate.neg() + 1.0);
        }
        next(x)
    }

    fn weight(&self, site: Site, w: Weight) -> Weight {
        self.lst.weights.get(site).map_or(w, |own| Weight::Dense(own.val()))
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        let vectors = if slot == Slot::Gain { &self.lst.gains } else { &self.lst.biases };
        vectors.get(site).map_or(v, Param::val)
    }
}

impl Tuner for Lst {
    fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        let (Hidden { words, .. }, tap) = tapped(base, batch)?;
        let side = Base::hollow(side_shape(base.shape(), self.config.task_reduction_factor), base.device());
        // Which tokens there are the tap knows. The side network's dropout is its own.
        let noise = |noise: &Arc<Noise>| Arc::new(Noise { seed: !noise.seed, ..(**noise).clone() });
        let beside = Batch {
            ids: batch.ids.zeros_like(),
            padding: batch.padding.clone(),
            types: None,
            decoder: batch.decoder.as_ref().map(Tensor::zeros_like),
            tasks: batch.tasks.clone(),
            cache: batch.cache.as_ref().map(Cache::beside),
            noise: batch.noise.as_ref().map(noise),
            tape: None,
        };
        let hidden = side.forward(&beside, &Climb { lst: self, tap })?;
        let states = self.up.forward(hidden.states);
        Ok(Hidden { pooled: pooled(base, &states), states, prompt: 0, words })
    }
}

impl Procedure for Lst {
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        if self.config.importance == Importance::Weights {
            return Ok(self);
        }
        let (side, places) = self.config.plan(base.shape())?;
        let fisher = fisher(base, data, self.config.samples_for_fisher)?;
        let mut values = pruned(base, &side, |site| fisher[&site].clone());
        let named = |Place { site, slot, .. }: Place| Some((slot_name(site, slot), values.remove(&(site, slot))?));
        let values = places.into_iter().filter_map(named).collect();
        with_values(self, &values)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use peft_core::Head;
    use peft_core::testing::{base, batch, device, examples, fixtures::SHAPES, randomized};
    use peft_core::view::tensors;

    use super::*;

    mod all_layers {
        use super::*;
        peft_core::conformance!(
            LstConfig::new(2),
            skip(
                C1: "the side network takes the place of the last states",
                C3: "another network is no weight",
                C6: "no adapter, so that it composes with nothing"
            )
        );
    }

    mod some_layers {
        use super::*;
        peft_core::conformance!(
            LstConfig::new(2).with_side_layers([1]),
            skip(
                C1: "the side network takes the place of the last states",
                C3: "another network is no weight",
                C6: "no adapter, so that it composes with nothing"
            )
        );
    }

    #[test]
    fn has_as_many_parameters_as_paper_and_reference() {
        let [t5, roberta] = ["t5-base", "roberta-base"].map(|name| Shape::named(name).unwrap());
        let kept = || (0..12).filter(|layer| layer % 4 != 0);
        let (all, some) = (LstConfig::default(), LstConfig::default().with_side_layers(kept()));
        // The reference has the gates of the layers without a side layer too, 3 in each stack; they do nothing.
        assert_eq!([&some, &all].map(|c| c.count(&t5).unwrap()), [3_878_712 - 6, 5_097_240]);
        assert_eq!([&some, &all].map(|c| c.count(&roberta).unwrap()), [1_819_308 - 3, 2_376_300]);
    }

    /// Each width is the least that is no smaller than its part, and even where numbers are turned in pairs.
    #[test]
    fn widths_are_rounded_up() {
        let least =
            |width: usize, r: usize, even: bool| (1..).find(|n| n * r >= width && (!even || n % 2 == 0)).unwrap();
        for shape in Shape::NAMES.map(|name| Shape::named(name).unwrap()) {
            for r in 1..=shape.head_width {
                let (side, rotary) = (side_shape(&shape, r), shape.architecture.family().rotary);
                let head_width = least(shape.head_width, r, rotary);
                let hidden = if shape.pre_norm() { least(shape.hidden, r, false) } else { shape.heads * head_width };
                let expected = [head_width, hidden, least(shape.intermediate, r, false)];
                let found = [side.head_width, side.hidden, side.intermediate];
                assert_eq!(found, expected, "{:?} by {r}", shape.architecture);
            }
        }
    }

    /// Of a base of the opposite numbers the same units are chosen.
    #[test]
    fn the_sign_of_a_weight_does_not_matter() {
        let config = LstConfig::new(2).with_importance(Importance::Weights);
        for base in SHAPES.map(|shape| base(shape, &device())) {
            let places = base.shape().places().into_iter().filter(|place| place.slot == Slot::Weight);
            let opposite = places.fold(base.clone(), |opposite, place| {
                opposite.with_weight(place.site, Weight::Dense(base.weight(place.site).dense().neg()))
            });
            let [values, others] = [&base, &opposite].map(|base| tensors(&config.init(base, 3).unwrap()));
            for (name, value) in values {
                let sign = if name.starts_with("weights.") { -1.0 } else { 1.0 };
                let numbers = |data: &TensorData, sign: f32| data.iter::<f32>().map(|x| sign * x).collect::<Vec<_>>();
                assert_eq!(numbers(&others[&name], 1.0), numbers(&value, sign), "{name}");
            }
        }
    }

    #[test]
    fn the_backbone_is_never_differentiated() {
        for shape in SHAPES {
            let base = base(shape, &device());
            let batch = batch(&base);
            let lst = randomized(&LstConfig::new(2).init(&base, 3).unwrap(), 3);
            assert!(lst.run(&base, &batch).unwrap().states.is_autodiff());
            let (hidden, tap) = tapped(&base, &batch).unwrap();
            let (starts, layers) = (tap.starts.into_inner(), tap.layers.into_inner());
            assert_eq!(
                (starts.len(), layers.len()),
                (base.shape().stacks().len(), base.shape().sites(Part::Layer).len())
            );
            assert!(starts.values().chain(layers.values()).all(|states| !states.is_autodiff()));
            assert_eq!(hidden.states.into_data(), base.forward(&batch, &()).unwrap().states.into_data());
        }
    }

    /// The tensors of the side layers, and only those, are chosen anew before the first step.
    #[test]
    fn a_run_starts_from_the_units_that_fisher_finds() {
        let base = base("roberta-tiny", &device());
        let (examples, head) = (examples(&base), Head::classifier(&base, 2, 3));
        let squares = fisher(&base, Probe::new(&head, &examples), 3).unwrap();
        let config = LstConfig::new(2).with_samples_for_fisher(3);
        let start = config.init(&base, 3).unwrap();
        let prepared = start.clone().prepare(&base, Probe::new(&head, &examples)).unwrap();
        let expected = pruned(&base, &side_shape(base.shape(), 2), |site| squares[&site].clone());
        let values = tensors(&prepared);
        assert_eq!(tensors(&start).keys().collect::<Vec<_>>(), values.keys().collect::<Vec<_>>());
        assert_ne!(tensors(&start), values);
        for (name, data) in &values {
            let Some((field @ ("weights" | "gains" | "biases"), site, _)) =
                name.contains("encoder").then(|| split_name(name))
            else {
                continue;
            };
            let slot = match field {
                "weights" => Slot::Weight,
                "gains" => Slot::Gain,
                _ => Slot::Bias,
            };
            assert_eq!(*data, expected[&(site, slot)], "{name}");
        }
        let plain = config.with_importance(Importance::Weights).init(&base, 3).unwrap();
        let unchanged = plain.clone().prepare(&base, Probe::new(&head, &examples)).unwrap();
        assert_eq!(tensors(&unchanged), tensors(&plain));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("t5-tiny", &device());
        let good = LstConfig::new(2);
        for (config, words) in [
            (LstConfig::new(0), ["task_reduction_factor", "0", "1 to 10"]),
            (LstConfig::new(11), ["task_reduction_factor", "11", "1 to 10"]),
            (good.clone().with_side_layers([2]), ["encoder_side_layers", "[2]", "0 to 1"]),
            (LstConfig { decoder_side_layers: Some(vec![]), ..good.clone() }, ["decoder_side_layers", "[]", "0 to 2"]),
            (
                LstConfig { decoder_side_layers: Some(vec![1, 1]), ..good.clone() },
                ["decoder_side_layers", "[1, 1]", "different"],
            ),
            (LstConfig { gate_temperature: 0.0, ..good.clone() }, ["gate_temperature", "0", "above 0"]),
            (good.with_samples_for_fisher(0), ["samples_for_fisher", "0", "at least 1"]),
        ] {
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let message = message.to_string();
                assert!(words.iter().all(|word| message.contains(word)), "{message}");
            }
        }
    }
}
