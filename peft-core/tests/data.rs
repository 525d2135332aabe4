//! Labelled files: the formats, the guesses, and that bad rows end in an error that names file and line.

use std::fs;
use std::path::PathBuf;

use peft_core::data::Labelled;
use peft_core::load::Tokenizer;
use peft_core::{Example, Label, Result};
use tempfile::TempDir;

fn written(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Labelled> {
    Labelled::open(&written(name, content).1)?.read()
}

#[track_caller]
fn refused(name: &str, content: impl AsRef<[u8]>, parts: &[&str]) {
    assert_error(read(name, content), &[&[name], parts].concat());
}

#[track_caller]
fn assert_error<T>(result: Result<T>, parts: &[&str]) {
    let error = result.err().expect("an error").to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

/// Every character is a token: "a" is 3, "b" is 4 and so on, anything else 2.
fn tokenizer() -> Tokenizer {
    let vocab: Vec<String> = ('a'..='z').zip(3..).map(|(letter, id)| format!("\"{letter}\":{id}")).collect();
    let json = format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{{"type":"Split","pattern":{{"String":""}},"behavior":"Isolated","invert":false}},
        "post_processor":{{"type":"BertProcessing","sep":["[SEP]",1],"cls":["[CLS]",0]}},"decoder":null,
        "model":{{"type":"WordLevel","vocab":{{"[CLS]":0,"[SEP]":1,"[UNK]":2,{}}},"unk_token":"[UNK]"}}}}"#,
        vocab.join(",")
    );
    Tokenizer::from_dir(written("tokenizer.json", json).1.parent().unwrap(), 30).unwrap()
}

fn tokens(data: &Labelled) -> Vec<(Vec<u32>, Vec<u32>)> {
    let examples = data.tokenize(&tokenizer(), 16).unwrap();
    examples.into_iter().map(|example| (example.ids, example.types.unwrap())).collect()
}

fn labels(data: &Labelled) -> Vec<Option<Label>> {
    data.tokenize(&tokenizer(), 16).unwrap().iter().map(|example| example.label).collect()
}

#[test]
fn tsv_has_no_quoting() {
    let data = read("train.tsv", "\u{feff}sentence\tlabel\r\n\"a\t1\r\nb\t0\r\n").unwrap();
    assert_eq!(tokens(&data), [(vec![0, 2, 3, 1], vec![0; 4]), (vec![0, 4, 1], vec![0; 3])]);
    assert_eq!(labels(&data), [Some(Label::Class(1)), Some(Label::Class(0))]);
    assert_eq!(data.classes(), ["0", "1"]);
}

#[test]
fn csv_has_quoting() {
    let data = read("train.csv", "text,label\n\"a\nb\",no\n\"a,\"\"b\",maybe\nb,no\n").unwrap();
    assert_eq!(tokens(&data)[1].0, [0, 3, 2, 2, 4, 1]);
    assert_eq!(data.classes(), ["maybe", "no"]);
    assert_eq!(labels(&data), [1, 0, 1].map(|class| Some(Label::Class(class))));
    // A row that spans lines does not shift the count.
    refused("train.csv", "text,label\n\"a\nb\",no\nb\n", &["line 4: found 1 fields, expected 2, as in the header"]);
}

