//! `peft quantize`

use std::path::PathBuf;

use clap::Args;
use peft_core::files::Inputs;
use peft_core::{Error, Result};
use peft_quant::{Plan, Scheme};
use serde_json::json;

use super::options::{OutputArgs, check_model, print};
use super::progress::bar;
use crate::machine::peak_bytes;

/// Pack a model's linear maps to few bits; writes a directory that transformers loads with bitsandbytes
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  peft quantize --model DIR --scheme nf4 --double --output out/nf4\n\n\
    Embeddings, normalizations, biases and heads stay as they are. The output's quantization.json has for each matrix its bytes and the norm\n\
    of what its weights are off by, relative to their own. In memory are one matrix and the packed ones of one shard.")]
pub struct Quantize {
    /// A model directory (config.json, weights)
    #[arg(long)]
    model: PathBuf,
    /// nf4, fp4 or int8
    #[arg(long)]
    scheme: Scheme,
    /// Keep the scales of blocks in eight bits (double quantization); the same as nf4-double
    #[arg(long)]
    double: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Quantize {
    pub(super) fn run(self) -> Result<()> {
        self.output.check(&Inputs::new().with_models([self.model.as_path()]))?;
        let model = self.model.to_string_lossy();
        check_model(&model)?;
        if model.starts_with("shape:") {
            return Err(Error::config("--model", model, "a model directory: random weights have no files to pack"));
        }
        let scheme = match self.scheme {
            Scheme::FourBit { codebook, double } => Scheme::FourBit { codebook, double: double || self.double },
            Scheme::Int8 if self.double => return Err(Error::config("--double", "beside int8", "nf4 or fp4")),
            Scheme::Int8 => Scheme::Int8,
        };
        let plan = Plan::new(&self.model)?;
        let bar = bar(plan.count());
        let costs = self.output.make(|dir| plan.write(dir, scheme, |_| bar.inc(1)))?;
        bar.finish_and_clear();
        let weights: usize = costs.iter().map(|cost| cost.dims[0] * cost.dims[1]).sum();
        let bytes: usize = costs.iter().map(|cost| cost.bytes).sum();
        let worst = costs.iter().map(|cost| cost.error).fold(0.0, f64::max);
        print(json!({
            "output": self.output.output.display().to_string(), "scheme": scheme.to_string(), "matrices": costs.len(),
            "weights": weights, "bytes": bytes, "bits": 8.0 * bytes as f64 / weights as f64, "largest_error": worst,
            "peak_bytes": peak_bytes(),
        }))
    }
}
