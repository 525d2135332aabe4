//! GELU. On flex burn evaluates the error function number by number, twice a step: a quarter of a small model's time.

use burn::tensor::{Tensor, activation};

/// x Φ(x), Φ the normal distribution function (Hendrycks and Gimpel, 2016, arXiv:1606.08415), within 1e-6.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if x.device().without_autodiff() == burn::tensor::Device::flex() {
        return flex::gelu(x);
    }
    activation::gelu(x)
}

#[cfg(feature = "flex")]
mod flex {
    use burn::tensor::{Tensor, TensorData, activation};

    /// One pass over the numbers, which the compiler turns into vector instructions. Of a tracked tensor it gives the slope GELU'(x)
    /// too: x GELU'(x) + (GELU(x) - x GELU'(x)) has the value and the derivative, with constants for both terms.
    pub(super) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
        let plain = x.clone().without_autodiff();
        let (device, shape, mut values) = (plain.device(), plain.shape(), plain.into_data());
        let Ok(values_mut) = values.as_mut_slice::<f32>() else {
            return activation::gelu(x);
        };
        if !x.is_autodiff() {
            values_mut.iter_mut().for_each(|x| *x = *x * distribution(*x).0);
            return Tensor::from_data(values, &device);
        }
        let mut slopes = vec![0.0; values_mut.len()];
        for (x, slope) in values_mut.iter_mut().zip(&mut slopes) {
            let (below, density) = distribution(*x);
            *slope = below + *x * density;
            // GELU(x) - x GELU'(x)
            *x = -(*x * density) * *x;
        }
        let slopes = Tensor::from_data(TensorData::new(slopes, shape), &device);
        x * slopes + Tensor::from_data(values, &device)
    }

    /// Φ(x) and its density φ(x), each within 3e-7 (Abramowitz and Stegun, 1964, 7.1.26).
    #[inline(always)]
    fn distribution(x: f32) -> (f32, f32) {
        const SCALES: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];
        let size = x.abs();
        let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * size);
        let [a, b, c, d, e] = SCALES;
        let bell = exp(-0.5 * x * x);
        let tail = 0.5 * t * (a + t * (b + t * (c + t * (d + t * e)))) * bell;
        // 1 / sqrt(2 pi)
        (if x < 0.0 { tail } else { 1.0 - tail }, 0.398_942_3 * bell)
    }

    /// e^x for x of at most 0, without a branch: 2^n e^r with |r| at most ln(2) / 2. NaN of NaN.
    #[inline(always)]
    fn exp(x: f32) -> f32 {
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
        fn it_is_exact_to_a_few_ulps_of_one() {
            for i in -8000..8000 {
                let x = i as f32 / 1000.0;
                let ((below, density), exact) = (distribution(x), exact(f64::from(x)));
                assert!((f64::from(below) - exact.0).abs() < 3e-7, "Φ({x}) = {below}, exactly {}", exact.0);
                assert!((f64::from(density) - exact.1).abs() < 3e-7, "φ({x}) = {density}, exactly {}", exact.1);
            }
            for (x, expected) in [(f32::NEG_INFINITY, 0.0), (-1e30, 0.0), (1e30, 1.0), (f32::INFINITY, 1.0)] {
                assert_eq!(distribution(x).0, expected, "{x}");
            }
            assert!(distribution(f32::NAN).0.is_nan());
            assert_eq!([-1e30, 1e30].map(|x: f32| x * distribution(x).0), [0.0, 1e30]);
        }

        /// Values and gradients, of tensors that lie in any way.
        #[test]
        fn it_is_that_of_burn() {
            let device = burn::tensor::Device::flex();
            let numbers: Vec<f32> = (0..600).map(|i| (i as f32 - 300.0) / 50.0).collect();
            let x = Tensor::<2>::from_data(TensorData::new(numbers, [20, 30]), &device).transpose();
            let tracked = Tensor::from_inner(x.clone()).require_grad();
            let weights = x.clone().cos();
            let run = |gelu: &dyn Fn(Tensor<2>) -> Tensor<2>| {
                let y = gelu(tracked.clone());
                let gradients = (y.clone() * weights.clone()).sum().backward();
                [gelu(x.clone()), y.without_autodiff(), tracked.grad(&gradients).unwrap()]
            };
            for (ours, burns) in run(&super::gelu).into_iter().zip(run(&activation::gelu)) {
                ours.into_data().assert_approx_eq::<f32>(&burns.into_data(), burn::tensor::Tolerance::absolute(1e-6));
            }
        }
    }
}
