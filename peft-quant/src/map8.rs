//! Maps of 256 values, to which eight-bit codes refer.
//!
//! The dynamic map (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022) has a decade for each of seven exponents,
//! cut finer the larger it is: for i = 0..6 the centres of n equal intervals of [0.1, 1], times 10^(i - 6), with n = 2^i and both signs,
//! or n = 2^(i + 1) and no sign; and 0 and 1.

use std::sync::{Arc, LazyLock, OnceLock};

use peft_core::{Error, Result};

use crate::blocks;

/// Which code a value between two of a map's values gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Search {
    /// That of the nearest value, of two the lower. bitsandbytes' Python code does so, and CUDA's kernel but for ties.
    #[default]
    Nearest,
    /// That of the nearest value to the centre of the bin, of 65,536 over [-1, 1], that the value falls into; all of a block of
    /// zeros get code 0. bitsandbytes' kernel for CPUs (0.50) does so. 0 becomes 2.1e-5 of the block's largest magnitude in the signed map.
    Bins,
}

/// A map that does not fall, and what finding the code of a value looks up.
pub struct Map8 {
    values: [f32; 256],
    /// The midpoints between neighbours. As many as are below a value, that is its code.
    bounds: [f32; 255],
    /// For the upper half of a float's bits the code of the least such float: from there the code is a step or two away.
    first: OnceLock<Box<[u8]>>,
    bins: OnceLock<Box<[u8]>>,
}

impl std::fmt::Debug for Map8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Map8({} ..= {})", self.values[0], self.values[255])
    }
}

impl PartialEq for Map8 {
    fn eq(&self, other: &Self) -> bool {
        self.values.map(f32::to_bits) == other.values.map(f32::to_bits)
    }
}

static SIGNED: LazyLock<Arc<Map8>> = LazyLock::new(|| Arc::new(Map8::of(dynamic(true))));
static UNSIGNED: LazyLock<Arc<Map8>> = LazyLock::new(|| Arc::new(Map8::of(dynamic(false))));

impl Map8 {
    /// The dynamic map with both signs: of block scales, and of AdamW's first moment.
    pub fn signed() -> Arc<Self> {
        SIGNED.clone()
    }

    /// The dynamic map without signs: of AdamW's second moment.
    pub fn unsigned() -> Arc<Self> {
        UNSIGNED.clone()
    }

    /// The map of a file. One of the dynamic maps is shared.
    ///
    /// # Errors
    /// If it has not 256 finite values that never fall.
    pub fn from_values(key: &str, values: &[f32]) -> Result<Arc<Self>> {
        blocks::expect_len(key, values.len(), 256, "a value for each code of eight bits")?;
        blocks::expect_finite(key, values)?;
        if let Some(i) = (1..256).find(|i| values[*i] < values[i - 1]) {
            let found = format!("{} behind {}", values[i], values[i - 1]);
            return Err(Error::config(format!("{key}, element {i}"), found, "values that never fall"));
        }
        let values: [f32; 256] = std::array::from_fn(|i| values[i]);
        let dynamic = [&*SIGNED, &*UNSIGNED].into_iter().find(|map| map.values == values);
        Ok(dynamic.cloned().unwrap_or_else(|| Arc::new(Self::of(values))))
    }

    fn of(values: [f32; 256]) -> Self {
        let bounds = std::array::from_fn(|i| (values[i] + values[i + 1]) / 2.);
        Map8 { values, bounds, first: OnceLock::new(), bins: OnceLock::new() }
    }

    /// The value of each code.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The codes of the nearest values.
    pub(crate) fn nearest(&self, x: &[f32], codes: &mut [u8]) {
        let first = self.first.get_or_init(|| {
            let least = |half: u32| f32::from_bits(half << 16 | if half < 0x8000 { 0 } else { 0xffff });
            let code = |half| self.bounds.partition_point(|bound| *bound < least(half)) as u8;
            (0..0x1_0000).map(code).collect()
        });
        for (x, code) in x.iter().zip(codes) {
            let mut found = first[(x.to_bits() >> 16) as usize] as usize;
            while found < 255 && self.bounds[found] < *x {
                found += 1;
            }
            *code = found as u8;
        }
    }

    /// The codes of the bins' centres.
    pub(crate) fn binned(&self, x: &[f32], codes: &mut [u8]) {
        let bins = self.bins.get_or_init(|| {
            let centre = |bin: u32| -1. + 2. * bin as f32 / 65535.;
            (0..0x1_0000).map(|bin| self.bounds.partition_point(|bound| *bound < centre(bin)) as u8).collect()
        });
        for (x, code) in x.iter().zip(codes) {
            // 0 times the infinite reciprocal of a magnitude of 0 or a denormal one is NaN, which here as there is bin 0.
            let bin = (x.clamp(-1., 1.) + 1.) * 0.5 * 65535. + 0.5;
            *code = bins[bin as usize];
        }
    }
}

/// The values of the dynamic map, to the bits that torch's `linspace` gives.
fn dynamic(signed: bool) -> [f32; 256] {
    let mut values = vec![0., 1.];
    for i in 0..7 {
        let n = 1usize << if signed { i } else { i + 1 };
        // torch makes the upper half of the bounds from the end, each with one rounding: in f64 product and sum are exact.
        let step = f64::from((1. - 0.1f32) / n as f32);
        let bound = |k: usize| {
            if k < n.div_ceil(2) {
                (step * k as f64 + f64::from(0.1f32)) as f32
            } else {
                (1. - step * (n - k) as f64) as f32
            }
        };
        let decade = 10f64.powi(i - 6) as f32;
        for k in 0..n {
            let value = decade * ((bound(k) + bound(k + 1)) / 2.);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|i| values[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_dynamic_maps_are_those_of_bitsandbytes_to_the_bit() {
        let hash = |map: &Map8| {
            let bytes: Vec<u8> = map.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            format!("{:x}", Sha256::digest(bytes))
        };
        assert_eq!(hash(&Map8::signed()), "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c");
        assert_eq!(hash(&Map8::unsigned()), "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398");
    }
}
