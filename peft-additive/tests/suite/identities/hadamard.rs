use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use peft_additive::{Hadamard, HadamardConfig, Ia3Config, Position};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, batch, device, examples, fixtures::SHAPES, randomized};
use peft_core::train::{Probe, Run, TrainConfig, Trainer};
use peft_core::view::{tensors, with_values};
use peft_core::{Bare, Base, Head, Method, Part, Procedure, Sites, Trained};
use proptest::prelude::*;

use super::{bases, run};

fn random(config: &HadamardConfig, base: &Base, seed: u64) -> Hadamard {
    randomized(&config.init(base, seed).unwrap(), seed)
}

fn positions() -> [HadamardConfig; 2] {
    [Position::Heads, Position::Output].map(|position| HadamardConfig::new().with_position(position))
}

/// The same adapter with other numbers, by the name and place of each.
fn map(hadamard: Hadamard, f: impl Fn(&str, usize, f32) -> f32) -> Hadamard {
    let changed = |(name, data): (String, TensorData)| {
        let values: Vec<f32> = data.iter::<f32>().enumerate().map(|(i, x)| f(&name, i, x)).collect();
        (name, TensorData::new(values, data.shape().clone()))
    };
    let values = tensors(&hadamard).into_iter().map(changed).collect();
    with_values(hadamard, &values).unwrap()
}

#[test]
fn equals_the_derivation_of_hadamard() {
    for (case, base) in
        [("hadamard", "roberta-classify"), ("hadamard-output-bert", "bert-classify"), ("hadamard-t5", "t5")]
    {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        Case::open(dir, base).check_method::<HadamardConfig>();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// With its normalizations, on models whose maps have biases; on others there is no form for the weights.
    #[test]
    fn a_hadamard_adapter_folds_into_a_projection(seed: u64) {
        for base in SHAPES.map(|shape| base(shape, &device())) {
            for config in positions() {
                let hadamard = random(&config, &base, seed).valid();
                let merge = HadamardConfig::merge(&hadamard);
                prop_assert_eq!(merge.is_none(), base.shape().pre_norm());
                let Some(merge) = merge else { continue };
                let batch = batch(&base);
                let unmerged = run(&hadamard, &base, &batch);
                assert_close(run(&Bare {}, &base.merged(merge), &batch), unmerged, MERGED, "merged");
            }
        }
    }

    /// The weights of an attention have the sum 1: a factor of each value is one of the heads, and so would be a shift.
    #[test]
    fn a_hadamard_adapter_without_a_bias_scales_the_values(seed: u64) {
        for base in bases() {
            let config = HadamardConfig::new().with_train_layernorm(false);
            let hadamard = map(random(&config, &base, seed), |name, _, x| if name.starts_with("biases.") { 0.0 } else { x });
            let factors = tensors(&hadamard).into_iter().filter_map(|(name, data)| {
                let name = name.strip_prefix("weights.")?.replace("output", "value");
                Some((format!("outputs.{name}"), TensorData::new(data.iter::<f32>().collect::<Vec<_>>(), [24, 1])))
            });
            let ia3 = Ia3Config::new().with_sites(Part::Value, Sites::Parts(vec![])).init(&base, 0).unwrap();
            let ia3 = with_values(ia3, &factors.collect()).unwrap();
            let batch = batch(&base);
            assert_close(run(&hadamard, &base, &batch), run(&ia3, &base, &batch), SAME_FUNCTION, "(IA)^3");
        }
    }

    /// (w, b) and then (v, c) are (w v, b v + c); in front of a map the outer one comes first.
    #[test]
    fn two_hadamard_adapters_in_a_row_are_one(seed: u64) {
        for base in bases() {
            for config in positions() {
                let config = config.with_train_layernorm(false);
                let [outer, inner] = [seed, seed ^ 1].map(|seed| random(&config, &base, seed));
                let [first, second] = if config.position == Position::Heads { [&outer, &inner] } else { [&inner, &outer] };
                let then = tensors(second);
                let number = |field: &str, name: &str, i: usize| {
                    let site = name.split_once('.').unwrap().1;
                    then[&format!("{field}.{site}")].iter::<f32>().nth(i).unwrap()
                };
                let one = map(first.clone(), |name, i, x| {
                    let shift = if name.starts_with("biases.") { number("biases", name, i) } else { 0.0 };
                    x * number("weights", name, i) + shift
                });
                let batch = batch(&base);
                assert_close(run(&(outer, inner), &base, &batch), run(&one, &base, &batch), SAME_FUNCTION, "one");
            }
        }
    }

    #[test]
    fn a_layer_left_out_is_the_bases(seed: u64) {
        for base in SHAPES.map(|shape| base(shape, &device())) {
            for config in positions() {
                let some = random(&config.clone().with_layers([1]), &base, seed);
                let all = with_values(config.init(&base, 0).unwrap(), &tensors(&some)).unwrap();
                let batch = batch(&base);
                prop_assert_eq!(run(&some, &base, &batch).into_data(), run(&all, &base, &batch).into_data());
                prop_assert_ne!(run(&some, &base, &batch).into_data(), run(&random(&config, &base, seed), &base, &batch).into_data());
            }
        }
    }
}

/// Not even decay moves the adapter in the first stage, and all of it moves in the second.
#[test]
fn the_head_is_trained_first() {
    let base = base("roberta-tiny", &device());
    let config = HadamardConfig::new().with_head_steps(3);
    let (head, examples) = (Head::classifier(&base, 2, 3), examples(&base));
    let hadamard = config.init(&base, 0).unwrap().prepare(&base, Probe::new(&head, &examples)).unwrap();
    let start = Trained::new(hadamard, head).unwrap();
    let settings = TrainConfig { warmup_steps: 0, weight_decay: 0.1, ..TrainConfig::new(1e-2).with_steps(5) };
    let mut steps = Run::new(&settings, base.clone(), start.clone()).unwrap();
    for step in 1..=5 {
        let before = tensors(&steps.trained);
        steps.step(&examples).unwrap();
        for (name, data) in tensors(&steps.trained) {
            let moves = step > 3 || name.starts_with("head.");
            assert_eq!(data != before[&name], moves, "{name} in step {step}");
        }
    }
    let late = Trainer::new(TrainConfig::new(1e-2).with_steps(3));
    let error = late.run(&base, start, &examples, None, &mut ()).unwrap_err().to_string();
    assert!(error.contains("3 of head, 0 of adapters"), "{error}");
}

#[test]
fn factors_do_not_decay() {
    let hadamard = HadamardConfig::new().init(&base("bert-tiny", &device()), 0).unwrap();
    let names: Vec<String> = tensors(&hadamard).into_keys().collect();
    assert!(names.iter().all(|name| hadamard.decays(name) != name.starts_with("weights.")));
}

#[test]
fn what_a_hadamard_adapter_cannot_be_is_refused_by_name() {
    let base = base("t5-tiny", &device());
    for layers in [vec![], vec![3], vec![1, 1]] {
        let config = HadamardConfig::new().with_layers(layers.clone());
        for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
            let expected = format!("layers: {layers:?} is not allowed, expected different layers from 0 to 2");
            assert!(message.to_string().contains(&expected), "{message}");
        }
    }
    let config = HadamardConfig::new().with_head_steps(usize::MAX);
    let message = config.init(&base, 0).unwrap_err().to_string();
    assert!(message.contains("head_steps") && message.contains("at most 1000000000"), "{message}");
}
