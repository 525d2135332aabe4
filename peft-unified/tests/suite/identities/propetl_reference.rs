//! ProPETL against what `scripts/golden/propetl.py` derives anew from the paper and the authors' code.

use std::path::Path;

use burn::module::Module;
use peft_additive::{Init, PrefixTuningConfig, SequentialConfig};
use peft_core::testing::tolerances::STANDARD_ERRORS;
use peft_core::testing::{base, device, golden::Case};
use peft_core::view::tensors;
use peft_core::{AnyMethod, AnyTuner, Head, Over, Procedure, Trained};
use peft_reparam::LoraConfig;
use peft_unified::{ProPetlConfig, Sharing};

use super::values;

/// Logits, gradients and ten steps in which masks change.
fn check(name: &str, config: &ProPetlConfig) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let case = Case::open(golden, "roberta-classify");
    let tuner = config.init(&case.base, 0).unwrap();
    let trained = case.check_from_start(Trained::new(tuner, Head::classifier(&case.base, 3, 0)).unwrap());
    let masks = tensors(&AnyMethod::from(config.clone()).to_saved(AnyTuner::new(trained.tuner.valid())));
    let masks: Vec<_> = masks.into_iter().filter(|(name, _)| name.starts_with("scores.")).collect();
    assert!(!masks.is_empty());
    for (name, mask) in masks {
        assert_eq!(values(&mask), values(&case.expected(&format!("masks.tuner.{name}"))), "{name}");
    }
}

#[test]
fn adapters_equal_the_reference() {
    let config = ProPetlConfig::new(SequentialConfig::pfeiffer(5)).with_density(0.5).with_mask_rate(3.0);
    check("propetl-adapter", &config);
}

#[test]
fn prefixes_equal_the_reference() {
    let prefix = PrefixTuningConfig::new(4).with_projection(11).with_shift_positions(false);
    check("propetl-prefix", &ProPetlConfig::new(prefix).with_density(0.3).with_mask_rate(3.0));
}

#[test]
fn lora_equals_the_reference() {
    let config = ProPetlConfig::new(LoraConfig::new(3).with_alpha(4.0)).with_density(0.4).with_mask_rate(3.0);
    check("propetl-lora", &config);
}

/// How far the mean of numbers is from what it should be, in its standard errors.
fn off(numbers: &[f64], expected: f64) -> f64 {
    let n = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    let square = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    (mean - expected) / (square / n).sqrt()
}

fn squares(numbers: &[f64]) -> Vec<f64> {
    numbers.iter().map(|x| x * x).collect()
}

/// Both matrices normal with deviation 0.02, not cut off; biases 0.
#[test]
fn adapters_start_as_in_the_reference() {
    let (_, usual) = Sharing::usual(AnyMethod::of::<SequentialConfig>());
    let inner: SequentialConfig = usual.downcast_ref().cloned().unwrap();
    assert_eq!((inner.init, inner.init_std), (Init::Normal, 0.02));
    let base = base("roberta-tiny", &device());
    let start = tensors(&ProPetlConfig::new(inner.with_bottleneck(48)).init(&base, 1).unwrap());
    for (name, data) in start.iter().filter(|(name, _)| name.starts_with("prototype.")) {
        let numbers: Vec<f64> = values(data).into_iter().map(f64::from).collect();
        if name.ends_with("bias") {
            assert!(numbers.iter().all(|x| *x == 0.0), "{name}");
            continue;
        }
        let limit = f64::from(STANDARD_ERRORS.0);
        assert!(off(&numbers, 0.0).abs() <= limit && off(&squares(&numbers), 4e-4).abs() <= limit, "{name}");
        assert!(numbers.iter().any(|x| x.abs() > 0.04), "{name} is not cut off");
    }
}

/// Uniform within 1 / sqrt(fan), the fan by torch's rule for the tensors that the authors' code has scores in.
#[test]
fn scores_start_within_the_bounds_of_the_reference() {
    fn check(config: &ProPetlConfig, fans: &[(&str, f64)]) {
        let base = base("roberta-tiny", &device());
        let start = tensors(&config.init(&base, 1).unwrap());
        let scores: Vec<_> = start.iter().filter(|(name, _)| name.starts_with("scores.")).collect();
        for (end, fan) in fans {
            let of = scores.iter().filter(|(name, _)| name.ends_with(end));
            let numbers: Vec<f64> = of.flat_map(|(_, data)| values(data)).map(f64::from).collect();
            let (bound, largest) = (1.0 / fan.sqrt(), numbers.iter().fold(0.0f64, |a, b| a.max(b.abs())));
            assert!(largest <= bound * (1.0 + f64::from(f32::EPSILON)) && largest > 0.9 * bound, "{end}: {largest}");
            let off = off(&squares(&numbers), bound * bound / 3.0);
            assert!(off.abs() <= f64::from(STANDARD_ERRORS.0), "{end}: {off} standard errors");
        }
        assert_eq!(
            scores.iter().filter(|(name, _)| fans.iter().any(|(end, _)| name.ends_with(end))).count(),
            scores.len()
        );
    }
    let (d, m, r, l) = (24.0, 5.0, 3.0, 4.0);
    check(&ProPetlConfig::new(SequentialConfig::pfeiffer(5)), &[("down.weight", m), ("up.weight", d)]);
    check(&ProPetlConfig::new(LoraConfig::new(3)), &[(".a", d), (".b", r)]);
    check(&ProPetlConfig::new(PrefixTuningConfig::new(4).with_projection(7)), &[("embedding", l * 2.0 * d)]);
}

/// Of the scripts for RoBERTa: 3e-3, 3e-2 and 1e-4 for scores beside 1e-4.
#[test]
fn scores_learn_faster_by_the_factors_of_the_reference() {
    fn factor(inner: impl Into<AnyMethod>) -> f64 {
        let tuner = ProPetlConfig::new(inner).init(&base("roberta-tiny", &device()), 0).unwrap();
        assert_eq!(tuner.rate("prototype.x", 0.5), 0.5);
        tuner.rate("scores.0.x", 0.5) / 0.5
    }
    assert_eq!(factor(SequentialConfig::pfeiffer(5)), 30.0);
    assert_eq!(factor(LoraConfig::new(3)), 300.0);
    assert_eq!(factor(PrefixTuningConfig::new(4)), 1.0);
}
