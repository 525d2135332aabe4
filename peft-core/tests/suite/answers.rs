//! Questions on a text: the tokens of an answer, what a cut leaves of them, the loss and the metrics, and rows that are refused.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use peft_core::answer::Answer;
use peft_core::data::Labelled;
use peft_core::load::Tokenizer;
use peft_core::loss::answer_loss;
use peft_core::testing::device;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::train::{Logits, evaluate};
use peft_core::{Example, Label, Result};

use crate::common::{assert_error, written};

fn read(content: &str) -> Result<Labelled> {
    Labelled::open(&written("train.jsonl", content).1)?.read()
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

fn row(answers: &str) -> String {
    format!("{{\"id\": \"1\", \"question\": \" b\", \"context\": \"abcd é b\", \"answers\": {answers}}}\n")
}

fn answer(example: &Example) -> Arc<Answer> {
    match &example.label {
        Some(Label::Answer(answer)) => answer.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_is_found_by_its_characters() {
    for (answers, tokens, right) in [
        (r#"{"text": ["b"], "answer_start": [7]}"#, [6, 6], &["b"][..]),
        (r#"{"text": ["cd é", "é"], "answer_start": [2, 5]}"#, [4, 5], &["cd é", "é"]),
        (r#"{"text": ["abcd é b"], "answer_start": [0]}"#, [3, 6], &["abcd é b"]),
        (r#"{"text": [], "answer_start": []}"#, [0, 0], &[]),
    ] {
        let data = read(&row(answers)).unwrap();
        assert_eq!(data.columns(), ["question", "context", "answers"]);
        let example = data.tokenize(&tokenizer(), 16).unwrap().remove(0);
        assert_eq!(example.ids, [0, 6, 1, 3, 4, 2, 6, 1]);
        let found = answer(&example);
        assert_eq!(
            (found.tokens, found.right.as_slice()),
            (tokens, &right.iter().map(|it| it.to_string()).collect::<Vec<_>>()[..])
        );
        assert_eq!(found.places[3..7], [Some(0..2), Some(2..4), Some(5..7), Some(8..9)]);
        assert!([0, 1, 2, 7].iter().all(|i| found.places[*i].is_none()));
    }
    // The text is cut, the question never; what is cut off is no answer.
    let data = read(&row(r#"{"text": ["é b"], "answer_start": [5]}"#)).unwrap();
    let example = data.tokenize(&tokenizer(), 7).unwrap().remove(0);
    assert_eq!((example.ids.as_slice(), answer(&example).tokens), (&[0, 6, 1, 3, 4, 2, 1][..], [0, 0]));
    assert_error(data.tokenize(&tokenizer(), 4), &["max_length", "a question of 1 tokens"]);
}

#[test]
fn bad_rows_of_answers_are_named() {
    for (answers, parts) in [
        (r#"{"text": ["b"], "answer_start": [0]}"#, &["line 1, answers", "\"b\" at character 0"][..]),
        (r#"{"text": ["b"], "answer_start": [99]}"#, &["line 1, answers", "99"]),
        (r#"{"text": ["b"], "answer_start": []}"#, &["line 1, answers", "as many of both"]),
        (r#"{"text": "b", "answer_start": 7}"#, &["line 1, answers", "as many of both"]),
        (r#"{"text": [""], "answer_start": [7]}"#, &["line 1, answers", "\"\" at character 7"]),
        (r#"{"text": ["b"], "answer_start": [-1]}"#, &["line 1, answers", "-1"]),
    ] {
        assert_error(read(&row(answers)), parts);
    }
    let mixed = row(r#"{"text": ["b"], "answer_start": [7]}"#) + &row("\"b\"");
    assert_error(read(&mixed), &["line 1, answers", "in every row, or in none"]);
}

fn labels(tokens: [[usize; 2]; 2], right: [&[&str]; 2]) -> Vec<Example> {
    let example = |i: usize| {
        let places = [None, Some(0..2), Some(3..5)].to_vec();
        let right = right[i].iter().map(|text| text.to_string()).collect();
        let answer = Answer { tokens: tokens[i], places, text: "ab cd".into(), right };
        Example { ids: vec![1, 2, 3], label: Some(Label::Answer(answer.into())), ..Default::default() }
    };
    vec![example(0), example(1)]
}

/// Each side's cross-entropy by hand; a padding token is none of the choices.
#[test]
fn the_loss_is_the_mean_of_both_sides() {
    let first = [[0.5f32, -1.0, 2.0], [1.0, 0.25, 7.0]];
    let last = [[1.5f32, 0.0, -0.5], [0.75, -2.0, 9.0]];
    let examples = labels([[1, 2], [0, 1]], [&["ab cd"], &["ab"]]);
    let values: Vec<f32> = (0..2).flat_map(|i| (0..3).flat_map(move |t| [first[i][t], last[i][t]])).collect();
    let logits = Tensor::<3>::from_data(TensorData::new(values, [2, 3, 2]), &device());
    let padding = Tensor::<2, burn::tensor::Bool>::from_data(
        TensorData::new(vec![false, false, false, false, false, true], [2, 3]),
        &device(),
    );
    let entropy = |row: &[f32], gold: usize| {
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        sum.ln() - f64::from(row[gold])
    };
    let expected = (entropy(&first[0], 1) + entropy(&last[0], 2)) / 2.0
        + (entropy(&first[1][..2], 0) + entropy(&last[1][..2], 1)) / 2.0;
    let labels: Vec<&Label> = examples.iter().filter_map(|example| example.label.as_ref()).collect();
    let found = answer_loss(logits.clone(), Some(&padding), &labels).unwrap().into_scalar::<f32>();
    assert!((found - expected as f32).abs() <= SAME_FUNCTION.0, "{found} {expected}");
    assert_error(answer_loss(logits.narrow(1, 0, 2), None, &labels), &["label", "within 2 tokens"]);
}

#[test]
fn answers_are_compared_word_by_word() {
    let logits = |rows: [[f32; 2]; 3]| Logits { values: rows.concat(), dims: vec![3, 2] };
    let whole = logits([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]);
    let none = logits([[4.0, 4.0], [3.0, 0.0], [0.0, 3.0]]);
    let metrics =
        |right: [&[&str]; 2]| evaluate(&[whole.clone(), none.clone()], &labels([[1, 2], [0, 0]], right), &[]).unwrap();
    // "ab cd" both times: half of it is right the second time.
    let found = metrics([&["Ab, the cd!"], &["cd"]]);
    assert_eq!((found.get("exact_match"), found.get("f1")), (Some(0.5), Some((1.0 + 2.0 / 3.0) / 2.0)));
    // Where texts may lack an answer, none is given for the second.
    let found = metrics([&["ab cd"], &[]]);
    assert_eq!((found.get("exact_match"), found.get("f1")), (Some(1.0), Some(1.0)));
}
