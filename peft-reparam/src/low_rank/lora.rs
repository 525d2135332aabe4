//! # LoRA                                   family: reparameterized / low-rank decomposition
//! h = W x + s B A x, s = alpha / r         A: [d_in, r] ~ U(-1/sqrt(d_in), 1/sqrt(d_in)), B: [r, d_out] = 0
//! Paper: Hu et al., 2021, arXiv:2106.09685, eq. 3.   Reference: huggingface/peft tuners/lora
//! Oracle: package peft 0.21.2: `equals_the_reference`
//! Trains: r (d_in + d_out) per site (of a table its rows and its width), biases by `bias`, and d per row by `trainable_token_indices`.      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`, `merging_is_the_same_function_and_leaves_the_original`
//! - s B A has rank r at most: `the_update_has_rank_r`
//! - r = min(d_in, d_out) expresses every update: `full_rank_expresses_every_update`
//! - alpha -> c alpha is B -> c B: `alpha_scales_as_b_does`
//! - (A R, R^-1 B) for invertible R: `an_invertible_matrix_between_the_factors_changes_nothing`
//! - rank r1 + r2 is the sum of two: `two_adapters_are_one_of_the_sum_of_their_ranks`
//! - rsLoRA at alpha is LoRA at alpha sqrt(r): `the_scale_is_alpha_over_r_and_with_rslora_over_its_root`
//! - with G the gradient of W, that of A is s G B^T and that of B is s A^T G: `gradients_of_the_factors_are_tied`
//! - at init only B has a gradient: `only_b_has_a_gradient_at_the_start`
//! - rows of word tables by `trainable_token_indices` leave all others: `other_rows_stay`, `tokens_equal_the_reference`
//! - factors of a table leave its other uses: `tables_equal_the_reference`, `other_uses_of_a_table_stay`
//! - equals burn's own LoRA: `equals_the_lora_of_burn`
//! - dropout on x is a mask of the sample, and x on average: `masks_follow_the_sample`, `dropout_is_right_on_average`
//!
//! Differs from the paper: A is Kaiming-uniform as in the authors' code, the paper says Gaussian. AdapterHub's `intermediate_lora` and `output_lora` are on LLaMA `down_proj` and `up_proj`, the other way round than elsewhere.

pub(super) mod config;

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::adapterhub::AdapterHub;
use peft_core::train::Probe;
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Delta, Error, Hooks, Key, Lookup, Merge, Method, Next, Part, Procedure, Replaced,
    Result, Shape, Site, SiteMap, Slot, Start, Weight, file_path,
    random::{Noise, Random},
    split_name,
};

pub use self::config::{BiasMode, LoraConfig};
use super::pair::{self, Pair, dropped, untrained};
use super::tokens::Rows;
use super::{dora, hub, start, tables};

/// Low-rank factors at some sites.
#[derive(Module, Debug)]
pub struct Lora {
    pub(super) factors: SiteMap<Factors>,
    biases: SiteMap<Param<Tensor<1>>>,
    tokens: SiteMap<Rows>,
    #[module(skip)]
    dropout: f64,
}

/// The factors at one site.
#[derive(Module, Debug)]
pub struct Factors {
    /// `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    /// `[d_out]`, of DoRA.
    pub magnitude: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(super) scale: f64,
}

impl Factors {
    fn pair(&self) -> Pair {
        Pair { a: self.a.val(), b: self.b.val(), scale: self.scale }
    }

    /// What stands in place of a site's matrix.
    fn onto(&self, site: Site, w: Tensor<2>) -> Tensor<2> {
        let w = Weight::Dense(tables::turned(site, w));
        tables::turned(site, self.directed(self.pair().onto(&w)))
    }

    /// What stands in place of a matrix and its update together.
    fn directed(&self, sum: Tensor<2>) -> Tensor<2> {
        match &self.magnitude {
            Some(m) => sum.clone() * dora::scale(m.val(), &sum),
            None => sum,
        }
    }
}

