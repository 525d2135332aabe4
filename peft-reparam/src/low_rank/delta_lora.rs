//! # Delta-LoRA                             family: reparameterized / low-rank decomposition
//! h = W_t x + s B A x, s = alpha / r       W_(t+1) = W_t + lambda s (B_(t+1) A_(t+1) - B_t A_t) after each step t > K
//! Paper: Zi et al., 2023, arXiv:2309.02411, section 3.   Reference: none is public
//! Oracle: paper: `the_base_moves_by_the_changes_of_the_product`
//! Trains: r (d_in + d_out) per site.       Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - the sum of all changes is lambda s (B_T A_T - B* A*), the product now and after step K: `the_base_moves_by_the_changes_of_the_product`
//! - lambda = 0, and no more than K steps, are LoRA, bit for bit: `without_its_ratio_and_before_its_start_it_is_lora`
//! - gradients of the factors are LoRA's on the moved base: `gradients_are_those_of_lora_on_the_moved_base`
//!
//! Differs from the paper: the base is not moved but what it has moved by is held, as the factors after step K beside those now (their
//! changes telescope), so that the base is shared, may be packed, and a file holds two pairs a site. What the base has moved by has no
//! gradient in the factors, as in the paper.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::train::Optim;
use peft_core::{
    Base, Hooks, Key, Merge, Method, Next, Part, Procedure, Result, Shape, Site, SiteMap, Sites, Weight, adapter,
    random::Random, split_name,
};
use serde::{Deserialize, Serialize};

use super::pair::{self, Pair, untrained};
use super::ranks::{check_alpha, check_rank};

/// The configuration of Delta-LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeltaLoraConfig {
    /// Rank.
    pub r: usize,
    /// The scale s is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Where.
    pub target_modules: Sites,
    /// lambda, how far the base moves with the product.
    pub delta_ratio: f64,
    /// K, the number of steps before it does.
    pub start_steps: usize,
}

impl Default for DeltaLoraConfig {
    /// The paper's lambda 2 and K 500, otherwise LoRA's: rank 8, alpha 8, on query and value.
    fn default() -> Self {
        let target_modules = Part::Query | Part::Value;
        DeltaLoraConfig { r: 8, lora_alpha: 8.0, target_modules, delta_ratio: 2.0, start_steps: 500 }
    }
}

impl DeltaLoraConfig {
    /// Rank `r`, alpha 8, on query and value.
    pub fn new(r: usize) -> Self {
        DeltaLoraConfig { r, ..Default::default() }
    }

    /// With a base that moves by `ratio` times the change of the product, after so many steps.
    pub fn with_ratio(mut self, ratio: f64, start_steps: usize) -> Self {
        (self.delta_ratio, self.start_steps) = (ratio, start_steps);
        self
    }

    fn sites(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_rank("r", self.r)?;
        check_alpha("lora_alpha", self.lora_alpha)?;
        if !self.delta_ratio.is_finite() {
            return Err(peft_core::Error::config("delta_ratio", self.delta_ratio, "a finite number"));
        }
        self.target_modules.resolve(shape)
    }
}

/// Low-rank factors at some sites, and what the base has moved by with them.
#[derive(Module, Debug)]
pub struct DeltaLora {
    factors: SiteMap<Moving>,
    #[module(skip)]
    scale: f64,
    #[module(skip)]
    ratio: f64,
    #[module(skip)]
    start_steps: usize,
}

/// The factors at one site.
#[derive(Module, Debug)]
pub struct Moving {
    /// A, `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// B, `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    /// A* and B* after step K, once the base moves.
    pub start: Option<Start>,
}

/// Factors as they were, which go along untrained.
#[derive(Module, Debug)]
pub struct Start {
    /// A*, `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// B*, `[r, d_out]`.
    pub b: Param<Tensor<2>>,
}

impl DeltaLora {
    fn pair(&self, of: &Moving) -> Pair {
        Pair { a: of.a.val(), b: of.b.val(), scale: self.scale }
    }

    /// What the base has moved by is the first of these less the second: the products now and at the start.
    fn moved(&self, of: &Moving) -> Option<[Pair; 2]> {
        let scale = self.ratio * self.scale;
        let plain = |a: &Param<Tensor<2>>, b: &Param<Tensor<2>>| Pair {
            a: a.val().without_autodiff(),
            b: b.val().without_autodiff(),
            scale,
        };
        let start = of.start.as_ref().filter(|_| self.ratio != 0.0)?;
        Some([plain(&of.a, &of.b), plain(&start.a, &start.b)])
    }

