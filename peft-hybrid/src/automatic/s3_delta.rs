//! # S3Delta-M                              family: hybrid / automatic combination
//! y = W x + z_1 B A x + z_2 b;  LN: gain + z_3 g, bias + z_4 b';  u' = u + z_5 a(u)      parts i with n_i numbers, each behind a gate z_i in (0, 1)
//! z_i = sigmoid(logit(u_i) + logit(p_i)), u_i uniform;  p_i = sigmoid(alpha_i - zeta), zeta such that sum p_i n_i = B
//! min over alpha of L_2(w - xi dL_1/dw, alpha), w of L_1(w, alpha), L_1 and L_2 on two halves of the data; then the likeliest parts within B, anew
//! Paper: Hu et al., 2022, arXiv:2206.07382, section 3.   Reference: thunlp/S3Delta
//! Oracle: paper: `a_step_of_the_search_is_that_of_the_equations`
//! Trains: while it searches all parts, d_in + d_out for LoRA of rank 1, d_out for a bias, d for LNFit, 3 d + 3 m for a low-rank adapter, and one alpha each; then B at most.      Merges: once it has found parts that are weights.
//! Identities:
//! - sum p_i n_i = B, and zeta falls as B grows: `the_shift_meets_the_budget`
//! - alpha + c for all is alpha: `only_differences_of_logits_count`
//! - a gate is open, z > 1/2, as often as p says: `a_gate_is_open_with_its_probability`
//! - what is chosen is within B, and nothing that was passed over fits: `the_likeliest_parts_that_fit_are_chosen`, `what_is_found_is_within_the_budget`
//! - a part is multiplied by its gate: `a_gate_multiplies_what_its_part_adds`
//! - with B for all, all are chosen: `a_budget_for_all_chooses_all`
//! - the gradient of alpha is that of L_2 behind the step of w, with zeta and the sum of p held: `a_step_of_the_search_is_that_of_the_equations`
//! - w learns of one half, alpha of the other: `each_half_teaches_its_own`
//! - LNFit merges into the gain, zeros at the start are the base: `C1`, `C3`
//!
//! Differs from the paper: the step of w is the plain one of its equations, the code's is AdamW's. A text is in a half by a hash of its tokens. T5 has the parts of its code; elsewhere every linear map of a layer outside of a cross-attention is one's place. Biases behind normalizations are where a model has them. The head goes on from where the search leaves it.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use peft_additive::adapters::bottleneck;
use peft_core::transfer::{read, send};
use peft_core::{
    Adapter, Base, Batch, Delta, Error, Frame, Hooks, Key, Merge, Method, Next, Part, Result, Sequence, Shape, Site,
    SiteMap, Sites, Slot, Weight, file_path, split_name,
};
use peft_reparam::{Lora, LoraConfig};
use serde::{Deserialize, Serialize};

use super::candidate::{Candidate, Kind};
use super::structure::{chosen, probabilities, shift};
use super::thin::{LowRank, Thin};

/// The configuration of S3Delta-M.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3DeltaConfig {
    /// The budget B as a share of the model's numbers.
    pub share: f64,
    /// Width m of the low-rank adapters.
    pub bottleneck: usize,
    /// The share of the steps that search.
    pub search_steps: f64,
    /// By how much the learning rate of alpha is larger than the run's.
    pub structure_rate: f64,
    /// The rate xi of the step of w that alpha looks past; 0 looks at w as it is.
    pub unrolled_rate: f64,
    /// The parts that are there, as `encoder.0.query.lora`; with them nothing is searched.
    pub structure: Option<Vec<String>>,
}

impl Default for S3DeltaConfig {
    /// The code's: 1.389e-4 of the model's numbers, rates 3e-4 and 0.1.
    fn default() -> Self {
        let (search_steps, structure_rate, unrolled_rate) = (0.5, 333.0, 3e-4);
        S3DeltaConfig { share: 1.389e-4, bottleneck: 24, search_steps, structure_rate, unrolled_rate, structure: None }
    }
}

/// Whether a part of a model is a normalization of its layers.
fn is_norm(part: Part) -> bool {
    matches!(part, Part::NormAttention | Part::NormCrossAttention | Part::NormFeedForward | Part::NormFinal)
}

impl S3DeltaConfig {
    /// With this share of the model's numbers as the budget.
    pub fn new(share: f64) -> Self {
        S3DeltaConfig { share, ..Default::default() }
    }

