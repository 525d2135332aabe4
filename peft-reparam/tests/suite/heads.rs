//! Which head an adapter has: the rule of `io/heads.rs` as a table, and the reference's logits and states.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use peft_core::io::Pretrained;
use peft_core::load::{Checkpoint, write_safetensors};
use peft_core::testing::golden::{examples, model, model_dir};
use peft_core::testing::tolerances::REFERENCE;
use peft_core::testing::{device, difference, warnings};
use peft_core::train::{Tuned, Workers, encode};
use peft_core::view::tensors;
use peft_core::{Head, Purpose, Result};
use peft_reparam::LoraConfig;
use serde_json::{Value, json};

const HIDDEN: usize = 24;
const CLASSES: usize = 3;

/// A family's golden model without a head, and the module that LoRA is put on.
fn family(name: &str) -> (&'static str, &'static str, &'static str) {
    match name {
        "Bert" => ("bert-bare", "bert.", "encoder.layer.0.attention.self.query"),
        "Roberta" => ("roberta-bare", "roberta.", "encoder.layer.0.attention.self.query"),
        "Llama" => ("llama", "model.", "layers.0.self_attn.q_proj"),
        "T5" => ("t5", "", "encoder.block.0.layer.0.SelfAttention.q"),
        other => panic!("{other}"),
    }
}

/// The tensors of a head, all of one value.
fn head(name: &str, value: f32) -> BTreeMap<String, TensorData> {
    let tensor = |dims: &[usize]| TensorData::new(vec![value; dims.iter().product()], dims.to_vec());
    let affine = |module: &str, [rows, columns]: [usize; 2]| {
        [(format!("{module}.weight"), tensor(&[rows, columns])), (format!("{module}.bias"), tensor(&[rows]))]
    };
    let [wide, out] = [[HIDDEN, HIDDEN], [CLASSES, HIDDEN]];
    let list: Vec<(String, TensorData)> = match name {
        "" => vec![],
        "classifier" => affine("classifier", out).to_vec(),
        "choice" => affine("classifier", [1, HIDDEN]).to_vec(),
        "two" => [affine("classifier.dense", wide), affine("classifier.out_proj", out)].concat(),
        "score" => vec![("score.weight".into(), tensor(&out))],
        "score+bias" => affine("score", out).to_vec(),
        "spans" => affine("qa_outputs", [2, HIDDEN]).to_vec(),
        "empty" => ["weight", "bias"].map(|leaf| (format!("classifier.{leaf}"), tensor(&[0]))).to_vec(),
        "half" => vec![("classifier.weight".into(), tensor(&out))],
        "cls" => [
            affine("cls.predictions.transform.dense", wide).to_vec(),
            ["weight", "bias"]
                .map(|leaf| (format!("cls.predictions.transform.LayerNorm.{leaf}"), tensor(&[HIDDEN])))
                .to_vec(),
            vec![("cls.predictions.bias".into(), tensor(&[97]))],
        ]
        .concat(),
        "lm_head" => [
            affine("lm_head.dense", wide).to_vec(),
            ["weight", "bias"].map(|leaf| (format!("lm_head.layer_norm.{leaf}"), tensor(&[HIDDEN]))).to_vec(),
            vec![("lm_head.bias".into(), tensor(&[97]))],
        ]
        .concat(),
        other => panic!("{other}"),
    };
    list.into_iter().collect()
}

/// A model of a class with heads whose tensors are all 0.25.
fn model_of(folder: &Path, name: &str, class: &str, heads: &[&str]) -> Result<Pretrained> {
    let (golden, _, _) = family(name);
    let dir = folder.join(format!("{name}-{class}-{}", heads.join("-")));
    fs::create_dir_all(&dir).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(model_dir(golden).join("config.json")).unwrap()).unwrap();
    config["architectures"] = if class.is_empty() { Value::Null } else { json!([class]) };
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let file = Checkpoint::open_model(&model_dir(golden)).unwrap();
    let read = |name: &str| file.read_f32(name, file.shape(name).unwrap()).unwrap();
    // A LLaMA of another class has no table for words.
    let left_out = |name: &str| name == "lm_head.weight" && !class.is_empty() && !class.ends_with("LM");
    let mut tensors: BTreeMap<String, TensorData> =
        file.names().filter(|name| !left_out(name)).map(|name| (name.to_string(), read(name))).collect();
    heads.iter().for_each(|name| tensors.extend(head(name, 0.25)));
    write_safetensors(&dir.join("model.safetensors"), &tensors).unwrap();
    Pretrained::open(&dir.to_string_lossy(), &device())
}

