//! The tables on models and data that are there: the reports, and a run that was interrupted.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use peft_bench::hermetic;
use peft_bench::reproduce::report::{Cell, Outcome, Report};
use peft_core::io::Pretrained;
use peft_core::{Base, Head, LanguageModel, Shape};

/// A model of random weights with the tokenizer of the generated data.
fn model(folder: &Path, shape: &str, head: impl FnOnce(&Base) -> Head) {
    let shape = Shape { vocab: 1000, positions: 512, ..Shape::named(shape).unwrap() };
    let mut model = Pretrained::random(shape, 0, &peft_core::device("flex").unwrap());
    model.dir = Some(folder.to_path_buf());
    model.save(&folder.join("model"), &model.base, &head(&model.base), &[]).unwrap();
}

fn reproduce(folder: &Path, data: &str, args: &str, output: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
    command.arg("reproduce").arg("--model").arg(folder.join("model")).arg("--data").arg(folder.join(data));
    command.args(args.split(' ')).arg("--output").arg(folder.join(output)).stdout(Stdio::null());
    command
}

fn report(folder: &Path, output: &str) -> Report {
    let text = fs::read_to_string(folder.join(output).join("report.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn runs(report: &Report) -> impl Iterator<Item = &Outcome> {
    report.rows.iter().flat_map(|row| row.cells.iter().flat_map(|cell| cell.runs.iter()))
}

fn scores(folder: &Path, output: &str) -> Vec<Vec<f64>> {
    runs(&report(folder, output)).map(|run| run.scores.clone()).collect()
}

/// Runs a table of sequences twice, the second time without computing anything.
fn sequences(folder: &Path, args: &str) -> Report {
    assert!(reproduce(folder, ".", args, "out").status().unwrap().success());
    let first = report(folder, "out");
    // Outcomes hold how long they took, so equal ones were read.
    assert!(reproduce(folder, ".", args, "out").status().unwrap().success());
    let seconds = |report: &Report| runs(report).map(|run| run.seconds).collect::<Vec<_>>();
    assert_eq!(seconds(&report(folder, "out")), seconds(&first));
    first
}

/// Rows with how many scores each run has.
fn filled(report: &Report) -> Vec<(&str, Vec<usize>)> {
    let runs = |cells: &[Cell]| cells.iter().flat_map(|cell| &cell.runs).map(|run| run.scores.len()).collect();
    report.rows.iter().map(|row| (&*row.name, runs(&row.cells))).collect()
}

#[test]
fn table_iv_on_a_model_and_files_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    hermetic::translation::write(folder, 0).unwrap();
    model(folder, "t5-tiny", |_| Head::LanguageModel(LanguageModel {}));
    let args = "--table 4 --rows ia3,lora --seeds 0,1 --max-steps 2 --limit 5 --test dev";
    let report = sequences(folder, args);
    assert_eq!(filled(&report), [("no tuning", vec![1]), ("IA3", vec![1, 1]), ("LoRA", vec![1, 1])]);
    assert!(runs(&report).all(|run| (0.0..=100.0).contains(&run.scores[0]) && run.errors.is_empty()));
    assert_eq!(report.rows[2].cells[0].survey, [27.78]);

    let lines = fs::read_to_string(folder.join("dev.en")).unwrap();
    fs::write(folder.join("dev.en"), lines.split_once('\n').unwrap().1).unwrap();
    let output = reproduce(folder, ".", args, "new").stderr(Stdio::piped()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("dev.en: line 500"), "{message}");
}

#[test]
fn tables_v_and_vi_on_a_model_and_files_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    hermetic::lore::write(folder, 0).unwrap();
    model(folder, "llama-tiny", |_| Head::LanguageModel(LanguageModel {}));
    let report = sequences(folder, "--table 6 --seeds 0 --max-steps 2 --limit 2");
    let rows = ["no tuning", "FT", "IA3", "LoRA", "QLoRA"].map(|name| (name, vec![2]));
    assert_eq!(filled(&report), rows);
    // Two questions of each of four subjects.
    for run in runs(&report) {
        assert!(run.scores.iter().all(|score| (score / 12.5).fract() == 0.0), "{run:?}");
        let share = run.scores[1] / 100.0;
        assert!((run.errors[1] - 100.0 * (share * (1.0 - share) / 8.0).sqrt()).abs() < 1e-9, "{run:?}");
    }
    let markdown = fs::read_to_string(folder.join("out/REPORT.md")).unwrap();
    assert!(["Standard errors", "8 questions of 4 subjects", "QLoRA"].iter().all(|word| markdown.contains(word)));

    fs::remove_dir_all(folder.join("out")).unwrap();
    let report = sequences(folder, "--table 5 --seeds 0 --max-steps 2 --limit 2 --batch-size 4");
    assert_eq!(report.rows.len(), 4);
    assert!(report.rows[1..].iter().all(|row| row.name.starts_with("FT, ") && row.cells[0].runs.len() == 1));

    fs::write(folder.join("alpaca_data.json"), "[{\"instruction\": \"a\", \"input\": \"\"}]").unwrap();
    let output = reproduce(folder, ".", "--table 6", "new").stderr(Stdio::piped()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("output") && message.contains("alpaca"), "{message}");
}

