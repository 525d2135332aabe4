//! A run that is killed at any moment is taken up and ends with the bytes of one that was not.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peft_core::random::Random;

/// Kills in all.
const KILLS: usize = 30;

fn data(folder: &Path, rows: usize) -> String {
    data_of(folder, rows, 1)
}

/// Sequences of two classes, and of so many tasks of which the first has the most.
fn data_of(folder: &Path, rows: usize, tasks: usize) -> String {
    let line = |i: usize| {
        let ids: Vec<usize> = (0..12 + i % 9).map(|t| 4 + (7 * i + 3 * t) % 80).collect();
        let task = if i.is_multiple_of(3) { i % tasks } else { 0 };
        format!("{}\n", serde_json::json!({"input_ids": ids, "label": i % 2, "task_id": task}))
    };
    let path = folder.join(format!("data-{rows}.jsonl"));
    fs::write(&path, (0..rows).map(line).collect::<String>()).unwrap();
    path.to_string_lossy().into_owned()
}

fn train(folder: &Path, name: &str, resume: bool, steps: &str) -> Child {
    train_with(&["lora", "--set", "lora_dropout=0.1"], folder, name, resume, steps)
}

fn train_with(method: &[&str], folder: &Path, name: &str, resume: bool, steps: &str) -> Child {
    let output = folder.join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
    command.args(["train", "--model", "shape:roberta-tiny", "--method"]).args(method);
    command.args(["--steps", steps, "--batch-size", "32", "--save-every", "3", "--warmup", "0.1"]);
    let tasks = if method.contains(&"tasks=2") { 2 } else { 1 };
    let [data, eval] = [64, 13].map(|rows| data_of(folder, rows, tasks));
    // Accuracies of 13 rows and this rate are numbers that want all of their digits, and accuracies are often equal.
    command.args(["--data", &data, "--eval", &eval, "--eval-every", "2", "--keep-best"]);
    command.args(["--metric", "accuracy", "--lr", "0.0017887233511355133"]);
    command.arg("--log").arg(folder.join(format!("{name}.log"))).arg("--output").arg(&output);
    if resume {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_run_killed_at_any_moment_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let started = Instant::now();
    assert!(train(folder, "whole", false, "40").wait().unwrap().success());
    let whole = started.elapsed();
    let read = |name: &str| fs::read(folder.join(name).join("adapter_model.safetensors")).unwrap();
    let log = |name: &str| fs::read_to_string(folder.join(format!("{name}.log"))).unwrap();
    let (mut kills, mut run) = (0, 0);
    let mut random = Random::new(0, "kills");
    while kills < KILLS {
        run += 1;
        let name = format!("killed-{run}");
        loop {
            let mut child = train(folder, &name, true, "40");
            let moment = whole.mul_f64(0.1 + 0.8 * random.unit());
            std::thread::sleep(moment.min(Duration::from_secs(5)));
            match child.try_wait().unwrap() {
                Some(status) => {
                    let output = child.wait_with_output().unwrap();
                    assert!(status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                    break;
                }
                None => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    kills += 1;
                }
            }
        }
        assert!(read(&name) == read("whole"), "{name} has other bytes");
        assert_eq!(log(&name), log("whole"), "{name}");
        assert!(!folder.join(format!("{name}.checkpoints")).exists());
    }
}

/// Each of these keeps something of its own between steps: masks, gates, importances, all weights of the model.
#[test]
fn what_methods_keep_between_steps_is_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let several_tasks = &["hyperformer", "--set", "tasks=2", "--task-temperature", "3"][..];
    let methods = ["full", "child-tuning", "diff-pruning", "adalora", "propetl-adapter", "sparse-adapter", "coda"];
    for settings in methods.iter().map(std::slice::from_ref).chain([several_tasks]) {
        let method = settings[0];
        let (whole, stopped) = (format!("{method}-whole"), format!("{method}-stopped"));
        let run = |name: &str, resume| train_with(settings, folder, name, resume, "20");
        let output = run(&whole, false).wait_with_output().unwrap();
        assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
        let mut child = run(&stopped, false);
        let reached = folder.join(format!("{stopped}.checkpoints/step-9"));
        while !reached.exists() && child.try_wait().unwrap().is_none() {}
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(reached.exists(), "{method}: the run ended before it was stopped");
        let output = run(&stopped, true).wait_with_output().unwrap();
        assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
        let read = |name: &str| fs::read(folder.join(name).join("adapter_model.safetensors")).unwrap();
        assert!(read(&stopped) == read(&whole), "{method} has other bytes");
        let log = |name: &str| fs::read_to_string(folder.join(format!("{name}.log"))).unwrap();
        assert_eq!(log(&stopped), log(&whole), "{method}");
    }
}

