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
fn the_settings_that_a_run_saves_repeat_it() {
    let folder = Folder::new();
    let (data, first, second) = (folder.data(), folder.path("first"), folder.path("second"));
    let mut train = vec!["train", "--model", "shape:bert-tiny", "--method", "lora", "--data", &data, "--eval", &data];
    let settings = "--set r=3 --set target_modules=.*key --steps 3 --batch-size 5 --accumulate 2 --optimizer adafactor \
        --schedule cosine --warmup 0.4 --group-by-length --lr 3e-3 --seed 7 --keep-best --metric accuracy";
    train.extend(settings.split_whitespace());
    train.extend(["--output", &first]);
    succeed(&train);
    let yaml = format!("{first}/train.yaml");
    succeed(&["train", "--config", &yaml, "--output", &second]);
    let adapter = |dir: &str| fs::read(Path::new(dir).join("adapter_model.safetensors")).unwrap();
    assert!(adapter(&first) == adapter(&second));
    assert_eq!(fs::read_to_string(yaml).unwrap(), fs::read_to_string(format!("{second}/train.yaml")).unwrap());
    let card = fs::read_to_string(format!("{first}/README.md")).unwrap();
    assert!(card.starts_with("---\nlibrary_name: peft\n") && card.contains("| accuracy | "), "{card}");
    let third = folder.path("third");
    succeed(&["train", "--config", &format!("{first}/train.yaml"), "--seed", "8", "--output", &third]);
    assert!(adapter(&first) != adapter(&third));
    let wrong = folder.write("wrong.yaml", "learning_rat: 1e-3\n");
    names(&fail(&["train", "--config", &wrong]), &["wrong.yaml", "learning_rat", "`learning_rate`"]);
}

#[test]
fn steps_are_measured() {
    let step = ["bench", "step", "--model", "shape:bert-tiny", "--method", "lora", "--batch", "3", "--seq", "9"];
    let report: Value = serde_json::from_str(&succeed(&[&step[..], &["--steps", "2"]].concat())).unwrap();
    let seconds = |key: &str| report["seconds"][key].as_f64().unwrap();
    assert!(seconds("best") <= seconds("median") && report["tokens_per_second"].as_f64().unwrap() > 0.0);
    // r 8 on query and value of two layers of width 24, and a head of two classes.
    assert_eq!(report["trainable"], 2 * 2 * 8 * 2 * 24 + 2 * 24 + 2);
    assert!(report["peak_bytes"].as_u64().unwrap() > 1_000_000);
    names(&fail(&[&step[..9], &["999"]].concat()), &["--seq", "3 sequences of 999", "40"]);
}

#[test]
fn shells_and_manuals_are_served() {
    assert!(succeed(&["completions", "bash"]).contains("--micro-rows"));
    assert!(succeed(&["man"]).contains(".TH") && succeed(&["man", "train"]).contains("micro\\-rows"));
    names(&fail(&["man", "trian"]), &["trian", "train"]);
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
        ("--method lora --set r=0", &["r at roberta.encoder.layer.0", "0", "1 to 65536"][..]),
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
        ("--method lora --threads 100000", &["threads", "1024"]),
        ("--method lora --lr 0", &["learning_rate", "0", "above 0"]),
        ("--method lora --set rank_pattern={\"query\":2,\"query\":3}", &["rank_pattern", "twice"]),
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
        ("none.jsonl", "{\"input_ids\": [5]}\n", &["none.jsonl: columns: found [\"input_ids\"]", "label, labels"]),
        (
            "types.jsonl",
            "{\"input_ids\": [5], \"label\": 0}\n{\"input_ids\": [5], \"token_type_ids\": [7], \"label\": 0}\n",
            &["types.jsonl: line 2", "type 7 in token_type_ids", "below 1"],
        ),
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
fn virtual_tokens_leave_less_room_for_the_data() {
    let folder = Folder::new();
    let (model, adapter) = (model("roberta-classify"), folder.path("prompt"));
    let line = |tokens: usize| format!("{}\n", json!({"input_ids": vec![5; tokens], "label": tokens % 2}));
    let (short, long) =
        (folder.write("short.jsonl", &(line(3) + &line(34))), folder.write("long.jsonl", &(line(3) + &line(35))));
    let start = ["train", "--model", &model, "--method", "prompt", "--set", "num_virtual_tokens=4", "--steps", "1"];
    let train = |data: &str| peft(&[&start[..], &["--data", data, "--output", &adapter]].concat());
    assert!(train(&short).status.success());
    fs::remove_dir_all(&adapter).unwrap();
    let error = String::from_utf8(train(&long).stderr).unwrap();
    names(&error, &["long.jsonl: line 2: found 35 input_ids, expected at most 34"]);
    train(&short);
    let output = folder.path("logits");
    let forward = ["forward", "--model", &model, "--adapter", &adapter, "--input", &long, "--output", &output];
    names(&fail(&forward), &["long.jsonl: line 2: found 35 input_ids, expected at most 34"]);
    let eval = ["eval", "--model", &model, "--adapter", &adapter, "--data", &long];
    names(&fail(&eval), &["long.jsonl: line 2: found 35 input_ids, expected at most 34"]);
}

/// A golden model with a tokenizer: a letter is a token.
fn spelling_model(folder: &Folder, name: &str) -> String {
    let copy = folder.copy(&golden("peft-core", name));
    let vocab: serde_json::Map<String, Value> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        .map(String::from)
        .into_iter()
        .chain(('a'..='z').map(String::from))
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}});
    fs::write(copy.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    copy.to_string_lossy().into_owned()
}

