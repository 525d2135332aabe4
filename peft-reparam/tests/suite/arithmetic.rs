//! Finished LoRAs as one: equal to PEFT's `add_weighted_adapter`, and what each form keeps of the products.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use peft_core::combine::{Combination, Majority, Prune};
use peft_core::files::read_json;
use peft_core::io::peft;
use peft_core::load::Checkpoint;
use peft_core::testing::golden::{examples, model};
use peft_core::testing::tolerances::{REFERENCE, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, device, randomized};
use peft_core::view::tensors;
use peft_core::{AnyTuner, Base, Head, Merge, Method, Part, Site, Source, States, Trained, Weight, split_name};
use peft_reparam::low_rank::arithmetic::{Form, combined};
use peft_reparam::{Lora, LoraConfig};
use serde::Deserialize;

/// The seed of the masks in `scripts/golden/weighted.py`.
const SEED: u64 = 5;

#[derive(Deserialize)]
struct Told {
    r#type: String,
    adapters: Vec<String>,
    weights: Vec<f64>,
    density: Option<f64>,
    #[serde(default)]
    majority_sign_method: Majority,
    svd_rank: Option<usize>,
}

impl Told {
    fn how(&self) -> (Combination, Form) {
        let random = self.r#type.starts_with("dare");
        let prune = |density| if random { Prune::Random(density, SEED) } else { Prune::Magnitude(density) };
        let elect = self.r#type.contains("ties").then_some(self.majority_sign_method);
        let form = match self.r#type.as_str() {
            "cat" => Form::Concatenated,
            name if name.ends_with("svd") => Form::Products(self.svd_rank),
            _ => Form::Factors,
        };
        (Combination { prune: self.density.map(prune), elect }, form)
    }
}

#[test]
fn equals_add_weighted_adapter() {
    for (folder, name) in [("weighted-bert", "bert-classify"), ("weighted-llama", "llama")] {
        let (dir, model) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder), model(name));
        let told: Vec<Told> = serde_json::from_value(read_json(&dir.join("cases.json")).unwrap()).unwrap();
        let kinds: std::collections::BTreeSet<&str> = told.iter().map(|case| case.r#type.as_str()).collect();
        assert_eq!(kinds.len(), 11, "{kinds:?}");
        let expected = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap();
        let read = |name: &str| expected.read_f32(name, expected.shape(name).unwrap()).unwrap();
        let all = examples(&dir.join("inputs.safetensors"));
        let batch = model.base.batch(&all.iter().collect::<Vec<_>>()).unwrap();
        let source = |name: &String| {
            let folder: PathBuf = dir.join(name);
            let (config, trained) = peft::load::<LoraConfig>(&folder, &model).unwrap();
            Source { name: name.clone(), config: config.into(), trained: trained.erased() }
        };
        for (i, case) in told.iter().enumerate() {
            let sources: Vec<Source> = case.adapters.iter().map(source).collect();
            let head = sources[0].trained.head.clone();
            let base = model.base.for_purpose(head.purpose());
            let (how, form) = case.how();
            let what = format!("{folder}: case {i}, {}", case.r#type);
            let (config, lora) = combined(&sources, &case.weights, &how, form, &base).unwrap();
            let factor = |site: Site, leaf: &str| {
                let key = config.key(&format!("factors.{site}.{leaf}"), base.shape());
                Tensor::<2>::from_data(read(&format!("{i}/{}", key.name)), &device()).transpose()
            };
            for (name, found) in tensors(&lora) {
                let (_, site, leaf) = split_name(&name);
                let found = Tensor::<2>::from_data(found, &device());
                // Singular vectors may be turned: the product is what is compared.
                match form {
                    Form::Products(_) if leaf == "a" => {
                        let b = Tensor::from_data(tensors(&lora)[&format!("factors.{site}.b")].clone(), &device());
                        let product = factor(site, "a").matmul(factor(site, "b"));
                        assert_close(found.matmul(b), product, REFERENCE, &format!("{what}: {site}"));
                    }
                    Form::Products(_) => {}
                    _ => assert_close(found, factor(site, leaf), SAME_FUNCTION, &format!("{what}: {name}")),
                }
            }
            let trained = Trained::new(lora, head).unwrap();
            let logits = trained.logits(&base, &batch).unwrap();
            let expected: Vec<f32> = read(&format!("{i}/logits")).iter().collect();
            let expected = Tensor::<1>::from_data(&expected[..], &device());
            assert_close(logits.flatten::<1>(0, 2), expected, REFERENCE, &what);
        }
    }
}

fn source(base: &Base, name: &str, config: LoraConfig, seed: u64) -> Source {
    let tuner = AnyTuner::new(randomized(&config.init(base, seed).unwrap(), seed));
    Source { name: name.into(), config: config.into(), trained: Trained::new(tuner, Head::States(States {})).unwrap() }
}

/// The update of a map, from the merge of an adapter into zeros.
fn update(lora: &Lora, site: Site, base: &Base) -> Tensor<2> {
    let zeros = Weight::Dense(base.weight(site).dense().zeros_like());
    lora.weight(site, &zeros).unwrap().without_autodiff()
}

fn config(r: usize, alpha: f64) -> LoraConfig {
    LoraConfig::new(r).with_alpha(alpha).with_sites(Part::Query | Part::Down)
}

fn sites(base: &Base) -> Vec<Site> {
    config(1, 1.0).target_modules.resolve(base.shape()).unwrap()
}

