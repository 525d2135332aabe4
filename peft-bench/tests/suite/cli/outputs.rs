//! What commands write: never over what they read, refused before the work where it cannot be, and under hashes when it is there.

use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use super::*;

/// Paths, with bytes and time of what is a file.
type State = Vec<(PathBuf, Option<(Vec<u8>, SystemTime)>)>;

/// A folder with a model, an adapter on it, another adapter and data, and all commands that write, without their outputs.
struct Case {
    folder: Folder,
    model: String,
    adapter: String,
    data: String,
}

impl Case {
    fn new() -> Self {
        let folder = Folder::new();
        let model = folder.copy(&golden("peft-core", "roberta-classify")).to_string_lossy().into_owned();
        let adapter = folder.path("adapter");
        fs::create_dir(&adapter).unwrap();
        for entry in fs::read_dir(golden("peft-reparam", "lora/adapter")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), Path::new(&adapter).join(entry.file_name())).unwrap();
        }
        let data = folder.data();
        folder.write("space.yaml", "{method: lora, max_steps: 1, choices: {r: [1, 2]}}");
        Case { folder, model, adapter, data }
    }

    fn commands(&self) -> Vec<(Vec<String>, &'static [&'static str])> {
        let Case { model, adapter, data, .. } = self;
        let words = |text: &str, paths: &[&String]| {
            let given = paths.iter().map(|path| path.to_string());
            text.split(' ').map(str::to_string).chain(given).collect::<Vec<_>>()
        };
        let own = self.folder.path("own");
        let space = self.folder.path("space.yaml");
        vec![
            (words("forward --input", &[data, &"--model".into(), model, &"--adapter".into(), adapter]), &["--output"]),
            (
                words(
                    "train --method lora --steps 1 --data",
                    &[data, &"--model".into(), model, &"--output".into(), &own],
                ),
                &["--log"],
            ),
            (words("train --method lora --steps 1 --data", &[data, &"--model".into(), model]), &["--output"]),
            (words("merge --model", &[model, &"--adapter".into(), adapter]), &["--output"]),
            (words("convert --to burn --model", &[model, &"--from".into(), adapter]), &["--output"]),
            (words("quantize --scheme nf4 --model", &[model]), &["--output"]),
            (words("merge-adapters --method mean --model", &[model, adapter, adapter]), &["--output"]),
            (
                words(
                    "search --budget 1 --space",
                    &[&space, &"--model".into(), model, &"--data".into(), data, &"--eval".into(), data],
                ),
                &["--output"],
            ),
        ]
    }

    /// Every file and its bytes and times, hidden ones included.
    fn state(&self) -> State {
        fn walk(path: &Path, all: &mut State) {
            let mut entries: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            for path in entries {
                if path.is_dir() && !path.is_symlink() {
                    all.push((path.clone(), None));
                    walk(&path, all);
                } else {
                    let read = fs::read(&path).map(|bytes| (bytes, path.metadata().unwrap().modified().unwrap()));
                    all.push((path, read.ok()));
                }
            }
        }
        let mut all = State::new();
        walk(self.folder.0.path(), &mut all);
        all
    }

    /// The command with this output ends in an error soon, and changes nothing.
    fn refused(&self, command: &[String], option: &str, output: &str) -> String {
        let before = self.state();
        let args: Vec<&str> = command.iter().map(String::as_str).chain([option, output]).collect();
        let error = fail(&args);
        assert_eq!(self.state(), before, "{args:?} changed something: {error}");
        error
    }
}

