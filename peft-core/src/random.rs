//! Random numbers as functions of a key: no generator has a state, so the order of calls, the number of threads and an
//! interruption change nothing.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

/// A stream of random numbers that is a function of a seed and a name.
#[derive(Clone, Debug)]
pub struct Random {
    key: u64,
    counter: u64,
}

impl Random {
    /// The stream of `name` (usually a tensor's) under `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        Random { key: mix(seed ^ hash(name)), counter: 0 }
    }

    /// The stream behind this many draws of 64 bits.
    pub(crate) fn after(self, draws: usize) -> Self {
        Random { counter: self.counter + draws as u64, ..self }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.counter += 1;
        mix(self.key.wrapping_add(self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number from the uniform distribution on `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number from 0 to below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// A number from the standard normal distribution (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// A tensor of normal numbers with mean 0 and standard deviation `std`.
    pub fn normal_tensor<const D: usize>(mut self, dims: [usize; D], std: f64, device: &Device) -> Tensor<D> {
        fill(dims, || self.normal() * std, device)
    }

    /// A tensor of uniform numbers in `[low, high)`.
    pub fn uniform_tensor<const D: usize>(
        mut self,
        dims: [usize; D],
        low: f64,
        high: f64,
        device: &Device,
    ) -> Tensor<D> {
        fill(dims, || low + (high - low) * self.unit(), device)
    }

    /// The numbers from 0 to below `n` in random order (Fisher and Yates).
    pub fn permutation(mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

fn fill<const D: usize>(dims: [usize; D], mut value: impl FnMut() -> f64, device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| value() as f32).collect();
    Tensor::from_data(TensorData::new(values, dims), device)
}

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

/// A finalizer with full avalanche (Stafford's variant 13 of MurmurHash3's).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The same in 32 bits (Wellons' lowbias32), which vectorizes.
#[inline(always)]
fn mix32(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// FNV-1a over a name, finalized.
pub(crate) fn hash(name: &str) -> u64 {
    mix(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
}

/// A hash of every bit of some bytes, to tell whether they changed.
pub(crate) fn fingerprint(name: &str, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(hash(name), |h, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (h ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}
