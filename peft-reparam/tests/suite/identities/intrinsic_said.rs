use burn::module::Module;
use burn::tensor::TensorData;
use peft_core::io::peft::{Labels, load, save};
use peft_core::load::Checkpoint;
use peft_core::testing::{batch, randomized};
use peft_core::{Bare, Base, Head, Method, Part, Shape, Slot, Trained};
use peft_reparam::{IntrinsicSaid, IntrinsicSaidConfig};
use proptest::prelude::*;

use super::{bases, run, with};

const D: usize = 307;

fn random(config: &IntrinsicSaidConfig, base: &Base, seed: u64) -> IntrinsicSaid {
    randomized(&config.init(base, seed).unwrap(), seed).valid()
}

/// The same with every scale at this value.
fn scaled(said: IntrinsicSaid, value: f32) -> IntrinsicSaid {
    let size = said.lambda.as_ref().map_or(0, |lambda| lambda.dims()[0]);
    with(said, [("lambda".to_string(), TensorData::new(vec![value; size], [size]))])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn scales_of_one_are_the_form_without_scales(seed: u64) {
        for base in bases() {
            let said = scaled(random(&IntrinsicSaidConfig::new(D), &base, seed), 1.0);
            let theta = said.theta.dims()[0];
            let did = IntrinsicSaidConfig::new(theta).without_scales().init(&base, seed).unwrap();
            let did = with(did, [("theta".to_string(), said.theta.val().into_data())]);
            let batch = batch(&base);
            prop_assert_eq!(run(&said, &base, &batch).into_data(), run(&did, &base, &batch).into_data());
        }
    }

    #[test]
    fn scales_of_zero_are_the_base(seed: u64) {
        for base in bases() {
            let said = scaled(random(&IntrinsicSaidConfig::new(D), &base, seed), 0.0);
            let batch = batch(&base);
            prop_assert_eq!(run(&said, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
        }
    }

    /// By lambda_i ||theta||, about, where the tensor is large.
    #[test]
    fn one_vector_moves_every_tensor(seed: u64) {
        for base in bases() {
            let said = random(&IntrinsicSaidConfig::new(D), &base, seed);
            let merged = base.merged(&said);
            for place in base.shape().places() {
                let moved = match place.slot {
                    Slot::Weight => merged.weight(place.site).dense() - base.weight(place.site).dense(),
                    slot => (merged.vector(place.site, slot) - base.vector(place.site, slot)).unsqueeze(),
                };
                prop_assert!(moved.abs().min().into_scalar::<f32>() > 0.0, "{} stays", place.name);
            }
        }
    }

    #[test]
    fn only_the_chosen_maps_move(seed: u64) {
        for base in bases() {
            let config = IntrinsicSaidConfig::new(D).with_sites(Part::Query | Part::Up);
            let merged = base.merged(&random(&config, &base, seed));
            for place in base.shape().places() {
                let chosen = matches!(place.site.part, Part::Query | Part::CrossQuery | Part::Up);
                let same = match place.slot {
                    Slot::Weight => merged.weight(place.site).dense().into_data() == base.weight(place.site).dense().into_data(),
                    slot => merged.vector(place.site, slot).into_data() == base.vector(place.site, slot).into_data(),
                };
                prop_assert_eq!(same, !chosen, "{}", place.name);
            }
        }
    }
}

#[test]
fn files_hold_d_numbers_and_the_seed() {
    for base in bases() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("adapter");
        let config = IntrinsicSaidConfig::new(D);
        let start = config.init(&base, 12).unwrap();
        let head = Head::classifier(&base, 2, 0);
        let trained = Trained::new(randomized(&start, 4), head).unwrap();
        save(&dir, &config, &trained, base.shape(), &Labels::default(), &[]).unwrap();
        let file = Checkpoint::open_file(&dir.join("adapter_model.safetensors")).unwrap();
        let own = file.names().filter(|name| name.contains("intrinsic_said"));
        assert_eq!(own.map(|name| file.shape(name).unwrap().iter().product::<usize>()).sum::<usize>(), D);
        let (found, loaded) = load::<IntrinsicSaidConfig>(&dir, &base).unwrap();
        assert_eq!(found, config.clone().with_seed(12));
        let batch = batch(&base);
        let states = run(&loaded.tuner, &base, &batch);
        assert_eq!(states.clone().into_data(), run(&trained.tuner, &base, &batch).into_data());
        let other = randomized(&config.init(&base, 13).unwrap(), 4);
        assert_ne!(states.into_data(), run(&other, &base, &batch).into_data());
    }
}

#[test]
fn the_count_is_d_on_every_model() {
    for name in ["roberta-base", "t5-base", "llama-7b"] {
        let shape = Shape::named(name).unwrap();
        assert_eq!(IntrinsicSaidConfig::default().count(&shape).unwrap(), 20_000);
    }
    // Tensors of the backbone, each with a scale.
    for (name, tensors) in [("roberta-base", 197), ("llama-7b", 291)] {
        let shape = Shape::named(name).unwrap();
        assert!(IntrinsicSaidConfig::new(tensors + 1).count(&shape).is_ok());
        let message = IntrinsicSaidConfig::new(tensors).count(&shape).unwrap_err().to_string();
        assert!(message.contains(&format!("intrinsic_dim: {tensors} ")) && message.contains("tensors"), "{message}");
        assert!(IntrinsicSaidConfig::new(1).without_scales().count(&shape).is_ok());
        let message = IntrinsicSaidConfig::new(0).without_scales().count(&shape).unwrap_err().to_string();
        assert!(message.contains("intrinsic_dim: 0 "), "{message}");
    }
}
