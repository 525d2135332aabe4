use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Attempt, AttemptConfig, PromptTuningConfig};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, examples, randomized};
use peft_core::train::{Run, TrainConfig};
use peft_core::view::{tensors, with_values};
use peft_core::{Adapter, AnyTuner, Base, Batch, Head, Method, Sequence, Source, Stack, Trained, random::Random};
use proptest::prelude::*;

use super::bottleneck::values;
use super::{pick, run};

const TEMPERATURE: f64 = 2.0;

fn bases() -> Vec<Base> {
    ["roberta-tiny", "bert-tiny", "t5-tiny"].iter().map(|shape| base(shape, &device())).collect()
}

fn sources(base: &Base, seed: u64) -> Vec<Source> {
    let config = PromptTuningConfig::new(4);
    let one = |i: u64| {
        let tuner = AnyTuner::new(randomized(&config.init(base, seed ^ i).unwrap(), seed ^ i));
        let trained = Trained::new(tuner, Head::classifier(base, 2, 3)).unwrap();
        Source { name: format!("source {i}"), config: config.clone().into(), trained }
    };
    (0..3).map(one).collect()
}

fn random(base: &Base, seed: u64) -> Attempt {
    let config = AttemptConfig::new(4).with_attention_width(7).with_temperature(TEMPERATURE);
    randomized(&config.init_from(base, seed, &sources(base, seed)).unwrap(), seed).valid()
}

fn changed(attempt: &Attempt, change: impl Fn(&mut BTreeMap<String, TensorData>)) -> Attempt {
    let mut values = tensors(attempt);
    change(&mut values);
    with_values(attempt.clone(), &values).unwrap()
}

/// The virtual tokens that it puts in front of embedded sequences.
fn prompts(attempt: &Attempt, base: &Base, batch: &Batch, x: Tensor<3>) -> Tensor<3> {
    let x = Sequence { hidden: x, mask: batch.mask(), prompt: 0, offset: 0, past: 0 };
    attempt.open(batch, |hooks| hooks.embed(Stack::Encoder, x)).hidden.narrow(1, 0, 4).to_device(base.device())
}

fn words(base: &Base, seed: u64) -> Tensor<3> {
    let [size, tokens] = batch(base).dims();
    Random::new(seed, "x").normal_tensor([size, tokens, 24], 1.0, base.device())
}

