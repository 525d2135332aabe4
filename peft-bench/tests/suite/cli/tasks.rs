use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Folder, fail, names, spelling_model, succeed};

/// Two tasks on the same texts, with two and with three classes; beside them a task of values and one of tokens.
fn files(folder: &Folder) -> [String; 4] {
    let texts = ["aa", "zz", "az", "za", "aaz", "zza"];
    let write = |name: &str, label: &dyn Fn(&str) -> Value| {
        let row = |i: usize| json!({"text": texts[i % 6], "label": label(texts[i % 6])}).to_string() + "\n";
        folder.write(name, &(0..24).map(row).collect::<String>())
    };
    let first = write("first.jsonl", &|text| json!(["no", "yes"][usize::from(text.starts_with('a'))]));
    let kinds = write("kinds.jsonl", &|text| json!(["low", "mid", "top"][text.matches('z').count()]));
    let value = write("value.jsonl", &|text| json!(text.len() as f64 + 0.5));
    let rows = (0..8).map(|_| json!({"words": ["aa", "zz"], "tags": ["A", "Z"]}).to_string() + "\n");
    [first, kinds, value, folder.write("tags.jsonl", &rows.collect::<String>())]
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

#[test]
fn each_task_has_a_head_classes_and_metrics_of_its_own() {
    let (folder, other) = (Folder::new(), Folder::new());
    let (model, adapter, log) = (spelling_model(&other, "bert-classify"), folder.path("adapter"), folder.path("log"));
    let [first, kinds, value, _] = files(&folder);
    let [of_first, of_kinds, of_value] =
        [("first", &first), ("kinds", &kinds), ("value", &value)].map(|(name, file)| format!("{name}={file}"));
    let start = ["train", "--model", &model, "--method", "lora", "--set", "r=4"];
    let data = ["--task-data", &of_first, "--task-data", &of_kinds, "--task-data", &of_value];
    let evals = ["--task-eval", &of_value, "--task-eval", &of_first, "--task-eval", &of_kinds];
    let settings = [
        "--task-temperature",
        "2",
        "--steps",
        "300",
        "--batch-size",
        "6",
        "--lr",
        "1e-2",
        "--dropout",
        "0",
        "--keep-best",
        "--metric",
        "average",
        "--eval-every",
        "150",
        "--log",
        &log,
        "--output",
        &adapter,
    ];
    let report = parsed(&succeed(&[&start[..], &data, &evals, &settings].concat()));
    let metrics = &report["metrics"];
    assert!(metrics["first.accuracy"] == 1.0 && metrics["kinds.accuracy"] == 1.0, "{report}");
    assert!(metrics["value.pearson"].as_f64().unwrap() > 0.9 && metrics["kinds.f1"].is_null(), "{report}");
    let of = |name: &str| metrics[name].as_f64().unwrap();
    let mean = |metric: [&str; 3]| metric.iter().map(|name| of(name)).sum::<f64>() / 3.0;
    assert!((of("average") - mean(["first.accuracy", "kinds.accuracy", "value.pearson"])).abs() < 1e-9);
    assert!((of("loss") - mean(["first.loss", "kinds.loss", "value.loss"])).abs() < 1e-9);
    let logged = fs::read_to_string(&log).unwrap();
    assert!(logged.contains("\"eval_kinds.accuracy\"") && logged.contains("\"eval_average\""), "{logged}");
    let told = parsed(&fs::read_to_string(Path::new(&adapter).join("labels.json")).unwrap());
    assert_eq!(told["tasks"][1], json!({"name": "kinds", "classes": ["low", "mid", "top"]}));
    assert!(fs::read_to_string(Path::new(&adapter).join("README.md")).unwrap().contains("kinds.accuracy"));

    let read = ["--model", &model, "--adapter", &adapter];
    // The order of the command is not that of the heads.
    let measured = parsed(&succeed(
        &[&["eval"], &read[..], &["--task-data", &of_value, "--task-data", &of_kinds, "--task-data", &of_first]]
            .concat(),
    ));
    for (name, x) in metrics.as_object().unwrap() {
        assert_eq!(measured[name], *x, "{name}");
    }
    let alone = parsed(&succeed(&[&["eval", "--data", &kinds, "--for-task", "kinds"], &read[..]].concat()));
    assert_eq!((&alone["accuracy"], &alone["loss"]), (&metrics["kinds.accuracy"], &metrics["kinds.loss"]));
    let label = |task: &str| parsed(&succeed(&[&["predict", "--text", "zz", "--for-task", task], &read[..]].concat()));
    assert_eq!((&label("kinds")["label"], &label("kinds")["task"]), (&json!("top"), &json!("kinds")));
    assert_eq!((&label("0")["label"], &label("0")["task"]), (&json!("no"), &json!("first")));
    assert!(label("value")["value"].is_number());
    names(&fail(&[&["predict", "--text", "zz"], &read[..]].concat()), &["--for-task: none", "first, kinds, value"]);
    names(
        &fail(&[&["predict", "--text", "zz", "--for-task", "kind"], &read[..]].concat()),
        &["--for-task: kind", "first, kinds, value"],
    );
    names(&fail(&[&["eval", "--data", &kinds], &read[..]].concat()), &["--for-task: none", "first, kinds, value"]);
    names(
        &fail(&[&["eval", "--task-data", "other=x"], &read[..]].concat()),
        &["--task-data: other", "first, kinds, value"],
    );

    let merged = folder.path("merged");
    let merge = [&["merge", "--output", &merged], &read[..]].concat();
    names(&fail(&merge), &["--for-task: none", "first, kinds, value"]);
    succeed(&[&merge[..], &["--for-task", "kinds"]].concat());
    let whole = parsed(&succeed(&["predict", "--model", &merged, "--text", "zz"]));
    assert_eq!(whole["label"], "top");
    let hub = folder.path("hub");
    let convert = ["convert", "--model", &model, "--from", &adapter, "--to"];
    succeed(&[&convert[..], &["burn", "--output", &folder.path("burn")]].concat());
    let refused = fail(&[&convert[..], &["adapterhub", "--output", &hub]].concat());
    names(&refused, &["task head", "each of several tasks"]);

    // From its own settings the same bits, and on from it in another order.
    let (yaml, again) = (Path::new(&adapter).join("train.yaml").display().to_string(), folder.path("again"));
    succeed(&["train", "--config", &yaml, "--log", &folder.path("log2"), "--output", &again]);
    let weights = |dir: &str| fs::read(Path::new(dir).join("adapter_model.safetensors")).unwrap();
    assert!(weights(&adapter) == weights(&again));
    let on = ["train", "--model", &model, "--adapter", &adapter, "--steps", "2", "--lr", "1e-5", "--output"];
    let back = folder.path("back");
    let more = succeed(
        &[&on[..], &[&back, "--task-data", &of_value, "--task-data", &of_kinds, "--task-data", &of_first]].concat(),
    );
    assert_eq!(parsed(&more)["steps"], 2);
    let told = parsed(&fs::read_to_string(Path::new(&back).join("labels.json")).unwrap());
    assert_eq!(told["tasks"][0]["name"], "first");
    let unmade = folder.path("x");
    let lacking = [&on[..], &[&unmade, "--task-data", &of_value, "--task-data", &of_kinds]].concat();
    names(&fail(&lacking), &["--task-data: value, kinds", "first, kinds, value"]);
    names(&fail(&[&on[..], &[&folder.path("x"), "--data", &first]].concat()), &["--data", "first, kinds, value"]);
}

#[test]
fn what_is_no_task_is_refused_by_name() {
    let (folder, other) = (Folder::new(), Folder::new());
    let model = spelling_model(&other, "bert-classify");
    let [first, kinds, _, tags] = files(&folder);
    let (empty, out) = (folder.write("empty.jsonl", ""), folder.path("out"));
    let start = ["train", "--model", &model, "--method", "lora", "--steps", "2", "--output", &out];
    let of = |name: &str, file: &str| format!("{name}={file}");
    let (a, b) = (of("first", &first), of("kinds", &kinds));
    let dir = Path::new(&first).parent().unwrap().display().to_string();
    let cases: [(&[&str], &[&str]); 12] = [
        (&["--task-data", &a, "--task-data", &of("first", &kinds)], &["--task-data: first twice", "each task once"]),
        (&["--task-data", &a, "--task-data", &of("x", "/nowhere.jsonl")], &["/nowhere.jsonl"]),
        (&["--task-data", &a, "--task-data", &of("x", &empty)], &[&empty]),
        (&["--task-data", "first"], &["--task-data", "NAME=FILE"]),
        (&["--task-data", &of("a.b", &first)], &["--task-data", "without a dot"]),
        (&["--task-data", &a, "--task-eval", &b], &["--task-eval: kinds", "first"]),
        (&["--task-data", &a, "--task-data", &b, "--task-eval", &a], &["--task-eval: nothing for kinds"]),
        (&["--task-data", &a, "--task-data", &of("t", &tags)], &["task t", "Tokens", "Texts"]),
        (&["--task-data", &a, "--task-data", &of("x", &dir)], &["--task-data: x=", "cola, sst2"]),
        (&["--task-data", &a, "--data", &first], &["--data"]),
        (
            &["--task-data", &a, "--task-data", &b, "--metric", "x.f1", "--task-eval", &a, "--task-eval", &b],
            &["x.f1", "average, loss, first.accuracy"],
        ),
        (&["--task-data", &a, "--task-temperature", "2"], &["task_temperature", "data of one task"]),
    ];
    for (args, words) in cases {
        names(&fail(&[&start[..], args].concat()), words);
    }
    let hyper = ["train", "--model", &model, "--method", "hyperformer", "--set", "bottleneck=4", "--set", "tasks=1"];
    let run = [&hyper[..], &["--steps", "2", "--output", &out, "--task-data", &a, "--task-data", &b]].concat();
    names(&fail(&run), &["task: 1", "below 1"]);
    let yaml = |text: &str| folder.write("run.yaml", text);
    let of_file =
        |text: &str| fail(&["train", "--model", &model, "--method", "lora", "--output", &out, "--config", &yaml(text)]);
    names(&of_file("task_data: [1]\n"), &["run.yaml", "task_data"]);
    names(&of_file("task_data: {first: 3}\n"), &["run.yaml", "task_data", "first"]);
    names(
        &of_file(&format!("task_data: {{first: '{first}'}}\ntask_eval: {{other: '{first}'}}\n")),
        &["run.yaml", "task_eval", "other"],
    );
    names(&of_file(&format!("task_data: {{first: '{first}'}}\ndata: '{first}'\n")), &["run.yaml", "data"]);
}