    /// From here on the base moves, if it does not yet.
    fn started(self) -> Self {
        let started = |(site, of): (Site, &Moving)| {
            let start = || Start { a: untrained(of.a.val()), b: untrained(of.b.val()) };
            (site, Moving { start: Some(of.start.clone().unwrap_or_else(start)), ..of.clone() })
        };
        DeltaLora { factors: self.factors.iter().map(started).collect(), ..self }
    }
}

impl Method for DeltaLoraConfig {
    const NAME: &'static str = "delta-lora";
    const PEFT_TYPE: &'static str = "DELTA_LORA";
    type Tuner = DeltaLora;

    fn init(&self, base: &Base, seed: u64) -> Result<DeltaLora> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let factors = self.sites(shape)?.into_iter().map(|site| {
            let [rows, columns] = shape.linear_dims(site);
            let a = pair::start([rows, self.r], Random::new(seed, &format!("lora.{site}.a")), &device);
            let b = Param::from_tensor(Tensor::zeros([self.r, columns], &device));
            (site, Moving { a: Param::from_tensor(a), b, start: None })
        });
        let (scale, ratio, start_steps) = (self.lora_alpha / self.r as f64, self.delta_ratio, self.start_steps);
        let delta = DeltaLora { factors: factors.collect(), scale, ratio, start_steps };
        Ok(if start_steps == 0 { delta.started() } else { delta })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let dims = self.sites(shape)?.into_iter().map(|site| shape.linear_dims(site));
        Ok(dims.map(|[rows, columns]| self.r * (rows + columns)).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        let word = match leaf {
            "a" => "A.weight",
            "b" => "B.weight",
            "start.a" => "start_A.weight",
            _ => "start_B.weight",
        };
        Key::transposed(pair::file_name(shape, site, word))
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(DeltaLoraConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    /// Where the base has not moved yet, with the factors as its start.
    fn to_saved(tuner: DeltaLora) -> DeltaLora {
        tuner.started()
    }

    fn for_loading(&self, base: &Base) -> Result<DeltaLora> {
        Ok(self.init(base, 0)?.started())
    }

    fn merge(tuner: &DeltaLora) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Hooks for DeltaLora {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let Some(factors) = self.factors.get(site) else { return next(x) };
        let y = next(x.clone()) + self.pair(factors).forward(x.clone());
        match self.moved(factors) {
            Some([now, start]) => y + (now.forward(x.clone()) - start.forward(x)),
            None => y,
        }
    }
}

adapter!(DeltaLora);

impl Merge for DeltaLora {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let factors = self.factors.get(site)?;
        let w = match self.moved(factors) {
            Some([now, start]) => Weight::Dense(now.onto(w) - start.update()),
            None => w.clone(),
        };
        Some(self.pair(factors).onto(&w))
    }
}

impl Procedure for DeltaLora {
    fn resumed(self, _base: &Base, _phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        Ok(if shapes.keys().any(|name| name.ends_with(".start.a")) { self.started() } else { self })
    }

    fn after_step(self, _base: &Base, _optim: &mut Optim, _before: &Self, step: usize) -> Result<Self> {
        Ok(if step == self.start_steps { self.started() } else { self })
    }
}

#[cfg(test)]
mod tests {
    use peft_core::testing::tolerances::{SAME_FUNCTION, SAME_GRADIENT};
    use peft_core::testing::{assert_close, base, batch, conformance::loss, device, examples, golden::named, states};
    use peft_core::train::{Run, TrainConfig};
    use peft_core::view::{tensors, with_values};
    use peft_core::{Bare, Head, Trained, Tuner};

    use super::*;
    use crate::{Lora, LoraConfig};

    peft_core::conformance!(DeltaLoraConfig::new(3).with_ratio(2.0, 2));

    mod from_the_start {
        use super::*;
        peft_core::conformance!(DeltaLoraConfig::new(3).with_ratio(0.5, 0));
    }

    fn settings() -> TrainConfig {
        TrainConfig { weight_decay: 0.1, ..TrainConfig::new(2e-2).with_batch_size(4).with_steps(6) }
    }

    fn run<T: Procedure>(tuner: T, base: &Base) -> Run<T> {
        Run::new(&settings(), base.clone(), Trained::new(tuner, Head::classifier(base, 2, 3)).unwrap()).unwrap()
    }

