//! GGUF files: that they read as the Python package gguf and transformers read them, and that bad ones end in an error
//! that names the file and the key.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use peft_core::load::{Blocks, Checkpoint, Gguf, Tokenizer, read_json};
use serde_json::{Value, json};

use crate::common::{assert_error, written};

fn golden(name: &str) -> PathBuf {
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

/// A file in the making: keys with the numbers of their types and their bytes; tensors with dimensions, type and
/// offset.
#[derive(Clone)]
struct File {
    version: u32,
    keys: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn list(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat()
}

impl File {
    fn new() -> Self {
        File { version: 3, keys: Vec::new(), tensors: Vec::new(), data: 64 }
    }

    fn key(mut self, key: &str, kind: u32, value: impl AsRef<[u8]>) -> Self {
        // A second one takes the place of the first, so that a good file is made bad.
        self.keys.retain(|(old, ..)| old != key);
        self.keys.push((key.to_string(), kind, value.as_ref().to_vec()));
        self
    }

    fn count(self, key: &str, value: u32) -> Self {
        self.key(key, 4, value.to_le_bytes())
    }

    fn float(self, key: &str, value: f32) -> Self {
        self.key(key, 6, value.to_le_bytes())
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.push((name.to_string(), dims.to_vec(), kind, offset));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            bytes.extend([&text(key)[..], &kind.to_le_bytes(), value].concat());
        }
        for (name, dims, kind, offset) in &self.tensors {
            bytes.extend([text(name), (dims.len() as u32).to_le_bytes().to_vec()].concat());
            bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend([&kind.to_le_bytes()[..], &offset.to_le_bytes()].concat());
        }
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }

    fn open(&self) -> peft_core::Result<Gguf> {
        open(&self.bytes())
    }

    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        assert_error(self.open(), &[&["bad.gguf: "], parts].concat());
    }
}

fn open(bytes: &[u8]) -> peft_core::Result<Gguf> {
    Gguf::open(&written("bad.gguf", bytes).1)
}

#[test]
fn headers_that_lie() {
    let refused = |bytes: &[u8], parts: &[&str]| assert_error(open(bytes), &[&["bad.gguf: "], parts].concat());
    refused(b"", &["file size: found 0 bytes"]);
    refused(&[b'x'; 24], &["header: found \"xxxx\", expected the letters GGUF"]);
    for version in [0, 1, 4, 3 << 24] {
        File { version, ..File::new() }
            .refused(&[&format!("header: found version {version}, expected version 2 or 3")]);
    }
    assert!(File { version: 2, ..File::new() }.open().is_ok());
    for (at, what) in [(8, "tensors"), (16, "keys")] {
        for count in [100, 1 << 40, u64::MAX] {
            let mut bytes = File::new().bytes();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            refused(&bytes, &[&format!("header: found {count} {what}, expected at most ")]);
        }
    }
}

