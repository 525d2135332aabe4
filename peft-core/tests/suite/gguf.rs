//! GGUF files: that they read as the Python package gguf and transformers read them.

use std::fs;
use std::path::{Path, PathBuf};

use peft_core::load::{Blocks, Checkpoint, Gguf, Tokenizer, read_json};
use serde_json::json;

use crate::common::assert_error;

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)
}

/// A tensor's bits, so that -0 is not 0.
fn bits(file: &Checkpoint, name: &str) -> Vec<u32> {
    let data = file.read_f32(name, file.shape(name).unwrap()).unwrap();
    data.iter::<f32>().map(f32::to_bits).collect()
}

#[test]
fn every_block_type_to_the_bit() {
    let file = Checkpoint::open_file(&golden("blocks.gguf")).unwrap();
    let expected = Checkpoint::open_file(&golden("blocks.safetensors")).unwrap();
    let names: Vec<&str> = file.names().collect();
    assert_eq!(names, ["BF16", "F16", "F32", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"]);
    for name in names {
        assert_eq!(file.entry(name).unwrap().dtype, name);
        assert_eq!(file.shape(name), expected.shape(name));
        assert_eq!(bits(&file, name), bits(&expected, name), "{name}");
    }
}

#[test]
fn tiles_of_blocks_to_the_bit() {
    let file = Checkpoint::open_file(&golden("blocks.gguf")).unwrap();
    for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"] {
        let blocks = file.read_blocks(name).unwrap().unwrap();
        let ([rows, columns], all) = (blocks.dims(), bits(&file, name));
        assert_eq!((blocks.kind(), blocks.size()), (name, file.bytes(name).unwrap().len()));
        for tile in [0..columns, 0..1, 1..columns, 3..columns - 2, columns - 1..columns, columns / 2..columns, 7..7] {
            for part in [0..rows, 1..rows, 0..0] {
                let mut found = vec![f32::NAN; part.len() * tile.len()];
                blocks.decode_tile(part.clone(), tile.clone(), &mut found);
                let expected = part.flat_map(|row| &all[row * columns..][tile.clone()]).copied().collect::<Vec<_>>();
                assert_eq!(found.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected, "{name} {tile:?}");
            }
        }
    }
    assert!(["F32", "F16", "none"].iter().all(|name| file.read_blocks(name).unwrap().is_none()));
}

#[test]
fn blocks_that_cannot_be_are_refused() {
    let new = |kind: &str, dims: [usize; 2], bytes: usize| Blocks::new(kind, dims, vec![0; bytes]);
    new("Q4_K", [2, 256], 288).unwrap();
    assert_error(new("Q2_K", [2, 256], 168), &["type: Q2_K", "Q4_0, Q4_1", "Q6_K"]);
    assert_error(new("F16", [2, 256], 1024), &["type: F16"]);
    assert_error(new("Q4_K", [2, 128], 144), &["shape: [2, 128]", "whole blocks of 256"]);
    assert_error(new("Q4_0", [0, 32], 0), &["shape: [0, 32]"]);
    assert_error(new("Q4_0", [2, 0], 0), &["shape: [2, 0]"]);
    assert_error(new("Q4_0", [usize::MAX, 64], 36), &["bytes: 36", "fits memory"]);
    for bytes in [0, 35, 37] {
        assert_error(new("Q4_0", [1, 64], bytes), &[&format!("bytes: {bytes}"), "36 for [1, 64]"]);
    }
    for (kind, elements, size, at) in [("Q4_1", 32, 20, 2), ("Q8_0", 32, 34, 0), ("Q6_K", 256, 210, 208)] {
        let mut bytes = vec![0; 3 * size];
        bytes[2 * size + at..][..2].copy_from_slice(&[0, 0x7c]);
        assert_error(Blocks::new(kind, [1, 3 * elements], bytes), &["block 2: scale: inf", "a finite number"]);
    }
}

#[test]
fn a_model_has_the_names_and_rows_of_transformers() {
    let path = golden("llama.gguf");
    let (raw, expected) =
        (Checkpoint::open_file(&path).unwrap(), Checkpoint::open_file(&golden("llama.safetensors")).unwrap());
    let model = Checkpoint::open_model(&path).unwrap();
    assert_eq!(model.names().count(), 20);
    for part in ["self_attn.q_proj", "self_attn.k_proj"] {
        let name = format!("model.layers.1.{part}.weight");
        assert_eq!(bits(&model, &name), bits(&expected, &name), "{name}");
    }
    for (name, old) in [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight"),
        ("model.layers.1.self_attn.o_proj.weight", "blk.1.attn_output.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.1.mlp.gate_proj.weight", "blk.1.ffn_gate.weight"),
        ("model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
    ] {
        assert_eq!(model.entry(name), raw.entry(old), "{name}");
        assert_eq!(bits(&model, name), bits(&raw, old), "{name}");
    }
    assert_eq!(model.shape("model.layers.0.self_attn.k_proj.weight"), Some(&[16, 32][..]));
    assert_eq!(model.entry("model.embed_tokens.weight").unwrap().dtype, "Q8_0");
    let wrong = model.read_f32("model.norm.weight", &[31]);
    assert_error(wrong, &["llama.gguf: model.norm.weight: found shape [32], expected shape [31]"]);
}

#[test]
fn the_configuration_of_a_model() {
    let config = Gguf::open(&golden("llama.gguf")).unwrap().config().unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 390, "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "rope_theta": 5000.0,
        "rope_scaling": null, "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null
    });
    assert_eq!(config, expected);
}

