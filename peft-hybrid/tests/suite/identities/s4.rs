use std::collections::BTreeMap;

use burn::module::Module;
use peft_additive::{PrefixTuningConfig, SequentialConfig};
use peft_core::testing::fixtures::ENCODERS;
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, device, randomized, states};
use peft_core::view::{tensors, with_values};
use peft_core::{AnyMethod, AnyTuner, Bare, Base, Method, Shape, Stack};
use peft_hybrid::Strategy::{Adapter, Bias, Lora, Prefix};
use peft_hybrid::{S4, S4Config};
use peft_partial::BitFitConfig;
use peft_reparam::LoraConfig;
use proptest::prelude::*;

use super::bases;

/// RoBERTa-base with another number of layers.
fn shape(layers: usize) -> Shape {
    Shape { layers, ..Shape::named("roberta-base").unwrap() }
}

fn sizes(layers: usize) -> Vec<usize> {
    let (config, shape) = (S4Config::default(), shape(layers));
    config.layers(&shape).unwrap().iter().map(|group| group.layers.len()).collect()
}

#[test]
fn sizes_are_those_of_a_spindle() {
    assert_eq!([4, 5, 6, 12, 24].map(sizes), [[1, 1, 1, 1], [1, 2, 1, 1], [1, 2, 2, 1], [2, 4, 4, 2], [4, 8, 8, 4]]);
    for layers in 6..100 {
        let sizes = sizes(layers);
        assert!(sizes[0] < sizes[1] && sizes[1].abs_diff(sizes[2]) <= 1 && sizes[2] > sizes[3], "{sizes:?}");
        assert!(sizes[1].abs_diff(2 * sizes[0]) <= 1 && sizes[2].abs_diff(2 * sizes[3]) <= 1, "{sizes:?}");
    }
}

/// The same numbers in a plain method, whose tensors are of all layers.
fn plain<M: Method>(config: M, s4: &S4, base: &Base) -> AnyTuner {
    let own = tensors(s4).into_iter().map(|(name, data)| {
        let name = name.strip_prefix("methods.parts.").and_then(|name| name.split_once('.')).unwrap();
        (name.1.to_string(), data)
    });
    let values: BTreeMap<_, _> = own.collect();
    let start = config.init(base, 0).unwrap();
    assert_eq!(tensors(&start).into_keys().collect::<Vec<_>>(), values.keys().cloned().collect::<Vec<_>>());
    AnyTuner::new(with_values(start, &values).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn groups_of_layers_are_runs_that_cover_them(layers in 4usize..60, groups in 1usize..5, decoder in 4usize..60) {
        let mut t5 = Shape::named("t5-base").unwrap();
        t5.layers = layers;
        if let peft_core::Architecture::T5(own) = &mut t5.architecture {
            own.decoder_layers = decoder;
        }
        let config = S4Config::new(1, 1, 1).with_groups(vec![vec![Lora]; groups]);
        let found = config.layers(&t5).unwrap();
        prop_assert_eq!(found.len(), 2 * groups);
        for (stack, layers) in [(Stack::Encoder, layers), (Stack::Decoder, decoder)] {
            let own = found.iter().filter(|group| group.stack == stack);
            prop_assert!(own.clone().all(|group| !group.layers.is_empty()));
            let all: Vec<usize> = own.flat_map(|group| group.layers.clone()).collect();
            prop_assert_eq!(all, (0..layers).collect::<Vec<_>>());
        }
    }

    /// The smallest unit is a virtual token's, a width's of an adapter or a rank's.
    #[test]
    fn layers_train_the_same_up_to_a_unit(share in 0.002..0.1f64) {
        let shape = shape(12);
        let budget = (share * shape.count() as f64) as usize / 12;
        let cost = |width, strategy| {
            let of = |width| S4Config::new(width, width, width).with_groups([vec![strategy]]).count(&shape).unwrap() / 12;
            if width == 0 { of(2) - of(1) } else { of(width) }
        };
        for group in &S4Config::default().groups {
            let config = S4Config::new(1, 1, 1).with_groups([group.clone()]).with_share(share);
            let found = config.count(&shape).unwrap() / 12;
            let unit = group.iter().map(|strategy| cost(0, *strategy)).filter(|unit| *unit > 0).min().unwrap();
            prop_assert!(found <= budget && budget - found < unit, "{:?}: {} of {}", group, found, budget);
            // In equal parts, but for one unit each and what biases take.
            let parts = config.parts(&shape).unwrap();
            let counts: Vec<usize> = group.iter().zip(&parts).filter(|(strategy, _)| **strategy != Bias).map(|(_, part)| part.count(&shape).unwrap() / 12).collect();
            let largest_unit = group.iter().map(|strategy| cost(0, *strategy)).max().unwrap();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 2 * largest_unit + 768, "{:?}", counts);
        }
    }

    #[test]
    fn one_strategy_everywhere_is_the_plain_method(seed: u64) {
        for base in bases() {
            let everywhere = |strategy, groups| {
                let config = S4Config::new(5, 4, 3).with_groups(vec![vec![strategy]; groups]);
                randomized(&config.init(&base, seed).unwrap(), seed).valid()
            };
            let same = |s4: &S4, plain: AnyTuner, what| {
                assert_close(states(s4, &base), states(&plain.valid(), &base), SAME_FUNCTION, what);
            };
            let adapters = everywhere(Adapter, 2);
            same(&adapters, plain(SequentialConfig::pfeiffer(5), &adapters, &base), "adapters");
            let loras = everywhere(Lora, 2);
            same(&loras, plain(LoraConfig::new(3).with_alpha(3.0), &loras, &base), "LoRA");
            let biases = everywhere(Bias, 1);
            let in_layers = S4Config::new(5, 4, 3).with_groups([vec![Bias]]).parts(base.shape()).unwrap();
            let parts = in_layers[0].downcast_ref::<BitFitConfig>().unwrap().parts.clone();
            let bitfit = BitFitConfig { parts, added: true, ..BitFitConfig::new() };
            if base.shape().stacks().len() == 1 {
                same(&biases, plain(bitfit, &biases, &base), "biases");
                let prefix = everywhere(Prefix, 1);
                let config = PrefixTuningConfig::new(4).with_shift_positions(false);
                same(&prefix, plain(config, &prefix, &base), "prefix");
            }
        }
    }

    #[test]
    fn groups_of_biases_and_lora_merge(seed: u64) {
        for base in ENCODERS.map(|shape| base(shape, &device())) {
            let config = S4Config::new(5, 4, 3).with_groups([vec![Bias, Lora], vec![Bias]]);
            let s4 = randomized(&config.init(&base, seed).unwrap(), seed).valid();
            let merged = AnyMethod::from(config).merged(&AnyTuner::new(s4.clone()), &base).unwrap();
            assert_close(states(&Bare {}, &merged), states(&s4, &base), MERGED, "merged");
            prop_assert_ne!(super::bits(&Bare {}, &base), super::bits(&s4, &base));
        }
    }
}