#[test]
fn metadata_that_lies() {
    let file = File::new();
    file.clone().key("k", 13, []).refused(&["k: found type 13", "0 (u8) to 12"]);
    file.clone().key("k", 7, [2]).refused(&["k: found the byte 2, expected 0 or 1"]);
    file.clone()
        .key("k", 8, u64::MAX.to_le_bytes())
        .refused(&["k: found 18446744073709551615 bytes of a text, expected at most"]);
    file.clone()
        .key("k", 8, [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat())
        .refused(&["k: found a text that is no text"]);
    file.clone().key("k", 9, list(13, &[])).refused(&["k: found elements of type 13"]);
    for (kind, size) in [(0u32, 1), (3, 2), (6, 4), (8, 8), (9, 12), (12, 8)] {
        for length in [1 << 30, 1 << 61, u64::MAX] {
            let array = [&kind.to_le_bytes()[..], &length.to_le_bytes()].concat();
            file.clone()
                .key("k", 9, array)
                .refused(&[&format!("k: found {length} elements, expected at most {}", 79 / size)]);
        }
    }
    let nested = |depth: usize| (1..depth).fold(list(0, &[vec![7]]), |inner, _| list(9, &[inner]));
    assert!(file.clone().key("k", 9, nested(4)).open().is_ok());
    file.clone().key("k", 9, nested(5)).refused(&["k: found arrays in arrays, expected at most 4"]);
    file.clone().key("k", 9, nested(10_000)).refused(&["k: found arrays in arrays"]);
    file.clone().key(&"n".repeat(2000), 0, [0]).refused(&["nnn...: found a name of 2000 bytes"]);
    let mut twice = file.key("k", 0, [0]);
    twice.keys.push(twice.keys[0].clone());
    twice.refused(&["k: found a second value of this key"]);
}

#[test]
fn tensors_that_lie() {
    let file = File::new();
    let one = |dims: &[u64], kind, offset| file.clone().tensor("t", dims, kind, offset);
    assert!(one(&[16], 0, 0).open().is_ok());
    one(&[], 0, 0).refused(&["t: found 0 dimensions, expected 1 to 4"]);
    one(&[1; 5], 0, 0).refused(&["t: found 5 dimensions, expected 1 to 4"]);
    one(&[1], 4, 0).refused(&["t: found element type 4, expected one of 0 (F32), 1 (F16)"]);
    one(&[33], 8, 0).refused(&["t: found rows of 33 elements, expected a multiple of 32"]);
    one(&[128, 2], 12, 0).refused(&["t: found rows of 128 elements, expected a multiple of 256"]);
    one(&[17], 0, 0).refused(&["t: found 68 bytes at the offset 0, expected a place within the 64 bytes of data"]);
    one(&[16], 0, 32).refused(&["t: found 64 bytes at the offset 32"]);
    one(&[1], 0, 4).refused(&["t: found the offset 4, expected a multiple of 32"]);
    one(&[1], 0, u64::MAX - 31).refused(&["t: found"]);
    one(&[2, 0], 0, 0).refused(&["t: found the dimensions [2, 0], expected dimensions of at least 1"]);
    one(&[1 << 62, 8], 0, 0).refused(&["t: found the dimensions [4611686018427387904, 8]", "fits memory"]);
    one(&[1 << 62], 0, 0).refused(&["t: found the dimensions [4611686018427387904]", "a place in the file"]);
    one(&[u64::MAX, u64::MAX], 0, 0).refused(&["t: found the dimensions"]);
    one(&[1], 0, 0).tensor("t", &[1], 0, 32).refused(&["t: found a second tensor of this name"]);
    one(&[16], 0, 0)
        .tensor("u", &[1], 0, 32)
        .refused(&["u: found the offset 32, expected a place behind the tensor t"]);
    for align in [0, 3, 1 << 31] {
        file.clone()
            .count("general.alignment", align)
            .refused(&[&format!("general.alignment: found {align}, expected a power")]);
    }
    file.clone()
        .float("general.alignment", 32.)
        .refused(&["general.alignment: found the number 32.0, expected an integer"]);
    let wide = one(&[1], 0, 0).count("general.alignment", 4096);
    wide.refused(&["t: found 4 bytes at the offset 0, expected a place within the 0 bytes"]);
}

#[test]
fn metadata_is_read_by_its_type() {
    let gguf = File::new()
        .key("u8", 0, [200])
        .key("i8", 1, [200])
        .key("u16", 2, 65535u16.to_le_bytes())
        .key("i16", 3, (-2i16).to_le_bytes())
        .key("i32", 5, 7i32.to_le_bytes())
        .key("u64", 10, u64::MAX.to_le_bytes())
        .key("f32", 6, 1e-5f32.to_le_bytes())
        .key("f64", 12, 0.1f64.to_le_bytes())
        .key("nan", 6, f32::NAN.to_le_bytes())
        .key("bool", 7, [1])
        .key("text", 8, text("words"))
        .key("texts", 9, list(8, &[text("a"), text("")]))
        .key("mixed", 9, list(11, &[(-1i64).to_le_bytes().to_vec(), 1i64.to_le_bytes().to_vec()]))
        .open()
        .unwrap();
    assert_eq!((gguf.count("u8").unwrap(), gguf.count("u16").unwrap(), gguf.count("i32").unwrap()), (200, 65535, 7));
    assert_eq!((gguf.float("f32").unwrap(), gguf.float("f64").unwrap()), (1e-5, 0.1));
    assert!(gguf.flag("bool").unwrap() && gguf.has("u8") && !gguf.has("none"));
    assert_eq!(
        (gguf.text("text").unwrap(), gguf.texts("texts").unwrap()),
        ("words", vec!["a".to_string(), String::new()])
    );
    assert_eq!(gguf.integers("mixed").unwrap(), [-1, 1]);
    assert_eq!(gguf.keys().count(), 13);
    assert_error(gguf.count("i8"), &["bad.gguf: i8: found the integer -56, expected an integer of at least 0"]);
    assert_error(gguf.float("nan"), &["nan: found the number NaN, expected a finite"]);
    assert_error(gguf.float("u8"), &["u8: found the integer 200, expected a finite floating"]);
    assert_error(gguf.flag("u8"), &["u8: found the integer 200, expected true or false"]);
    assert_error(gguf.text("texts"), &["texts: found an array of 2 elements of type 8, expected a text"]);
    assert_error(gguf.texts("text"), &["text: found the text \"words\", expected an array"]);
    assert_error(gguf.texts("mixed"), &["mixed: found the integer -1 as element 0, expected an array of texts"]);
    assert_error(gguf.text("none"), &["none: found nothing, expected a text"]);
}

/// A LLaMA of one head of 2 without layers: its word table, and what a model must say.
fn llama() -> File {
    File::new()
        .key("general.architecture", 8, text("llama"))
        .count("llama.embedding_length", 2)
        .count("llama.block_count", 1)
        .count("llama.feed_forward_length", 3)
        .count("llama.context_length", 8)
        .count("llama.attention.head_count", 1)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-6)
        .tensor("token_embd.weight", &[2, 4], 0, 0)
}

