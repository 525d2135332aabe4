//! Tokenizers of folders in every form against transformers, and what is said of fields that have no effect.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use peft_core::load::{Class, FIELDS, Tokenizer, Use};
use peft_core::testing::{golden, warnings};
use serde_json::{Value, json};
use tempfile::TempDir;

fn read(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden::model_dir(name)).unwrap()).unwrap()
}

/// The folder of a case.
fn fill(golden: &Value, case: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    for (name, source) in case["files"].as_object().unwrap() {
        let content = &golden["files"][source.as_str().unwrap()];
        match content.as_str() {
            Some(text) => write(name, text.as_bytes()),
            None => write(name, &STANDARD.decode(content["base64"].as_str().unwrap()).unwrap()),
        }
    }
    write("config.json", json!({"model_type": case["model_type"]}).to_string().as_bytes());
    for key in ["tokenizer_config", "added_tokens", "special_tokens_map"] {
        if case.get(key).is_some_and(|value| !value.is_null()) {
            write(&format!("{key}.json"), case[key].to_string().as_bytes());
        }
    }
    dir
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn every_folder_gives_the_tokens_of_transformers() {
    let golden = read("tokenizer_folders.json");
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let (mut wrong, mut count) = (vec![], 0);
    for case in golden["cases"].as_array().unwrap() {
        let (dir, expected) = (fill(&golden, case), &case["expected"]);
        let mut differs = |what: String| wrong.push(format!("{}: {what}", case["name"]));
        let tokenizer = match Tokenizer::from_dir(dir.path(), 100_000) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                differs(error.to_string());
                continue;
            }
        };
        for (i, text) in texts.iter().enumerate() {
            let (found, wanted) = (tokenizer.encode(text, None, 1000).unwrap().ids, ids(&expected["ids"][i]));
            if found != wanted {
                differs(format!("{text:?} is {found:?}, not {wanted:?}"));
            }
            let (found, wanted) = (tokenizer.decode(&wanted).unwrap(), expected["decoded"][i].as_str().unwrap());
            if found != wanted {
                differs(format!("{text:?} comes back as {found:?}, not {wanted:?}"));
            }
            count += 1;
        }
        for (i, pair) in golden["pairs"].as_array().unwrap().iter().enumerate() {
            let [a, b] = [0, 1].map(|side| pair[side].as_str().unwrap());
            let found = tokenizer.encode(a, Some(b), 9).unwrap();
            let wanted = (ids(&expected["pairs"][i]), ids(&expected["types"][i]));
            if (&found.ids, &found.types) != (&wanted.0, &wanted.1) {
                differs(format!("pair {i} is {found:?}, not {wanted:?}"));
            }
        }
        let found = tokenizer.encode(&format!("{}{}", texts[2], texts[0]), None, 6).unwrap().ids;
        if found != ids(&expected["cut"]) {
            differs(format!("cut to {found:?}, not {}", expected["cut"]));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 1000, "only {count} texts");
}

/// A run that goes on takes another tokenizer for another, whatever of its folder makes it one; a limit that nothing is cut to does not.
#[test]
fn the_fingerprint_tells_whatever_decides_tokens() {
    let golden = read("tokenizer_folders.json");
    let case = |name: &str| golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap();
    // What the model is told where nothing is said, and something else.
    let (told, untold) = (json!(["input_ids", "token_type_ids"]), json!(["input_ids"]));
    for (name, names) in [("bert vocab.txt", untold), ("plain bert.json", told)] {
        let dir = fill(&golden, case(name));
        let print = |config: &Value| {
            fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            warnings(|| Tokenizer::from_dir(dir.path(), 100_000)).0.unwrap().fingerprint()
        };
        let plain = case(name)["tokenizer_config"].as_object().cloned().unwrap_or_default();
        let with = |key: &str, value: Value| {
            let mut config = plain.clone();
            config.insert(key.into(), value);
            print(&config.into())
        };
        let first = print(&plain.clone().into());
        assert_eq!(print(&plain.clone().into()), first, "{name}");
        let mut all = vec![first];
        for (key, value) in [
            ("truncation_side", json!("left")),
            ("model_input_names", names),
            ("split_special_tokens", json!(true)),
            ("clean_up_tokenization_spaces", json!(true)),
            ("additional_special_tokens", json!(["<new>"])),
        ] {
            let other = with(key, value);
            assert!(!all.contains(&other), "{name}: {key}");
            all.push(other);
        }
        assert_eq!(with("model_max_length", json!(77)), first, "{name}");
    }
}

