//! What is done with some bytes that may be anything: they are read as one kind of file or packed weight, and all that this gives is used.
//! Whatever they are, the result is a value or an error.
//!
//! cargo-fuzz runs these on bytes that it makes up; the tests of peft-bench run them on those in `seeds`.

#![allow(dead_code, reason = "each program of cargo-fuzz runs one of them")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use half::f16;
use peft_core::io::peft::{self, Labels};
use peft_core::load::{Blocks, Checkpoint, Gguf, Tokenizer};
use peft_core::{Base, Head, LanguageModel, Method, Shape, Trained};
use peft_quant::bitsandbytes::{self, Tensor, Tensors};
use peft_quant::{Codec, Grouped, Matrix, Packing, Words};
use peft_reparam::LoraConfig;
use safetensors::SafeTensors;
use tempfile::TempDir;

/// Does something with bytes.
type Target = fn(&[u8]);

/// All targets by their names.
pub const TARGETS: [(&str, Target); 8] = [
    ("bitsandbytes", bitsandbytes),
    ("words", words),
    ("gguf_blocks", gguf_blocks),
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("index", index),
    ("adapter_config", adapter_config),
    ("tokenizer", tokenizer),
];

/// All weights of a matrix of so many elements, if it is one, decoded as a base does it.
fn decoded<C: Codec>(codec: C) -> Option<Vec<f32>> {
    let w = Matrix::packed(codec, &peft_core::device("flex").ok()?).ok()?;
    Some(w.outputs(0..w.dims()[1]))
}

/// A safetensors file with weights of bitsandbytes: the states' JSON, nested scales, codebooks.
pub fn bitsandbytes(bytes: &[u8]) {
    let Ok(file) = SafeTensors::deserialize(bytes) else { return };
    let tensors: Tensors = file
        .iter()
        .map(|(name, view)| {
            let (dtype, shape) = (view.dtype(), view.shape().to_vec());
            (name.to_string(), Tensor { dtype, shape, bytes: view.data().into() })
        })
        .collect();
    for module in bitsandbytes::modules(tensors.keys().map(String::as_str)) {
        if let Ok(Some(packed)) = bitsandbytes::read(Path::new("fuzzed"), module, &tensors) {
            let again = bitsandbytes::write(module, &packed);
            assert_eq!(bitsandbytes::read(Path::new("written"), module, &again).unwrap().as_ref(), Some(&packed));
            decoded(packed);
        }
    }
}

/// Words of GPTQ or AWQ behind eight bytes: bits, packing, outputs and inputs by eights, the group, whether inputs are ordered, and what
/// lengths are off by.
pub fn words(bytes: &[u8]) {
    let Some(([bits, packing, outputs, inputs, group, ordered, part, off], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let packing = [Packing::Gptq, Packing::GptqV2, Packing::Awq][*packing as usize % 3];
    // Small matrices, so that many are tried.
    let (dims, group) = ([outputs, inputs].map(|eights| *eights as usize % 17 * 8), *group as usize);
    let (count, groups) = (|codes: usize| codes * *bits as usize / 32, dims[1] / group.max(1));
    let mut next = rest.chunks_exact(4).cycle();
    let mut take = |which: u8, count: usize| -> Vec<u32> {
        let count = if *part == which { count.saturating_add_signed(isize::from(*off as i8)) } else { count };
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        (0..count).map(|_| next.next().map_or(0, number)).collect()
    };
    let words = Words {
        qweight: take(1, count(dims[0] * dims[1])),
        qzeros: take(2, count(dims[0] * groups)),
        scales: take(3, dims[0] * groups).into_iter().map(|word| f16::from_bits(word as u16)).collect(),
        g_idx: (ordered % 2 == 1).then(|| take(4, dims[1]).into_iter().map(|word| (word % 300) as i32 - 1).collect()),
    };
    if let Ok(packed) = Grouped::from_words(dims, (*bits).into(), group, packing, &words) {
        if let Ok(again) = packed.to_words(packing) {
            assert_eq!((again.qweight, again.qzeros), (words.qweight, words.qzeros));
        }
        assert_eq!(decoded(packed).map(|values| values.len()), Some(dims[0] * dims[1]));
    }
}

/// Blocks of GGUF behind three bytes: the type, rows, and blocks of a row.
pub fn gguf_blocks(bytes: &[u8]) {
    let Some(([kind, rows, blocks], rest)) = bytes.split_first_chunk() else { return };
    let kinds = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "Q2_K"];
    let kind = kinds[*kind as usize % kinds.len()];
    let elements = if kind.ends_with("_K") { 256 } else { 32 };
    // Rows that are no whole blocks too.
    let dims = [*rows as usize, *blocks as usize * elements / 2];
    if let Ok(blocks) = Blocks::new(kind, dims, rest.to_vec()) {
        let values = decoded(blocks).unwrap_or_default();
        assert!(values.len() == dims[0] * dims[1] && values.iter().all(|value| value.is_finite()));
    }
}

/// A directory of this process, in memory where the system has one there.
fn folder() -> &'static Path {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
        let shared = Path::new("/dev/shm");
        if shared.is_dir() { TempDir::new_in(shared) } else { TempDir::new() }.expect("a directory")
    });
    FOLDER.path()
}