    /// With low-rank adapters of this width.
    pub fn with_bottleneck(mut self, width: usize) -> Self {
        self.bottleneck = width;
        self
    }

    /// With this rate of the step that the structure looks past.
    pub fn with_unrolled_rate(mut self, rate: f64) -> Self {
        self.unrolled_rate = rate;
        self
    }

    /// With these parts, and no search.
    pub fn with_structure(mut self, parts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.structure = Some(parts.into_iter().map(Into::into).collect());
        self
    }

    /// The budget B.
    pub fn budget(&self, shape: &Shape) -> usize {
        (self.share * shape.count() as f64) as usize
    }

    /// All parts that a model can have, by their names, and how many numbers each has.
    pub fn space(&self, shape: &Shape) -> Vec<(String, usize)> {
        self.all(shape).into_iter().map(|part| (part.to_string(), part.count)).collect()
    }

    fn all(&self, shape: &Shape) -> Vec<Candidate> {
        use Part::{CrossKey, CrossOutput, CrossQuery, CrossValue};
        let (d, m) = (shape.hidden, self.bottleneck);
        let crossed = |part| matches!(part, CrossQuery | CrossKey | CrossValue | CrossOutput);
        let of = |site, kind, count| Candidate { site, kind, count };
        let mut all: Vec<Candidate> = vec![];
        for place in shape.places() {
            let site = place.site;
            match place.slot {
                Slot::Weight if place.transposed && site.part.is_in_layer() && !crossed(site.part) => {
                    let (inputs, outputs) = (place.dims[0], place.dims[1]);
                    all.extend([of(site, Kind::Lora, inputs + outputs), of(site, Kind::Bias, outputs)]);
                }
                Slot::Gain if is_norm(site.part) => all.push(of(site, Kind::Gain, d)),
                Slot::Bias if is_norm(site.part) => all.push(of(site, Kind::Bias, d)),
                _ => {}
            }
        }
        let sublayers = [Part::SelfAttention, Part::FeedForward].into_iter().flat_map(|part| shape.sites(part));
        all.extend(sublayers.map(|site| of(site, Kind::Adapter, 3 * (d + m))));
        all
    }

    /// The parts that are there at the start.
    fn plan(&self, shape: &Shape) -> Result<Vec<Candidate>> {
        bottleneck::check_width(self.bottleneck, shape)?;
        let all = self.all(shape);
        for (key, value) in [("structure_rate", self.structure_rate), ("unrolled_rate", self.unrolled_rate)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::config(key, value, "a finite number from 0"));
            }
        }
        if !(self.search_steps > 0.0 && self.search_steps < 1.0) {
            return Err(Error::config("search_steps", self.search_steps, "a number above 0 and below 1"));
        }
        let Some(structure) = &self.structure else {
            let least = all.iter().map(|part| part.count).min().unwrap_or_default();
            if !(self.share > 0.0 && self.share <= 1.0) || self.budget(shape) < least {
                let expected = format!("a number above 0, at most 1, for at least {least} of {}", shape.count());
                return Err(Error::config("share", self.share, expected));
            }
            return Ok(all);
        };
        let named = |name: &String| {
            let found = all.iter().copied().find(|part| part.to_string() == *name);
            found.ok_or_else(|| Error::config("structure", name, "STACK.LAYER.PART.KIND, as encoder.0.query.lora"))
        };
        let mut parts = structure.iter().map(named).collect::<Result<Vec<_>>>()?;
        parts.sort_by_key(|part| all.iter().position(|other| other == part));
        parts.dedup();
        Ok(parts)
    }

    /// LoRA of rank 1 at the sites that have it.
    fn lora(&self, parts: &[Candidate], shape: &Shape) -> Option<LoraConfig> {
        let at = |site| parts.iter().any(|part| part.site == site && part.kind == Kind::Lora);
        let paths: Vec<String> =
            shape.linears().into_iter().filter(|(site, _)| at(*site)).map(|(_, path)| path).collect();
        (!paths.is_empty()).then(|| LoraConfig::new(1).with_alpha(1.0).with_sites(Sites::Names(paths)))
    }
}

