//! Models that write.

use super::*;

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

/// T5 writes the classes' names, or numbers; the same commands as for a model with a head.
#[test]
fn t5_labels_by_texts() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "t5");
    let line =
        |i: usize| format!("{}{}\t{}\n", ["aaa", "zzz"][i % 2], ["b", "cd", "efg"][i % 3], ["low", "high"][i % 2]);
    let train = |name: &str, lines: String| {
        let (data, adapter) = (folder.write(&format!("{name}.tsv"), &lines), folder.path(name));
        let start = ["train", "--model", &model, "--method", "lora", "--data", &data, "--output", &adapter];
        succeed(&[&start[..], &["--steps", "40", "--lr", "3e-2", "--batch-size", "12"]].concat());
        let evaluated = succeed(&["eval", "--model", &model, "--adapter", &adapter, "--data", &data]);
        (adapter, serde_json::from_str::<Value>(&evaluated).unwrap())
    };
    let (adapter, metrics) = train("classes", "sentence\tlabel\n".to_string() + &(0..24).map(line).collect::<String>());
    assert_eq!(metrics["accuracy"], 1.0, "{metrics}");
    let predict = ["predict", "--model", &model, "--adapter", &adapter, "--text"];
    let label = |text: &str| {
        let line: Value = serde_json::from_str(&succeed(&[&predict[..], &[text]].concat())).unwrap();
        line["label"].clone()
    };
    assert_eq!([label("aaax"), label("zzzx")], ["low", "high"]);
    let written = succeed(&["generate", "--model", &model, "--adapter", &adapter, "--prompt", "zzzx"]);
    assert!(written.replace(' ', "").contains("high"), "{written}");

    let number =
        |i: usize| format!("{}{}\t{}\n", ["aaa", "zzz"][i % 2], ["b", "cd", "efg"][i % 3], ["1.1", "2.8"][i % 2]);
    let (adapter, metrics) =
        train("values", "sentence\tlabel\n".to_string() + &(0..24).map(number).collect::<String>());
    assert!(metrics["pearson"].as_f64().unwrap() > 0.99, "{metrics}");
    edit(Path::new(&adapter).join("labels.json"), &|labels| labels["texts"][1]["ids"] = json!([1000]));
    let error = fail(&["eval", "--model", &model, "--adapter", &adapter, "--data", &folder.path("values.tsv")]);
    names(&error, &["labels.json", "texts", "1000", "97"]);
}
