//! Models that write.

use super::*;

/// A GGUF file is a model: it writes, an adapter is trained on it, read, and merged into a directory that is a model again.
#[test]
fn a_decoder_in_a_gguf_file_is_trained_and_writes() {
    let (folder, model) = (Folder::new(), model("gguf/llama.gguf"));
    let write = |more: &[&str]| {
        let args = ["generate", "--model", &model];
        let length: &[&str] = if more.contains(&"--max-new-tokens") { &[] } else { &["--max-new-tokens", "5"] };
        succeed(&[&args[..], more, length].concat())
    };
    assert!(succeed(&["inspect", &model]).contains("model.layers.0.self_attn.q_proj.weight"));
    let text = write(&["--prompt", "hello"]);
    assert_eq!(text, write(&["--prompt", "hello", "--no-cache"]));
    let mut piped = Command::new(env!("CARGO_BIN_EXE_peft"));
    piped.args(["generate", "--model", &model, "--max-new-tokens", "5", "--prompt", "-"]);
    let prompt = fs::File::open(folder.write("prompt.txt", "hello\n")).unwrap();
    assert_eq!(String::from_utf8(piped.stdin(prompt).output().unwrap().stdout).unwrap(), text);
    let told = peft(&["generate", "--model", &model, "--max-new-tokens", "5", "--prompt", "hello"]).stderr;
    names(&String::from_utf8(told).unwrap(), &["tokens read (", "written (", "a second)\n"]);
    let file = folder.write("prompts.txt", "hello\nworld and\n");
    let lines: Vec<Value> =
        write(&["--file", &file, "--num-beams", "3"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| &line["prompt"]).collect::<Vec<_>>(), ["hello", "world and"]);
    // Hot enough for bytes that are no characters: what is shown as it comes is the text in the end.
    let one = folder.write("one.txt", "hello\n");
    for seed in ["1", "3", "4", "8"] {
        let drawn = ["--sample", "--temperature", "3", "--seed", seed, "--max-new-tokens", "9"];
        let shown = write(&[&["--prompt", "hello"][..], &drawn].concat());
        let line: Value = serde_json::from_str(&write(&[&["--file", &one][..], &drawn].concat())).unwrap();
        assert_eq!(shown, format!("{}\n", line["text"].as_str().unwrap()), "seed {seed}");
    }

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
    let config = fs::read_to_string(Path::new(&merged).join("tokenizer_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&json!("<s>"), &json!("</s>")));
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

/// Pairs of texts, which have token types only where the model has a table of them; a head for classes leaves the table that makes
/// logits over words alone.
#[test]
fn a_llama_learns_pairs() {
    let (folder, other) = (Folder::new(), Folder::new());
    let model = spelling_model(&other, "llama");
    let line = |i: usize| format!("{}\t{}\t{}\n", ["aaa", "zzz"][i % 2], ["b", "cd"][i % 3 % 2], ["no", "yes"][i % 2]);
    let lines = "a\tb\tlabel\n".to_string() + &(0..16).map(line).collect::<String>();
    let data = folder.write("pairs.tsv", &lines);
    for method in ["lora", "full"] {
        let adapter = folder.path(method);
        let start = ["train", "--model", &model, "--method", method, "--data", &data, "--output", &adapter];
        let columns = ["--text-column", "a", "--pair-column", "b", "--steps", "12", "--lr", "1e-2"];
        succeed(&[&start[..], &columns].concat());
    }
}

/// Texts to write are a column of their own, on both kinds of model that write.
#[test]
fn texts_to_write_are_learnt() {
    let line = |i: usize| format!("{}\t{}\t{i}\n", ["aaa", "zzz"][i % 2], ["no", "yes"][i % 2]);
    let lines = "question\tanswer\tlabel\n".to_string() + &(0..16).map(line).collect::<String>();
    for name in ["t5", "llama", "bert-classify"] {
        let folder = Folder::new();
        let (model, data) = (spelling_model(&folder, name), folder.write("answers.tsv", &lines));
        let columns = ["--text-column", "question", "--target-column", "answer", "--max-length", "12"];
        let loss = |steps: &str| -> f64 {
            let adapter = folder.path(steps);
            let start = ["train", "--model", &model, "--method", "lora", "--data", &data, "--output", &adapter];
            succeed(&[&start[..], &columns, &["--steps", steps, "--lr", "1e-2"]].concat());
            let start = ["eval", "--model", &model, "--adapter", &adapter, "--data", &data];
            let told: Value = serde_json::from_str(&succeed(&[&start[..], &columns].concat())).unwrap();
            told["loss"].as_f64().unwrap()
        };
        let new = folder.path("new");
        let start = ["train", "--model", &model, "--method", "lora", "--output", &new, "--data"];
        if name == "bert-classify" {
            names(&fail(&[&start[..], &[&data], &columns].concat()), &["texts to write", "T5 or LLaMA"]);
            continue;
        }
        let (before, after) = (loss("1"), loss("60"));
        assert!(after < 0.7 * before, "{name}: {before} to {after}");
        let missing = [&start[..], &[&data, "--text-column", "question", "--target-column", "reply"]].concat();
        names(&fail(&missing), &["column \"reply\"", "answer"]);
        if name == "llama" {
            let long = folder.write("long.tsv", "question\tanswer\na\tb\naaaaaaaaaaaaaaaa\tb\n");
            names(&fail(&[&start[..], &[&long], &columns].concat()), &["long.tsv: line 3", "at most 9 of 12 tokens"]);
        }
    }
}

/// What has nothing to train, to label or to be judged by says so before the work.
#[test]
fn a_head_for_words_is_no_classifier() {
    let folder = Folder::new();
    let (model, new) = (spelling_model(&folder, "llama"), folder.path("new"));
    let data = folder.write("words.jsonl", "{\"input_ids\": [5, 6, 7], \"labels\": [5, 6, 7]}\n");
    let train = ["train", "--model", &model, "--steps", "2", "--data", &data, "--output", &new, "--method"];
    names(&fail(&[&train[..], &["linear-probe"]].concat()), &["method", "nothing that is trained"]);
    let judged = ["lora", "--eval", &data, "--keep-best", "--metric", "accuracy"];
    names(&fail(&[&train[..], &judged].concat()), &["metric_for_best_model", "accuracy", "loss"]);
    names(&fail(&["predict", "--model", &model, "--text", "a"]), &["head", "generate"]);
    succeed(&[&train[..], &["lora", "--eval", &data, "--keep-best", "--metric", "eval_loss"]].concat());
    let loss = succeed(&["eval", "--model", &model, "--adapter", &new, "--data", &data]);
    assert!(serde_json::from_str::<Value>(&loss).unwrap()["loss"].as_f64().unwrap() > 0.0, "{loss}");
}

/// A text of a file is drawn by its number, however many are run at a time, and each anew; where a text ends stands in
/// `generation_config.json` too.
#[test]
fn texts_are_drawn_by_their_number_and_end_where_the_model_says() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "llama");
    let file = folder.write("prompts.txt", &"ab\n".repeat(4));
    let write = |more: &[&str]| {
        let args = ["generate", "--model", &model, "--file", &file, "--max-new-tokens", "12"];
        succeed(&[&args[..], more].concat())
    };
    let drawn = write(&["--sample", "--batch-size", "4"]);
    assert_eq!(drawn, write(&["--sample", "--batch-size", "1"]));
    let lines: std::collections::BTreeSet<&str> = drawn.lines().collect();
    assert!(lines.len() > 1, "{drawn}");
    let length = |text: String| text.lines().next().unwrap().len();
    let whole = length(write(&[]));
    let every: Vec<usize> = (0..97).collect();
    fs::write(Path::new(&model).join("generation_config.json"), json!({"eos_token_id": every}).to_string()).unwrap();
    assert!(length(write(&[])) < whole);
    fs::write(Path::new(&model).join("generation_config.json"), "{\"eos_token_id\": \"x\"}").unwrap();
    names(&fail(&["generate", "--model", &model, "--prompt", "a"]), &["generation_config.json", "eos_token_id"]);
    fs::write(Path::new(&model).join("generation_config.json"), "{\"eos_token_id\": [5, 97]}").unwrap();
    let told = peft(&["generate", "--model", &model, "--prompt", "a", "--max-new-tokens", "3"]);
    let told = String::from_utf8(told.stderr).unwrap();
    names(&told, &["generation_config.json: eos_token_id: 97 is no id below the vocabulary 97", "a second"]);
}

/// A model's chat template writes conversations, to be answered and to be learnt.
#[test]
fn conversations_are_answered_and_learnt() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "llama");
    let config = Path::new(&model).join("tokenizer_config.json");
    let template = "{% for m in messages %}{{ m['role'][0] + m['content'] + '.' }}{% endfor %}{% if add_generation_prompt %}a{% endif %}";
    let write = |config_of: Value| fs::write(&config, config_of.to_string()).unwrap();
    write(json!({"tokenizer_class": "TokenizersBackend"}));
    let ask = ["generate", "--model", &model, "--max-new-tokens", "6", "--chat"];
    names(&fail(&[&ask[..], &["--prompt", "hi"]].concat()), &["chat_template", "found none"]);
    write(json!({"tokenizer_class": "TokenizersBackend", "chat_template": template}));
    let text = succeed(&[&ask[..], &["--prompt", "hi", "--system", "be"]].concat());
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let line = json!({"messages": [message("system", "be"), message("user", "hi")]}).to_string() + "\n";
    let answered = succeed(&[&ask[..], &["--file", &folder.write("chats.jsonl", &line)]].concat());
    let answered: Value = serde_json::from_str(&answered).unwrap();
    assert_eq!(
        (answered["text"].as_str().unwrap(), &answered["messages"][1]["content"]),
        (text.trim_end(), &json!("hi"))
    );
    let wrong = folder.write("wrong.jsonl", "{\"messages\": 3}\n");
    names(&fail(&[&ask[..], &["--file", &wrong]].concat()), &["wrong.jsonl", "line 1, messages"]);

    let row = |i: usize| {
        let asked = ["aaa", "zzz"][i % 2];
        json!({"messages": [message("user", asked), message("assistant", ["no", "yes"][i % 2])]}).to_string() + "\n"
    };
    let data = folder.write("learn.jsonl", &(0..16).map(row).collect::<String>());
    let adapter = folder.path("adapter");
    let train =
        ["train", "--method", "lora", "--data", &data, "--output", &adapter, "--max-length", "20", "--lr", "2e-2"];
    let other = Folder::new();
    let bert = spelling_model(&other, "bert-classify");
    names(&fail(&[&train[..], &["--model", &bert, "--steps", "1"]].concat()), &["messages", "LLaMA"]);
    succeed(&[&train[..], &["--model", &model, "--steps", "60"]].concat());
    let answer =
        succeed(&[&ask[..3], &["--chat", "--adapter", &adapter, "--max-new-tokens", "3", "--prompt", "zzz"]].concat());
    assert_eq!(answer.replace(' ', "").trim_end(), "yes");
}

