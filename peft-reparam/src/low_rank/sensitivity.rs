//! Scores of maps by which their ranks grow, and the update of each map at hand for its gradient.

use std::collections::BTreeMap;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor};
use peft_core::random::{Noise, Random};
use peft_core::transfer::read;
use peft_core::{Adapter, Batch, Hooks, Next, Procedure, Site, SiteMap, Weight};

use super::allocation::Triplets;
use super::pair::{dropped, untrained};

/// The means of which maps' scores are made, `[maps, 1]`.
#[derive(Module, Debug)]
pub(super) struct Scores {
    sensitivity: Param<Tensor<2>>,
    uncertainty: Param<Tensor<2>>,
    /// The ids of the updates in the view of a step.
    #[module(skip)]
    pub(super) updates: BTreeMap<Site, ParamId>,
}

impl Scores {
    pub(super) fn new(maps: &SiteMap<Vec<Triplets>>, device: &Device) -> Self {
        let zeros = || untrained(Tensor::zeros([maps.iter().count(), 1], device));
        let updates = maps.iter().map(|(site, _)| (site, ParamId::new())).collect();
        Scores { sensitivity: zeros(), uncertainty: zeros(), updates }
    }

    /// With the sensitivities of a step, each of a site's update by its id; without one nothing has come of the update.
    pub(super) fn smoothed(
        self,
        [beta1, beta2]: [f64; 2],
        mut seen: impl FnMut(Site, ParamId) -> Option<Tensor<1>>,
    ) -> Self {
        let Scores { sensitivity, uncertainty, updates } = self;
        let device = sensitivity.device().without_autodiff();
        let seen = updates.iter().map(|(site, id)| seen(*site, *id).unwrap_or_else(|| Tensor::zeros([1], &device)));
        let seen = Tensor::cat(seen.collect(), 0).unsqueeze_dim::<2>(1);
        let mean = sensitivity.val().without_autodiff() * beta1 + seen.clone() * (1.0 - beta1);
        let deviation = uncertainty.val().without_autodiff() * beta2 + (seen - mean.clone()).abs() * (1.0 - beta2);
        Scores { sensitivity: untrained(mean), uncertainty: untrained(deviation), updates }
    }

    /// The sites from the highest score to the lowest.
    pub(super) fn ranking(&self) -> Vec<Site> {
        let scores = self.sensitivity.val() * self.uncertainty.val();
        let mut ranking: Vec<(f32, Site)> = read(scores).iter().zip(self.updates.keys().copied()).collect();
        ranking.sort_by(|a, b| b.0.total_cmp(&a.0));
        ranking.into_iter().map(|(_, site)| site).collect()
    }
}

/// Triplets as they start.
pub(super) fn drawn(
    random: impl Fn(&str) -> Random,
    [rows, columns]: [usize; 2],
    rank: usize,
    device: &Device,
) -> Triplets {
    let draw = |leaf, dims| Param::from_tensor(random(leaf).normal_tensor(dims, 0.02, device));
    let e = Param::from_tensor(Tensor::zeros([rank, 1], device));
    Triplets { p: draw("p", [rows, rank]), e, q: draw("q", [rank, columns]) }
}

/// What is added to matrices.
#[derive(Module, Debug)]
pub(super) struct Updates {
    pub(super) updates: SiteMap<Param<Tensor<2>>>,
    #[module(skip)]
    pub(super) dropout: f64,
}

struct OpenedUpdates<'a>(&'a Updates, Option<&'a Noise>);

impl Hooks for OpenedUpdates<'_> {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let Some(update) = self.0.updates.get(site) else { return next(x) };
        let update = Weight::Dense(update.val());
        next(x.clone()) + update.linear(dropped(x, self.1, self.0.dropout, site), None)
    }
}

impl Adapter for Updates {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&OpenedUpdates(self, batch.noise.as_deref()))
    }
}

impl Procedure for Updates {}
