//! Bases with quantized matrices at some sites, straight from the codecs.

use std::sync::Arc;

use peft_core::{Base, Site, Sites, Weight};
use peft_quant::{Codebook, Codec, FourBit, Grouped, Matrix};

/// The matrix of a site output by output, and its extents so.
pub fn by_outputs(base: &Base, site: Site) -> (Vec<f32>, [usize; 2]) {
    let turned = base.weight(site).dense().transpose();
    (turned.clone().into_data().iter().collect(), turned.dims())
}

fn with<C: Codec>(base: &Base, sites: &Sites, pack: impl Fn(&[f32], [usize; 2]) -> C) -> Base {
    sites.resolve(base.shape()).unwrap().into_iter().fold(base.clone(), |base, site| {
        let (values, dims) = by_outputs(&base, site);
        let w = Matrix::packed(pack(&values, dims), base.device()).unwrap();
        base.with_weight(site, Weight::Packed(w))
    })
}

/// In NF4, with blocks of 64.
pub fn nf4(base: &Base, sites: &Sites) -> Base {
    with(base, sites, |values, dims| FourBit::encode(values, &dims, Codebook::Nf4, 64).unwrap())
}

/// In integers of so many bits, in groups.
pub fn grouped(base: &Base, sites: &Sites, bits: u32, group: usize) -> Base {
    with(base, sites, |values, dims| Grouped::encode(values, dims, bits, group, false).unwrap())
}

/// In symmetric integers of so many bits, in groups, as a model of GPTQ has them.
pub fn symmetric(base: &Base, sites: &Sites, bits: u32, group: usize) -> Base {
    with(base, sites, |values, dims| Arc::new(Grouped::encode(values, dims, bits, group, true).unwrap()))
}