/// The parts that are there, and while they are searched how likely each is.
#[derive(Module, Debug)]
pub struct S3Delta {
    lora: Option<Lora>,
    /// `[out]` each.
    biases: SiteMap<Param<Tensor<1>>>,
    /// `[d]` each.
    gains: SiteMap<Param<Tensor<1>>>,
    adapters: SiteMap<LowRank>,
    /// alpha, `[parts]`; none once the structure is found.
    pub(super) alpha: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(super) parts: Vec<Candidate>,
    /// u of the step, of each part. Between steps gates are open as far as they are likely.
    #[module(skip)]
    pub(super) drawn: Option<Vec<f32>>,
    #[module(skip)]
    budget: usize,
    /// Whether the model has a place for each bias, and no part is an adapter.
    #[module(skip)]
    merges: bool,
    /// Whether a run begins with a search.
    #[module(skip)]
    pub(super) searches: bool,
    #[module(skip)]
    pub(super) config: S3DeltaConfig,
}

impl Method for S3DeltaConfig {
    const NAME: &'static str = "s3delta";
    const PEFT_TYPE: &'static str = "S3DELTA_M";
    type Tuner = S3Delta;

    fn init(&self, base: &Base, seed: u64) -> Result<S3Delta> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let (parts, places) = (self.plan(shape)?, shape.places());
        let of = |kind| parts.iter().filter(move |part| part.kind == kind);
        let zeros = |part: &Candidate| (part.site, Param::from_tensor(Tensor::zeros([part.count], &device)));
        let adapter = |part: &Candidate| {
            let ([d, m], name) = ([shape.hidden, self.bottleneck], part.site.to_string());
            let thin = |dims, map: &str| Thin::new(dims, seed, &format!("{name}.{map}"), &device);
            (part.site, LowRank { down: thin([d, m], "down"), up: thin([m, d], "up") })
        };
        let has_place = |part: &Candidate| places.iter().any(|p| p.site == part.site && p.slot == Slot::Bias);
        let alpha = || Param::from_tensor(Tensor::zeros([parts.len()], &device));
        Ok(S3Delta {
            lora: self.lora(&parts, shape).map(|lora| lora.init(base, seed)).transpose()?,
            biases: of(Kind::Bias).map(zeros).collect(),
            gains: of(Kind::Gain).map(zeros).collect(),
            adapters: of(Kind::Adapter).map(adapter).collect(),
            alpha: self.structure.is_none().then(alpha),
            merges: self.structure.is_some() && of(Kind::Adapter).count() == 0 && of(Kind::Bias).all(has_place),
            drawn: None,
            searches: self.structure.is_none(),
            budget: self.budget(shape),
            config: self.clone(),
            parts,
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let parts = self.plan(shape)?;
        let logits = if self.structure.is_none() { parts.len() } else { 0 };
        Ok(logits + parts.iter().map(|part| part.count).sum::<usize>())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        if name == "alpha" {
            return Key::plain("structure_logits");
        }
        if let Some(name) = name.strip_prefix("lora.") {
            return LoraConfig::new(1).key(name, shape);
        }
        match split_name(name) {
            ("adapters", site, leaf) => bottleneck::key(shape, site, leaf),
            (field, site, _) => Key::plain(format!("{}.added_{field}", file_path(shape, site))),
        }
    }

    fn learned(&self, tuner: &S3Delta, _shape: &Shape) -> Self {
        match tuner.alpha {
            Some(_) => self.clone(),
            None => self.clone().with_structure(tuner.structure()),
        }
    }

    fn merge(tuner: &S3Delta) -> Option<&dyn Merge> {
        if tuner.merges { Some(tuner) } else { None }
    }
}

impl S3Delta {
    /// The names of the parts that are there.
    pub fn structure(&self) -> Vec<String> {
        self.parts.iter().map(Candidate::to_string).collect()
    }

    /// How likely each part is, if that is still searched.
    pub fn probabilities(&self) -> Option<Vec<f64>> {
        let alpha = numbers(&self.alpha.as_ref()?.val());
        Some(probabilities(&alpha, &self.counts(), self.budget))
    }

    fn counts(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.count).collect()
    }

    /// The gates, `[parts]`.
    fn gates(&self) -> Option<Tensor<1>> {
        let alpha = self.alpha.as_ref()?.val();
        let zeta = shift(&numbers(&alpha), &self.counts(), self.budget);
        let p = activation::sigmoid(alpha - zeta as f32);
        // What one part gains in likelihood the others lose.
        let sum = p.clone().sum();
        let p = (p * (sum.clone().detach() / sum)).clamp(1e-6, 1.0 - 1e-6);
        let Some(drawn) = &self.drawn else { return Some(p) };
        let drawn: Vec<f32> = drawn.iter().map(|u| (u / (1.0 - u)).ln()).collect();
        let drawn: Tensor<1> = send(drawn.as_slice(), &p.device());
        Some(activation::sigmoid(p.clone().log() - (-p + 1.0).log() + drawn))
    }