/// An adapter on the first query whose head's tensors are all 0.5.
fn adapter(folder: &Path, name: &str, task: Value, mapping: Value, saved: &str) -> PathBuf {
    let (golden, prefix, module) = family(name);
    let dir = folder.join("adapter");
    fs::create_dir_all(&dir).unwrap();
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": task, "auto_mapping": mapping,
        "target_modules": format!(".*{}", module.replace('.', "\\."))});
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let full = format!("base_model.model.{prefix}{module}");
    let width = model(golden).base.shape().head_width * model(golden).base.shape().heads;
    let tensor = |rows: usize, columns: usize| TensorData::new(vec![0.1f32; rows * columns], [rows, columns]);
    let mut tensors = BTreeMap::from([
        (format!("{full}.lora_A.weight"), tensor(2, HIDDEN)),
        (format!("{full}.lora_B.weight"), tensor(width, 2)),
    ]);
    tensors.extend(head(saved, 0.5).into_iter().map(|(name, data)| (format!("base_model.model.{name}"), data)));
    write_safetensors(&dir.join("adapter_model.safetensors"), &tensors).unwrap();
    dir
}

/// What the adapter is for and whose head it has, or the error.
fn found(model: &Pretrained, adapter: &Path) -> String {
    match Tuned::load::<LoraConfig>(adapter, model) {
        Ok(tuned) => {
            let head = &tuned.trained.head;
            let value = tensors(head).values().next().and_then(|data| data.iter::<f32>().next());
            let whose = match value {
                Some(0.5) => "saved",
                Some(0.25) => "own",
                None => "none",
                other => panic!("{other:?}"),
            };
            format!("{:?} {whose}", head.purpose())
        }
        Err(error) => error.to_string(),
    }
}

fn mapping(class: &str) -> Value {
    json!({"base_model_class": class, "parent_library": "transformers.models"})
}

