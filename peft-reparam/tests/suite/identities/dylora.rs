use std::collections::BTreeSet;

use burn::optim::GradientsParams;
use peft_core::random::Random;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{
    assert_close, base, batch, conformance::loss, device, examples, golden::named, randomized, states,
};
use peft_core::train::{Run, TrainConfig, Trainer};
use peft_core::view::tensors;
use peft_core::{Base, Head, Method, Part, Procedure, Shape, Trained, Tuner};
use peft_reparam::{DyLora, DyLoraConfig, LoraConfig};
use proptest::prelude::*;

use super::{bases, run, with};

const RANK: usize = 4;

fn config() -> DyLoraConfig {
    DyLoraConfig::new(RANK).with_alpha(5.0).with_sites(Part::Query | Part::Down)
}

fn random(config: &DyLoraConfig, base: &Base, seed: u64) -> DyLora {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// Which component a tensor is of, counted from 0.
fn component(name: &str) -> usize {
    name.rsplit('.').nth(1).unwrap().parse().unwrap()
}

/// The rank of a step.
fn drawn(config: &DyLoraConfig, seed: u64, step: usize) -> usize {
    config.r_min + Random::new(seed, &format!("sample of step {step}")).below(config.r + 1 - config.r_min)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn a_served_rank_is_a_lora_of_that_rank(seed: u64) {
        for base in bases() {
            let dylora = random(&config(), &base, seed);
            for rank in 1..=RANK {
                let served = dylora.clone().with_rank(rank);
                let (lora_config, lora) = config().as_lora(&served, &base).unwrap();
                prop_assert_eq!((lora_config.r, lora_config.lora_alpha), (rank, 5.0));
                let batch = batch(&base);
                assert_close(run(&served, &base, &batch), run(&lora, &base, &batch), SAME_FUNCTION, "a LoRA");
            }
        }
    }

    #[test]
    fn components_behind_the_rank_do_nothing(seed: u64, rank in 1..RANK) {
        for base in bases() {
            let (dylora, other) = (random(&config(), &base, seed), tensors(&random(&config(), &base, seed ^ 1)));
            let served = |dylora: &DyLora| states(&dylora.clone().with_rank(rank), &base).into_data();
            let with_from = |least: usize| {
                let behind = other.clone().into_iter().filter(|(name, _)| component(name) >= least);
                served(&with(dylora.clone(), behind))
            };
            prop_assert!(with_from(rank) == served(&dylora), "what is behind rank {}", rank);
            prop_assert!(with_from(rank - 1) != served(&dylora), "the last of rank {}", rank);
        }
    }

    /// Adam moves what has a gradient, and weight decay what is decayed: nothing else.
    #[test]
    fn a_step_trains_what_it_drew(seed in 0..1000u64, frozen: bool) {
        let base = base("roberta-tiny", &device());
        let config = DyLoraConfig { frozen, ..config() };
        let data = examples(&base);
        let start = Trained::new(random(&config, &base, seed), Head::classifier(&base, 2, 3)).unwrap();
        let settings = TrainConfig { seed, weight_decay: 0.1, ..TrainConfig::new(1e-2).with_batch_size(5).with_steps(6) };
        let mut run = Run::new(&settings, base, start).unwrap();
        for step in 0..6 {
            let before = tensors(&run.trained.tuner);
            run.step(&data).unwrap();
            let rank = drawn(&config, seed, step);
            for (name, after) in tensors(&run.trained.tuner) {
                let trained = component(&name) < rank && !(frozen && component(&name) + 1 < rank);
                prop_assert_eq!(before[&name] != after, trained, "{} of rank {}", name, rank);
            }
        }
    }
}

/// In a frozen step the gradient of the last component is the one that it has when all are trained.
#[test]
fn a_frozen_step_has_the_last_gradient() {
    let base = base("roberta-tiny", &device());
    let dylora = random(&config(), &base, 3);
    let gradients = |frozen: bool| {
        let config = DyLoraConfig { frozen, ..config() };
        let tuner =
            with(config.init(&base, 0).unwrap(), tensors(&dylora)).sample(&mut Random::new(3, "sample of step 9"));
        named(&tuner, &GradientsParams::from_grads(loss(tuner.run(&base, &batch(&base)).unwrap()).backward(), &tuner))
    };
    let (whole, last) = (gradients(false), gradients(true));
    let rank = drawn(&config(), 3, 9);
    assert!(rank > 1 && rank < RANK, "{rank} tells nothing");
    assert!(last.keys().all(|name| component(name) + 1 == rank) && whole.len() == rank * last.len());
    assert!(last.iter().all(|(name, gradient)| whole[name] == *gradient));
}

#[test]
fn every_rank_is_drawn() {
    let config = config().with_min(2);
    let base = base("roberta-tiny", &device());
    let data = examples(&base);
    let start = Trained::new(random(&config, &base, 0), Head::classifier(&base, 2, 3)).unwrap();
    let settings = TrainConfig::new(1e-2).with_batch_size(5).with_steps(20);
    let mut run = Run::new(&settings, base, start).unwrap();
    let mut ranks = BTreeSet::new();
    for _ in 0..20 {
        let before = tensors(&run.trained.tuner);
        run.step(&data).unwrap();
        let moved = tensors(&run.trained.tuner).into_iter().filter(|(name, after)| before[name] != *after);
        ranks.insert(moved.map(|(name, _)| component(&name) + 1).max().unwrap());
    }
    assert_eq!(ranks, BTreeSet::from([2, 3, 4]));
}

#[test]
fn with_one_rank_to_draw_a_run_is_that_of_lora() {
    let base = base("roberta-tiny", &device());
    let data = examples(&base);
    let config = config().with_min(RANK);
    let start = config.init(&base, 3).unwrap();
    let (lora_config, lora) = config.as_lora(&start, &base).unwrap();
    let trainer = || Trainer::new(TrainConfig::new(1e-2).with_batch_size(5).with_steps(5));
    let head = Head::classifier(&base, 2, 3);
    let dylora = trainer().run(&base, Trained::new(start, head.clone()).unwrap(), &data, None, &mut ()).unwrap();
    let lora = trainer().run(&base, Trained::new(lora, head).unwrap(), &data, None, &mut ()).unwrap();
    assert_eq!(lora_config.r, RANK);
    assert_close(states(&dylora.tuner, &base), states(&lora.tuner, &base), SAME_FUNCTION, "after five steps");
}

#[test]
fn counts_are_those_of_lora_at_the_largest_rank() {
    let count = |name: &str| DyLoraConfig::new(8).count(&Shape::named(name).unwrap()).unwrap();
    assert_eq!([count("roberta-base"), count("llama-7b")], [294_912, 4_194_304]);
    assert_eq!(LoraConfig::new(8).count(&Shape::named("roberta-base").unwrap()).unwrap(), 294_912);
}

#[test]
fn impossible_settings_are_named() {
    let base = base("roberta-tiny", &device());
    for (config, key) in [
        (DyLoraConfig::new(0), "r: 0"),
        (config().with_min(0), "r_min: 0"),
        (config().with_min(5), "r_min: 5"),
        (config().with_rank(5), "rank: 5"),
        (config().with_alpha(0.0), "lora_alpha: 0"),
        (config().with_dropout(1.0), "lora_dropout: 1"),
    ] {
        let message = config.init(&base, 0).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(key), "{key} is not in: {message}");
    }
}