/// What the updates add up to.
fn sum(sources: &[Source], weights: &[f64], site: Site, base: &Base) -> Tensor<2> {
    let of = |(source, weight): (&Source, &f64)| update(source.tuner::<LoraConfig>().unwrap(), site, base) * *weight;
    sources.iter().zip(weights).map(of).reduce(|a, b| a + b).unwrap()
}

#[test]
fn beside_each_other_and_as_products_of_full_rank_they_are_the_sum() {
    let base = base("roberta-tiny", &device());
    let patterned = LoraConfig { rank_pattern: [("query".to_string(), 4)].into_iter().collect(), ..config(1, 5.0) };
    let rooted = config(2, 3.0).with_rslora();
    let sources =
        [source(&base, "a", patterned, 1), source(&base, "b", rooted, 2), source(&base, "c", config(3, -2.0), 3)];
    let weights = [0.7, -1.2, 0.4];
    for form in [Form::Concatenated, Form::Products(Some(24))] {
        let (_, lora) = combined(&sources, &weights, &Combination::linear(), form, &base).unwrap();
        for site in sites(&base) {
            assert_close(
                update(&lora, site, &base),
                sum(&sources, &weights, site, &base),
                SAME_FUNCTION,
                &site.to_string(),
            );
        }
    }
}

/// The products of one adapter's A with another's B stand between the two, unless they share A and have weights above 0.
#[test]
fn factors_add_up_exactly_for_one_adapter_and_for_those_that_share_a() {
    let base = base("roberta-tiny", &device());
    let of = |sources: &[Source], weights: &[f64]| {
        combined(sources, weights, &Combination::linear(), Form::Factors, &base).unwrap().1
    };
    let alone = [source(&base, "a", config(3, 5.0), 1)];
    for weight in [1.0, -1.0, 0.3] {
        let lora = of(&alone, &[weight]);
        for site in sites(&base) {
            let expected = sum(&alone, &[weight], site, &base);
            assert_close(update(&lora, site, &base), expected, SAME_FUNCTION, &format!("{site} by {weight}"));
        }
    }
    let shared = [1, 2].map(|seed| source(&base, "shared", config(3, 5.0).with_shared_a(7), seed));
    let apart = [1, 2].map(|seed| source(&base, "apart", config(3, 5.0), seed));
    let halves = [0.5, 0.5];
    for site in sites(&base) {
        // Half of each is the root of a half on both factors, of which A's is a sum of two that are the same.
        let expected = sum(&shared, &[1.0, 1.0], site, &base);
        assert_close(update(&of(&shared, &halves), site, &base), expected, SAME_FUNCTION, &site.to_string());
        let error = update(&of(&apart, &halves), site, &base) - sum(&apart, &halves, site, &base);
        assert!(error.abs().max().into_scalar::<f32>() > 0.01, "{site}: no products between the adapters");
    }
}

/// A truncated sum is nearer to the sum than any other of its rank that stands here.
#[test]
fn the_largest_singular_values_are_nearest() {
    let base = base("bert-tiny", &device());
    let sources = [source(&base, "a", config(3, 5.0), 1), source(&base, "b", config(3, 5.0), 2)];
    let weights = [0.6, 0.4];
    let error = |form, site| {
        let lora = combined(&sources, &weights, &Combination::linear(), form, &base).unwrap().1;
        let error = update(&lora, site, &base) - sum(&sources, &weights, site, &base);
        error.square().sum().into_scalar::<f32>()
    };
    for site in sites(&base) {
        let cut = error(Form::Products(None), site);
        assert!(cut > 0.0 && cut < error(Form::Factors, site) && cut < error(Form::Products(Some(2)), site), "{site}");
    }
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let base = base("roberta-tiny", &device());
    let first = source(&base, "first", config(3, 5.0), 1);
    let of = |other: LoraConfig, form, weights: &[f64]| {
        let sources = [first.clone(), source(&base, "second", other, 2)];
        combined(&sources, weights, &Combination::linear(), form, &base).unwrap_err().to_string()
    };
    let biased = config(3, 5.0).with_bias(peft_reparam::BiasMode::All);
    let both = [1.0, 1.0];
    for (message, words) in [
        (of(config(2, 5.0), Form::Factors, &both), ["second: r at", "2", "3, as in first", "cat or svd"]),
        (
            of(config(3, 5.0).with_sites(Part::Query), Form::Concatenated, &both),
            ["second: target_modules", "query", "down", "as in first"],
        ),
        (of(config(3, 5.0).with_dora(), Form::Factors, &both), ["second: use_dora", "true", "false", "as in first"]),
        (of(biased, Form::Factors, &both), ["second: bias", "all", "none", "as in first"]),
        (of(config(3, 5.0), Form::Factors, &[1.0]), ["weights", "1", "one for each", "2"]),
        (of(config(3, 5.0), Form::Products(Some(0)), &both), ["the rank", "0", "1 to", "65536"]),
        (of(config(3, 5.0), Form::Factors, &[1.0, f64::NAN]), ["weights", "NaN", "finite", "numbers"]),
    ] {
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    }
    let dora = [source(&base, "turned", config(3, 5.0).with_dora(), 1)];
    let message = combined(&dora, &[1.0], &Combination::linear(), Form::Factors, &base).unwrap_err().to_string();
    assert!(message.contains("turned: use_dora"), "{message}");
}