#[test]
fn predict_gives_a_line_for_each_line() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "bert-classify");
    let predict = |content: &str| peft(&["predict", "--model", &model, "--file", &folder.write("lines.txt", content)]);
    let output = String::from_utf8(predict("one\r\ntwo\nthree").stdout).unwrap();
    let texts: Vec<Value> =
        output.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].clone()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    let error = |content: &str| String::from_utf8(predict(content).stderr).unwrap();
    names(&error("one\n \ntwo\n"), &["lines.txt: line 2: found a blank line"]);
    names(&error(""), &["texts", "none"]);
    fs::write(folder.path("lines.txt"), b"one\ntw\xff\n").unwrap();
    names(
        &fail(&["predict", "--model", &model, "--file", &folder.path("lines.txt")]),
        &["lines.txt: line 2: found bytes that are no text"],
    );
}

#[test]
fn tasks_are_trained_and_measured_in_the_layout_of_glue() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "bert-classify");
    let rows = |row: &dyn Fn(usize) -> String| (0..24).map(row).collect::<String>();
    for (task, directory, dev, header, row, metrics) in [
        (
            "cola",
            "CoLA",
            "dev.tsv",
            "",
            &(|i: usize| format!("x\t{}\t\tword {}\n", i % 2, i % 5)) as &dyn Fn(usize) -> String,
            &["matthews"][..],
        ),
        ("sst2", "SST-2", "dev.tsv", "sentence\tlabel\n", &|i| format!("\"good {}\t{}\n", i % 5, i % 2), &["accuracy"]),
        (
            "mrpc",
            "MRPC",
            "dev.tsv",
            "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n",
            &|i| format!("{}\t1\t2\ta \"b\tc {}\r\n", i % 2, i % 5),
            &["accuracy", "f1"],
        ),
        (
            "stsb",
            "STS-B",
            "dev.tsv",
            "index\tsentence1\tsentence2\tscore\n",
            &|i| format!("{i}\ta\tb{}\t{}\n", "b".repeat(i % 5), i % 6),
            &["pearson", "spearman"],
        ),
        (
            "qqp",
            "QQP",
            "dev.tsv",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ttorn\n apart\t0\n",
            &|i| format!("{i}\t1\t2\ta\tb{}\t{}\n", i % 5, i % 2),
            &["accuracy", "f1"],
        ),
        (
            "mnli",
            "MNLI",
            "dev_matched.tsv",
            "index\tsentence1\tsentence2\tlabel1\tgold_label\n",
            &|i| format!("{i}\ta\tb{}\tneutral\t{}\n", i % 5, ["contradiction", "entailment", "neutral"][i % 3]),
            &["accuracy"],
        ),
        (
            "qnli",
            "QNLI",
            "dev.tsv",
            "index\tquestion\tsentence\tlabel\n",
            &|i| format!("{i}\ta\tb{}\t{}\n", i % 5, ["not_entailment", "entailment"][i % 2]),
            &["accuracy"],
        ),
        (
            "rte",
            "RTE",
            "dev.tsv",
            "index\tsentence1\tsentence2\tlabel\n",
            &|i| format!("{i}\ta\tb{}\t{}\n", i % 5, ["not_entailment", "entailment"][i % 2]),
            &["accuracy"],
        ),
    ] {
        fs::create_dir_all(folder.path(&format!("glue/{directory}"))).unwrap();
        let (glue, own, adapter) = (folder.path("glue"), folder.path(&format!("glue/{directory}")), folder.path(task));
        for file in ["train.tsv", dev] {
            folder.write(&format!("glue/{directory}/{file}"), &(header.to_string() + &rows(row)));
        }
        let train = ["train", "--model", &model, "--method", "bitfit", "--task", task, "--data", &glue, "--steps", "2"];
        let report: Value = serde_json::from_str(&succeed(&[&train[..], &["--output", &adapter]].concat())).unwrap();
        let eval = ["eval", "--model", &model, "--adapter", &adapter, "--task", task, "--data", &own];
        let output = peft(&eval);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{task}: {error}");
        assert_eq!(error.contains("left out: ") && error.contains("line 3: found 2 fields"), task == "qqp", "{error}");
        let mut measured: Value = serde_json::from_slice(&output.stdout).unwrap();
        let keys: Vec<&str> = measured.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, [&["task", "examples"], metrics, &["loss"]].concat(), "{task}");
        assert_eq!((measured["task"].as_str(), measured["examples"].as_u64()), (Some(task), Some(24)));
        for key in metrics.iter().chain(&["loss"]) {
            assert_eq!(measured[key].take(), report["metrics"][key], "{task} {key}");
        }
        let classes: Value =
            serde_json::from_slice(&fs::read(Path::new(&adapter).join("labels.json")).unwrap()).unwrap();
        let expected = match task {
            "stsb" => json!([]),
            "mnli" => json!(["entailment", "neutral", "contradiction"]),
            "qnli" | "rte" => json!(["entailment", "not_entailment"]),
            // The head of the model is trained on, under the names that transformers gives to classes without any.
            _ => json!(["LABEL_0", "LABEL_1"]),
        };
        assert_eq!(classes["classes"], expected, "{task}");
    }
    // Classes in another order than GLUE's: those of a file by itself are sorted.
    let [train_file, dev_file] = ["train", "dev_matched"].map(|name| folder.path(&format!("glue/MNLI/{name}.tsv")));
    let (glue, adapter) = (folder.path("glue"), folder.path("sorted"));
    let train = ["train", "--model", &model, "--method", "bitfit", "--steps", "2", "--output", &adapter];
    let files = ["--data", &train_file, "--eval", &dev_file];
    let report: Value = serde_json::from_str(&succeed(&[&train[..], &files].concat())).unwrap();
    let eval = ["eval", "--model", &model, "--adapter", &adapter, "--task", "mnli", "--data", &glue];
    let measured: Value = serde_json::from_str(&succeed(&eval)).unwrap();
    assert_eq!(
        (&measured["accuracy"], &measured["loss"]),
        (&report["metrics"]["accuracy"], &report["metrics"]["loss"])
    );

    let start = ["train", "--model", &model, "--method", "bitfit", "--steps", "1", "--output", &folder.path("out")];
    let train = |task: &str, data: &str| fail(&[&start[..], &["--task", task, "--data", data]].concat());
    let (glue, rte) = (folder.path("glue"), folder.path("glue/RTE"));
    names(&train("qnli", &rte), &["RTE/train.tsv: column \"question\"", "sentence1"]);
    names(&train("cola", &folder.path("glue/MRPC")), &["MRPC/train.tsv: line 1: found 5 fields, expected 4"]);
    names(&train("wnli", &glue), &["--task", "wnli", "cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte"]);
    folder.write("glue/RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tneutral\n");
    names(
        &train("rte", &glue),
        &["RTE/dev.tsv: line 2, label: found \"neutral\"", r#"["entailment", "not_entailment"]"#],
    );
    fs::remove_file(folder.path("glue/RTE/dev.tsv")).unwrap();
    names(&train("rte", &glue), &["RTE/dev.tsv", "task rte: found no such file", "train.tsv and dev.tsv", "RTE/"]);
    fs::write(folder.path("glue/SST-2/train.tsv"), b"sentence\tlabel\ngood\t1\nb\xe4d\t0\n").unwrap();
    names(&train("sst2", &glue), &["SST-2/train.tsv: line 3: found bytes that are no text, expected UTF-8"]);
    let eval = ["eval", "--model", &model, "--adapter", &folder.path("sst2"), "--task", "mnli", "--data", &glue];
    names(&fail(&eval), &["--task", "mnli, which needs a head with 3 outputs", "with 2"]);
}