#[test]
fn equals_the_derivation_of_attempt() {
    for (case, base) in [("attempt", "roberta-classify"), ("attempt-t5", "t5")] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let case = Case::open(dir, base);
        case.check_logits::<AttemptConfig>();
        let (config, trained) = case.load::<AttemptConfig>();
        case.check_run(trained, |name| case.key(&config, name), |_, trained| trained);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// The card's equation, worked out from the tensors in f64, sequence by sequence on its real tokens.
    #[test]
    fn a_mixed_prompt_is_its_equation(seed: u64) {
        for base in bases() {
            let (attempt, batch, x) = (random(&base, seed), batch(&base), words(&base, seed));
            let own: BTreeMap<String, Vec<f64>> = tensors(&attempt).iter().map(|(name, data)| (name.clone(), values(data))).collect();
            let all: Vec<&[f64]> = own["sources"].chunks(96).chain([&own["prompt"][..]]).collect();
            let largest = |rows: &[f64]| (0..24).map(|c| rows.iter().skip(c).step_by(24).copied().fold(f64::MIN, f64::max)).collect::<Vec<_>>();
            let times = |x: &[f64], matrix: &[f64], columns: usize| (0..columns).map(|j| x.iter().enumerate().map(|(i, x)| x * matrix[i * columns + j]).sum::<f64>()).collect::<Vec<_>>();
            let tokens = batch.dims()[1];
            let numbers = values(&x.to_data());
            let mut expected = vec![];
            for (i, example) in examples(&base).iter().enumerate() {
                let real = &numbers[i * tokens * 24..][..example.ids.len() * 24];
                let inner: Vec<f64> = times(&largest(real), &own["down"], 7).iter().map(|z| z / (1.0 + (-z).exp())).collect();
                let inner = times(&inner, &own["up"], 24);
                let mean = inner.iter().sum::<f64>() / 24.0;
                let spread = (inner.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / 24.0 + 1e-5).sqrt();
                let query: Vec<f64> = inner.iter().zip(&own["norm.gain"]).zip(&own["norm.bias"]).map(|((z, g), b)| (z - mean) / spread * g + b).collect();
                let scores: Vec<f64> = all.iter().map(|p| (largest(p).iter().zip(&query).map(|(p, h)| p * h).sum::<f64>() / TEMPERATURE).exp()).collect();
                let sum: f64 = scores.iter().sum();
                expected.extend((0..96).map(|k| (own["prompt"][k] + all.iter().zip(&scores).map(|(p, a)| a / sum * p[k]).sum::<f64>()) as f32));
            }
            let expected = Tensor::<3>::from_data(TensorData::new(expected, [5, 4, 24]), base.device());
            assert_close(prompts(&attempt, &base, &batch, x), expected, SAME_FUNCTION, "P(x)");
        }
    }

    #[test]
    fn without_a_query_the_prompts_are_averaged(seed: u64) {
        for base in bases() {
            let silent = changed(&random(&base, seed), |values| for name in ["up", "norm.bias"] {
                let zero = TensorData::zeros::<f32, _>(values[name].shape().clone());
                values.insert(name.into(), zero);
            });
            let own = tensors(&silent);
            let prompt = Tensor::<2>::from_data(own["prompt"].clone(), base.device()).unsqueeze::<3>();
            let all = Tensor::cat(vec![Tensor::<3>::from_data(own["sources"].clone(), base.device()), prompt.clone()], 0);
            let expected = (all.mean_dim(0) + prompt).expand([5, 4, 24]);
            assert_close(prompts(&silent, &base, &batch(&base), words(&base, seed)), expected, SAME_FUNCTION, "the mean");
        }
    }

    #[test]
    fn prompts_alike_are_twice_one(seed: u64) {
        for base in bases() {
            let alike = changed(&random(&base, seed), |values| {
                let one: Vec<f32> = values["prompt"].iter().collect();
                values.insert("sources".into(), TensorData::new(one.repeat(3), [3, 4, 24]));
            });
            let twice = Tensor::<2>::from_data(tensors(&alike)["prompt"].clone(), base.device()) * 2.0;
            let stacks = base.shape().stacks().len();
            let tuned = PromptTuningConfig::new(4).init(&base, 0).unwrap();
            let tuned = super::with(tuned, "prompt_embeddings", twice.repeat_dim(0, stacks));
            let batch = batch(&base);
            assert_close(run(&alike, &base, &batch), run(&tuned, &base, &batch), SAME_FUNCTION, "2 P");
        }
    }

    #[test]
    fn the_order_of_tokens_and_sources_does_not_matter(seed: u64) {
        for base in bases() {
            let (attempt, x) = (random(&base, seed), words(&base, seed));
            let batch = Batch { padding: None, ..batch(&base) };
            let turned = changed(&attempt, |values| {
                let sources = Tensor::<3>::from_data(values["sources"].clone(), base.device());
                values.insert("sources".into(), pick(sources, 0, &[2, 0, 1]).into_data());
            });
            let mut order: Vec<usize> = (0..batch.dims()[1]).collect();
            order.rotate_left(5);
            let found = prompts(&turned, &base, &batch, pick(x.clone(), 1, &order));
            assert_close(found, prompts(&attempt, &base, &batch, x), SAME_FUNCTION, "another order");
        }
    }
}

#[test]
fn sources_stay_as_they_are() {
    let base = base("roberta-tiny", &device());
    let config = AttemptConfig::new(4).with_attention_width(7);
    let start = config.init_from(&base, 1, &sources(&base, 1)).unwrap();
    assert_eq!(config.learned(&start, base.shape()).num_sources, 3);
    let rows = |attempt: &Attempt, i: usize| values(&tensors(attempt)["sources"])[i * 96..][..96].to_vec();
    assert_eq!(values(&tensors(&start)["prompt"]), rows(&start, 0));
    let settings = TrainConfig { weight_decay: 0.1, ..TrainConfig::new(1e-2).with_steps(2) };
    let trained = Trained::new(start.clone(), Head::classifier(&base, 2, 3)).unwrap();
    let mut steps = Run::new(&settings, base.clone(), trained).unwrap();
    steps.step(&examples(&base)).unwrap();
    let after = &steps.trained.tuner;
    assert!((0..3).all(|i| rows(after, i) == rows(&start, i)));
    assert_ne!(tensors(after)["prompt"], tensors(&start)["prompt"]);
}