/// A value that is not the one that changes nothing.
fn telling(neutral: &[&str]) -> Value {
    [json!("x"), json!(true), json!(7)].into_iter().find(|value| !neutral.contains(&&*value.to_string())).unwrap()
}

fn told(config: Value, dir: &Path) -> Vec<String> {
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    let (tokenizer, told) = warnings(|| Tokenizer::from_dir(dir, 100_000));
    tokenizer.unwrap();
    told
}

/// The table has every field that transformers knows, and does what it says: a field without effect is named with its value, unless it
/// is one that changes nothing.
#[test]
fn every_field_is_obeyed_harmless_or_named() {
    let known: BTreeSet<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
    assert_eq!(known.len(), FIELDS.len(), "a field twice");
    let all = read("tokenizer_fields.json");
    let missing: Vec<&Value> =
        all.as_array().unwrap().iter().filter(|name| !known.contains(name.as_str().unwrap())).collect();
    assert!(missing.is_empty(), "{missing:?}");

    let golden = read("tokenizer_folders.json");
    let case = |name: &str| golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap();
    let (bert, plain) = (fill(&golden, case("bert vocab.txt")), fill(&golden, case("plain bert.json")));
    let named = |told: &[String], key: &str, value: &Value| {
        told.iter().any(|line| line.contains(&format!("tokenizer_config.json: {key}: is {value}")))
    };
    let plain_class = json!("PreTrainedTokenizerFast");
    for (key, uses) in FIELDS {
        match uses {
            Use::Named(neutral) => {
                let value = telling(neutral);
                let config = json!({"tokenizer_class": plain_class, *key: value});
                assert!(named(&told(config, plain.path()), key, &value), "{key} is not named");
                for neutral in *neutral {
                    let value: Value = serde_json::from_str(neutral).unwrap();
                    let told = told(json!({"tokenizer_class": plain_class, *key: value}), plain.path());
                    assert!(told.is_empty(), "{key} {neutral}: {told:?}");
                }
            }
            Use::By(classes) => {
                let value = if *key == "extra_ids" { json!(3) } else { json!(true) };
                let config = json!({"tokenizer_class": plain_class, *key: value});
                assert!(named(&told(config, plain.path()), key, &value), "{key} is not named");
                if classes.contains(&Class::Bert) {
                    let told = told(json!({"tokenizer_class": "BertTokenizer", *key: value}), bert.path());
                    assert!(told.is_empty(), "{key}: {told:?}");
                }
            }
            Use::Harmless => {
                let told = told(json!({"tokenizer_class": plain_class, *key: "x"}), plain.path());
                assert!(told.is_empty(), "{key}: {told:?}");
            }
            Use::Obeyed | Use::WithoutFile => {}
        }
    }
    let value = json!({"a": [1]});
    assert!(named(&told(json!({"some_setting": value}), bert.path()), "some_setting", &value));
    let llama = fill(&golden, case("llama tokenizer.json"));
    let lines =
        told(json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false, "add_eos_token": true}), llama.path());
    assert!(named(&lines, "add_bos_token", &json!(false)) && named(&lines, "add_eos_token", &json!(true)), "{lines:?}");
}

