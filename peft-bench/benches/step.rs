//! The training step: micro-batches, each on one thread, against the whole batch at once with the tensor library's own
//! threads. LoRA r 8 on query and value, 32 sequences of 128 tokens, dropout on.
//!
//! `PEFT_BENCH_SHAPE` names another shape than minilm-l6.

#![expect(missing_docs, reason = "criterion_group! makes an undocumented function")]

use std::hint::black_box;

use burn::module::Module;
use burn::optim::GradientsParams;
use criterion::{Criterion, criterion_group, criterion_main};
use peft_core::random::{Noise, Random};
use peft_core::train::{Run, TrainConfig};
use peft_core::{Base, Example, Head, Label, Method, Shape, Trained};
use peft_reparam::{Lora, LoraConfig};

const SEQUENCES: usize = 32;

fn examples(vocab: usize) -> Vec<Example> {
    let mut random = Random::new(0, "bench");
    let example = |i: usize| Example {
        ids: (0..128).map(|_| (4 + random.below(vocab - 4)) as u32).collect(),
        label: Some(Label::Class(i % 2)),
        ..Default::default()
    };
    (0..SEQUENCES).map(example).collect()
}

/// Forward and backward of the whole batch, on all threads of the tensor library.
fn whole(base: &Base, trained: &Trained<Lora>, data: &[Example]) -> GradientsParams {
    let examples: Vec<&Example> = data.iter().collect();
    let labels: Vec<&Label> = data.iter().filter_map(|e| e.label.as_ref()).collect();
    let noise = Noise { seed: 0, step: 0, samples: (0..SEQUENCES as u32).collect() };
    let leaves = trained.valid().train();
    let batch = base.batch(&examples).expect("a batch that fits").with_noise(noise);
    let loss = leaves.loss(base, &batch, &labels).expect("a batch that fits") / SEQUENCES as f32;
    GradientsParams::from_grads(loss.backward(), &leaves)
}

fn step(criterion: &mut Criterion) {
    let name = std::env::var("PEFT_BENCH_SHAPE").unwrap_or_else(|_| "minilm-l6".into());
    let device = peft_core::device("flex").expect("the backend flex");
    let base = Base::random(Shape::named(&name).expect("a known shape"), 0, &device);
    let lora = LoraConfig::new(8).init(&base, 0).expect("LoRA on any encoder");
    let trained = Trained::new(lora, Head::classifier(&base, 2, 0)).expect("no parameter twice");
    let data = examples(base.shape().vocab);
    let config = TrainConfig::new(1e-4).with_batch_size(SEQUENCES);
    let mut run = Run::new(&config, base.clone(), trained.clone()).expect("possible settings");

    let mut group = criterion.benchmark_group(format!("step/{name}"));
    group.sample_size(10);
    group.bench_function("micro-batches", |b| b.iter(|| run.step(&data).expect("a step")));
    group.bench_function("whole batch", |b| b.iter(|| black_box(whole(&base, &trained, &data))));
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