#[test]
fn tokenizers_give_the_ids_of_transformers() {
    let cases = read_json(&golden("tokenizers.json")).unwrap();
    let texts: Vec<&str> = cases["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    for name in ["llama", "gpt-2", "smollm", "llama-bpe"] {
        let gguf = Gguf::open(&golden(&format!("{name}.gguf"))).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf, 400).unwrap();
        for (text, ids) in texts.iter().zip(cases[name].as_array().unwrap()) {
            assert_eq!(json!(tokenizer.encode(text, None, 1000).unwrap().ids), *ids, "{name}: {text:?}");
        }
        assert_error(Tokenizer::from_gguf(&gguf, 340), &[name, "tokenizer.ggml.tokens", "expected at most 340"]);
    }
    let llama = Tokenizer::from_gguf(&Gguf::open(&golden("llama.gguf")).unwrap(), 390).unwrap();
    let pair = llama.encode("the", Some("dog"), 9).unwrap();
    let (a, b) = (llama.encode("the", None, 9).unwrap().ids, llama.encode("dog", None, 9).unwrap().ids);
    assert_eq!(pair.types, [vec![0; a.len()], vec![1; b.len()]].concat());
    assert_eq!(pair.ids, [a, b].concat());
}

#[test]
fn a_directory_with_one_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("llama.gguf"), dir.path().join("a.gguf")).unwrap();
    assert!(Checkpoint::open_model(dir.path()).unwrap().entry("model.norm.weight").is_some());
    assert_eq!(Tokenizer::from_dir(dir.path(), 390).unwrap().encode("</s>", None, 9).unwrap().ids, [1, 2]);
    fs::copy(golden("blocks.gguf"), dir.path().join("b.gguf")).unwrap();
    assert_error(
        Checkpoint::open_model(dir.path()),
        &["weights: found 2 GGUF files, a.gguf and b.gguf", "expected one"],
    );
    fs::copy(golden("blocks.safetensors"), dir.path().join("model.safetensors")).unwrap();
    assert!(Checkpoint::open_model(dir.path()).unwrap().entry("Q4_K").is_some());
    assert_eq!(Gguf::find(dir.path()).unwrap(), None);
}
