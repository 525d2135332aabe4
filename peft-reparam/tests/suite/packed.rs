//! Bases with quantized matrices at some sites, straight from the codecs.

use burn::tensor::{Tensor, TensorData};
use peft_core::{Base, Site, Sites, Weight};
use peft_quant::{Codebook, FourBit, Grouped};

/// The matrix of a site output by output, and its extents so.
pub fn by_outputs(base: &Base, site: Site) -> (Vec<f32>, [usize; 2]) {
    let turned = base.weight(site).dense().transpose();
    (turned.clone().into_data().iter().collect(), turned.dims())
}

fn with(base: &Base, sites: &Sites, packed: impl Fn(&[f32], [usize; 2]) -> Vec<f32>) -> Base {
    sites.resolve(base.shape()).unwrap().into_iter().fold(base.clone(), |base, site| {
        let (values, dims) = by_outputs(&base, site);
        let w = Tensor::<2>::from_data(TensorData::new(packed(&values, dims), dims), base.device()).transpose();
        base.with_weight(site, Weight::Dense(w))
    })
}

/// In NF4, with blocks of 64.
pub fn nf4(base: &Base, sites: &Sites) -> Base {
    with(base, sites, |values, dims| FourBit::encode(values, &dims, Codebook::Nf4, 64).unwrap().decode())
}

/// In integers of so many bits, in groups.
pub fn grouped(base: &Base, sites: &Sites, bits: u32, group: usize) -> Base {
    with(base, sites, |values, dims| Grouped::encode(values, dims, bits, group, false).unwrap().decode())
}