/// The outcomes of `killed`, and when they were written.
fn written(folder: &Path) -> Vec<(OsString, SystemTime)> {
    let entries = fs::read_dir(folder.join("killed/runs")).unwrap().map(|entry| entry.unwrap());
    // A kill may leave a scratch file, which nothing reads.
    let outcomes = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "json"));
    let mut times: Vec<_> = outcomes.map(|e| (e.file_name(), e.metadata().unwrap().modified().unwrap())).collect();
    times.sort();
    times
}

/// How long the table takes that is made in `whole`.
fn timed(reproduce: impl Fn(&'static str) -> Command) -> Duration {
    let started = Instant::now();
    assert!(reproduce("whole").status().unwrap().success());
    started.elapsed()
}

/// The same table in `killed`, made to its end after it was killed three times.
fn interrupted(reproduce: impl Fn(&'static str) -> Command, whole: Duration) {
    for part in 1..4 {
        let mut child = reproduce("killed").spawn().unwrap();
        std::thread::sleep(whole.mul_f64(0.2 * f64::from(part)).min(Duration::from_secs(20)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(reproduce("killed").status().unwrap().success());
}

const TABLE_III: &str =
    "--rows BitFit,lora --tasks cola,mrpc --seeds 3,4 --max-steps 4 --batch-size 8 --learning-rate LoRA=1e-2";

#[test]
fn a_table_that_was_interrupted_goes_on_and_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    hermetic::write(folder, 0).unwrap();
    model(folder, "roberta-tiny", |base| Head::masked_lm(base, 0));
    let reproduce = |output| reproduce(folder, "glue", TABLE_III, output);
    let whole = timed(reproduce);
    let expected = scores(folder, "whole");
    // Two rows, two tasks, two seeds; MRPC has two metrics.
    assert_eq!(expected.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 2, 2, 1, 1, 2, 2]);
    for file in ["REPORT.md", "report.html"] {
        let text = fs::read_to_string(folder.join("whole").join(file)).unwrap();
        assert!(["BitFit", "LoRA", "62.09", "0.89M"].iter().all(|word| text.contains(word)), "{file}");
    }

    interrupted(reproduce, whole);
    assert_eq!(scores(folder, "killed"), expected);
    // Nothing is computed twice.
    let times = || written(folder);
    let before = times();
    assert!(reproduce("killed").status().unwrap().success());
    assert_eq!((times(), before.len()), (before.clone(), 8));

    // An outcome that somebody changed is none.
    let changed = folder.join("killed/runs").join(&before[0].0);
    let text = fs::read_to_string(&changed).unwrap().replace("\"scores\":[", "\"scores\":[1");
    fs::write(&changed, text).unwrap();
    assert!(reproduce("killed").status().unwrap().success());
    assert_eq!(scores(folder, "killed"), expected);

    // Nor is that of another model, though its tensors are the same.
    let config = folder.join("model/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
    other["layer_norm_eps"] = 0.5.into();
    fs::write(&config, other.to_string()).unwrap();
    assert!(reproduce("killed").status().unwrap().success());
    assert_eq!(times().len(), 16);
}

const ALL_METHODS: &str =
    "--table methods --rows lora,spot,mpt,laplace-lora --tasks cola,stsb --seeds 3 --max-steps 2 --batch-size 8";

/// Seed, scores, numbers trained, numbers stored, and what a merge changes.
type Found = (u64, Vec<f64>, [usize; 2], usize, Option<f64>);

/// Rows that start from others' adapters among them; each run is a process of its own.
#[test]
fn the_table_of_all_methods_goes_on_and_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    hermetic::write(folder, 0).unwrap();
    model(folder, "roberta-tiny", |base| Head::masked_lm(base, 0));
    let reproduce = |output| reproduce(folder, "glue", ALL_METHODS, output);
    let whole = timed(reproduce);
    // All but times and memory, which are measured anew.
    let results = |output: &str| -> Vec<Found> {
        let of = |run: &Outcome| {
            let cost = run.cost.clone().unwrap();
            assert!(
                cost.step_seconds.is_none_or(|seconds| seconds > 0.0)
                    && cost.peak_bytes.is_none_or(|bytes| bytes > 1 << 20)
            );
            (run.seed, run.scores.clone(), cost.trained, cost.stored, cost.merged)
        };
        runs(&report(folder, output)).map(of).collect()
    };
    let expected = results("whole");
    // CoLA and STS-B, of a LoRA, two prompts and a posterior, which trains nothing and does not merge.
    assert_eq!(expected.iter().map(|run| run.1.len()).collect::<Vec<_>>(), [1, 2].repeat(4));
    let merges = expected.iter().map(|run| run.4.is_some_and(|difference| difference < 1e-3)).collect::<Vec<_>>();
    assert_eq!(merges, [[true; 2], [false; 2], [false; 2], [false; 2]].concat());
    assert!(expected[..6].iter().all(|run| run.2[0] > 0 && run.3 >= run.2[0]) && expected[6].2[0] == 0);
    for file in ["REPORT.md", "report.html"] {
        let text = fs::read_to_string(folder.join("whole").join(file)).unwrap();
        assert!(["Laplace-LoRA", "low-rank decomposition", "peak MB"].iter().all(|word| text.contains(word)), "{file}");
    }

    interrupted(reproduce, whole);
    assert_eq!(results("killed"), expected);
    // Beside the eight of the table three prompts and the MPT of the sources.
    let before = written(folder);
    assert!(reproduce("killed").status().unwrap().success());
    assert_eq!((written(folder), before.len()), (before.clone(), 12));
}

/// Each row on tasks with one and with two metrics and with other heads, alone and together; what starts from others' adapters too.
#[test]
fn the_table_of_several_tasks_goes_on_and_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    hermetic::write(folder, 0).unwrap();
    model(folder, "roberta-tiny", |base| Head::masked_lm(base, 0));
    let args = "--table multi-task --tasks cola,stsb,mnli --seeds 3 --max-steps 3 --batch-size 8";
    let reproduce = |output| reproduce(folder, "glue", args, output);
    let whole = timed(reproduce);
    let expected = scores(folder, "whole");
    assert_eq!(expected.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 1].repeat(10));
    assert!(expected.iter().flatten().all(|score| score.is_finite()));
    let report = report(folder, "whole");
    let together = report.rows.iter().find(|row| row.name == "Hyperformer++").unwrap();
    assert!(together.cells.iter().all(|cell| cell.runs[0].seconds == together.cells[0].runs[0].seconds));
    let text = fs::read_to_string(folder.join("whole/REPORT.md")).unwrap();
    // All but the first row of each of the two groups.
    assert_eq!(text.matches("| difference |").count(), 8, "{text}");
    assert!(text.contains("tasks=3"), "{text}");
    interrupted(reproduce, whole);
    assert_eq!(scores(folder, "killed"), expected);
}

/// A method that cannot run on a model is told with its reason, and keeps no other from being run.
#[test]
fn a_method_that_cannot_run_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    hermetic::write(folder, 0).unwrap();
    // WARP stands behind the head for masked words.
    model(folder, "roberta-tiny", |base| Head::classifier(base, 2, 0));
    let args = "--table methods --rows warp,bitfit --tasks cola --seeds 0 --max-steps 2 --batch-size 8";
    let output = reproduce(folder, "glue", args, "out").stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    let report = report(folder, "out");
    assert_eq!(filled(&report), [("WARP", vec![]), ("BitFit", vec![1])]);
    let told = report.notes.iter().find(|note| note.starts_with("Failed: WARP on CoLA"));
    assert!(told.is_some_and(|note| note.contains("masked words")), "{:?}", report.notes);
}