    /// LoRA with the factors of this.
    fn lora(delta: &DeltaLora, base: &Base) -> Lora {
        let named = |(name, data): (String, _)| Some((name, data)).filter(|(name, _)| !name.contains(".start."));
        with_values(LoraConfig::new(3).init(base, 0).unwrap(), &tensors(delta).into_iter().filter_map(named).collect())
            .unwrap()
    }

    #[test]
    fn the_base_moves_by_the_changes_of_the_product() {
        let plain = base("roberta-tiny", &device());
        let (data, scale, ratio, start) = (examples(&plain), 8.0 / 3.0, 1.5, 2);
        let mut run = run(DeltaLoraConfig::new(3).with_ratio(ratio, start).init(&plain, 1).unwrap(), &plain);
        let products = |delta: &DeltaLora| -> Vec<(Site, Tensor<2>)> {
            let product = |(site, of): (Site, &Moving)| (site, of.a.val().inner().matmul(of.b.val().inner()) * scale);
            delta.factors.iter().map(product).collect()
        };
        let mut moved = plain.clone();
        for step in 1..=5 {
            let before = products(&run.trained.tuner);
            run.step(&data).unwrap();
            for ((site, before), (_, after)) in before.into_iter().zip(products(&run.trained.tuner)) {
                if step > start {
                    let w = moved.weight(site).dense() + (after - before) * ratio;
                    moved = moved.with_weight(site, Weight::Dense(w));
                }
            }
            let delta = &run.trained.tuner;
            assert_close(states(delta, &plain), states(&lora(delta, &plain), &moved), SAME_FUNCTION, "moved");
        }
        assert!(states(&Bare {}, &moved).into_data() != states(&Bare {}, &plain).into_data());
    }

    #[test]
    fn without_its_ratio_and_before_its_start_it_is_lora() {
        let base = base("bert-tiny", &device());
        let data = examples(&base);
        let config = |ratio, start| DeltaLoraConfig::new(3).with_ratio(ratio, start);
        let mut plain = run(LoraConfig::new(3).init(&base, 1).unwrap(), &base);
        let mut still = run(config(0.0, 0).init(&base, 1).unwrap(), &base);
        let mut late = run(config(2.0, 3).init(&base, 1).unwrap(), &base);
        for step in 1..=3 {
            plain.step(&data).unwrap();
            still.step(&data).unwrap();
            late.step(&data).unwrap();
            let expected = tensors(&plain.trained.tuner);
            assert_eq!(tensors(&lora(&still.trained.tuner, &base)), expected, "ratio 0, step {step}");
            assert_eq!(tensors(&lora(&late.trained.tuner, &base)), expected, "step {step}");
        }
        // The change by the fourth step is the first that moves the base, and the fifth the first to see it.
        for _ in 4..=5 {
            plain.step(&data).unwrap();
            late.step(&data).unwrap();
        }
        assert_ne!(tensors(&lora(&late.trained.tuner, &base)), tensors(&plain.trained.tuner));
    }

    #[test]
    fn gradients_are_those_of_lora_on_the_moved_base() {
        let plain = base("t5-tiny", &device());
        let delta =
            peft_core::testing::randomized(&DeltaLoraConfig::new(3).with_ratio(1.5, 0).init(&plain, 1).unwrap(), 4);
        let moved = delta.factors.iter().fold(plain.clone(), |base, (site, of)| {
            let [now, start] = delta.moved(of).unwrap();
            let w = now.onto(base.weight(site)) - start.update();
            base.with_weight(site, Weight::Dense(w))
        });
        let gradients = |tuner: &dyn Fn() -> Tensor<1>| tuner().backward();
        let ours = gradients(&|| loss(delta.run(&plain, &batch(&plain)).unwrap()));
        let ours = named(&delta, &burn::optim::GradientsParams::from_grads(ours, &delta));
        let same = lora(&delta, &plain);
        let theirs = gradients(&|| loss(same.run(&moved, &batch(&moved)).unwrap()));
        let theirs = named(&same, &burn::optim::GradientsParams::from_grads(theirs, &same));
        assert_eq!(ours.len(), theirs.len());
        for (name, gradient) in theirs {
            let tensor = |data: &burn::tensor::TensorData| Tensor::<2>::from_data(data.clone(), &device());
            let largest = gradient.iter::<f32>().map(f32::abs).fold(1.0, f32::max);
            assert_close(tensor(&ours[&name]) / largest, tensor(&gradient) / largest, SAME_GRADIENT, &name);
        }
    }
}