/// A directory of its own with one file of these bytes.
fn written(dir: &str, name: &str, bytes: &[u8]) -> PathBuf {
    let dir = folder().join(dir);
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join(name), bytes).expect("a file");
    dir.join(name)
}

/// Reads all that there is in whatever form it has.
fn read_all(file: &Checkpoint) {
    for name in file.names() {
        let shape = file.shape(name).unwrap_or_default().to_vec();
        let _ = file.read_f32(name, &shape);
        let _ = file.read_i64(name);
        if let Ok(Some(blocks)) = file.read_blocks(name) {
            decoded(blocks);
        }
    }
}

/// A GGUF file: as a model with its configuration and tokenizer, and as tensors.
pub fn gguf(bytes: &[u8]) {
    let path = written("gguf", "fuzzed.gguf", bytes);
    let Ok(gguf) = Gguf::open(&path) else { return };
    if let Ok(config) = gguf.config() {
        let _ = Shape::from_config(&config, &path);
    }
    let _ = Tokenizer::from_gguf(&gguf, 400).map(|tokenizer| tokenizer.encode("the fox", None, 16));
    let _ = Checkpoint::from_gguf(&gguf).map(|file| read_all(&file));
    let _ = Checkpoint::open_file(&path).map(|file| read_all(&file));
}

/// A safetensors file.
pub fn safetensors(bytes: &[u8]) {
    let _ = Checkpoint::open_file(&written("safetensors", "fuzzed.safetensors", bytes)).map(|file| read_all(&file));
}

/// An index of shards beside one shard with the tensor `a`.
pub fn index(bytes: &[u8]) {
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let shard = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    written("index", "one.safetensors", &shard);
    let path = written("index", "model.safetensors.index.json", bytes);
    if let Ok(file) = Checkpoint::open_model(path.parent().expect("its directory")) {
        read_all(&file);
        for name in file.absent() {
            assert!(file.read_f32(name, &[1]).is_err());
        }
    }
}

/// The settings of a LoRA beside its tensors.
pub fn adapter_config(bytes: &[u8]) {
    static BASE: LazyLock<Base> = LazyLock::new(|| {
        let device = peft_core::device("flex").expect("flex is built in");
        let base = Base::random(Shape::named("llama-tiny").expect("a shape"), 0, &device);
        let config = LoraConfig::new(2);
        let tuner = config.init(&base, 0).expect("a LoRA");
        let trained = Trained::new(tuner, Head::LanguageModel(LanguageModel {})).expect("names are its own");
        peft::save(&folder().join("adapter"), &config, &trained, base.shape(), &Labels::default(), &[]).expect("saved");
        base
    });
    let base = &*BASE;
    let path = written("adapter", "adapter_config.json", bytes);
    let _ = fs::remove_file(path.with_file_name("manifest.json"));
    let _ = peft::load::<LoraConfig>(path.parent().expect("its directory"), base);
}

/// A file of a tokenizer; the first byte says which.
pub fn tokenizer(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let names = ["tokenizer.json", "tokenizer.model", "vocab.txt", "tokenizer_config.json"];
    let name = names[*which as usize % names.len()];
    let path = written(&format!("tokenizer-{name}"), name, bytes);
    let dir = path.parent().expect("its directory");
    match name {
        "tokenizer.model" => drop(written("tokenizer-tokenizer.model", "config.json", br#"{"model_type": "llama"}"#)),
        "vocab.txt" => drop(written("tokenizer-vocab.txt", "config.json", br#"{"model_type": "bert"}"#)),
        "tokenizer_config.json" => drop(written(
            "tokenizer-tokenizer_config.json",
            "vocab.txt",
            b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nfox\n",
        )),
        _ => {}
    }
    if let Ok(tokenizer) = Tokenizer::from_dir(dir, 400) {
        let _ = tokenizer.encode("the fox", Some("x"), 16).map(|encoded| tokenizer.decode(&encoded.ids));
    }
}
