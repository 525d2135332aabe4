//! Model files as people have them: tied tables under any of their names, tensors that nothing uses, ids that no token has.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::common::{assert_error, written};
use burn::tensor::TensorData;
use peft_core::io::Pretrained;
use peft_core::load::{Checkpoint, write_safetensors};
use peft_core::testing::{device, golden, warnings};
use peft_core::{Bare, Batch, Example, Head, Result, Trained};
use serde_json::{Value, json};
use tempfile::TempDir;

type Tensors = BTreeMap<String, TensorData>;

/// A golden model with other tensors and another configuration.
fn variant(model: &str, tensors: impl Fn(&mut Tensors), config: &[(&str, Value)]) -> TempDir {
    let from = golden::model_dir(model);
    let file = Checkpoint::open_model(&from).unwrap();
    let read = |name: &str| (name.to_string(), file.read_f32(name, file.shape(name).unwrap()).unwrap());
    let mut all: Tensors = file.names().map(read).collect();
    tensors(&mut all);
    let mut settings: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    for (key, value) in config {
        settings[*key] = value.clone();
    }
    let (to, path) = written("config.json", settings.to_string());
    write_safetensors(&path.with_file_name("model.safetensors"), &all).unwrap();
    to
}

fn open(dir: &Path) -> (Result<Pretrained>, Vec<String>) {
    warnings(|| Pretrained::open(&dir.to_string_lossy(), &device()))
}

