//! Additive fine-tuning: new trainable parameters beside the frozen ones.

pub mod others;
pub mod prompts;

pub use others::ia3::{Ia3, Ia3Config};
pub use prompts::prefix_tuning::{PrefixTuning, PrefixTuningConfig, Projection};
pub use prompts::prompt_tuning::{PromptInit, PromptTuning, PromptTuningConfig};
