//! LoRA's variants in the conformance suite, its counts, the order of its patterns, and what it refuses.

use std::path::Path;

use peft_core::io::peft::{Labels, from_settings, load, save, split_common, with_words};
use peft_core::testing::golden::Case;
use peft_core::testing::{base, device, fixtures::ENCODERS};
use peft_core::{AnyMethod, Head, Method, Part, Shape, Sites, Trained, view::tensors};
use peft_reparam::{BiasMode, LoraConfig};

fn config() -> LoraConfig {
    LoraConfig::new(3).with_alpha(5.0)
}

/// What stands in a file of PEFT's, in the order of its dictionaries.
fn read(json: serde_json::Value) -> LoraConfig {
    serde_json::from_value(json).unwrap()
}

/// `query` comes first, so that the second key never counts.
fn with_patterns() -> LoraConfig {
    read(serde_json::json!({
        "r": 4,
        "lora_alpha": 7.0,
        "target_modules": ["value", "query", "attention.output.dense"],
        "rank_pattern": {"query": 2, "layer.1.attention.self.query": 5, r".*layer\.0\..*dense": 3},
        "alpha_pattern": {"value": 3.0, "layer.0.attention.self.value": 11.0},
    }))
}

mod bias_all {
    use super::*;
    peft_core::conformance!(config().with_bias(BiasMode::All));
}

mod bias_lora_only {
    use super::*;
    peft_core::conformance!(config().with_bias(BiasMode::LoraOnly));
}

mod rslora {
    use super::*;
    peft_core::conformance!(config().with_rslora());
}

mod all_linear {
    use super::*;
    peft_core::conformance!(config().with_sites(Sites::Pattern("all-linear".into())));
}

mod patterns {
    use super::*;
    peft_core::conformance!(with_patterns(), only(ENCODERS: "the names are those of encoders"));
}

#[test]
fn counts_are_the_published_ones() {
    let (base, large) = (Shape::named("roberta-base").unwrap(), Shape::named("roberta-large").unwrap());
    let count = |config: LoraConfig, shape| config.count(shape).unwrap();
    assert_eq!(count(LoraConfig::new(8), &base), 294_912);
    assert_eq!(count(LoraConfig::new(8), &base) + Head::count(&base, 2), 887_042);
    assert_eq!(count(LoraConfig::new(8), &large) + Head::count(&large, 2), 1_838_082);
    let all = LoraConfig::new(8).with_sites(Sites::Pattern("all-linear".into()));
    assert_eq!(count(all.clone(), &base), 1_327_104);
    assert_eq!(count(all.with_bias(BiasMode::LoraOnly), &base), 1_327_104 + 12 * (5 * 768 + 3072));
    assert_eq!(count(LoraConfig::new(8).with_bias(BiasMode::All), &base), 294_912 + 102_144);
}

#[test]
fn the_first_pattern_that_matches_counts() {
    let base = base("roberta-tiny", &device());
    let ranks = |config: &LoraConfig| {
        let factors = tensors(&config.init(&base, 0).unwrap());
        let rank = |site: &str| factors[&format!("factors.encoder.{site}.a")].shape()[1];
        ["0.query", "1.query", "1.value", "0.output", "1.output"].map(rank)
    };
    let mut config = with_patterns();
    assert_eq!(ranks(&config), [2, 2, 4, 3, 4]);
    config.rank_pattern.swap_indices(0, 1);
    assert_eq!(ranks(&config), [2, 5, 4, 3, 4]);
}

#[test]
fn files_keep_the_order_of_the_patterns() {
    let (base, folder) = (base("roberta-tiny", &device()), tempfile::tempdir().unwrap());
    let (config, path) = (with_patterns(), folder.path().join("adapter"));
    let trained = Trained::new(config.init(&base, 0).unwrap(), Head::classifier(&base, 2, 0)).unwrap();
    save(&path, &config, &trained, base.shape(), &Labels::default(), &[]).unwrap();
    let (loaded, _) = load::<LoraConfig>(&path, &base).unwrap();
    assert!(loaded.rank_pattern.keys().eq(config.rank_pattern.keys()), "{loaded:?}");
    assert!(loaded.alpha_pattern.iter().eq(&config.alpha_pattern), "{loaded:?}");
}

/// LoRA as `--set` says it, on a model of this shape.
fn narrowed(words: &[&str], shape: &Shape) -> peft_core::Result<LoraConfig> {
    let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
    let (common, settings) = split_common(&words)?;
    let method = with_words(&AnyMethod::of::<LoraConfig>(), &settings)?.narrowed(&common, shape)?;
    Ok(method.downcast_ref::<LoraConfig>().unwrap().clone())
}

/// Modules that are left out and layers that are picked by our own settings are those of PEFT, and train as there; see
/// scripts/golden/methods.py.
#[test]
fn narrowed_equals_the_reference() {
    for (case, base, words) in [
        (
            "narrowed",
            "roberta-classify",
            &[
                "target_modules=query,output.dense",
                "exclude_modules=attention.output.dense,layer.1.attention.self.query",
            ][..],
        ),
        ("narrowed-bert", "bert-classify", &["target_modules=query,value,pooler.dense", "layers_to_transform=1"]),
        (
            "narrowed-t5",
            "t5",
            &[
                "target_modules=q,v",
                r"exclude_modules=.*EncDecAttention\.v",
                "layers_to_transform=0,2",
                "layers_pattern=block",
            ],
        ),
        (
            "narrowed-llama",
            "llama",
            &["target_modules=all-linear", r#"exclude_modules=["mlp.gate_proj", "layers.0.self_attn.k_proj"]"#],
        ),
    ] {
        let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case), base);
        let shape = case.base.shape();
        let sites = |config: &LoraConfig| config.target_modules.resolve(shape).unwrap();
        let own = narrowed(words, shape).unwrap();
        let (loaded, trained) = case.load::<LoraConfig>();
        assert_eq!(sites(&own), sites(&loaded), "{words:?}");
        case.check_named(&LoraConfig { target_modules: own.target_modules, ..loaded }, trained);
    }
}