#[test]
fn the_rule_as_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let none = Value::Null;
    // family, task_type, auto_mapping's class, the model's class, its heads, the saved head: what it is
    type Row = (
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static [&'static str],
        &'static str,
        &'static [&'static str],
    );
    let table: &[Row] = &[
        // A task type decides, whatever else there is.
        ("Bert", "SEQ_CLS", "", "BertModel", &[], "classifier", &["Texts saved"]),
        ("Bert", "SEQ_CLS", "", "BertForTokenClassification", &["classifier"], "classifier", &["Texts saved"]),
        ("Bert", "TOKEN_CLS", "", "BertModel", &[], "classifier", &["Tokens saved"]),
        ("Bert", "TOKEN_CLS", "", "BertForSequenceClassification", &["classifier"], "classifier", &["Tokens saved"]),
        ("Bert", "FEATURE_EXTRACTION", "", "BertForMaskedLM", &["cls"], "", &["States none"]),
        ("Roberta", "SEQ_CLS", "", "RobertaModel", &[], "two", &["Texts saved"]),
        ("Roberta", "TOKEN_CLS", "", "RobertaForMaskedLM", &["lm_head"], "classifier", &["Tokens saved"]),
        ("Llama", "SEQ_CLS", "", "LlamaForCausalLM", &[], "score", &["Texts saved"]),
        ("Llama", "TOKEN_CLS", "", "LlamaForCausalLM", &[], "score+bias", &["Tokens saved"]),
        ("Llama", "CAUSAL_LM", "", "LlamaForCausalLM", &[], "", &["Words none"]),
        ("Llama", "FEATURE_EXTRACTION", "", "LlamaModel", &[], "", &["States none"]),
        ("T5", "SEQ_2_SEQ_LM", "", "T5ForConditionalGeneration", &[], "", &["Words none"]),
        ("T5", "FEATURE_EXTRACTION", "", "T5ForConditionalGeneration", &[], "", &["States none"]),
        // Without a saved head the model's own is used, by its tensors' names: its class may say another, as in transformers.
        ("Bert", "SEQ_CLS", "", "BertForSequenceClassification", &["classifier"], "", &["Texts own"]),
        ("Bert", "SEQ_CLS", "", "BertForMaskedLM", &["cls", "classifier"], "", &["Texts own"]),
        ("Bert", "TOKEN_CLS", "", "BertForSequenceClassification", &["classifier"], "", &["Tokens own"]),
        ("Roberta", "SEQ_CLS", "", "RobertaForSequenceClassification", &["two"], "", &["Texts own"]),
        ("Roberta", "TOKEN_CLS", "", "RobertaForTokenClassification", &["classifier"], "", &["Tokens own"]),
        ("Roberta", "CAUSAL_LM", "", "RobertaForMaskedLM", &["lm_head"], "", &["Words own"]),
        ("Llama", "SEQ_CLS", "", "LlamaForSequenceClassification", &["score"], "", &["Texts own"]),
        ("Llama", "TOKEN_CLS", "", "LlamaForTokenClassification", &["score+bias"], "", &["Tokens own"]),
        // What transformers would draw at random.
        ("Bert", "SEQ_CLS", "", "BertForMaskedLM", &["cls"], "", &["classifier.weight", "SEQ_CLS"]),
        (
            "Roberta",
            "SEQ_CLS",
            "",
            "RobertaForTokenClassification",
            &["classifier"],
            "",
            &["classifier.out_proj.weight", "SEQ_CLS"],
        ),
        (
            "Roberta",
            "TOKEN_CLS",
            "",
            "RobertaForSequenceClassification",
            &["two"],
            "",
            &["classifier.weight", "TOKEN_CLS"],
        ),
        ("Llama", "SEQ_CLS", "", "LlamaForCausalLM", &[], "", &["score.weight", "SEQ_CLS"]),
        ("Llama", "TOKEN_CLS", "", "LlamaForSequenceClassification", &["score"], "", &["score.bias"]),
        ("Llama", "CAUSAL_LM", "", "LlamaForSequenceClassification", &["score"], "", &["lm_head.weight", "CAUSAL_LM"]),
        // Tensors that the head does not have, too few of them, and none in them.
        (
            "Bert",
            "SEQ_CLS",
            "",
            "BertForSequenceClassification",
            &["classifier"],
            "score",
            &["score.weight", "nothing uses"],
        ),
        (
            "Bert",
            "SEQ_CLS",
            "",
            "BertForSequenceClassification",
            &["classifier"],
            "spans",
            &["qa_outputs", "nothing uses"],
        ),
        (
            "Bert",
            "SEQ_CLS",
            "",
            "BertForSequenceClassification",
            &["classifier"],
            "cls",
            &["cls.predictions", "nothing uses"],
        ),
        ("Bert", "SEQ_CLS", "", "BertForSequenceClassification", &["classifier"], "half", &["classifier.bias"]),
        (
            "Bert",
            "SEQ_CLS",
            "",
            "BertForSequenceClassification",
            &["classifier"],
            "empty",
            &["classifier.bias", "empty"],
        ),
        (
            "Bert",
            "TOKEN_CLS",
            "",
            "BertForSequenceClassification",
            &["classifier"],
            "empty",
            &["classifier.bias", "empty"],
        ),
        // Answers.
        ("Bert", "QUESTION_ANS", "", "BertForQuestionAnswering", &["spans"], "spans", &["Answers saved"]),
        ("Roberta", "QUESTION_ANS", "", "RobertaForQuestionAnswering", &["spans"], "", &["Answers own"]),
        ("Bert", "QUESTION_ANS", "", "BertModel", &[], "", &["qa_outputs.weight", "QUESTION_ANS"]),
        ("Bert", "", "BertForQuestionAnswering", "BertModel", &["spans"], "", &["Answers own"]),
        ("Roberta", "", "", "RobertaForMaskedLM", &["lm_head"], "spans", &["Answers saved"]),
        // Task types that are not computed.
        ("Llama", "QUESTION_ANS", "", "LlamaForCausalLM", &[], "spans", &["task_type", "QUESTION_ANS"]),
        ("Bert", "SEQ_2_SEQ_LM", "", "BertForMaskedLM", &["cls"], "", &["task_type", "SEQ_2_SEQ_LM"]),
        ("Llama", "SEQ_2_SEQ_LM", "", "LlamaForCausalLM", &[], "", &["task_type", "SEQ_2_SEQ_LM"]),
        ("T5", "CAUSAL_LM", "", "T5ForConditionalGeneration", &[], "", &["task_type", "CAUSAL_LM", "SEQ_2_SEQ_LM"]),
        ("T5", "SEQ_CLS", "", "T5ForConditionalGeneration", &[], "", &["task_type", "SEQ_CLS"]),
        ("T5", "TOKEN_CLS", "", "T5ForConditionalGeneration", &[], "classifier", &["task_type", "TOKEN_CLS"]),
        // No task type: the class that PEFT noted.
        ("Bert", "", "BertForTokenClassification", "BertModel", &[], "classifier", &["Tokens saved"]),
        (
            "Bert",
            "",
            "BertForTokenClassification",
            "BertForSequenceClassification",
            &["classifier"],
            "",
            &["Tokens own"],
        ),
        ("Bert", "", "BertModel", "BertForSequenceClassification", &["classifier"], "", &["States none"]),
        ("Bert", "", "BertForMultipleChoice", "BertModel", &[], "choice", &["auto_mapping", "BertForMultipleChoice"]),
        ("Bert", "", "Wrapper", "BertForSequenceClassification", &["classifier"], "", &["Texts own"]),
        (
            "Llama",
            "",
            "LlamaForSequenceClassification",
            "LlamaForSequenceClassification",
            &["score"],
            "",
            &["Texts own"],
        ),
        // Neither: the saved head, BERT's with the model's class.
        ("Bert", "", "", "BertModel", &[], "classifier", &["Texts saved"]),
        ("Bert", "", "", "BertForTokenClassification", &["classifier"], "classifier", &["Tokens saved"]),
        ("Bert", "", "", "BertForMaskedLM", &["cls"], "classifier", &["Texts saved"]),
        ("Bert", "", "", "BertModel", &[], "two", &["Texts saved"]),
        ("Bert", "", "", "BertForSequenceClassification", &["classifier"], "cls", &["Words saved"]),
        ("Roberta", "", "", "RobertaForMaskedLM", &["lm_head"], "two", &["Texts saved"]),
        ("Roberta", "", "", "RobertaForMaskedLM", &["lm_head"], "classifier", &["Tokens saved"]),
        ("Roberta", "", "", "RobertaForSequenceClassification", &["two"], "lm_head", &["Words saved"]),
        ("Llama", "", "", "LlamaForCausalLM", &[], "score", &["Texts saved"]),
        ("Llama", "", "", "LlamaForCausalLM", &[], "score+bias", &["Tokens saved"]),
        // No saved head: the model's class, its own head.
        ("Bert", "", "", "BertForSequenceClassification", &["classifier", "cls"], "", &["Texts own"]),
        ("Bert", "", "", "BertForTokenClassification", &["classifier", "cls"], "", &["Tokens own"]),
        ("Bert", "", "", "BertForMaskedLM", &["classifier", "cls"], "", &["Words own"]),
        ("Bert", "", "", "BertForPreTraining", &["cls"], "", &["Words own"]),
        ("Bert", "", "", "BertModel", &["classifier", "cls"], "", &["States none"]),
        ("Bert", "", "", "BertForSequenceClassification", &["cls"], "", &["classifier.weight"]),
        ("Bert", "", "", "BertForMultipleChoice", &["choice"], "", &["architectures", "BertForMultipleChoice"]),
        ("Bert", "", "", "BertForMultipleChoice", &["choice"], "choice", &["architectures", "BertForMultipleChoice"]),
        ("Bert", "SEQ_CLS", "", "BertForMultipleChoice", &["choice"], "", &["architectures", "BertForMultipleChoice"]),
        ("Bert", "SEQ_CLS", "", "BertForMultipleChoice", &["choice"], "classifier", &["Texts saved"]),
        ("Roberta", "", "", "RobertaForMaskedLM", &["lm_head"], "", &["Words own"]),
        ("Llama", "", "", "LlamaForCausalLM", &[], "", &["Words none"]),
        ("Llama", "", "", "LlamaForSequenceClassification", &["score"], "", &["Texts own"]),
        ("Llama", "", "", "LlamaForTokenClassification", &["score+bias"], "", &["Tokens own"]),
        ("Llama", "", "", "LlamaForQuestionAnswering", &["spans"], "", &["architectures", "LlamaForQuestionAnswering"]),
        ("T5", "", "", "T5ForConditionalGeneration", &[], "", &["Words none"]),
        ("T5", "", "", "T5ForSequenceClassification", &[], "", &["architectures", "T5ForSequenceClassification"]),
        // No class either: the head in the checkpoint.
        ("Bert", "", "", "", &["classifier", "cls"], "", &["Texts own"]),
        ("Bert", "", "", "", &["cls"], "", &["Words own"]),
        ("Bert", "", "", "", &[], "", &["States none"]),
        ("Roberta", "", "", "", &["classifier"], "", &["Tokens own"]),
        ("Roberta", "", "", "", &["spans"], "", &["Answers own"]),
        ("Llama", "", "", "", &["score"], "", &["Texts own"]),
        ("T5", "", "", "", &[], "", &["Words none"]),
    ];
    for row @ (family, task, class, architecture, heads, saved, expected) in table {
        let model = model_of(folder.path(), family, architecture, heads).unwrap();
        let text = |text: &str| if text.is_empty() { none.clone() } else { json!(text) };
        let told = if class.is_empty() { none.clone() } else { mapping(class) };
        let dir = adapter(folder.path(), family, text(task), told, saved);
        let found = found(&model, &dir);
        assert!(expected.iter().all(|word| found.contains(word)), "{row:?}: {found}");
        let is_error = !["saved", "own", "none"].iter().any(|whose| expected[0].ends_with(whose));
        assert!(is_error || found == expected[0], "{row:?}: {found}");
    }
}

