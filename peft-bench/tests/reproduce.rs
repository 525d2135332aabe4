//! Table III on a model and tasks that are there: the report, and a run that was interrupted.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use peft_bench::hermetic;
use peft_bench::reproduce::report::Report;
use peft_core::io::Pretrained;
use peft_core::{Head, Shape};

/// The generated tasks, and a model of random weights with their tokenizer.
fn prepare(folder: &Path) {
    hermetic::write(folder, 0).unwrap();
    let shape = Shape { vocab: 1000, positions: 100, ..Shape::named("roberta-tiny").unwrap() };
    let mut model = Pretrained::random(shape, 0, &peft_core::device("flex").unwrap());
    model.dir = Some(folder.to_path_buf());
    model.save(&folder.join("model"), &model.base, &Head::masked_lm(&model.base, 0), &[]).unwrap();
}

fn reproduce(folder: &Path, output: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
    command.arg("reproduce").arg("--model").arg(folder.join("model")).arg("--data").arg(folder.join("glue"));
    command.args(["--rows", "BitFit,lora", "--tasks", "cola,mrpc", "--seeds", "3,4", "--max-steps", "4"]);
    command.args(["--learning-rate", "LoRA=1e-2"]).arg("--output").arg(folder.join(output));
    command.stdout(Stdio::null());
    command
}

fn scores(folder: &Path, output: &str) -> Vec<Vec<f64>> {
    let text = fs::read_to_string(folder.join(output).join("report.json")).unwrap();
    let report: Report = serde_json::from_str(&text).unwrap();
    let runs = report.rows.iter().flat_map(|row| row.cells.iter().flat_map(|cell| cell.runs.iter()));
    runs.map(|run| run.scores.clone()).collect()
}

#[test]
fn a_table_that_was_interrupted_goes_on_and_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    prepare(folder);
    let started = Instant::now();
    assert!(reproduce(folder, "whole").status().unwrap().success());
    let whole = started.elapsed();
    let expected = scores(folder, "whole");
    // Two rows, two tasks, two seeds; MRPC has two metrics.
    assert_eq!(expected.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 2, 2, 1, 1, 2, 2]);
    for file in ["REPORT.md", "report.html"] {
        let text = fs::read_to_string(folder.join("whole").join(file)).unwrap();
        assert!(["BitFit", "LoRA", "62.09", "0.89M"].iter().all(|word| text.contains(word)), "{file}");
    }

    for part in 1..4 {
        let mut child = reproduce(folder, "killed").spawn().unwrap();
        std::thread::sleep(whole.mul_f64(0.2 * f64::from(part)).min(Duration::from_secs(20)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(reproduce(folder, "killed").status().unwrap().success());
    assert_eq!(scores(folder, "killed"), expected);
    // Nothing is computed twice.
    let times = || {
        let entries = fs::read_dir(folder.join("killed/runs")).unwrap().map(|entry| entry.unwrap());
        // A kill may leave a scratch file, which nothing reads.
        let outcomes = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "json"));
        let mut times: Vec<_> = outcomes.map(|e| (e.file_name(), e.metadata().unwrap().modified().unwrap())).collect();
        times.sort();
        times
    };
    let before = times();
    assert!(reproduce(folder, "killed").status().unwrap().success());
    assert_eq!((times(), before.len()), (before, 8));
}

#[test]
fn what_cannot_be_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (args, words) in [
        ("--rows LoRa,Houlsby", &["--rows", "Houlsby", "Adapter_S"][..]),
        ("--tasks wnli", &["--task", "wnli", "cola"]),
        ("--learning-rate LoRA=fast", &["--learning-rate", "LoRA=fast"]),
        ("--data GLUE", &["--model"]),
        ("--model nowhere --data GLUE", &["nowhere"]),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
        command.arg("reproduce").args(args.split(' ')).arg("--output").arg(folder.path().join("out"));
        let output = command.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && words.iter().all(|word| message.contains(word)), "{args}: {message}");
    }
}
