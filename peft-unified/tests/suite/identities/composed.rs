//! Several methods at once.

use peft_additive::{Ia3Config, PrefixTuningConfig, SequentialConfig};
use peft_core::AnyMethod;
use peft_reparam::{AdaLoraConfig, LoraConfig};

fn of_weights() -> AnyMethod {
    AnyMethod::composed(vec![Ia3Config::default().into(), LoraConfig::new(3).with_alpha(5.0).into()])
}

/// With a penalty, ranks that go, dropout, and a projection that is computed once a step.
fn of_all_kinds() -> AnyMethod {
    AnyMethod::composed(vec![
        PrefixTuningConfig::new(4).with_projection(7).into(),
        SequentialConfig::pfeiffer(5).into(),
        AdaLoraConfig::new(3, 2).with_schedule(1, 1, 1).with_penalty(0.5).with_dropout(0.1).into(),
    ])
}

mod weights {
    use super::*;
    peft_core::conformance!(of_weights());
}

mod all_kinds {
    use super::*;
    peft_core::conformance!(
        of_all_kinds(),
        skip(C1: "the prefix takes its share of every softmax", C3: "a prefix is no weight")
    );
}
