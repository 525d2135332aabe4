//! Methods of several families at once.

use burn::module::Module;
use burn::tensor::TensorData;
use peft_additive::{Ia3Config, PrefixTuningConfig, PromptTuningConfig};
use peft_core::testing::fixtures::SHAPES;
use peft_core::testing::tolerances::MERGED;
use peft_core::testing::{assert_close, base, batch, device, randomized};
use peft_core::{Bare, Base, Merge, Method, Tuner};
use peft_partial::FullConfig;
use peft_reparam::LoraConfig;

fn random<M: Method>(config: M, base: &Base) -> M::Tuner {
    randomized(&config.init(base, 0).unwrap(), 4).valid()
}

/// Both orders of both are different functions, and each merges into its own.
#[test]
fn tuples_merge_in_the_order_in_which_they_act() {
    for shape in SHAPES {
        let base = base(shape, &device());
        let (ia3, lora) = (random(Ia3Config::new(), &base), random(LoraConfig::new(3), &base));
        let full = random(FullConfig::default(), &base);
        let outer = merges((ia3.clone(), lora.clone()), &base);
        let inner = merges((lora.clone(), ia3), &base);
        assert_ne!(outer, inner);
        merges((lora, full), &base);
    }
}

fn merges<T: Tuner + Merge>(both: T, base: &Base) -> TensorData {
    let batch = batch(base);
    let unmerged = both.run(base, &batch).unwrap().states;
    let merged = Bare {}.run(&base.merged(&both), &batch).unwrap().states;
    assert_close(merged, unmerged.clone(), MERGED, "merged");
    unmerged.into_data()
}

/// Prompts, prefixes and weights act at different seams.
#[test]
fn methods_at_different_seams_commute() {
    for shape in SHAPES {
        let base = base(shape, &device());
        let batch = batch(&base);
        let (prompt, prefix) = (random(PromptTuningConfig::new(3), &base), random(PrefixTuningConfig::new(2), &base));
        let lora = random(LoraConfig::new(3), &base);
        let run = |tuner: &dyn Fn() -> peft_core::Result<peft_core::Hidden>| tuner().unwrap().states.into_data();
        let [a, b, c] = [
            run(&|| (prompt.clone(), (prefix.clone(), lora.clone())).run(&base, &batch)),
            run(&|| (lora.clone(), (prompt.clone(), prefix.clone())).run(&base, &batch)),
            run(&|| ((prefix.clone(), lora.clone()), prompt.clone()).run(&base, &batch)),
        ];
        assert!(a == b && b == c, "{shape}");
    }
}
