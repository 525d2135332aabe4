//! How the ranks of IncreLoRA grow: scores of maps, what is to come and what has, and the update of each map at hand for its gradient.

use std::collections::BTreeMap;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use peft_core::random::{Noise, Random};
use peft_core::{Adapter, Base, Batch, Hooks, Next, Procedure, Site, SiteMap, Weight};

use super::allocation::Triplets;
use super::increlora::IncreLora;
use super::pair::{dropped, untrained};

/// E of what is to come.
const ADVANCE: f64 = 1e-5;

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
    fn ranking(&self) -> Vec<Site> {
        let scores = self.sensitivity.val() * self.uncertainty.val();
        let mut ranking: Vec<(f32, Site)> = scores.into_data().iter().zip(self.updates.keys().copied()).collect();
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

impl IncreLora {
    /// The rank of a map, without what is to come.
    pub(super) fn rank(&self, triplets: &[Triplets]) -> usize {
        triplets.iter().map(|triplets| triplets.e.dims()[0]).sum::<usize>() - self.to_come
    }

    /// A map's `number`th triplet, which is to come.
    pub(super) fn coming(&self, base: &Base, site: Site, number: usize) -> Triplets {
        let device = base.device().clone().autodiff();
        let random = |leaf: &str| Random::new(self.seed, &format!("increlora.{site}.{number}.{leaf}"));
        let triplets = drawn(random, base.shape().linear_dims(site), 1, &device);
        Triplets { e: untrained(Tensor::full([1, 1], ADVANCE, &device)), ..triplets }
    }

    /// With other triplets at each site, and an age of nothing for those that have none.
    pub(super) fn with_maps(self, maps: impl Fn(Site, Vec<Triplets>) -> Vec<Triplets>) -> Self {
        let maps: SiteMap<_> = self.maps.iter().map(|(site, old)| (site, maps(site, old.clone()))).collect();
        let aged = |(site, ages): (Site, &Param<Tensor<2>>)| {
            let (ages, count) = (ages.val().without_autodiff(), maps.get(site).map_or(0, Vec::len));
            let [old, _] = ages.dims();
            let new = Tensor::zeros([count.saturating_sub(old), 2], &ages.device());
            (site, untrained(Tensor::cat(vec![ages.narrow(0, 0, old.min(count)), new], 0)))
        };
        IncreLora { ages: self.ages.iter().map(aged).collect(), maps, ..self }
    }

    /// With as many triplets to come as a growth takes.
    pub(super) fn advanced(self, base: &Base) -> Self {
        let more = self.config.incre_r;
        let advanced = self.clone().with_maps(|site, mut triplets| {
            let old = triplets.len();
            triplets.extend((old..old + more).map(|number| self.coming(base, site, number)));
            triplets
        });
        IncreLora { to_come: more, ..advanced }
    }

    /// After a growth of those maps that have the highest scores.
    pub(super) fn grown(self, base: &Base) -> Self {
        let Some(scores) = &self.scores else { return self };
        let ranks: usize = self.maps.iter().map(|(_, triplets)| self.rank(triplets)).sum();
        let mut left = (self.config.target_r * self.maps.iter().count()).saturating_sub(ranks);
        let mut more = BTreeMap::new();
        for site in scores.ranking().into_iter().take(self.config.top_h) {
            more.insert(site, left.min(self.config.incre_r));
            left -= more[&site];
        }
        let grown = self.clone().with_maps(|site, mut triplets| {
            let (old, more) = (triplets.len(), more.get(&site).copied().unwrap_or_default());
            for triplets in &mut triplets[old - self.to_come..][..more] {
                triplets.e = Param::from_tensor(Tensor::from_inner(triplets.e.val().without_autodiff()));
            }
            triplets.extend((old..old + more).map(|number| self.coming(base, site, number)));
            triplets
        });
        let grown = grown.with_ages(|site, number, e, age| {
            let old = self.maps.get(site).map_or(0, Vec::len) - self.to_come;
            let came = (old..old + more.get(&site).copied().unwrap_or_default()).contains(&number);
            if e && came { 0.0 } else { age }
        });
        if left == 0 { grown.without_coming() } else { grown }
    }

    /// As it is when ranks grow no more.
    fn without_coming(self) -> Self {
        let to_come = self.to_come;
        let left = self.with_maps(|_, mut triplets| {
            triplets.truncate(triplets.len() - to_come);
            triplets
        });
        IncreLora { scores: None, to_come: 0, ..left }
    }

    /// As it is after a run: the triplets of each map as one.
    pub(super) fn compact(self) -> Self {
        let compact = IncreLora { ages: SiteMap::from_iter([]), ..self.without_coming() };
        compact.with_maps(|_, triplets| {
            let join = |i: usize, dim| {
                let values = triplets.iter().map(|triplets| triplets.values()[i].clone());
                Tensor::cat(values.collect(), dim)
            };
            let like = triplets[0].map_values(|i, _| join(i, usize::from(i == 0)));
            vec![like]
        })
    }

    /// With other ages, functions of the site, the number of the triplets there, whether it is that of their E, and the old one.
    pub(super) fn with_ages(self, age: impl Fn(Site, usize, bool, f32) -> f32) -> Self {
        let aged = |(site, ages): (Site, &Param<Tensor<2>>)| {
            let data = ages.val().into_data();
            let new = data.iter::<f32>().enumerate().map(|(i, old)| age(site, i / 2, i % 2 == 1, old)).collect();
            (site, untrained(Tensor::from_data(TensorData::new::<f32, _>(new, ages.dims()), &ages.device())))
        };
        IncreLora { ages: self.ages.iter().map(aged).collect(), ..self }
    }
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
