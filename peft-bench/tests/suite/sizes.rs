//! Sizes that no machine has are refused before memory is asked for: an allocation that fails would end this process.

use std::ffi::OsString;

use peft_bench::cli::Cli;
use peft_bench::registry::{METHODS, by_name};
use peft_core::io::peft::with_words;
use peft_core::testing::{base, device};
use peft_core::{Base, Result};
use serde_json::json;

const EXTREMES: [u64; 6] = [0, 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX];

fn start(method: &str, base: &Base, settings: &[String]) -> Result<()> {
    let method = with_words(&by_name(method)?, settings)?;
    method.checked_count(base.shape())?;
    method.init(base, 0).map(drop)
}

/// Every setting of every method that is a number, or may be one.
#[test]
fn settings_of_methods() {
    for shape in ["roberta-tiny", "t5-tiny", "llama-tiny"] {
        let base = base(shape, &device());
        for entry in METHODS {
            let defaults = (entry.method)().settings();
            for (key, _) in defaults.iter().filter(|(_, v)| v.is_number() || v.is_null()) {
                for size in EXTREMES {
                    // Either is well: what ends the process is not.
                    if let Err(error) = start(entry.name, &base, &[format!("{key}={size}")]) {
                        assert!(!error.to_string().is_empty());
                    } else {
                        assert!(size < 1 << 31 || key.contains("seed"), "{} takes {key} = {size}", entry.name);
                    }
                }
            }
        }
    }
}

/// The options of commands, each alone.
#[test]
fn options_of_commands() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let rows: String = (0..4).map(|i| json!({"input_ids": [5, 6 + i], "label": i % 2}).to_string() + "\n").collect();
    std::fs::write(path("data.jsonl"), rows).unwrap();
    let data = path("data.jsonl");
    let train = ["train", "--model", "shape:roberta-tiny", "--method", "lora", "--data", &data, "--eval", &data];
    let commands: [(&[&str], &[&str]); 4] = [
        (
            &train,
            &[
                "--steps",
                "--epochs",
                "--batch-size",
                "--accumulate",
                "--eval-every",
                "--early-stop",
                "--max-length",
                "--threads",
                "--micro-rows",
                "--save-every",
                "--warmup",
                "--lr",
                "--max-grad-norm",
                "--task-temperature",
            ],
        ),
        (&[&train[..], &["--no-shuffle"]].concat(), &["--batch-size", "--accumulate"]),
        (
            &["bench", "step", "--model", "shape:roberta-tiny", "--method", "lora", "--steps", "1"],
            &["--batch", "--seq", "--threads", "--micro-rows"],
        ),
        (
            &["bench", "generate", "--model", "shape:t5-tiny", "--runs", "1"],
            &["--batch", "--prompt-tokens", "--threads"],
        ),
    ];
    for (command, options) in commands {
        for (option, size) in options.iter().flat_map(|option| EXTREMES.map(|size| (option, size))) {
            let output = path("out");
            let mut args: Vec<String> = command.iter().map(|word| word.to_string()).collect();
            args.extend([option.to_string(), size.to_string()]);
            if command[0] == "train" {
                args.extend(["--output".to_string(), output.clone()]);
                if !["--steps", "--epochs"].contains(option) {
                    args.extend(["--steps".to_string(), "2".to_string()]);
                }
            }
            let all = ["peft".to_string()].into_iter().chain(args.clone()).map(OsString::from);
            if let Err(error) = Cli::run(all) {
                assert!(!error.to_string().is_empty());
            } else {
                // What may be large takes no memory for it.
                let free = ["--save-every", "--max-grad-norm"];
                assert!(size < 1 << 31 || free.contains(option), "{args:?}");
            }
            let _ = std::fs::remove_dir_all(output);
        }
    }
}