/// Tasks that are trained together have heads and metrics of their own, and a draw of batches: all of it is taken up.
#[test]
fn tasks_that_are_trained_together_are_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    type Of = fn(usize) -> f64;
    let labels: [(&str, Of); 3] =
        [("two", |i| (i % 2) as f64), ("three", |i| (i / 2 % 3) as f64), ("value", |i| 0.25 + i as f64 / 7.0)];
    for (row, (task, label)) in labels.iter().enumerate() {
        let line = |i: usize| {
            let ids: Vec<usize> = (0..9 + i % 5).map(|t| 4 + (5 * i + (row + 2) * t) % 80).collect();
            let label = label(i);
            let label = if label.fract() == 0.0 { (label as usize).into() } else { serde_json::json!(label) };
            format!("{}\n", serde_json::json!({"input_ids": ids, "label": label}))
        };
        fs::write(folder.join(format!("{task}.jsonl")), (0..24 + 12 * row).map(line).collect::<String>()).unwrap();
    }
    let run = |name: &str, resume: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
        command.args(["train", "--model", "shape:roberta-tiny", "--method", "hyperformer", "--set", "tasks=3"]);
        command.args(["--steps", "20", "--batch-size", "16", "--save-every", "3", "--eval-every", "4"]);
        for (task, _) in labels {
            let file = format!("{task}={}", folder.join(format!("{task}.jsonl")).display());
            command.args(["--task-data", &file, "--task-eval", &file]);
        }
        command.args(["--task-temperature", "3", "--log"]).arg(folder.join(format!("{name}.log")));
        command.arg("--output").arg(folder.join(name)).args(resume.then_some("--resume"));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ends = |child: Child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    ends(run("whole", false));
    let mut child = run("stopped", false);
    let reached = folder.join("stopped.checkpoints/step-9");
    while !reached.exists() && child.try_wait().unwrap().is_none() {}
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(reached.exists(), "the run ended before it was stopped");
    ends(run("stopped", true));
    let read = |name: &str, file: &str| fs::read(folder.join(name).join(file)).unwrap();
    for entry in fs::read_dir(folder.join("whole")).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        if file.ends_with(".safetensors") {
            assert!(read("stopped", &file) == read("whole", &file), "{file} has other bytes");
        }
    }
    let log = |name: &str| fs::read_to_string(folder.join(format!("{name}.log"))).unwrap();
    assert_eq!(log("stopped"), log("whole"));
}

/// Damaged checkpoints are said and done with: those that are written after them stay, and the next run goes on from these.
#[test]
fn damaged_checkpoints_do_not_cost_the_good_ones() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let checkpoints = folder.join("out.checkpoints");
    let steps = || -> Vec<usize> {
        let names = fs::read_dir(&checkpoints).into_iter().flatten().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.to_str()?.strip_prefix("step-")?.parse().ok()).collect()
    };
    let stop_when = |mut run: Child, reached: &dyn Fn() -> bool| {
        while !reached() {
            assert!(run.try_wait().unwrap().is_none(), "the run ended");
        }
        run.kill().unwrap();
        String::from_utf8(run.wait_with_output().unwrap().stderr).unwrap()
    };
    stop_when(train(folder, "out", false, "1000000"), &|| steps().iter().any(|step| *step >= 60));
    let damaged = steps();
    for step in &damaged {
        let path = checkpoints.join(format!("step-{step}/trained.safetensors"));
        // One that the kill found half removed has none, and is damaged too.
        if let Ok(bytes) = fs::read(&path) {
            fs::write(&path, [bytes, vec![0]].concat()).unwrap();
        }
    }
    let fresh = |step: &usize| (6..30).contains(step);
    let told = stop_when(train(folder, "out", true, "1000000"), &|| steps().iter().any(fresh));
    assert!(told.contains("damaged"), "{told}");
    assert!(steps().iter().all(|step| !damaged.contains(step)), "{:?}", steps());
    let from = *steps().iter().max().unwrap();
    let told = stop_when(train(folder, "out", true, "1000000"), &|| steps().iter().any(|step| *step > from));
    assert!(!told.contains("damaged"), "{told}");
}

/// A limit on the size of files stands in for a full disk: the checkpoint of the first step does not fit.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full_is_named_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let (data, output) = (data(folder.path(), 64), folder.path().join("out"));
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_peft"), "train", "--model", "shape:roberta-tiny"]);
    command
        .args(["--method", "lora", "--steps", "4", "--save-every", "1", "--data", &data])
        .arg("--output")
        .arg(output);
    let result = command.output().unwrap();
    let message = String::from_utf8_lossy(&result.stderr).into_owned();
    assert!(!result.status.success() && message.contains("cannot write") && message.contains("step-1"), "{message}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["data-64.jsonl"]);
}

#[test]
fn two_runs_that_write_to_one_output_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // So long that it is still there when the second one begins.
    let mut first = train(folder, "out", false, "1000000");
    while !folder.join("out.checkpoints").join("lock").exists() {
        assert!(first.try_wait().unwrap().is_none(), "the first run ended before the second began");
    }
    let second = train(folder, "out", true, "40").wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && message.contains("another run"), "{message}");
    first.kill().unwrap();
    first.wait().unwrap();
}
