use super::keys::{IDLE, OTHERS};
use super::*;

fn expanded(yaml: &str, rest: &[&str]) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    std::fs::write(&path, yaml).unwrap();
    let (options, wrong) = options(&path, &read(&path)?, rest)?;
    Error::all(wrong).map(|()| options.into_iter().map(|(option, _)| option).collect())
}

#[test]
fn keys_become_options_and_the_command_line_wins() {
    let yaml = "method: lora\nr: 4\ntarget_modules: [query, key]\nlearning_rate: 1e-3\nmax_steps: -1\n\
        num_train_epochs: 3.0\ngroup_by_length: true\ndropout: null\n";
    let all = expanded(yaml, &[]).unwrap();
    let expected = ["--method=lora", "--set=r=4", "--set=target_modules=[\"query\",\"key\"]", "--lr=0.001"];
    assert_eq!(all, [&expected[..], &["--epochs=3", "--group-by-length"]].concat());
    let some = expanded(yaml, &["--set", "r=2", "--steps", "5", "--lr=1"]).unwrap();
    assert!(
        !some.iter().any(|option| ["--set=r=4", "--epochs=3", "--lr=0.001"].contains(&option.as_str())),
        "{some:?}"
    );
}

/// As transformers reads them: steps before a share, none where the rate is constant, and a share is no number of steps.
#[test]
fn a_warm_up_is_that_of_transformers() {
    for (yaml, expected) in [
        ("warmup_ratio: 0.5\nwarmup_steps: 0\n", &["--warmup=0.5"][..]),
        ("warmup_steps: 0\nwarmup_ratio: 0.5\n", &["--warmup=0.5"]),
        ("warmup_ratio: 0.5\nwarmup_steps: 7\n", &["--warmup=7"]),
        ("lr_scheduler_type: constant\nwarmup_ratio: 0.5\n", &["--schedule=constant"]),
        ("adam_beta1: 0.8\nfp16: false\n", &["--adam-beta1=0.8"]),
        ("warmup_steps: '7'\nwarmup_ratio: 0.5\n", &["--warmup=7"]),
        ("max_steps: '7'\nnum_train_epochs: 3\n", &["--steps=7"]),
        ("max_steps: '-1'\nnum_train_epochs: 3\n", &["--epochs=3"]),
        // Which the option then refuses.
        ("warmup_steps: 7 steps\n", &["--warmup=7 steps"]),
        ("max_steps: null\nwarmup_steps: -1\n", &[]),
    ] {
        assert_eq!(expanded(yaml, &[]).unwrap(), expected, "{yaml}");
    }
    for wrong in [
        "warmup_ratio: 1.0\n",
        "warmup_ratio: '1.5'\n",
        "warmup_steps: true\n",
        "max_steps: true\n",
        "max_steps: [7]\n",
    ] {
        let key = wrong.split(':').next().unwrap();
        assert!(expanded(wrong, &[]).unwrap_err().to_string().contains(key), "{wrong}");
    }
    assert!(expanded("fp16: true\n", &[]).is_err());
}

/// A file as PEFT and transformers have them: the method by its type, and what has no effect here.
#[test]
fn names_of_peft_and_transformers_are_read() {
    let yaml = "peft_type: LORA\ntask_type: SEQ_CLS\nr: 4\neval_strategy: epoch\nreport_to: none\noptim: adamw_torch\n";
    assert_eq!(expanded(yaml, &[]).unwrap(), ["--method=lora", "--set=r=4", "--optimizer=adamw_torch"]);
    for (yaml, words) in [
        ("peft_type: LOHA\n", ["peft_type", "LORA"]),
        ("data: a\ntrain_file: b\n", ["data", "train_file"]),
        ("method: lora\npeft_type: IA3\n", ["method", "peft_type"]),
    ] {
        let message = expanded(yaml, &[]).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    // Files with all that a library knows, most of it null.
    assert!(expanded("lr_scheduler_kwargs: null\nauto_mapping: null\n", &[]).unwrap().is_empty());
    assert!(expanded("modules_to_save: [classifier, score]\n", &[]).unwrap().is_empty());
    let modules = "modules_to_save: [classifier, embeddings]\n";
    assert_eq!(expanded(modules, &[]).unwrap(), [r#"--set=modules_to_save=["classifier","embeddings"]"#]);
    for (yaml, word) in [("seed: true\n", "--seed"), ("group_by_length: \"yes\"\n", "true or false")] {
        let message = expanded(yaml, &[]).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
    let far = expanded("quantization_config: 1\n", &[]).unwrap_err().to_string();
    assert!(!far.contains("nearest"), "{far}");
}

/// PEFT writes its defaults; what asks for nothing is passed over, and what asks for something is refused by its own name.
#[test]
fn peft_s_defaults_ask_for_nothing() {
    let yaml = "method: lora\nfan_in_fan_out: false\ninit_lora_weights: true\nuse_dora: false\nbias: none\n\
        rank_pattern: {}\nlayers_to_transform: []\nlora_bias: false\nqalora_group_size: 16\nloftq_config: {}\n\
        megatron_core: megatron.core\nlayer_replication: null\nrevision: ''\n";
    let all = expanded(yaml, &[]).unwrap();
    let own = settings("lora").unwrap();
    let foreign = |option: &&String| peft::others().any(|name| !own.contains_key(name) && option.contains(name));
    assert_eq!(all.iter().find(foreign), None);
    let known = |name: &&str| own.contains_key(*name) || IDLE.contains(name) || *name == "peft_type";
    for name in peft::others().filter(|name| !known(name)) {
        assert!(expanded(&format!("method: lora\n{name}: false\n"), &[]).is_ok(), "{name}");
        let message = expanded(&format!("method: lora\n{name}: [{{}}]\n"), &[]).unwrap_err().to_string();
        assert!(
            message.contains(&format!("run.yaml: {name}: found [{{}}]")) && !message.contains("nearest"),
            "{message}"
        );
    }
}

#[test]
fn names_of_others_are_translated() {
    for (name, ours) in OTHERS {
        let known = KEYS.iter().any(|(key, _)| *key == ours) || peft::neutral(ours).is_some();
        assert!(known || settings("lora").unwrap().contains_key(ours), "{ours}");
        assert!(!KEYS.iter().any(|(key, _)| *key == name), "{name} is one of ours");
        let message = expanded(&format!("method: lora\n{name}: 7\n"), &[]).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(&format!("`{ours}`")), "{message}");
    }
}

#[test]
fn an_unknown_key_names_its_nearest() {
    for (yaml, nearest) in [
        ("learning_rat: 1", "learning_rate"),
        ("method: lora\nlora_alfa: 3", "lora_alpha"),
        ("method: lora\nlr: 3", "learning_rate"),
        ("batch_size: 3", "per_device_train_batch_size"),
    ] {
        let message = expanded(yaml, &[]).unwrap_err().to_string();
        assert!(message.contains("run.yaml") && message.contains(&format!("`{nearest}`")), "{message}");
    }
    let twice = expanded("max_steps: 1\nmax_steps: 2\n", &[]).unwrap_err().to_string();
    assert!(twice.contains("line 2 column 1: duplicate mapping key: max_steps, expected a YAML"), "{twice}");
    assert!(expanded("- 1\n", &[]).unwrap_err().to_string().contains("mapping"));
    assert!(expanded("seed: [1, 2]\n", &[]).unwrap_err().to_string().contains("single value"));
}
