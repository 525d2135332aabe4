//! Tokenizer files: what a good one does, and that a bad one ends in an error that names it.

use std::fs;

use peft_core::load::{Encoded, Tokenizer};
use peft_core::random::Random;
use peft_core::testing::warnings;
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
    let names = r#"{"model_input_names":["input_ids","token_type_ids"]}"#;
    fs::write(dir.path().join("tokenizer_config.json"), names).unwrap();
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
    // The file cuts at the left, and the first of a text is lost.
    assert_eq!(encode("a b c", None, 4), encoded(&[0, 4, 5, 1], &[0; 4]));
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
    assert_error(tokenizer.plain("c", 9), beyond);
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
    let told = &["tokenizer.json: normalizer: precompiled_charsmap", "base64"];
    assert_error(Tokenizer::from_dir(folder(no_base64, BERT, WORDS).path(), 6), told);

    let no_trie = r#"{"type":"Precompiled","precompiled_charsmap":"AAAAAA=="}"#;
    let tokenizer = Tokenizer::from_dir(folder(no_trie, BERT, WORDS).path(), 6).unwrap();
    assert_error(tokenizer.encode("a", None, 9), panics);
    let template = r#"{"type":"TemplateProcessing","single":[{"Sequence":{"id":"B","type_id":0}}],"pair":[{"Sequence":
        {"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],"special_tokens":{}}"#;
    let finish = &["tokenizer.json: post_processor: found content on which its parser panics"];
    assert_error(Tokenizer::from_dir(folder("null", template, WORDS).path(), 6), finish);
}

#[test]
fn templates_that_repeat_the_text() {
    let twice = r#"{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"A",
        "type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],
        "special_tokens":{}}"#;
    let tokenizer = Tokenizer::from_dir(folder("null", twice, WORDS).path(), 6).unwrap();
    assert_error(tokenizer.encode("a b", None, 3), &["tokenizer.json: post_processor: found 4 tokens", "at most 3"]);
}

