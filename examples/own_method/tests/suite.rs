//! The same tests that the library's own methods pass.

use own_method_example::{Shift, ShiftConfig};
use peft_core::testing::{fixtures::ENCODERS, randomized, states};
use peft_core::view::{tensors, with_values};
use peft_core::{AnyTuner, Base, Head, Method, Site, Slot, Source, Trained, split_name};
use peft_partial::BitFitConfig;

mod plain {
    use super::*;
    peft_core::conformance!(ShiftConfig::default(), only(ENCODERS: "T5 and LLaMA have no biases"));
}

fn random(base: &Base, seed: u64) -> Shift {
    randomized(&ShiftConfig::default().init(base, seed).unwrap(), seed)
}

fn sources(base: &Base) -> Vec<Source> {
    let source = |seed| {
        let tuner = AnyTuner::new(random(base, seed));
        let trained = Trained::new(tuner, Head::classifier(base, 2, seed)).unwrap();
        Source { name: format!("task {seed}"), config: ShiftConfig::default().into(), trained }
    };
    if base.shape().pre_norm() { vec![] } else { vec![source(1), source(2)] }
}

mod from_sources {
    use super::*;
    peft_core::conformance!(
        ShiftConfig::default(),
        from(sources),
        only(ENCODERS: "T5 and LLaMA have no biases"),
        skip(C1: "it starts where its sources ended")
    );
}

peft_core::equivalences! {
    a_shift_is_bitfit: "shift" = "BitFit" if "its biases are the base's, shifted", SAME_FUNCTION on ENCODERS, |base, seed, holds| {
        let shift = random(base, seed);
        let shifted = tensors(&shift).into_iter().map(|(name, shift)| {
            let site: Site = split_name(&name).1;
            let bias = base.vector(site, Slot::Bias);
            let moved = bias.clone() + burn::tensor::Tensor::from_data(shift, base.device());
            (format!("biases.{site}"), if holds { moved } else { bias }.into_data())
        });
        let bitfit = BitFitConfig::new().init(base, 0).unwrap();
        let bitfit = with_values(bitfit, &shifted.collect()).unwrap();
        [states(&shift, base), states(&bitfit, base)]
    };
}