#[test]
fn no_output_of_any_command_replaces_what_it_reads() {
    let case = Case::new();
    let at = |name: &str| case.folder.path(name);
    symlink(&case.data, at("link")).unwrap();
    fs::hard_link(format!("{}/model.safetensors", case.model), at("hard")).unwrap();
    symlink(format!("{}/adapter_config.json", case.adapter), at("config-link")).unwrap();
    symlink(&case.model, at("model-link")).unwrap();
    let (model, adapter) = (&case.model, &case.adapter);
    for (command, options) in case.commands() {
        let mut outputs = vec![
            case.data.clone(),
            at("link"),
            at("hard"),
            format!("{model}/model.safetensors"),
            format!("{model}/config.json"),
            at("model-link/config.json"),
            format!("{model}/../link"),
        ];
        if command.contains(adapter) {
            outputs.extend([at("config-link"), format!("{adapter}/adapter_model.safetensors"), adapter.clone()]);
        }
        // As soon as it is there it is read.
        outputs.extend([format!("{model}/tokenizer.json"), at("model-link/generation_config.json")]);
        for (option, output) in options.iter().flat_map(|option| outputs.iter().map(move |output| (*option, output))) {
            let error = case.refused(&command, option, output);
            assert!(error.contains(output) || error.contains(option), "{error}");
        }
        // Even where earlier results may be replaced.
        if options == ["--output"] && !["forward", "search"].contains(&&*command[0]) {
            let over = [command.clone(), vec!["--overwrite".into()]].concat();
            for output in [model, adapter, &case.folder.path("")] {
                case.refused(&over, "--output", output);
            }
        }
    }
}

/// The files of a setup lie in the folders of its adapters.
#[test]
fn nothing_that_a_setup_reads_is_replaced() {
    let setups = golden("peft-bench", "adapterhub-setups");
    for (setup, dir, base) in [
        ("stack", "setup", "bert-classify"),
        ("stack-fuse", "setup", "bert-classify"),
        ("fusion-apart", "setup/both", "roberta-classify"),
    ] {
        let case = Case::new();
        let from = setups.join(setup).join("setup");
        assert!(Command::new("cp").arg("-r").arg(from).arg(case.folder.path("setup")).status().unwrap().success());
        let (dir, model) = (case.folder.path(dir), model(base));
        let command = ["forward", "--model", &model, "--setup", &dir, "--input", &case.data].map(String::from);
        let files = case
            .state()
            .into_iter()
            .filter(|(path, file)| file.is_some() && path.starts_with(case.folder.path("setup")));
        let files: Vec<String> = files.map(|(path, _)| path.to_string_lossy().into_owned()).collect();
        assert!(files.len() > 6);
        for output in
            files.iter().chain([&format!("{dir}/adapter_setup.json"), &case.folder.path("setup/a/adapter.safetensors")])
        {
            let error = case.refused(&command, "--output", output);
            names(&error, &["--output", output]);
        }
        succeed(
            &[&command.each_ref().map(String::as_str)[..], &["--output", &case.folder.path("setup/logits")]].concat(),
        );
    }
}

/// What one run at once makes is neither read nor made by another.
#[test]
fn runs_at_once_spare_what_the_others_read_and_make() {
    let case = Case::new();
    let at = |name: &str| case.folder.path(name);
    succeed(&[
        "train",
        "--model",
        &case.model,
        "--method",
        "lora",
        "--steps",
        "1",
        "--data",
        &case.data,
        "--output",
        &at("first"),
    ]);
    let file = |name: &str, more: &str| {
        let start = format!("model_name_or_path: {}\ndata: {}\nmax_steps: 1\n", case.model, case.data);
        case.folder.write(name, &(start + more))
    };
    let again = format!("method: lora\noutput_dir: {}\noverwrite_output_dir: true\n", at("first"));
    for (one, other, words) in [
        (
            again.clone(),
            format!("adapter_name_or_path: {}\noutput_dir: {}\n", at("first"), at("next")),
            ["output_dir", "first"],
        ),
        (again, format!("method: lora\noutput_dir: {}/in\n", at("first")), ["output_dir", "elsewhere"]),
        (
            format!("method: lora\noutput_dir: {}\nlogging_file: {}\n", at("a"), at("log")),
            format!("method: lora\noutput_dir: {}\nlogging_file: {}\n", at("b"), at("log")),
            ["logging_file", "file"],
        ),
        (
            format!("method: lora\noutput_dir: {}\nlogging_file: {}\n", at("a"), at("b/log")),
            format!("method: lora\noutput_dir: {}\n", at("b")),
            ["logging_file", "elsewhere"],
        ),
    ] {
        let files = [file("one.yaml", &one), file("other.yaml", &other)];
        for [a, b] in [[0, 1], [1, 0]] {
            let command = ["train", "--config", &files[a]].map(String::from);
            names(&case.refused(&command, "--config", &files[b]), &words);
        }
    }
}

