//! The program from the outside: its fixed forms, and clear errors that leave nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use peft_core::load::Checkpoint;
use serde_json::{Value, json};

fn golden(crate_name: &str, case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_name).join("tests/golden").join(case)
}

fn model(name: &str) -> String {
    golden("peft-core", name).to_string_lossy().into_owned()
}

fn peft(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peft")).args(args).output().unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = peft(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a command that must fail without a panic.
fn fail(args: &[&str]) -> String {
    let output = peft(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} succeeded");
    assert!(!error.contains("panicked"), "{args:?}: {error}");
    error
}

#[track_caller]
fn names(error: &str, words: &[&str]) {
    assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Twenty examples of two classes that the first token tells apart.
    fn data(&self) -> String {
        let line = |i: usize| {
            let token = |t: usize| if t == 0 { 10 + 60 * (i % 2) } else { 4 + (7 * i + t) % 80 };
            let ids: Vec<usize> = (0..3 + i % 5).map(token).collect();
            json!({"input_ids": ids, "label": i % 2}).to_string() + "\n"
        };
        self.write("data.jsonl", &(0..20).map(line).collect::<String>())
    }

    /// A copy of a golden directory, to be damaged.
    fn copy(&self, from: &Path) -> PathBuf {
        let to = self.0.path().join("copy");
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    }

    /// Only these names are left, hidden ones included.
    fn holds(&self, names: &[&str]) {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
        let mut found: Vec<String> = fs::read_dir(self.0.path()).unwrap().map(name).collect();
        found.sort();
        assert_eq!(found, names);
    }
}

#[test]
fn train_forward_merge_and_inspect_agree() {
    let folder = Folder::new();
    let (model, data) = (model("bert-classify"), folder.data());
    let (adapter, log) = (folder.path("lora"), folder.path("log.jsonl"));
    let settings = "--set r=4 --epochs 20 --batch-size 10 --lr 2e-2 --dropout 0";
    let mut train = vec!["train", "--model", &model, "--method", "lora", "--data", &data, "--eval", &data];
    train.extend(settings.split(' ').chain(["--log", &log, "--output", &adapter]));
    let report: Value = serde_json::from_str(&succeed(&train)).unwrap();
    assert!(report["metrics"]["accuracy"].as_f64().unwrap() > 0.9, "{report}");
    let log = fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 40);
    assert!(losses[39] < losses[0] && lines.iter().any(|line| line["eval_accuracy"].is_number()));

    let (logits, merged, merged_logits) = (folder.path("a"), folder.path("merged"), folder.path("b"));
    succeed(&["forward", "--model", &model, "--adapter", &adapter, "--input", &data, "--output", &logits]);
    succeed(&["merge", "--model", &model, "--adapter", &adapter, "--output", &merged]);
    succeed(&["forward", "--model", &merged, "--input", &data, "--output", &merged_logits]);
    let [a, b] = [&logits, &merged_logits].map(|path| Checkpoint::open_file(Path::new(path)).unwrap());
    assert_eq!(a.names().count(), 20);
    for name in a.names() {
        let difference =
            peft_core::testing::difference(&a.read_f32(name, &[2]).unwrap(), &b.read_f32(name, &[2]).unwrap());
        assert!(difference < peft_core::testing::tolerances::MERGED.0, "{name}: {difference}");
    }
    assert!(succeed(&["inspect", &adapter]).contains("lora_A.weight [4, 24]"));
    assert!(succeed(&["inspect", &merged]).contains("BertForSequenceClassification"));

    let again = folder.path("lora-2");
    succeed(&["train", "--model", &model, "--adapter", &adapter, "--data", &data, "--steps", "3", "--output", &again]);
    let refused = folder.path("refused");
    let merge = ["merge", "--model", &model, "--adapter", &adapter, "--output", &refused, "--max-difference", "1e-12"];
    names(&fail(&merge), &["merged equals unmerged", "1e-12"]);
    assert!(!Path::new(&refused).exists());
    for bound in ["nan", "-1"] {
        names(&fail(&[&merge[..7], &[&format!("--max-difference={bound}")]].concat()), &["--max-difference", "from 0"]);
    }
}