/// Steps that multiply a text, at any place of a file, are refused before a text is read, or with the first text that would grow too long.
#[test]
fn nothing_asks_for_gigabytes() {
    let times =
        |count: usize| format!(r#"{{"type":"Replace","pattern":{{"String":"a"}},"content":"{}"}}"#, "a".repeat(count));
    let sequence = |list: &str, steps: &[String]| format!(r#"{{"type":"Sequence","{list}":[{}]}}"#, steps.join(","));
    let load = |normalizer: &str, post_processor: &str, model: &str| {
        Tokenizer::from_dir(folder(normalizer, post_processor, model).path(), 6)
    };
    let chain = sequence("normalizers", &vec![times(40); 8]);
    assert_error(load(&chain, BERT, WORDS), &["tokenizer.json: normalizer", "times as long", "at most 65536"]);
    let nested = sequence("normalizers", &[sequence("normalizers", &vec![times(300); 2]), times(300)]);
    assert_error(load(&nested, BERT, WORDS), &["tokenizer.json: normalizer", "27000000 times"]);
    let regex = r#"{"type":"Replace","pattern":{"Regex":""},"content":"aaaaaaaaaaaaaaaa"}"#.to_string();
    assert_error(load(&sequence("normalizers", &vec![regex; 4]), BERT, WORDS), &["normalizer", "83521 times"]);
    let some = load(&sequence("normalizers", &vec![times(200); 2]), BERT, WORDS).unwrap();
    assert!(some.encode("a a", None, 9).is_ok());
    assert_error(
        some.encode(&"a ".repeat(2000), None, usize::MAX),
        &["normalizer", "text of 4000 bytes", "40000 times"],
    );

    // The first four bytes are the size of a trie: 4 GB, of which there are none.
    let map = r#"{"type":"Precompiled","precompiled_charsmap":"/////w=="}"#;
    for normalizer in [map.to_string(), sequence("normalizers", &[map.into()])] {
        assert_error(
            load(&normalizer, BERT, WORDS),
            &["precompiled_charsmap", "4294967295 bytes", "at most the 0 there"],
        );
    }

    let text = r#"{"Sequence":{"id":"A","type_id":0}}"#;
    let template = |pieces: &str, ids: usize| {
        let ids = vec!["1"; ids].join(",");
        let tokens = [r#""s""#; 2].join(",");
        format!(
            r#"{{"type":"TemplateProcessing","single":[{pieces}],"pair":[{text},{{"Sequence":{{"id":"B","type_id":0}}}}],
            "special_tokens":{{"s":{{"id":"s","ids":[{ids}],"tokens":[{tokens}]}}}}}}"#
        )
    };
    let special = r#"{"SpecialToken":{"id":"s","type_id":0}}"#;
    let many = template(&format!("{text},{}", vec![special; 40].join(",")), 40);
    assert_error(load("null", &many, WORDS), &["post_processor", "1600 special tokens"]);
    let often = template(&[text; 9].join(","), 1);
    let often = format!(r#"{{"type":"Sequence","processors":[{often},{often}]}}"#);
    assert_error(load("null", &often, WORDS), &["post_processor", "81 times"]);

    let long = "u".repeat(2000);
    let unknown = format!(r#"{{"type":"WordLevel","vocab":{{"{long}":0,"a":1}},"unk_token":"{long}"}}"#);
    assert_error(load("null", BERT, &unknown), &["unk_token", "2000 bytes", "at most 1024"]);
    let dir = folder("null", "null", WORDS);
    let path = dir.path().join("tokenizer.json");
    let json = fs::read_to_string(&path).unwrap();
    let token = format!(r#""added_tokens":[{{"id":6,"content":"{long}","special":true}}]"#);
    fs::write(&path, json.replace(r#""added_tokens":[]"#, &token)).unwrap();
    assert_error(Tokenizer::from_dir(dir.path(), 6), &["added_tokens", "2000 bytes"]);
    let decoder = sequence("decoders", &vec![times(40); 8]);
    fs::write(&path, json.replace(r#""decoder":null"#, &format!(r#""decoder":{decoder}"#))).unwrap();
    assert_error(Tokenizer::from_dir(dir.path(), 6), &["decoder", "times as long"]);
}

/// Of a text far too long only as much is cut into tokens as is wanted, with the same result.
#[test]
fn long_texts_are_cut_first() {
    let letters: Vec<String> = ('a'..='z').enumerate().map(|(id, letter)| format!(r#""{letter}":{id}"#)).collect();
    let bpe = format!(
        r#"{{"type":"BPE","vocab":{{{},"\u2581":26,"ab":27,"abc":28,"\u2581a":29,"bc":30,"ca":31,"abca":32}},
        "merges":[["a","b"],["ab","c"],["\u2581","a"],["b","c"],["c","a"],["abc","a"]],"unk_token":"z","fuse_unk":true}}"#,
        letters.join(",")
    );
    let whole = r#"{"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first","split":false}"#;
    let dir = folder("null", "null", &bpe);
    let path = dir.path().join("tokenizer.json");
    let json = fs::read_to_string(&path).unwrap();
    let mut random = Random::new(3, "texts");
    for (pre_tokenizer, side) in
        [(whole, "right"), (whole, "left"), (r#"{"type":"Whitespace"}"#, "right"), (r#"{"type":"Whitespace"}"#, "left")]
    {
        fs::write(&path, json.replace(r#"{"type":"Whitespace"}"#, pre_tokenizer)).unwrap();
        let config = format!(r#"{{"truncation_side":"{side}"}}"#);
        fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path(), 40).unwrap();
        for (blanks, length) in [(2, 60_000), (40, 60_000), (100_000, 60_000)] {
            let letter = |_| match random.below(blanks) {
                0 => ' ',
                n => ['a', 'b', 'c', 'x'][n % 4],
            };
            let text: String = (0..length).map(letter).collect();
            let all = tokenizer.encode(&text, None, usize::MAX).unwrap().ids;
            for limit in [1, 7, 100] {
                let wanted = if side == "left" { &all[all.len() - limit..] } else { &all[..limit] };
                assert_eq!(tokenizer.encode(&text, None, limit).unwrap().ids, wanted, "{side}, {blanks}, {limit}");
            }
        }
    }
    let tokenizer = Tokenizer::from_dir(folder("null", "null", WORDS).path(), 6).unwrap();
    let cell = "a b ".repeat(5 << 20);
    assert_eq!(tokenizer.encode(&cell, None, 3).unwrap().ids, [4, 3, 4]);
    assert_eq!(tokenizer.encode(&cell, Some(&cell), 4).unwrap().ids, [3, 4, 3, 4]);
    assert_error(tokenizer.encode(&cell, None, usize::MAX), &["text: 20971520 bytes", "at most 4194304"]);
    // One word of twenty million letters is one token: what there is to read does not give as many as are wanted.
    assert_error(tokenizer.encode(&"x".repeat(20 << 20), None, 3), &["text: 20971520 bytes"]);
}

/// Dropout of merges is for training tokenizers of old; here a text always has the same tokens.
#[test]
fn dropout_of_merges_is_off() {
    let bpe = r#"{"type":"BPE","dropout":0.9,"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}"#;
    let dir = folder("null", "null", bpe);
    let (tokenizer, told) = warnings(|| Tokenizer::from_dir(dir.path(), 6).unwrap());
    assert!(told[0].contains("tokenizer.json: dropout: is 0.9: off"), "{told:?}");
    assert_eq!(tokenizer.plain(&"ab ".repeat(50), usize::MAX).unwrap(), [2; 50]);
}
