//! Random numbers as functions of a key: no generator has a state, so the order of calls, the number of threads and an
//! interruption change nothing.
//!
//! [`Random`] is a generator of the crate `rand`, so that its distributions, samplings and shuffles, and those of `rand_distr`, work on
//! it. What is drawn here without them is written out, because runs, tests and tables rest on every bit of it: those crates change
//! theirs from version to version.

use std::convert::Infallible;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::TryRng;
use rand::rand_core::utils::fill_bytes_via_next_word;

use crate::transfer;

/// A stream of random numbers that is a function of a seed and a name, and a generator of `rand`:
///
/// ```
/// use peft_core::random::Random;
/// use rand::{RngExt, seq::SliceRandom};
///
/// let mut random = Random::new(7, "order");
/// let mut order = [1, 2, 3, 4];
/// order.shuffle(&mut random);
/// let dice = random.random_range(1..=6);
/// # assert!(order.iter().sum::<i32>() == 10 && (1..=6).contains(&dice));
/// ```
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

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.bits() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.bits())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        fill_bytes_via_next_word(bytes, || Ok(self.bits()))
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
    pub samples: Samples,
}

/// Which sample of the whole batch each row of a batch is. A device gets them once, whatever is dropped there.
#[derive(Clone, Debug)]
pub struct Samples {
    rows: Arc<[u32]>,
    sent: Arc<OnceLock<Tensor<1, Int>>>,
}

impl Samples {
    /// As a tensor on the device of the batch.
    pub(crate) fn on(&self, device: &Device) -> Tensor<1, Int> {
        let rows = || self.rows.iter().map(|row| i64::from(*row)).collect::<Vec<_>>();
        self.sent.get_or_init(|| transfer::send(TensorData::new(rows(), [self.rows.len()]), device)).clone()
    }
}

impl FromIterator<u32> for Samples {
    fn from_iter<I: IntoIterator<Item = u32>>(rows: I) -> Self {
        Samples { rows: rows.into_iter().collect(), sent: Arc::default() }
    }
}

impl Deref for Samples {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.rows
    }
}

/// A finalizer with full avalanche (Stafford's variant 13 of MurmurHash3's).
pub(crate) fn mix(mut x: u64) -> u64 {
    for (by, factor) in MIX {
        x = (x ^ (x >> by)).wrapping_mul(factor);
    }
    x ^ (x >> MIX_END)
}

/// The shifts and factors of [`mix`].
pub(crate) const MIX: [(u32, u64); 2] = [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)];
pub(crate) const MIX_END: u32 = 31;

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

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, RngExt, seq::IndexedRandom};
    use rand_distr::{Beta, Distribution, StandardNormal};

    use crate::testing::tolerances::STANDARD_ERRORS;

    /// Runs, golden files and tables rest on these bits.
    #[test]
    fn the_bits_of_the_streams() {
        let random = || Random::new(7, "a tensor");
        let mut stream = random();
        let bits = [stream.bits(), stream.bits(), stream.bits()];
        assert_eq!(bits, [0x7042_37fc_4d93_2d67, 0xc427_5dba_6a4c_1442, 0xa4a6_6aff_a6e2_b9ed]);
        assert_eq!(
            [random().unit().to_bits(), random().normal().to_bits()],
            [0x3fdc_108d_ff13_64ca, 0x3fbb_fdf4_2836_b5e5]
        );
        assert_eq!([2, 10, 50_265, 1 << 40].map(|n| random().below(n)), [0, 4, 22041, 482147302477]);
        assert_eq!(random().permutation(9), [8, 7, 0, 5, 1, 2, 4, 6, 3]);
        let device = crate::testing::device();
        let numbers = |tensor: Tensor<1>| tensor.into_data().iter::<f32>().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(numbers(random().normal_tensor([2], 0.02, &device)), [0x3b0f_51af, 0xbcd8_61b3]);
        assert_eq!(numbers(random().uniform_tensor([2], -0.5, 2.0, &device)), [0x3f18_a58c, 0x3fb5_3135]);
        assert_eq!(
            [hash(""), hash("a tensor"), fingerprint("a tensor", b"nine bytes")],
            [0xf52a_15e9_a9b5_e89b, 0x5ce7_29d5_d361_7a75, 0x47d5_e771_f7c5_2455]
        );
    }

    /// A generator of `rand` gives the same stream, whichever way it is asked.
    #[test]
    fn it_is_a_generator_of_rand() {
        let (mut ours, mut theirs) = (Random::new(7, "a tensor"), Random::new(7, "a tensor"));
        let expected = [ours.bits(), ours.bits(), ours.bits()];
        assert_eq!([theirs.next_u64(), u64::from(theirs.next_u32()) << 32], [expected[0], expected[1] >> 32 << 32]);
        let mut bytes = [0; 5];
        theirs.fill_bytes(&mut bytes);
        assert_eq!(bytes, expected[2].to_le_bytes()[..5]);
        assert_eq!(Random::new(7, "unit").random::<f64>(), Random::new(7, "unit").unit());
    }

    /// First and second moments of distributions that are not ours.
    #[test]
    fn distributions_of_rand_distr_work_on_it() {
        let mut random = Random::new(7, "draws");
        let (beta, dice) = (Beta::new(2.0, 3.0).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut draws = |draw: &dyn Fn(&mut Random) -> f64| (0..20_000).map(|_| draw(&mut random)).collect::<Vec<_>>();
        for (name, draws, expected) in [
            ("normal", draws(&|random| StandardNormal.sample(random)), [0.0, 1.0]),
            ("beta", draws(&|random| beta.sample(random)), [0.4, 0.2]),
            ("dice", draws(&|random| *dice.choose(random).unwrap()), [3.5, 91.0 / 6.0]),
        ] {
            for (power, expected) in [1, 2].into_iter().zip(expected) {
                let numbers: Vec<f64> = draws.iter().map(|x| x.powi(power)).collect();
                let count = numbers.len() as f64;
                let mean = numbers.iter().sum::<f64>() / count;
                let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
                let errors = (mean - expected).abs() / (variance / count).sqrt();
                assert!(errors < f64::from(STANDARD_ERRORS.0), "{name}: moment {power} is {mean}");
            }
        }
    }
}
