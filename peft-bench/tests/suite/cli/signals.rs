//! SIGINT and SIGTERM: one line, the status that shells expect, and nothing lost.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::*;

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
    command.args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for(child: &mut Child, what: impl Fn() -> bool) {
    let started = Instant::now();
    while !what() {
        assert!(child.try_wait().unwrap().is_none(), "the command ended");
        assert!(started.elapsed().as_secs() < 120, "waited too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The line of a command that a signal ends, with which the status must agree.
fn interrupted(child: Child, signal: &str, status: i32) -> String {
    assert!(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{told}");
    assert!(!told.contains("error") && !told.contains("panicked"), "{told}");
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("interrupted")).collect();
    let [line] = lines[..] else { panic!("{told}") };
    assert_eq!(told.lines().last(), Some(line));
    line.to_string()
}

#[test]
fn a_run_is_saved_and_goes_on() {
    let folder = Folder::new();
    let (data, log, output) = (folder.data(), folder.path("log"), folder.path("out"));
    let args = ["train", "--model", "shape:roberta-tiny", "--method", "lora", "--data", &data, "--steps", "1000000"];
    let args = [&args[..], &["--log", &log, "--output", &output, "--save-every", "900000"]].concat();
    let steps = || fs::read_to_string(&log).map_or(0, |log| log.lines().count());
    let mut child = start(&args);
    wait_for(&mut child, || steps() >= 3);
    let line = interrupted(child, "INT", 130);
    let saved = |line: &str, again: &str| -> usize {
        let (_, rest) = line.split_once("interrupted: the state after step ").unwrap();
        let (step, rest) = rest.split_once(' ').unwrap();
        assert!(rest.ends_with(&format!("out.checkpoints; {again} goes on from there")), "{line}");
        step.parse().unwrap()
    };
    let first = saved(&line, "the same command with --resume");
    assert!(Path::new(&output).with_extension("checkpoints").join(format!("step-{first}")).exists() && first >= 3);
    assert_eq!(steps(), first, "what the log has is what is saved");
    let mut child = start(&[&args[..], &["--resume"]].concat());
    wait_for(&mut child, || steps() >= first + 3);
    assert!(saved(&interrupted(child, "TERM", 143), "the same command") >= first + 3);
    assert!(!Path::new(&output).exists());
}

#[test]
fn what_saves_nothing_says_so() {
    let step =
        ["bench", "step", "--model", "shape:roberta-tiny", "--method", "lora", "--seq", "30", "--steps", "900000000"];
    let text = [
        "bench",
        "generate",
        "--model",
        "shape:llama-tiny",
        "--runs",
        "4000000000",
        "--new-tokens",
        "8",
        "--prompt-tokens",
        "8",
    ];
    for (args, signal, status) in [(&step[..], "INT", 130), (&text, "TERM", 143)] {
        let child = start(args);
        std::thread::sleep(Duration::from_millis(500));
        let line = interrupted(child, signal, status);
        assert!(line.ends_with("nothing was saved; the same command begins anew"), "{line}");
    }
}

/// What measures in processes of its own leaves none of them behind.
#[cfg(target_os = "linux")]
#[test]
fn processes_end_with_the_one_that_started_them() {
    let folder = Folder::new();
    let mut config = peft_core::Shape::named("roberta-base").unwrap().to_config();
    config["vocab_size"] = json!(2000);
    let model = Path::new(&folder.write("config.json", &config.to_string())).parent().unwrap().display().to_string();
    let running = || {
        let entries =
            fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
        entries.filter(|line| String::from_utf8_lossy(line).contains(&model)).count()
    };
    let mut child = start(&["plan", "--model", &model, "--method", "lora", "--steps", "1000000"]);
    wait_for(&mut child, || running() == 2);
    interrupted(child, "TERM", 143);
    let started = Instant::now();
    while running() > 0 {
        assert!(started.elapsed().as_secs() < 60, "a process is left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A search tells where its trials are, whatever its run would say.
#[test]
fn a_search_goes_on() {
    let folder = Folder::new();
    let (data, output) = (folder.data(), folder.path("out"));
    let space = folder.write("space.yaml", "{method: lora, max_steps: 1000000, save_steps: 1, choices: {r: [1, 2]}}");
    let args = ["search", "--space", &space, "--model", "shape:roberta-tiny", "--data", &data, "--eval", &data];
    let mut child = start(&[&args[..], &["--output", &output]].concat());
    let saved = Path::new(&output).join("trials/0000.checkpoints");
    wait_for(&mut child, || {
        fs::read_dir(&saved).is_ok_and(|mut entries| entries.any(|it| it.is_ok_and(|it| it.path().is_dir())))
    });
    let line = interrupted(child, "TERM", 143);
    assert!(line.contains(&output) && line.ends_with("the same command goes on from there"), "{line}");
    assert!(!line.contains("--resume"), "{line}");
}

/// A table tells where its outcomes are, and removes what killed processes left unfinished.
#[test]
fn a_table_goes_on_without_leftovers() {
    let folder = Folder::new();
    let runs = Path::new(&folder.path("out")).join("runs");
    fs::create_dir_all(&runs).unwrap();
    // No process has this number.
    let left = runs.join("lora-rte-0-abc.losses.4294967295-3.tmp");
    fs::write(&left, "[").unwrap();
    fs::write(runs.join("notes.tmp"), "mine").unwrap();
    let mut child = start(&["reproduce", "--quick", "--threads", "1", "--output", &folder.path("out")]);
    wait_for(&mut child, || !left.exists());
    let line = interrupted(child, "TERM", 143);
    assert!(line.contains(&folder.path("out")) && line.ends_with("the same command goes on from there"), "{line}");
    assert!(runs.join("notes.tmp").exists());
}
