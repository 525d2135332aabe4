//! Several finished adapters: at once, or each for rows of its own.

use super::*;

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Two adapters of different methods are served together as one, trained on, and read again from where that was saved.
#[test]
fn adapters_act_at_once() {
    let (folder, model) = (Folder::new(), golden("peft-core", "roberta-classify").to_string_lossy().into_owned());
    let data = folder.data();
    let train = |method: &str| {
        let (args, output) =
            (["train", "--model", &model, "--data", &data, "--steps", "3", "--lr", "1e-1"], folder.path(method));
        succeed(&[&args[..], &["--method", method, "--output", &output]].concat());
        output
    };
    let [lora, prefix, ia3] = ["lora", "prefix", "ia3"].map(train);
    let logits = |adapters: &[&str]| {
        let output = folder.path("logits");
        let adapters: Vec<&str> = adapters.iter().flat_map(|dir| ["--adapter", dir]).collect();
        succeed(&[&["forward", "--model", &model, "--input", &data, "--output", &output], &adapters[..]].concat());
        fs::read(output).unwrap()
    };
    let both = logits(&[&lora, &prefix]);
    assert!(both != logits(&[&lora]) && both != logits(&[&prefix]));
    // The head is the first one's.
    assert!(both != logits(&[&prefix, &lora]));

    let on = folder.path("on");
    let args = ["train", "--model", &model, "--data", &data, "--steps", "2", "--adapter", &lora, "--adapter", &prefix];
    succeed(&[&args[..], &["--output", &on]].concat());
    let config = json_of(&fs::read_to_string(format!("{on}/adapter_config.json")).unwrap());
    let types: Vec<&Value> = config["parts"].as_array().unwrap().iter().map(|part| &part["peft_type"]).collect();
    assert_eq!(types, ["LORA", "PREFIX_TUNING"]);
    assert!(logits(&[&on]) != both);
    let again = folder.path("again");
    succeed(&["train", "--config", &format!("{on}/train.yaml"), "--output", &again]);
    let bytes = |dir: &str| fs::read(format!("{dir}/adapter_model.safetensors")).unwrap();
    assert!(bytes(&again) == bytes(&on));
    // Several are parts beside the others.
    let three = logits(&[&ia3, &on]);
    assert!(three != logits(&[&on]) && three != logits(&[&ia3]));
    let error = fail(&[&args[..], &["--method", "lora", "--output", &folder.path("no")]].concat());
    names(&error, &["--method", "lora", "lora+prefix"]);

    let merge = |adapters: [&str; 2], output: &str| {
        let [a, b] = adapters;
        ["merge", "--model", &model, "--adapter", a, "--adapter", b, "--output", output].map(String::from)
    };
    let merged = folder.path("merged");
    let args = merge([&lora, &ia3], &merged);
    succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(Path::new(&merged).join("model.safetensors").exists());
    let args = merge([&lora, &prefix], &folder.path("not"));
    names(&fail(&args.iter().map(String::as_str).collect::<Vec<_>>()), &["merge", "lora+prefix", "weight-space"]);
}