/// Of the files beside it, too.
#[test]
fn what_the_lists_of_tokens_say_in_vain_is_named() {
    let golden = read("tokenizer_folders.json");
    let case = golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == "bert tokenizer.json").unwrap();
    let dir = fill(&golden, case);
    let write = |name: &str, content: Value| fs::write(dir.path().join(name), content.to_string()).unwrap();
    write("special_tokens_map.json", json!({"pad_token": "<other>", "colour": "red"}));
    write("added_tokens.json", json!({"<far>": 5000}));
    let lines = told(json!({"do_lower_case": false}), dir.path());
    let has = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&["special_tokens_map.json", "colour", "red"]), "{lines:?}");
    assert!(has(&["<far>", "5000", "it becomes"]), "{lines:?}");
    assert!(has(&["tokenizer.json", "normalizer", "\"lowercase\":true", "\"lowercase\":false"]), "{lines:?}");
    let lines = told(json!({"pad_token": "[PAD]", "added_tokens_decoder": {}}), dir.path());
    assert!(
        lines.iter().any(|line| line.contains("special_tokens_map.json: pad_token") && line.contains("[PAD]")),
        "{lines:?}"
    );
    let lines = told(json!({"tokenizer_class": "XLNetTokenizer"}), dir.path());
    assert!(lines.iter().any(|line| line.contains("tokenizer_class: is XLNetTokenizer")), "{lines:?}");
}

#[test]
fn a_folder_without_a_tokenizer_says_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| fs::write(dir.path().join(name), content).unwrap();
    let fails = |words: &[&str]| {
        let error = Tokenizer::from_dir(dir.path(), 100).err().expect("an error").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    write("config.json", r#"{"model_type": "llama"}"#);
    fails(&["found none", "tokenizer.json", "tokenizer.model"]);
    write("vocab.json", "{}");
    write("merges.txt", "");
    fails(&["vocab.json, merges.txt", "tokenizer_class"]);
    write("config.json", r#"{"model_type": "t5"}"#);
    fails(&["T5Tokenizer", "spiece.model"]);
    write("config.json", r#"{"model_type": "roberta"}"#);
    write("vocab.json", r#"{"a": -1}"#);
    fails(&["vocab.json", "\"a\"", "-1"]);
    write("vocab.json", r#"{"a": 0, "<s>": 1, "</s>": 2}"#);
    write("merges.txt", "#version: 0.2\na b c\n");
    fails(&["merges.txt", "line 2", "a b c"]);
    write("tokenizer_config.json", r#"{"tokenizer_class": "RobertaTokenizer", "add_prefix_space": "yes"}"#);
    write("merges.txt", "");
    fails(&["tokenizer_config.json", "add_prefix_space", "yes"]);
    write("tokenizer_config.json", r#"{"truncation_side": "middle"}"#);
    fails(&["tokenizer_config.json", "truncation_side", "middle"]);
    write("tokenizer_config.json", "\u{feff}{\"bos_token\": 7}");
    fails(&["tokenizer_config.json", "bos_token", "7"]);
    // What a class that is not known makes of its files is not known either.
    for class in ["CodeLlamaTokenizer", "GemmaTokenizerFast", "XLMRobertaTokenizer"] {
        write("tokenizer_config.json", &json!({"tokenizer_class": class}).to_string());
        fails(&["tokenizer_config.json", "tokenizer_class", class, "tokenizer.json", "LlamaTokenizer"]);
    }
}

/// A published model has both: the folder in `PEFT_TOKENIZER_DIR` gives the lines of the file `PEFT_TOKENIZER_TEXTS` the same tokens
/// from tokenizer.json and from vocab.txt.
#[test]
#[ignore = "needs a downloaded model, named by environment variables"]
fn a_published_vocabulary_gives_the_same_tokens() {
    let [dir, texts] = ["PEFT_TOKENIZER_DIR", "PEFT_TOKENIZER_TEXTS"].map(|name| std::env::var(name).expect(name));
    let bare = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"] {
        fs::copy(Path::new(&dir).join(name), bare.path().join(name)).unwrap();
    }
    let [whole, bare] = [Path::new(&dir), bare.path()].map(|dir| Tokenizer::from_dir(dir, 1 << 20).unwrap());
    let (mut lines, mut tokens) = (0, 0);
    for line in fs::read_to_string(texts).unwrap().lines() {
        let ids = whole.encode(line, None, 1 << 20).unwrap();
        assert_eq!(ids, bare.encode(line, None, 1 << 20).unwrap(), "{line:?}");
        (lines, tokens) = (lines + 1, tokens + ids.ids.len());
    }
    println!("{lines} lines, {tokens} tokens");
}
