//! How the ranks of IncreLoRA grow: what is to come and what has.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use peft_core::random::Random;
use peft_core::transfer::{read, send};
use peft_core::{Base, Site, SiteMap};

use super::allocation::Triplets;
use super::increlora::IncreLora;
use super::pair::untrained;
use super::sensitivity::drawn;

/// E of what is to come.
const ADVANCE: f64 = 1e-5;

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
            let data = read(ages.val());
            let new = data.iter::<f32>().enumerate().map(|(i, old)| age(site, i / 2, i % 2 == 1, old)).collect();
            (site, untrained(send(TensorData::new::<f32, _>(new, ages.dims()), &ages.device())))
        };
        IncreLora { ages: self.ages.iter().map(aged).collect(), ..self }
    }
}