#[test]
fn pairs_and_their_guesses() {
    let pair = (vec![0, 3, 1, 4, 1], vec![0, 0, 0, 1, 1]);
    for header in ["sentence1\tsentence2\tscore", "#1 String\t#2 String\tQuality", "question\tsentence\tlabel"] {
        let data = read("pairs.tsv", format!("{header}\na\tb\t1.5\na\tb\t3\n")).unwrap();
        assert_eq!(tokens(&data), [pair.clone(), pair.clone()], "{header}");
        assert_eq!(labels(&data), [Some(Label::Value(1.5)), Some(Label::Value(3.))], "{header}");
        assert!(data.classes().is_empty());
    }
    let (_dir, path) = written("own.tsv", "x\ty\tz\ttext\na\tb\tc\td\n");
    let open = || Labelled::open(&path).unwrap();
    assert_eq!(tokens(&open().text("x").pair("y").label("z").read().unwrap()), [pair]);
    assert_eq!(tokens(&open().pair("y").read().unwrap())[0].0, [0, 6, 1, 4, 1]);
    assert_eq!(labels(&open().read().unwrap()), [None]);
    assert_error(open().text("w").read(), &["own.tsv: column \"w\"", r#"["x", "y", "z", "text"]"#]);
    assert_error(open().label("w").read(), &["own.tsv: column \"w\"", r#"["x", "y", "z", "text"]"#]);
    refused("no.tsv", "x\ty\na\tb\n", &[r#"columns: found ["x", "y"]"#, "sentence"]);
}

#[test]
fn another_file_with_the_same_classes() {
    let train = read("train.tsv", "text\tlabel\na\tno\na\tyes\n").unwrap();
    let like = |content| Labelled::open(&written("dev.tsv", content).1).unwrap().like(&train).read();
    assert_eq!(labels(&like("text\tlabel\na\tyes\n").unwrap()), [Some(Label::Class(1))]);
    assert_error(like("text\tlabel\na\tperhaps\n"), &["dev.tsv: line 2, label: found \"perhaps\"", r#"["no", "yes"]"#]);
    let scores = read("train.tsv", "text\tscore\na\t0.5\n").unwrap();
    let dev = Labelled::open(&written("dev.tsv", "text\tscore\na\t3\n").1).unwrap().like(&scores).read().unwrap();
    assert_eq!(labels(&dev), [Some(Label::Value(3.))]);
}

#[test]
fn jsonl_of_token_ids() {
    let lines = concat!(
        r#"{"input_ids":[0,5,1],"attention_mask":[1,1,0],"token_type_ids":[0,0,1],"labels":2}"#,
        "\n\n",
        r#"{"labels":0,"token_type_ids":[0],"attention_mask":[true],"input_ids":[7]}"#
    );
    let data = read("ids.jsonl", lines).unwrap();
    let example = |ids: &[u32], mask: &[bool], types: &[u32], class| Example {
        ids: ids.to_vec(),
        mask: Some(mask.to_vec()),
        types: Some(types.to_vec()),
        label: Some(Label::Class(class)),
    };
    let expected = [example(&[0, 5, 1], &[true, true, false], &[0, 0, 1], 2), example(&[7], &[true], &[0], 0)];
    assert_eq!(data.examples(8, 3).unwrap(), expected);
    assert_error(data.examples(7, 3), &["ids.jsonl: line 3: found id 7 in input_ids", "below 7"]);
    assert_error(data.examples(8, 2), &["ids.jsonl: line 1: found 3 input_ids, expected at most 2"]);
    assert_error(data.tokenize(&tokenizer(), 9), &["ids.jsonl: line 1: found input_ids", "texts"]);

    let texts = read("texts.jsonl", "{\"text\":\"a\",\"label\":1.0}\n").unwrap();
    assert_eq!(labels(&texts), [Some(Label::Value(1.))]);
    assert_error(texts.examples(8, 3), &["texts.jsonl: line 1: found a text, expected input_ids"]);
}

#[test]
fn bad_files() {
    assert_error(read("data.xml", "text"), &["data.xml: extension", "tsv, csv or jsonl"]);
    assert_error(Labelled::open(&PathBuf::from("none.tsv")), &["cannot read none.tsv"]);
    for name in ["a.tsv", "a.csv", "a.jsonl"] {
        refused(name, "", &["content: found nothing"]);
        refused(name, "\u{feff} \n", &["content: found nothing"]);
        refused(name, b"text\tlabel\nb\xff\t1\n", &["line 2: found bytes that are no text, expected UTF-8"]);
    }
    refused("a.tsv", "text\tlabel\n", &["rows: found none"]);
    refused("a.tsv", "text\ttext\na\tb\n", &["line 1: found the column \"text\" twice"]);
    refused("a.tsv", "text\tlabel\na\t1\nb\n", &["line 3: found 1 fields, expected 2"]);
    refused("a.tsv", "text\tlabel\n \t1\n", &["line 2, text: found \" \", expected a text that is not empty"]);
    refused("a.csv", "text,label\n\"a\n,1\n", &["line 2: found 1 fields"]);
    refused("a.jsonl", "{\"text\":\"a\"}\n{\"text\":}\n", &["line 2: found", "a JSON object on a line"]);
    refused("a.jsonl", "[1]\n", &["line 1: found", "a JSON object on a line"]);
    refused("a.jsonl", "{\"text\":\"a\"}\n{\"txt\":\"a\"}\n", &["line 2, text: found null"]);
    refused("a.jsonl", "{\"text\":7}\n", &["line 1, text: found 7"]);
}

#[test]
fn bad_labels() {
    refused("a.tsv", "text\tlabel\na\t0.5\na\tNaN\n", &["line 3, label: found \"NaN\", expected a finite number"]);
    refused("a.tsv", "text\tlabel\na\t0.5\na\t1e99\n", &["line 3, label: found \"1e99\", expected a finite number"]);
    refused("a.tsv", "text\tlabel\na\t0\na\t-1\n", &["line 3, label: found -1, expected a class from 0 to 999"]);
    refused("a.tsv", "text\tlabel\na\t1000\n", &["line 2, label: found 1000, expected a class from 0 to 999"]);
    refused("a.tsv", "text\tlabel\na\t\n", &["line 2, label: found \"\""]);
    refused("a.jsonl", "{\"text\":\"a\",\"label\":[1]}", &["line 1, label: found [1]"]);
    let many: String = (0..1001).map(|name| format!("a\tname {name}\n")).collect();
    refused("a.tsv", format!("text\tlabel\n{many}"), &["labels: found 1001 distinct texts, expected at most 1000"]);
}

#[test]
fn bad_token_ids() {
    let bad = |fields: &str, parts: &[&str]| refused("a.jsonl", format!("{{{fields}}}"), parts);
    bad(r#""input_ids":[]"#, &["line 1, input_ids: found 0 items"]);
    bad(r#""input_ids":"a""#, &["line 1, input_ids: found \"a\", expected an array"]);
    bad(r#""input_ids":[-1]"#, &["line 1, input_ids: found -1"]);
    bad(r#""input_ids":[4294967296]"#, &["line 1, input_ids: found 4294967296"]);
    bad(r#""input_ids":[1.5]"#, &["line 1, input_ids: found 1.5"]);
    bad(r#""input_ids":[1],"attention_mask":[1,1]"#, &["line 1, attention_mask: found 2 items, expected 1"]);
    bad(r#""input_ids":[1],"attention_mask":[2]"#, &["line 1, attention_mask: found", "expected 0 and 1"]);
    bad(r#""input_ids":[1],"attention_mask":[0]"#, &["line 1, attention_mask: found", "at least one 1"]);
    bad(r#""input_ids":[1],"token_type_ids":[]"#, &["line 1, token_type_ids: found 0 items, expected 1"]);
}

#[test]
fn splits_are_exact_and_repeatable() {
    let rows: String = ('a'..='z').map(|letter| format!("{letter}\tname\n")).collect();
    let data = read("a.tsv", format!("text\tlabel\n{rows}a\tother\n")).unwrap();
    let ids = |data: &Labelled| tokens(data).into_iter().map(|(ids, _)| ids).collect::<Vec<_>>();
    let (train, dev) = data.clone().split(0.2, 7);
    assert_eq!((data.len(), train.len(), dev.len()), (27, 22, 5));
    assert_eq!(train.classes(), dev.classes());
    assert_eq!(ids(&dev), ids(&data.clone().split(0.2, 7).1));
    assert_ne!(ids(&dev), ids(&data.clone().split(0.2, 8).1));
    let (mut together, mut whole) = ([ids(&train), ids(&dev)].concat(), ids(&data));
    together.sort();
    whole.sort();
    assert_eq!(together, whole);
    assert!(data.clone().split(0., 7).1.is_empty() && data.split(1., 7).0.is_empty());
}
