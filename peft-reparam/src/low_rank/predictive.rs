//! What the posterior of Laplace-LoRA predicts: by logits that are linear in A and B, and by runs with A and B that are drawn.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use peft_core::random::Random;
use peft_core::transfer::{read, send};
use peft_core::{Readout, Result, Site};

use super::laplace_lora::{LaplaceLora, Posterior};
use super::pair::{LowRank, Opened, Pair};

/// A and B at each site.
type Factors = BTreeMap<Site, [Tensor<2>; 2]>;

/// Pairs of any tensors, in the place of a LoRA's own.
struct Pairs<'a> {
    like: &'a LaplaceLora,
    factors: Factors,
}

impl LowRank for Pairs<'_> {
    fn pair(&self, site: Site) -> Option<Pair> {
        let [a, b] = self.factors.get(&site)?.clone();
        Some(Pair { a, b, ..self.like.pair(site)? })
    }

    fn dropout(&self) -> f64 {
        0.0
    }
}

impl LaplaceLora {
    pub(super) fn logits_with(&self, readout: &Readout<'_>, factors: Factors) -> Result<Tensor<3>> {
        let pairs = Pairs { like: self, factors };
        readout.logits(readout.base.forward(&readout.batch, &Opened::new(&pairs, &readout.batch))?)
    }

    /// The logarithms of the mean probabilities that the linear model gives, of the means of the logits `[batch, 1, classes]`.
    pub(super) fn linearized(&self, readout: &Readout<'_>, mean: Tensor<3>) -> Result<Tensor<3>> {
        let ([size, rows, classes], device) = (mean.dims(), mean.device());
        let means: Vec<f64> = read(mean).iter().collect();
        let mut all = vec![];
        for i in 0..size {
            let covariance = self.covariance(readout, i, classes)?;
            let found = mean_probabilities(&means[i * classes..][..classes], &covariance, self.config.samples);
            all.extend(found.into_iter().map(|p| p.ln() as f32));
        }
        Ok(send(TensorData::new(all, [size, rows, classes]), &device))
    }

    /// Of the logits of a sequence of the batch, by their slopes in A and B, `[classes, classes]` row by row.
    pub(super) fn covariance(&self, readout: &Readout<'_>, sequence: usize, classes: usize) -> Result<Vec<f64>> {
        let variance = self.variance();
        let mut slopes = BTreeMap::<Site, [Vec<Tensor<2>>; 2]>::new();
        for class in 0..classes {
            let leaf = |x: Tensor<2>| Tensor::from_inner(x).require_grad();
            let factors: Factors = self.sites.iter().map(|(site, of)| (site, of.means().map(leaf))).collect();
            let logits = self.logits_with(readout, factors.clone())?;
            let [_, rows, _] = logits.dims();
            let found = logits.slice([sequence..sequence + 1, 0..rows, class..class + 1]).sum().backward();
            for (site, [a, b]) in factors {
                let slope = |leaf: Tensor<2>| leaf.grad(&found).unwrap_or_else(|| leaf.inner().zeros_like());
                let [of_a, of_b] = slopes.entry(site).or_default();
                of_a.push(slope(a));
                of_b.push(slope(b).transpose());
            }
        }
        let each = self.sites.iter().flat_map(|(site, of)| {
            let [a, b] = &slopes[&site];
            [of.of_a.covariance(a, variance), of.of_b.covariance(b, variance)]
        });
        let sum = |sum: Vec<f64>, more: Vec<f64>| sum.into_iter().zip(more).map(|(a, b)| a + b).collect();
        Ok(each.fold(vec![0.0; classes * classes], sum))
    }

    /// The `number`th draw of A and B.
    pub(super) fn drawn(&self, number: usize) -> Factors {
        let variance = self.variance();
        let normal = |site: Site, leaf: &str, like: &Tensor<2>| {
            Random::new(0, &format!("laplace.{number}.{site}.{leaf}")).normal_tensor(like.dims(), 1.0, &like.device())
        };
        let drawn = |(site, of): (Site, &Posterior)| {
            let [a, b] = of.means();
            let b = b.transpose();
            let moved_a = of.of_a.drawn(normal(site, "a", &a), variance);
            let moved_b = of.of_b.drawn(normal(site, "b", &b), variance);
            (site, [a + moved_a, (b + moved_b).transpose()])
        };
        self.sites.iter().map(drawn).collect()
    }
}

/// The mean of the softmax of logits that are normal, by `samples` draws, each with its opposite.
fn mean_probabilities(mean: &[f64], covariance: &[f64], samples: usize) -> Vec<f64> {
    let n = mean.len();
    // Cholesky's factor, row by row; what roundings leave below 0 is 0.
    let mut root = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let left = covariance[i * n + j] - (0..j).map(|k| root[i * n + k] * root[j * n + k]).sum::<f64>();
            root[i * n + j] = match (i == j, root[j * n + j]) {
                (true, _) => left.max(0.0).sqrt(),
                (false, pivot) if pivot > 0.0 => left / pivot,
                _ => 0.0,
            };
        }
    }
    let (mut random, mut sum) = (Random::new(0, "laplace.logits"), vec![0.0; n]);
    let pairs = samples.div_ceil(2);
    for _ in 0..pairs {
        let normal: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let moved: Vec<f64> = (0..n).map(|i| (0..=i).map(|j| root[i * n + j] * normal[j]).sum()).collect();
        for sign in [1.0, -1.0] {
            let logits: Vec<f64> = mean.iter().zip(&moved).map(|(mean, moved)| mean + sign * moved).collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
            let all: f64 = weights.iter().sum();
            sum.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight / all);
        }
    }
    sum.into_iter().map(|sum| sum / (2 * pairs) as f64).collect()
}
