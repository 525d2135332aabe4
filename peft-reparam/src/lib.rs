#![doc = include_str!("../README.md")]

pub mod low_rank;
pub mod quantized;

pub use low_rank::adalora::{AdaLora, AdaLoraConfig};
pub use low_rank::allocation::Triplets;
pub use low_rank::curvature::Curvature;
pub use low_rank::delta_lora::{DeltaLora, DeltaLoraConfig, Moving, Start};
pub use low_rank::dylora::{Component, DyLora, DyLoraConfig};
pub use low_rank::increlora::{IncreLora, IncreLoraConfig};
pub use low_rank::intrinsic_said::{IntrinsicSaid, IntrinsicSaidConfig};
pub use low_rank::kernel_mix::{Heads, KernelMix, KernelMixConfig};
pub use low_rank::krona::{Krona, KronaConfig};
pub use low_rank::krona_b::{KronaB, KronaBConfig};
pub use low_rank::kronecker::{Factor, Kronecker, Split};
pub use low_rank::laplace_lora::{LaplaceLora, LaplaceLoraConfig, Posterior, Prediction};
pub use low_rank::lora::{BiasMode, Factors, Lora, LoraConfig};
pub use low_rank::lorahub::{LoraHub, LoraHubConfig, Stack};
pub use low_rank::loraprune::{LoraPrune, LoraPruneConfig, Pruned};
pub use low_rank::moelora::{Experts, MoeLora, MoeLoraConfig};
pub use low_rank::tokens::{Rows, TokenIndices};
pub use quantized::loftq::{Approximation, Earlier, LoftQ, LoftQConfig};
pub use quantized::qa_lora::{Pooled, Pooling, QaLora, QaLoraConfig};
pub use quantized::qlora::{QLora, QLoraConfig};