    /// How far the gates are open, if parts are still searched.
    pub fn open(&self) -> Option<Vec<f32>> {
        Some(read(self.gates()?).iter::<f32>().collect())
    }

    /// Anew, with these of the parts.
    pub(super) fn of_parts(&self, parts: impl Iterator<Item = String>, base: &Base, seed: u64) -> Result<Self> {
        let found = self.config.clone().with_structure(parts).init(base, seed)?;
        Ok(S3Delta { searches: self.searches, config: self.config.clone(), ..found })
    }

    /// The likeliest parts within the budget.
    pub fn likeliest(&self) -> Vec<String> {
        let likely = self.probabilities().unwrap_or_default();
        let kept = chosen(&likely, &self.counts(), self.budget);
        kept.into_iter().map(|i| self.parts[i].to_string()).collect()
    }
}

fn numbers(tensor: &Tensor<1>) -> Vec<f64> {
    read(tensor.clone()).iter::<f32>().map(f64::from).collect()
}

/// The parts during one run.
struct Opened<'a> {
    own: &'a S3Delta,
    batch: &'a Batch,
    gates: Option<Tensor<1>>,
}

impl Opened<'_> {
    /// What a part adds, as far as its gate is open.
    fn gated<const D: usize>(&self, site: Site, kind: Kind, added: Tensor<D>) -> Tensor<D> {
        let Some(gates) = &self.gates else { return added };
        let place = self.own.parts.iter().position(|part| part.site == site && part.kind == kind);
        let place = place.unwrap_or_else(|| unreachable!("whatever adds is a part"));
        added * gates.clone().narrow(0, place, 1).reshape([1; D])
    }

    fn bias(&self, site: Site) -> Option<Tensor<1>> {
        Some(self.gated(site, Kind::Bias, self.own.biases.get(site)?.val()))
    }
}

impl Hooks for Opened<'_> {
    fn sublayer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let output = next(x);
        match self.own.adapters.get(site) {
            Some(adapter) => output.clone() + self.gated(site, Kind::Adapter, adapter.forward(output)),
            None => output,
        }
    }

    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let lora = self.own.lora.as_ref().and_then(|lora| lora.to_linear(self.batch, site, &x));
        let lora = lora.map(|added| self.gated(site, Kind::Lora, added));
        let added = [lora, self.bias(site).map(Tensor::unsqueeze)].into_iter().flatten();
        added.fold(next(x), |y, added| y + added)
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        let added = match slot {
            Slot::Gain => self.own.gains.get(site).map(|gain| self.gated(site, Kind::Gain, gain.val())),
            // Those of linear maps are behind the maps.
            Slot::Bias if is_norm(site.part) => self.bias(site),
            _ => None,
        };
        added.map_or(v.clone(), |added| v + added)
    }
}

impl Adapter for S3Delta {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened { own: self, batch, gates: self.gates() })
    }
}

impl Merge for S3Delta {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.lora.as_ref()?.weight(site, w)
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        let of = if slot == Slot::Gain { &self.gains } else { &self.biases };
        of.get(site).map(|added| v.clone() + added.val())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::optim::GradientsParams;
    use burn::tensor::TensorData;
    use peft_core::random::Random;
    use peft_core::testing::golden::named;
    use peft_core::testing::recorded::Recorded;
    use peft_core::testing::tolerances::REFERENCE;
    use peft_core::testing::{
        base, device,
        fixtures::{DECODERS, ENCODERS},
    };
    use peft_core::view::{tensors, with_values};
    use peft_core::{Label, Procedure, Trained};

    use super::*;

    fn config() -> S3DeltaConfig {
        S3DeltaConfig::new(0.02).with_bottleneck(3)
    }

    mod searching {
        use super::*;
        peft_core::conformance!(
            config(),
            skip(C1: "low-rank adapters start elsewhere", C3: "a gate that is half open is no weight")
        );
    }

    mod first_order {
        use super::*;
        peft_core::conformance!(
            config().with_unrolled_rate(0.0),
            skip(C1: "low-rank adapters start elsewhere", C3: "a gate that is half open is no weight")
        );
    }