/// The others are trained, and the report and the last word say which run failed.
#[test]
fn a_run_that_diverges_does_not_keep_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    hermetic::write(folder, 0).unwrap();
    model(folder, "roberta-tiny", |base| Head::masked_lm(base, 0));
    let args =
        "--rows Adapter_S,LoRA --tasks cola --seeds 0 --max-steps 30 --batch-size 8 --learning-rate Adapter_S=9e5";
    let output = reproduce(folder, "glue", args, "out").stderr(Stdio::piped()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("Adapter_S on CoLA, seed 0"), "{message}");
    let report = report(folder, "out");
    assert_eq!(filled(&report), [("Adapter_S", vec![]), ("LoRA", vec![1])]);
    assert!(report.notes.iter().any(|note| note.starts_with("Failed: Adapter_S on CoLA")), "{:?}", report.notes);
}

/// A short step of a row, which is measured once.
#[test]
fn the_table_of_memory_measures_and_plans() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
        command
            .args(["reproduce", "--table", "7", "--quick", "--rows", "roberta-base/bitfit", "--output"])
            .arg(&output);
        assert!(command.stdout(Stdio::null()).status().unwrap().success());
        let report: serde_json::Value = serde_json::from_slice(&fs::read(output.join("report.json")).unwrap()).unwrap();
        report["rows"].clone()
    };
    let rows = run();
    let outcome = &rows[0]["outcome"];
    let [peak, planned] = ["peak_bytes", "planned_bytes"].map(|key| outcome[key].as_f64().unwrap());
    // The weights of the shape alone; a step of 16 tokens is little more.
    let weights = 4.0 * peft_core::Shape::named("roberta-base").unwrap().count() as f64;
    assert!(weights < peak && peak < 1.5 * weights && (planned / peak - 1.0).abs() < 0.2, "{outcome}");
    assert!(outcome["seconds"].as_f64().unwrap() > 0.0 && rows.as_array().unwrap().len() == 1);
    assert_eq!(run(), rows, "the seconds too are those that were kept");
    assert!(fs::read_to_string(output.join("REPORT.md")).unwrap().contains("RoBERTa-base  BitFit       3.27"));
}

