//! `peft plan`

use std::ffi::OsString;
use std::process::Stdio;

use clap::Args;
use peft_core::io::Pretrained;
use peft_core::{Error, Result, Shape};
use peft_quant::bytes;
use serde_json::{Value, json};

use super::bench::Step;
use super::methods::configured;
use super::options::print;
use crate::child;
use crate::machine::available_bytes;

/// Say what a training step takes in memory, and whether this machine has it; prints one JSON object
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  peft plan --model shape:llama-7b --method qlora --set r=64 --base nf4-double --batch 1 --seq 512 \
    --optimizer adamw_8bit --gradient-checkpointing\n\n\
    peak_bytes is that of `peft bench step` with the same options. It grows by the same bytes with each layer: the step is run with\n\
    two and with six layers of random weights, each in a process of its own, and the rest of the model is never there. Weights,\n\
    adapter, gradients and states are counted; the rest are saved activations, buffers and the program itself. Weights are in f32\n\
    unless --base says how linear maps are packed; then LLaMA's tables of words have 16 bits, as published. If the machine has less available, `instead` has options that would fit."
)]
pub struct Plan {
    #[command(flatten)]
    step: Step,
}

/// Layers of the two runs.
const FEW: [usize; 2] = [2, 6];

/// What would take less, the least loss first.
const INSTEAD: [&[&str]; 3] =
    [&["--optimizer", "adamw_8bit"], &["--gradient-checkpointing"], &["--base", "nf4-double"]];

impl Plan {
    pub(super) fn run(self) -> Result<()> {
        let args: Vec<OsString> = std::env::args_os().skip(2).collect();
        let shape = Pretrained::shape(&self.step.model.model)?;
        let method = configured(&self.step.method, &self.step.set, &shape)?;
        let trained = method.checked_count(&shape)? + method.head_count(&shape, 2);
        let weights = shape.places().iter().map(|place| bytes(&shape, place, self.step.model.base)).sum::<u64>();
        let tensors = 4 * trained as u64;
        let states = self.step.optimizer.state_bytes(trained as u64);
        let (peak, available) = (peak(&args, &shape)?, available_bytes());
        let fits = available.map(|available| peak <= available);
        let mut instead = Value::Null;
        if fits == Some(false) {
            let mut more = args.clone();
            for options in INSTEAD.iter().filter(|options| !args.iter().any(|arg| *arg == *options[0])) {
                more.extend(options.iter().map(OsString::from));
                let peak = self::peak(&more, &shape)?;
                let added: Vec<_> = more[args.len()..].iter().map(|arg| arg.to_string_lossy()).collect();
                instead = json!({"options": added.join(" "), "peak_bytes": peak});
                if available.is_some_and(|available| peak <= available) {
                    break;
                }
            }
        }
        let rest = peak.saturating_sub(weights + 2 * tensors + states);
        print(json!({
            "peak_bytes": peak, "weights_bytes": weights, "adapter_bytes": tensors, "gradients_bytes": tensors,
            "states_bytes": states, "rest_bytes": rest, "available_bytes": available, "fits": fits, "instead": instead,
        }))
    }
}

/// The peak of a step of the whole shape.
fn peak(args: &[OsString], shape: &Shape) -> Result<u64> {
    let of = |layers: usize| measured(args, layers.min(shape.layers));
    let few = FEW.map(|layers| layers.min(shape.layers) as i64);
    let [less, more] = [of(FEW[0])?, of(FEW[1])?];
    let left = (shape.layers as i64 - few[0]) * (more - less) / (few[1] - few[0]).max(1);
    Ok((less + left).max(0) as u64)
}

/// The peak of a step of so many layers, by a process of its own.
fn measured(args: &[OsString], layers: usize) -> Result<i64> {
    let failed = |detail: String| Error::Check { what: "a step of few layers", detail };
    let steps = args.iter().any(|arg| arg.to_string_lossy().starts_with("--steps"));
    let own = ["--layers", &layers.to_string(), "--steps", "1"].map(OsString::from);
    let own = &own[..if steps { 2 } else { 4 }];
    let command = ["bench", "step"].map(OsString::from);
    let output = child::run(command.iter().chain(args).chain(own), Stdio::piped(), Stdio::inherit())?;
    let said: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let peak = said.and_then(|said| said["step_peak_bytes"].as_i64());
    peak.ok_or_else(|| failed(format!("it ended with {} and told no peak", output.status)))
}
