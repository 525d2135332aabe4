use burn::module::Module;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, randomized, states};
use peft_core::view::{tensors, trainable, with_values};
use peft_core::{AnyMethod, Bare, Method, Within};
use peft_hybrid::AutoPeftConfig;
use proptest::prelude::*;

use super::{bases, bits};

#[test]
fn without_layers_or_parts_autopeft_is_the_base() {
    for base in bases() {
        for config in [AutoPeftConfig::new(0, 0, 0), AutoPeftConfig::new(3, 5, 4).with_layers([])] {
            let nothing = randomized(&config.init(&base, 1).unwrap(), 1);
            assert_eq!((config.count(base.shape()).unwrap(), trainable(&nothing)), (0, 0));
            assert_eq!(bits(&nothing, &base), bits(&Bare {}, &base));
        }
        let something = randomized(&AutoPeftConfig::new(3, 5, 4).init(&base, 1).unwrap(), 1);
        assert_ne!(bits(&something, &base), bits(&Bare {}, &base));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Its parts' own configurations say where they are; here they are composed anew and get its numbers.
    #[test]
    fn autopeft_is_its_parts_at_once(seed: u64, layers in 0usize..4) {
        for base in bases() {
            let config = AutoPeftConfig::new(3, 5, 4).with_layers((0..2).filter(|layer| layers >> layer & 1 == 0));
            let whole = randomized(&config.init(&base, seed).unwrap(), seed).valid();
            let parts = AnyMethod::composed(config.parts(base.shape()).unwrap());
            let parts = with_values(parts.init(&base, 0).unwrap(), &tensors(&whole)).unwrap();
            prop_assert_eq!(bits(&whole, &base), bits(&parts, &base));
        }
    }

    /// In the first layer alone it acts as one in all layers that is held to the first.
    #[test]
    fn a_layer_without_parts_is_the_base(seed: u64) {
        for base in bases().into_iter().filter(|base| base.shape().stacks().len() == 1) {
            let first = AutoPeftConfig::new(3, 5, 0).with_layers([0]);
            let first = randomized(&first.init(&base, seed).unwrap(), seed).valid();
            let all = AutoPeftConfig::new(3, 5, 0).init(&base, seed).unwrap();
            let all = with_values(randomized(&all, seed), &tensors(&first)).unwrap().valid();
            assert_close(states(&Within::new(all.clone(), 0..1), &base), states(&first, &base), SAME_FUNCTION, "first");
            prop_assert_ne!(bits(&all, &base), bits(&first, &base));
        }
    }
}