#[test]
fn what_cannot_be_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (args, words) in [
        ("--rows LoRa,Houlsby", &["--rows", "Houlsby", "Adapter_S"][..]),
        ("--tasks wnli", &["--task", "wnli", "cola"]),
        ("--learning-rate LoRA=fast", &["--learning-rate", "LoRA=fast"]),
        ("--data GLUE", &["--model"]),
        ("--test dev", &["--test", "Table IV"]),
        ("--limit 3", &["--limit", "Tables IV to VI"]),
        ("--table 6 --tasks rte", &["--tasks", "Table III"]),
        ("--table 7 --rows BitFit,RoBERTa-base/QLoRA", &["--rows", "RoBERTa-base/QLoRA", "LLaMA-7B/QLoRA"]),
        ("--table 7 --seeds 0", &["--seeds", "Tables III to VI"]),
        ("--table methods --tasks rte", &["--tasks", "rte", "sources"]),
        ("--table multi-task --tasks rte", &["--tasks", "rte", "two tasks or more"]),
        ("--table methods --rows lora --job LoRA/cola", &["--job", "ROW/TASK/SEED"]),
        ("--model nowhere --data GLUE", &["nowhere"]),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
        command.arg("reproduce").args(args.split(' ')).arg("--output").arg(folder.path().join("out"));
        let output = command.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && words.iter().all(|word| message.contains(word)), "{args}: {message}");
    }
}