impl Method for LoraConfig {
    const NAME: &'static str = "lora";
    const PEFT_TYPE: &'static str = "LORA";
    const OWN_SETTINGS: &'static [&'static str] = &["freeze_a", "a_seed"];
    type Tuner = Lora;

    fn init(&self, base: &Base, seed: u64) -> Result<Lora> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let factors = self.plan(shape)?.into_iter().map(|(site, rank, scale)| {
            let [rows, columns] = tables::dims(shape, site);
            let random = Random::new(self.a_seed.unwrap_or(seed), &format!("lora.{site}.a"));
            let (a, b) = match tables::is_looked_up(site) {
                false => (pair::start([rows, rank], random, &device), Tensor::zeros([rank, columns], &device)),
                true => (Tensor::zeros([rows, rank], &device), tables::fresh(site, [rank, columns], seed, &device)),
            };
            let a = if self.freeze_a { untrained(a) } else { Param::from_tensor(a) };
            let lengths = || Tensor::from_inner(dora::lengths(tables::turned(site, base.weight(site).dense())));
            let magnitude = self.use_dora.then(|| Param::from_tensor(lengths()));
            (site, Factors { a, b: Param::from_tensor(b), magnitude, scale })
        });
        let biases = self
            .biases(shape)?
            .into_iter()
            .map(|site| (site, Param::from_tensor(Tensor::from_inner(base.vector(site, Slot::Bias)))));
        let tokens = self.rows(shape)?.into_iter();
        let tokens = tokens.map(|(site, indices)| (site, Rows::of(base.weight(site).dense(), indices)));
        let (factors, biases, tokens) = (factors.collect(), biases.collect(), tokens.collect());
        Ok(Lora { factors, biases, tokens, dropout: self.lora_dropout })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let [a, b] = self.sizes(shape)?;
        let a = if self.freeze_a { 0 } else { a };
        let adapted = if self.use_dora { self.adapted(shape)? } else { vec![] };
        let lengths = adapted.into_iter().map(|site| tables::dims(shape, site)[1]);
        let biases = self.biases(shape)?.into_iter().map(|site| base_bias(shape, site).count());
        let tokens = self.rows(shape)?.into_iter().map(|(_, indices)| indices.len() * shape.hidden);
        Ok(a + b + lengths.sum::<usize>() + biases.sum::<usize>() + tokens.sum::<usize>())
    }

    fn modules(shape: &Shape) -> Vec<(Site, String)> {
        shape.matrices()
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let of = |site, leaf: &str| format!("base_model.model.{}.{leaf}", Self::path(shape, site));
        match split_name(name) {
            ("factors", site, "magnitude") => Key::plain(of(site, "lora_magnitude_vector")),
            ("factors", site, factor) => Key::transposed(match tables::is_looked_up(site) {
                false => of(site, &format!("lora_{}.weight", factor.to_uppercase())),
                true => of(site, &format!("lora_embedding_{}", factor.to_uppercase())),
            }),
            ("tokens", site, _) => {
                Key::plain(format!("{}.token_adapter.trainable_tokens_delta", file_path(shape, site)))
            }
            (_, site, _) => {
                let adapted = self.adapted(shape).is_ok_and(|sites| sites.contains(&site));
                let base_layer = if adapted { ".base_layer" } else { "" };
                Key::plain(format!("{}{base_layer}.bias", file_path(shape, site)))
            }
        }
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(LoraConfig { target_modules: self.target_modules.named_among(&shape.matrices())?, ..self.clone() })
    }

    /// Of twice the rank, with the same scale.
    fn started(&self, _start: Start) -> Self {
        let factor = if self.use_rslora { 2f64.sqrt() } else { 2.0 };
        LoraConfig {
            r: 2 * self.r,
            lora_alpha: factor * self.lora_alpha,
            rank_pattern: self.rank_pattern.iter().map(|(key, r)| (key.clone(), 2 * r)).collect(),
            alpha_pattern: self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), factor * alpha)).collect(),
            ..self.clone()
        }
    }

    fn taken_out(&self, tuner: Lora, start: Start, base: &Base) -> Result<Lora> {
        let joined = |param: &Param<Tensor<2>>, more: Tensor<2>, dim| {
            let both = Tensor::cat(vec![param.val().without_autodiff(), more], dim);
            Param::from_tensor(Tensor::from_inner(both)).set_require_grad(param.is_require_grad())
        };
        let doubled = |(site, factors): (Site, &Factors)| {
            let w = tables::turned(site, base.weight(site).dense());
            let [a, b] = start::taken(start, &w, factors.a.dims()[1], factors.scale)?;
            let (a, b) = (joined(&factors.a, a, 1), joined(&factors.b, -b, 0));
            Ok((site, Factors { a, b, ..factors.clone() }))
        };
        let factors = tuner.factors.iter().map(doubled).collect::<Result<SiteMap<Factors>>>()?;
        Ok(Lora { factors, ..tuner })
    }

    fn adapterhub() -> Option<AdapterHub<Self>> {
        Some(hub::form())
    }

    fn merge(tuner: &Lora) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

