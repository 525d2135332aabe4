//! # Laplace-LoRA                           family: reparameterized / low-rank decomposition
//! h = W x + s B A x, s = alpha / r         a finished LoRA, A: [d_in, r], B: [r, d_out], as the mean of a normal distribution
//! precision of A and of B, each by itself: I / v + sum a a^T (x) mean g g^T over the tokens of the data, a what the matrix reads and g the slope of the loss
//! at what it makes, labels drawn by the model; of the wide factor the n_kfac largest directions; v maximizes the likelihood of the data
//! linearized: logits ~ N(f, J S J^T), J: [classes, numbers of A and B]; sampled: A, B ~ N; of either the mean of the probabilities
//! Paper: Yang et al., 2023, arXiv:2308.13111, eq. 8 to 13.   Reference: adamxyang/laplace-lora; MaximeRobeyns/bayesian_lora
//! Oracle: code MaximeRobeyns/bayesian_lora bayesian_lora/main.py: `predictions_are_those_of_a_derivation_in_float64`
//! Trains: nothing.      Merges: no; its mean is a LoRA, which merges.
//! Identities:
//! - its mean is the LoRA, whose bits stay: `its_mean_is_the_lora`
//! - with v = 0 predictions are the LoRA's: `without_a_variance_it_is_the_lora`
//! - covariances are those of the inverse of the whole precision, and by Woodbury's identity: `covariances_are_those_of_the_whole_inverse`
//! - without data the covariance is v J J^T: `without_data_the_prior_is_left`
//! - with as many directions as the wide side has nothing is left out: `with_all_directions_nothing_is_left_out`
//! - a stronger curvature never makes a prediction less certain: `a_stronger_curvature_makes_it_more_certain`
//! - the evidence has its maximum at v: `the_prior_maximizes_the_evidence`
//! - of one token the curvature is the square of the slope: `of_one_token_the_curvature_is_the_square_of_the_slope`
//! - draws have the covariance: `draws_have_the_covariance`
//! - curvature, prior and predictions are those of the equations: `predictions_are_those_of_a_derivation_in_float64`
//!
//! Differs from the paper: one label is drawn for each example, as in bayesian_lora, where laplace-lora sums over all classes. Tokens count each for itself, bayesian_lora takes the last one. The prior's variance is where the slope of the evidence is 0, which the codes approach by gradient steps; bayesian_lora's evidence has the signs of its terms the other way. The head is as the LoRA's run left it, and has no posterior. The curvature is of the base that it was found on: on another it is refused.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use peft_core::train::{Phase, Probe};
use peft_core::{
    Base, Batch, Copies, Error, Head, Hidden, Key, Method, Procedure, Readout, Result, Shape, Site, SiteMap, Sites,
    Source, Trained, Tuner, Wanted, split_name,
    view::{shapes, tensors},
};
use serde::{Deserialize, Serialize};

use super::curvature::{Curvature, Noting, Sums, prior_variance};
use super::lora::LoraConfig;
use super::pair::{self, LowRank, Opened, Pair, untrained};

/// The most samples.
const MOST: usize = 1 << 20;

/// How the posterior predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// By logits that are linear in A and B, of classes of texts.
    #[default]
    Linearized,
    /// By runs with A and B that are drawn.
    Sampled,
}

/// The configuration of Laplace-LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaplaceLoraConfig {
    /// Rank of the LoRA.
    pub r: usize,
    /// Its scale is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Where it is.
    pub target_modules: Sites,
    /// How many directions of the wide factors are kept.
    pub n_kfac: usize,
    /// How it predicts.
    pub prediction: Prediction,
    /// How many logits, or pairs of A and B, are drawn for a prediction.
    pub samples: usize,
    /// The fingerprint of the base on which the curvature was found.
    pub fitted_on: Option<String>,
}

impl Default for LaplaceLoraConfig {
    /// PEFT's LoRA, 10 directions as the authors have it, and 10 000 logits.
    fn default() -> Self {
        let LoraConfig { r, lora_alpha, target_modules, .. } = LoraConfig::default();
        let prediction = Prediction::default();
        LaplaceLoraConfig { r, lora_alpha, target_modules, n_kfac: 10, prediction, samples: 10_000, fitted_on: None }
    }
}

impl LaplaceLoraConfig {
    /// Of a LoRA of rank `r`, otherwise as by default.
    pub fn new(r: usize) -> Self {
        LaplaceLoraConfig { r, ..Default::default() }
    }

