//! Products with frozen matrices, `x W` and back through `x W^T`: the tensor library's with a dense matrix, and those of our kernels with a packed
//! one, in operations a second (two for each weight and row); with one row, in bytes a second of what is read of the matrix.
//!
//! Elements a second are operations: 1 Gelem/s is 1 GFLOP/s.

#![expect(missing_docs, reason = "criterion_group! makes an undocumented function")]

use std::hint::black_box;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use peft_core::random::Random;
use peft_core::{Compute, Weight};
use peft_quant::{Matrix, Scheme};
use safetensors::Dtype;

/// Rows, inputs, outputs: RoBERTa-base in micro-batches, LLaMA-7B with one sequence, and one token of either.
const SHAPES: [[usize; 3]; 7] = [
    [256, 768, 768],
    [256, 768, 3072],
    [256, 3072, 768],
    [512, 4096, 4096],
    [512, 4096, 11008],
    [1, 768, 3072],
    [1, 4096, 11008],
];

fn products(criterion: &mut Criterion) {
    let device = Device::flex();
    for [rows, inputs, outputs] in SHAPES {
        let mut random = Random::new(0, "products");
        let mut draw = |count: usize| (0..count).map(|_| random.normal() as f32).collect::<Vec<_>>();
        let (x, w) = (draw(rows * inputs), draw(inputs * outputs));
        let x = Tensor::<3>::from_data(TensorData::new(x, [1, rows, inputs]), &device);
        let tracked = Tensor::from_inner(x.clone()).require_grad();
        let packed = |scheme: &str| {
            let matrix = scheme.parse::<Scheme>().and_then(|scheme| scheme.pack(&w, [outputs, inputs], Dtype::F32));
            let size = matrix.as_ref().map_or(0, |matrix| match matrix {
                peft_quant::bitsandbytes::Quantized::FourBit { packed, .. } => packed.size(),
                peft_quant::bitsandbytes::Quantized::Int8(packed) => packed.size(),
            });
            (Weight::Packed(matrix.and_then(|matrix| Matrix::packed(matrix, &device)).expect("a matrix")), size)
        };
        let dense = Tensor::<2>::from_data(TensorData::new(w.clone(), [outputs, inputs]), &device).transpose();
        let dense = Tensor::<2>::from_data(dense.into_data(), &device);
        let mut weights = vec![("dense", (Weight::Dense(dense), 4 * inputs * outputs))];
        weights.extend(["nf4", "nf4-double", "fp4", "int8"].map(|scheme| (scheme, packed(scheme))));
        let mut group = criterion.benchmark_group(format!("products/{rows}x{inputs}x{outputs}"));
        group.sample_size(10);
        for (name, (w, bytes)) in &weights {
            for compute in [Compute::F32, Compute::Bf16] {
                let work = (2 * rows * inputs * outputs) as u64;
                group.throughput(if rows == 1 { Throughput::Bytes(*bytes as u64) } else { Throughput::Elements(work) });
                let id = |way: &str| BenchmarkId::new(format!("{name} {way}"), compute);
                group.bench_function(id("forward"), |b| b.iter(|| black_box(w.linear_in(compute, x.clone(), None))));
                if rows > 1 {
                    group.bench_function(id("backward"), |b| {
                        let forward = || w.linear_in(compute, tracked.clone(), None).sum();
                        b.iter_batched(forward, |y| black_box(y.backward()), criterion::BatchSize::PerIteration)
                    });
                }
            }
        }
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