#[test]
fn outputs_that_can_only_fail_at_the_end_are_refused_at_the_beginning() {
    let case = Case::new();
    let at = |name: &str| case.folder.path(name);
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/file"), "").unwrap();
    symlink("empty", at("to-directory")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    let [long, longer] = [at(&"n".repeat(246)), at(&"n".repeat(256))];
    let directories = [at("to-directory"), at("dangling"), at("full"), at("data.jsonl/out"), "/proc/none".into(), long];
    let files = [
        at("to-directory"),
        at("dangling"),
        at("full"),
        at("none/file"),
        at("data.jsonl/out"),
        "/proc/none".into(),
        longer,
    ];
    for (command, options) in case.commands() {
        let outputs = if command[0] == "forward" || options == ["--log"] { &files[..] } else { &directories };
        for output in outputs {
            let error = case.refused(&command, options[0], output);
            let name = Path::new(output).file_name().unwrap().to_string_lossy().into_owned();
            assert!(error.contains(&name) || error.contains("data.jsonl"), "{error}");
        }
    }
    // Of a table the report and the outcomes.
    let reproduce: Vec<String> = ["reproduce", "--quick"].map(String::from).to_vec();
    fs::create_dir_all(at("report/REPORT.md")).unwrap();
    fs::create_dir(at("runs")).unwrap();
    fs::write(at("runs/runs"), "").unwrap();
    for output in ["report", "runs"] {
        let args = [&reproduce[..], &["--output".into(), at(output)]].concat();
        let error = fail(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.contains(&at(output)), "{error}");
    }
    assert!(!Path::new(&at("report/quick")).exists() && !Path::new(&at("runs/quick")).exists());
    // A pipe that nobody reads would be waited for.
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let error =
        fail(&case.commands()[1].0.iter().map(String::as_str).chain(["--log", &at("pipe")]).collect::<Vec<_>>());
    names(&error, &["pipe", "--log"]);
}

/// A shell's limit of the size of files is an error as a full disk is, and leaves nothing half-written.
#[test]
fn a_file_that_grows_beyond_its_limit_is_an_error() {
    let case = Case::new();
    let output = case.folder.path("limited");
    for (command, _) in case.commands().into_iter().filter(|(_, options)| *options == ["--output"]) {
        let limited = ["-c", "ulimit -f 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_peft")];
        let run = Command::new("sh").args(limited).args(&command).args(["--output", &output]).output().unwrap();
        let told = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{command:?}: {told}");
        names(&told, &["limited", "File too large"]);
        assert!(!told.contains("panicked"), "{told}");
        let made: Vec<_> =
            case.state().into_iter().filter(|(path, _)| path.to_string_lossy().contains("limited")).collect();
        let half = |(path, file): &&(PathBuf, Option<_>)| {
            let name = path.to_string_lossy().into_owned();
            (name.contains(".partial") || file.is_some()) && !name.ends_with(".lock")
        };
        assert_eq!(made.iter().find(half).map(|(path, _)| path), None, "{command:?}");
        for (path, _) in made.iter().rev() {
            let _ = fs::remove_dir_all(path);
            let _ = fs::remove_file(path);
        }
    }
}

