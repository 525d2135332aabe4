//! Exchange with Hugging Face transformers and PEFT: what either side writes, the other reads and computes the same with.
//! Needs a python3 with the packages of `scripts/golden/requirements.txt`.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::real::MODEL;
use crate::shell::{program, root, run as run_command};

/// Tiny models with random weights, one of each architecture, and what they are trained on.
const MODELS: [(&str, &str); 4] =
    [("roberta-classify", "tokens"), ("bert-classify", "tokens"), ("t5-even", "words"), ("llama", "words")];
/// The methods that PEFT has too, and whether they merge.
const METHODS: [(&str, bool); 5] =
    [("lora", true), ("ia3", true), ("prompt", false), ("prefix", false), ("p-tuning", false)];

/// `cargo xtask interop`.
pub fn run() -> Result<()> {
    let (peft, out) = (program(&[])?, root().join("target/interop"));
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    for (model, data) in MODELS {
        let data = root().join("examples").join(data).with_extension("jsonl");
        for (method, merges) in METHODS {
            let out = out.join(model).join(method);
            fs::create_dir_all(&out)?;
            exchange(&peft, (&root().join("peft-core/tests/golden").join(model), &data), (method, merges), &out)?;
        }
    }
    let real = root().join("target/real");
    let (model, lora, merged) = (real.join(MODEL), real.join("lora"), real.join("merged"));
    if lora.exists() && merged.exists() {
        let tokens = root().join("examples/tokens.jsonl");
        compare(&peft, (&model, &tokens), Some(&lora), &out)?;
        compare(&peft, (&merged, &tokens), None, &out)?;
    } else {
        println!("the real adapter is not there to be exchanged; `cargo xtask real` makes it");
    }
    println!("what PEFT and this library write for each other gives the same logits");
    Ok(())
}

/// An adapter of PEFT's, one of ours, and ours merged.
fn exchange(peft: &Path, (model, data): (&Path, &Path), (method, merges): (&str, bool), out: &Path) -> Result<()> {
    let [theirs, ours, merged] = ["theirs", "ours", "merged"].map(|name| out.join(name));
    python("make_adapter.py", &[model.as_ref(), method.as_ref(), theirs.as_ref()])?;
    compare(peft, (model, data), Some(&theirs), out)?;
    // Long enough that the adapter moves the logits by far more than a comparison allows.
    let settings = ["--method", method, "--epochs", "10", "--batch-size", "8", "--lr", "2e-2"];
    run_peft(peft, "train", model, &[("--data", data), ("--output", &ours)], &settings)?;
    compare(peft, (model, data), Some(&ours), out)?;
    if merges {
        run_peft(peft, "merge", model, &[("--adapter", &ours), ("--output", &merged)], &[])?;
        compare(peft, (&merged, data), None, out)?;
    }
    Ok(())
}

/// Our logits against those of the reference.
fn compare(peft: &Path, (model, input): (&Path, &Path), adapter: Option<&Path>, out: &Path) -> Result<()> {
    let logits = out.join("logits.safetensors");
    let paths = [("--input", input), ("--output", &logits)];
    let adapter_path = adapter.map(|adapter| ("--adapter", adapter));
    run_peft(peft, "forward", model, &paths.into_iter().chain(adapter_path).collect::<Vec<_>>(), &[])?;
    let (first, second) = adapter.map_or(("--no-adapter".as_ref(), model), |adapter| (model, adapter));
    python("check_adapter.py", &[first.as_ref(), second.as_ref(), input.as_ref(), logits.as_ref()])
}

fn run_peft(peft: &Path, command: &str, model: &Path, paths: &[(&str, &Path)], settings: &[&str]) -> Result<()> {
    let mut command_line = Command::new(peft);
    command_line.args([command, "--model"]).arg(model).args(settings);
    for (option, path) in paths {
        command_line.arg(option).arg(path);
    }
    run_command(&mut command_line)
}

fn python(script: &str, args: &[&OsStr]) -> Result<()> {
    run_command(Command::new("python3").arg(root().join("scripts/interop").join(script)).args(args))
}
