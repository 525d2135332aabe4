//! Files that transformers wrote with bitsandbytes: read, decoded and written again to the byte, and refused where they are damaged.

use std::borrow::Cow;
use std::path::Path;

use half::{bf16, f16};
use peft_core::testing::warnings;
use peft_quant::bitsandbytes::{Quantized, Tensor, Tensors, modules, read, write};
use peft_quant::{FourBit, Scales};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::common::{Stored, assert_error, bits, golden};

const KINDS: [&str; 6] = ["nf4", "nf4-double", "fp4", "fp4-double", "nf4-bf16-storage", "int8"];
const MODULE: &str = "model.layers.0.self_attn.k_proj";

fn tensors(file: &[u8]) -> Tensors<'static> {
    let tensor = |(name, view): (String, TensorView<'_>)| {
        (name, Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec().into() })
    };
    SafeTensors::deserialize(file).unwrap().tensors().into_iter().map(tensor).collect()
}

fn model(kind: &str) -> Vec<u8> {
    golden(&format!("bnb-{kind}/model.safetensors"))
}

fn decoded<E: Stored>(weight: &Quantized) -> Vec<u32> {
    match weight {
        Quantized::FourBit { packed, .. } => bits(&packed.decode::<E>()),
        Quantized::Int8(rows) => bits(&rows.decode::<E>()),
    }
}

#[test]
fn files_of_transformers_are_read_decoded_and_written_again() {
    for kind in KINDS {
        let file = model(kind);
        let tensors = tensors(&file);
        let names = modules(tensors.keys().map(String::as_str));
        assert_eq!(names.len(), 7, "{kind}: {names:?}");
        let mut written = Tensors::new();
        for name in names {
            let weight = read(Path::new(kind), name, &tensors).unwrap().unwrap();
            written.append(&mut write(name, &weight));
        }
        for (name, mut tensor) in written {
            let expected = &tensors[&name];
            if kind == "nf4-bf16-storage" && expected.dtype == Dtype::BF16 {
                tensor = Tensor { dtype: Dtype::BF16, shape: vec![tensor.bytes.len() / 2, 1], ..tensor };
            }
            assert_eq!(&tensor, expected, "{kind}: {name}");
        }
        let weight = read(Path::new(kind), MODULE, &tensors).unwrap().unwrap();
        let file = golden(&format!("bnb-{kind}/expected.safetensors"));
        let expected = SafeTensors::deserialize(&file).unwrap();
        let expected = expected.tensor(MODULE).unwrap();
        let (found, expected) = match expected.dtype() {
            Dtype::F32 => (decoded::<f32>(&weight), bits(&f32::read(expected.data()))),
            Dtype::F16 => (decoded::<f16>(&weight), bits(&f16::read(expected.data()))),
            _ => (decoded::<bf16>(&weight), bits(&bf16::read(expected.data()))),
        };
        assert!(found == expected, "{kind}");
        assert_eq!(read(Path::new(kind), "model.embed_tokens", &tensors).unwrap(), None);
    }
}

