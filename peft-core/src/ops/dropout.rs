//! Dropout as a function of what a number is, not of where it lies.

use std::sync::Arc;

use burn::tensor::{Int, IntDType, Tensor, TensorData};

use crate::device::is_host;
use crate::random::{MIX, MIX_END, Noise, Samples, hash, mix};

impl Noise {
    /// Drops numbers of `x` with probability `p` and scales the others by `1 / (1 - p)`. The first dimension of `x` is the
    /// batch, the last the channel, those between are the position; `place` tells this dropout from every other.
    ///
    /// # Panics
    /// If the batch of `x` is not as large as `samples`.
    pub fn dropout<const D: usize>(&self, x: Tensor<D>, p: f64, place: &str) -> Tensor<D> {
        match self.drops(p, place) {
            Some(drops) => drops.of(x),
            None => x,
        }
    }

    /// What [`dropout`](Self::dropout) does there; nothing if no number can be dropped.
    pub fn drops(&self, p: f64, place: &str) -> Option<Drops> {
        (p != 0.0).then(|| Drops {
            key: mix(self.seed ^ mix(self.step ^ hash(place))),
            least: (p * f64::from(u32::MAX)) as u32,
            scale: (1.0 / (1.0 - p)) as f32,
            samples: self.samples.clone(),
            place: place.into(),
        })
    }
}

/// The dropout of one place in one forward.
#[derive(Clone, Debug)]
pub struct Drops {
    key: u64,
    /// A number is kept where its random bits are no less.
    least: u32,
    /// Of those that are kept.
    scale: f32,
    samples: Samples,
    place: Arc<str>,
}

impl Drops {
    /// A tensor, `[batch, .., channel]`, in which numbers are dropped.
    ///
    /// # Panics
    /// If its batch is not that of the forward.
    pub fn of<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.check(x.dims()[0]);
        #[cfg(feature = "flex")]
        if crate::fused::is_for(&x) {
            return crate::fused::dropout(self, x);
        }
        self.composed(x)
    }

    fn composed<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (dims, device) = (x.dims(), x.device().inner());
        // What the host keeps itself is not sent.
        if !is_host(&device) && device.supports_dtype(WIDE) {
            return x * on_device(self.samples.on(&device), self.key, dims, self.least, self.scale);
        }
        let mut kept = vec![1.0; dims.iter().product()];
        self.each_row(&dims, |row, key| {
            let row = &mut kept[row * dims[D - 1]..][..dims[D - 1]];
            row.iter_mut().enumerate().for_each(|(c, x)| *x *= self.factor(key, c as u32));
        });
        x * Tensor::<D>::from_data(TensorData::new(kept, dims), &device)
    }

    /// # Panics
    /// If a batch is not that of the forward.
    pub(crate) fn check(&self, batch: usize) {
        assert_eq!(batch, self.samples.len(), "a batch of another size at {}", self.place);
    }

    /// Calls `row` with the number and the key of each row of a tensor.
    pub(crate) fn each_row(&self, dims: &[usize], mut row: impl FnMut(usize, u32)) {
        let positions = &dims[1..dims.len() - 1];
        let rows: usize = positions.iter().product();
        for sample in 0..dims[0] {
            let sample_key = self.sample_key(sample);
            for position in 0..rows {
                let mut rest = position;
                let coordinates = positions.iter().rev().map(|dim| {
                    let coordinate = rest % dim;
                    rest /= dim;
                    coordinate
                });
                row(sample * rows + position, row_key(sample_key, coordinates));
            }
        }
    }

    /// The key of a row of a sample of the batch, by its coordinates.
    #[cfg(feature = "flex")]
    pub(crate) fn row_key(&self, sample: usize, coordinates: &[usize]) -> u32 {
        row_key(self.sample_key(sample), coordinates.iter().rev().copied())
    }

    fn sample_key(&self, sample: usize) -> u64 {
        mix(self.key ^ u64::from(self.samples[sample]))
    }

    /// What a channel of a row is multiplied by.
    #[inline(always)]
    pub(crate) fn factor(&self, row_key: u32, channel: u32) -> f32 {
        if mix32(row_key.wrapping_add(channel)) >= self.least { self.scale } else { 0.0 }
    }
}

/// Rows are named by their coordinates, the last first, 16 bits each, so that a longer dimension does not rename them.
fn row_key(sample_key: u64, coordinates: impl Iterator<Item = usize>) -> u32 {
    let name = coordinates.enumerate().fold(0, |name, (i, coordinate)| name | (coordinate as u32) << (16 * i as u32));
    mix32(sample_key as u32 ^ mix32((sample_key >> 32) as u32 ^ name))
}