#[test]
fn columns_of_ones_own_are_named() {
    let folder = Folder::new();
    let (model, adapter) = (spelling_model(&folder, "bert-classify"), folder.path("lora"));
    let rows = |row: &dyn Fn(usize) -> String| (0..12).map(row).collect::<String>();
    let named = ["--text-column", "said", "--pair-column", "meant", "--label-column", "stance"];
    let stance = |i: usize| ["no", "yes"][i % 2];
    let csv = "said,meant,stance\n".to_string() + &rows(&|i| format!("\"a, {}\",b,{}\n", i % 5, stance(i)));
    let jsonl = rows(&|i| format!("{}\n", json!({"stance": stance(i), "said": format!("a, {}", i % 5), "meant": "b"})));
    let numbers = "said\tmeant\tstance\n".to_string() + &rows(&|i| format!("a, {}\tb\t{}\n", i % 5, i % 2));
    let bare = rows(&|i| format!("{}\ta, {}\tb\n", stance(i), i % 5));
    let files =
        [("a.csv", csv), ("a.jsonl", jsonl), ("a.tsv", numbers)].map(|(name, content)| folder.write(name, &content));
    let bare = folder.write("bare.tsv", &bare);
    let train =
        ["train", "--model", &model, "--method", "lora", "--epochs", "2", "--data", &files[0], "--eval", &files[1]];
    let report: Value =
        serde_json::from_str(&succeed(&[&train[..], &named, &["--output", &adapter]].concat())).unwrap();
    let eval = |data: &str, columns: &[&str]| {
        let start = ["eval", "--model", &model, "--adapter", &adapter, "--data", data];
        serde_json::from_str::<Value>(&succeed(&[&start[..], &named, columns].concat())).unwrap()
    };
    let expected = report["metrics"].as_object().unwrap();
    for found in files.iter().map(|file| eval(file, &[])).chain([eval(&bare, &["--columns", "stance,said,meant"])]) {
        assert_eq!(found["examples"], 12);
        assert!(expected.iter().all(|(name, value)| found[name] == *value), "{found} {expected:?}");
    }
    let start = ["eval", "--model", &model, "--adapter", &adapter, "--data", &files[0]];
    names(&fail(&[&start[..], &["--text-column", "words"]].concat()), &["a.csv: column \"words\"", "stance"]);
    names(
        &fail(&[&start[..], &["--text-column", "said", "--label-column", "meant"]].concat()),
        &["a.csv: line 2, meant", "[\"no\", \"yes\"]"],
    );
    names(&fail(&[&start[..], &["--text-column", "said", "--task", "rte"]].concat()), &["--text-column", "--task"]);
    // The head of the checkpoint itself, and one that labels nothing.
    let own: Value = serde_json::from_str(&succeed(&[
        "eval",
        "--model",
        &model,
        "--data",
        &files[2],
        "--text-column",
        "said",
        "--label-column",
        "stance",
    ]))
    .unwrap();
    assert!(own["accuracy"].is_number());
    names(&fail(&["eval", "--model", &self::model("roberta-mlm"), "--data", &files[2]]), &["a head for words"]);
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
    let forward = ["forward", "--model", &model, "--input", &data, "--output"];
    names(&fail(&[&forward[..], &["/dev/null"]].concat()), &["/dev/null", "special file"]);
    names(&fail(&[&forward[..], &[&data]].concat()), &["--output", "data.jsonl", "another file"]);
    names(&fail(&[&start[..], &["--output", &folder.path("o"), "--log", &data]].concat()), &["--log", "another file"]);
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
    names(&config("id2label", json!({"0": "same", "1": "same"})), &["config.json", "id2label", "3 distinct names"]);
    let untied = |dir: &Path| edit(dir.join("config.json"), &|config| config["tie_word_embeddings"] = json!(false));
    let folder = Folder::new();
    let words = folder.copy(&golden("peft-core", "bert-mlm"));
    untied(&words);
    names(&forward(&words, None), &["config.json", "tie_word_embeddings", "word table"]);
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

/// A GGUF file is a model: it writes, an adapter is trained on it, read, and merged into a directory that is a model again.
#[test]
fn a_decoder_in_a_gguf_file_is_trained_and_writes() {
    let (folder, model) = (Folder::new(), model("gguf/llama.gguf"));
    let write = |more: &[&str]| {
        let args = ["generate", "--model", &model, "--max-new-tokens", "5"];
        succeed(&[&args[..], more].concat())
    };
    let text = write(&["--prompt", "hello"]);
    assert_eq!(text, write(&["--prompt", "hello", "--no-cache"]));
    let file = folder.write("prompts.txt", "hello\nworld and\n");
    let lines: Vec<Value> =
        write(&["--file", &file, "--num-beams", "3"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| &line["prompt"]).collect::<Vec<_>>(), ["hello", "world and"]);
    assert_eq!(
        write(&["--prompt", "hello", "--sample", "--seed", "3"]),
        write(&["--prompt", "hello", "--sample", "--seed", "3"])
    );

    let line = |i: usize| {
        let ids: Vec<usize> = (0..4 + i % 3).map(|t| 3 + (5 * i + t) % 20).collect();
        let labels: Vec<i64> = ids.iter().enumerate().map(|(t, id)| if t < 2 { -100 } else { *id as i64 }).collect();
        json!({"input_ids": ids, "labels": labels}).to_string() + "\n"
    };
    let data = folder.write("words.jsonl", &(0..12).map(line).collect::<String>());
    let (adapter, merged) = (folder.path("adapter"), folder.path("merged"));
    succeed(&["train", "--model", &model, "--method", "lora", "--data", &data, "--steps", "3", "--output", &adapter]);
    let with = write(&["--prompt", "hello", "--adapter", &adapter]);
    succeed(&["merge", "--model", &model, "--adapter", &adapter, "--output", &merged]);
    assert_eq!(with, succeed(&["generate", "--model", &merged, "--max-new-tokens", "5", "--prompt", "hello"]));

    names(&fail(&["generate", "--model", "shape:llama-tiny", "--prompt", "a"]), &["--model", "tokenizer"]);
    let long = "hello ".repeat(2000);
    names(&fail(&["generate", "--model", &model, "--prompt", &long]), &["prompt", "tokens", "at most"]);
    let masked = folder.write("masked.jsonl", "{\"input_ids\": [3, 4], \"labels\": [-100, -100]}\n");
    let new = folder.path("new");
    let train = ["train", "--model", &model, "--method", "lora", "--steps", "1", "--data", &masked, "--output", &new];
    names(&fail(&train), &["masked.jsonl", "line 1", "none of which counts"]);
}

/// T5 gives logits of its labels, one row each, and LLaMA of its tokens.
#[test]
fn logits_of_sequence_models() {
    let folder = Folder::new();
    let line = "{\"input_ids\": [5, 6, 7, 1], \"labels\": [8, 9, 1]}\n";
    let (input, output) = (folder.write("in.jsonl", line), folder.path("out.safetensors"));
    for (name, rows) in [("t5", 3), ("t5-gated", 3), ("llama", 4)] {
        succeed(&["forward", "--model", &model(name), "--input", &input, "--output", &output]);
        let file = Checkpoint::open_file(Path::new(&output)).unwrap();
        assert_eq!(file.shape("logits.0").unwrap(), [rows, 97], "{name}");
        fs::remove_file(&output).unwrap();
    }
    let unlabelled = folder.write("bare.jsonl", "{\"input_ids\": [5, 6]}\n");
    names(
        &fail(&["forward", "--model", &model("t5"), "--input", &unlabelled, "--output", &output]),
        &["bare.jsonl", "labels"],
    );
}
