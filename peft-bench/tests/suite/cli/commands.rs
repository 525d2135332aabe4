//! What the commands do.

use super::*;
use peft_core::{io::Pretrained, train::Tuned};
use peft_reparam::LoraConfig;

#[test]
fn train_forward_merge_and_inspect_agree() {
    let folder = Folder::new();
    let (model, data) = (model("bert-classify"), folder.data());
    let (adapter, log) = (folder.path("lora"), folder.path("log.jsonl"));
    let settings = "--set r=4 --epochs 20 --batch-size 10 --lr 2e-2 --dropout 0";
    let mut train = vec!["train", "--model", &model, "--method", "lora", "--data", &data, "--eval", &data];
    train.extend(settings.split(' ').chain(["--log", &log, "--output", &adapter]));
    let report: Value = serde_json::from_str(&succeed(&train)).unwrap();
    assert!(report["metrics"]["accuracy"].as_f64().unwrap() > 0.9, "{report}");
    let log = fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 40);
    assert!(losses[39] < losses[0] && lines.iter().any(|line| line["eval_accuracy"].is_number()));

    let (logits, merged, merged_logits) = (folder.path("a"), folder.path("merged"), folder.path("b"));
    succeed(&["forward", "--model", &model, "--adapter", &adapter, "--input", &data, "--output", &logits]);
    succeed(&["merge", "--model", &model, "--adapter", &adapter, "--output", &merged]);
    succeed(&["forward", "--model", &merged, "--input", &data, "--output", &merged_logits]);
    let [a, b] = [&logits, &merged_logits].map(|path| Checkpoint::open_file(Path::new(path)).unwrap());
    assert_eq!(a.names().count(), 20);
    for name in a.names() {
        let difference =
            peft_core::testing::difference(&a.read_f32(name, &[2]).unwrap(), &b.read_f32(name, &[2]).unwrap());
        assert!(difference < peft_core::testing::tolerances::MERGED.0, "{name}: {difference}");
    }
    assert!(succeed(&["inspect", &adapter]).contains("lora_A.weight [4, 24]"));
    assert!(succeed(&["inspect", &merged]).contains("BertForSequenceClassification"));

    let again = folder.path("lora-2");
    succeed(&["train", "--model", &model, "--adapter", &adapter, "--data", &data, "--steps", "3", "--output", &again]);
    let refused = folder.path("refused");
    let merge = ["merge", "--model", &model, "--adapter", &adapter, "--output", &refused, "--max-difference", "1e-12"];
    names(&fail(&merge), &["merged equals unmerged", "1e-12"]);
    assert!(!Path::new(&refused).exists());
    for bound in ["nan", "-1"] {
        names(&fail(&[&merge[..7], &[&format!("--max-difference={bound}")]].concat()), &["--max-difference", "from 0"]);
    }
}

