//! Additive fine-tuning: new trainable parameters beside the frozen ones.

pub mod prompts;

pub use prompts::prefix_tuning::{PrefixTuning, PrefixTuningConfig, Projection};
pub use prompts::prompt_tuning::{PromptInit, PromptTuning, PromptTuningConfig};
