//! The options that decide what a training step takes in memory beside the model.

use std::path::Path;

use clap::{Args, ValueEnum};
use peft_core::train::{Paging, Rule, TrainConfig};
use peft_quant::{ADAMW_8BIT, PAGED_ADAMW_8BIT};

/// The update rule and what backward keeps.
#[derive(Debug, Args)]
pub struct OptimizerArgs {
    /// The update rule; AdamW's states in 8 bits, or in a file beside the output (paged) as far as they are more than --page-above
    #[arg(long, value_enum, default_value_t = Optimizer::Adamw)]
    optimizer: Optimizer,
    /// MB of a paged optimizer's states that memory holds
    #[arg(long, value_name = "MB", default_value_t = 256)]
    page_above: u32,
    /// Compute each layer again in backward instead of keeping all of its forward: less memory, more work
    #[arg(long)]
    gradient_checkpointing: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Optimizer {
    #[value(aliases = ["adamw_torch", "adamw_torch_fused", "adamw_hf"])]
    Adamw,
    #[value(name = "adamw_8bit", alias = "adamw_bnb_8bit")]
    Adamw8bit,
    #[value(name = "paged_adamw_32bit", alias = "paged_adamw")]
    PagedAdamw,
    #[value(name = "paged_adamw_8bit")]
    PagedAdamw8bit,
    Adafactor,
}

impl OptimizerArgs {
    /// The bytes of its states for so many numbers, in memory or away; 0 for Adafactor, whose are few.
    pub fn state_bytes(&self, trained: u64) -> u64 {
        match self.optimizer {
            Optimizer::Adamw | Optimizer::PagedAdamw => 8 * trained,
            // A code of each moment, and two magnitudes for 256 of them.
            Optimizer::Adamw8bit | Optimizer::PagedAdamw8bit => 2 * trained + 8 * trained.div_ceil(256),
            Optimizer::Adafactor => 0,
        }
    }

    /// Settings with these, for a run whose output is in this directory.
    pub fn of(&self, config: TrainConfig, dir: &Path) -> TrainConfig {
        let optim = match self.optimizer {
            Optimizer::Adamw => Rule::AdamW,
            Optimizer::Adamw8bit => ADAMW_8BIT,
            Optimizer::PagedAdamw => Rule::PagedAdamW,
            Optimizer::PagedAdamw8bit => PAGED_ADAMW_8BIT,
            Optimizer::Adafactor => Rule::Adafactor,
        };
        let paging = Paging { dir: dir.into(), above: u64::from(self.page_above) << 20 };
        TrainConfig { optim, paging, gradient_checkpointing: self.gradient_checkpointing, ..config }
    }
}