#[test]
fn training_goes_on_with_the_classes_of_the_adapter() {
    let folder = Folder::new();
    let (model, first, second) = (model("roberta-classify"), folder.path("first"), folder.path("second"));
    let data = |name: &str, labels: [&str; 2]| {
        let line =
            |i: usize| json!({"input_ids": [10 + 60 * (i % 2), 7, 9], "label": labels[i % 2]}).to_string() + "\n";
        folder.write(name, &(0..8).map(line).collect::<String>())
    };
    let classes = |adapter: &str| {
        let text = fs::read_to_string(Path::new(adapter).join("labels.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["classes"].clone()
    };
    let train = |start: &[&str], data: &str, output: &str| {
        let end = ["--model", &model, "--data", data, "--steps", "2", "--output", output];
        [&["train"], start, &end].concat().into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    run(train(&["--method", "lora"], &data("a.jsonl", ["cold", "warm"]), &first));
    assert_eq!(classes(&first), json!(["cold", "warm"]));
    run(train(&["--adapter", &first], &data("b.jsonl", ["warm", "warm"]), &second));
    assert_eq!(classes(&second), json!(["cold", "warm"]));
    let other = train(&["--adapter", &first], &data("c.jsonl", ["warm", "hot"]), &folder.path("third"));
    names(&fail(&other.iter().map(String::as_str).collect::<Vec<_>>()), &["c.jsonl", "hot", "cold"]);
}

#[test]
fn texts_leave_room_for_virtual_tokens() {
    let folder = Folder::new();
    let (model, data) = (
        model("roberta-classify"),
        folder.write("long.jsonl", &{
            let line = |i: usize| json!({"input_ids": vec![5 + i; 30], "label": i % 2}).to_string() + "\n";
            (0..4).map(line).collect::<String>()
        }),
    );
    let start = ["train", "--model", &model, "--data", &data, "--steps", "2", "--method", "prefix"];
    let output = folder.path("out");
    let error = fail(&[&start[..], &["--set", "num_virtual_tokens=9", "--output", &output]].concat());
    names(&error, &["long.jsonl", "line 1", "30", "at most 29"]);
    succeed(&[&start[..], &["--set", "num_virtual_tokens=8", "--output", &output]].concat());
}

#[test]
fn a_model_of_random_weights_merges_into_one_that_loads() {
    let folder = Folder::new();
    let (data, adapter, merged) = (folder.data(), folder.path("lora"), folder.path("merged"));
    let train = ["train", "--model", "shape:bert-tiny", "--method", "lora", "--data", &data, "--steps", "2"];
    succeed(&[&train[..], &["--output", &adapter]].concat());
    succeed(&["merge", "--model", "shape:bert-tiny", "--adapter", &adapter, "--output", &merged]);
    succeed(&["forward", "--model", &merged, "--input", &data, "--output", &folder.path("logits")]);
}

#[test]
fn a_classifier_needs_the_pooler_of_its_model() {
    let folder = Folder::new();
    let copy = folder.copy(&golden("peft-core", "bert-mlm")).to_string_lossy().into_owned();
    let (data, output) = (folder.data(), folder.path("out"));
    let train = ["train", "--model", &copy, "--method", "lora", "--data", &data, "--steps", "2", "--output", &output];
    names(&fail(&train), &["pooler.dense.weight", "no such tensor"]);
}

#[test]
fn forward_of_a_word_model_gives_a_row_for_each_token() {
    let folder = Folder::new();
    let rows =
        "{\"input_ids\": [5, 6, 7], \"attention_mask\": [1, 1, 1]}\n{\"input_ids\": [8], \"attention_mask\": [1]}\n";
    let (input, output) = (folder.write("in.jsonl", rows), folder.path("out"));
    succeed(&["forward", "--model", &model("roberta-mlm"), "--input", &input, "--output", &output]);
    let file = Checkpoint::open_file(Path::new(&output)).unwrap();
    assert_eq!((file.shape("logits.0"), file.shape("logits.1")), (Some(&[3, 97][..]), Some(&[1, 97][..])));
}

#[test]
fn params_are_those_of_the_survey() {
    let adapter_s = "bottleneck=200 activation=relu inner_norm=self_attention train_layernorm=false";
    for (method, settings, labels, base, large) in [
        ("full", "", "2", 124_647_170, 355_361_794),
        ("adapter", adapter_s, "0", 7_414_464, 19_768_704),
        ("prompt", "", "2", 607_490, 1_072_130),
        ("prefix", "", "2", 960_770, 2_034_690),
        ("ia3", "", "2", 656_642, 1_223_682),
        ("bitfit", "", "2", 694_274, 1_323_010),
        ("bitfit", "parts=query", "0", 9_216, 24_576),
        ("lora", "", "2", 887_042, 1_838_082),
    ] {
        for (model, expected) in [("shape:roberta-base", base), ("shape:roberta-large", large)] {
            let mut args = vec!["params", "--json", "--model", model, "--method", method, "--labels", labels];
            args.extend(settings.split_whitespace().flat_map(|setting| ["--set", setting]));
            let counts: Value = serde_json::from_str(&succeed(&args)).unwrap();
            assert_eq!(counts["trainable"], expected, "{model} {method}");
        }
    }
}

#[test]
fn impossible_requests_are_refused_and_leave_nothing() {
    let folder = Folder::new();
    let (model, data, output) = (model("roberta-classify"), folder.data(), folder.path("out"));
    for (extra, words) in [
        ("--method lora --set r=0", &["r at roberta.encoder.layer.0", "0", "1 to 24"][..]),
        ("--method lora --set rank=4", &["--set rank", "lora_alpha"]),
        ("--method lora --set r=many", &["--set r", "many"]),
        ("--method lora --set target_modules=q_proj", &["q_proj", "matches nothing", "attention.self.query"]),
        ("--method lora --set target_modules=query,w2", &["w2", "matches nothing"]),
        ("--method lara", &["lara", "one of", "lora"]),
        ("--method prompt --set num_virtual_tokens=0", &["num_virtual_tokens", "0"]),
        ("--method prompt --set num_virtual_tokens=40", &["num_virtual_tokens", "40"]),
        ("--method lora --lr=-1", &["learning_rate", "-1"]),
        ("--method lora --lr 1e30", &["learning_rate", "below 1000000"]),
        ("--method lora --batch-size 0", &["batch_size", "0"]),
        ("--method lora --device gpu", &["gpu", "flex"]),
        ("--method lora --warmup=-3", &["--warmup", "-3"]),
        ("--method lora --set r=4 --set r=2", &["--set r", "twice"]),
        ("--method lora --lr nan", &["learning_rate", "NaN", "below 1000000"]),
        ("--method lora --batch-size 99999999999999999", &["batch_size", "1000000000"]),
        ("--method lora --set target_modules=all-quadratic", &["all-quadratic", "matches nothing"]),
        ("--method lora --data missing.jsonl", &["missing.jsonl", "No such file"]),
        ("--method lora --task imdb", &["imdb", "sst2"]),
    ] {
        let mut args = vec!["train", "--model", &model, "--steps", "2", "--output", &output];
        if !extra.contains("--data") {
            args.extend(["--data", &data]);
        }
        args.extend(extra.split(' '));
        names(&fail(&args), words);
        folder.holds(&["data.jsonl"]);
    }
}

#[test]
fn bad_data_is_named_by_file_and_line() {
    let folder = Folder::new();
    let (model, output) = (model("roberta-classify"), folder.path("out"));
    let too_long = format!("{{\"input_ids\": {:?}, \"label\": 1}}\n", vec![5; 60]);
    for (name, content, words) in [
        ("empty.jsonl", "", &["empty.jsonl"][..]),
        (
            "ids.jsonl",
            "{\"input_ids\": [5], \"label\": 0}\n{\"input_ids\": [97], \"label\": 1}\n",
            &["line 2", "below 97"],
        ),
        ("nan.tsv", "sentence\tlabel\na\tNaN\nb\t0.5\n", &["nan.tsv", "line 2"]),
        ("column.csv", "words,label\na,1\n", &["column.csv", "words"]),
        ("none.jsonl", "{\"input_ids\": [5]}\n", &["label"]),
        ("text.tsv", "sentence\tlabel\nfine\t1\nbad\t0\n", &["tokenizer.json"]),
        ("long.jsonl", &too_long, &["line 1", "60", "38"]),
    ] {
        let data = folder.write(name, content);
        let start = ["train", "--model", &model, "--method", "lora", "--steps", "2", "--output", &output];
        names(&fail(&[&start[..], &["--data", &data]].concat()), words);
        fs::remove_file(data).unwrap();
        folder.holds(&[]);
    }
}

#[test]
fn outputs_that_cannot_be_written_are_named_before_the_work() {
    let folder = Folder::new();
    let (model, data) = (model("roberta-classify"), folder.data());
    let start = ["train", "--model", &model, "--method", "lora", "--data", &data, "--steps", "2"];
    let train = |output: &str| fail(&[&start[..], &["--output", output]].concat());
    names(&train(&folder.path("data.jsonl")), &["data.jsonl", "new or empty"]);
    names(&train(&folder.path("data.jsonl/out")), &["data.jsonl/out"]);
    names(&train("/proc/nowhere/out"), &["cannot create /proc/nowhere/out"]);
    names(&train("."), &["output", "the name of a directory"]);
    names(&fail(&[&start[..], &["--lr=-1", "--output", &folder.path("new/folder/out")]].concat()), &["learning_rate"]);
    fs::create_dir(folder.path("full")).unwrap();
    fs::write(folder.path("full/file"), "").unwrap();
    names(&train(&folder.path("full")), &["full", "new or empty"]);
    let forward = ["forward", "--model", &model, "--input", &data, "--output", "/proc/nowhere"];
    names(&fail(&forward), &["cannot write /proc/nowhere"]);
    // A disk that is full.
    let output = folder.path("out");
    names(
        &fail(&[&start[..], &["--output", &output, "--log", "/dev/full"]].concat()),
        &["cannot write /dev/full", "No space"],
    );
    folder.holds(&["data.jsonl", "full"]);
}

fn edit(path: PathBuf, change: &dyn Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// The error of `peft forward`, which must leave no output.
fn forward(model: &Path, adapter: Option<&Path>) -> String {
    let folder = Folder::new();
    let (data, output) = (folder.data(), folder.path("logits"));
    let [model, adapter] = [Some(model), adapter].map(|path| path.map(|p| p.to_string_lossy().into_owned()));
    let mut args = vec!["forward", "--input", &data, "--output", &output];
    args.extend(model.iter().flat_map(|model| ["--model", model]));
    args.extend(adapter.iter().flat_map(|adapter| ["--adapter", adapter]));
    let error = fail(&args);
    folder.holds(&["data.jsonl"]);
    error
}

#[test]
fn damaged_models_are_named_by_file_and_key() {
    let damaged = |change: &dyn Fn(&Path)| {
        let folder = Folder::new();
        let copy = folder.copy(&golden("peft-core", "roberta-classify"));
        change(&copy);
        forward(&copy, None)
    };
    let config = |key: &'static str, value: Value| {
        damaged(&|dir| edit(dir.join("config.json"), &|config| config[key] = value.clone()))
    };
    names(&damaged(&|dir| fs::remove_file(dir.join("config.json")).unwrap()), &["config.json", "cannot read"]);
    names(&damaged(&|dir| fs::write(dir.join("config.json"), "{").unwrap()), &["config.json", "line 1"]);
    names(&config("hidden_size", json!(1e18)), &["config.json", "hidden_size", "65536"]);
    names(&config("intermediate_size", json!(41)), &["intermediate.dense", "[40, 24]", "[41, 24]"]);
    names(&config("num_hidden_layers", json!(4)), &["encoder.layer.3.", "model.safetensors"]);
    names(&config("num_hidden_layers", json!(2)), &["encoder.layer.2.", "nothing uses", "2 layers"]);
    let twice = |dir: &Path| fs::write(dir.join("config.json"), r#"{"vocab_size": 3, "vocab_size": 4}"#).unwrap();
    names(&damaged(&twice), &["config.json", "vocab_size", "twice"]);
    names(&damaged(&|dir| fs::remove_file(dir.join("model.safetensors")).unwrap()), &["weights", "model.safetensors"]);
    let truncate = |dir: &Path| {
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    };
    names(&damaged(&truncate), &["model.safetensors"]);
    names(&forward(&golden("peft-core", "bert-bare"), None), &["bert-bare", "no head"]);
}

#[test]
fn damaged_and_foreign_adapters_are_named_by_file_and_key() {
    let base = golden("peft-core", "roberta-classify");
    let damaged = |change: &dyn Fn(&Path)| {
        let folder = Folder::new();
        let copy = folder.copy(&golden("peft-reparam", "lora/adapter"));
        change(&copy);
        forward(&base, Some(&copy))
    };
    let config = |key: &'static str, value: Value| {
        damaged(&|dir| edit(dir.join("adapter_config.json"), &|config| config[key] = value.clone()))
    };
    names(&config("use_dora", json!(true)), &["adapter_config.json", "use_dora", "true"]);
    names(&config("init_lora_weights", json!("pissa")), &["adapter_config.json", "init_lora_weights", "pissa"]);
    names(&config("rank_pattern", json!({"(": 2})), &["adapter_config.json", "rank_pattern", "regular expression"]);
    names(&config("some_new_thing", json!(3)), &["adapter_config.json", "some_new_thing"]);
    names(&config("r", json!(4)), &["lora_A.weight", "[3, 24]", "[4, 24]"]);
    names(&config("peft_type", json!("LOHA")), &["adapter_config.json", "peft_type", "LOHA", "LORA"]);
    names(&config("target_modules", json!(["query"])), &["value.lora_A.weight", "nothing uses"]);
    names(&config("target_modules", json!(["query", "value", "key"])), &["key.lora_A.weight"]);
    names(&damaged(&|dir| fs::remove_file(dir.join("adapter_model.safetensors")).unwrap()), &["adapter_model"]);
    let garbage = |dir: &Path| fs::write(dir.join("adapter_model.safetensors"), b"12345678").unwrap();
    names(&damaged(&garbage), &["adapter_model.safetensors"]);
    let on_bert = forward(&golden("peft-core", "bert-classify"), Some(&golden("peft-reparam", "lora/adapter")));
    names(&on_bert, &["base_model.model.bert.encoder.layer.0", "adapter_model.safetensors"]);
}