#[test]
fn what_narrows_to_nothing_is_refused_by_name() {
    let shape = Shape::named("llama-tiny").unwrap();
    for (words, told) in [
        (&["exclude_modules=q_proj,w_proj", "target_modules=q_proj"][..], ["exclude_modules", "w_proj"]),
        (&["exclude_modules=q_proj", "target_modules=q_proj"], ["exclude_modules", "some that are left"]),
        (&["exclude_modules=h"], ["exclude_modules", "h"]),
        (&["layers_to_transform=9"], ["layers_to_transform", "9"]),
        (&["layers_to_transform=one"], ["layers_to_transform", "a layer's number"]),
        (&["layers_to_transform=1.5"], ["layers_to_transform", "1.5"]),
        (&["layers_pattern=layers"], ["layers_pattern", "layers_to_transform beside it"]),
        (&["layers_to_transform=1", "layers_to_transform=2"], ["layers_to_transform", "twice"]),
        (&["layers_to_transform=1", "target_modules=.*q_proj"], ["layers_to_transform", "one expression"]),
    ] {
        let message = narrowed(words, &shape).unwrap_err().to_string();
        assert!(told.iter().all(|word| message.contains(word)), "{told:?}: {message}");
    }
    assert_eq!(narrowed(&["exclude_modules=[]", "layers_to_transform=null"], &shape).unwrap(), LoraConfig::default());
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let patterns = |ranks: &[(&str, usize)], alphas: &[(&str, f64)]| LoraConfig {
        rank_pattern: ranks.iter().map(|(key, r)| (key.to_string(), *r)).collect(),
        alpha_pattern: alphas.iter().map(|(key, alpha)| (key.to_string(), *alpha)).collect(),
        ..config()
    };
    let names = |names: &[&str]| config().with_sites(Sites::Names(names.iter().map(|n| n.to_string()).collect()));
    let pattern = |pattern: &str| config().with_sites(Sites::Pattern(pattern.into()));
    let modules = "roberta.encoder.layer.0.attention.self.query";
    for (config, told) in [
        (LoraConfig::new(0), ["r at roberta", "0", "1 to 65536"]),
        (LoraConfig::new(65_537), ["r at roberta", "65537", "1 to 65536"]),
        (config().with_alpha(0.0), ["lora_alpha", "0", "finite"]),
        (config().with_alpha(f64::NAN), ["lora_alpha", "NaN", "finite"]),
        (config().with_alpha(f64::INFINITY), ["lora_alpha", "inf", "finite"]),
        (config().with_dropout(1.0), ["lora_dropout", "1", "from 0 to below 1"]),
        (config().with_dropout(-0.1), ["lora_dropout", "-0.1", "from 0 to below 1"]),
        (config().with_dropout(f64::NAN), ["lora_dropout", "NaN", "from 0 to below 1"]),
        (names(&["query", "q_proj"]), ["target_modules", "q_proj", modules]),
        (names(&[]), ["target_modules", "matches nothing", modules]),
        (config().with_sites(Part::Query | Part::NormAttention), ["target_modules", "norm_attention", modules]),
        (pattern("("), ["target_modules", "(", "regular expression"]),
        (pattern("query"), ["target_modules", "query", modules]),
        (patterns(&[("query", 2), ("*", 3)], &[]), ["rank_pattern", "*", "regular expression"]),
        (patterns(&[("query", 2), ("key", 3)], &[]), ["rank_pattern", "key", modules]),
        (patterns(&[("layer.1.attention.self", 2)], &[]), ["rank_pattern", "layer.1.attention.self", modules]),
        (patterns(&[], &[("uery", 2.0)]), ["alpha_pattern", "uery", modules]),
        (patterns(&[("layer.1.attention.self.query", 0)], &[]), ["r at roberta.encoder.layer.1", "0", "1 to 65536"]),
        (
            patterns(&[], &[("value", -0.0)]),
            ["lora_alpha at roberta.encoder.layer.0.attention.self.value", "0", "finite"],
        ),
    ] {
        let base = base("roberta-tiny", &device());
        let message = config.init(&base, 0).unwrap_err().to_string();
        assert!(told.iter().all(|word| message.contains(word)), "{told:?}: {message}");
        assert_eq!(config.count(base.shape()).unwrap_err().to_string(), message);
    }
    let sites = |text: &str| from_settings::<LoraConfig>(&[format!("target_modules={text}")]).unwrap().target_modules;
    assert_eq!(sites("all-linear"), Sites::Pattern("all-linear".into()));
    assert_eq!(sites(".*query"), Sites::Pattern(".*query".into()));
    assert_eq!(sites("query"), sites("[\"query\"]"));
    let message = from_settings::<LoraConfig>(&["rank=8".into()]).unwrap_err().to_string();
    assert!(message.contains("rank") && message.contains("lora_alpha"), "{message}");
}
