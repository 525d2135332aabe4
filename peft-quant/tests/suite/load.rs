//! Models whose files are packed, packed as they are read, and packed from one directory into another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Distribution, Int, Tensor as Floats};
use peft_core::io::Pretrained;
use peft_core::load::Checkpoint;
use peft_core::testing::golden::examples;
use peft_core::testing::tolerances::{REFERENCE, SAME_FUNCTION};
use peft_core::testing::{assert_close, device, difference};
use peft_core::{Bare, Base, Example, Part, Trained, Weight};
use peft_quant::bitsandbytes::{Tensor, Tensors};
use peft_quant::{Plan, Scheme, is_packed, open, quantized};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::common::assert_error;

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("bnb-{kind}"))
}

fn model(dir: &Path, scheme: Option<&str>) -> peft_core::Result<Pretrained> {
    open(dir.to_str().unwrap(), &device(), scheme.map(|scheme| scheme.parse().unwrap()))
}

/// The largest difference of a model's logits to those beside it.
fn off_of(dir: &Path, model: &Pretrained) -> f32 {
    let examples = examples(&dir.join("expected.safetensors"));
    let batch = model.base.batch(&examples.iter().collect::<Vec<_>>()).unwrap();
    let logits = Trained::new(Bare {}, model.own_head().unwrap()).unwrap().logits(&model.base, &batch).unwrap();
    let file = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap();
    difference(&logits.into_data(), &file.read_f32("logits", &[2, 9, 32]).unwrap())
}

/// The same to transformers' of a model of bitsandbytes.
fn off(kind: &str) -> f32 {
    off_of(&folder(kind), &model(&folder(kind), None).unwrap())
}

#[test]
fn logits_of_packed_models_are_those_of_transformers() {
    for kind in ["nf4", "fp4-double", "nf4-bf16-storage"] {
        let off = off(kind);
        assert!(off < REFERENCE.0, "{kind}: {off}");
    }
}

/// transformers computed these in numbers of sixteen bits, with eight bits also of rounded inputs. Logits go up to about two.
#[test]
fn logits_of_packed_models_of_short_numbers_are_near_those_of_transformers() {
    for (kind, most) in [("nf4-double", 0.2), ("fp4", 0.02), ("int8", 0.2)] {
        let off = off(kind);
        println!("{kind}: {off}");
        assert!(off < most, "{kind}: {off}");
    }
}

#[test]
fn a_model_packed_as_it_is_read_is_one_that_is_packed_then() {
    let (dir, dense) = (folder("dense"), model(&folder("dense"), None).unwrap());
    for scheme in ["nf4", "fp4-double", "int8"] {
        let then = quantized(&dense.base, scheme.parse().unwrap()).unwrap();
        let read = model(&dir, Some(scheme)).unwrap();
        assert_eq!(read.base.fingerprint(), then.fingerprint(), "{scheme}");
        let packed = |base: &peft_core::Base| {
            let (places, shape) = (base.shape().places(), base.shape());
            let mut linears = places.iter().filter(|place| is_packed(shape, place));
            linears.all(|place| matches!(base.weight(place.site), Weight::Packed(_)))
        };
        assert!(packed(&read.base) && !packed(&dense.base));
        // Published in f32, as it is drawn.
        let random = open("shape:t5-tiny", &device(), Some(scheme.parse().unwrap())).unwrap();
        let dense = Pretrained::open("shape:t5-tiny", &device()).unwrap();
        let then = quantized(&dense.base, scheme.parse().unwrap()).unwrap();
        assert!(packed(&random.base));
        assert_eq!(random.base.fingerprint(), then.fingerprint(), "{scheme}");
    }
}

