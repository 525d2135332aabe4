//! What the methods of this crate are the same as, and when.

use burn::module::Module;
use peft_core::testing::{randomized, states};
use peft_core::view::{tensors, with_values};
use peft_core::{Bare, Base, Method, equivalences};
use peft_partial::{BitFitConfig, ChildTuningConfig, DiffPruningConfig, FullConfig};

fn random<M: Method>(config: &M, base: &Base, seed: u64) -> M::Tuner {
    randomized(&config.init(base, seed).unwrap(), seed)
}

equivalences! {
    full_fine_tuning_starts_as_the_base: "full fine-tuning" = "base" if "its tensors are the base's", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let start = FullConfig::default().init(base, seed).unwrap();
            [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
        };

    full_fine_tuning_is_another_base: "full fine-tuning" = "base" if "the base has its tensors", MERGED on SHAPES,
        |base, seed, holds| {
            let full = random(&FullConfig::default(), base, seed);
            let other = random(&FullConfig::default(), base, if holds { seed } else { seed + 1 });
            [states(&full, base), states(&Bare {}, &base.merged(&other.valid()))]
        };

    bitfit_starts_as_the_base: "BitFit" = "base" if "its biases are the base's", SAME_FUNCTION on ENCODERS, |base, seed, holds| {
        let start = BitFitConfig::new().init(base, seed).unwrap();
        [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
    };

    bitfit_folds_into_the_biases: "BitFit" = "base" if "the base has its biases", MERGED on ENCODERS, |base, seed, holds| {
        let bitfit = random(&BitFitConfig::new(), base, seed);
        let other = random(&BitFitConfig::new(), base, if holds { seed } else { seed + 1 });
        [states(&bitfit, base), states(&Bare {}, &base.merged(&other.valid()))]
    };

    bitfit_is_full_fine_tuning_of_the_biases: "BitFit" = "full fine-tuning" if "its weights and gains are the base's",
        SAME_FUNCTION on ENCODERS, |base, seed, holds| {
            let bitfit = random(&BitFitConfig::new(), base, seed);
            let full = match holds {
                true => FullConfig::default().init(base, seed).unwrap(),
                false => random(&FullConfig::default(), base, seed),
            };
            let full = with_values(full, &tensors(&bitfit)).unwrap();
            [states(&bitfit, base), states(&full, base)]
        };

    a_child_is_full_fine_tuning: "Child-Tuning" = "full fine-tuning" if "they have the same tensors", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let full = random(&FullConfig::default(), base, if holds { seed } else { seed + 1 });
            let child = ChildTuningConfig::default().init(base, 0).unwrap();
            let own = tensors(&random(&FullConfig::default(), base, seed)).into_iter();
            let child = with_values(child, &own.map(|(name, data)| (format!("full.{name}"), data)).collect()).unwrap();
            [states(&child, base), states(&full, base)]
        };

    no_differences_are_the_base: "diff pruning" = "base" if "w = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let start = DiffPruningConfig::default().init(base, seed).unwrap();
        [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
    };
}
