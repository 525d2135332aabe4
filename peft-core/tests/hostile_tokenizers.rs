//! Tokenizer files: what a good one does, and that a bad one ends in an error that names it.

use std::fs;

use peft_core::load::{Encoded, Tokenizer};
use tempfile::TempDir;

const WORDS: &str =
    r#"{"type":"WordLevel","vocab":{"[CLS]":0,"[SEP]":1,"[UNK]":2,"a":3,"b":4,"c":5},"unk_token":"[UNK]"}"#;
const BERT: &str = r#"{"type":"BertProcessing","sep":["[SEP]",1],"cls":["[CLS]",0]}"#;

fn folder(normalizer: &str, post_processor: &str, model: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let json = format!(
        r#"{{"version":"1.0","truncation":{{"max_length":3,"strategy":"OnlyFirst","stride":1,"direction":"Left"}},
        "padding":{{"strategy":{{"Fixed":20}},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,
        "pad_token":"[CLS]"}},"added_tokens":[],"normalizer":{normalizer},"pre_tokenizer":{{"type":"Whitespace"}},
        "post_processor":{post_processor},"decoder":null,"model":{model}}}"#
    );
    fs::write(dir.path().join("tokenizer.json"), json).unwrap();
    dir
}

#[track_caller]
fn assert_error<T>(result: peft_core::Result<T>, parts: &[&str]) {
    let error = result.err().expect("an error").to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

fn encoded(ids: &[u32], types: &[u32]) -> Encoded {
    Encoded { ids: ids.to_vec(), types: types.to_vec() }
}

#[test]
fn special_tokens_and_truncation_of_the_longer_text() {
    let dir = folder("null", BERT, WORDS);
    let tokenizer = Tokenizer::from_dir(dir.path(), 6).unwrap();
    let encode = |a, b, length| tokenizer.encode(a, b, length).unwrap();
    assert_eq!(encode("a b x", None, 9), encoded(&[0, 3, 4, 2, 1], &[0; 5]));
    assert_eq!(encode("a b c", None, 4), encoded(&[0, 3, 4, 1], &[0; 4]));
    assert_eq!(encode("a b", Some("c"), 9), encoded(&[0, 3, 4, 1, 5, 1], &[0, 0, 0, 0, 1, 1]));
    assert_eq!(encode("a b c a b", Some("c"), 6), encoded(&[0, 3, 4, 1, 5, 1], &[0, 0, 0, 0, 1, 1]));
    assert_error(tokenizer.encode("a", Some("b"), 3), &["max_length: 3", "the 3 special tokens"]);

    let plain = Tokenizer::from_dir(folder("null", "null", WORDS).path(), 6).unwrap();
    assert_eq!(plain.encode("a b", Some("c"), 3).unwrap(), encoded(&[3, 4, 5], &[0, 0, 1]));
}

#[test]
fn files_that_are_no_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    assert_error(Tokenizer::from_dir(dir.path(), 6), &["tokenizer: found none", "tokenizer.json"]);
    for text in ["", "{", "[]", "{\"model\":7}", "\u{0}"] {
        fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        assert_error(Tokenizer::from_dir(dir.path(), 6), &["tokenizer.json: tokenizer: found"]);
    }
}

#[test]
fn vocabularies_larger_than_the_model() {
    let tokenizer = Tokenizer::from_dir(folder("null", BERT, WORDS).path(), 5).unwrap();
    assert_eq!(tokenizer.encode("a b", None, 9).unwrap(), encoded(&[0, 3, 4, 1], &[0; 4]));
    let beyond = &["tokenizer.json: vocab: found id 5, the token \"c\", in a text", "below 5", "has 6 tokens"];
    assert_error(tokenizer.encode("a c", None, 9), beyond);
    assert_error(tokenizer.plain("c"), beyond);
    let special = r#"{"type":"BertProcessing","sep":["[SEP]",1],"cls":["[CLS]",77]}"#;
    let tokenizer = Tokenizer::from_dir(folder("null", special, WORDS).path(), 6).unwrap();
    assert_error(tokenizer.encode("a", None, 9), &["tokenizer.json: vocab: found id 77, no token", "below 6"]);
    let none = r#"{"type":"WordLevel","vocab":{},"unk_token":"a"}"#;
    assert_error(
        Tokenizer::from_dir(folder("null", BERT, none).path(), 6),
        &["tokenizer.json: vocab: found no tokens"],
    );
}

/// Each of these panics inside the tokenizers crate.
#[test]
fn panics_become_errors() {
    let panics = &["tokenizer.json: tokenizer: found content on which its parser panics"];
    let prefix =
        r#"{"type":"BPE","continuing_subword_prefix":"\u00e9##","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}"#;
    assert_error(Tokenizer::from_dir(folder("null", BERT, prefix).path(), 6), panics);
    let no_base64 = r#"{"type":"Precompiled","precompiled_charsmap":"?"}"#;
    assert_error(Tokenizer::from_dir(folder(no_base64, BERT, WORDS).path(), 6), panics);

    let no_trie = r#"{"type":"Precompiled","precompiled_charsmap":"AAAAAA=="}"#;
    let tokenizer = Tokenizer::from_dir(folder(no_trie, BERT, WORDS).path(), 6).unwrap();
    assert_error(tokenizer.encode("a", None, 9), panics);
    let template = r#"{"type":"TemplateProcessing","single":[{"Sequence":{"id":"B","type_id":0}}],"pair":[{"Sequence":
        {"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],"special_tokens":{}}"#;
    let tokenizer = Tokenizer::from_dir(folder("null", template, WORDS).path(), 6).unwrap();
    assert_error(tokenizer.encode("a", None, 9), panics);
}

#[test]
fn templates_that_repeat_the_text() {
    let twice = r#"{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"A",
        "type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],
        "special_tokens":{}}"#;
    let tokenizer = Tokenizer::from_dir(folder("null", twice, WORDS).path(), 6).unwrap();
    assert_error(tokenizer.encode("a b", None, 3), &["tokenizer.json: post_processor: found 4 tokens", "at most 3"]);
}