/// Combinations give a head or an error that names what decides.
#[test]
fn combinations_give_one_head_or_an_error_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let tasks =
        ["", "SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", "QUESTION_ANS", "MASKED_LM"];
    let ends = [
        "",
        "Model",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForMaskedLM",
        "ForCausalLM",
        "ForMultipleChoice",
    ];
    let mut count = 0;
    for family in ["Bert", "Roberta", "Llama"] {
        let own: &[&[&str]] = match family {
            "Bert" => &[&[], &["classifier"], &["cls"], &["classifier", "cls"]],
            "Roberta" => &[&[], &["classifier"], &["two", "lm_head"]],
            _ => &[&[], &["score"], &["score+bias"]],
        };
        for (end, own) in ends.iter().flat_map(|end| own.iter().map(move |own| (end, own))) {
            let class = if end.is_empty() { String::new() } else { format!("{family}{end}") };
            let model = match model_of(folder.path(), family, &class, own) {
                Ok(model) => model,
                // Half a head.
                Err(error) => {
                    assert!(error.to_string().contains("score.bias"), "{class} {own:?}: {error}");
                    continue;
                }
            };
            for (task, saved) in tasks.iter().flat_map(|task| {
                ["", "classifier", "two", "score", "score+bias", "spans", "lm_head", "cls", "empty"]
                    .map(|saved| (task, saved))
            }) {
                // One in so many, at other places each time.
                count += 1;
                if count % 23 != 0 {
                    continue;
                }
                let task_type = if task.is_empty() { Value::Null } else { json!(task) };
                let dir = adapter(folder.path(), family, task_type, Value::Null, saved);
                let (found, told) = warnings(|| found(&model, &dir));
                let named = ["task_type", "architectures", "classifier", "score", "qa_outputs", "lm_head", "cls."];
                let is_head = Purpose::ALL.iter().any(|purpose| found.starts_with(&format!("{purpose:?} ")));
                let row = format!("{class} {own:?} {task} {saved}: {found}");
                assert!(is_head || named.iter().any(|name| found.contains(name)), "{row}");
                // Nothing saved is passed over in silence.
                if is_head && !saved.is_empty() {
                    assert!(
                        found.ends_with("saved") || told.iter().any(|it| it.contains("classifier.weight")),
                        "{row}"
                    );
                }
            }
        }
    }
}