#[test]
fn tables_of_words_keep_the_sixteen_bits_of_their_file() {
    let out = tempfile::tempdir().unwrap();
    let shortened = |name: &str, dtype: Dtype, narrow: fn(f32) -> u16| {
        let dir = out.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::copy(folder("dense").join("config.json"), dir.join("config.json")).unwrap();
        let narrowed = |(name, (_, shape, bytes)): (String, (String, Vec<usize>, Vec<u8>))| {
            let numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| narrow(f32::from_le_bytes(*bytes)));
            (name, shape, numbers.flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
        };
        let tensors: Vec<_> = tensors(&folder("dense")).into_iter().map(narrowed).collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
        dir
    };
    for (kind, dir) in [
        ("float16", shortened("f16", Dtype::F16, |x| half::f16::from_f32(x).to_bits())),
        ("bfloat16", shortened("bf16", Dtype::BF16, |x| half::bf16::from_f32(x).to_bits())),
    ] {
        let (dense, packed) = (model(&dir, None).unwrap().base, model(&dir, Some("nf4")).unwrap().base);
        let places = dense.shape().places();
        let tables: Vec<_> =
            places.iter().filter(|place| matches!(place.site.part, Part::Words | Part::Vocabulary)).collect();
        assert_eq!(tables.len(), 2);
        for place in tables {
            let (found, expected) = (packed.weight(place.site), dense.weight(place.site));
            assert!(matches!(found, Weight::Table(table) if table.kind() == kind), "{}: {found:?}", place.name);
            assert_eq!(found.dense().into_data(), expected.dense().into_data(), "{kind}: {}", place.name);
            let ids = Floats::<2, Int>::from_ints([[3, 0, 31], [7, 7, 12]], &device());
            assert_eq!(found.rows(ids.clone()).into_data(), expected.rows(ids).into_data(), "{kind}: {}", place.name);
            let x = Floats::<3>::random([2, 3, 64], Distribution::Normal(0., 1.), &device());
            assert_close(found.by_rows(x.clone()), expected.by_rows(x), SAME_FUNCTION, kind);
        }
    }
}

/// The tensors of a file: types, shapes, bytes.
fn tensors(dir: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let file = Checkpoint::open_model(dir).unwrap();
    let tensor = |name: &str| {
        let entry = file.entry(name).unwrap();
        (name.to_string(), (entry.dtype.clone(), entry.shape.clone(), file.bytes(name).unwrap()))
    };
    file.names().map(tensor).collect()
}

#[test]
fn a_directory_is_packed_as_transformers_packs_it() {
    let out = tempfile::tempdir().unwrap();
    for (kind, scheme) in [("nf4", "nf4"), ("fp4-double", "fp4-double")] {
        let output = out.path().join(kind);
        let mut told = 0;
        let costs =
            Plan::new(&folder("dense")).unwrap().write(&output, scheme.parse().unwrap(), |_| told += 1).unwrap();
        assert_eq!((told, costs.len()), (7, 7));
        let (found, expected) = (tensors(&output), tensors(&folder(kind)));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, tensor) in &expected {
            assert!(found[name] == *tensor, "{kind}: {name}");
        }
        let config =
            |dir: &Path| -> Value { serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap() };
        let (mut found, mut expected) = (config(&output), config(&folder(kind)));
        // transformers finds what it does not pack by the model's class.
        let left = found["quantization_config"]["llm_int8_skip_modules"].take();
        assert_eq!(left, json!(["classifier", "score", "lm_head", "cls", "qa_outputs", "tasks"]));
        expected["quantization_config"]["llm_int8_skip_modules"].take();
        assert_eq!(found["quantization_config"], expected["quantization_config"]);
        let base = |dir: &Path| model(dir, None).unwrap().base.fingerprint();
        assert_eq!(base(&output), base(&folder(kind)));
        // Who may read one of its files may read all.
        let modes =
            ["config.json", "model.safetensors"].map(|file| fs::metadata(output.join(file)).unwrap().permissions());
        assert_eq!(modes[0], modes[1]);
    }
}

