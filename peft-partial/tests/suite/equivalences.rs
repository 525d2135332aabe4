//! What the methods of this crate are the same as, and when.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::TensorData;
use peft_core::testing::{randomized, states};
use peft_core::view::{tensors, with_values};
use peft_core::{Bare, Base, Method, Place, Slot, equivalences, slot_name};
use peft_partial::{
    BitFitConfig, ChildMode, ChildTuningConfig, DiffPruningConfig, FishMaskConfig, FullConfig, LtSftConfig,
    SBitFitConfig, SamConfig, ThresholdMaskConfig, UBitFitConfig,
};

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
            let child = ChildTuningConfig::new(ChildMode::TaskFree, 0.3).init(base, 0).unwrap();
            let own = tensors(&random(&FullConfig::default(), base, seed)).into_iter();
            let child = with_values(child, &own.map(|(name, data)| (format!("full.{name}"), data)).collect()).unwrap();
            [states(&child, base), states(&full, base)]
        };

    a_fish_mask_starts_as_the_base: "FISH Mask" = "base" if "its numbers are the base's", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let start = FishMaskConfig::new(0.1).init(base, seed).unwrap();
        [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
    };

    a_fish_mask_folds_into_the_base: "FISH Mask" = "base" if "the base has its numbers", MERGED on SHAPES, |base, seed, holds| {
        let mask = random(&FishMaskConfig::new(0.1), base, seed);
        let other = random(&FishMaskConfig::new(0.1), base, if holds { seed } else { seed + 1 });
        [states(&mask, base), states(&Bare {}, &base.merged(&other.valid()))]
    };

    all_numbers_are_those_of_full_fine_tuning: "FISH Mask" = "full fine-tuning" if "k = 1 and they have the same numbers",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let mask = random(&FishMaskConfig::new(if holds { 1.0 } else { 0.5 }), base, seed);
            let numbers = tensors(&mask)["values"].iter::<f32>().collect::<Vec<_>>();
            let mut numbers = numbers.into_iter().chain(std::iter::repeat(0.0));
            let full = FullConfig::default().init(base, 0).unwrap();
            let all: BTreeMap<String, TensorData> = base.shape().places().iter().map(|place| {
                let own: Vec<f32> = numbers.by_ref().take(place.count()).collect();
                (slot_name(place.site, place.slot), TensorData::new(own, place.dims.clone()))
            }).collect();
            [states(&mask, base), states(&with_values(full, &all).unwrap(), base)]
        };

    a_sam_is_a_fish_mask: "SAM" = "FISH Mask" if "the masks and the numbers are the same", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let sam = random(&SamConfig::new(0.1), base, seed);
        let fish = with_values(FishMaskConfig::new(0.1).init(base, 0).unwrap(), &tensors(&sam)).unwrap();
        [states(&if holds { sam } else { randomized(&sam, seed) }, base), states(&fish, base)]
    };

    an_lt_sft_is_a_fish_mask: "LT-SFT" = "FISH Mask" if "the masks and the numbers are the same", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let sft = random(&LtSftConfig::new(0.1), base, seed);
            let own = tensors(&sft).into_iter().map(|(name, data)| (name.trim_start_matches("update.").to_string(), data));
            let fish = with_values(FishMaskConfig::new(0.1).init(base, 0).unwrap(), &own.collect()).unwrap();
            [states(&if holds { sft } else { randomized(&sft, seed) }, base), states(&fish, base)]
        };

    updates_without_a_mask_are_bitfit: "U-BitFit" = "BitFit" if "m = 1 and its biases are b + d", SAME_FUNCTION on ENCODERS,
        |base, seed, holds| {
            let updates = random(&UBitFitConfig::new(0.5), base, seed);
            let sum = |place: &Place| {
                let own = &tensors(&updates)[&format!("updates.{}", place.site)];
                let pairs = own.iter::<f32>().zip(base.tensor_data(place).iter::<f32>().collect::<Vec<_>>());
                let sums: Vec<f32> = pairs.map(|(d, b)| b + if holds { d } else { 2.0 * d }).collect();
                (format!("biases.{}", place.site), TensorData::new(sums, place.dims.clone()))
            };
            let places = base.shape().places();
            let biases = places.iter().filter(|place| place.slot == Slot::Bias).map(sum).collect();
            let bitfit = with_values(BitFitConfig::new().init(base, 0).unwrap(), &biases).unwrap();
            [states(&updates, base), states(&bitfit, base)]
        };

    whole_vectors_are_numbers_too: "S-BitFit" = "U-BitFit" if "updates and masks are the same", SAME_FUNCTION on ENCODERS,
        |base, seed, holds| {
            let vectors = random(&SBitFitConfig::new(0.5), base, seed);
            let numbers = with_values(UBitFitConfig::new(0.5).init(base, 0).unwrap(), &tensors(&vectors)).unwrap();
            [states(&if holds { vectors } else { randomized(&vectors, seed) }, base), states(&numbers, base)]
        };

    masks_of_ones_leave_the_base: "Threshold-Mask" = "base" if "S > tau", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let start = ThresholdMaskConfig::new(0.2).init(base, seed).unwrap();
        let ones = tensors(&start).into_iter().map(|(name, scores)| {
            (name, TensorData::new(vec![1f32; scores.shape().num_elements()], scores.shape().clone()))
        });
        let ones = with_values(start.clone(), &ones.collect()).unwrap();
        [states(&if holds { ones } else { start }, base), states(&Bare {}, base)]
    };

    no_differences_are_the_base: "diff pruning" = "base" if "w = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let start = DiffPruningConfig::default().init(base, seed).unwrap();
        [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
    };
}