fn config(file: &File) -> peft_core::Result<Value> {
    file.open()?.config()
}

#[test]
fn what_a_model_says_of_itself() {
    let plain = config(&llama()).unwrap();
    assert_eq!(
        (&plain["num_key_value_heads"], &plain["rope_theta"], &plain["head_dim"]),
        (&json!(1), &json!(1e4), &json!(2))
    );
    assert_eq!(
        (&plain["vocab_size"], &plain["rope_scaling"], &plain["bos_token_id"]),
        (&json!(4), &json!(null), &json!(null))
    );
    let untied = llama().tensor("output.weight", &[2, 4], 0, 32).count("tokenizer.ggml.eos_token_id", 3);
    let untied = config(&untied.count("tokenizer.ggml.bos_token_id", u32::MAX)).unwrap();
    assert_eq!(
        (&untied["tie_word_embeddings"], &untied["eos_token_id"], &untied["bos_token_id"]),
        (&json!(false), &json!(3), &json!(null))
    );
    let linear = llama().key("llama.rope.scaling.type", 8, text("linear")).float("llama.rope.scaling.factor", 2.5);
    assert_eq!(config(&linear).unwrap()["rope_scaling"], json!({"rope_type": "linear", "factor": 2.5}));

    let refused = |file: File, parts: &[&str]| assert_error(config(&file), &[&["bad.gguf: "], parts].concat());
    refused(
        llama().key("general.architecture", 8, text("qwen2")),
        &["general.architecture: found \"qwen2\", expected \"llama\""],
    );
    refused(
        llama().count("llama.attention.head_count", 0),
        &["llama.attention.head_count: found 0, expected at least 1"],
    );
    refused(
        llama().count("llama.attention.head_count", 3),
        &["head_count: found 3, expected a divisor of the embedding length 2"],
    );
    refused(llama().count("llama.attention.head_count_kv", 0), &["head_count_kv: found 0"]);
    refused(
        llama().key("llama.attention.head_count", 9, list(4, &[vec![1, 0, 0, 0]])),
        &["head_count: found an array of 1"],
    );
    refused(llama().count("llama.attention.value_length", 3), &["value_length: found 3, expected 2"]);
    refused(llama().count("llama.rope.dimension_count", 1), &["dimension_count: found 1, expected 2"]);
    refused(llama().count("llama.expert_count", 8), &["llama.expert_count: found 8, expected 0"]);
    refused(llama().count("llama.vocab_size", 5), &["llama.vocab_size: found 5, expected 4"]);
    refused(llama().key("split.count", 2, 3u16.to_le_bytes()), &["split.count: found 3"]);
    refused(llama().key("llama.rope.scaling.type", 8, text("yarn")), &["scaling.type: found \"yarn\""]);
    refused(llama().float("llama.rope.scaling.factor", 0.), &["scaling.factor: found 0, expected a number above 0"]);
    refused(llama().float("llama.attention.layer_norm_rms_epsilon", f32::NAN), &["epsilon: found the number NaN"]);
    for name in ["bos", "eos", "padding"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        refused(llama().count(&key, 4), &[&*format!("{key}: found 4, expected ids below 4")]);
    }
    refused(File { tensors: Vec::new(), ..llama() }, &["token_embd.weight: found no tensor"]);
}