/// Adapters of PEFT without a head, with a head of their own, with the model's: see scripts/golden/heads.py.
#[test]
fn heads_give_what_the_reference_gives() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/heads");
    for (case, base, purpose) in [
        ("states-bert", "bert-classify", Purpose::States),
        ("states-roberta", "roberta-bare", Purpose::States),
        ("states-llama", "llama", Purpose::States),
        ("states-t5", "t5", Purpose::States),
        ("masked-roberta", "roberta-mlm", Purpose::Words),
        ("masked-bert", "bert-mlm", Purpose::Words),
        ("own-bert", "bert-mlm", Purpose::Words),
        ("own-llama", "llama-tokens", Purpose::Tokens),
    ] {
        let model = model(base);
        let examples = examples(&model_dir(base).join("inputs.safetensors"));
        let tuned = Tuned::load::<LoraConfig>(&golden.join(case).join("adapter"), &model).unwrap();
        assert_eq!(tuned.trained.head.purpose(), purpose, "{case}");
        let expected = Checkpoint::open_file(&golden.join(case).join("expected.safetensors")).unwrap();
        let check = |name: &str, i: usize, values: Vec<f32>, dims: &[usize]| {
            let shape = expected.shape(name).unwrap().to_vec();
            let all = expected.read_f32(name, &shape).unwrap();
            let width = *shape.last().unwrap();
            let rows = shape[1..].iter().product::<usize>() / width;
            let row = Tensor::<3>::from_data(
                TensorData::new(all.iter::<f32>().collect(), [shape[0], rows, width]),
                &device(),
            );
            let count = dims.iter().product::<usize>() / width;
            let row = row.slice([i..i + 1, 0..count, 0..width]).into_data();
            let found = TensorData::new(values, [1, count, width]);
            let differ = difference(&found, &row);
            assert!(differ <= REFERENCE.0, "{case}: {name} of {i} differs by {differ}");
        };
        if let Head::States(_) = tuned.trained.head {
            let workers = Workers::new(1).unwrap();
            let all = encode(&tuned.base, &tuned.trained, &examples, &workers).unwrap();
            assert_eq!(all[0].pooled.is_some(), expected.shape("pooled").is_some(), "{case}");
            for (i, it) in all.into_iter().enumerate() {
                check("states", i, it.states.values, &it.states.dims);
                it.pooled.into_iter().for_each(|it| check("pooled", i, it.values, &it.dims));
            }
            continue;
        }
        for (i, it) in tuned.predict(&examples).unwrap().into_iter().enumerate() {
            check("logits", i, it.values, &it.dims);
        }
    }
}

