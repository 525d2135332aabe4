//! Models whose files are packed, packed as they are read, and packed from one directory into another.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use peft_core::io::Pretrained;
use peft_core::load::Checkpoint;
use peft_core::testing::golden::examples;
use peft_core::testing::tolerances::REFERENCE;
use peft_core::testing::{device, difference};
use peft_core::{Bare, Trained, Weight};
use peft_quant::{Plan, Scheme, open, quantized};
use serde_json::{Value, json};

use crate::common::assert_error;

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("bnb-{kind}"))
}

fn model(dir: &Path, scheme: Option<&str>) -> peft_core::Result<Pretrained> {
    open(dir.to_str().unwrap(), &device(), scheme.map(|scheme| scheme.parse().unwrap()))
}

/// The largest difference to transformers' logits.
fn off(kind: &str) -> f32 {
    let model = model(&folder(kind), None).unwrap();
    let examples = examples(&folder(kind).join("expected.safetensors"));
    let batch = model.base.batch(&examples.iter().collect::<Vec<_>>()).unwrap();
    let logits = Trained::new(Bare {}, model.own_head().unwrap()).unwrap().logits(&model.base, &batch).unwrap();
    let file = Checkpoint::open_file(&folder(kind).join("expected.safetensors")).unwrap();
    difference(&logits.into_data(), &file.read_f32("logits", &[2, 9, 32]).unwrap())
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
        let (then, _) = quantized(&dense.base, scheme.parse().unwrap()).unwrap();
        let read = model(&dir, Some(scheme)).unwrap();
        assert_eq!(read.base.fingerprint(), then.fingerprint(), "{scheme}");
        let packed = |base: &peft_core::Base| {
            base.shape().linears().iter().all(|(site, _)| matches!(base.weight(*site), Weight::Packed(_)))
        };
        assert!(packed(&read.base) && !packed(&dense.base));
        let random = open("shape:llama-tiny", &device(), Some(scheme.parse().unwrap())).unwrap();
        let dense = Pretrained::open("shape:llama-tiny", &device()).unwrap();
        let (then, _) = quantized(&dense.base, scheme.parse().unwrap()).unwrap();
        assert!(packed(&random.base));
        assert_eq!(random.base.fingerprint(), then.fingerprint(), "{scheme}");
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
        assert_eq!(left, json!(["classifier", "score", "lm_head", "cls", "qa_outputs"]));
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
            let (then, expected) = quantized(&dense.base, scheme.parse().unwrap()).unwrap();
            assert_eq!(packed.base.fingerprint(), then.fingerprint(), "{name} {scheme}");
            assert_eq!(costs.len(), expected.len());
            let head = |model: &Pretrained| peft_core::view::tensors(model.head.as_ref().unwrap());
            assert_eq!(head(&packed), head(&dense), "{name} {scheme}");
        }
    }
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
    let packed = scheme.pack(&values, dims, safetensors::Dtype::F32).unwrap();
    let bytes = fs::read(output.join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: peft_quant::bitsandbytes::Tensors = all
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let (dtype, shape) = (view.dtype(), view.shape().to_vec());
            (name, peft_quant::bitsandbytes::Tensor { dtype, shape, bytes: view.data().to_vec().into() })
        })
        .collect();
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
    let gptq = copy("nf4", &|config| config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4}));
    assert_error(model(&gptq, None), &["quantization_config.quant_method", "gptq", "bitsandbytes"]);
    let wide = copy("nf4", &|config| config["intermediate_size"] = json!(192));
    assert_error(model(&wide, None), &["mlp.gate_proj.weight", "a packed matrix of shape [128, 64]", "[192, 64]"]);
}
