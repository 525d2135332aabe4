//! # Shift                                  family: of one's own
//! h = W x + b + s                          s: d_out numbers, 0
//!
//! A whole method, outside of the library: what it trains, how it acts, how it merges, what files call it, from what it starts, and
//! a loss of its own. The library trains, saves and loads it like its own, and `peft_core::conformance!` puts it to the same test.

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use peft_core::{
    Base, Error, Hooks, Key, Merge, Method, Part, Procedure, Readout, Result, Shape, Site, SiteMap, Sites, Slot,
    Source, Tuner, file_path, split_name,
};
use serde::{Deserialize, Serialize};

/// Where biases are shifted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShiftConfig {
    /// The linear maps.
    pub target_modules: Sites,
}

impl Default for ShiftConfig {
    fn default() -> Self {
        ShiftConfig { target_modules: Part::Query | Part::Value }
    }
}

impl ShiftConfig {
    /// The sites, each of which must have a bias.
    fn sites(&self, shape: &Shape) -> Result<Vec<Site>> {
        let (sites, places) = (self.target_modules.resolve(shape)?, shape.places());
        let bare = |site: &&Site| !places.iter().any(|p| p.site == **site && p.slot == Slot::Bias);
        match sites.iter().find(bare) {
            Some(site) => Err(Error::config("target_modules", site, "linear maps with a bias")),
            None => Ok(sites),
        }
    }
}

/// One trainable vector a site.
#[derive(Module, Debug)]
pub struct Shift {
    shifts: SiteMap<Param<Tensor<1>>>,
}

impl Method for ShiftConfig {
    const NAME: &'static str = "shift";
    const PEFT_TYPE: &'static str = "SHIFT";
    type Tuner = Shift;

    fn init(&self, base: &Base, _seed: u64) -> Result<Shift> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let zero = |site| (site, Param::from_tensor(Tensor::zeros([shape.linear_dims(site)[1]], &device)));
        Ok(Shift { shifts: self.sites(shape)?.into_iter().map(zero).collect() })
    }

    /// From finished shifts: their mean. `peft train --source A,B`, or `AnyMethod::from_sources`.
    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<Shift> {
        let mut start = self.init(base, seed)?;
        for source in sources {
            let other = source.tuner::<ShiftConfig>()?;
            let sum = |(site, own): (Site, &Param<Tensor<1>>)| {
                let part = other.shifts.get(site).map(|shift| shift.val().inner() / sources.len() as f64);
                let sum = part.map_or(own.val().inner(), |part| own.val().inner() + part);
                (site, Param::from_tensor(Tensor::from_inner(sum)))
            };
            start = Shift { shifts: start.shifts.iter().map(sum).collect() };
        }
        Ok(start)
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.sites(shape)?.into_iter().map(|site| shape.linear_dims(site)[1]).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        Key::plain(format!("{}.shift", file_path(shape, split_name(name).1)))
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(ShiftConfig { target_modules: self.target_modules.by_name(shape)? })
    }

    fn merge(tuner: &Shift) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Hooks for Shift {
    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        Merge::vector(self, site, slot, &v).unwrap_or(v)
    }
}

impl Merge for Shift {
    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        self.shifts.get(site).filter(|_| slot == Slot::Bias).map(|shift| v.clone() + shift.val())
    }
}

impl Procedure for Shift {
    /// The head's loss, and the squares of the logits: no answer is to be too sure of itself.
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        let logits = self.logits(readout)?;
        Ok(Some(readout.loss(logits.clone())? + logits.powi_scalar(2).sum() * 0.01))
    }
}

peft_core::adapter!(Shift);
