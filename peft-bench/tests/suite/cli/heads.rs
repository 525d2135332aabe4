//! Heads from the outside: classes of tokens, states, the model's own head and the names of its classes.

use super::*;

const BARE: [&str; 2] = ["classifier", "score"];

/// Words of letters, whose tag follows from their first letter; as JSON lists or in CoNLL's form.
fn tagged(folder: &Folder, conll: bool) -> String {
    let word = |i: usize, t: usize| ["ab", "c", "de.", "f1", "g"][(2 * i + 3 * t) % 5].to_string();
    let tag = |word: &str| match &word[..1] {
        "a" => "B-X",
        "c" => "I-X",
        _ => "O",
    };
    let rows = (0..12).map(|i| (0..2 + i % 3).map(|t| word(i, t)).collect::<Vec<_>>());
    if conll {
        let row = |words: Vec<String>| words.iter().map(|w| format!("{w} _ {}\n", tag(w))).collect::<String>() + "\n";
        return folder.write("train.conll", &rows.map(row).collect::<String>());
    }
    let row = |words: Vec<String>| {
        let tags: Vec<&str> = words.iter().map(|word| tag(word)).collect();
        json!({"tokens": words, "ner_tags": tags}).to_string() + "\n"
    };
    folder.write("train.jsonl", &rows.map(row).collect::<String>())
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Trained from words with tags of either form, measured, used and merged; PEFT's task type stands in the files.
#[test]
fn classes_of_tokens_are_trained_measured_and_predicted() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "bert-classify");
    let run = |data: &str, out: &str| {
        let out = folder.path(out);
        let args = ["train", "--model", &model, "--method", "lora", "--data", data, "--eval", data, "--steps", "40"];
        let more = ["--lr", "1e-2", "--batch-size", "4", "--metric", "f1", "--keep-best", "--output", &out];
        (json_of(succeed(&[&args[..], &more].concat()).trim()), out)
    };
    let data = tagged(&folder, false);
    let (result, adapter) = run(&data, "lora");
    let metrics = result["metrics"].clone();
    for name in ["precision", "recall", "f1", "accuracy", "loss"] {
        assert!(metrics[name].is_number(), "{name}: {metrics}");
    }
    assert!(metrics["f1"].as_f64().unwrap() > 0.9, "{metrics}");
    let config: Value =
        serde_json::from_slice(&fs::read(Path::new(&adapter).join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("TOKEN_CLS"), &json!(BARE)));
    // The same rows from a CoNLL file are the same run.
    assert_eq!(run(&tagged(&folder, true), "conll").0["metrics"], metrics);

    let eval = json_of(&succeed(&["eval", "--model", &model, "--adapter", &adapter, "--data", &data]));
    assert_eq!((&eval["f1"], &eval["examples"]), (&metrics["f1"], &json!(12)));
    let line = json_of(&succeed(&["predict", "--model", &model, "--adapter", &adapter, "--text", "ab"]));
    assert_eq!(line["tokens"], json!(["a", "b"]));
    assert_eq!(line["labels"][0], json!("B-X"));
    assert_eq!(line["scores"].as_array().unwrap().len(), 2);

    let merged = folder.path("merged");
    succeed(&["merge", "--model", &model, "--adapter", &adapter, "--output", &merged]);
    let config: Value = serde_json::from_slice(&fs::read(Path::new(&merged).join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["BertForTokenClassification"]));
    assert_eq!(config["id2label"], json!({"0": "B-X", "1": "I-X", "2": "O"}));
    let file = Checkpoint::open_file(&Path::new(&merged).join("model.safetensors")).unwrap();
    assert!(file.names().all(|name| !name.contains("pooler")));
    let again = json_of(&succeed(&["predict", "--model", &merged, "--text", "ab"]));
    assert_eq!(again["labels"], line["labels"]);
    let eval = json_of(&succeed(&["eval", "--model", &merged, "--data", &data]));
    assert_eq!(eval["f1"], metrics["f1"]);
    // The merged model's head is for these classes: it is kept, and it is said.
    let on = folder.path("on");
    let args = ["train", "--model", &merged, "--method", "lora", "--data", &data, "--steps", "2", "--output", &on];
    let told = String::from_utf8(peft(&args).stderr).unwrap();
    names(&told, &["the model's own head is trained on, for B-X, I-X, O"]);

    names(
        &fail(&["eval", "--model", &model, "--adapter", &adapter, "--task", "sst2", "--data", &data]),
        &["head", "one for tokens", "--task"],
    );
    let texts =
        folder.write("texts.jsonl", "{\"text\": \"ab\", \"label\": \"O\"}\n{\"text\": \"c\", \"label\": \"B-X\"}\n");
    let args = ["eval", "--model", &model, "--adapter", &adapter, "--data", &texts];
    names(&fail(&args), &["labels", "a tag for each token", "TOKEN_CLS"]);
    let hub = folder.path("hub");
    let args = ["convert", "--model", &model, "--from", &adapter, "--to", "adapterhub", "--output", &hub];
    succeed(&args);
    let written = fs::read_to_string(folder.path("hub/head_config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap()["config"]["head_type"], "tagging");
}

/// Without a head there are states; what needs a head says so.
#[test]
fn states_are_written_and_merged() {
    let folder = Folder::new();
    let adapter = golden("peft-reparam", "heads/states-bert/adapter").to_string_lossy().into_owned();
    let (base, merged, output) =
        (spelling_model(&folder, "bert-classify"), folder.path("merged"), folder.path("o.safetensors"));
    let input = folder.write("in.jsonl", "{\"input_ids\": [2, 5, 3]}\n{\"input_ids\": [2, 3]}\n");
    let forward = |model: &str, adapter: &[&str]| {
        succeed(&[&["forward", "--model", model, "--input", &input, "--output", &output], adapter].concat());
        let file = Checkpoint::open_file(Path::new(&output)).unwrap();
        let names: Vec<String> = file.names().map(str::to_string).collect();
        assert_eq!(names, ["pooled.0", "pooled.1", "states.0", "states.1"]);
        assert_eq!((file.shape("states.1").unwrap(), file.shape("pooled.1").unwrap()), (&[2, 24][..], &[24][..]));
        file.read_f32("states.0", &[3, 24]).unwrap().iter::<f32>().collect::<Vec<_>>()
    };
    let with = forward(&base, &["--adapter", &adapter]);
    succeed(&["merge", "--model", &base, "--adapter", &adapter, "--output", &merged]);
    let config: Value = serde_json::from_slice(&fs::read(Path::new(&merged).join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["BertModel"]));
    let file = Checkpoint::open_file(&Path::new(&merged).join("model.safetensors")).unwrap();
    assert!(file.shape("encoder.layer.0.attention.self.query.weight").is_some());
    assert!(file.names().all(|name| !name.contains("classifier")));
    let again = forward(&merged, &[]);
    assert!(with.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-3), "{with:?} {again:?}");

    names(
        &fail(&["predict", "--model", &base, "--adapter", &adapter, "--text", "ab"]),
        &["head", "FEATURE_EXTRACTION"],
    );
    let data = folder.data();
    let args = ["eval", "--model", &base, "--adapter", &adapter, "--data", &data];
    names(&fail(&args), &["head", "FEATURE_EXTRACTION"]);
}