fn base_bias(shape: &Shape, site: Site) -> peft_core::Place {
    let bias = |p: &peft_core::Place| p.site == site && p.slot == Slot::Bias;
    shape.places().into_iter().find(bias).expect("the sites of biases come from the places")
}

/// LoRA during one run: with the run's dropout.
struct Opened<'a> {
    lora: &'a Lora,
    /// Where the low-rank path drops numbers.
    noise: Option<&'a Noise>,
    /// What DoRA multiplies outputs by, found where the matrix is seen and used where its product is.
    scales: RefCell<BTreeMap<Site, Tensor<2>>>,
}

impl Hooks for Opened<'_> {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let Some(factors) = self.lora.factors.get(site) else { return next(x) };
        let dropped = |x| dropped(x, self.noise, self.lora.dropout, site);
        match (&factors.magnitude, self.noise) {
            (None, _) => next(x.clone()) + factors.pair().forward(dropped(x)),
            // The matrix is another already.
            (Some(_), None) => next(x),
            (Some(_), Some(_)) => {
                let (y, x) = (next(x.clone()), dropped(x));
                let bias = next(x.clone().narrow(1, 0, 1).zeros_like());
                let scale: Tensor<3> = self.scales.borrow()[&site].clone().unsqueeze();
                y + (next(x.clone()) - bias) * (scale.clone() - 1.0) + factors.pair().forward(x) * scale
            }
        }
    }

    fn rows(&self, site: Site, lookup: &Lookup<'_>, rows: Tensor<3>) -> Tensor<3> {
        let Some(factors) = self.lora.factors.get(site) else { return rows };
        let sum = rows + factors.pair().behind(lookup.of(factors.a.val()));
        match &factors.magnitude {
            Some(m) => sum * dora::scale(m.val(), &(lookup.table.dense() + factors.pair().update())).unsqueeze(),
            None => sum,
        }
    }

    fn weight(&self, site: Site, w: Weight) -> Weight {
        if let Some(rows) = self.lora.tokens.get(site) {
            return Weight::Dense(rows.onto(w.dense()));
        }
        let Some(factors) = self.lora.factors.get(site).filter(|_| !tables::is_looked_up(site)) else { return w };
        if site.part == Part::Vocabulary {
            return Weight::Dense(factors.onto(site, w.dense()));
        }
        let Some(m) = &factors.magnitude else { return w };
        let sum = || w.dense() + factors.pair().update();
        if self.noise.is_none() {
            return Weight::Dense(factors.directed(sum()));
        }
        self.scales.borrow_mut().entry(site).or_insert_with(|| dora::scale(m.val(), &sum()));
        w
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        match self.lora.biases.get(site) {
            Some(bias) if slot == Slot::Bias => bias.val(),
            _ => v,
        }
    }
}

