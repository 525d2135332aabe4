//! Labelled files: the formats, the guesses, and that bad rows end in an error that names file and line.

use std::path::PathBuf;

use peft_core::data::Labelled;
use peft_core::load::Tokenizer;
use peft_core::{Example, Label, Result, Shape};

use crate::common::{assert_error, written};

fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Labelled> {
    Labelled::open(&written(name, content).1)?.read()
}

#[track_caller]
fn refused(name: &str, content: impl AsRef<[u8]>, parts: &[&str]) {
    assert_error(read(name, content), &[&[name], parts].concat());
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

fn shape(vocab: usize) -> Shape {
    Shape { vocab, ..Shape::named("bert-tiny").unwrap() }
}

fn tokens(data: &Labelled) -> Vec<(Vec<u32>, Vec<u32>)> {
    let examples = data.tokenize(&tokenizer(), 16).unwrap();
    examples.into_iter().map(|example| (example.ids, example.types.unwrap())).collect()
}

fn labels(data: &Labelled) -> Vec<Option<Label>> {
    data.tokenize(&tokenizer(), 16).unwrap().iter().map(|example| example.label.clone()).collect()
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
    refused("train.csv", "text,label\n\"a\nb\",no\nb\n", &["line 4: found 1 fields, expected 2, one for each column"]);
}

#[test]
fn what_looks_odd_and_is_well_formed() {
    let quotes = read("train.csv", "label,text\n1,5\" a\n0,\"b\"\"\"\n").unwrap();
    let blank = read("train.tsv", "label\ttext\n1\ta\n0\tb\n\n\r\n").unwrap();
    assert_eq!((quotes.len(), blank.len()), (2, 2));
    refused("a.tsv", "text\tlabel\na\t1\n\nb\t0\n", &["line 3: found 1 fields, expected 2"]);
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
    assert_eq!(tokens(&open().pair("y").label("z").read().unwrap())[0].0, [0, 6, 1, 4, 1]);
    assert_eq!(labels(&open().without_label().read().unwrap()), [None]);
    assert_error(open().text("w").read(), &["own.tsv: column \"w\"", r#"["x", "y", "z", "text"]"#]);
    assert_error(open().label("w").read(), &["own.tsv: column \"w\"", r#"["x", "y", "z", "text"]"#]);
    refused("no.tsv", "x\ty\na\tb\n", &[r#"columns: found ["x", "y"]"#, "sentence"]);
}

#[test]
fn a_typo_among_numbers_is_no_class() {
    let content = "text\tlabel\na\t4.5\nb\t1\nc\tn/a\n";
    refused("values.tsv", content, &["line 4, label: found \"n/a\"", "4.5 in line 2"]);
    let content = "text\tlabel\na\t1\nb\tO\nc\t0\n";
    refused("classes.tsv", content, &["line 3, label: found \"O\"", "a number, as 1 in line 2"]);
    let content = "text\tlabel\na\tgood\nb\tbad\nc\t0\n";
    refused("names.tsv", content, &["line 4, label: found \"0\"", "the name of a class", "\"good\" in line 2"]);
}

#[test]
fn a_column_of_texts_is_no_label() {
    let row = |i: usize| format!("text {i}\tlabel {}\n", i / 2);
    let rows =
        |count: usize| std::iter::once("text\tlabel\n".to_string()).chain((0..count).map(row)).collect::<String>();
    assert!(read("names.tsv", rows(60)).is_ok());
    let distinct = |i: usize| format!("text {i}\tlabel {i}\n");
    let content = "text\tlabel\n".to_string() + &(0..30).map(distinct).collect::<String>();
    refused("texts.tsv", &content, &["column label", "30 distinct texts in 30 rows", "classes"]);
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
fn two_columns_that_may_be_the_label_are_refused() {
    let content = "text\tlabel\tscore\na\t1\t0.5\n";
    refused("two.tsv", content, &["two.tsv: columns", r#"["label", "score"], each"#, "the name of the label's column"]);
    let (_dir, path) = written("two.tsv", content);
    assert_eq!(labels(&Labelled::open(&path).unwrap().label("score").read().unwrap()), [Some(Label::Value(0.5))]);
}

#[test]
fn values_outside_their_range_are_refused() {
    let (_dir, path) = written("values.tsv", "text\tscore\na\t5\nb\t5.2\n");
    let open = || Labelled::open(&path).unwrap();
    assert_error(open().values_within(0.0..=5.0).read(), &["line 3, score: found \"5.2\"", "a number from 0 to 5"]);
    assert_eq!(labels(&open().values().read().unwrap())[1], Some(Label::Value(5.2)));
}

/// In every format, of texts and of ids; not where the column is that of a label or text.
#[test]
fn a_column_holds_the_tasks() {
    let tasks = |examples: Vec<Example>| examples.into_iter().map(|example| example.task).collect::<Vec<_>>();
    for (name, content) in [
        ("tasks.tsv", "sentence\tlabel\ttask_id\na\t1\t2\nb\t0\t0\n"),
        ("tasks.csv", "task_id,sentence,label\n2,a,1\n\" 0\",b,0\n"),
        ("tasks.jsonl", "{\"text\":\"a\",\"label\":1,\"task_id\":2}\n{\"task_id\":0,\"text\":\"b\",\"label\":0}\n"),
    ] {
        assert_eq!(tasks(read(name, content).unwrap().tokenize(&tokenizer(), 9).unwrap()), [2, 0], "{name}");
    }
    let ids = "{\"input_ids\":[5],\"task_id\":\"3\",\"label\":1}\n";
    assert_eq!(tasks(read("ids.jsonl", ids).unwrap().examples(&shape(8), 3).unwrap()), [3]);
    let (_dir, path) = written("own.tsv", "sentence\ttask_id\na\tcola\nb\trte\n");
    let open = || Labelled::open(&path).unwrap();
    let data = open().label("task_id").read().unwrap();
    assert_eq!(
        (data.classes(), tasks(data.tokenize(&tokenizer(), 9).unwrap())),
        (&["cola".into(), "rte".into()][..], vec![0, 0])
    );
    assert_error(
        open().without_label().read(),
        &["own.tsv: line 2, task_id: found \"cola\"", "the number of the row's task, from 0"],
    );
    for bad in ["-1", "1.5", "null", "[0]"] {
        let line = format!(
            "{{\"input_ids\":[5],\"label\":1,\"task_id\":0}}\n{{\"input_ids\":[5],\"label\":1,\"task_id\":{bad}}}\n"
        );
        refused("bad.jsonl", line, &["line 2, task_id", bad, "from 0"]);
    }
    refused(
        "some.jsonl",
        "{\"input_ids\":[5],\"label\":1,\"task_id\":0}\n{\"input_ids\":[5],\"label\":1}\n",
        &["line 2, task_id", "null"],
    );
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
        task: 0,
    };
    let expected = [example(&[0, 5, 1], &[true, true, false], &[0, 0, 1], 2), example(&[7], &[true], &[0], 0)];
    assert_eq!(data.examples(&shape(8), 3).unwrap(), expected);
    assert_error(data.examples(&shape(7), 3), &["ids.jsonl: line 3: found id 7 in input_ids", "below 7"]);
    assert_error(data.examples(&shape(8), 2), &["ids.jsonl: line 1: found 3 input_ids, expected at most 2"]);
    let short = Shape { positions: 2, ..shape(8) };
    assert_error(data.examples(&short, 3), &["ids.jsonl: line 1: found 3 input_ids, expected at most 2"]);
    let untyped = Shape { types: 1, ..shape(8) };
    assert_error(data.examples(&untyped, 3), &["ids.jsonl: line 1: found type 1 in token_type_ids", "below 1"]);
    assert_error(data.tokenize(&tokenizer(), 9), &["ids.jsonl: line 1: found input_ids", "texts"]);

    let texts = read("texts.jsonl", "{\"text\":\"a\",\"label\":1.0}\n").unwrap();
    assert_eq!(labels(&texts), [Some(Label::Value(1.))]);
    assert_error(texts.examples(&shape(8), 3), &["texts.jsonl: line 1: found a text, expected input_ids"]);
}

#[test]
fn the_columns_of_jsonl_are_the_keys_of_all_lines() {
    let lines = [
        r#"{"input_ids":[0,5]}"#,
        r#"{"input_ids":[1,5],"attention_mask":[1,0],"label":1}"#,
        r#"{"token_type_ids":[1,1],"attention_mask":null,"input_ids":[2,5],"label":0}"#,
    ];
    let (_dir, path) = written("ids.jsonl", lines.join("\n"));
    let open = || Labelled::open(&path).unwrap();
    let found = open().without_label().read().unwrap().examples(&shape(8), 3).unwrap();
    let masks = found.iter().map(|example| example.mask.clone()).collect::<Vec<_>>();
    assert_eq!(masks, [None, Some(vec![true, false]), None]);
    let types = found.iter().map(|example| example.types.clone()).collect::<Vec<_>>();
    assert_eq!(types, [None, None, Some(vec![1, 1])]);
    assert_error(open().read(), &["ids.jsonl: line 1, label: found null", "the name of a class"]);
    refused("ids.jsonl", lines[1..].join("\n") + "\n{}", &["ids.jsonl: line 3, input_ids: found null"]);
    let repeated = r#"{"input_ids":[1],"label":1,"input_ids":[2]}"#;
    refused("a.jsonl", format!("{}\n{repeated}", lines[1]), &["line 2: found the key \"input_ids\" twice"]);
    let many = |line: usize| format!("{{\"text\":\"a\",\"label\":1,\"{line}\":0}}\n");
    refused(
        "a.jsonl",
        (1..1000).map(many).collect::<String>(),
        &["line 999: found 1001 different keys", "at most 1000"],
    );
}

#[test]
fn files_without_a_header() {
    for (name, content) in [("a.tsv", "x\t1\t\ta\nx\t0\t*\t\"b\n"), ("a.csv", "x,1,,a\nx,0,*,\"\"\"b\"\n")] {
        let (_dir, path) = written(name, content);
        let open = || Labelled::open(&path).unwrap().columns(&["source", "label", "star", "sentence"]);
        let data = open().read().unwrap();
        assert_eq!(
            tokens(&data).into_iter().map(|(ids, _)| ids).collect::<Vec<_>>(),
            [vec![0, 3, 1], vec![0, 2, 4, 1]]
        );
        assert_eq!(labels(&data), [Some(Label::Class(1)), Some(Label::Class(0))]);
        assert_error(open().text("words").read(), &[name, "column \"words\"", "star"]);
    }
    let short = Labelled::open(&written("a.tsv", "x\ta\n").1).unwrap().columns(&["label", "star", "sentence"]).read();
    assert_error(short, &["a.tsv: line 1: found 2 fields, expected 3, one for each column"]);
    let named = Labelled::open(&written("a.jsonl", "{\"text\":\"a\"}").1).unwrap().columns(&["text"]).read();
    assert_error(named, &["a.jsonl: columns", "name their own"]);
}

#[test]
fn classes_and_values_that_are_said() {
    let (_dir, path) = written("a.tsv", "text\tlabel\na\t1\nb\t0\n");
    let open = || Labelled::open(&path).unwrap();
    assert_eq!(labels(&open().values().read().unwrap()), [Some(Label::Value(1.)), Some(Label::Value(0.))]);
    let turned = open().classes(&["1", "0", "2"]).read().unwrap();
    assert_eq!(labels(&turned), [Some(Label::Class(0)), Some(Label::Class(1))]);
    assert_eq!(turned.classes(), ["1", "0", "2"]);
    assert_error(open().classes(&["no", "yes"]).read(), &["a.tsv: line 2, label: found \"1\"", r#"["no", "yes"]"#]);
}

#[test]
fn broken_rows_are_left_out_only_where_that_is_asked_for() {
    let content = "question1\tquestion2\tis_duplicate\na\tb\t1\na\t\nb\t0\n\tb\t0\n";
    let (_dir, path) = written("train.tsv", content);
    let open = || Labelled::open(&path).unwrap();
    assert_error(open().read(), &["train.tsv: line 3: found 2 fields, expected 3"]);
    let data = open().skip_broken_rows().read().unwrap();
    assert_eq!(labels(&data), [Some(Label::Class(1)), Some(Label::Class(0))]);
    // A pair may have only one text.
    assert_eq!(tokens(&data)[1].0, [0, 1, 4, 1]);
    assert_eq!(data.broken_rows().len(), 2);
    assert!(data.broken_rows()[1].contains("train.tsv: line 4: found 2 fields"));
    let many = format!("question1\tquestion2\tlabel\na\tb\t1\n{}", "a\n".repeat(101));
    let refused = Labelled::open(&written("train.tsv", many).1).unwrap().skip_broken_rows().read();
    assert_error(refused, &["train.tsv: line 103: found 1 fields"]);
}

#[test]
fn bad_files() {
    assert_error(read("data.xml", "text"), &["data.xml: extension", "tsv, csv, jsonl, conll or txt"]);
    assert_error(Labelled::open(&PathBuf::from("none.tsv")), &["cannot read none.tsv"]);
    for name in ["a.tsv", "a.csv", "a.jsonl"] {
        refused(name, "", &["content: found nothing"]);
        refused(name, "\u{feff} \n", &["content: found nothing"]);
        refused(name, b"text\tlabel\nb\xff\t1\n", &["line 2: found bytes that are no text, expected UTF-8"]);
    }
    refused("a.tsv", "text\tlabel\n", &["rows: found none"]);
    refused(
        "a.tsv",
        "text\tstars\na\t1\n",
        &[r#"columns: found ["text", "stars"]"#, "label, labels", "name of the label"],
    );
    refused("a.tsv", "premise\thypothesis\tlabel\n\t \t1\n", &["line 2, premise: found \"\"", "not empty"]);
    refused("a.tsv", "text\ttext\na\tb\n", &["line 1: found the column \"text\" twice"]);
    refused("a.tsv", "text\tlabel\na\t1\nb\n", &["line 3: found 1 fields, expected 2"]);
    refused("a.tsv", "text\tlabel\n \t1\n", &["line 2, text: found \" \", expected a text that is not empty"]);
    refused("a.csv", "text,label\n\"a\n,1\n", &["line 2: found a quote that is never closed"]);
    // Two columns, were the second one closed.
    refused("a.csv", "label,text\n1,\"a \"\"b\"\n0,\"c\n0,d\n", &["line 3: found a quote that is never closed"]);
    refused("a.jsonl", "{\"text\":\"a\",\"label\":1}\n{\"text\":}\n", &["line 2: found", "a JSON object on a line"]);
    refused("a.jsonl", "[1]\n", &["line 1: found", "a JSON object on a line"]);
    refused("a.jsonl", "{\"text\":\"a\",\"label\":1}\n{\"txt\":\"a\"}\n", &["line 2, text: found null"]);
    refused("a.jsonl", "{\"text\":7,\"label\":1}\n", &["line 1, text: found 7"]);
}

#[test]
fn bad_labels() {
    refused("a.tsv", "text\tlabel\na\t0.5\na\tNaN\n", &["line 3, label: found \"NaN\", expected a finite number"]);
    refused("a.tsv", "text\tlabel\na\t0.5\na\t1e99\n", &["line 3, label: found \"1e99\", expected a finite number"]);
    refused("a.tsv", "text\tlabel\na\t0\na\t-1\n", &["line 3, label: found -1, expected a class from 0 to 999"]);
    refused("a.tsv", "text\tlabel\na\t1000\n", &["line 2, label: found 1000, expected a class from 0 to 999"]);
    refused("a.tsv", "text\tlabel\na\t\n", &["line 2, label: found \"\""]);
    refused("a.tsv", "text\tQuality\na\t-1\n", &["line 2, Quality: found -1"]);
    let like = read("a.tsv", "text\tscore\na\t0.5\n").unwrap();
    let other = Labelled::open(&written("b.tsv", "text\tscore\na\tgood\n").1).unwrap().like(&like).read();
    assert_error(other, &["b.tsv: line 2, score: found \"good\", expected a finite number"]);
    refused("a.jsonl", "{\"text\":\"a\",\"label\":{}}", &["line 1, label: found {}"]);
    refused(
        "a.jsonl",
        "{\"text\":\"a\",\"label\":[1,\"b\"]}",
        &["line 1, label: found \"b\", expected an array of words"],
    );
    refused(
        "a.jsonl",
        "{\"text\":\"a\",\"label\":[-100,-100]}",
        &["line 1, label: found 2 words, none of which counts"],
    );
    refused(
        "a.jsonl",
        "{\"text\":\"a\",\"label\":[1]}\n{\"text\":\"a\",\"label\":1}",
        &["expected words in every row, or in none"],
    );
    let many: String = (0..1001).map(|name| format!("a\tname {name}\n")).collect();
    refused(
        "a.tsv",
        format!("text\tlabel\n{many}"),
        &["column label: found 1001 distinct texts in 1001 rows, expected at most 1000 classes"],
    );
}

#[test]
fn bad_token_ids() {
    let bad = |fields: &str, parts: &[&str]| refused("a.jsonl", format!("{{{fields},\"label\":1}}"), parts);
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