#[test]
fn shards_and_heads_are_packed_apart() {
    let out = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft-core/tests/golden");
    for name in ["roberta-classify-sharded", "t5", "bert-mlm", "roberta-classify-bin"] {
        for scheme in ["nf4-double", "int8"] {
            let (dir, output) = (golden.join(name), out.path().join(format!("{name}-{scheme}")));
            let plan = Plan::new(&dir).unwrap();
            let costs = plan.write(&output, scheme.parse().unwrap(), |_| ()).unwrap();
            assert_eq!(costs.len(), plan.count());
            assert_eq!(output.join("model.safetensors.index.json").exists(), name.ends_with("-sharded"));
            let (packed, dense) = (model(&output, None).unwrap(), model(&dir, None).unwrap());
            let then = quantized(&dense.base, scheme.parse().unwrap()).unwrap();
            assert_eq!(packed.base.fingerprint(), then.fingerprint(), "{name} {scheme}");
            let shape = then.shape();
            assert_eq!(costs.len(), shape.places().iter().filter(|place| is_packed(shape, place)).count());
            let head = |model: &Pretrained| peft_core::view::tensors(model.head.as_ref().unwrap());
            assert_eq!(head(&packed), head(&dense), "{name} {scheme}");
        }
    }
}

/// The tensors of a safetensors file.
fn tensors_of(path: &Path) -> Tensors<'static> {
    let bytes = fs::read(path).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (String, safetensors::tensor::TensorView)| {
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        (name, Tensor { dtype, shape, bytes: view.data().to_vec().into() })
    };
    all.tensors().into_iter().map(tensor).collect()
}

/// transformers packs also the linear maps of a head.
#[test]
fn packed_tensors_of_a_head_are_decoded() {
    let out = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft-core/tests/golden/roberta-classify");
    let output = out.path().join("packed");
    Plan::new(&golden).unwrap().write(&output, "nf4".parse().unwrap(), |_| ()).unwrap();
    let file = Checkpoint::open_model(&output).unwrap();
    let (name, dims) = ("classifier.dense", [24, 24]);
    let values: Vec<f32> = file.read_f32(&format!("{name}.weight"), &dims).unwrap().try_into_vec().unwrap();
    let scheme: Scheme = "nf4".parse().unwrap();
    let packed = scheme.pack(&values, dims, Dtype::F32).unwrap();
    let mut tensors = tensors_of(&output.join("model.safetensors"));
    tensors.append(&mut peft_quant::bitsandbytes::write(name, &packed));
    safetensors::serialize_to_file(&tensors, None, &output.join("model.safetensors")).unwrap();
    fs::remove_file(output.join("manifest.json")).ok();
    let head = model(&output, None).unwrap().head.unwrap();
    let decoded = peft_quant::Codec::rows(&packed, 0..24);
    let found = peft_core::view::tensors(&head);
    let dense = found.iter().find(|(name, _)| name.contains("dense") && name.ends_with("weight")).unwrap().1;
    let turned: Vec<f32> =
        (0..24).flat_map(|i| (0..24).map(move |o| (o, i))).map(|(o, i)| decoded[o * 24 + i]).collect();
    assert_eq!(dense.iter::<f32>().collect::<Vec<_>>(), turned);
}

#[test]
fn what_cannot_be_read_is_refused() {
    let dense = Pretrained::open(folder("nf4").to_str().unwrap(), &device());
    assert_error(dense, &["config.json", "quantization_config", "none: weights that are not quantized"]);
    assert_error(model(&folder("nf4"), Some("nf4")), &["quantization_config", "to be packed as nf4"]);
    assert_error(Plan::new(&folder("int8")).map(drop), &["quantization_config", "a model that is not quantized"]);

    let out = tempfile::tempdir().unwrap();
    let copy = |kind: &str, change: &dyn Fn(&mut Value)| {
        let dir = out.path().join("copy");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        fs::copy(folder(kind).join("model.safetensors"), dir.join("model.safetensors")).unwrap();
        let mut config = serde_json::from_slice(&fs::read(folder(kind).join("config.json")).unwrap()).unwrap();
        change(&mut config);
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        dir
    };
    let other = copy("nf4", &|config| config["quantization_config"] = json!({"quant_method": "hqq", "bits": 4}));
    assert_error(model(&other, None), &["quantization_config.quant_method", "hqq", "bitsandbytes, gptq or awq"]);
    let wide = copy("nf4", &|config| config["intermediate_size"] = json!(192));
    assert_error(model(&wide, None), &["mlp.gate_proj.weight", "a packed matrix of shape [128, 64]", "[192, 64]"]);
}