/// PEFT matches an expression with the paths of the model that its class for the task has: without a prefix, if it has no head.
#[test]
fn where_an_adapter_of_a_bare_model_is_put_is_told_by_its_paths() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/heads/states-bert/adapter");
    let (model, dir) = (model("bert-classify"), tempfile::tempdir().unwrap());
    fs::copy(from.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors")).unwrap();
    let settings: Value = serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    let load = |fields: &[(&str, Value)]| {
        let mut settings = settings.clone();
        fields.iter().for_each(|(key, value)| settings[*key] = value.clone());
        fs::write(dir.path().join("adapter_config.json"), settings.to_string()).unwrap();
        let (found, told) = warnings(|| Tuned::load::<LoraConfig>(dir.path(), &model));
        (found.map(|found| tensors(&found.trained)), told)
    };
    let whole = load(&[]).0.unwrap();
    let path = |i: usize, name: &str| format!("encoder.layer.{i}.attention.self.{name}");
    let layers = 0..model.base.shape().layers;
    let paths: Vec<String> = layers.flat_map(|i| ["query", "value"].map(|name| path(i, name))).collect();
    for fields in [
        &[("target_modules", json!(r"encoder\.layer\.\d\.attention\.self\.(query|value)"))][..],
        &[("target_modules", json!(paths))],
        &[("target_modules", json!("all-linear")), ("exclude_modules", json!(r"(?!encoder.*self\.[qv]).*"))],
    ] {
        let (found, told) = load(fields);
        assert!(found.is_ok_and(|found| found == whole) && told.is_empty(), "{fields:?}: {told:?}");
    }
    let bound = r"bert\.encoder\.layer\.\d\.attention\.self\.(query|value)";
    assert!(load(&[("target_modules", json!(bound))]).0.unwrap_err().to_string().contains("target_modules"));
}
