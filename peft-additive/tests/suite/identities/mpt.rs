use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Mpt, MptConfig, MptInit, PromptInit, PromptTuningConfig};
use peft_core::testing::golden::named;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, examples, fixtures::SHAPES, randomized};
use peft_core::train::{Run, TrainConfig};
use peft_core::view::{tensors, with_values};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Example, Head, Label, Method, Sequence, Source, Stack, Trained, Tuner,
};
use proptest::prelude::*;

use super::bottleneck::values;
use super::{run, with};

const TASKS: usize = 3;

fn config() -> MptConfig {
    MptConfig::new(4, TASKS).with_ranks(2)
}

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn random(base: &Base, seed: u64) -> Mpt {
    randomized(&config().init(base, seed).unwrap(), seed)
}

fn source<M: Method>(config: M, tuner: M::Tuner, base: &Base, seed: u64) -> Source {
    let trained = Trained::new(AnyTuner::new(tuner), Head::classifier(base, 2, seed)).unwrap();
    Source { name: format!("task {seed}"), config: config.into(), trained }
}

/// The tests' sequences as those of one task.
fn of_task(base: &Base, task: usize) -> Batch {
    let examples: Vec<Example> = examples(base).into_iter().map(|example| Example { task, ..example }).collect();
    base.batch(&examples.iter().collect::<Vec<_>>()).unwrap()
}

/// The virtual tokens in front of each stack of the sequences of a batch, `[batch, rows, hidden]`.
fn prompts(mpt: &Mpt, base: &Base, batch: &Batch) -> Vec<Tensor<3>> {
    let x = || Sequence {
        hidden: Tensor::zeros([batch.dims()[0], 3, 24], base.device()),
        mask: Default::default(),
        prompt: 0,
        offset: 0,
        past: 0,
    };
    let stacks = base.shape().stacks().into_iter();
    let front = |(stack, _): (Stack, usize)| {
        let x = mpt.valid().open(batch, |hooks| hooks.embed(stack, x()));
        assert_eq!(x.prompt, 4);
        x.hidden.narrow(1, 0, 4)
    };
    stacks.map(front).collect()
}