/// What was written has hashes; what was changed since is said, and another result takes its place only when it is asked to.
#[test]
fn results_are_verified_and_replaced() {
    let case = Case::new();
    let at = |name: &str| case.folder.path(name);
    let run = |command: &[String], more: &[&str]| {
        peft(&command.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>())
    };
    // A search goes on in its directory.
    let replacing = |command: &[String]| !["forward", "search"].contains(&&*command[0]);
    for (command, options) in case.commands().into_iter().filter(|(command, _)| replacing(command)) {
        if options == ["--log"] {
            continue;
        }
        let name = command[0].clone();
        let dir = at(&format!("{name}-out"));
        let output = run(&command, &["--output", &dir]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let weights = ["adapter_model.safetensors", "model.safetensors", "trained.bpk"]
            .map(|name| Path::new(&dir).join(name))
            .into_iter()
            .find(|path| path.exists())
            .unwrap();
        // burn's record is no file that inspect lists.
        if name != "convert" {
            assert!(succeed(&["inspect", "--verify", &dir]).starts_with("as it was written: "));
        }
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        names(&fail(&["inspect", "--verify", &dir]), &[&weights.to_string_lossy(), "was changed"]);
        if name == "train" {
            let eval = ["eval", "--model", &case.model, "--adapter", &dir, "--data", &case.data];
            let told = String::from_utf8_lossy(&peft(&eval).stderr).into_owned();
            names(&told, &[&weights.to_string_lossy(), "was changed since it was saved"]);
        }
        names(&String::from_utf8_lossy(&run(&command, &["--output", &dir]).stderr), &["new or empty"]);
        fs::write(Path::new(&dir).join("notes.txt"), "mine").unwrap();
        let over = ["--output", &dir, "--overwrite"];
        names(&String::from_utf8_lossy(&run(&command, &over).stderr), &["notes.txt", "no part of the result"]);
        fs::remove_file(Path::new(&dir).join("notes.txt")).unwrap();
        assert!(run(&command, &over).status.success());
        if name == "train" {
            // In the words of transformers, too.
            let file = case.folder.write("run.yaml", "overwrite_output_dir: true\n");
            assert!(run(&command, &["--output", &dir, "--config", &file]).status.success());
            let again = ["--output", dir.as_str(), "--resume"];
            assert!(run(&command, &again).status.success());
            fs::OpenOptions::new().append(true).open(&weights).unwrap().set_len(40).unwrap();
            let changed = String::from_utf8_lossy(&run(&command, &again).stderr).into_owned();
            names(&changed, &["adapter_model.safetensors", "was changed"]);
            let other = [&command[..], &["--lr".into(), "0.5".into(), "--weight-decay".into(), "0.1".into()]].concat();
            let told = String::from_utf8_lossy(&run(&other, &again).stderr).into_owned();
            names(&told, &["learning_rate 0.001", "learning_rate 0.5", "weight_decay 0.1", "another --output"]);
            assert!(!told.contains("adam_beta1"), "{told}");
        }
    }
}

#[test]
fn an_adapter_tells_another_base() {
    let case = Case::new();
    let own = case.folder.path("own");
    succeed(&[
        "train",
        "--model",
        &case.model,
        "--method",
        "lora",
        "--data",
        &case.data,
        "--steps",
        "2",
        "--output",
        &own,
    ]);
    let forward = |adapter: &str| {
        let output = peft(&[
            "forward",
            "--model",
            &case.model,
            "--adapter",
            adapter,
            "--input",
            &case.data,
            "--output",
            &case.folder.path("logits"),
        ]);
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!forward(&own).contains("fingerprint"));
    let path = Path::new(&case.model).join("model.safetensors");
    let file = Checkpoint::open_file(&path).unwrap();
    let mut tensors: std::collections::BTreeMap<String, _> = file
        .names()
        .filter_map(|name| Some((name.to_string(), file.read_f32(name, file.shape(name)?).ok()?)))
        .collect();
    let bias = tensors.get_mut("roberta.encoder.layer.1.output.dense.bias").unwrap();
    let mut values: Vec<f32> = bias.iter().collect();
    values[3] += 1e-3;
    *bias = burn::tensor::TensorData::new(values, bias.shape().clone());
    peft_core::load::write_safetensors(&path, &tensors).unwrap();
    names(&forward(&own), &["warning", "labels.json", "fingerprint", "this model's tensors are others"]);
    // One that PEFT wrote does not tell.
    assert!(!forward(&case.adapter).contains("fingerprint"));
}

/// A run whose labels have one word trains no query of the decoder: that is said, and the result stays.
#[test]
fn a_finished_run_is_kept() {
    let folder = Folder::new();
    let rows: String =
        (0..8).map(|i| json!({"input_ids": [5 + i, 7, 9], "labels": [10 + i % 2]}).to_string() + "\n").collect();
    let (data, output) = (folder.write("data.jsonl", &rows), folder.path("out"));
    let args = ["train", "--model", "shape:t5-tiny", "--method", "lora", "--data", &data, "--label-column", "labels"];
    let told = peft(&[&args[..], &["--steps", "3", "--output", &output]].concat());
    let error = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success(), "{error}");
    names(&error, &["decoder.0.query", "gradient is zero"]);
    folder.holds(&["data.jsonl", "out"]);
}