/// Reading the module fails once the tensors are changed so, and the message has the file, the tensor and these parts.
#[track_caller]
fn refused(kind: &str, change: impl FnOnce(&mut Tensors<'_>), parts: &[&str]) {
    let file = model(kind);
    let mut tensors = tensors(&file);
    change(&mut tensors);
    assert_error(read(Path::new("m.safetensors"), MODULE, &tensors), &[&["m.safetensors: ", MODULE], parts].concat());
}

fn tensor(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Tensor<'static> {
    Tensor { dtype, shape: shape.to_vec(), bytes: Cow::Owned(bytes) }
}

fn cut(tensors: &mut Tensors<'_>, part: &str, by: usize) {
    let tensor = tensors.get_mut(&format!("{MODULE}.{part}")).unwrap();
    let bytes = tensor.bytes.to_mut();
    bytes.truncate(bytes.len() - by);
}

fn floats(tensors: &mut Tensors<'_>, part: &str, change: impl FnOnce(&mut [f32])) {
    let tensor = tensors.get_mut(&format!("{MODULE}.{part}")).unwrap();
    let mut values = f32::read(&tensor.bytes);
    change(&mut values);
    tensor.bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into();
}

const STATE: &str = "weight.quant_state.bitsandbytes__nf4";

fn state(tensors: &mut Tensors<'_>, change: impl FnOnce(String) -> String) {
    let tensor = tensors.get_mut(&format!("{MODULE}.{STATE}")).unwrap();
    let text = change(String::from_utf8(tensor.bytes.to_vec()).unwrap());
    tensor.bytes = text.into_bytes().into();
}

#[test]
fn damaged_weights_of_four_bits_are_refused() {
    let all =
        |tensors: &Tensors<'_>| tensors.keys().filter(|name| name.starts_with(MODULE)).cloned().collect::<Vec<_>>();
    let file = model("nf4-double");
    for name in all(&tensors(&file)).iter().filter(|name| !name.contains("quant_state")) {
        refused("nf4-double", |tensors| drop(tensors.remove(name)), &[name, "no tensor"]);
    }
    refused(
        "nf4",
        |t| cut(t, "weight", 1),
        &["weight: weight: found a length of 1023", "1024 (two weights a byte of [32, 64])"],
    );
    refused(
        "nf4",
        |t| cut(t, "weight.absmax", 4),
        &["weight: absmax: found a length of 31", "32 (one for each 64 of 2048 weights)"],
    );
    refused("nf4-double", |t| cut(t, "weight.absmax", 1), &["weight: absmax: found a length of 31", "expected 32"]);
    refused("nf4-double", |t| cut(t, "weight.nested_absmax", 4), &["nested_absmax: found a length of 0", "expected 1"]);
    refused("nf4-double", |t| cut(t, "weight.nested_quant_map", 4), &["nested_quant_map: found a length of 255"]);
    refused("nf4", |t| cut(t, "weight.quant_map", 4), &["weight.quant_map: its values: found a length of 15"]);
    refused(
        "nf4",
        |t| floats(t, "weight.quant_map", |map| map.swap(2, 3)),
        &["quant_map, element 2: found -0.3949175", "-0.52507305, as in nf4"],
    );
    refused("nf4", |t| floats(t, "weight.quant_map", |map| map[15] = f32::NAN), &["quant_map, element 15: found NaN"]);
    refused(
        "nf4-double",
        |t| floats(t, "weight.nested_quant_map", |map| map.swap(2, 3)),
        &["nested_quant_map, element 3", "values that never fall"],
    );
    refused(
        "nf4",
        |t| floats(t, "weight.absmax", |absmax| absmax[9] = f32::INFINITY),
        &["absmax, element 9: found inf"],
    );
    refused(
        "nf4-double",
        |t| floats(t, "weight.nested_absmax", |absmax| absmax[0] = f32::NAN),
        &["nested_absmax, element 0: found NaN"],
    );
    refused(
        "nf4-double",
        |t| state(t, |s| s.replace("\"nested_offset\": ", "\"nested_offset\": 1e39, \"was\": ")),
        &["nested_offset", "found inf"],
    );

    let replaced = |kind: &'static str, from: &'static str, to: &'static str, parts: &[&str]| {
        let change = |text: String| {
            assert!(text.contains(from), "{text}");
            text.replace(from, to)
        };
        refused(kind, |tensors| state(tensors, change), &[&[STATE], parts].concat());
    };
    replaced("nf4", "}", "", &["EOF", "JSON with quant_type, blocksize, dtype and shape"]);
    replaced("nf4", "\"shape\"", "\"form\"", &["missing field `shape`"]);
    replaced("nf4", "[32, 64]", "[32, -64]", &["invalid value"]);
    replaced("nf4", "\"nf4\"", "\"int4\"", &["quant_type: found \"int4\"", "nf4 or fp4"]);
    replaced("nf4", "\"nf4\"", "\"fp4\"", &["found quant_type fp4", "the type that the name says"]);
    replaced("nf4", "float32", "int8", &["found dtype int8", "float32, float16 or bfloat16"]);
    replaced("nf4-double", "\"nested_blocksize\"", "\"other\"", &["one without the other"]);
    replaced("nf4-double", "\"nested_offset\"", "\"other\"", &["one without the other"]);
    replaced("nf4-double", "\"nested_dtype\": \"float32\"", "\"nested_dtype\": \"float16\"", &["nested_dtype float16"]);
    for (kind, from, to, parts) in [
        ("nf4", "\"blocksize\": 64", "\"blocksize\": 48", ["blocksize: found 48", "a power of two from 32 to 4096"]),
        ("nf4", "\"blocksize\": 64", "\"blocksize\": 0", ["blocksize: found 0", "a power of two"]),
        (
            "nf4-double",
            "\"nested_blocksize\": 256",
            "\"nested_blocksize\": 100",
            ["nested_blocksize: found 100", "a power of two"],
        ),
        ("nf4", "[32, 64]", "[4294967296, 4294967296]", ["shape", "the extents of a tensor"]),
        ("nf4", "[32, 64]", "[32, 66]", ["weight: found a length of 1024", "expected 1056"]),
        ("nf4", "[32, 64]", "[]", ["shape", "the extents of a tensor"]),
    ] {
        refused(kind, |tensors| state(tensors, |text| text.replace(from, to)), &parts);
    }
    let neither = |text: String| text.replace("nested_blocksize", "a").replace("nested_offset", "b");
    refused("nf4-double", |t| state(t, neither), &[STATE, "one without the other"]);
    let u8s = |bytes: &[u8]| tensor(Dtype::U8, &[bytes.len()], bytes.to_vec());
    let name = |part: &str| format!("{MODULE}.{part}");
    refused("nf4", |t| drop(t.insert(name(STATE), u8s(&[0xff, 0xfe]))), &[STATE, "expected JSON"]);
    refused(
        "nf4",
        |t| drop(t.insert(name(STATE), tensor(Dtype::I8, &[2], vec![1, 2]))),
        &[STATE, "found type I8, expected U8"],
    );
    refused(
        "nf4",
        |t| drop(t.insert(name("weight.absmax"), u8s(&[0; 32]))),
        &["absmax: found type U8", "F32, F16 or BF16"],
    );
    refused(
        "nf4-double",
        |t| drop(t.insert(name("weight.absmax"), tensor(Dtype::F32, &[1], vec![0; 4]))),
        &["absmax: found type F32, expected U8"],
    );
    let other = name("weight.quant_state.bitsandbytes__fp4");
    refused("nf4", |t| drop(t.insert(other, u8s(b"{}"))), &["a state beside", "one state of a weight"]);
}

