//! Passes over rows of numbers, which the compiler turns into vector instructions, once for each set of registers. Nothing is summed in
//! another order there and no product is fused with a sum, so that all sets give the same bits.

use super::{Kernel, Registers};
use crate::ops::Drops;

/// Partial sums of a row, each of every sixteenth number.
const LANES: usize = 16;

/// Defines a function that is compiled for each set of registers; the one of the kernel is called.
macro_rules! for_registers {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name(kernel: Kernel, $($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $type),*) $(-> $out)? {
                plain($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512($($arg: $type),*) $(-> $out)? {
                plain($($arg),*)
            }
            match kernel.0 {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: here and below, a kernel is only made where the machine has its features.
                Registers::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                Registers::Avx512 | Registers::Avx512Bf16 => unsafe { avx512($($arg),*) },
                _ => plain($($arg),*),
            }
        }
    };
}

/// e^x for x of at most 88, without a branch: 2^n e^r with |r| at most ln(2) / 2, within 2e-7 of itself. NaN of NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Added and taken away it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln(2), its second part what the first lacks.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // Below, e^x is smaller than any normal number.
    const LEAST: f32 = -87.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r / 720.0)))));
    let power = series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < LEAST { 0.0 } else { power }
}

/// Φ(x) and its density φ(x), each within 3e-7 (Abramowitz and Stegun, 1964, 7.1.26).
#[inline(always)]
pub(crate) fn distribution(x: f32) -> (f32, f32) {
    const SCALES: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * size);
    let [a, b, c, d, e] = SCALES;
    let bell = exp(-0.5 * x * x);
    let tail = 0.5 * t * (a + t * (b + t * (c + t * (d + t * e)))) * bell;
    // 1 / sqrt(2 pi)
    (if x < 0.0 { tail } else { 1.0 - tail }, 0.398_942_3 * bell)
}

/// 1 / (1 + e^-x).
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let small = exp(-x.abs());
    let low = small / (1.0 + small);
    if x < 0.0 { low } else { 1.0 - low }
}

/// A sum of a function of each place of a row, in an order that is one for all registers.
#[inline(always)]
pub(crate) fn sum_of(count: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for first in (0..count - count % LANES).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(first + lane);
        }
    }
    for i in count - count % LANES..count {
        sums[i % LANES] += f(i);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

for_registers! {
    /// GELU in place.
    pub(crate) fn gelu(x: &mut [f32]) {
        for x in x {
            *x *= distribution(*x).0;
        }
    }
}

for_registers! {
    /// GELU in place, and its slopes.
    pub(crate) fn gelu_and_slope(x: &mut [f32], slopes: &mut [f32]) {
        for (x, slope) in x.iter_mut().zip(slopes) {
            let (below, density) = distribution(*x);
            *slope = below + *x * density;
            *x *= below;
        }
    }
}

for_registers! {
    /// SiLU of gates, times `y`, in place of `y`.
    pub(crate) fn gated(gates: &[f32], y: &mut [f32]) {
        for (gate, y) in gates.iter().zip(y) {
            *y *= *gate * sigmoid(*gate);
        }
    }
}

for_registers! {
    /// The gradients of gates and of `y` from that of the product; `dy` is both, the latter in the end.
    pub(crate) fn gated_back(gates: &[f32], y: &[f32], dy: &mut [f32], d_gates: &mut [f32]) {
        for (((gate, y), dy), d_gate) in gates.iter().zip(y).zip(dy).zip(d_gates) {
            let open = sigmoid(*gate);
            *d_gate = *dy * *y * open * (1.0 + *gate * (1.0 - open));
            *dy *= *gate * open;
        }
    }
}

for_registers! {
    /// Products of the numbers at the same places, in place of the first.
    pub(crate) fn times(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, by)| *x *= by);
    }
}

for_registers! {
    /// Numbers times one.
    pub(crate) fn scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
    }
}

for_registers! {
    /// Makes normalized rows of rows, and what each was multiplied by: 1 / the root of (variance + eps), or, of rows whose mean is not
    /// taken out, of (the mean square + eps).
    pub(crate) fn normalize(x: &mut [f32], width: usize, eps: f32, centered: bool, scales: &mut [f32]) {
        for (x, scale) in x.chunks_mut(width).zip(scales) {
            let mean = if centered { sum_of(width, |i| x[i]) / width as f32 } else { 0.0 };
            x.iter_mut().for_each(|x| *x -= mean);
            *scale = 1.0 / (sum_of(width, |i| x[i] * x[i]) / width as f32 + eps).sqrt();
            x.iter_mut().for_each(|x| *x *= *scale);
        }
    }
}