/// Names and texts of files reach no terminal with codes that it obeys.
#[test]
fn names_of_files_are_shown_and_not_obeyed() {
    let case = Case::new();
    let evil = "\u{1b}[31mx\u{9b}2J";
    let tensors = std::collections::BTreeMap::from([(
        format!("base_model.model.{evil}"),
        burn::tensor::TensorData::new(vec![0f32; 2], [2]),
    )]);
    peft_core::load::write_safetensors(&Path::new(&case.adapter).join("adapter_model.safetensors"), &tensors).unwrap();
    let shown = "\\u001b[31mx\\u009b2J";
    let inspect = succeed(&["inspect", &case.adapter]);
    let data = case.folder.write("evil.jsonl", &json!({"input_ids": [5], evil: 1, "label": evil}).to_string());
    let [output, logits] = ["out", "logits"].map(|name| case.folder.path(name));
    let forward =
        ["forward", "--model", &case.model, "--input", &case.data, "--output", &logits, "--adapter", &case.adapter];
    let train = ["train", "--model", "shape:roberta-tiny", "--method", "lora", "--data", &data, "--steps", "1"];
    let told = [peft(&forward), peft(&[&train[..], &["--output", &output]].concat())];
    edit(Path::new(&case.model).join("config.json"), &|config| config["model_type"] = json!(evil));
    let model = peft(&["inspect", &case.model]);
    assert!(inspect.contains(shown), "{inspect}");
    for told in told.into_iter().chain([model]) {
        let told = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
    }
}

/// Links that a run finds stay links, and what lies behind them goes with the rest.
#[test]
fn links_of_a_run_are_followed() {
    let case = Case::new();
    let at = |name: &str| case.folder.path(name);
    fs::create_dir(at("elsewhere")).unwrap();
    fs::write(at("real.log"), "").unwrap();
    symlink("elsewhere", at("out.checkpoints")).unwrap();
    symlink("real.log", at("log")).unwrap();
    let args = ["train", "--model", &case.model, "--method", "lora", "--data", &case.data, "--save-every", "2"];
    let [log, out] = ["log", "out"].map(at);
    let args = [&args[..], &["--log", &log, "--output", &out, "--resume", "--steps"]].concat();
    // The second time the log is cut where the run is taken up.
    let steps = || {
        let names =
            fs::read_dir(at("elsewhere")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| name.strip_prefix("step-")?.parse::<usize>().ok()).max().unwrap_or(0)
    };
    for step in [4, 10] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
        let mut child = command.args(&args).arg("1000000").stderr(std::process::Stdio::null()).spawn().unwrap();
        while steps() < step {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Path::new(&at("log")).is_symlink(), "{step}");
    }
    fs::remove_dir_all(at("elsewhere")).unwrap();
    fs::create_dir(at("elsewhere")).unwrap();
    succeed(&[&args[..], &["4"]].concat());
    assert!(Path::new(&at("log")).is_symlink() && !Path::new(&at("out.checkpoints")).is_symlink());
    assert!(!Path::new(&at("elsewhere")).exists());
    assert_eq!(fs::read_to_string(at("real.log")).unwrap().lines().count(), 4);
}