/// PEFT's files name no classes: they are the model's, in prediction, in evaluation in any case, and in what is merged.
#[test]
fn the_classes_of_an_adapter_of_peft_are_the_models() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "bert-classify");
    edit(Path::new(&model).join("config.json"), &|config| config["id2label"] = json!({"0": "Neg", "1": "Pos"}));
    let adapter = golden("peft-reparam", "lora-bert/adapter").to_string_lossy().into_owned();
    let line = json_of(&succeed(&["predict", "--model", &model, "--adapter", &adapter, "--text", "ab"]));
    assert!(line["scores"]["Neg"].is_number() && line["scores"]["Pos"].is_number(), "{line}");
    let label = line["label"].as_str().unwrap().to_uppercase();
    let data = folder.write("data.jsonl", &(json!({"text": "ab", "label": label}).to_string() + "\n"));
    let eval = json_of(&succeed(&["eval", "--model", &model, "--adapter", &adapter, "--data", &data]));
    assert_eq!(eval["accuracy"], json!(1.0));
    let merged = folder.path("merged");
    succeed(&["merge", "--model", &model, "--adapter", &adapter, "--output", &merged]);
    let config: Value = serde_json::from_slice(&fs::read(Path::new(&merged).join("config.json")).unwrap()).unwrap();
    assert_eq!(config["id2label"], json!({"0": "Neg", "1": "Pos"}));
    assert_eq!(config["label2id"], json!({"Neg": 0, "Pos": 1}));
    // A head for other classes is not kept, which is said too.
    let other = folder.write(
        "other.jsonl",
        &(0..8)
            .map(|i| json!({"text": "ab", "label": if i % 2 == 0 { "x" } else { "y" }}).to_string() + "\n")
            .collect::<String>(),
    );
    let out = folder.path("out");
    let args = ["train", "--model", &model, "--method", "lora", "--data", &other, "--steps", "2", "--output", &out];
    let told = String::from_utf8(peft(&args).stderr).unwrap();
    names(&told, &["a new head is trained: that of the model is for Neg, Pos"]);
}

/// A LoRA that is sure of everything is less so with its posterior, which a run makes a file of as well.
#[test]
fn a_lora_is_measured_with_its_posterior() {
    let (folder, model) = (Folder::new(), "shape:roberta-tiny");
    let (data, lora, posterior) = (folder.data(), folder.path("lora"), folder.path("posterior"));
    let train = ["train", "--model", model, "--data", &data, "--steps", "12", "--lr", "0.03"];
    succeed(&[&train[..], &["--method", "lora", "--set", "r=2", "--output", &lora]].concat());
    let eval = ["eval", "--model", model, "--data", &data, "--adapter"];
    let both = json_of(&succeed(&[&eval[..], &[&lora, "--laplace", &data]].concat()));
    let plain = json_of(&succeed(&[&eval[..], &[&lora]].concat()));
    assert_eq!(both["before"]["accuracy"], plain["accuracy"]);
    assert_eq!(both["before"]["nll"], plain["loss"]);
    assert!(both["variance"].as_f64().unwrap() > 0.0 && both["after"] != both["before"], "{both}");
    let settings = ["--method", "laplace-lora", "--set", "r=2", "--source", &lora, "--output", &posterior];
    succeed(&[&train[..5], &["--steps", "1"], &settings].concat());
    let found = json_of(&succeed(&[&eval[..], &[&posterior]].concat()));
    assert_eq!(found["loss"], both["after"]["nll"]);
    let refused = fail(&[&eval[..], &[&posterior, "--laplace", &data]].concat());
    names(&refused, &["--laplace", "laplace-lora", "an adapter of lora"]);
}