for_registers! {
    /// Multiplies rows by a gain and adds a bias, if there is one.
    pub(crate) fn affine(x: &mut [f32], gain: &[f32], bias: Option<&[f32]>) {
        for x in x.chunks_mut(gain.len()) {
            match bias {
                Some(bias) => x.iter_mut().zip(gain).zip(bias).for_each(|((x, gain), bias)| *x = *x * gain + bias),
                None => x.iter_mut().zip(gain).for_each(|(x, gain)| *x *= gain),
            }
        }
    }
}

for_registers! {
    /// The gradient of rows that were normalized, in place of that of what the gain makes of them.
    pub(crate) fn normalize_back(x: &[f32], scales: &[f32], gain: &[f32], centered: bool, dy: &mut [f32]) {
        let width = gain.len();
        for ((x, scale), dy) in x.chunks(width).zip(scales).zip(dy.chunks_mut(width)) {
            dy.iter_mut().zip(gain).for_each(|(dy, gain)| *dy *= gain);
            let mean = if centered { sum_of(width, |i| dy[i]) / width as f32 } else { 0.0 };
            let along = sum_of(width, |i| dy[i] * x[i]) / width as f32;
            dy.iter_mut().zip(x).for_each(|(dy, x)| *dy = *scale * (*dy - mean - *x * along));
        }
    }
}

for_registers! {
    /// Adds to `sums` the products of rows at the same places, or with `None` the rows of `dy` themselves.
    pub(crate) fn sum_rows(x: Option<&[f32]>, dy: &[f32], sums: &mut [f32]) {
        let width = sums.len();
        for (row, dy) in dy.chunks(width).enumerate() {
            match x {
                Some(x) => {
                    let x = &x[row * width..];
                    sums.iter_mut().zip(dy).zip(x).for_each(|((sum, dy), x)| *sum += dy * x);
                }
                None => sums.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy),
            }
        }
    }
}

for_registers! {
    /// Turns pairs of channels i and i + width / 2 of rows by angles, given by their cosines and sines: forward or back.
    pub(crate) fn turn_pairs(x: &mut [f32], cosines: &[f32], sines: &[f32], back: bool) {
        let half = cosines.len();
        for x in x.chunks_mut(2 * half) {
            let (a, b) = x.split_at_mut(half);
            for (((a, b), cosine), sine) in a.iter_mut().zip(b).zip(cosines).zip(sines) {
                let sine = if back { -*sine } else { *sine };
                (*a, *b) = (*a * *cosine - *b * sine, *b * *cosine + *a * sine);
            }
        }
    }
}

for_registers! {
    /// Drops numbers of a row with this key.
    pub(crate) fn drop(x: &mut [f32], drops: &Drops, key: u32) {
        for (channel, x) in x.iter_mut().enumerate() {
            *x *= drops.factor(key, channel as u32);
        }
    }
}

/// Scores at places that are not seen: half the least finite number, which no sum can push to infinity.
pub(crate) const UNSEEN: f32 = f32::MIN / 2.0;

/// A row of scores from products: what is added to them, the largest that each may be (that of places which are not seen), and from
/// which place on none is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scores<'a> {
    pub scale: f32,
    pub bias: Option<&'a [f32]>,
    pub limits: Option<&'a [f32]>,
    pub seen: usize,
}

impl Scores<'_> {
    #[inline(always)]
    fn of(self, row: &mut [f32]) {
        match self.bias {
            Some(bias) => row.iter_mut().zip(bias).for_each(|(x, bias)| *x = *x * self.scale + bias),
            None => row.iter_mut().for_each(|x| *x *= self.scale),
        }
        if let Some(limits) = self.limits {
            row.iter_mut().zip(limits).for_each(|(x, limit)| *x = if *x < *limit { *x } else { *limit });
        }
        row.iter_mut().skip(self.seen).for_each(|x| *x = UNSEEN);
    }
}

for_registers! {
    /// The softmax of a row in place; its largest score, and what the powers of e were multiplied by.
    pub(crate) fn softmax(row: &mut [f32], scores: Scores<'_>) -> [f32; 2] {
        scores.of(row);
        let largest = largest(row);
        row.iter_mut().for_each(|x| *x = exp(*x - largest));
        let scale = 1.0 / sum_of(row.len(), |i| row[i]);
        row.iter_mut().for_each(|x| *x *= scale);
        [largest, scale]
    }
}

