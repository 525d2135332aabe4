//! What `peft plan` says of a step's memory, against steps.

use std::fs;
use std::path::Path;
use std::process::Command;

use peft_core::Shape;
use serde_json::{Value, json};

/// What of a step's memory beside the program's own the plan may be off by.
const OFF: f64 = 0.1;
const LAYERS: u64 = 9;

fn peft(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_peft")).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A directory that has the configuration alone of a model with more and wider layers than the named one.
fn widened(dir: &Path, name: &str) -> String {
    let mut config = Shape::named(name).unwrap().to_config();
    let sizes: &[(&str, u64)] = &[
        ("hidden_size", 256),
        ("d_model", 256),
        ("intermediate_size", 768),
        ("d_ff", 768),
        ("d_kv", 64),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 4),
        ("num_heads", 4),
        ("head_dim", 64),
        ("num_hidden_layers", LAYERS),
        ("num_layers", LAYERS),
        ("num_decoder_layers", LAYERS),
        ("max_position_embeddings", 130),
        ("vocab_size", 3000),
    ];
    for (key, size) in sizes {
        if config.get(key).is_some() {
            config[*key] = json!(size);
        }
    }
    let dir = dir.join(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir.display().to_string()
}

#[test]
fn plans_are_near_what_steps_take() {
    let folder = tempfile::tempdir().unwrap();
    let [roberta, t5, llama] = ["roberta-tiny", "t5-tiny", "llama-tiny"].map(|name| widened(folder.path(), name));
    let common = ["--batch", "4", "--seq", "64", "--threads", "1"];
    let of = |model: &str, method: &str, more: &[&'static str]| -> Vec<String> {
        let args = [&["--model", model, "--method", method], &common[..], more].concat();
        args.into_iter().map(str::to_string).collect()
    };
    let program =
        peft(&["bench", "step", "--model", "shape:roberta-tiny", "--method", "lora", "--batch", "1", "--seq", "2"]);
    let program = program["step_peak_bytes"].as_f64().unwrap();
    let light = ["--base", "nf4-double", "--optimizer", "adamw_8bit", "--gradient-checkpointing"];
    let triples = [
        of(&roberta, "lora", &[]),
        of(&roberta, "lora", &["--base", "nf4"]),
        of(&roberta, "lora", &["--gradient-checkpointing"]),
        of(&roberta, "adapter", &[]),
        of(&roberta, "prefix", &[]),
        of(&roberta, "bitfit", &[]),
        of(&roberta, "full", &[]),
        of(&t5, "lora", &[]),
        of(&t5, "ia3", &["--base", "int8"]),
        of(&llama, "lora", &[]),
        of(&llama, "ia3", &["--base", "nf4-double"]),
        of(&llama, "qlora", &light),
    ];
    for triple in triples {
        let args: Vec<&str> = triple.iter().map(String::as_str).collect();
        let plan = peft(&[&["plan"], &args[..]].concat());
        let layers = LAYERS.to_string();
        let step = peft(&[&["bench", "step"], &args[..], &["--steps", "1", "--layers", &layers]].concat());
        let [planned, measured] = [&plan["peak_bytes"], &step["step_peak_bytes"]].map(|n| n.as_f64().unwrap());
        assert!(
            (planned - measured).abs() <= OFF * (measured - program),
            "{args:?}: {planned} planned, {measured} measured, of which {program} are the program"
        );
        let parts = ["weights_bytes", "adapter_bytes", "gradients_bytes", "states_bytes", "rest_bytes"];
        let sum: f64 = parts.iter().map(|part| plan[part].as_f64().unwrap()).sum();
        assert!(sum >= planned, "{plan}");
    }
}