/// Of DoRA nothing: it turns the matrix, and adds nothing to it.
impl Delta for Lora {
    fn to_linear(&self, batch: &Batch, site: Site, x: &Tensor<3>) -> Option<Tensor<3>> {
        let factors = self.factors.get(site).filter(|factors| factors.magnitude.is_none())?;
        Some(factors.pair().forward(dropped(x.clone(), batch.noise.as_deref(), self.dropout, site)))
    }
}

impl Adapter for Lora {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        let noise = batch.noise.as_deref().filter(|_| self.dropout > 0.0);
        f(&Opened { lora: self, noise, scales: RefCell::default() })
    }

    /// Without dropout a weight-decomposed map is another matrix, which is computed once.
    fn view(&self, base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        let rewritten = |(site, factors): (Site, &Factors)| factors.magnitude.is_some() && !site.part.is_table();
        let rewrites = self.dropout == 0.0 && self.factors.iter().all(rewritten);
        let opened = Opened { lora: self, noise: None, scales: RefCell::default() };
        Ok(rewrites.then(|| AnyTuner::new(Replaced::by(&opened, base))))
    }
}

impl Merge for Lora {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        if let Some(rows) = self.tokens.get(site) {
            return Some(rows.onto(w.dense()));
        }
        Some(self.factors.get(site)?.onto(site, w.dense()))
    }

    fn vector(&self, site: Site, slot: Slot, _v: &Tensor<1>) -> Option<Tensor<1>> {
        self.biases.get(site).filter(|_| slot == Slot::Bias).map(Param::val)
    }

    fn unties(&self) -> bool {
        self.factors.iter().any(|(site, _)| matches!(site.part, Part::Words | Part::Vocabulary))
    }
}

impl Procedure for Lora {
    fn prepare(self, _base: &Base, _data: Probe<'_>) -> Result<Self> {
        if self.dropout > 0.0 && self.factors.iter().any(|(site, _)| site.part == Part::Vocabulary) {
            let expected = "0 where lm_head is among the target_modules: nothing is dropped there";
            return Err(Error::config("lora_dropout", self.dropout, expected));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;
    use peft_core::{Head, Trained};

    use super::*;

    peft_core::conformance!(LoraConfig::new(3).with_alpha(5.0));

    #[test]
    fn equals_the_reference() {
        let cases = [
            ("lora", "roberta-classify"),
            ("lora-bert", "bert-classify"),
            ("lora-bias", "roberta-classify"),
            ("lora-patterns", "roberta-classify"),
            ("lora-t5", "t5"),
            ("lora-llama", "llama"),
            ("lora-llama-all", "llama"),
            ("lora-bert-tokens", "bert-tokens"),
            ("lora-roberta-tokens", "roberta-tokens"),
            ("lora-llama-tokens", "llama-tokens"),
        ];
        for (case, base) in cases {
            open(case, base).check_method::<LoraConfig>();
        }
    }

    #[test]
    fn answers_equal_the_reference() {
        for (case, base) in [("lora-bert-answers", "bert-answers"), ("lora-roberta-answers", "roberta-answers")] {
            let case = open(case, base);
            let (config, trained) = case.load::<LoraConfig>();
            let bias = |trained: &Trained<Lora>| match &trained.head {
                Head::Answers(head) => head.out.bias.clone(),
                other => panic!("{other:?}"),
            };
            let start = bias(&trained);
            // A softmax over tokens ignores it.
            let hold = |mut trained: Trained<Lora>| {
                if let Head::Answers(head) = &mut trained.head {
                    head.out.bias = start.clone();
                }
                trained
            };
            case.check_holding(trained, |name| case.key(&config, name), hold);
            case.check_merged::<LoraConfig>();
        }
    }

    fn open(case: &str, base: &str) -> Case {
        Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case), base)
    }

    /// The rule is any method's; this one stands for all.
    #[test]
    fn steps_of_adafactor_equal_the_reference() {
        open("lora", "roberta-classify").check_adafactor::<LoraConfig>();
    }
}