/// What the model's folder says of generation holds, is told, and gives way to the command line.
#[test]
fn settings_of_the_folder_are_used_and_told() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "llama");
    let write =
        |config: Value| fs::write(Path::new(&model).join("generation_config.json"), config.to_string()).unwrap();
    let run = |more: &[&str]| {
        let output =
            peft(&[&["generate", "--model", &model, "--prompt", "abc", "--max-new-tokens", "12"], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
    };
    write(json!({"eos_token_id": 2}));
    let [plain, told] = run(&[]);
    assert!(!told.contains("repetition_penalty"), "{told}");
    write(
        json!({"eos_token_id": 2, "repetition_penalty": 5.0, "temperature": 0.5, "max_time": 3.0, "max_length": 400}),
    );
    let [penalized, told] = run(&[]);
    assert_ne!(plain, penalized);
    assert!(told.contains("settings of") && told.contains("repetition_penalty 5.0"), "{told}");
    assert!(
        told.contains("max_time: is 3.0") && !told.contains("temperature") && !told.contains("max_length"),
        "{told}"
    );
    let [over, told] = run(&["--repetition-penalty", "1"]);
    assert!(over == plain && !told.contains("settings of"), "{told}");
    assert_eq!(run(&["--no-model-settings"])[0], plain);
    write(json!({"eos_token_id": 2, "do_sample": true, "temperature": 3.0}));
    let [drawn, told] = run(&[]);
    assert!(told.contains("do_sample true") && told.contains("temperature 3.0") && told.contains("top_k 50"), "{told}");
    assert!(drawn != plain && run(&["--greedy"])[0] == plain && run(&["--num-beams", "2"])[1].contains("tokens read"));
    names(
        &fail(&["generate", "--model", &model, "--prompt", "a", "--greedy", "--top-k", "3"]),
        &["--top-k", "--sample"],
    );
}
