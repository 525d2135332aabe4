//! Words with a tag for each: the formats, the tokens that get the tags, and rows that are refused.

use peft_core::data::{Labelled, class_place};
use peft_core::load::Tokenizer;
use peft_core::loss::IGNORED;
use peft_core::{Label, Result, Shape};

use crate::common::{assert_error, written};

fn read(name: &str, content: &str) -> Result<Labelled> {
    Labelled::open(&written(name, content).1)?.read()
}

/// Words become tokens of two letters.
fn tokenizer() -> Tokenizer {
    let json = r###"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"BertPreTokenizer"},"decoder":null,
        "post_processor":{"type":"BertProcessing","sep":["[SEP]",1],"cls":["[CLS]",0]},
        "model":{"type":"WordPiece","vocab":{"[CLS]":0,"[SEP]":1,"[UNK]":2,"ab":3,"##cd":4,"##ef":5,"b":6,"##b":7},
        "unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100}}"###;
    Tokenizer::from_dir(written("tokenizer.json", json).1.parent().unwrap(), 30).unwrap()
}

fn tags(data: &Labelled, max_length: usize) -> Vec<(Vec<u32>, Vec<i32>)> {
    let of = |label: Option<Label>| match label {
        Some(Label::Tags(tags)) => tags.to_vec(),
        other => panic!("{other:?}"),
    };
    data.tokenize(&tokenizer(), max_length).unwrap().into_iter().map(|it| (it.ids, of(it.label))).collect()
}

const JSONL: &str = "{\"tokens\": [\"abcdef\", \"b\"], \"ner_tags\": [\"B-X\", \"O\"]}\n\
    {\"tokens\": [\"b\", \"abcd\", \"b-b\"], \"ner_tags\": [\"O\", null, \"I-X\"]}\n";

/// The label stands on the first token of a word, as in transformers' run_ner.py; special tokens and others have none.
#[test]
fn the_first_token_of_a_word_has_its_tag() {
    const N: i32 = IGNORED;
    let data = read("train.jsonl", JSONL).unwrap();
    assert_eq!(data.classes(), ["B-X", "I-X", "O"]);
    assert_eq!(data.columns(), ["tokens", "ner_tags"]);
    let expected = [
        (vec![0, 3, 4, 5, 6, 1], vec![N, 0, N, N, 2, N]),
        (vec![0, 6, 3, 4, 6, 2, 6, 1], vec![N, 2, N, N, 1, N, N, N]),
    ];
    assert_eq!(tags(&data, 16), expected);
    // What is cut off has no label.
    assert_eq!(tags(&data, 4)[1], (vec![0, 6, 3, 1], vec![N, 2, N, N]));
}

#[test]
fn conll_files_are_the_same_rows() {
    let rows = |name: &str, content: &str| {
        let data = read(name, content).unwrap();
        (data.classes().to_vec(), tags(&data, 16))
    };
    let plain = JSONL.replace("null", "\"O\"");
    let expected = rows("train.jsonl", &plain);
    let spaced = "-DOCSTART- -X- O O\n\nabcdef NN B-NP B-X\nb DT O O\n\n\nb X X O\nabcd X X O\nb-b X X I-X\n";
    assert_eq!(rows("train.conll", spaced), expected);
    assert_eq!(rows("train.txt", &spaced.replace(' ', "\t").replace('\n', "\r\n")), expected);
    assert_error(read("a.conll", "abcd O\nb\n"), &["a.conll", "line 2", "\"b\"", "a word and its tag"]);
}

#[test]
fn tags_are_named_numbered_and_like_those_of_another_file() {
    let numbers = read("n.jsonl", "{\"words\": [\"b\", \"b\"], \"tags\": [0, 2]}\n").unwrap();
    assert_eq!(numbers.classes(), ["0", "1", "2"]);
    let train = read("train.jsonl", JSONL).unwrap();
    let other = "{\"tokens\": [\"b\", \"b\"], \"ner_tags\": [\"o\", \"i-x\"]}\n";
    let (_folder, path) = written("dev.jsonl", other);
    let dev = Labelled::open(&path).unwrap().like(&train).read().unwrap();
    assert_eq!(tags(&dev, 16)[0].1, [IGNORED, 2, 1, IGNORED]);
    let like = |content: &str| Labelled::open(&written("dev.jsonl", content).1).unwrap().like(&train).read();
    assert_error(like("{\"tokens\": [\"b\"], \"ner_tags\": [\"B-Y\"]}\n"), &["line 1", "B-Y", "B-X"]);
    // By token ids, as texts.
    let ids = read("i.jsonl", "{\"input_ids\": [0, 5, 1], \"labels\": [null, \"B\", null]}\n").unwrap();
    let shape = Shape::named("bert-tiny").unwrap();
    let label = Label::Tags([IGNORED, 0, IGNORED].into());
    assert_eq!(ids.examples(&shape, 16).unwrap()[0].label, Some(label));
}

#[test]
fn bad_rows_of_tags_are_named() {
    for (content, parts) in [
        (
            "{\"tokens\": [\"b\"], \"tags\": [\"O\", \"O\"]}\n",
            &["line 1", "2 tags", "1, one for each of the words"][..],
        ),
        ("{\"tokens\": [], \"tags\": []}\n", &["line 1", "tokens", "none of them empty"]),
        ("{\"tokens\": [\"\"], \"tags\": [\"O\"]}\n", &["line 1", "tokens", "none of them empty"]),
        ("{\"tokens\": [\"b\"], \"tags\": [true]}\n", &["line 1", "tags", "true"]),
        ("{\"tokens\": [\"b\"], \"tags\": [1.5]}\n", &["tags", "names of classes"]),
        ("{\"tokens\": [\"b\"], \"tags\": [null]}\n", &["tags", "no tag"]),
        (
            "{\"tokens\": [\"b\"], \"tags\": [\"O\"]}\n{\"tokens\": [\"b\"], \"tags\": \"O\"}\n",
            &["tags", "in every row, or in none"],
        ),
        ("{\"text\": \"b\", \"tags\": [\"O\"]}\n", &["line 1", "tags"]),
    ] {
        assert_error(read("bad.jsonl", content), &[&["bad.jsonl"], parts].concat());
    }
}

#[test]
fn classes_match_in_any_case_where_that_is_one() {
    let names = ["POS", "neg", "Neg", "É"];
    let found = ["pos", "neg", "Neg", "NEG", "é", "none"].map(|name| class_place(&names, name));
    assert_eq!(found, [Some(0), Some(1), Some(2), None, Some(3), None]);
}

#[test]
fn a_word_gets_its_space_where_spaces_are_parts_of_words() {
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
        "post_processor":null,"decoder":null,
        "model":{"type":"BPE","vocab":{"a":0,"b":1,"Ġ":2,"Ġa":3},"merges":["Ġ a"],"unk_token":null}}"#;
    let tokenizer = Tokenizer::from_dir(written("tokenizer.json", json).1.parent().unwrap(), 30).unwrap();
    let words = ["ab", "a"].map(String::from);
    let (encoded, of_words) = tokenizer.encode_words(&words, 16).unwrap();
    assert_eq!((encoded.ids, of_words), (vec![3, 1, 3], vec![Some(0), Some(0), Some(1)]));
    assert_eq!(tokenizer.encode_text("ab", 16).unwrap().0.ids, [0, 1]);
}
