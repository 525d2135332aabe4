use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Lst, LstConfig};
use peft_core::testing::golden::{self, Case};
use peft_core::testing::tolerances::{REFERENCE, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, batch, device, difference, fixtures::SHAPES, randomized};
use peft_core::train::Probe;
use peft_core::view::{Rewrite, tensors, view};
use peft_core::{
    Architecture, Bare, Base, Frame, Hooks, Method, Next, Part, Place, Procedure, Sequence, Shape, Site, Slot, Stack,
    Tuner,
    random::{Noise, Random},
};
use proptest::prelude::*;

use super::run;

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn random(config: &LstConfig, base: &Base, seed: u64) -> Lst {
    randomized(&config.init(base, seed).unwrap(), seed).valid()
}

fn bits(tuner: &impl Tuner, base: &Base) -> TensorData {
    run(tuner, base, &batch(base)).into_data()
}

/// All gates at a value.
struct Gates(f64);

impl Rewrite for Gates {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        if name.starts_with("gates.") { t.full_like(self.0) } else { t }
    }
}

/// Other numbers in the tensors whose names start so.
struct Other(&'static str);

impl Rewrite for Other {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        match name.starts_with(self.0) {
            true => t.clone() + Random::new(9, name).normal_tensor(t.dims(), 0.3, &t.device()),
            false => t,
        }
    }
}

/// The identity on the way into the side network and out of it.
struct Straight;

impl Rewrite for Straight {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        if !name.starts_with("starts.") && !name.starts_with("up.") {
            return t;
        }
        let dims = t.dims();
        let diagonal = |i: usize| if D == 2 && i / dims[1] == i % dims[1] { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..dims.iter().product()).map(diagonal).collect();
        Tensor::from_data(TensorData::new(values, dims), &t.device())
    }
}

/// Logits, gradients and ten steps; and before the first the units that Fisher finds.
#[test]
fn equals_the_derivation_of_lst() {
    for (name, base) in [("lst-bert", "bert-classify"), ("lst-t5", "t5")] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let case = Case::open(dir.clone(), base);
        case.check_method::<LstConfig>();
        let (config, trained) = case.load::<LstConfig>();
        let examples = golden::examples(&dir.join("inputs.safetensors"));
        let begun =
            config.init(&case.base, 3).unwrap().prepare(&case.base, Probe::new(&trained.head, &examples)).unwrap();
        let compared =
            case.check_tensors("start", tensors(&begun), &|name| config.key(name, case.base.shape()), REFERENCE);
        let taken = ["weights.", "gains.", "biases."];
        let sides =
            tensors(&begun).into_keys().filter(|name| taken.iter().any(|taken| name.starts_with(taken))).count();
        assert_eq!(compared, sides, "{name}");
    }
}

#[test]
fn a_side_network_of_full_width_is_the_backbone() {
    for base in bases() {
        let start = LstConfig::new(1).init(&base, 3).unwrap().valid();
        let same = view(&view(&start, &mut Straight), &mut Gates(1e3));
        let batch = batch(&base);
        let (found, bare) = (same.run(&base, &batch).unwrap(), Bare {}.run(&base, &batch).unwrap());
        assert_close(found.states, bare.states, SAME_FUNCTION, "states");
        assert_close(found.words.dense(), bare.words.dense(), SAME_FUNCTION, "words");
        assert_eq!(found.pooled.is_some(), bare.pooled.is_some());
        if let (Some(found), Some(bare)) = (found.pooled, bare.pooled) {
            assert_close(found, bare, SAME_FUNCTION, "pooled");
        }
        assert_ne!(bits(&start, &base), bits(&same, &base));
    }
}