/// Moves the word table (and the bias of a head for words) to these names; `+1` is a table of other values.
fn moved<'a>(names: &'a [&'a str]) -> impl Fn(&mut Tensors) + use<'a> {
    move |tensors| {
        for (from, word) in [
            ("shared.weight", "weight"),
            ("model.embed_tokens.weight", "weight"),
            ("bert.embeddings.word_embeddings.weight", "weight"),
            ("roberta.embeddings.word_embeddings.weight", "weight"),
            ("cls.predictions.bias", "bias"),
            ("lm_head.bias", "bias"),
        ] {
            let to = names.iter().filter(|name| name.trim_end_matches("+1").ends_with(word));
            let (Some(data), false) = (tensors.get(from).cloned(), to.clone().count() == 0) else { continue };
            tensors.remove(from);
            for name in to {
                let other = TensorData::new(data.iter::<f32>().map(|x| x + 1.0).collect(), data.shape());
                let data = if name.ends_with("+1") { other } else { data.clone() };
                tensors.insert(name.trim_end_matches("+1").to_string(), data);
            }
        }
    }
}

/// As transformers 5 loads them: of a tied table one name is enough, and one of other values is not tied.
#[test]
fn a_tied_table_may_have_any_of_its_names() {
    const BERT: &str = "bert.embeddings.word_embeddings.weight";
    const ROBERTA: &str = "roberta.embeddings.word_embeddings.weight";
    for (model, names) in [
        ("llama-llama3", &["lm_head.weight"][..]),
        ("llama-llama3", &["lm_head.weight", "model.embed_tokens.weight"]),
        ("t5", &["encoder.embed_tokens.weight"]),
        ("t5", &["decoder.embed_tokens.weight"]),
        ("t5", &["lm_head.weight"]),
        ("t5", &["shared.weight", "lm_head.weight"]),
        ("t5", &["decoder.embed_tokens.weight", "lm_head.weight"]),
        ("t5", &["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]),
        ("bert-mlm", &["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"]),
        ("bert-mlm", &[BERT, "cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias"]),
        ("roberta-mlm", &["lm_head.decoder.weight", "lm_head.decoder.bias"]),
        ("roberta-mlm", &[ROBERTA, "lm_head.decoder.weight", "lm_head.bias", "lm_head.decoder.bias"]),
    ] {
        let dir = variant(model, moved(names), &[]);
        let (found, told) = open(dir.path());
        let found = found.unwrap_or_else(|error| panic!("{model} {names:?}: {error}"));
        assert_eq!(found.fingerprint(), golden::model(model).fingerprint(), "{model} {names:?}");
        assert!(told.is_empty(), "{model} {names:?}: {told:?}");
        assert_eq!(Pretrained::shape(&dir.path().to_string_lossy()).unwrap(), *found.base.shape());
    }
    for (model, names) in [
        ("llama-llama3", &["model.embed_tokens.weight", "lm_head.weight+1"][..]),
        ("t5", &["shared.weight", "lm_head.weight+1"]),
        ("t5", &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight+1"]),
    ] {
        let (found, told) = open(variant(model, moved(names), &[]).path());
        let found = found.unwrap().base;
        assert!(!found.shape().tied && told.is_empty(), "{model} {names:?}: {told:?}");
        assert_eq!(found.shape().places().len(), golden::model(model).base.shape().places().len() + 1);
    }
    for (model, names, own_table) in [
        ("bert-mlm", [BERT, "cls.predictions.decoder.weight+1", "cls.predictions.bias+1"], true),
        ("bert-mlm", [BERT, "cls.predictions.decoder.bias+1", "cls.predictions.bias"], false),
        ("roberta-mlm", [ROBERTA, "lm_head.decoder.weight+1", "lm_head.decoder.bias+1"], true),
        ("roberta-mlm", [ROBERTA, "lm_head.decoder.bias+1", "lm_head.bias"], false),
    ] {
        let head = |model: Pretrained| match model.head {
            Some(Head::MaskedLm(head)) => (head.decoder.is_some(), head.bias.val().into_data()),
            other => panic!("{names:?}: {other:?}"),
        };
        let (found, told) = open(variant(model, moved(&names), &[]).path());
        let ((found, bias), (_, plain)) = (head(found.unwrap()), head(golden::model(model)));
        assert!(found == own_table && told.is_empty(), "{names:?}: {told:?}");
        assert_eq!(bias, TensorData::new(plain.iter::<f32>().map(|x| x + 1.0).collect(), plain.shape()), "{names:?}");
    }
    for (model, names, words) in [
        (
            "t5",
            &["shared.weight", "encoder.embed_tokens.weight+1"][..],
            ["encoder.embed_tokens.weight", "another table"],
        ),
        ("t5", &["shared.weight", "decoder.embed_tokens.weight+1"], ["decoder.embed_tokens.weight", "another table"]),
        ("t5", &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight+1"], ["decoder.embed", "another table"]),
        // Not tied, by the configuration.
        ("llama", &["lm_head.weight"], ["model.embed_tokens.weight", "no tensor"]),
        ("t5", &["nothing.weight"], ["shared.weight", "no tensor"]),
    ] {
        assert_error(open(variant(model, moved(names), &[]).path()).0, &words);
    }
}

#[test]
fn what_nothing_uses_is_told_unless_it_needs_no_word() {
    let with = |name: &'static str| {
        move |tensors: &mut Tensors| drop(tensors.insert(name.into(), TensorData::new(vec![0.5f32; 4], [4])))
    };
    for (model, name) in [
        ("roberta-classify", "roberta.embeddings.position_ids"),
        ("bert-classify", "bert.embeddings.token_type_ids"),
        ("bert-classify", "cls.seq_relationship.weight"),
        ("roberta-classify", "lm_head.dense.weight"),
        ("roberta-classify", "roberta.pooler.dense.bias"),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("llama", "model.rotary_emb.inv_freq"),
        ("t5", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
    ] {
        let (found, told) = open(variant(model, with(name), &[]).path());
        assert!(found.is_ok() && told.is_empty(), "{model} {name}: {told:?}");
    }
    for (model, name) in
        [("llama", "v_head.summary.weight"), ("roberta-classify", "adapter.weight"), ("t5", "extra.weight")]
    {
        let (found, told) = open(variant(model, with(name), &[]).path());
        assert!(found.is_ok() && told.len() == 1 && told[0].contains(name), "{model} {name}: {told:?}");
    }
    for (model, name) in [
        ("llama", "model.layers.3.mlp.up_proj.weight"),
        ("bert-classify", "bert.encoder.layer.9.output.dense.bias"),
        ("t5", "encoder.block.0.layer.0.SelfAttention.q.bias"),
    ] {
        assert_error(open(variant(model, with(name), &[]).path()).0, &[name, "nothing uses"]);
    }
}

#[test]
fn an_index_may_list_what_no_shard_holds_if_nothing_needs_it() {
    let from = golden::model_dir("roberta-classify-sharded");
    let listing = |name: &str, shard: &str| {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(&from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let path = dir.path().join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        index["weight_map"][name] = json!(shard);
        fs::write(&path, index.to_string()).unwrap();
        dir
    };
    let index: Value = serde_json::from_slice(&fs::read(from.join("model.safetensors.index.json")).unwrap()).unwrap();
    let shards: Vec<&str> = index["weight_map"].as_object().unwrap().values().filter_map(Value::as_str).collect();
    for (name, word) in [
        ("lm_head.decoder.weight", "no shard holds lm_head.decoder.weight"),
        // It lies in the last shard, whatever the index says.
        ("classifier.out_proj.bias", "other shards than it says hold classifier.out_proj.bias"),
    ] {
        let wrong = *shards.iter().find(|shard| index["weight_map"][name] != **shard).unwrap();
        let (found, told) = open(listing(name, wrong).path());
        assert_eq!(found.unwrap().fingerprint(), golden::model("roberta-classify").fingerprint());
        assert!(told.len() == 1 && told[0].contains(word), "{told:?}");
    }
}

#[test]
fn ids_that_no_token_has_are_told_and_minus_one_is_none() {
    for model in ["llama", "t5", "bert-classify", "roberta-classify"] {
        let pad = |value: Value| open(variant(model, |_| {}, &[("pad_token_id", value)]).path());
        let (found, told) = pad(json!(-1));
        let first = usize::from(model == "roberta-classify");
        assert!(told.is_empty(), "{model}: {told:?}");
        assert_eq!([found.unwrap().base.shape().pad, first], [0, first]);
        if model == "roberta-classify" {
            // Its positions begin behind it.
            assert_error(pad(json!(97)).0, &["pad_token_id", "97", "-1, or an id below 97"]);
            assert_error(pad(json!(-2)).0, &["pad_token_id", "-2"]);
        } else {
            let (found, told) = pad(json!(97));
            assert!(found.is_ok() && told.iter().any(|told| told.contains("pad_token_id: 97 is no id")), "{told:?}");
        }
        for (key, value) in
            [("bos_token_id", json!(1000)), ("eos_token_id", json!([2, 1000])), ("eos_token_id", json!(1000))]
        {
            let (found, told) = open(variant(model, |_| {}, &[(key, value.clone())]).path());
            let stop = found.unwrap().base.shape().stop.clone();
            assert!(stop.iter().all(|id| *id < 97), "{model} {key} {value}: {stop:?}");
            assert!(
                told.iter().any(|told| told.contains(key) && told.contains("1000")),
                "{model} {key} {value}: {told:?}"
            );
        }
        let (found, told) =
            open(variant(model, |_| {}, &[("eos_token_id", json!(-1)), ("bos_token_id", Value::Null)]).path());
        assert!(found.unwrap().base.shape().stop.is_empty() && told.is_empty(), "{model}: {told:?}");
        let start = open(variant(model, |_| {}, &[("decoder_start_token_id", json!(1000))]).path()).0;
        if model == "t5" {
            assert_error(start, &["decoder_start_token_id", "1000"]);
        }
    }
}

/// RoBERTa without a padding token counts positions from 0, as transformers does: with a table whose first rows are those that another
/// has at 2 it is the same function.
#[test]
fn roberta_without_padding_counts_from_zero() {
    const TABLE: &str = "roberta.embeddings.position_embeddings.weight";
    let shifted = |tensors: &mut Tensors| {
        let table = &tensors[TABLE];
        let (values, width) = (table.iter::<f32>().collect::<Vec<_>>(), table.shape()[1]);
        let turned = [&values[2 * width..], &values[..2 * width]].concat();
        let table = TensorData::new(turned, table.shape());
        tensors.insert(TABLE.into(), table);
    };
    let logits = |model: Pretrained| {
        let examples = [vec![5, 6, 7, 8, 9], vec![10, 11]].map(|ids| Example { ids, ..Default::default() });
        let batch = Batch::new(&examples, model.base.shape().pad, model.base.device()).unwrap();
        let trained = Trained::new(Bare {}, model.head.unwrap()).unwrap();
        trained.logits(&model.base, &batch).unwrap().into_data()
    };
    let without = open(variant("roberta-classify", shifted, &[("pad_token_id", json!(-1))]).path()).0.unwrap();
    assert_eq!(without.base.shape().max_length(), golden::model("roberta-classify").base.shape().max_length() + 2);
    assert_eq!(logits(without), logits(golden::model("roberta-classify")));
}
