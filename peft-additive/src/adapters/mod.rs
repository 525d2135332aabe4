//! Adapter-based fine-tuning.

pub mod adapter_drop;
pub mod adapter_fusion;
pub mod adapter_soup;
pub mod bn_config;
pub mod bottleneck;
pub mod coda;
pub mod hyperformer;
pub mod invertible;
pub mod mera;
pub mod parallel;
pub mod residual;
pub mod sequential;
pub mod tiny_attn;
pub mod transport;
pub mod variants;
