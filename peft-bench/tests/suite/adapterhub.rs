//! AdapterHub's files: what its package wrote gives the package's logits, and is what is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use peft_bench::registry::{by_adapterhub, by_kind};
use peft_core::composition::Lane;
use peft_core::files::read_json;
use peft_core::io::hub_setup::load_setup;
use peft_core::io::{adapterhub, peft, record};
use peft_core::load::Checkpoint;
use peft_core::testing::golden::{self, Case};
use peft_core::testing::tolerances::REFERENCE;
use peft_core::testing::warnings;
use peft_core::train::{Workers, predict};
use peft_core::view::tensors;
use peft_core::{AnyMethod, Head, Result};
use serde_json::{Value, json};

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapterhub")
}

/// A case by its name, which tells the model.
struct Reference(String);

impl Reference {
    fn base(&self) -> &'static str {
        let known = [
            ("-bert", "bert-classify"),
            ("-t5", "t5"),
            ("-t5-gated", "t5-gated"),
            ("-llama", "llama"),
            ("-llama-classify", "llama-classify"),
        ];
        known.into_iter().find(|(end, _)| self.0.ends_with(end)).map_or("roberta-classify", |(_, base)| base)
    }

    fn adapter(&self) -> PathBuf {
        golden_dir().join(&self.0).join("adapter")
    }

    /// What the package wrote into one of two files, but for its copies of a prefix for every layer and of a normalization.
    fn tensors(&self, names: [&str; 2]) -> BTreeMap<String, TensorData> {
        let path = names.map(|name| self.adapter().join(name)).into_iter().find(|path| path.exists()).unwrap();
        let mut tensors = read(&path);
        let names: BTreeSet<String> = tensors.keys().cloned().collect();
        tensors.retain(|name, _| {
            let norm = name.replace(".adapter_down.0.", ".adapter_norm_before.");
            !name.contains(".prefix_tuning.pool.") && (norm == *name || !names.contains(&norm))
        });
        tensors
    }
}

fn read(path: &Path) -> BTreeMap<String, TensorData> {
    let file = Checkpoint::open_file(path).unwrap_or_else(|e| panic!("{e}"));
    let tensor = |name: &str| (name.to_string(), file.read_f32(name, file.shape(name).unwrap()).unwrap());
    file.names().map(tensor).collect()
}

impl Reference {
    fn check(&self, method: &AnyMethod) -> Result<()> {
        let (model, name) = (golden::model(self.base()), &self.0);
        let (case, shape) = (Case::open(golden_dir().join(name), self.base()), model.base.shape());
        let (config, trained, labels) = adapterhub::load_as(method, &self.adapter(), &model)?;
        case.check_logits_of(&trained);
        assert_eq!(labels.base, self.base());
        let classes: &[&str] = match name {
            _ if name.contains("flex") => &["no", "yes", "perhaps"],
            _ if name.contains("tags") => &["O", "B-X", "I-X"],
            _ => &["LABEL_0", "LABEL_1", "LABEL_2"],
        };
        assert_eq!(labels.classes, classes[..trained.head.outputs().unwrap_or(0)], "{name}");
        assert_eq!(matches!(trained.head, Head::TwoLayers(_)), name.contains("two"), "{name}");

        let folder = tempfile::tempdir().unwrap();
        let [hf, hub, burn] = ["hf", "hub", "burn"].map(|name| folder.path().join(name));
        peft::save(&hf, &config, &trained, shape, &labels, &[])?;
        let (config, trained) = peft::load_as(method, &hf, &model.base)?;
        case.check_logits_of(&trained);
        record::save(&burn, &config, &trained, shape, &labels)?;
        let (config, recorded) = record::load_as(method, &burn, &model.base)?;
        assert_eq!(tensors(&recorded), tensors(&trained), "{name}");
        adapterhub::save(&hub, &config, &recorded, shape, &labels)?;
        let (_, back, _) = adapterhub::load_as(method, &hub, &model)?;
        assert_eq!(tensors(&back), tensors(&trained), "{name}");

        let json = |dir: &Path, name: &str| read_json(&dir.join(name));
        let (ours, theirs) = (json(&hub, "adapter_config.json")?, json(&self.adapter(), "adapter_config.json")?);
        // Of a prefix with a projection we write the flat form.
        if theirs["config"]["flat"] != Value::Bool(false) {
            assert_eq!(ours["config"], theirs["config"], "{name}");
            let written = read(&hub.join("adapter.safetensors"));
            assert_eq!(written, self.tensors(["adapter.safetensors", "pytorch_adapter.bin"]), "{name}");
        }
        // What we write is a head of transformers' own, but for two layers on a BERT; a head for words is the model's.
        if !name.contains("flex") || name.contains("two") {
            let but_config = |mut value: Value| {
                value.as_object_mut().unwrap().remove("config");
                value
            };
            assert_eq!(but_config(ours), but_config(theirs), "{name}");
            if matches!(trained.head, Head::LanguageModel(_)) {
                assert!(!hub.join("head_config.json").exists() && !hub.join("model_head.safetensors").exists());
                return Ok(());
            }
            assert_eq!(json(&hub, "head_config.json")?, json(&self.adapter(), "head_config.json")?, "{name}");
            let written = read(&hub.join("model_head.safetensors"));
            assert_eq!(written, self.tensors(["model_head.safetensors", "pytorch_model_head.bin"]), "{name}");
        }
        Ok(())
    }
}