    mod found {
        use super::*;
        peft_core::conformance!(
            config().with_structure(["encoder.0.query.lora", "encoder.1.norm_feed_forward.gain", "encoder.1.norm_attention.bias", "encoder.1.up.bias"]),
            only(ENCODERS: "T5 has no such biases, and LLaMA no encoder")
        );
    }

    mod found_adapters {
        use super::*;
        peft_core::conformance!(
            config().with_structure(["decoder.0.feed_forward.adapter", "decoder.1.value.lora", "decoder.1.up.bias"]),
            only(DECODERS: "there is no decoder"),
            skip(C1: "low-rank adapters start elsewhere", C3: "an adapter is no weight")
        );
    }

    #[test]
    fn counts_are_those_of_the_code() {
        let shape = Shape::named("roberta-base").unwrap();
        let config = S3DeltaConfig::default();
        assert_eq!(config.budget(&shape), 17_231);
        let space = config.space(&shape);
        assert_eq!(space.len(), 12 * (6 * 2 + 2 * 2 + 2));
        let numbers =
            12 * (4 * (2 * 768 + 768) + (768 + 3072 + 3072) + (3072 + 768 + 768) + 4 * 768 + 2 * 3 * (768 + 24));
        assert_eq!(config.count(&shape).unwrap(), space.len() + numbers);
        // T5 has a gain only, and its cross-attention no part but its normalization.
        let t5 = Shape::named("t5-base").unwrap();
        assert_eq!(config.space(&t5).len(), 12 * (6 * 2 + 2 + 2) + 1 + 12 * (6 * 2 + 3 + 2) + 1);
        assert_eq!(config.with_structure(["encoder.3.up.lora"]).count(&shape).unwrap(), 768 + 3072);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("roberta-tiny", &device());
        for (config, words) in [
            (S3DeltaConfig::new(0.0), ["share", "0", "above 0"]),
            (S3DeltaConfig::new(1e-5), ["share", "0.00001", "at least 24"]),
            (config().with_bottleneck(0), ["bottleneck", "0", "1 to 384"]),
            (config().with_unrolled_rate(-1.0), ["unrolled_rate", "-1", "from 0"]),
            (S3DeltaConfig { search_steps: 1.0, ..config() }, ["search_steps", "1", "below 1"]),
            (config().with_structure(["encoder.3.up.lora"]), ["structure", "encoder.3.up.lora", "STACK.LAYER"]),
            (config().with_structure(["encoder.0.up.gain"]), ["structure", "encoder.0.up.gain", "KIND"]),
        ] {
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let message = message.to_string();
                assert!(words.iter().all(|word| message.contains(word)), "{message}");
            }
        }
    }

    /// Probabilities, gates, both halves' losses, and the gradients of one step: of w by the first half, of alpha by the second behind
    /// the step of w, differentiated exactly.
    #[test]
    fn a_step_of_the_search_is_that_of_the_equations() {
        let recorded =
            Recorded::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/s3delta-step"), "roberta-classify");
        let base = &recorded.base;
        let start = config().with_unrolled_rate(0.5).init(base, 0).unwrap();
        let values =
            tensors(&start).into_keys().map(|name| (name.clone(), recorded.expected(&format!("start.{name}"))));
        let start = with_values(start, &values.collect()).unwrap();
        let likely: Vec<f32> = start.probabilities().unwrap().into_iter().map(|p| p as f32).collect();
        recorded.compare("probabilities", &TensorData::from(likely.as_slice()), REFERENCE);
        let names = start.structure();
        let chosen: Vec<f32> = names.iter().map(|name| f32::from(start.likeliest().contains(name))).collect();
        recorded.compare("chosen", &TensorData::from(chosen.as_slice()), REFERENCE);
        let tuner = start.sample(&mut Random::new(7, "sample of step 0"));
        let trained = Trained::new(tuner, recorded.head.clone()).unwrap();
        recorded.compare_logits("logits", base, &trained, REFERENCE);
        let labels: Vec<&Label> = recorded.examples.iter().filter_map(|example| example.label.as_ref()).collect();
        let batch = base.batch(&recorded.examples.iter().collect::<Vec<_>>()).unwrap();
        let loss = trained.objective(base, &batch, &labels).unwrap() / labels.len() as f32;
        recorded.compare("loss", &loss.to_data(), REFERENCE);
        let gradients = named(&trained, &GradientsParams::from_grads(loss.backward(), &trained));
        recorded.compare_all("grad", &gradients, |name| Key::plain(name), REFERENCE);
    }
}