/// GPTQ with zero points less one and as they are, in 2, 3, 4 and 8 bits, with inputs in any order, in groups and in one; AWQ.
const WORDS: [(&str, &str); 6] = [
    ("gptq", "int4 in groups of 32"),
    ("gptq-2", "int2 in groups of 32"),
    ("gptq-3", "int3 in groups of 32, ordered"),
    ("gptq-4-order", "int4 in groups of 16, ordered"),
    ("gptq-8", "int8 in groups of 64"),
    ("awq", "int4 in groups of 32"),
];

fn words(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn words_of_gptq_and_awq_stay_packed_and_give_the_logits_of_their_weights() {
    for (name, kind) in WORDS {
        let dir = words(name);
        let model = model(&dir, None).unwrap();
        for (site, path) in model.base.shape().linears() {
            let Weight::Packed(w) = model.base.weight(site) else { panic!("{name}: {path} is dense") };
            if path == "model.layers.0.self_attn.k_proj" {
                let expected = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap();
                let expected = expected.read_f32(&path, &[32, 64]).unwrap();
                assert_eq!(w.outputs(0..32), expected.try_into_vec::<f32>().unwrap(), "{name}");
                assert_eq!(w.kind(), kind, "{name}");
            }
        }
        let off = off_of(&dir, &model);
        assert!(off < REFERENCE.0, "{name}: {off}");
    }
}

/// The rows of queries and keys, whose order is another in GGUF, are moved with their blocks.
#[test]
fn blocks_of_gguf_stay_packed_and_give_the_bits_of_their_weights() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft-core/tests/golden/gguf/llama.gguf");
    let (packed, dense) = (model(&file, None).unwrap(), Pretrained::open(file.to_str().unwrap(), &device()).unwrap());
    let mut kinds = BTreeSet::new();
    for (site, path) in packed.base.shape().linears() {
        let dtype = Checkpoint::open_model(&file).unwrap().entry(&format!("{path}.weight")).unwrap().dtype.clone();
        match packed.base.weight(site) {
            Weight::Packed(w) => {
                assert_eq!(w.kind(), dtype, "{path}");
                kinds.insert(dtype);
            }
            Weight::Dense(_) => assert!(["F32", "F16", "BF16"].contains(&&*dtype), "{path}: {dtype}"),
            Weight::Table(_) => panic!("{path} is no table"),
        }
        let bits = |base: &Base| base.weight(site).dense().into_data();
        assert_eq!(bits(&packed.base), bits(&dense.base), "{path}");
    }
    println!("{kinds:?}");
    assert!(kinds.len() >= 4, "{kinds:?}");
    assert_eq!(packed.base.fingerprint(), dense.base.fingerprint());
    let batch = packed.base.batch(&[&Example { ids: vec![1, 17, 9, 30, 2, 44], ..Default::default() }]).unwrap();
    let states = |base: &Base| base.forward(&batch, &()).unwrap().states;
    assert_close(states(&packed.base), states(&dense.base), SAME_FUNCTION, "states");
    // To be packed by a scheme it is read as numbers, of the type that a file of dense ones has.
    let nf4 = model(&file, Some("nf4")).unwrap().base;
    let then = quantized(&dense.base, "nf4".parse().unwrap()).unwrap();
    for (site, path) in then.shape().linears() {
        let Weight::Packed(w) = nf4.weight(site) else { panic!("{path} is dense") };
        assert_eq!(w.kind(), "nf4");
        if matches!(packed.base.weight(site), Weight::Packed(_)) {
            assert_eq!(nf4.weight(site).dense().into_data(), then.weight(site).dense().into_data(), "{path}");
        }
    }
}