/// Each row is answered by the adapter that it names, as that one answers alone: heads for classes, values and tokens, several adapters
/// under one name, pairs of texts.
#[test]
fn rows_are_answered_by_their_own_adapters() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "bert-classify");
    let train = |method: &[&str], data: &str, name: &str| {
        let (data, output) = (folder.write("rows.jsonl", data), folder.path(name));
        let args = ["train", "--model", &model, "--data", &data, "--steps", "3", "--lr", "1e-1", "--output", &output];
        succeed(&[&args[..], method].concat());
        output
    };
    let rows = |row: &dyn Fn(usize) -> Value| (0..8).map(|i| row(i).to_string() + "\n").collect::<String>();
    let classes = rows(&|i| json!({"text": (["ab", "c."][i % 2]), "label": (["good", "bad"][i % 2])}));
    let values = rows(&|i| json!({"text": (["ab", "c.", "d"][i % 3]), "label": i as f64 / 7.0 + 0.01}));
    let tags = rows(&|i| json!({"tokens": ["ab", (["c", "."][i % 2])], "tags": ["X", (["O", "Y"][i % 2])]}));
    let films = train(&["--method", "lora"], &classes, "films");
    let more = train(&["--method", "ia3"], &classes, "more");
    let stars = train(&["--method", "prefix"], &values, "stars");
    let names_of = train(&["--method", "adapter"], &tags, "names");
    let alone = |adapters: &[&str], text: &str| {
        let adapters: Vec<&str> = adapters.iter().flat_map(|dir| ["--adapter", dir]).collect();
        json_of(&succeed(&[&["predict", "--model", &model, "--text", text], &adapters[..]].concat()))
    };
    let adapter = |name: &str, dir: &str| ["--adapter".to_string(), format!("{name}={dir}")];
    let given = [
        adapter("films", &films),
        adapter("stars", &stars),
        adapter("names", &names_of),
        adapter("both", &films),
        adapter("both", &more),
    ];
    let given: Vec<&str> = given.iter().flatten().map(String::as_str).collect();
    let asked = [("stars", "ab"), ("films", "ab"), ("names", "ab c"), ("films", "c."), ("both", "ab"), ("stars", "d")];
    let csv: String = asked.iter().map(|(name, text)| format!("{name},{text}\n")).collect();
    let data = folder.write("asked.csv", &format!("adapter,text\n{csv}"));
    let predict = |data: &str| ["predict", "--model", &model, "--data", data].map(String::from);
    let call = |data: &str| {
        let start = predict(data);
        succeed(&start.iter().map(String::as_str).chain(given.iter().copied()).collect::<Vec<_>>())
    };
    let answers: Vec<Value> = call(&data).lines().map(json_of).collect();
    assert_eq!(answers.len(), asked.len());
    for ((name, text), mut answer) in asked.iter().zip(answers) {
        assert_eq!(answer.as_object_mut().unwrap().remove("adapter"), Some(json!(name)));
        let own = match *name {
            "films" => alone(&[&films], text),
            "stars" => alone(&[&stars], text),
            "names" => alone(&[&names_of], text),
            _ => alone(&[&films, &more], text),
        };
        assert_eq!(answer, own, "{name}: {text}");
    }
    // Of a pair both texts are read.
    let pair = |second: &str| {
        let row = json!({"adapter": "films", "sentence1": "ab", "sentence2": second});
        json_of(&call(&folder.write("pair.jsonl", &(row.to_string() + "\n"))))
    };
    assert_eq!(pair("c.")["pair"], json!("c."));
    assert_ne!(pair("c.")["scores"], pair("dd")["scores"]);

    let error = |data: &str, adapters: &[&str]| {
        let data = folder.write("wrong.csv", data);
        let start = predict(&data);
        fail(&start.iter().map(String::as_str).chain(adapters.iter().copied()).collect::<Vec<_>>())
    };
    let unknown = error("adapter,text\nfilms,ab\nsongs,ab\n", &given);
    names(&unknown, &["wrong.csv: row 2, adapter", "songs", "both, films, names, stars"]);
    names(&error("adapter,text\nfilms,ab\n", &[]), &["--adapter", "nothing", "NAME=DIR"]);
    for half in ["=", &format!("={films}"), "films="] {
        names(&error("adapter,text\nfilms,ab\n", &["--adapter", half]), &["--adapter", half, "NAME=DIR"]);
    }
    names(&error("text\nab\n", &given[..2]), &["--adapter", given[1], "no column `adapter`"]);
    names(&error("adapter,text\nfilms,ab\n", &["--adapter", &films]), &["--adapter", &films, "NAME=DIR"]);
    let long = format!("text\n{}\n", "a ".repeat(3 << 20));
    names(&error(&long, &["--adapter", &films]), &["wrong.csv", "text", "bytes", "at most"]);
    // Without the column the file is like any other.
    let plain = folder.write("plain.csv", "text\nab\n");
    let line = succeed(&["predict", "--model", &model, "--data", &plain, "--adapter", &films]);
    assert_eq!(json_of(&line), alone(&[&films], "ab"));
}