    /// Of a LoRA with these settings. Only rank, alpha and sites may differ from the default.
    pub fn of(lora: &LoraConfig) -> Result<Self> {
        let LoraConfig { r, lora_alpha, target_modules, .. } = lora.clone();
        let config = LaplaceLoraConfig { r, lora_alpha, target_modules, ..Default::default() };
        let LoraConfig { lora_dropout, freeze_a, a_seed, .. } = *lora;
        match *lora == (LoraConfig { lora_dropout, freeze_a, a_seed, ..config.lora() }) {
            true => Ok(config),
            false => {
                Err(Error::config("sources", format!("{lora:?}"), "a LoRA of one rank and one alpha, and nothing else"))
            }
        }
    }

    /// Of a LoRA with this alpha.
    pub fn with_alpha(self, alpha: f64) -> Self {
        LaplaceLoraConfig { lora_alpha: alpha, ..self }
    }

    /// Of a LoRA on these linear maps.
    pub fn with_sites(self, sites: impl Into<Sites>) -> Self {
        LaplaceLoraConfig { target_modules: sites.into(), ..self }
    }

    /// With so many directions of the wide factors.
    pub fn with_directions(self, n_kfac: usize) -> Self {
        LaplaceLoraConfig { n_kfac, ..self }
    }

    /// With predictions of this kind by so many draws.
    pub fn with_prediction(self, prediction: Prediction, samples: usize) -> Self {
        LaplaceLoraConfig { prediction, samples, ..self }
    }

    fn lora(&self) -> LoraConfig {
        LoraConfig::new(self.r).with_alpha(self.lora_alpha).with_sites(self.target_modules.clone())
    }

    fn sites(&self, shape: &Shape) -> Result<Vec<Site>> {
        self.lora().count(shape)?;
        for (key, count) in [("n_kfac", self.n_kfac), ("samples", self.samples)] {
            if !(1..=MOST).contains(&count) {
                return Err(Error::config(key, count, format!("1 to {MOST}")));
            }
        }
        self.target_modules.resolve(shape)
    }

    /// Of these factors, without data.
    fn built(&self, base: &Base, factors: impl Fn(Site, [[usize; 2]; 2]) -> [Tensor<2>; 2]) -> Result<LaplaceLora> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let sites = self.sites(shape)?.into_iter().map(|site| {
            let [rows, columns] = shape.linear_dims(site);
            let [a, b] = factors(site, [[rows, self.r], [self.r, columns]]).map(untrained);
            let none = |wide: usize| Curvature::none([wide, self.r], self.n_kfac.min(wide), &device);
            (site, Posterior { a, b, of_a: none(rows), of_b: none(columns) })
        });
        let variance = Param::from_tensor(Tensor::zeros([1], &device)).set_require_grad(false);
        Ok(LaplaceLora { sites: sites.collect(), variance, config: self.clone() })
    }
}

/// A finished LoRA with a posterior.
#[derive(Module, Debug)]
pub struct LaplaceLora {
    pub(super) sites: SiteMap<Posterior>,
    /// Of the prior, `[1]`; 0 before there is a posterior.
    variance: Param<Tensor<1>>,
    #[module(skip)]
    pub(super) config: LaplaceLoraConfig,
}

/// The means and the curvatures of a pair.
#[derive(Module, Debug)]
pub struct Posterior {
    /// `[d_in, r]`.
    pub a: Param<Tensor<2>>,
    /// `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    /// Of A.
    pub of_a: Curvature,
    /// Of the transposed B.
    pub of_b: Curvature,
}

impl Posterior {
    pub(super) fn means(&self) -> [Tensor<2>; 2] {
        [&self.a, &self.b].map(|param| param.val().without_autodiff())
    }
}

impl LaplaceLora {
    /// The variance of the prior, 0 before there is a posterior.
    pub fn variance(&self) -> f64 {
        self.variance.val().into_data().iter::<f64>().sum()
    }

    /// With this variance of the prior.
    pub fn with_variance(mut self, variance: f64) -> Self {
        self.variance = self.variance.map(|old| old.zeros_like() + variance);
        self
    }