/// A finalizer with full avalanche in 32 bits (Wellons' lowbias32), which vectorizes.
#[inline(always)]
fn mix32(mut x: u32) -> u32 {
    for (by, factor) in MIX_32 {
        x = (x ^ (x >> by)).wrapping_mul(factor);
    }
    x ^ (x >> MIX_32_END)
}

/// The shifts and factors of [`mix32`].
const MIX_32: [(u32, u32); 2] = [(16, 0x7feb_352d), (15, 0x846c_a68b)];
const MIX_32_END: u32 = 16;

/// The integers of a device that makes masks.
const WIDE: IntDType = IntDType::I64;

/// The same factors by operations of a device with integers of 64 bits, for samples `[batch]`.
fn on_device<const D: usize>(samples: Tensor<1, Int>, key: u64, dims: [usize; D], least: u32, scale: f32) -> Tensor<D> {
    // Numbers along one dimension.
    let along = |d: usize, numbers: Tensor<1, Int>| {
        let mut of = [1; D];
        of[d] = dims[d];
        numbers.cast(WIDE).reshape(of)
    };
    let counted = |d: usize| along(d, Tensor::arange(0..dims[d] as i64, &samples.device()));
    let mut sample = along(0, samples.clone()).bitwise_xor_scalar(key as i64);
    for (by, factor) in MIX {
        sample = shifted(&sample, by, 64).bitwise_xor(sample) * factor as i64;
    }
    sample = shifted(&sample, MIX_END, 64).bitwise_xor(sample);
    let mut row_key = shifted(&sample, 32, 64);
    let coordinate = |(i, d)| low(counted(d).bitwise_left_shift_scalar(16 * i as i64));
    if let Some(name) = (1..D - 1).rev().enumerate().map(coordinate).reduce(Tensor::bitwise_or) {
        row_key = row_key.bitwise_xor(name);
    }
    row_key = mixed(low(sample).bitwise_xor(mixed(row_key)));
    let kept = mixed(low(row_key + counted(D - 1))).greater_equal_scalar(i64::from(least));
    kept.float() * scale
}

/// [`mix32`] of numbers below 2^32. No product is too large for 64 bits, since the factors are below 2^31 in size.
fn mixed<const D: usize>(mut x: Tensor<D, Int>) -> Tensor<D, Int> {
    for (by, factor) in MIX_32 {
        x = low(shifted(&x, by, 32).bitwise_xor(x) * i64::from(factor as i32));
    }
    shifted(&x, MIX_32_END, 32).bitwise_xor(x)
}

/// The lower 32 bits.
fn low<const D: usize>(x: Tensor<D, Int>) -> Tensor<D, Int> {
    x.bitwise_and_scalar(i64::from(u32::MAX))
}

/// Shifted right as numbers without a sign, of so many bits.
fn shifted<const D: usize>(x: &Tensor<D, Int>, by: u32, bits: u32) -> Tensor<D, Int> {
    x.clone().bitwise_right_shift_scalar(i64::from(by)).bitwise_and_scalar((1i64 << (bits - by)) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::testing::device;
    use crate::transfer::counted;

    /// Every factor of tensors of two to four dimensions, with rows beyond 2^16 and samples in any order.
    #[test]
    fn a_device_makes_the_masks_of_the_host() {
        fn check<const D: usize>(dims: [usize; D], seed: u64) {
            let mut random = Random::new(seed, "samples");
            let samples: Samples = (0..dims[0]).map(|_| random.below(1 << 20) as u32).collect();
            let noise = Noise { seed: random.bits(), step: random.bits(), samples };
            for p in [0.1, 0.5, 0.9] {
                let drops = noise.drops(p, &random.bits().to_string()).unwrap();
                let ones = Tensor::<D>::ones(dims, &device());
                let (key, least, scale) = (drops.key, drops.least, drops.scale);
                let found = on_device::<D>(noise.samples.on(&device()), key, dims, least, scale).into_data();
                for host in [drops.composed(ones.clone()), drops.of(ones)] {
                    let host = host.into_data();
                    assert_eq!(found, host, "{dims:?}, p = {p}");
                    let host = host.as_slice::<f32>().unwrap();
                    assert!(host.contains(&0.0) && host.contains(&scale), "{dims:?}, p = {p}");
                }
            }
        }
        check([7, 96], 1);
        check([3, 65_600, 2], 2);
        check([2, 3, 65_540, 1], 3);
        check([5, 2, 17, 33], 4);
    }

    #[test]
    fn samples_are_sent_once_for_all_places() {
        let samples: Samples = (0..3).collect();
        let ((), transfers) = counted(|| (0..4).for_each(|_| drop(samples.clone().on(&device()))));
        assert_eq!((transfers.sent, transfers.read), (1, 0));
    }
}