/// The divisors of LLaMA 3.2 1B, whose head has 64 numbers: made by its formula in double precision.
#[test]
fn the_scaling_of_llama_3_from_its_divisors() {
    let divisors = |factor: f64| {
        let of = move |i: i32| {
            let wavelength = std::f64::consts::TAU * 500_000f64.powf(f64::from(i) / 32.);
            let smooth = (8192. / wavelength - 1.) / 3.;
            if wavelength > 8192. {
                factor
            } else if wavelength < 2048. {
                1.
            } else {
                1. / ((1. - smooth) / factor + smooth)
            }
        };
        (0..32).map(|i| of(i) as f32).collect::<Vec<f32>>()
    };
    let file = |values: &[f32]| {
        let mut file = llama().count("llama.embedding_length", 64).float("llama.rope.freq_base", 500_000.);
        file = file.tensor("rope_freqs.weight", &[32], 0, 32);
        file.data = 160;
        let mut bytes = file.bytes();
        let at = bytes.len() - 128;
        bytes[at..].copy_from_slice(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
        bytes
    };
    let config = |values: &[f32]| open(&file(values))?.config();
    let expected = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    assert_eq!(config(&divisors(32.)).unwrap()["rope_scaling"], expected);
    assert_eq!(config(&[1.; 32]).unwrap()["rope_scaling"], Value::Null);
    let mut other = divisors(32.);
    other[16] *= 1.01;
    assert_error(config(&other), &["bad.gguf: rope_freqs.weight: found", "as element 16", "factor 32"]);
    other[16] = f32::NAN;
    assert_error(config(&other), &["bad.gguf: rope_freqs.weight: found NaN at element 16"]);
}

#[test]
fn tensors_that_no_llama_has() {
    let model = |file: File| {
        let (_dir, path) = written("bad.gguf", file.bytes());
        Checkpoint::open_model(&path)
    };
    let unused = &["found a tensor that nothing uses, expected a tensor of a LLaMA of 1 layers"];
    for name in [
        "blk.1.attn_q.weight",
        "blk.00.attn_q.weight",
        "blk.+0.attn_q.weight",
        "blk.0.attn_q",
        "blk.0.x.weight",
        "x.bias",
        "",
    ] {
        assert_error(model(llama().tensor(name, &[2, 2], 0, 32)), &[&[name][..], unused].concat());
    }
    assert!(model(llama().tensor("blk.0.attn_q.weight", &[2, 2], 0, 32)).is_ok());
    let rows = |rows| llama().tensor("blk.0.attn_k.weight", &[2, rows], 0, 32);
    for count in [1, 3] {
        assert_error(
            model(rows(count)),
            &["blk.0.attn_k.weight", &format!("found {count} rows, expected a multiple of 2 x 1")],
        );
    }
    let heads = rows(2).count("llama.attention.head_count_kv", u32::MAX);
    assert_error(model(heads), &["attn_k.weight: found 2 rows, expected a multiple of 2 x 4294967295"]);
    let bias = File { data: 96, ..llama().tensor("blk.0.attn_q.bias", &[32], 8, 32) };
    assert_error(model(bias), &["attn_q.bias: found type Q8_0"]);
}

#[test]
fn values_that_are_not_finite() {
    let mut bytes = File::new().tensor("t", &[32], 8, 0).bytes();
    let at = bytes.len() - 64;
    bytes[at..at + 3].copy_from_slice(&[0x00, 0x7c, 1]);
    let (_dir, path) = written("bad.gguf", &bytes);
    let result = Checkpoint::open_file(&path).unwrap().read_f32("t", &[32]);
    assert_error(result, &["bad.gguf: t: found inf at element 0, expected finite"]);
}

/// A vocabulary of three tokens for texts of "a".
fn words(model: &str) -> File {
    File::new()
        .key("tokenizer.ggml.model", 8, text(model))
        .key("tokenizer.ggml.tokens", 9, list(8, &["<s>", "a", "aa"].map(text)))
        .key("tokenizer.ggml.token_type", 9, list(5, &[3i32, 1, 1].map(|kind| kind.to_le_bytes().to_vec())))
        .key("tokenizer.ggml.scores", 9, list(6, &[0f32, -1., -2.].map(|score| score.to_le_bytes().to_vec())))
        .key("tokenizer.ggml.merges", 9, list(8, &[text("a a")]))
        .count("tokenizer.ggml.bos_token_id", 0)
}

#[test]
fn tokenizers_that_lie() {
    let tokenizer = |file: File| Tokenizer::from_gguf(&file.open()?, 3);
    let ids = |file: File, text: &str| tokenizer(file).unwrap().encode(text, None, 9).unwrap().ids;
    assert_eq!(ids(words("gpt2"), "aaa"), [2, 1]);
    assert_error(
        Tokenizer::from_gguf(&words("gpt2").open().unwrap(), 2),
        &["bad.gguf: tokenizer.ggml.tokens: found 3 tokens", "at most 2, the rows of the word table"],
    );
    assert_eq!(ids(words("gpt2").key("tokenizer.ggml.add_bos_token", 7, [1]), "aaa<s>"), [0, 2, 1, 0]);
    // A word that is a token needs no merges in LLaMA 3.
    let unmerged = |pre: &str| {
        let file = words("gpt2").key("tokenizer.ggml.merges", 9, list(8, &[]));
        file.key("tokenizer.ggml.pre", 8, text(pre))
    };
    assert_eq!((ids(unmerged("gpt-2"), "aa"), ids(unmerged("llama-bpe"), "aa")), (vec![1, 1], vec![2]));

    let refused =
        |file: File, parts: &[&str]| assert_error(tokenizer(file), &[&["bad.gguf: tokenizer"], parts].concat());
    refused(words("bert"), &[".ggml.model: found \"bert\", expected \"gpt2\" or \"llama\""]);
    refused(
        words("gpt2").key("tokenizer.ggml.pre", 8, text("qwen2")),
        &[".ggml.pre: found \"qwen2\", expected one of default"],
    );
    refused(
        words("gpt2").count("tokenizer.ggml.tokens", 3),
        &[".ggml.tokens: found the integer 3, expected an array of texts"],
    );
    let same = list(8, &["a", "b", "a"].map(text));
    refused(
        words("gpt2").key("tokenizer.ggml.tokens", 9, same),
        &[".ggml.tokens: token 2: found \"a\"", "0 has this one"],
    );
    let long = list(8, &[text(&"a".repeat(2000)), text("b"), text("c")]);
    assert_error(
        tokenizer(words("gpt2").key("tokenizer.ggml.tokens", 9, long)),
        &["aaa...: found a name of 2000 bytes"],
    );
    refused(
        words("gpt2").key("tokenizer.ggml.token_type", 9, list(0, &[vec![1]])),
        &[".token_type: found 1 elements, expected 3"],
    );
    for (merge, found) in [("aa", "\"aa\" as element 0"), ("a a a", "\"a a a\" as element 0")] {
        refused(
            words("gpt2").key("tokenizer.ggml.merges", 9, list(8, &[text(merge)])),
            &[".ggml.merges: found", found],
        );
    }
    refused(words("gpt2").key("tokenizer.ggml.merges", 9, list(8, &[text("a b")])), &[": found", "`b`"]);
    let begin = words("gpt2").key("tokenizer.ggml.add_bos_token", 7, [1]);
    refused(begin.clone().count("tokenizer.ggml.bos_token_id", 3), &[".bos_token_id: found 3, expected an id below 3"]);
    refused(begin.key("tokenizer.ggml.add_eos_token", 7, [1]), &[".eos_token_id: found nothing, expected an id"]);

    let scored = |scores: Vec<u8>| {
        let mut file = words("llama").key("tokenizer.ggml.scores", 9, scores);
        file.keys.retain(|(key, ..)| key != "tokenizer.ggml.merges");
        file.key("tokenizer.ggml.add_space_prefix", 7, [0])
    };
    let of = |scores: [f32; 3]| list(6, &scores.map(|score| score.to_le_bytes().to_vec()));
    assert_eq!(ids(scored(of([0., -1., -2.])), "aaa"), [0, 2, 1]);
    refused(
        scored(of([0., f32::NAN, 0.])),
        &[".scores: found the number NaN as element 1, expected an array of finite"],
    );
    refused(scored(list(6, &[vec![0; 4]])), &[".scores: found 1 elements, expected 3, one for each token"]);
}

/// All that can be asked of a file.
fn read(path: &Path, values: bool, tokenizer: bool) -> peft_core::Result<()> {
    let gguf = Gguf::open(path)?;
    if tokenizer {
        gguf.tokenizer()?;
        Tokenizer::from_gguf(&gguf, 1000)?.encode("the <s>dog", None, 100)?;
    }
    gguf.config()?;
    let file = Checkpoint::from_gguf(&gguf)?;
    for name in file.names().filter(|_| values) {
        file.read_f32(name, file.shape(name).unwrap())?;
    }
    Ok(())
}

#[test]
fn no_cut_and_no_flipped_bit_panics() {
    let good = fs::read(golden("llama.gguf")).unwrap();
    let (_dir, path) = written("bad.gguf", &good);
    read(&path, true, true).unwrap();
    for cut in (0..good.len()).step_by(64) {
        fs::write(&path, &good[..cut]).unwrap();
        assert_error(read(&path, true, true), &["bad.gguf"]);
    }
    // One bit of every third byte of the metadata and the list of tensors, and of some of the data, which begin at
    // 10080.
    fs::write(&path, &good).unwrap();
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut put = |place: usize, byte: u8| {
        file.seek(SeekFrom::Start(place as u64)).unwrap();
        file.write_all(&[byte]).unwrap();
    };
    for place in (0..10_112).step_by(3).chain((10_112..good.len()).step_by(97)) {
        put(place, good[place] ^ 1 << (place % 8));
        // Some flips only change a value or a name.
        if let Err(error) = read(&path, place % 16 == 0, place % 64 == 0) {
            assert!(error.to_string().contains("bad.gguf"), "{error}");
        }
        put(place, good[place]);
    }
    read(&path, true, true).unwrap();
}