    /// With the curvature of the loss on these examples, and the prior under which they are likeliest.
    pub fn fitted(mut self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let places: Vec<usize> = (0..data.examples().len()).collect();
        let noting = Noting::new(self.sites.iter().filter_map(|(site, _)| Some((site, self.pair(site)?))));
        let noted = Trained { tuner: noting.clone(), head: data.head().valid(), copies: Copies::default() };
        let mut sums = BTreeMap::<Site, [Sums; 2]>::new();
        for example in data.labelled_by_model(&self.clone().with_variance(0.0), base, &places)? {
            let labels: Vec<_> = example.label.iter().collect();
            let slopes = noted.loss(base, &base.batch(&[&example])?, &labels)?.backward();
            for note in noting.notes.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                let scale = self.config.lora_alpha / self.config.r as f64;
                let rows = |x: Tensor<3>| x.squeeze_dim::<2>(0);
                let slope =
                    |zeros: &Tensor<3>, x: &Tensor<3>| rows(zeros.grad(&slopes).unwrap_or_else(|| x.zeros_like()));
                let [of_a, of_b] = sums.entry(note.site).or_default();
                of_a.add(rows(note.x), slope(&note.to_z, &note.z), self.config.n_kfac)?;
                of_b.add(slope(&note.to_y, &note.to_y.clone().inner()) * scale, rows(note.z), self.config.n_kfac)?;
            }
        }
        let (r, device) = (self.config.r, base.device().clone().autodiff());
        let fitted = |(site, old): (Site, &Posterior)| {
            let [of_a, of_b] = sums.remove(&site).unwrap_or_default();
            let [rows, columns] = base.shape().linear_dims(site);
            let curvature = |sums: Sums, wide: usize| sums.curvature([wide, r], self.config.n_kfac.min(wide), &device);
            Ok((site, Posterior { of_a: curvature(of_a, rows)?, of_b: curvature(of_b, columns)?, ..old.clone() }))
        };
        self.sites = self.sites.iter().map(fitted).collect::<Result<_>>()?;
        let precisions: Vec<f64> =
            self.sites.iter().flat_map(|(_, of)| [of.of_a.values(), of.of_b.values()].concat()).collect();
        let square = |x: Tensor<2>| x.into_data().iter::<f64>().map(|x| x * x).sum::<f64>();
        let squares = self.sites.iter().flat_map(|(_, of)| of.means()).map(square).sum();
        self.config.fitted_on = Some(format!("{:016x}", base.known_weights_fingerprint()));
        Ok(self.with_variance(prior_variance(squares, &precisions)?))
    }
}

impl Method for LaplaceLoraConfig {
    const NAME: &'static str = "laplace-lora";
    const PEFT_TYPE: &'static str = "LAPLACE_LORA";
    type Tuner = LaplaceLora;

    fn init(&self, base: &Base, seed: u64) -> Result<LaplaceLora> {
        self.init_from(base, seed, &[])
    }

    fn init_from(&self, base: &Base, _seed: u64, sources: &[Source]) -> Result<LaplaceLora> {
        self.sites(base.shape())?;
        let [source] = sources else {
            return Err(Error::config("sources", sources.len(), "one finished LoRA, of which it finds the posterior"));
        };
        let (lora, form) = (source.tuner::<LoraConfig>()?, shapes(&self.lora().init(base, 0)?));
        let theirs = source.config.downcast_ref::<LoraConfig>().map(Self::of).transpose()?;
        let same = theirs.is_some_and(|theirs| (theirs.r, theirs.lora_alpha) == (self.r, self.lora_alpha));
        if !same || shapes(lora) != form {
            let expected =
                format!("a LoRA of rank {}, alpha {}, on {:?}", self.r, self.lora_alpha, self.target_modules);
            return Err(Error::config("sources", &source.name, expected));
        }
        let values = tensors(lora);
        let value = |site: Site, leaf: &str| values[&format!("factors.{site}.{leaf}")].clone();
        self.built(base, |site, _| ["a", "b"].map(|leaf| Tensor::from_data(value(site, leaf), base.device())))
    }

    /// The LoRA's.
    fn head(&self, _wanted: &Wanted<'_>, _base: &Base, _seed: u64, sources: &[Source]) -> Result<Option<Head>> {
        Ok(sources.first().map(|source| source.trained.head.clone()))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.sites(shape).map(|_| 0)
    }