#[test]
fn words_that_cannot_be_read_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let changed = |name: &str, config: &dyn Fn(&mut Value), file: &dyn Fn(&mut Tensors<'static>)| {
        let dir = out.path().join("copy");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        let mut settings = serde_json::from_slice(&fs::read(words(name).join("config.json")).unwrap()).unwrap();
        config(&mut settings);
        fs::write(dir.join("config.json"), settings.to_string()).unwrap();
        let mut tensors = tensors_of(&words(name).join("model.safetensors"));
        file(&mut tensors);
        safetensors::serialize_to_file(&tensors, None, &dir.join("model.safetensors")).unwrap();
        model(&dir, None)
    };
    let none = |_: &mut Tensors<'static>| ();
    for (name, key, value, expected) in [
        ("gptq", "bits", json!(5), "2, 3, 4 or 8"),
        ("gptq", "bits", json!("4"), "2, 3, 4 or 8"),
        ("gptq", "group_size", json!(0), "a number of inputs, or -1"),
        ("gptq", "checkpoint_format", json!("marlin"), "gptq or gptq_v2"),
        ("gptq", "pack_dtype", json!("int16"), "int32"),
        ("gptq", "dynamic", json!({"-:lm_head": {}}), "the same bits and groups"),
        ("awq", "bits", json!(8), "4, which is what AWQ packs"),
        ("awq", "version", json!("gemv"), "gemm"),
        ("awq", "backend", json!("llm-awq"), "autoawq"),
    ] {
        let set = |config: &mut Value| config["quantization_config"][key] = value.clone();
        assert_error(changed(name, &set, &none), &["config.json", &format!("quantization_config.{key}"), expected]);
    }
    let group = |config: &mut Value| config["quantization_config"]["group_size"] = json!(48);
    assert_error(
        changed("gptq", &group, &none),
        &["model.safetensors", "q_proj: group_size: found 48", "a divisor of the 64"],
    );
    let bits = |config: &mut Value| config["quantization_config"]["bits"] = json!(8);
    assert_error(
        changed("gptq", &bits, &none),
        &["model.safetensors", "q_proj: scales: found a length of 128", "of codes of 8 bits"],
    );

    const K: &str = "model.layers.0.self_attn.k_proj";
    let keep = |_: &mut Value| ();
    let part = |part: &str| format!("{K}.{part}");
    let cut = |tensors: &mut Tensors<'static>, name: &str| {
        let tensor = tensors.get_mut(&part(name)).unwrap();
        tensor.shape[0] -= 1;
        let size = tensor.bytes.len() / (tensor.shape[0] + 1) * tensor.shape[0];
        tensor.bytes.to_mut().truncate(size);
    };
    for name in ["qzeros", "scales", "g_idx"] {
        let error = changed("gptq", &keep, &|tensors| cut(tensors, name));
        assert_error(error, &["model.safetensors", &format!("k_proj: {name}: found a length of"), "expected"]);
    }
    assert_error(
        changed("gptq", &keep, &|tensors| cut(tensors, "qweight")),
        &["k_proj: group_size: found 32", "56 inputs"],
    );
    for name in ["qzeros", "scales"] {
        let gone = changed("awq", &keep, &|tensors| drop(tensors.remove(&part(name))));
        assert_error(gone, &["model.safetensors", &part(name), "no tensor of this name"]);
    }
    let long = changed("gptq", &keep, &|tensors| {
        let tensor = tensors.get_mut(&part("scales")).unwrap();
        (tensor.dtype, tensor.shape[1]) = (Dtype::F32, tensor.shape[1] / 2);
    });
    assert_error(long, &[&part("scales"), "type F32", "type F16"]);
    let infinite = changed("gptq", &keep, &|tensors| {
        tensors.get_mut(&part("scales")).unwrap().bytes.to_mut()[6..8].copy_from_slice(&[0, 0x7c]);
    });
    assert_error(infinite, &["k_proj: scales, element", "inf", "a finite number"]);
    let far = changed("gptq-4-order", &keep, &|tensors| tensors.get_mut(&part("g_idx")).unwrap().bytes.to_mut()[5] = 1);
    assert_error(far, &["k_proj: g_idx, element 1", "a group below 4"]);
    // A bias of zeros is nothing; another is one that the model does not have.
    let bias = changed("gptq", &keep, &|tensors| tensors.get_mut(&part("bias")).unwrap().bytes.to_mut()[1] = 0x3c);
    assert_error(bias, &[&part("bias"), "a tensor that nothing uses"]);
}