#[test]
fn training_goes_on_with_the_classes_of_the_adapter() {
    let folder = Folder::new();
    let (model, first, second) = (model("roberta-classify"), folder.path("first"), folder.path("second"));
    let data = |name: &str, labels: [&str; 2]| {
        let line =
            |i: usize| json!({"input_ids": [10 + 60 * (i % 2), 7, 9], "label": labels[i % 2]}).to_string() + "\n";
        folder.write(name, &(0..8).map(line).collect::<String>())
    };
    let classes = |adapter: &str| {
        let text = fs::read_to_string(Path::new(adapter).join("labels.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["classes"].clone()
    };
    let train = |start: &[&str], data: &str, output: &str| {
        let end = ["--model", &model, "--data", data, "--steps", "2", "--output", output];
        [&["train"], start, &end].concat().into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    run(train(&["--method", "lora"], &data("a.jsonl", ["cold", "warm"]), &first));
    assert_eq!(classes(&first), json!(["cold", "warm"]));
    run(train(&["--adapter", &first], &data("b.jsonl", ["warm", "warm"]), &second));
    assert_eq!(classes(&second), json!(["cold", "warm"]));
    let other = train(&["--adapter", &first], &data("c.jsonl", ["warm", "hot"]), &folder.path("third"));
    names(&fail(&other.iter().map(String::as_str).collect::<Vec<_>>()), &["c.jsonl", "hot", "cold"]);
}

#[test]
fn the_settings_that_a_run_saves_repeat_it() {
    let folder = Folder::new();
    let (data, first, second) = (folder.data(), folder.path("first"), folder.path("second"));
    let mut train = vec!["train", "--model", "shape:bert-tiny", "--method", "lora", "--data", &data, "--eval", &data];
    let settings = "--set r=3 --set target_modules=.*key --steps 3 --batch-size 5 --accumulate 2 --optimizer adafactor \
        --schedule cosine --warmup 0.4 --group-by-length --lr 3e-3 --seed 7 --keep-best --metric accuracy";
    train.extend(settings.split_whitespace());
    train.extend(["--output", &first]);
    succeed(&train);
    let yaml = format!("{first}/train.yaml");
    succeed(&["train", "--config", &yaml, "--output", &second]);
    let adapter = |dir: &str| fs::read(Path::new(dir).join("adapter_model.safetensors")).unwrap();
    assert!(adapter(&first) == adapter(&second));
    assert_eq!(fs::read_to_string(yaml).unwrap(), fs::read_to_string(format!("{second}/train.yaml")).unwrap());
    let card = fs::read_to_string(format!("{first}/README.md")).unwrap();
    assert!(card.starts_with("---\nlibrary_name: peft\n") && card.contains("| accuracy | "), "{card}");
    let third = folder.path("third");
    succeed(&["train", "--config", &format!("{first}/train.yaml"), "--seed", "8", "--output", &third]);
    assert!(adapter(&first) != adapter(&third));
    let wrong = folder.write("wrong.yaml", "learning_rat: 1e-3\n");
    names(&fail(&["train", "--config", &wrong]), &["wrong.yaml", "learning_rat", "`learning_rate`"]);
    for (line, words) in [
        ("num_train_epochs: half", ["num_train_epochs", "half", "--epochs"]),
        ("lr_scheduler_type: polynomial", ["lr_scheduler_type", "polynomial", "cosine"]),
    ] {
        let wrong = folder.write("wrong.yaml", line);
        names(&fail(&["train", "--config", &wrong]), &[&["wrong.yaml"], &words[..]].concat());
    }
    // All at once: names, settings and values, none of them by an option that the file does not have.
    let text = format!(
        "model_name_or_path: shape:bert-tiny\nmethod: lora\ndata: {data}\noutput_dir: {second}-2\nmax_steps: 1\nlora_r: 4\n\
        use_dora: [1]\nr: many\nseed: x\nlearning_rate: fast\n"
    );
    let error = fail(&["train", "--config", &folder.write("wrong.yaml", &text)]);
    names(
        &error,
        &["lora_r: found 4", "`r`", "use_dora: found [1]", "r: found \"many\"", "seed: found x", "learning_rate"],
    );
    assert_eq!(error.matches("wrong.yaml: ").count(), 5, "{error}");
    assert!(!error.contains("--set"), "{error}");
    // What only the method, the model or the trainer can tell names the file and the key in it, too.
    for (line, words) in [
        ("r: 0", ["r at bert.encoder.layer.0", "found 0"]),
        ("target_modules: [nowhere]", ["target_modules: found", "nowhere"]),
        ("target_modules: .*nowhere", ["target_modules: found", "nowhere"]),
        ("target_modules: '(('", ["target_modules: found ((", "regular expression"]),
        ("exclude_modules: '(('", ["exclude_modules: found ((", "regular expression"]),
        ("rank_pattern: {nowhere: 3}", ["rank_pattern: found nowhere", "module"]),
        ("learning_rate: -1", ["learning_rate: found -1", "from 0"]),
        ("max_steps: true", ["max_steps: found true", "--steps"]),
        ("warmup_steps: many", ["warmup_steps: found many", "--warmup"]),
    ] {
        let text = text.replace("lora_r: 4\nuse_dora: [1]\nr: many\nseed: x\nlearning_rate: fast", line);
        let text = if line.starts_with("max_steps") { text.replace("max_steps: 1\n", "") } else { text };
        let error = fail(&["train", "--config", &folder.write("wrong.yaml", &text)]);
        names(&error, &[&format!("wrong.yaml: {}", words[0]), words[1]]);
    }
    // The same of keys that stand in place of others.
    let text = text.replace(
        "max_steps: 1\nlora_r: 4\nuse_dora: [1]\nr: many\nseed: x\nlearning_rate: fast",
        "num_train_epochs: -1",
    );
    names(
        &fail(&["train", "--config", &folder.write("wrong.yaml", &text)]),
        &["wrong.yaml: num_train_epochs: found -1"],
    );
    // Without a value the default counts, which is told.
    let text = text.replace("num_train_epochs: -1", "max_steps: 1\nlora_alpha: null\nmodules_to_save: null");
    let told = peft(&["train", "--config", &folder.write("null.yaml", &text)]);
    let told = String::from_utf8(told.stderr).unwrap();
    names(&told, &["null.yaml: lora_alpha: is null, so that the default counts: 8.0"]);
    assert!(!told.contains("modules_to_save"), "{told}");
}

/// With an adapter a method is what it must be of.
#[test]
fn a_method_beside_an_adapter_is_checked() {
    let (folder, lora) = (Folder::new(), golden("peft-reparam", "lora/adapter"));
    let (model, lora) = (golden("peft-core", "roberta-classify"), lora.to_string_lossy().into_owned());
    let (model, data, output) = (model.to_string_lossy().into_owned(), folder.data(), folder.path("out"));
    let args = ["train", "--model", &model, "--data", &data, "--steps", "1", "--output", &output, "--adapter", &lora];
    names(&fail(&[&args[..], &["--method", "prefix"]].concat()), &["--method", "prefix", "expected lora", &lora]);
    succeed(&[&args[..], &["--method", "lora"]].concat());
}

/// Several files are runs at once, each with the result that it has alone; one that fails leaves the others.
#[test]
fn several_runs_at_once() {
    let (folder, model) = (Folder::new(), golden("peft-core", "roberta-classify").to_string_lossy().into_owned());
    let data = folder.data();
    let file = |name: &str, method: &str, output: &str| {
        let text = format!(
            "model_name_or_path: {model}\nmethod: {method}\ndata: {data}\nmax_steps: 3\nper_device_train_batch_size: 4\n\
            output_dir: {output}\n"
        );
        folder.write(name, &text)
    };
    let outputs =
        ["lora", "ia3", "prefix"].map(|method| (method, folder.path(method), folder.path(&format!("{method}-alone"))));
    for (method, _, alone) in &outputs {
        succeed(&["train", "--config", &file("alone.yaml", method, alone)]);
    }
    let files = outputs.each_ref().map(|(method, output, _)| file(&format!("{method}.yaml"), method, output));
    let together = ["train", "--config", &files[0], "--config", &files[1], &format!("--config={}", files[2])];
    assert_eq!(succeed(&together).lines().count(), 3);
    let bytes = |dir: &str| fs::read(format!("{dir}/adapter_model.safetensors")).unwrap();
    for (method, output, alone) in &outputs {
        assert!(bytes(output) == bytes(alone), "{method}");
    }
    names(&fail(&together[..5]), &["lora", "directory"]);
    let fresh = [file("one.yaml", "lora", &folder.path("one")), file("two.yaml", "lora", &folder.path("one"))];
    let error = fail(&["train", "--config", &fresh[0], "--config", &fresh[1]]);
    names(&error, &["one.yaml", "output_dir", "elsewhere"]);
    let text =
        format!("model_name_or_path: {model}\nmethod: lora\ndata: {data}\nr: 0\noutput_dir: {}\n", folder.path("bad"));
    let bad = folder.write("bad.yaml", &text);
    names(&fail(&["train", "--config", &fresh[0], "--config", &bad]), &["bad.yaml", "r at", "0"]);
    assert!(Path::new(&folder.path("one")).join("adapter_model.safetensors").exists());
}

/// Two methods are trained, saved, loaded and served together; a setting goes to the one that has it.
#[test]
fn several_methods_at_once() {
    let (folder, model) = (Folder::new(), golden("peft-core", "roberta-classify").to_string_lossy().into_owned());
    let (data, output) = (folder.data(), folder.path("out"));
    let args = ["train", "--model", &model, "--data", &data, "--steps", "2", "--method", "lora", "--method", "prefix"];
    let sets = ["--set", "r=3", "--set", "prefix.num_virtual_tokens=4"];
    succeed(&[&args[..], &sets, &["--output", &output]].concat());
    let config: Value =
        serde_json::from_str(&fs::read_to_string(format!("{output}/adapter_config.json")).unwrap()).unwrap();
    let [lora, prefix] = [0, 1].map(|i| config["parts"][i].clone());
    assert_eq!((&lora["peft_type"], &lora["r"]), (&"LORA".into(), &3.into()));
    assert_eq!((&prefix["peft_type"], &prefix["num_virtual_tokens"]), (&"PREFIX_TUNING".into(), &4.into()));
    let logits = folder.path("logits");
    succeed(&["forward", "--model", &model, "--adapter", &output, "--input", &data, "--output", &logits]);
    let again = folder.path("again");
    succeed(&["train", "--config", &format!("{output}/train.yaml"), "--output", &again]);
    let bytes = |dir: &str| fs::read(format!("{dir}/adapter_model.safetensors")).unwrap();
    assert!(bytes(&again) == bytes(&output));
    let twice = ["train", "--model", &model, "--data", &data, "--method", "lora", "--method", "lora", "--set", "r=3"];
    names(&fail(&[&twice[..], &["--output", &folder.path("twice")]].concat()), &["--set r", "several", "lora.r"]);
}

#[test]
fn steps_are_measured() {
    let step = ["bench", "step", "--model", "shape:bert-tiny", "--method", "lora", "--batch", "3", "--seq", "9"];
    let report: Value = serde_json::from_str(&succeed(&[&step[..], &["--steps", "2"]].concat())).unwrap();
    let seconds = |key: &str| report["seconds"][key].as_f64().unwrap();
    assert!(seconds("best") <= seconds("median") && report["tokens_per_second"].as_f64().unwrap() > 0.0);
    // r 8 on query and value of two layers of width 24, and a head of two classes.
    assert_eq!(report["trainable"], 2 * 2 * 8 * 2 * 24 + 2 * 24 + 2);
    assert!(report["peak_bytes"].as_u64().unwrap() > 1_000_000);
    names(&fail(&[&step[..9], &["999"]].concat()), &["--seq", "3 sequences of 999", "40"]);
    // Which kernel it is depends on the machine.
    assert_eq!(report["kernel"], "the tensor library's");
    let kernel = |more: &[&str]| {
        let report: Value = serde_json::from_str(&succeed(&[&step[..], &["--steps", "1"], more].concat())).unwrap();
        report["kernel"].as_str().unwrap().to_string()
    };
    for more in [["--base", "nf4"], ["--compute", "bf16"]] {
        assert!(["portable", "avx2", "avx512", "avx512-bf16"].contains(&&*kernel(&more)), "{more:?}");
    }
    names(&fail(&[&step[..], &["--compute", "f16"]].concat()), &["--compute", "f16", "f32 or bf16"]);
}

#[test]
fn generation_is_measured() {
    for model in ["shape:llama-tiny", "shape:t5-tiny"] {
        let args = ["bench", "generate", "--model", model, "--batch", "2", "--runs", "1", "--threads", "1"];
        let report = succeed(&[&args[..], &["--prompt-tokens", "30", "--new-tokens", "11"]].concat());
        let report: Value = serde_json::from_str(&report).unwrap();
        let [seconds, read, written] =
            [&report["seconds"]["median"], &report["prompt_tokens_per_second"], &report["tokens_per_second"]]
                .map(|value| value.as_f64().unwrap());
        assert!(report["seconds"]["best"].as_f64().unwrap() <= seconds);
        let parts = 2.0 * 30.0 / read + 2.0 * 10.0 / written;
        assert!((parts / seconds - 1.0).abs() < 1e-6, "{report}");
        assert!(report["peak_bytes"].as_u64().unwrap() > 1_000_000);
    }
    let args = ["bench", "generate", "--model", "shape:llama-tiny", "--new-tokens", "11", "--prompt-tokens"];
    names(&fail(&[&args[..], &["31"]].concat()), &["--prompt-tokens", "1 prompts of 31", "1 to 30"]);
    let args = ["bench", "generate", "--model", "shape:llama-tiny", "--prompt-tokens", "1", "--new-tokens", "41"];
    names(&fail(&args), &["--new-tokens", "41", "2 to 40"]);
    names(&fail(&["bench", "generate", "--model", "shape:bert-tiny"]), &["no head"]);
}

#[test]
fn shells_and_manuals_are_served() {
    assert!(succeed(&["completions", "bash"]).contains("--micro-rows"));
    let words = |shell: &str| -> Vec<String> {
        let script = succeed(&["completions", shell]);
        script.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').map(str::to_string).collect()
    };
    for shell in ["bash", "zsh", "fish"] {
        let words = words(shell);
        for name in ["hyperformer", "sst2"] {
            assert!(words.iter().any(|word| word == name), "{shell}: no {name}");
        }
    }
    assert!(succeed(&["man"]).contains(".TH") && succeed(&["man", "train"]).contains("micro\\-rows"));
    names(&fail(&["man", "trian"]), &["trian", "train"]);
}

#[test]
fn texts_leave_room_for_virtual_tokens() {
    let folder = Folder::new();
    let (model, data) = (
        model("roberta-classify"),
        folder.write("long.jsonl", &{
            let line = |i: usize| json!({"input_ids": vec![5 + i; 30], "label": i % 2}).to_string() + "\n";
            (0..4).map(line).collect::<String>()
        }),
    );
    let start = ["train", "--model", &model, "--data", &data, "--steps", "2", "--method", "prefix"];
    let output = folder.path("out");
    let error = fail(&[&start[..], &["--set", "num_virtual_tokens=9", "--output", &output]].concat());
    names(&error, &["long.jsonl", "line 1", "30", "at most 29"]);
    succeed(&[&start[..], &["--set", "num_virtual_tokens=8", "--output", &output]].concat());
}

#[test]
fn a_model_of_random_weights_merges_into_one_that_loads() {
    let folder = Folder::new();
    let (data, adapter, merged) = (folder.data(), folder.path("lora"), folder.path("merged"));
    let train = ["train", "--model", "shape:bert-tiny", "--method", "lora", "--data", &data, "--steps", "2"];
    succeed(&[&train[..], &["--output", &adapter]].concat());
    succeed(&["merge", "--model", "shape:bert-tiny", "--adapter", &adapter, "--output", &merged]);
    succeed(&["forward", "--model", &merged, "--input", &data, "--output", &folder.path("logits")]);
}

#[test]
fn a_classifier_needs_the_pooler_of_its_model() {
    let folder = Folder::new();
    let copy = folder.copy(&golden("peft-core", "bert-mlm")).to_string_lossy().into_owned();
    let (data, output) = (folder.data(), folder.path("out"));
    let train = ["train", "--model", &copy, "--method", "lora", "--data", &data, "--steps", "2", "--output", &output];
    names(&fail(&train), &["pooler.dense.weight", "no such tensor"]);
}

#[test]
fn forward_of_a_word_model_gives_a_row_for_each_token() {
    let folder = Folder::new();
    let rows =
        "{\"input_ids\": [5, 6, 7], \"attention_mask\": [1, 1, 1]}\n{\"input_ids\": [8], \"attention_mask\": [1]}\n";
    let (input, output) = (folder.write("in.jsonl", rows), folder.path("out"));
    succeed(&["forward", "--model", &model("roberta-mlm"), "--input", &input, "--output", &output]);
    let file = Checkpoint::open_file(Path::new(&output)).unwrap();
    assert_eq!((file.shape("logits.0"), file.shape("logits.1")), (Some(&[3, 97][..]), Some(&[1, 97][..])));
}

#[test]
fn params_are_those_of_the_survey() {
    let adapter_s = "bottleneck=200 activation=relu inner_norm=self_attention train_layernorm=false";
    for (method, settings, labels, base, large) in [
        ("full", "", "2", 124_647_170, 355_361_794),
        ("adapter", adapter_s, "0", 7_414_464, 19_768_704),
        ("prompt", "", "2", 607_490, 1_072_130),
        ("prefix", "", "2", 960_770, 2_034_690),
        ("ia3", "", "2", 656_642, 1_223_682),
        ("bitfit", "", "2", 694_274, 1_323_010),
        ("bitfit", "parts=query", "0", 9_216, 24_576),
        ("lora", "", "2", 887_042, 1_838_082),
    ] {
        for (model, expected) in [("shape:roberta-base", base), ("shape:roberta-large", large)] {
            let mut args = vec!["params", "--json", "--model", model, "--method", method, "--labels", labels];
            args.extend(settings.split_whitespace().flat_map(|setting| ["--set", setting]));
            let counts: Value = serde_json::from_str(&succeed(&args)).unwrap();
            assert_eq!(counts["trainable"], expected, "{model} {method}");
        }
    }
}

/// What is counted in closed form is what is made, masks and the like left out.
#[test]
fn every_method_is_counted() {
    for line in succeed(&["methods"]).lines().filter(|line| !line.starts_with(' ')) {
        let method = line.split_whitespace().next().unwrap();
        let sizes: &[&str] = match method {
            "mam" => &["--set", "bottleneck=5", "--set", "num_virtual_tokens=5"],
            "parallel" => &["--set", "bottleneck=5"],
            "propetl-prefix" => &["--set", "num_virtual_tokens=5"],
            "intrinsic-said" => &["--set", "intrinsic_dim=500"],
            "adapter-drop" => &["--set", "drop=1"],
            "lst" => &["--set", "task_reduction_factor=2"],
            "adapter-fusion" => &["--set", "num_adapters=2"],
            "attempt" => &["--set", "num_sources=2"],
            "warp" => &["--set", "mask_token_id=5"],
            "qa-lora" => &["--set", "qalora_group_size=8", "--set", r"target_modules=.*(query|\.q|\.q_proj)"],
            "s4" => &["--set", r#"groups=[["adapter","lora"],["bias","adapter"]]"#, "--set", "share=0.2"],
            "s3delta" => &["--set", "share=0.1"],
            _ => &[],
        };
        for (model, family) in [("roberta", ""), ("t5", "T5"), ("llama", "LLaMA")] {
            let model = format!("shape:{model}-tiny");
            let args = [&["params", "--json", "--labels", "0", "--model", &model, "--method", method], sizes].concat();
            let output = peft(&args);
            if output.status.success() {
                let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
                let trains_none = ["linear-probe", "laplace-lora"].contains(&method);
                assert!(counts["method"].as_u64().unwrap() > 0 || trains_none, "{method} on {model}");
                continue;
            }
            // What a family of models cannot have is refused, by its name or by what it lacks.
            let error = String::from_utf8_lossy(&output.stderr).to_lowercase();
            let lacks = ["bias", "is not allowed, expected"].iter().any(|word| error.contains(word));
            assert!(
                !family.is_empty() && (error.contains(&family.to_lowercase()) || lacks),
                "{method} on {model}: {error}"
            );
        }
    }
}

/// What is chosen once before the first training is not chosen anew when it goes on.
#[test]
fn what_was_trained_is_trained_on() {
    let folder = Folder::new();
    let data = folder.data();
    for (method, set) in
        [("lst", "task_reduction_factor=2"), ("sparse-adapter", "scorer=grasp"), ("sparse-adapter", "scorer=snip")]
    {
        let (first, second) = (folder.path(&format!("{method}-{set}")), folder.path(&format!("{method}-{set}-on")));
        let start = ["train", "--model", "shape:roberta-tiny", "--data", &data, "--batch-size", "8", "--warmup", "0"];
        succeed(
            &[&start[..], &["--method", method, "--set", set, "--steps", "30", "--lr", "1e-2", "--output", &first]]
                .concat(),
        );
        succeed(&[&start[..], &["--adapter", &first, "--steps", "1", "--lr", "1e-6", "--output", &second]].concat());
        let read =
            |adapter: &str| Checkpoint::open_file(&Path::new(adapter).join("adapter_model.safetensors")).unwrap();
        let (before, after) = (read(&first), read(&second));
        for name in before.names() {
            let values = |file: &Checkpoint| -> Vec<f32> {
                let shape = file.shape(name).unwrap().to_vec();
                match name.ends_with(".mask") {
                    true => file.bytes(name).unwrap().iter().map(|byte| f32::from(*byte)).collect(),
                    false => file.read_f32(name, &shape).unwrap().iter().collect(),
                }
            };
            for (before, after) in values(&before).into_iter().zip(values(&after)) {
                assert!((before - after).abs() < 1e-4, "{method} {set}: {name} {before} {after}");
            }
        }
    }
}

#[test]
fn predict_gives_a_line_for_each_line() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "bert-classify");
    let predict = |content: &str| peft(&["predict", "--model", &model, "--file", &folder.write("lines.txt", content)]);
    let output = String::from_utf8(predict("one\r\ntwo\nthree").stdout).unwrap();
    let texts: Vec<Value> =
        output.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].clone()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    let error = |content: &str| String::from_utf8(predict(content).stderr).unwrap();
    names(&error("one\n \ntwo\n"), &["lines.txt: line 2: found a blank line"]);
    names(&error(""), &["texts", "none"]);
    names(&error(&format!("one\n{}\n", "a".repeat(5 << 20))), &["lines.txt: line 2: text: found 5242880 bytes"]);
    fs::write(folder.path("lines.txt"), b"one\ntw\xff\n").unwrap();
    names(
        &fail(&["predict", "--model", &model, "--file", &folder.path("lines.txt")]),
        &["lines.txt: line 2: found bytes that are no text"],
    );
}

/// What the library says of texts is what the program says.
#[test]
fn texts_are_classified_by_the_library_as_by_the_program() {
    let folder = Folder::new();
    let model = spelling_model(&folder, "bert-classify");
    let texts = ["hello world", "the world", "a hello"];
    let rows: String =
        texts.iter().enumerate().map(|(i, text)| format!("{text}\t{}\n", ["bad", "good"][i % 2])).collect();
    let (data, adapter) = (folder.write("train.tsv", &format!("sentence\tlabel\n{rows}")), folder.path("lora"));
    let train = ["train", "--model", &model, "--method", "lora", "--data", &data, "--steps", "9", "--lr", "1e-2"];
    succeed(&[&train[..], &["--output", &adapter]].concat());
    let base = Pretrained::open(&model, &peft_core::device("flex").unwrap()).unwrap();
    let tuned = Tuned::load::<LoraConfig>(Path::new(&adapter), &base).unwrap();
    let said = tuned.classify(&texts).unwrap();
    for (text, class) in texts.iter().zip(&said) {
        let told = succeed(&["predict", "--model", &model, "--adapter", &adapter, "--text", text]);
        assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["label"], json!(class));
    }
    assert!(said.iter().all(|class| ["bad", "good"].contains(&class.as_str())));
}