#[test]
fn damaged_weights_of_eight_bits_are_refused() {
    refused("int8", |t| drop(t.remove(&format!("{MODULE}.weight"))), &["weight: found no tensor"]);
    refused("int8", |t| cut(t, "weight", 1), &["weight: found a length of 2047", "2048"]);
    refused("int8", |t| cut(t, "SCB", 4), &["SCB: found a length of 31", "32 (one for each row)"]);
    refused("int8", |t| floats(t, "SCB", |scales| scales[3] = f32::NAN), &["SCB, element 3: found NaN"]);
    let insert = |part: &str, tensor| {
        let name = format!("{MODULE}.{part}");
        move |tensors: &mut Tensors<'_>| drop(tensors.insert(name, tensor))
    };
    refused(
        "int8",
        insert("weight_format", tensor(Dtype::U8, &[], vec![2])),
        &["weight_format: found [2]", "0, weights row by row"],
    );
    refused("int8", insert("weight_format", tensor(Dtype::F32, &[], vec![0; 4])), &["weight_format: found type F32"]);
    refused(
        "int8",
        insert("weight", tensor(Dtype::I8, &[4], vec![0; 4])),
        &["weight: found shape [4], expected a matrix"],
    );
    refused(
        "int8",
        insert("weight", tensor(Dtype::F16, &[1, 1], vec![0; 2])),
        &["weight: found type F16, expected I8"],
    );
}

#[test]
fn what_the_json_says_beside_is_told() {
    let file = model("nf4");
    let mut tensors = tensors(&file);
    state(&mut tensors, |text| text.replace('}', ", \"group\": 7}"));
    let (weight, told) = warnings(|| read(Path::new("m.safetensors"), MODULE, &tensors));
    assert!(weight.unwrap().is_some());
    assert_eq!(told, [format!("m.safetensors: {MODULE}.{STATE}: group is 7: nothing uses it")]);
}

/// No change of a few bytes makes reading panic, and what is read has all its parts.
#[test]
fn bytes_that_changed_at_random_are_read_or_refused() {
    let mut random = 1u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) as usize % below
    };
    let (mut refused, mut accepted) = (0, 0);
    for kind in KINDS {
        let file = model(kind);
        let clean = tensors(&file);
        let names: Vec<&String> = clean.keys().filter(|name| name.starts_with(MODULE)).collect();
        for _ in 0..300 {
            let mut changed = clean.clone();
            for _ in 0..1 + next(3) {
                let bytes = changed.get_mut(names[next(names.len())]).unwrap().bytes.to_mut();
                match next(4) {
                    0 => bytes.truncate(next(bytes.len() + 1)),
                    1 => bytes.push(next(256) as u8),
                    _ if bytes.is_empty() => {}
                    _ => {
                        let at = next(bytes.len());
                        bytes[at] = next(256) as u8;
                    }
                }
            }
            match read(Path::new("m.safetensors"), MODULE, &changed) {
                Ok(weight) => {
                    accepted += 1;
                    decoded::<f32>(&weight.unwrap());
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().starts_with("m.safetensors: "), "{error}");
                }
            }
        }
    }
    assert!(refused > 100 && accepted > 100, "{refused} {accepted}");
}

#[test]
fn what_is_encoded_here_has_the_bytes_of_the_file() {
    for kind in ["nf4", "nf4-double", "fp4", "fp4-double"] {
        let file = model(kind);
        let Some(Quantized::FourBit { packed, .. }) = read(Path::new(kind), MODULE, &tensors(&file)).unwrap() else {
            panic!("four bits")
        };
        // The decoded weights have the codes that they came from, but for FP4's second zero, and so do not need the dense model.
        let again = FourBit::encode(&packed.decode::<f32>(), packed.dims(), packed.codebook(), packed.block()).unwrap();
        if kind.starts_with("nf4") {
            assert_eq!(again.bytes(), packed.bytes(), "{kind}");
        }
        if let Scales::Plain(scales) = packed.scales() {
            assert_eq!(&again.scales().decode(), scales, "{kind}");
        }
    }
}
