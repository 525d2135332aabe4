//! Dropout as a function of what a number is, not of where it lies.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use crate::random::{hash, mix};

/// The dropout of one forward of a training step: whether a number is kept is a function of seed, step, place, sample,
/// position and channel, never of where it lies in a buffer. Cutting, padding and packing a batch keep the masks.
#[derive(Clone, Debug)]
pub struct Noise {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
    /// For each row of the batch, which sample of the whole batch it is.
    pub samples: Arc<[u32]>,
}

impl Noise {
    /// Drops numbers of `x` with probability `p` and scales the others by `1 / (1 - p)`. The first dimension of `x` is the
    /// batch, the last the channel, those between are the position; `place` tells this dropout from every other.
    ///
    /// # Panics
    /// If the batch of `x` is not as large as `samples`.
    pub fn dropout<const D: usize>(&self, x: Tensor<D>, p: f64, place: &str) -> Tensor<D> {
        let dims = x.dims();
        if p == 0.0 {
            return x;
        }
        assert_eq!(dims[0], self.samples.len(), "a batch of another size at {place}");
        let key = mix(self.seed ^ mix(self.step ^ hash(place)));
        let (channels, rows) = (dims[D - 1], dims[1..D - 1].iter().product::<usize>());
        // Rows are named by their coordinates, 16 bits each, so that a longer dimension does not rename them.
        let row_name = |mut row: usize| {
            (1..D - 1).rev().enumerate().fold(0u32, |name, (i, d)| {
                let coordinate = row % dims[d];
                row /= dims[d];
                name | (coordinate as u32) << (16 * i as u32)
            })
        };
        let (least, scale) = ((p * f64::from(u32::MAX)) as u32, (1.0 / (1.0 - p)) as f32);
        let mut kept = Vec::with_capacity(dims[0] * rows * channels);
        for sample in self.samples.iter() {
            let sample_key = mix(key ^ u64::from(*sample));
            for row in 0..rows {
                let row_key = mix32(sample_key as u32 ^ mix32((sample_key >> 32) as u32 ^ row_name(row)));
                kept.extend(
                    (0..channels as u32).map(|c| if mix32(row_key.wrapping_add(c)) >= least { scale } else { 0.0 }),
                );
            }
        }
        let mask = Tensor::<D>::from_data(TensorData::new(kept, dims), &x.device().inner());
        x * mask
    }
}

/// A finalizer with full avalanche in 32 bits (Wellons' lowbias32), which vectorizes.
#[inline(always)]
fn mix32(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}
