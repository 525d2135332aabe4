use std::collections::BTreeMap;

use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::train::{TrainConfig, largest};
use peft_core::view::tensors;
use peft_core::{Base, Example, Method};
use peft_partial::SamConfig;
use proptest::prelude::*;

use super::fish_mask::check_run;
use super::{assert_largest, bases, data, drawn, gradient, masks, settings, start, train};

/// The sizes of the gradients of batches, summed with their signs.
fn sizes(base: &Base, settings: &TrainConfig, batches: usize) -> BTreeMap<String, Vec<f32>> {
    let data = data(base);
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for batch in drawn(settings.seed, base).chunks(settings.batch_size).take(batches) {
        let examples: Vec<&Example> = batch.iter().map(|place| &data[*place]).collect();
        for (name, gradient) in gradient(base, &examples) {
            let sum = sums.entry(name).or_insert_with(|| vec![0.0; gradient.len()]);
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
    }
    sums.values_mut().flatten().for_each(|sum| *sum = sum.abs());
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn the_mask_is_what_has_the_largest_summed_gradients(seed: u64, share in 0.01..0.6, batches in 1usize..4) {
        for base in bases() {
            let settings = TrainConfig { batch_size: 2, ..settings(seed) };
            let scores = sizes(&base, &settings, batches);
            let config = SamConfig::new(share).with_burn_in(batches);
            let tuner = train(settings, &base, start(&config, &base)).tuner;
            let mask = masks(&tensors(&tuner), &base.shape().places());
            assert_largest(&mask, &scores, (share * base.shape().count() as f64) as usize);
        }
    }

    #[test]
    fn the_scope_decides_where_the_budget_goes(seed: u64, share in 0.005..0.6) {
        for base in bases() {
            let places = base.shape().places();
            let scores = sizes(&base, &settings(seed), usize::MAX);
            let config = SamConfig::new(share).per_tensor();
            let tuner = train(settings(seed), &base, start(&config, &base)).tuner;
            for (name, mask) in masks(&tensors(&tuner), &places) {
                let count = (share * mask.len() as f64) as usize;
                assert_largest(&[(name, mask)].into(), &scores, count);
            }
            let all: usize = places.iter().map(|place| (share * place.count() as f64) as usize).sum();
            prop_assert_eq!(config.count(base.shape()).unwrap(), all);
        }
    }
}

proptest! {
    /// Of a loss g d + h d^2 / 2 the most that k numbers can take away, by trying all choices.
    #[test]
    fn the_choice_is_the_best_of_all_of_its_size(g in prop::collection::vec(-2f32..2.0, 8), h in 0.1f32..3.0, k in 1usize..8) {
        // The least of g d + h d^2 / 2 is found by steps down its slope.
        let gain = |g: f32| -> f64 {
            let d = (0..200).fold(0f64, |d, _| d - (f64::from(g) + f64::from(h) * d) * 0.3);
            -(f64::from(g) * d + f64::from(h) * d * d / 2.0)
        };
        let gains: Vec<f64> = g.iter().map(|g| gain(*g)).collect();
        let of = |chosen: &dyn Fn(usize) -> bool| (0..8).filter(|i| chosen(*i)).map(|i| gains[i]).sum::<f64>();
        let choices = (0u32..256).filter(|choice| choice.count_ones() as usize == k);
        let best = choices.map(|choice| of(&|i| choice >> i & 1 == 1)).fold(0.0, f64::max);
        let sizes = BTreeMap::from([("w".to_string(), g.iter().map(|g| g.abs()).collect::<Vec<f32>>())]);
        let mask = &largest(&sizes, k)["w"];
        prop_assert!((of(&|i| mask[i]) - best).abs() <= f64::from(SAME_FUNCTION.0) * best.max(1.0));
    }
}

#[test]
fn a_run_of_sam_is_that_of_the_reference() {
    check_run("sam-run", &SamConfig::new(0.02));
    check_run("sam-per-tensor-run", &SamConfig::new(0.02).per_tensor());
}