    fn checked_count(&self, shape: &Shape) -> Result<usize> {
        self.lora().checked_count(shape)?;
        self.count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        if name == "variance" {
            return Key::plain("base_model.model.laplace_variance");
        }
        let (_, site, leaf) = split_name(name);
        match leaf.split_once('.') {
            None => Key::transposed(pair::file_name(shape, site, &format!("{}.weight", leaf.to_uppercase()))),
            Some((of, leaf)) => {
                let factor = of.trim_start_matches("of_").to_uppercase();
                Key::plain(pair::file_name(shape, site, &format!("{factor}.curvature_{leaf}")))
            }
        }
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(LaplaceLoraConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    fn learned(&self, tuner: &LaplaceLora, _shape: &Shape) -> Self {
        LaplaceLoraConfig { fitted_on: tuner.config.fitted_on.clone(), ..self.clone() }
    }

    fn for_loading(&self, base: &Base) -> Result<LaplaceLora> {
        self.built(base, |_, dims| dims.map(|dims| Tensor::zeros(dims, base.device())))
    }

    fn loaded(&self, tuner: LaplaceLora, base: &Base) -> Result<LaplaceLora> {
        let found = format!("{:016x}", base.known_weights_fingerprint());
        match &self.fitted_on {
            Some(then) if *then != found => Err(Error::config(
                "fitted_on",
                then,
                format!("{found}, this base: a curvature is of the base that it was found on"),
            )),
            _ => Ok(tuner),
        }
    }
}

impl LowRank for LaplaceLora {
    fn pair(&self, site: Site) -> Option<Pair> {
        let [a, b] = self.sites.get(site)?.means();
        Some(Pair { a, b, scale: self.config.lora_alpha / self.config.r as f64 })
    }

    fn dropout(&self) -> f64 {
        0.0
    }
}

impl Tuner for LaplaceLora {
    /// With the mean.
    fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        base.forward(batch, &Opened::new(self, batch))
    }

    /// The logarithms of the mean probabilities; of values the mean.
    fn logits(&self, readout: &Readout<'_>) -> Result<Tensor<3>> {
        let mean = readout.logits(self.run(readout.base, &readout.batch)?)?;
        let classes = matches!(readout.head, Head::Classifier(_) | Head::TwoLayers(_) | Head::Score(_));
        let of_values = classes && mean.dims()[2] == 1;
        match self.config.prediction {
            _ if self.variance() == 0.0 => Ok(mean),
            Prediction::Linearized if of_values => Ok(mean),
            Prediction::Linearized if classes => self.linearized(readout, mean),
            Prediction::Linearized => {
                Err(Error::config("prediction", "linearized", "sampled, where the head is not for classes of texts"))
            }
            Prediction::Sampled => {
                let one = |number| {
                    let logits = self.logits_with(readout, self.drawn(number))?;
                    Ok(if of_values { logits } else { activation::softmax(logits, 2) })
                };
                let rest = (1..self.config.samples).try_fold(one(0)?, |sum, number| Ok::<_, Error>(sum + one(number)?));
                let mean = rest? / self.config.samples as f32;
                Ok(if of_values { mean } else { mean.log() })
            }
        }
    }

    fn head_loss(&self, readout: &Readout<'_>) -> Result<Tensor<1>> {
        readout.loss(self.logits(readout)?)
    }
}

impl Procedure for LaplaceLora {
    /// In which nothing moves.
    fn phases(&self, steps: usize) -> Vec<Phase> {
        vec![Phase { name: "posterior", steps, rate: 0.0 }]
    }

    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        self.fitted(base, data)
    }

    /// Of the mean.
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        readout.loss_of(self.run(readout.base, &readout.batch)?).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use peft_core::testing::randomized;
    use peft_core::{AnyTuner, Head};

    use super::*;

    fn sources(base: &Base) -> Vec<Source> {
        let config = LoraConfig::new(2).with_alpha(3.0);
        let lora = randomized(&config.init(base, 5).unwrap(), 5);
        let trained = Trained::new(AnyTuner::new(lora), Head::classifier(base, 2, 5)).unwrap();
        vec![Source { name: "finished".into(), config: config.into(), trained }]
    }

    peft_core::conformance!(
        LaplaceLoraConfig::new(2).with_alpha(3.0).with_directions(4),
        from(sources),
        skip(
            C1: "it starts as the LoRA whose posterior it is",
            C3: "a posterior is no matrix; its mean is a LoRA, which merges",
            C5: "nothing is trained",
            C6: "a posterior predicts by many runs, and is no adapter",
            C9: "nothing is trained"
        )
    );
}
