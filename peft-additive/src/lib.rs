#![doc = include_str!("../README.md")]

use peft_core::{Shape, Site, Stack};

pub mod adapters;
pub mod others;
pub mod prompts;

pub use adapters::adapter_drop::{AdapterDrop, AdapterDropConfig};
pub use adapters::adapter_fusion::{AdapterFusion, AdapterFusionConfig};
pub use adapters::adapter_soup::{AdapterSoup, AdapterSoupConfig, SoupChoice};
pub use adapters::bn_config::{BnConfig, Invertible, Reduction, ResidualAt, ResidualName, Scaling, TrainedScaling};
pub use adapters::bottleneck::{Activation, Bottleneck};
pub use adapters::coda::{Coda, CodaConfig};
pub use adapters::hyperformer::{Cached, Hyperformer, HyperformerConfig};
pub use adapters::invertible::{Block, Coupling};
pub use adapters::mera::{Mera, MeraConfig, Merging};
pub use adapters::parallel::{Parallel, ParallelConfig};
pub use adapters::residual::{Residual, ResidualConfig};
pub use adapters::sequential::{Init, Placement, Sequential, SequentialConfig};
pub use adapters::tiny_attn::{TinyAttn, TinyAttnConfig};
pub use adapters::transport::Transport;
pub use adapters::variants::{Bn, Variant};
pub use others::attention_fusion::{AttentionFusion, AttentionFusionConfig};
pub use others::hadamard::{Hadamard, HadamardConfig, Position};
pub use others::ia3::{Ia3, Ia3Config};
pub use others::lst::{Importance, Lst, LstConfig};
pub use others::pasta::{Pasta, PastaConfig};
pub use prompts::attempt::{Attempt, AttemptConfig};
pub use prompts::mpt::{Mpt, MptConfig, MptInit};
pub use prompts::p_tuning::{PTuning, PTuningConfig, Reparameterization};
pub use prompts::prefix_tuning::{PrefixTuning, PrefixTuningConfig, Projection};
pub use prompts::prompt_tuning::{PromptInit, PromptTuning, PromptTuningConfig};
pub use prompts::spot::{Similarity, SpotConfig};
pub use prompts::warp::{SlotInit, Warp, WarpConfig};

/// The path of the layer of a site in adapter files, for modules of a method's own.
fn layer_path(shape: &Shape, site: Site) -> String {
    let stack = if site.stack == Stack::Encoder { "encoder" } else { "decoder" };
    format!("base_model.model.{}{stack}.layer.{}", shape.prefix, site.layer)
}