#[test]
fn what_the_package_wrote_gives_its_logits_and_is_what_is_written() {
    let entries = fs::read_dir(golden_dir()).unwrap();
    let cases: Vec<Reference> =
        entries.map(|entry| Reference(entry.unwrap().file_name().to_string_lossy().into_owned())).collect();
    assert_eq!(cases.len(), 52);
    for case in cases {
        by_adapterhub(&case.adapter())
            .and_then(|method| case.check(&method))
            .unwrap_or_else(|e| panic!("{}: {e}", case.0));
    }
}

/// What acts while the package trains, or reads what the model does not have, changes nothing in a finished adapter, and is said where it is no
/// setting here; other names of a function are its own.
#[test]
fn what_changes_no_result_is_said_and_passed_over() {
    let changes: [(&str, &str, Value, Option<&str>); 8] = [
        ("par-bn-bert", "dropout", 0.2.into(), None),
        ("seq-bn-bert", "stochastic_depth", 0.3.into(), Some("stochastic_depth: is 0.3")),
        ("seq-bn-bert", "cross_adapter", true.into(), None),
        ("seq-bn-llama", "cross_adapter", true.into(), None),
        ("prefix-flat", "dropout", 0.1.into(), Some("dropout: is 0.1")),
        ("seq-bn-flex-two-bert", "dropout_prob", 0.3.into(), Some("dropout_prob: is 0.3")),
        ("par-bn-bert", "non_linearity", "silu".into(), None),
        ("seq-bn-bert", "non_linearity", "gelu_python".into(), None),
    ];
    let load = |name: &str, key: &str, value: Value| {
        let (case, folder) = (Reference(name.to_string()), tempfile::tempdir().unwrap());
        for entry in fs::read_dir(case.adapter()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let of_head = if key == "dropout_prob" { "head_config.json" } else { "adapter_config.json" };
        let path = folder.path().join(of_head);
        let mut config = read_json(&path).unwrap();
        config["config"][key] = value;
        fs::write(&path, config.to_string()).unwrap();
        let (loaded, told) = warnings(|| {
            let method = by_adapterhub(folder.path())?;
            adapterhub::load_as(&method, folder.path(), &golden::model(case.base()))
        });
        (loaded.map(|(_, trained, _)| trained), told, Case::open(golden_dir().join(name), case.base()))
    };
    for (name, key, value, said) in changes {
        let (loaded, told, case) = load(name, key, value);
        case.check_logits_of(&loaded.unwrap_or_else(|e| panic!("{name} {key}: {e}")));
        assert_eq!(told.len(), usize::from(said.is_some()), "{told:?}");
        assert!(said.is_none_or(|said| told[0].contains(said)), "{told:?}");
    }
    // Where a decoder reads an encoder it counts: there is a block in each such attention.
    let (loaded, ..) = load("seq-bn-t5", "cross_adapter", true.into());
    assert!(loaded.unwrap_err().to_string().contains("decoder.block.0.layer.1.adapters"));
}

/// Setups in which the package computes something else than it says.
const REFUSED: [&str; 2] = ["average-stack", "stack-lora"];

/// What a setup computes of the examples beside it, or why it does not load.
fn composed(case: &str) -> Result<(Vec<f32>, Vec<f32>)> {
    let dir = golden_dir().join("../adapterhub-setups").join(case);
    let setup = dir.join(if case == "fusion-apart" { "setup/both" } else { "setup" });
    let config = if case == "fusion-apart" { dir.join("setup/a") } else { setup.join("a") };
    let told = read_json(&config.join("adapter_config.json"))?;
    let model = golden::model(told["model_name"].as_str().unwrap());
    let examples = golden::examples(&dir.join("inputs.safetensors"));
    let (mut found, workers) = (vec![], Workers::new(1)?);
    for Lane { rows, trained } in load_setup(&setup, &model, &by_kind)?.lanes(examples.len())? {
        let base = model.base.for_purpose(trained.head.purpose());
        found.extend(predict(&base, &trained, &examples[rows], &workers)?.into_iter().flat_map(|one| one.values));
    }
    let expected = read(&dir.join("expected.safetensors"))["logits"].iter().collect();
    Ok((found, expected))
}

#[test]
fn setups_give_the_packages_logits() {
    let entries = fs::read_dir(golden_dir().join("../adapterhub-setups")).unwrap();
    let cases: Vec<String> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(cases.len(), 20);
    for case in cases.iter().filter(|case| !REFUSED.contains(&case.as_str())) {
        let (found, expected) = composed(case).unwrap_or_else(|e| panic!("{case}: {e}"));
        let farthest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && farthest <= REFERENCE.0, "{case}: off by {farthest}");
    }
}

