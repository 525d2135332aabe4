//! Values and gradients against the operations that burn composes.

use burn::tensor::{Bool, Distribution};
use rayon::ThreadPoolBuilder;

use super::*;
use crate::ops::attention::{Attention, Mask};
use crate::ops::{gated, gelu, layer_norm, rms_norm, turned};
use crate::random::{Noise, Random};
use crate::testing::difference;
use crate::testing::tolerances::{SAME_FUNCTION, SAME_GRADIENT, Tolerance};

fn draw<const D: usize>(name: &str, dims: [usize; D], std: f64) -> Tensor<D> {
    Random::new(5, name).normal_tensor(dims, std, &Device::flex())
}

/// What is checked.
type Function<'a> = &'a (dyn Fn(&[Tensor<4>]) -> Tensor<4> + Sync);

fn noise(batch: usize) -> Noise {
    Noise { seed: 3, step: 4, samples: (0..batch as u32).map(|i| 7 * i).collect() }
}

/// The result and the gradients of a function of some tensors, for a loss without symmetries.
fn found(inputs: &[Tensor<4>], tracked: &[bool], f: Function<'_>) -> Vec<TensorData> {
    let leaves: Vec<_> = inputs
        .iter()
        .zip(tracked)
        .map(
            |(x, tracked)| {
                if *tracked { Tensor::from_inner(x.clone()).require_grad() } else { Tensor::from_inner(x.clone()) }
            },
        )
        .collect();
    let y = f(&leaves);
    let weights = Tensor::from_inner(draw("weights", y.dims(), 1.0));
    let gradients = (y.clone() * weights).sum().backward();
    let of = leaves.iter().zip(tracked).filter(|(_, tracked)| **tracked);
    let of = of.map(|(x, _)| x.grad(&gradients).expect("a gradient").into_data());
    [f(inputs).into_data(), y.inner().into_data()].into_iter().chain(of).collect()
}

/// Checks a function of ours, where all of its inputs are tracked and where one is.
fn check(what: &str, inputs: &[Tensor<4>], f: Function<'_>) {
    for of in 0..=inputs.len() {
        let tracked: Vec<bool> = (0..inputs.len()).map(|i| of == inputs.len() || of == i).collect();
        let ours = found(inputs, &tracked, f);
        let burns = composed(|| found(inputs, &tracked, f));
        assert_eq!(ours.len(), burns.len());
        assert_eq!(ours[0], ours[1], "{what}: another value where it is tracked");
        for (i, (ours, burns)) in ours.iter().zip(&burns).enumerate() {
            let Tolerance(most) = if i < 2 { SAME_FUNCTION } else { SAME_GRADIENT };
            let largest = burns.iter::<f32>().map(f32::abs).fold(1.0, f32::max);
            assert_eq!(ours.shape(), burns.shape(), "{what}: result {i}, tracked {tracked:?}");
            let found = difference(ours, burns);
            assert!(found <= most * largest, "{what}: result {i} is off by {found}, tracked {tracked:?}");
        }
        let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert!(pool.install(|| found(inputs, &tracked, f)) == ours, "{what}: other bits on three threads");
    }
}

/// Sizes of an attention: batch, heads, heads of keys, rows, keys and width, below and above those of a block and a panel.
const ATTENTIONS: [[usize; 6]; 6] = [
    [2, 3, 3, 5, 7, 6],
    [1, 2, 2, 70, 70, 64],
    [2, 4, 2, 65, 130, 16],
    [3, 4, 1, 2, 3, 70],
    [1, 1, 1, 64, 64, 8],
    [2, 2, 2, 33, 1, 5],
];

#[test]
fn attention_is_that_of_burn() {
    for [batch, heads, key_heads, rows, keys, width] in ATTENTIONS {
        let query = draw("query", [batch, rows, heads, width], 1.0);
        let [key, value] = ["key", "value"].map(|name| draw(name, [batch, keys, key_heads, width], 1.0));
        let bias = draw("bias", [1, heads, rows, keys + 2], 1.0);
        // The first sequence has no padding, the last has nothing else.
        let hidden =
            (0..batch * keys).map(|i| (i / keys) * keys > (batch - 1) * (keys - 1 - i % keys)).collect::<Vec<_>>();
        let padding = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [batch, keys]), &Device::flex());
        for (masked, causal, p, biased) in [
            (false, None, 0.0, false),
            (true, None, 0.3, false),
            (false, Some(keys.saturating_sub(rows)), 0.3, true),
            (true, Some(0), 0.0, true),
        ] {
            let drops = noise(batch).drops(p, "attention");
            let f = |inputs: &[Tensor<4>]| {
                let mask = Mask { padding: masked.then(|| padding.clone()), causal, bias: inputs.get(3).cloned() };
                // As they lie when heads are split, and copies.
                let [query, key] = [0, 1].map(|i| inputs[i].clone().swap_dims(1, 2));
                let value = inputs[2].clone().permute([0, 2, 1, 3]) * 1.5;
                let input = Tensor::zeros([1, 1, 1], &query.device());
                Attention { input, query, key, value, mask }.context(width != 5, drops.clone())
            };
            let all = [query.clone(), key.clone(), value.clone(), bias.clone()];
            let sizes = [batch, heads, key_heads, rows, keys, width];
            check(&format!("{sizes:?} {masked} {causal:?} {p}"), &all[..if biased { 4 } else { 3 }], &f);
            if biased {
                let of_each = draw("bias", [batch, heads, rows, keys], 1.0);
                let all = [query.clone(), key.clone(), value.clone(), of_each];
                let [ours, burns] = [f(&all), composed(|| f(&all))].map(Tensor::into_data);
                assert!(difference(&ours, &burns) <= SAME_FUNCTION.0, "{sizes:?}, biases of each sequence");
            }
        }
    }
}

