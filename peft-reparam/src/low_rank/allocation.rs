//! Which triplets of AdaLoRA are kept as a run goes on: their scores, and the schedule of their number.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::transfer::{read, send};
use peft_core::{Site, SiteMap};

use super::pair::untrained;

/// How many triplets the whole model keeps.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    /// The last step with all.
    pub first: usize,
    /// The step of the last allocation.
    pub last: usize,
    /// Steps from one allocation to the next.
    pub interval: usize,
    /// Triplets at the start.
    pub initial: usize,
    /// Triplets at the end.
    pub target: usize,
}

impl Schedule {
    /// How many are kept from this step on, counted from 1; `None` where they stay as they are.
    pub(super) fn budget(&self, step: usize) -> Option<usize> {
        let due = step == self.last || step.is_multiple_of(self.interval);
        if step <= self.first || step > self.last || !due {
            return None;
        }
        let left = 1.0 - (step - self.first) as f64 / (self.last - self.first) as f64;
        Some(((self.initial - self.target) as f64 * left.powf(3.0) + self.target as f64) as usize)
    }
}

/// The triplets at one site.
#[derive(Module, Debug)]
pub struct Triplets {
    /// Left singular vectors, `[d_in, r]`.
    pub p: Param<Tensor<2>>,
    /// Singular values, `[r, 1]`.
    pub e: Param<Tensor<2>>,
    /// Right singular vectors, `[r, d_out]`.
    pub q: Param<Tensor<2>>,
}

impl Triplets {
    /// The three tensors without autodiff.
    pub(super) fn values(&self) -> [Tensor<2>; 3] {
        [&self.p, &self.e, &self.q].map(|param| param.val().without_autodiff())
    }

    /// With new values of the three, by their places among them.
    pub(super) fn map_values(&self, f: impl Fn(usize, Tensor<2>) -> Tensor<2>) -> Self {
        let [p, e, q] = [&self.p, &self.e, &self.q];
        Triplets { p: with(p, |p| f(0, p)), e: with(e, |e| f(1, e)), q: with(q, |q| f(2, q)) }
    }
}

/// The parameter with a new value, trained or not as before.
fn with(param: &Param<Tensor<2>>, f: impl Fn(Tensor<2>) -> Tensor<2>) -> Param<Tensor<2>> {
    param.clone().map(|old| {
        let new = f(old.clone().without_autodiff());
        match (old.is_autodiff(), old.is_require_grad()) {
            (false, _) => new,
            (true, false) => Tensor::from_inner(new),
            (true, true) => Tensor::from_inner(new).require_grad(),
        }
    })
}

/// What the allocation of ranks remembers from step to step, none of it trained.
#[derive(Module, Debug)]
pub(super) struct Allocation {
    /// Smoothed sensitivity |w g| of every number.
    sensitivity: SiteMap<Triplets>,
    /// Its smoothed deviation from that.
    uncertainty: SiteMap<Triplets>,
    /// `[r, 1]` for each site: 1 for a triplet that is kept, 0 for one that is masked.
    pub masks: SiteMap<Param<Tensor<2>>>,
    #[module(skip)]
    pub schedule: Schedule,
    /// The gradients of the step that is being made.
    #[module(skip)]
    pub gradients: BTreeMap<Site, [Tensor<2>; 3]>,
}

impl Allocation {
    pub(super) fn new(triplets: &SiteMap<Triplets>, schedule: Schedule) -> Self {
        let zeros = |(site, triplets): (Site, &Triplets)| {
            let [p, e, q] = triplets.values().map(|value| untrained(value.zeros_like()));
            (site, Triplets { p, e, q })
        };
        Allocation {
            sensitivity: triplets.iter().map(zeros).collect(),
            uncertainty: triplets.iter().map(zeros).collect(),
            masks: triplets.iter().map(|(site, t)| (site, untrained(t.values()[1].ones_like()))).collect(),
            schedule,
            gradients: BTreeMap::new(),
        }
    }

    /// Takes the sensitivities of a step into the means: the new values, the gradients that led to them.
    pub(super) fn observe(&mut self, triplets: &SiteMap<Triplets>, beta1: f64, beta2: f64) {
        let sensitivity = |(site, [dp, de, dq]): (Site, [Tensor<2>; 3])| {
            let [p, e, q] = triplets.get(site)?.values();
            Some((site, [(p * dp).abs(), (e * de).abs(), (q * dq).abs()]))
        };
        let seen: BTreeMap<_, _> = std::mem::take(&mut self.gradients).into_iter().filter_map(sensitivity).collect();
        self.sensitivity = moved(&self.sensitivity, |site, i, mean| match seen.get(&site) {
            Some(seen) => mean * beta1 + seen[i].clone() * (1.0 - beta1),
            None => mean,
        });
        self.uncertainty =
            moved(&self.uncertainty, |site, i, mean| match (seen.get(&site), self.sensitivity.get(site)) {
                (Some(seen), Some(smooth)) => {
                    mean * beta2 + (seen[i].clone() - smooth.values()[i].clone()).abs() * (1.0 - beta2)
                }
                _ => mean,
            });
    }