for_registers! {
    /// The same, of a row of which those two are known.
    pub(crate) fn softmax_again(row: &mut [f32], scores: Scores<'_>, softmax: [f32; 2]) {
        let [largest, scale] = softmax;
        scores.of(row);
        row.iter_mut().for_each(|x| *x = exp(*x - largest) * scale);
    }
}

for_registers! {
    /// From a row of probabilities, and of the gradients of what dropout left of them, in place of the gradients: those of the scores,
    /// before they were scaled; in place of the probabilities what dropout leaves.
    pub(crate) fn softmax_back(p: &mut [f32], dp: &mut [f32], drops: Option<(&Drops, u32)>, scores: Scores<'_>) {
        match drops {
            Some((drops, key)) => {
                for (channel, dp) in dp.iter_mut().enumerate() {
                    *dp *= drops.factor(key, channel as u32);
                }
                let mean = sum_of(p.len(), |i| p[i] * dp[i]);
                for (channel, (p, dp)) in p.iter_mut().zip(dp.iter_mut()).enumerate() {
                    *dp = *p * (*dp - mean);
                    *p *= drops.factor(key, channel as u32);
                }
            }
            None => {
                let mean = sum_of(p.len(), |i| p[i] * dp[i]);
                p.iter().zip(dp.iter_mut()).for_each(|(p, dp)| *dp = *p * (*dp - mean));
            }
        }
        // A score that is not seen is a constant.
        if let Some(limits) = scores.limits {
            dp.iter_mut().zip(limits).for_each(|(dp, limit)| *dp = if *limit == UNSEEN { 0.0 } else { *dp });
        }
        dp.iter_mut().skip(scores.seen).for_each(|dp| *dp = 0.0);
    }
}

/// The largest of some numbers, at least `UNSEEN`.
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut all = [UNSEEN; LANES];
    for chunk in row.chunks(LANES) {
        all.iter_mut().zip(chunk).for_each(|(most, x)| *most = larger(*most, *x));
    }
    all.into_iter().fold(UNSEEN, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Φ in f64 by its series, x φ(x) (1 / 1 + x^2 / 3 + x^4 / 15 ..) + 1 / 2.
    fn exact(x: f64) -> (f64, f64) {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let (mut term, mut sum) = (x, x);
        for n in 1..400 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        (0.5 + density * sum, density)
    }

    #[test]
    fn they_are_exact_to_a_few_ulps_of_one() {
        for i in -8000..8000 {
            let x = i as f32 / 1000.0;
            let ((below, density), exact) = (distribution(x), exact(f64::from(x)));
            assert!((f64::from(below) - exact.0).abs() < 3e-7, "Φ({x}) = {below}, exactly {}", exact.0);
            assert!((f64::from(density) - exact.1).abs() < 3e-7, "φ({x}) = {density}, exactly {}", exact.1);
            let open = 1.0 / (1.0 + f64::from(-x).exp());
            assert!((f64::from(sigmoid(x)) - open).abs() < 3e-7, "the sigmoid of {x} is {open}");
        }
        for (x, expected) in [(f32::NEG_INFINITY, 0.0), (-1e30, 0.0), (1e30, 1.0), (f32::INFINITY, 1.0)] {
            assert_eq!([distribution(x).0, sigmoid(x)], [expected; 2], "{x}");
        }
        assert!(distribution(f32::NAN).0.is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!([-1e30, 1e30].map(|x: f32| x * distribution(x).0), [0.0, 1e30]);
    }

    /// Every set of registers gives the same bits, whatever is left over at a row's end.
    #[test]
    fn all_registers_give_the_same_bits() {
        for count in [1, 15, 16, 67] {
            let numbers: Vec<f32> = (0..2 * count).map(|i| ((i * i) as f32 * 0.7).sin() * 3.0).collect();
            let on = |kernel| {
                let mut all = vec![numbers.clone(); 6];
                gelu(kernel, &mut all[0]);
                let mut slopes = numbers.clone();
                gelu_and_slope(kernel, &mut all[1], &mut slopes);
                gated(kernel, &numbers, &mut all[2]);
                let mut scales = [0.0; 2];
                normalize(kernel, &mut all[3], count, 1e-5, true, &mut scales);
                normalize_back(kernel, &numbers, &scales, &numbers[..count], true, &mut all[4]);
                let scores = Scores { scale: 0.3, bias: None, limits: None, seen: count };
                softmax(kernel, &mut all[5], scores);
                all.push(slopes);
                all
            };
            let plain = on(Kernel::all()[0]);
            assert!(Kernel::all().into_iter().all(|kernel| on(kernel) == plain), "{count}");
        }
    }
}
