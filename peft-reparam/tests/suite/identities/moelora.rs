use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, batch, conformance::loss, device, examples, golden::named, randomized};
use peft_core::view::tensors;
use peft_core::{Bare, Base, Batch, Method, Shape, Tuner};
use peft_reparam::{LoraConfig, MoeLora, MoeLoraConfig};
use proptest::prelude::*;

use super::{bases, pick, run, with};

const EXPERTS: usize = 3;
const RANK: usize = 6;

fn config() -> MoeLoraConfig {
    MoeLoraConfig::new(2).with_experts(EXPERTS, RANK).with_alpha(5.0).with_dropout(0.0).with_embedding(5)
}

fn random(config: &MoeLoraConfig, base: &Base, seed: u64) -> MoeLora {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// The tests' batch with all sequences of one task.
fn of_task(base: &Base, task: usize) -> Batch {
    let mut examples = examples(base);
    examples.iter_mut().for_each(|example| example.task = task);
    base.batch(&examples.iter().collect::<Vec<_>>()).unwrap()
}

/// With new values of some tensors, by their names.
fn changed(moelora: &MoeLora, base: &Base, f: impl Fn(&str, Tensor<2>) -> Tensor<2>) -> MoeLora {
    let values = tensors(moelora).into_iter();
    let values = values.map(|(name, data)| {
        let value = f(&name, Tensor::from_data(data, base.device()));
        (name, value.into_data())
    });
    with(moelora.clone(), values)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn one_expert_is_lora(seed: u64) {
        for base in bases() {
            let moelora = random(&config().with_experts(1, RANK), &base, seed);
            let lora = LoraConfig::new(RANK).with_alpha(5.0).with_sites(config().target_modules);
            let values = tensors(&moelora).into_iter();
            let factors = values.filter_map(|(name, data)| Some((format!("factors.{}", name.strip_prefix("maps.")?), data)));
            let lora = with(lora.init(&base, 0).unwrap(), factors);
            let batch = batch(&base);
            assert_close(run(&moelora, &base, &batch), run(&lora, &base, &batch), SAME_FUNCTION, "a LoRA");
        }
    }

    #[test]
    fn a_task_is_a_lora(seed: u64) {
        for base in bases() {
            let moelora = random(&config(), &base, seed);
            let loras = [0, 1].map(|task| config().lora_of_task(&moelora, task, &base).unwrap().1);
            for (task, lora) in loras.iter().enumerate() {
                let batch = of_task(&base, task);
                let (found, expected) = (run(&moelora, &base, &batch), run(lora, &base, &batch));
                assert_close(found, expected, SAME_FUNCTION, "a LoRA");
            }
            prop_assert_ne!(tensors(&loras[0]), tensors(&loras[1]));
        }
    }

    #[test]
    fn the_lora_of_a_task_merges(seed: u64, task in 0..2usize) {
        for base in bases() {
            let moelora = random(&config(), &base, seed).valid();
            let (_, lora) = config().lora_of_task(&moelora, task, &base).unwrap();
            let (batch, merged) = (of_task(&base, task), base.merged(&lora.valid()));
            assert_close(run(&Bare {}, &merged, &batch), run(&moelora, &base, &batch), MERGED, "merged");
        }
    }

    #[test]
    fn experts_of_one_weight_are_a_lora(seed: u64) {
        for base in bases() {
            let moelora = random(&config(), &base, seed);
            let uniform = changed(&moelora, &base, |name, value| if name == "gate" { value.zeros_like() } else { value });
            let lora = LoraConfig::new(RANK).with_alpha(5.0 / EXPERTS as f64).with_sites(config().target_modules);
            let values = tensors(&moelora).into_iter();
            let factors = values.filter_map(|(name, data)| Some((format!("factors.{}", name.strip_prefix("maps.")?), data)));
            let lora = with(lora.init(&base, 0).unwrap(), factors);
            let batch = batch(&base);
            assert_close(run(&uniform, &base, &batch), run(&lora, &base, &batch), SAME_FUNCTION, "a LoRA");
        }
    }

    #[test]
    fn the_order_of_the_experts_does_not_matter(seed: u64) {
        for base in bases() {
            let moelora = random(&config(), &base, seed);
            // Experts 2, 0 and 1, each of two components.
            let (components, experts) = ([4, 5, 0, 1, 2, 3], [2, 0, 1]);
            let moved = changed(&moelora, &base, |name, value| match name.rsplit('.').next() {
                Some("a") => pick(value, 1, &components),
                Some("b") => pick(value, 0, &components),
                Some("gate") => pick(value, 1, &experts),
                _ => value,
            });
            prop_assert_ne!(tensors(&moelora), tensors(&moved));
            let batch = batch(&base);
            assert_close(run(&moved, &base, &batch), run(&moelora, &base, &batch), SAME_FUNCTION, "in another order");
        }
    }

    #[test]
    fn a_task_trains_its_embedding_and_all_experts(seed: u64, task in 0..2usize) {
        for base in bases() {
            let moelora = random(&config(), &base, seed);
            let loss = loss(moelora.run(&base, &of_task(&base, task)).unwrap());
            let gradients = named(&moelora, &GradientsParams::from_grads(loss.backward(), &moelora));
            let largest = |data: &TensorData, rows: std::ops::Range<usize>, dim: usize| {
                let gradient = Tensor::<2>::from_data(data.clone(), base.device());
                gradient.narrow(dim, rows.start, rows.len()).abs().max().into_scalar::<f32>()
            };
            for other in 0..2 {
                prop_assert_eq!(largest(&gradients["tasks"], other..other + 1, 0) > 0.0, other == task);
            }
            for (name, data) in gradients.iter().filter(|(name, _)| name.ends_with(".a")) {
                for expert in 0..EXPERTS {
                    prop_assert!(largest(data, 2 * expert..2 * expert + 2, 1) > 0.0, "{} of expert {}", name, expert);
                }
            }
        }
    }
}

#[test]
fn counts_are_those_of_the_experts_and_of_the_gate() {
    let count = |name: &str| MoeLoraConfig::default().count(&Shape::named(name).unwrap()).unwrap();
    // Without the row of the table that stands for no task.
    assert_eq!([count("roberta-base"), count("llama-7b")], [2_655_808 - 64, 39_978_560 - 64]);
}

#[test]
fn impossible_settings_are_named() {
    let base = base("roberta-tiny", &device());
    for (config, key) in [
        (config().with_experts(4, 6), "expert_num: 4"),
        (config().with_experts(0, 6), "expert_num: 0"),
        (config().with_experts(3, 0), "r: 0"),
        (MoeLoraConfig { task_num: 0, ..config() }, "task_num: 0"),
        (config().with_embedding(0), "task_embedding_dim: 0"),
        (config().with_alpha(f64::INFINITY), "lora_alpha: inf"),
    ] {
        let message = config.init(&base, 0).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(key), "{key} is not in: {message}");
    }
    let moelora = random(&config(), &base, 0);
    let message = config().lora_of_task(&moelora, 2, &base).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("task: 2"), "{message}");
}
