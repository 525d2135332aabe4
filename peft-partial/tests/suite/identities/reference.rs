//! What is trained without an adapter against transformers, see scripts/golden/baselines.py.

use std::path::Path;

use peft_core::testing::golden::{Case, model};
use peft_core::view::{tensors, with_values};
use peft_core::{Head, Method, Trained};
use peft_partial::{BitFitConfig, FullConfig, LinearProbeConfig};

const MODEL: &str = "roberta-classify";

fn check<M: Method>(config: &M) {
    let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(M::NAME), MODEL);
    let values = tensors(&model(MODEL).head.unwrap());
    let head = with_values(Head::classifier(&case.base, 3, 0), &values).unwrap();
    case.check_named(config, Trained::new(config.init(&case.base, 0).unwrap(), head).unwrap());
}

#[test]
fn full_fine_tuning_equals_the_reference() {
    check(&FullConfig::default());
}

#[test]
fn bitfit_equals_the_reference() {
    check(&BitFitConfig::new());
}

#[test]
fn a_linear_probe_equals_the_reference() {
    check(&LinearProbeConfig::default());
}