/// Dropout in the side network drops other numbers than in the backbone, though it is the backbone's own layers.
#[test]
fn the_side_network_has_a_dropout_of_its_own() {
    for base in bases().into_iter().map(|base| base.with_dropout(0.3)) {
        let start = LstConfig::new(1).init(&base, 3).unwrap().valid();
        let same = view(&view(&start, &mut Straight), &mut Gates(1e3));
        let samples = (0..batch(&base).dims()[0] as u32).collect();
        let noisy = batch(&base).with_noise(Noise { seed: 5, step: 1, samples });
        let [side, backbone, quiet] = [
            same.run(&base, &noisy).unwrap(),
            Bare {}.run(&base, &noisy).unwrap(),
            same.run(&base, &batch(&base)).unwrap(),
        ]
        .map(|hidden| hidden.states.into_data());
        for other in [backbone, quiet] {
            let found = difference(&side, &other);
            assert!(found > 100.0 * SAME_FUNCTION.0, "{found}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Open for the side, nothing of D_i h_i comes in; open for the backbone, nothing of D_0 h_0 is left.
    #[test]
    fn gates_choose_between_the_side_and_the_backbone(seed: u64) {
        for base in bases() {
            let lst = random(&LstConfig::new(2), &base, seed);
            let [side, backbone] = [1e3, -1e3].map(|gate| view(&lst, &mut Gates(gate)));
            let other = |lst: &Lst, name| bits(&view(lst, &mut Other(name)), &base);
            prop_assert_eq!(other(&side, "downs."), bits(&side, &base));
            prop_assert_ne!(other(&side, "starts."), bits(&side, &base));
            prop_assert_eq!(other(&backbone, "starts."), bits(&backbone, &base));
            prop_assert_ne!(other(&backbone, "downs."), bits(&backbone, &base));
        }
    }

    /// The states behind the last layer of a stack, if that has no side layer: whatever the layer does.
    #[test]
    fn a_dropped_layer_has_no_rung(seed: u64) {
        for base in bases() {
            let shape = base.shape();
            let (stack, layers) = *shape.stacks().last().unwrap();
            let norm = Site { stack, layer: layers - 1, part: Part::NormFeedForward };
            let moved = base.clone().with_vector(norm, Slot::Gain, base.vector(norm, Slot::Gain) * 1.5);
            let some = random(&LstConfig::new(2).with_side_layers([0, 1][..layers - 1].iter().copied()), &base, seed);
            let all = random(&LstConfig::new(2), &base, seed);
            prop_assert_eq!(bits(&some, &base), bits(&some, &moved));
            prop_assert_ne!(bits(&all, &base), bits(&all, &moved));
            let last = format!(".{}.", layers - 1);
            prop_assert!(tensors(&all).keys().any(|name| name.contains(&last)));
            prop_assert!(tensors(&some).keys().all(|name| !name.contains(&last)));
        }
    }
}

/// What goes into the first layer of each stack, and what comes out of each layer.
#[derive(Default)]
struct Record(RefCell<BTreeMap<(Stack, usize), Tensor<3>>>);

impl Hooks for Record {
    fn layer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        if site.layer == 0 {
            self.0.borrow_mut().insert((site.stack, 0), x.hidden.clone());
        }
        let x = next(x);
        self.0.borrow_mut().insert((site.stack, site.layer + 1), x.hidden.clone());
        x
    }
}

/// One layer of a network alone, on these states; behind an encoder that ends with those.
struct Alone {
    site: Site,
    input: Tensor<3>,
    encoded: Option<Tensor<3>>,
    output: RefCell<Option<Tensor<3>>>,
}

impl Hooks for Alone {
    fn layer(&self, _frame: &Frame<'_>, site: Site, mut x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        if site == self.site {
            let x = next(Sequence { hidden: self.input.clone(), ..x });
            *self.output.borrow_mut() = Some(x.hidden.clone());
            return x;
        }
        if let Some(encoded) = self.encoded.clone().filter(|_| site.stack != self.site.stack) {
            x.hidden = encoded;
        }
        x
    }
}

/// The side network, its widths half of the base's, as a model of its own; zeros where it has no tensors.
fn side(lst: &Lst, base: &Base) -> Base {
    let (whole, values) = (base.shape(), tensors(lst));
    let head_width = match whole.architecture {
        // Of numbers that are turned in pairs.
        Architecture::Llama(_) => (whole.head_width / 2).next_multiple_of(2),
        _ => whole.head_width / 2,
    };
    let shape = Shape { hidden: whole.hidden / 2, head_width, intermediate: whole.intermediate / 2, ..whole.clone() };
    let tensor = |place: &Place| {
        let field = match place.slot {
            Slot::Weight => "weights",
            Slot::Gain => "gains",
            Slot::Bias => "biases",
        };
        Ok(match values.get(&format!("{field}.{}", place.site)).cloned() {
            Some(matrix) if place.transposed => Tensor::<2>::from_data(matrix, base.device()).transpose().into_data(),
            Some(tensor) => tensor,
            None => TensorData::zeros::<f32, _>(place.file_dims()),
        })
    };
    Base::new(shape, base.device(), tensor).unwrap()
}

/// s_i = f'_i(g_i s_(i-1) + (1 - g_i) D_i h_i) layer by layer, with gates between their ends and a temperature that is not 1.
#[test]
fn a_side_layer_works_on_the_mixed_states() {
    for base in bases() {
        let config = LstConfig { gate_temperature: 0.7, ..LstConfig::new(2) };
        let lst = random(&config, &base, 5);
        let (batch, record, values, side) = (batch(&base), Record::default(), tensors(&lst), side(&lst, &base));
        base.forward(&batch, &record).unwrap();
        let states = record.0.into_inner();
        let affine = |name: &str, x: Tensor<3>| {
            let get = |leaf: &str| values[&format!("{name}.{leaf}")].clone();
            let weight = Tensor::<2>::from_data(get("weight"), base.device());
            x.matmul(weight.unsqueeze()) + Tensor::<1>::from_data(get("bias"), base.device()).unsqueeze()
        };
        let mut encoded = None;
        for (stack, layers) in base.shape().stacks() {
            let at = |layer| Site { stack, layer, part: Part::Layer };
            let mut s = affine(&format!("starts.{}", at(0)), states[&(stack, 0)].clone());
            for layer in 0..layers {
                let site = at(layer);
                let a: f32 = values[&format!("gates.{site}")].iter().next().unwrap();
                let g = 1.0 / (1.0 + (-f64::from(a) / 0.7).exp());
                let h = affine(&format!("downs.{site}"), states[&(stack, layer + 1)].clone());
                let alone =
                    Alone { site, input: s * g + h * (1.0 - g), encoded: encoded.clone(), output: Default::default() };
                side.forward(&batch, &alone).unwrap();
                s = alone.output.into_inner().unwrap();
            }
            encoded = Some(s);
        }
        let (s, (stack, _)) = (encoded.unwrap(), *base.shape().stacks().last().unwrap());
        let last = Site { stack, layer: 0, part: Part::NormFinal };
        let s = if base.shape().pre_norm() { side.frame(&batch, &()).norm(last, s) } else { s };
        assert_close(run(&lst, &base, &batch), affine("up", s), SAME_FUNCTION, "states");
    }
}