#[test]
fn setups_that_do_not_compose_are_refused_by_name() {
    for (case, words) in
        REFUSED.into_iter().zip([["Stack", "Average", "twice"], ["Stack", "of lora", "what the first adds"]])
    {
        let message = composed(case).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    let model = golden::model("bert-classify");
    let from = |case: &str| golden_dir().join("../adapterhub-setups").join(case).join("setup");
    let changed = |case: &str, change: &dyn Fn(&mut Value)| {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(from(case)).unwrap().map(|entry| entry.unwrap().path()) {
            let to = folder.path().join(entry.file_name().unwrap());
            if entry.is_dir() {
                fs::create_dir(&to).unwrap();
                for file in fs::read_dir(&entry).unwrap().map(|file| file.unwrap().path()) {
                    fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
                }
            } else {
                let mut setup = read_json(&entry).unwrap();
                change(&mut setup["adapter_setup"]);
                fs::write(to, setup.to_string()).unwrap();
            }
        }
        let composed = load_setup(folder.path(), &model, &by_kind).and_then(|setup| setup.lanes(3).map(drop));
        composed.unwrap_err().to_string()
    };
    let single = |name: &str| json!({"type": "single", "children": [name]});
    let inside = |inner: &str, outer: &str| {
        let inner = json!({"type": inner, "children": [single("a")], "kwargs": {"splits": [8]}});
        json!({"type": outer, "children": [inner, single("b")], "kwargs": {"splits": [4, 4]}})
    };
    type Case<'a> = (&'a str, Value, &'a [&'a str]);
    let cases: [Case<'_>; 8] = [
        (
            "stack",
            json!({"type": "Heap", "children": [single("a")]}),
            &["adapter_setup.json", "type", "Heap", "Stack, Fuse"],
        ),
        ("stack", json!({"type": "Stack", "children": []}), &["adapter_setup", "Stack of nothing"]),
        ("stack", json!({"type": "Stack", "children": [single("../a")]}), &["children", "../a", "a directory here"]),
        ("stack", json!({"type": "Stack", "children": [single("z")]}), &["z", "adapter_config.json"]),
        (
            "stack",
            inside("Split", "Parallel"),
            &["adapter_setup", "Split inside Parallel", "Stack, BatchSplit, Average"],
        ),
        (
            "batch-split",
            json!({"type": "BatchSplit", "children": [single("a"), single("b")], "kwargs": {"batch_sizes": [1, 1]}}),
            &["batch_sizes", "[1, 1]", "the rows there, 3"],
        ),
        (
            "average",
            json!({"type": "Average", "children": [single("a"), single("b")], "kwargs": {"weights": [1.0]}}),
            &["weights", "a list of 2"],
        ),
        (
            "stack-lora",
            json!({"type": "Split", "children": [single("a"), single("b")], "kwargs": {"splits": [4, 4]}}),
            &["Split", "of lora", "adapters of adapter, parallel"],
        ),
    ];
    for (case, setup, words) in cases {
        let message = changed(case, &|value| *value = setup.clone());
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    }
    // Of another number of tokens than are to be split.
    let dir = from("split");
    let lanes = load_setup(&dir, &model, &by_kind).unwrap().lanes(1).unwrap();
    let example = peft_core::Example { ids: vec![5; 7], ..Default::default() };
    let message =
        predict(&model.base, &lanes[0].trained, &[example], &Workers::new(1).unwrap()).unwrap_err().to_string();
    assert!(message.contains("splits: [5, 3]") && message.contains("a sequence, 7"), "{message}");
}
