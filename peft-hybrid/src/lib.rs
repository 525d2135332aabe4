#![doc = include_str!("../README.md")]

pub mod automatic;
pub mod manual;

pub use automatic::autopeft::AutoPeftConfig;
pub use automatic::s3_delta::{S3Delta, S3DeltaConfig};
pub use automatic::s4::{Group, S4, S4Config, Strategy};
pub use manual::compacter::{Compacter, CompacterConfig, Phm, PhmLinear};
pub use manual::mam::{Mam, MamConfig};
pub use manual::pruned_mam::{PrunedMam, PrunedMamConfig};
pub use manual::unipelt::{UniPelt, UniPeltConfig};
