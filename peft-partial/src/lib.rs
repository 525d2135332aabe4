#![doc = include_str!("../README.md")]

pub mod bias_update;
pub mod delta_weight_masking;
pub mod full;
pub mod linear_probe;
pub mod masked_update;
mod masking;
pub mod pretrained_weight_masking;

pub use bias_update::bitfit::{BitFit, BitFitConfig};
pub use bias_update::pruned_bitfit::{PrunedBitFit, PrunedBitFitConfig, SBitFitConfig, UBitFitConfig};
pub use delta_weight_masking::child_tuning::{ChildMode, ChildTuning, ChildTuningConfig};
pub use delta_weight_masking::diff_pruning::{DiffPruning, DiffPruningConfig};
pub use delta_weight_masking::lt_sft::{LtSft, LtSftConfig};
pub use delta_weight_masking::sam::{SamConfig, Scope};
pub use full::FullConfig;
pub use linear_probe::LinearProbeConfig;
pub use masked_update::MaskedUpdate;
pub use pretrained_weight_masking::fish_mask::{FishMaskConfig, FisherLabels};
pub use pretrained_weight_masking::threshold_mask::{ThresholdMask, ThresholdMaskConfig};

#[cfg(test)]
mod testing {
    use peft_core::io::peft::{Labels, save};
    use peft_core::testing::{base, device};
    use peft_core::{Head, Method, Place, Trained, load::Checkpoint, place_key, view::tensors};

    /// Asserts that an untrained method is saved as the base's own tensors at the places that it trains, each under its
    /// name in the checkpoint, and nothing else but the head.
    pub fn assert_files_hold<M: Method>(config: &M, shapes: &[&str], trains: impl Fn(&Place) -> bool) {
        for name in shapes {
            let base = base(name, &device());
            let (shape, folder) = (base.shape(), tempfile::tempdir().unwrap());
            let trained = Trained::new(config.init(&base, 0).unwrap(), Head::classifier(&base, 2, 0)).unwrap();
            save(&folder.path().join("adapter"), config, &trained, shape, &Labels::default(), &[]).unwrap();
            let file = Checkpoint::open_file(&folder.path().join("adapter/adapter_model.safetensors")).unwrap();
            let places: Vec<Place> = shape.places().into_iter().filter(&trains).collect();
            for place in &places {
                let saved = file.read_f32(&place_key(shape, place).name, &place.file_dims()).unwrap();
                assert!(saved == base.tensor_data(place), "{}", place.name);
            }
            assert_eq!(file.names().count(), places.len() + tensors(&trained.head).len());
        }
    }
}
