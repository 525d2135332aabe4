//! Tasks, and data of one's own.

use super::*;

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

    // F1 is of one class, which a head that has them the other way would take the other for.
    let turned = folder.path("mrpc/labels.json");
    fs::write(&turned, fs::read_to_string(&turned).unwrap().replace("LABEL_0", "1").replace("LABEL_1", "0")).unwrap();
    let adapter = folder.path("mrpc");
    let eval = ["eval", "--model", &model, "--adapter", &adapter, "--task", "mrpc", "--data", &glue];
    names(&fail(&eval), &[r#"["1", "0"] in this order"#, "the F1 of MRPC"]);
    let train = ["train", "--model", &model, "--adapter", &adapter, "--steps", "1", "--task", "mrpc", "--data", &glue];
    names(&fail(&[&train[..], &["--output", &folder.path("out")]].concat()), &["the F1 of MRPC"]);
    // Other names: what they are taken for is said.
    fs::write(&turned, fs::read_to_string(&turned).unwrap().replace("\"1\"", "\"good\"")).unwrap();
    let told = String::from_utf8(peft(&eval).stderr).unwrap();
    assert!(told.contains("labels are taken by their numbers: 0 for good, 1 for 0"), "{told}");

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
    let other = Folder::new();
    let classes = other.data();
    names(&fail(&["eval", "--model", &self::model("roberta-mlm"), "--data", &classes]), &["a head for words"]);
}

/// Two tasks with the same texts and opposite labels: only what knows the tasks can learn both.
#[test]
fn a_column_of_tasks_is_trained_on_and_read() {
    let (folder, other) = (Folder::new(), Folder::new());
    let (model, adapter) = (spelling_model(&other, "bert-classify"), folder.path("adapter"));
    let row = |i: usize, task: usize| {
        let (text, label) = (["aa", "zz"][i % 2], ["no", "yes"][(i + task) % 2]);
        json!({"text": text, "label": label, "task_id": task})
    };
    let file = |name: &str, task: &dyn Fn(usize) -> usize| {
        folder.write(name, &(0..16).map(|i| row(i, task(i)).to_string() + "\n").collect::<String>())
    };
    let [data, unknown] = [file("data.jsonl", &|i| i / 8), file("unknown.jsonl", &|i| i / 2)];
    let start = ["train", "--model", &model, "--method", "hyperformer", "--set", "tasks=2", "--set", "bottleneck=4"];
    let settings = ["--epochs", "60", "--batch-size", "8", "--lr", "3e-3", "--dropout", "0", "--output", &adapter];
    names(
        &fail(&[&start[..], &settings, &["--data", &unknown]].concat()),
        &["task: 2 is not allowed, expected a number below 2"],
    );
    let trained = succeed(&[&start[..], &settings, &["--data", &data, "--eval", &data]].concat());
    let report: Value = serde_json::from_str(&trained).unwrap();
    assert_eq!(report["metrics"]["accuracy"], 1.0, "{report}");

    let read = ["--model", &model, "--adapter", &adapter];
    let eval = |data: &str| succeed(&[&["eval", "--data", data], &read[..]].concat());
    let measured: Value = serde_json::from_str(&eval(&data)).unwrap();
    assert_eq!(
        (&measured["accuracy"], &measured["loss"]),
        (&report["metrics"]["accuracy"], &report["metrics"]["loss"])
    );
    let swapped = fs::read_to_string(&data)
        .unwrap()
        .replace("\"task_id\":0", "\"task_id\":2")
        .replace("\"task_id\":1", "\"task_id\":0");
    let swapped = folder.write("swapped.jsonl", &swapped.replace("\"task_id\":2", "\"task_id\":1"));
    assert_eq!(serde_json::from_str::<Value>(&eval(&swapped)).unwrap()["accuracy"], 0.0);
    names(&fail(&[&["eval", "--data", &unknown], &read[..]].concat()), &["task: 2", "below 2"]);

    let label = |text: &str, task: &str| {
        let line = succeed(&[&["predict", "--text", text, "--task-index", task], &read[..]].concat());
        serde_json::from_str::<Value>(&line).unwrap()["label"].clone()
    };
    assert_eq!([label("aa", "0"), label("aa", "1"), label("zz", "1")], ["no", "yes", "no"]);
    names(&fail(&[&["predict", "--text", "aa", "--task-index", "2"], &read[..]].concat()), &["task: 2", "below 2"]);

    let (ids, logits) =
        (|task: usize| json!({"input_ids": [2, 4, 4, 3], "task_id": task}).to_string() + "\n", folder.path("logits"));
    let input = folder.write("ids.jsonl", &[0, 1, 0].map(ids).concat());
    succeed(&[&["forward", "--input", &input, "--output", &logits], &read[..]].concat());
    let file = Checkpoint::open_file(Path::new(&logits)).unwrap();
    let [first, second, third] = [0, 1, 2].map(|i| file.read_f32(&format!("logits.{i}"), &[2]).unwrap());
    assert!(first == third && first != second);
}
