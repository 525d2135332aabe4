//! # Shift                                  family: of one's own
//! h = W x + b + s                          s: [d_out] = 0
//!
//! A whole method, outside of the library: what it trains, how it acts, how it merges, what files call it. The library
//! trains, saves and loads it like its own, and `peft_core::conformance!` puts it to the same test.

use burn::{module::{Module, Param}, tensor::Tensor};
use peft_core::{
    Base, Error, Hooks, Key, Merge, Method, Part, Procedure, Result, Shape, Site, SiteMap, Sites, Slot, file_path, split_name,
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

impl Procedure for Shift {}
peft_core::adapter!(Shift);

#[cfg(test)]
mod tests {
    use peft_core::testing::{fixtures::ENCODERS, randomized, states};
    use peft_core::view::with_values;
    use peft_partial::BitFitConfig;

    use super::*;

    peft_core::conformance!(ShiftConfig::default(), only(ENCODERS: "T5 and LLaMA have no biases"));

    peft_core::equivalences! {
        a_shift_is_bitfit: "shift" = "BitFit" if "its biases are the base's, shifted", SAME_FUNCTION on ENCODERS, |base, seed, holds| {
            let shift = randomized(&ShiftConfig::default().init(base, seed).unwrap(), seed);
            let shifted = |(site, shift): (Site, &Param<Tensor<1>>)| {
                let bias = base.vector(site, Slot::Bias);
                let moved = bias.clone() + shift.val().without_autodiff();
                (format!("biases.{site}"), if holds { moved } else { bias }.into_data())
            };
            let bitfit = BitFitConfig::new().init(base, 0).unwrap();
            let bitfit = with_values(bitfit, &shift.shifts.iter().map(shifted).collect()).unwrap();
            [states(&shift, base), states(&bitfit, base)]
        };
    }
}