/// Each task's rows by the equation, in f64.
fn rows_of(mpt: &Mpt, task: usize) -> Vec<f64> {
    let own = tensors(mpt);
    let [shared, cols, rows] = ["shared", "cols", "rows"].map(|name| values(&own[name]));
    let (ranks, n) = (own["cols"].shape()[2], shared.len() / 24);
    let entry = |i: usize, j: usize| {
        let product = |r: usize| cols[(task * n + i) * ranks + r] * rows[(task * ranks + r) * 24 + j];
        shared[i * 24 + j] * (0..ranks).map(product).sum::<f64>()
    };
    (0..n).flat_map(|i| (0..24).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
}

#[test]
fn it_starts_as_the_shared_prompt() {
    for base in bases() {
        for ranks in [1, 3] {
            let start = MptConfig::new(4, TASKS).with_ranks(ranks).init(&base, 1).unwrap();
            let prompt = PromptTuningConfig::new(4).init(&base, 1).unwrap();
            assert_eq!(tensors(&start)["shared"], tensors(&prompt)["prompt_embeddings"]);
            for task in 0..TASKS {
                assert_eq!(rows_of(&start, task), values(&tensors(&prompt)["prompt_embeddings"]), "{ranks}");
            }
        }
    }
}

/// PEFT's start, by the spread of its numbers.
#[test]
fn a_random_start_is_that_of_the_reference() {
    let base = base("bert-tiny", &device());
    let start = MptConfig::new(30, 20).with_ranks(4).with_init(MptInit::Random).init(&base, 1).unwrap();
    for (name, data) in tensors(&start) {
        let numbers = values(&data);
        let spread = (numbers.iter().map(|x| x * x).sum::<f64>() / numbers.len() as f64).sqrt();
        let expected = if name == "shared" { 1.0 } else { 0.02 };
        assert!((0.9..1.1).contains(&(spread / expected)), "{name}: {spread}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn factors_are_free_by_a_scale_and_by_zeros(seed: u64, a in 0.5f64..2.0) {
        for base in bases() {
            let (mpt, batch) = (random(&base, seed).valid(), batch(&base));
            let own = tensors(&mpt);
            let [cols, rows] = ["cols", "rows"].map(|name| Tensor::<3>::from_data(own[name].clone(), base.device()));
            let scaled = with(with(mpt.clone(), "cols", cols.clone() * a), "rows", rows.clone() / a);
            let [k, n, _] = cols.dims();
            let wider = MptConfig::new(4, TASKS).with_ranks(3).init(&base, 0).unwrap().valid();
            let none = Tensor::zeros([k, n, 1], base.device());
            let mut values = own;
            values.insert("cols".into(), Tensor::cat(vec![cols, none], 2).into_data());
            let any = Tensor::full([k, 1, 24], 0.7, base.device());
            values.insert("rows".into(), Tensor::cat(vec![rows, any], 1).into_data());
            let wider = with_values(wider, &values).unwrap();
            let expected = run(&mpt, &base, &batch);
            assert_close(run(&scaled, &base, &batch), expected.clone(), SAME_FUNCTION, "scaled");
            assert_close(run(&wider, &base, &batch), expected, SAME_FUNCTION, "a rank more");
        }
    }

    /// The rows in front of each sequence are those of the card's equation, on each stack its own; and the same as prompt tuning's.
    #[test]
    fn a_folded_prompt_is_that_of_its_task(seed: u64, task in 0..TASKS) {
        for base in bases() {
            let (mpt, batch) = (random(&base, seed), batch(&base));
            let rows = 4 * 24;
            for (stack, found) in prompts(&mpt, &base, &batch).into_iter().enumerate() {
                let expected = batch.tasks.iter().flat_map(|task| rows_of(&mpt, *task)[stack * rows..][..rows].to_vec());
                let expected: Vec<f32> = expected.map(|x| x as f32).collect();
                let expected = Tensor::<3>::from_data(TensorData::new(expected, [5, 4, 24]), base.device());
                assert_close(found, expected, SAME_FUNCTION, "the rows");
            }
            let folded = mpt.folded(task, &base);
            if base.shape().stacks().len() == 1 {
                let batch = of_task(&base, task);
                assert_close(run(&folded.unwrap(), &base, &batch), run(&mpt, &base, &batch), SAME_FUNCTION, "folded");
            } else {
                prop_assert!(folded.unwrap_err().to_string().contains("one stack"));
            }
            prop_assert!(mpt.folded(TASKS, &base).unwrap_err().to_string().contains("below 3"));
        }
    }

    #[test]
    fn targets_start_from_the_sources_factors(seed: u64, task in 0..TASKS) {
        for base in bases() {
            let trained = random(&base, seed);
            let start = |from: &MptConfig, mpt: &Mpt, config: MptConfig| {
                let config = MptConfig { num_tasks: 2, ..config };
                config.init_from(&base, 3, &[source(from.clone(), mpt.clone(), &base, 1)]).unwrap()
            };
            let average = config().with_init(MptInit::AverageSourceTasks);
            let exact = start(&config(), &trained, config().from_task(task));
            for target in 0..2 {
                prop_assert_eq!(rows_of(&exact, target), rows_of(&trained, task));
            }
            // Of one source task.
            let alone = MptConfig { num_tasks: 1, ..config() };
            let one = start(&alone, &exact_of(&exact, &base), average.clone());
            prop_assert_eq!(rows_of(&one, 1), rows_of(&trained, task));
            // Of all: their factors' mean, not that of the prompts.
            let mean = start(&config(), &trained, average);
            for name in ["cols", "rows"] {
                let (found, all) = (values(&tensors(&mean)[name]), values(&tensors(&trained)[name]));
                let n = all.len() / TASKS;
                let expected = (0..n).map(|i| (0..TASKS).map(|k| all[k * n + i]).sum::<f64>() / TASKS as f64);
                prop_assert!(expected.zip(&found).all(|(a, b)| (a - b).abs() < f64::from(SAME_FUNCTION.0)), "{}", name);
            }
            let prompts: Vec<Vec<f64>> = (0..TASKS).map(|k| rows_of(&trained, k)).collect();
            let apart = rows_of(&mean, 0).into_iter().enumerate()
                .map(|(i, x)| (x - prompts.iter().map(|p| p[i]).sum::<f64>() / TASKS as f64).abs());
            prop_assert!(apart.fold(0.0, f64::max) > 1e-3);
            let shared = start(&config(), &trained, config().with_init(MptInit::OnlySourceShared));
            prop_assert_eq!(rows_of(&shared, 1), values(&tensors(&trained)["shared"]));
        }
    }
}

/// One task, the first, of an MPT whose tasks are alike.
fn exact_of(mpt: &Mpt, base: &Base) -> Mpt {
    let mut own = tensors(mpt);
    for name in ["cols", "rows"] {
        let all = Tensor::<3>::from_data(own[name].clone(), base.device());
        own.insert(name.into(), all.narrow(0, 0, 1).into_data());
    }
    let config = MptConfig { num_tasks: 1, ..config() };
    with_values(config.init(base, 0).unwrap(), &own).unwrap()
}

#[test]
fn a_batch_moves_the_factors_of_its_tasks() {
    for base in bases() {
        let mpt = random(&base, 3);
        for task in 0..TASKS {
            let hidden = mpt.run(&base, &of_task(&base, task)).unwrap();
            let loss = peft_core::testing::conformance::loss(hidden);
            let gradients = burn::optim::GradientsParams::from_grads(loss.backward(), &mpt);
            for (name, gradient) in named(&mpt, &gradients) {
                let numbers = values(&gradient);
                let parts = if name == "shared" { 1 } else { TASKS };
                for (k, part) in numbers.chunks(numbers.len() / parts).enumerate() {
                    let moved = part.iter().any(|x| *x != 0.0);
                    assert_eq!(moved, parts == 1 || k == task, "{name} of {k} in a batch of {task}");
                }
            }
        }
    }
}

fn head(base: &Base, seed: u64) -> Head {
    Head::classifier(base, 2, seed)
}

/// A student of three teachers.
fn taught(base: &Base, seed: u64, weight: f64) -> (Trained<Mpt>, Vec<Source>) {
    let prompt = PromptTuningConfig::new(4).with_init(PromptInit::Random);
    let teacher = |i: u64| source(prompt.clone(), prompt.init(base, seed ^ i).unwrap(), base, seed ^ i);
    let sources: Vec<Source> = (0..TASKS as u64).map(teacher).collect();
    let start = config().with_distillation(weight).init_from(base, seed, &sources).unwrap();
    (Trained::new(randomized(&start, seed), head(base, 77)).unwrap(), sources)
}

fn objective(trained: &Trained<Mpt>, base: &Base, examples: &[Example]) -> f64 {
    let (batch, labels) = (base.batch(&examples.iter().collect::<Vec<_>>()).unwrap(), labels(examples));
    f64::from(trained.objective(base, &batch, &labels).unwrap().into_scalar::<f32>())
}

fn labels(examples: &[Example]) -> Vec<&Label> {
    examples.iter().map(|example| example.label.as_ref().unwrap()).collect()
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|x| x.exp()).sum();
    row.iter().map(|x| x - sum.ln()).collect()
}

/// Sequence by sequence, from states and logits of student and teacher alone, in f64.
#[test]
fn the_loss_is_that_of_the_equation() {
    for base in bases() {
        let (trained, teachers) = taught(&base, 5, 0.7);
        let all = examples(&base);
        let mut expected = 0.0;
        for example in &all {
            let (batch, label) = (base.batch(&[example]).unwrap(), [example.label.as_ref().unwrap()]);
            let teacher = &teachers[example.task].trained;
            expected += f64::from(trained.valid().loss(&base, &batch, &label).unwrap().into_scalar::<f32>());
            let states = |states: Tensor<3>| values(&states.into_data());
            let own = states(trained.tuner.valid().run(&base, &batch).unwrap().tokens());
            let known = states(teacher.tuner.valid().run(&base, &batch).unwrap().tokens());
            expected += 0.7 * own.iter().zip(&known).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / own.len() as f64;
            let logits = |logits: Tensor<3>| {
                let width = logits.dims()[2];
                values(&logits.into_data()).chunks(width).map(log_softmax).collect::<Vec<_>>()
            };
            let (p, q) = (
                logits(teacher.valid().logits(&base, &batch).unwrap()),
                logits(trained.valid().logits(&base, &batch).unwrap()),
            );
            let differ = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            expected += 0.7 * p.iter().zip(&q).map(differ).sum::<f64>();
        }
        let found = objective(&trained, &base, &all);
        let close = |found: f64| (found - expected).abs() <= f64::from(SAME_FUNCTION.0) * expected.max(1.0);
        assert!(close(found), "{found}, expected {expected}");
        // The same in pieces, of whatever length, and with teachers that count for nothing.
        let pieces: f64 = all.chunks(2).map(|piece| objective(&trained, &base, piece)).sum();
        assert!(close(pieces), "{pieces}, expected {expected}");
        let plain = taught(&base, 5, 0.0).0;
        let batch = batch(&base);
        let own = f64::from(plain.loss(&base, &batch, &labels(&all)).unwrap().into_scalar::<f32>());
        assert_eq!(objective(&plain, &base, &all), own);
        assert!(expected > 1.001 * own);
    }
}

#[test]
fn nothing_is_to_be_learnt_from_oneself() {
    for base in bases() {
        let (start, mut teachers) = taught(&base, 6, 0.9);
        // All have the same prompt and the run's own head.
        let first = teachers[0].trained.tuner.clone();
        for teacher in &mut teachers {
            teacher.trained = Trained::new(first.clone(), start.head.clone()).unwrap();
        }
        let fresh = MptConfig::new(4, TASKS).init_from(&base, 1, &teachers).unwrap();
        let rows = Tensor::<2>::from_data(tensors(&first).into_values().next().unwrap(), base.device());
        // Rows for a T5's decoder are not used by its teachers: there the student is another.
        let trained = Trained::new(with(fresh, "shared", rows), start.head.clone()).unwrap();
        let (all, batch) = (examples(&base), batch(&base));
        let own = f64::from(trained.loss(&base, &batch, &labels(&all)).unwrap().into_scalar::<f32>());
        let found = objective(&trained, &base, &all);
        let more = found - own;
        let same = more.abs() <= f64::from(SAME_FUNCTION.0);
        assert_eq!(same, base.shape().stacks().len() == 1, "{more} beside {own}");
    }
}

/// Teachers stay as they are, and another number of outputs is refused by name.
#[test]
fn teachers_stay_and_must_fit() {
    let base = base("roberta-tiny", &device());
    let (trained, _) = taught(&base, 1, 0.9);
    let settings = TrainConfig { weight_decay: 0.1, ..TrainConfig::new(1e-2).with_steps(2) };
    let mut steps = Run::new(&settings, base.clone(), trained.clone()).unwrap();
    steps.step(&examples(&base)).unwrap();
    let of = |trained: &Trained<Mpt>| -> BTreeMap<String, TensorData> {
        tensors(&trained.tuner).into_iter().filter(|(name, _)| name.starts_with("teachers.")).collect()
    };
    assert_eq!(of(&steps.trained), of(&trained));
    assert!(of(&trained).len() >= 2 * TASKS);
    let other = Trained::new(trained.tuner, Head::classifier(&base, 3, 1)).unwrap();
    let all = examples(&base);
    let message = other.objective(&base, &batch(&base), &labels(&all)).unwrap_err().to_string();
    assert!(
        message.contains("a head with 2 outputs, of task 0") && message.contains("3, as the run's own"),
        "{message}"
    );
}