/// The results of every set of registers are those of plain Rust but for the rounding of products.
#[test]
fn attention_is_one_on_all_registers() {
    use crate::kernels::Kernel;
    use crate::kernels::attention::{Attention, Gradients, Heads, Sizes};
    let sizes = Sizes { batch: 2, heads: 4, key_heads: 2, rows: 67, keys: 71, width: 33 };
    let numbers = |name: &str, count: usize| draw(name, [count], 1.0).into_data().try_to_vec::<f32>().unwrap();
    let heads =
        |numbers, heads: usize, rows: usize| Heads { numbers, start: 0, strides: [rows * heads * 33, 33, heads * 33] };
    let (query, key, value) =
        (numbers("query", 2 * 67 * 4 * 33), numbers("key", 2 * 71 * 2 * 33), numbers("value", 2 * 71 * 2 * 33));
    let dy = numbers("dy", query.len());
    let on = |kernel| {
        let attention = Attention {
            sizes,
            query: heads(&query, 4, 67),
            key: heads(&key, 2, 71),
            value: heads(&value, 2, 71),
            bias: None,
            scale: 0.2,
            padding: None,
            causal: Some(5),
            drops: None,
        };
        let mut all = [vec![0.0; query.len()], vec![0.0; query.len()], vec![0.0; key.len()], vec![0.0; key.len()]];
        let [y, d_query, d_key, d_value] = &mut all;
        let mut softmax = vec![0.0; 2 * 4 * 2 * 67];
        attention.forward(kernel, y, &mut softmax);
        let gradients = Gradients { query: Some(d_query), key: Some(d_key), value: Some(d_value), bias: None };
        attention.backward(kernel, heads(&dy, 4, 67), &softmax, gradients);
        all.map(|numbers| TensorData::new(numbers.clone(), [numbers.len()]))
    };
    let plain = on(Kernel::all()[0]);
    for kernel in Kernel::all() {
        for (found, plain) in on(kernel).iter().zip(&plain) {
            assert!(difference(found, plain) <= SAME_FUNCTION.0, "{kernel:?}: off by {}", difference(found, plain));
        }
    }
}

#[test]
fn activations_are_those_of_burn() {
    let wide = |name| draw(name, [2, 3, 37, 5], 3.0);
    check("GELU", &[wide("x")], &|x| gelu(x[0].clone().swap_dims(1, 2)));
    check("gated", &[wide("x"), wide("y")], &|x| gated(x[0].clone(), x[1].clone().swap_dims(1, 3).swap_dims(1, 3)));
}

#[test]
fn normalizations_are_those_of_burn() {
    for width in [1, 6, 16, 67] {
        let (x, gain, bias) = (
            draw("x", [2, 3, 5, width], 2.0),
            draw("gain", [1, 1, 1, width], 1.0),
            draw("bias", [1, 1, 1, width], 1.0),
        );
        let flat = |x: &Tensor<4>| x.clone().reshape([width]);
        let shifted = |x: &Tensor<4>| x.clone().swap_dims(0, 2) + 1.0;
        let all = [x, gain, bias];
        if width > 1 {
            check("layer norm", &all, &|x| layer_norm(shifted(&x[0]), flat(&x[1]), flat(&x[2]), 1e-5));
        }
        check("RMS norm", &all[..2], &|x| rms_norm(shifted(&x[0]), flat(&x[1]), 1e-5));
    }
}

#[test]
fn dropout_is_that_of_the_mask() {
    let x = draw("x", [3, 4, 5, 37], 1.0);
    for p in [0.1, 0.7] {
        let drops = noise(3).drops(p, "here").unwrap();
        check("dropout", std::slice::from_ref(&x), &|x| drops.of(x[0].clone()));
        check("dropout of a view", std::slice::from_ref(&x), &|x| drops.of(x[0].clone().swap_dims(2, 3)));
    }
}

#[test]
fn what_is_turned_is_that_of_burn() {
    let angles = Tensor::<4>::random([2, 1, 5, 3], Distribution::Uniform(-3.0, 3.0), &Device::flex());
    for angles in [angles.clone(), angles.narrow(0, 0, 1)] {
        let f = |x: &[Tensor<4>]| {
            let angles = if x[0].is_autodiff() { Tensor::from_inner(angles.clone()) } else { angles.clone() };
            turned(x[0].clone().swap_dims(1, 2), angles.clone().cos(), angles.sin())
        };
        check("turned", &[draw("x", [2, 5, 4, 6], 1.0)], &f);
    }
}