    /// The scores of the triplets of each site.
    fn scores(&self) -> Vec<(Site, Vec<f32>)> {
        let scores = |((site, smooth), (_, uncertain)): ((Site, &Triplets), (Site, &Triplets))| {
            let ([p, e, q], [up, ue, uq]) = (smooth.values(), uncertain.values());
            let vectors = (p * up).mean_dim(0).transpose() + (q * uq).mean_dim(1);
            (site, read(e * ue + vectors).iter().collect())
        };
        self.sensitivity.iter().zip(self.uncertainty.iter()).map(scores).collect()
    }

    /// Masks all but `budget` triplets, those with the highest scores.
    pub(super) fn allocate(&mut self, budget: usize) {
        let place = |(site, scores): (Site, Vec<f32>)| scores.into_iter().enumerate().map(move |(i, s)| (s, site, i));
        let mut places: Vec<(f32, Site, usize)> = self.scores().into_iter().flat_map(place).collect();
        places.sort_by(|a, b| b.0.total_cmp(&a.0));
        let kept: BTreeSet<(Site, usize)> = places.into_iter().take(budget).map(|(_, site, i)| (site, i)).collect();
        let mask = |(site, mask): (Site, &Param<Tensor<2>>)| {
            let new = |old: Tensor<2>| {
                let values: Vec<f32> = (0..old.dims()[0]).map(|i| f32::from(kept.contains(&(site, i)))).collect();
                send(TensorData::new(values, old.dims()), &old.device())
            };
            (site, with(mask, new))
        };
        self.masks = self.masks.iter().map(mask).collect();
    }
}

/// How far the P and Q of all sites are from orthonormal: the mean of their ||P^T P - I||_F and ||Q Q^T - I||_F; nothing of no sites.
pub(super) fn orthogonality(factors: impl Iterator<Item = [Tensor<2>; 2]>) -> Option<Tensor<1>> {
    let distance = |gram: Tensor<2>| {
        let identity = Tensor::eye(gram.dims()[0], &gram.device().without_autodiff());
        // A root has no slope at 0.
        ((gram - identity).powi_scalar(2).sum() + f32::MIN_POSITIVE).sqrt()
    };
    let distances = factors
        .flat_map(|[p, q]| [distance(p.clone().transpose().matmul(p)), distance(q.clone().matmul(q.transpose()))]);
    let distances: Vec<Tensor<1>> = distances.collect();
    (!distances.is_empty()).then(|| Tensor::cat(distances, 0).mean())
}

/// With new values, functions of the site, the place among the three tensors and the old value.
pub(super) fn moved(old: &SiteMap<Triplets>, f: impl Fn(Site, usize, Tensor<2>) -> Tensor<2>) -> SiteMap<Triplets> {
    old.iter().map(|(site, triplets)| (site, triplets.map_values(|i, value| f(site, i, value)))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::adalora::AdaLoraConfig;
    use super::*;

    #[test]
    fn the_budget_falls_along_a_cubic() {
        let config = AdaLoraConfig::new(5, 2).with_schedule(10, 30, 1);
        let schedule = config.schedule(100, 8).unwrap();
        let budgets: Vec<Option<usize>> = (1..=100).map(|step| schedule.budget(step)).collect();
        let falling: Vec<usize> = budgets[10..70].iter().flatten().copied().collect();
        assert!(budgets[..10].iter().chain(&budgets[70..]).all(Option::is_none) && falling.len() == 60);
        assert!(falling.windows(2).all(|pair| pair[0] >= pair[1]), "{falling:?}");
        // 24 (50 / 60)^3 + 16 = 29.89, 24 (30 / 60)^3 + 16 = 19.
        assert_eq!((falling[0], falling[9], falling[29], falling[59]), (38, 29, 19, 16));
        // Every third step, and the last in any case.
        let seldom = Schedule { interval: 3, ..schedule };
        let due: Vec<usize> = (1..=100).filter(|step| seldom.budget(*step).is_some()).collect();
        assert_eq!((due[0], due[1], due[due.len() - 2], due[due.len() - 1]), (12, 15, 69, 70));
        assert_eq!((seldom.budget(15), seldom.budget(70)), (budgets[14], Some(16)));
    }
}
