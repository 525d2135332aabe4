use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::io::peft::{Labels, load, save};
use peft_core::load::{Checkpoint, write_safetensors};
use peft_core::testing::golden::{examples, model, named};
use peft_core::testing::tolerances::{REFERENCE, REFERENCE_RUN, SAME_FUNCTION};
use peft_core::testing::{assert_close, batch, randomized};
use peft_core::train::{Checkpoints, Observer, Probe, Run, Schedule, StepReport, TrainConfig, Trainer};
use peft_core::view::{tensors, trainable, trained};
use peft_core::{
    Base, Error, Example, Head, Label, Merge, Method, Part, Procedure, Result, Shape, Site, Sites, Trained, Weight,
    random::Random, testing,
};
use peft_reparam::{AdaLora, AdaLoraConfig, LoraConfig};
use proptest::prelude::*;

use super::{bases, pick, run, with};

fn config() -> AdaLoraConfig {
    AdaLoraConfig::new(4, 2).with_alpha(5.0).with_sites(Sites::Pattern("all-linear".into()))
}

fn random(config: &AdaLoraConfig, base: &Base, seed: u64) -> AdaLora {
    randomized(&config.init(base, seed).unwrap(), seed).valid()
}

/// P, E and Q of each site.
fn triplets(adalora: &AdaLora, base: &Base) -> BTreeMap<String, [Tensor<2>; 3]> {
    let values = tensors(adalora);
    let sites = values.keys().filter_map(|name| name.strip_prefix("triplets.")?.strip_suffix(".p"));
    let tensor =
        |site: &str, leaf| Tensor::from_data(values[&format!("triplets.{site}.{leaf}")].clone(), base.device());
    sites.map(|site| (site.to_string(), ["p", "e", "q"].map(|leaf| tensor(site, leaf)))).collect()
}

/// The same with other tensors, each a function of the three at its site.
fn changed(adalora: AdaLora, base: &Base, f: impl Fn(&str, [Tensor<2>; 3]) -> [Tensor<2>; 3]) -> AdaLora {
    let values = triplets(&adalora, base).into_iter().flat_map(|(site, old)| {
        let names = ["p", "e", "q"].map(|leaf| format!("triplets.{site}.{leaf}"));
        names.into_iter().zip(f(&site, old).map(Tensor::into_data)).collect::<Vec<_>>()
    });
    with(adalora, values)
}

/// Orthonormal columns in the span of the given ones (Gram and Schmidt).
fn orthonormal(x: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = x.dims();
    let values: Vec<f64> = x.to_data().iter().collect();
    let mut found: Vec<Vec<f64>> = vec![];
    for j in 0..columns {
        let mut column: Vec<f64> = (0..rows).map(|i| values[i * columns + j]).collect();
        for other in &found {
            let along: f64 = column.iter().zip(other).map(|(a, b)| a * b).sum();
            column.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
        }
        let length = column.iter().map(|a| a * a).sum::<f64>().sqrt();
        found.push(column.iter().map(|a| a / length).collect());
    }
    let values: Vec<f32> = (0..rows).flat_map(|i| found.iter().map(move |column| column[i] as f32)).collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), &x.device())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn it_is_a_lora_with_values_between_the_factors(seed: u64, alpha in 0.5..4.0) {
        for base in bases() {
            let config = config().with_alpha(alpha);
            let adalora = random(&config, &base, seed);
            let r = config.init_r as f64;
            let lora = LoraConfig::new(config.init_r).with_alpha(alpha * r / (r + 1e-5)).with_sites(config.target_modules);
            let factors = triplets(&adalora, &base).into_iter().flat_map(|(site, [p, e, q])| {
                [(format!("factors.{site}.a"), p.into_data()), (format!("factors.{site}.b"), (e * q).into_data())]
            });
            let lora = with(lora.init(&base, 0).unwrap(), factors);
            let batch = batch(&base);
            assert_close(run(&adalora, &base, &batch), run(&lora, &base, &batch), SAME_FUNCTION, "a LoRA");
        }
    }

    #[test]
    fn the_order_of_the_triplets_does_not_matter(seed: u64) {
        for base in bases() {
            let adalora = random(&config(), &base, seed);
            let moved = changed(adalora.clone(), &base, |site, [p, e, q]| {
                let order = Random::new(seed, site).permutation(4);
                [pick(p, 1, &order), pick(e, 0, &order), pick(q, 0, &order)]
            });
            prop_assert_ne!(tensors(&adalora), tensors(&moved));
            let batch = batch(&base);
            assert_close(run(&moved, &base, &batch), run(&adalora, &base, &batch), SAME_FUNCTION, "in another order");
        }
    }

    #[test]
    fn masked_triplets_may_be_dropped(seed: u64) {
        for base in bases() {
            let shape = base.shape();
            // A site keeps none, some or all.
            let kept = |site: &str| {
                let mut random = Random::new(seed, site);
                let chance = [0.0, 0.5, 1.0][random.below(3)];
                (0..4).map(|_| random.unit() < chance).collect::<Vec<bool>>()
            };
            let chosen = |site: &str| (0..4).filter(|i| kept(site)[*i]).collect::<Vec<usize>>();
            let masked = changed(random(&config(), &base, seed), &base, |site, [p, e, q]| {
                let mask: Vec<f32> = kept(site).into_iter().map(f32::from).collect();
                [p, e * Tensor::from_data(TensorData::new(mask, [4, 1]), base.device()), q]
            });
            let name = |site: &str| format!("{}.lora_E", shape.module_path(site.parse().unwrap()).unwrap());
            let pattern = triplets(&masked, &base).into_keys().map(|site| (name(&site), kept(&site))).collect();
            let dropped = AdaLoraConfig { rank_pattern: Some(pattern), ..config() };
            let all = triplets(&masked, &base);
            let few = changed(dropped.init(&base, 1).unwrap(), &base, |site, _| {
                let ([p, e, q], chosen) = (all[site].clone(), chosen(site));
                [pick(p, 1, &chosen), pick(e, 0, &chosen), pick(q, 0, &chosen)]
            });
            prop_assert_eq!(trainable(&few), dropped.count(shape).unwrap());
            let batch = batch(&base);
            assert_close(run(&few, &base, &batch), run(&masked, &base, &batch), SAME_FUNCTION, "dropped");
        }
    }

    #[test]
    fn orthonormal_factors_cost_nothing(seed: u64) {
        for base in bases() {
            let adalora = changed(config().init(&base, seed).unwrap(), &base, |site, [p, e, q]| {
                let e = Random::new(seed, site).normal_tensor(e.dims(), 1.0, base.device());
                [orthonormal(p), e, orthonormal(q.transpose()).transpose()]
            });
            let penalty = adalora.penalty().unwrap();
            prop_assert!(penalty.clone().into_scalar::<f32>() <= SAME_FUNCTION.0);
            let gradients = GradientsParams::from_grads(penalty.backward(), &adalora);
            let gradients = named(&adalora, &gradients);
            prop_assert!(gradients.values().all(|g| g.iter::<f32>().all(f32::is_finite)));
            for (site, [_, e, _]) in triplets(&adalora, &base) {
                let site: Site = site.parse().unwrap();
                let zero = Weight::Dense(Tensor::zeros(base.shape().linear_dims(site), base.device()));
                let norm = |x: Tensor<2>| x.powi_scalar(2).sum().sqrt();
                let update = norm(Merge::weight(&adalora.valid(), site, &zero).unwrap());
                assert_close(update, norm(e) * (5.0 / (4.0 + 1e-5)), SAME_FUNCTION, "the norm of the update");
            }
        }
    }

    #[test]
    fn the_penalty_is_the_mean_of_the_norms(seed: u64, weight in 0.1..2.0) {
        for base in bases() {
            let adalora = random(&config().with_penalty(weight), &base, seed);
            let vectors = |x: Tensor<2>| {
                let [count, width] = x.dims();
                let values: Vec<f64> = x.into_data().iter().collect();
                assert_eq!(count, 4);
                values.chunks(width).map(<[f64]>::to_vec).collect::<Vec<_>>()
            };
            let distance = |vectors: Vec<Vec<f64>>| {
                let pairs = (0..4).flat_map(|i| (0..4).map(move |j| (i, j)));
                let off = |(i, j): (usize, usize)| {
                    let product: f64 = vectors[i].iter().zip(&vectors[j]).map(|(a, b)| a * b).sum();
                    (product - f64::from(u8::from(i == j))).powi(2)
                };
                pairs.map(off).sum::<f64>().sqrt()
            };
            let all = triplets(&adalora, &base).into_values();
            let norms: Vec<f64> = all.flat_map(|[p, _, q]| [distance(vectors(p.transpose())), distance(vectors(q))]).collect();
            let expected = weight * norms.iter().sum::<f64>() / norms.len() as f64;
            let found = f64::from(adalora.penalty().unwrap().into_scalar::<f32>());
            prop_assert!((found / expected - 1.0).abs() <= f64::from(SAME_FUNCTION.0), "{} for {}", found, expected);
        }
    }
}

fn roberta() -> Base {
    testing::base("roberta-tiny", &testing::device())
}

fn data() -> Vec<Example> {
    let mut random = Random::new(1, "data");
    let example = |i: usize| {
        let ids = (0..4 + i % 9).map(|_| (4 + random.below(90)) as u32).collect();
        Example { ids, label: Some(Label::Class(i % 2)), ..Default::default() }
    };
    (0..24).map(example).collect()
}

/// Six maps, 24 triplets at first and 12 at last.
fn small() -> AdaLoraConfig {
    AdaLoraConfig::new(4, 2).with_alpha(6.0).with_schedule(3, 5, 1)
}

const STEPS: usize = 24;

fn settings() -> TrainConfig {
    TrainConfig::new(1e-2).with_batch_size(8).with_steps(STEPS)
}

fn start(config: &AdaLoraConfig, base: &Base) -> Trained<AdaLora> {
    Trained::new(config.init(base, 0).unwrap(), Head::classifier(base, 2, 0)).unwrap()
}

fn train(config: &AdaLoraConfig, base: &Base) -> Trained<AdaLora> {
    Trainer::new(settings()).run(base, start(config, base), &data(), None, &mut ()).unwrap()
}

/// A run step by step, as the trainer makes it.
fn begin(settings: &TrainConfig, base: &Base, trained: Trained<AdaLora>, data: &[Example]) -> Run<AdaLora> {
    let Trained { tuner, head, copies } = trained;
    let probe = Probe::new(&head, data).with_run(settings);
    let tuner = tuner.prepare(base, probe).unwrap();
    Run::new(settings, base.clone(), Trained { tuner, head, copies }).unwrap()
}

/// The values of the tensors whose names start and end so, one after the other.
fn column<T: Module>(module: &T, start: &str, end: &str) -> Vec<f32> {
    let all = tensors(module);
    let named = all.iter().filter(|(name, _)| name.starts_with(start) && name.ends_with(end));
    named.flat_map(|(_, data)| data.iter::<f32>().collect::<Vec<_>>()).collect()
}

#[test]
fn as_many_triplets_are_kept_as_the_budget_says() {
    let (base, data) = (roberta(), data());
    let mut run = begin(&settings(), &base, start(&small(), &base), &data);
    let mut last = vec![];
    for step in 1..=STEPS {
        run.step(&data).unwrap();
        let values = column(&run.trained, "tuner.triplets.", ".e");
        // From 24 after step 3 to 12 in step 19 along a cubic.
        let left = 1.0 - (step.clamp(3, 19) - 3) as f64 / 16.0;
        let budget = (12.0 * left.powi(3) + 12.0).floor() as usize;
        let kept: Vec<bool> = values.iter().map(|e| *e != 0.0).collect();
        assert_eq!(kept.iter().filter(|kept| **kept).count(), budget, "step {step}");
        assert!(step <= 19 || kept == last, "ranks move in step {step}");
        last = kept;
    }
}

#[test]
fn a_run_ends_with_the_ranks_that_it_kept() {
    let (base, folder) = (roberta(), tempfile::tempdir().unwrap());
    let trained = train(&small(), &base);
    assert_eq!(trainable(&trained.tuner), 12 * (24 + 24 + 1));
    let (first, again) = (folder.path().join("first"), folder.path().join("again"));
    save(&first, &small(), &trained, base.shape(), &Labels::default(), &[]).unwrap();
    let (config, loaded) = load::<AdaLoraConfig>(&first, &base).unwrap();
    assert_eq!(config.total_step, Some(STEPS));
    assert_eq!(config.count(base.shape()).unwrap(), 12 * (24 + 24 + 1));
    let logits = |t: &Trained<AdaLora>| t.valid().logits(&base, &batch(&base)).unwrap().into_data();
    assert_eq!(logits(&loaded), logits(&trained));
    save(&again, &config, &loaded, base.shape(), &Labels::default(), &[]).unwrap();
    let read = |dir: &Path| std::fs::read(dir.join("adapter_config.json")).unwrap();
    assert_eq!(read(&first), read(&again));
    // Trained on, it keeps its ranks.
    let more = Trainer::new(settings()).run(&base, loaded, &data(), None, &mut ()).unwrap();
    assert_eq!(trained_shapes(&more), trained_shapes(&trained));
}

/// A map that keeps no triplet ends as it was, E at 0, which is no fault of the run.
#[test]
fn a_map_may_lose_all_its_triplets() {
    let base = roberta();
    let config = AdaLoraConfig { target_modules: Sites::Pattern("all-linear".into()), ..small() };
    let config = AdaLoraConfig { init_r: 2, target_r: 1, ..config };
    let trained = train(&config, &base);
    let left = trained_shapes(&trained).keys().filter(|name| name.ends_with(".e")).count();
    assert!(left < trained_shapes(&start(&config, &base)).keys().filter(|name| name.ends_with(".e")).count());
}

fn trained_shapes(t: &Trained<AdaLora>) -> BTreeMap<String, Vec<usize>> {
    trained(&t.tuner)
}

#[test]
fn nothing_is_masked_where_the_target_is_the_start() {
    let base = roberta();
    let same = AdaLoraConfig::new(4, 4).with_schedule(3, 5, 2);
    let fixed = AdaLoraConfig { rank_pattern: Some(Default::default()), ..same.clone() };
    assert_eq!(tensors(&train(&same, &base)), tensors(&train(&fixed, &base)));
    assert_ne!(tensors(&train(&same, &base)), tensors(&train(&small(), &base)));
}

/// Stops after a step, as a kill would.
struct Stop(usize);

impl Observer for Stop {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        if report.step > self.0 { Err(Error::config("run", "stopped", "to go on")) } else { Ok(()) }
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_with_its_importances() {
    let (base, data, folder) = (roberta(), data(), tempfile::tempdir().unwrap());
    let dir = folder.path().join("checkpoints");
    let part = |stop: usize| {
        let checkpoints = Checkpoints { dir: dir.clone(), every: Some(1), resume: dir.exists() };
        let trainer = Trainer::new(settings()).with_checkpoints(checkpoints);
        trainer.run(&base, start(&small(), &base), &data, None, &mut Stop(stop))
    };
    // While ranks fall, and when they are found.
    for stop in [8, 21] {
        part(stop).unwrap_err();
    }
    assert_eq!(tensors(&part(STEPS).unwrap()), tensors(&train(&small(), &base)));
}

#[test]
fn a_run_is_that_of_the_reference() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adalora-run");
    let base = model("roberta-classify").base;
    let (config, start) = load::<AdaLoraConfig>(&dir.join("start"), &base).unwrap();
    let data = examples(&dir.join("inputs.safetensors"));
    let expected = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap();
    let rows = |name: &str| {
        let shape = expected.shape(name).unwrap().to_vec();
        let values: Vec<f32> = expected.read_f32(name, &shape).unwrap().iter().collect();
        values.chunks(values.len() / shape[0]).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let (losses, importances, patterns) = (rows("losses"), rows("importances"), rows("patterns"));
    let settings = TrainConfig {
        lr_scheduler_type: Schedule::Constant,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        shuffle: false,
        ..TrainConfig::new(5e-3).with_batch_size(8).with_steps(losses.len())
    };
    let mut run = begin(&settings, &base, start, &data);
    let (mut worst_loss, mut worst_importance) = (0f32, 0f32);
    for (step, loss) in losses.iter().enumerate() {
        let report = run.step(&data).unwrap();
        worst_loss = worst_loss.max((report.loss as f32 - loss[0]).abs());
        assert_eq!(
            column(&run.trained, "tuner.allocation.masks.", ""),
            patterns[step],
            "ranks after step {}",
            step + 1
        );
        let Some(expected) = importances.get(step) else { continue };
        let largest = expected.iter().copied().fold(0.0, f32::max);
        let found = scores(&run.trained, &base);
        let differ = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f32::max);
        worst_importance = worst_importance.max(differ);
    }
    println!("losses differ by {worst_loss:e}, importances by {worst_importance:e} of the largest");
    assert!(worst_loss <= REFERENCE_RUN.0 && worst_importance <= REFERENCE_RUN.0);

    // What PEFT saved of it gives PEFT's logits, with the ranks that were found here.
    let (saved, trained) = load::<AdaLoraConfig>(&dir.join("adapter"), &base).unwrap();
    let found = config.learned(&run.trained.tuner, base.shape());
    let pattern = |config: &AdaLoraConfig| {
        config.rank_pattern.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(pattern(&found), pattern(&saved));
    let batch = base.batch(&data.iter().collect::<Vec<_>>()).unwrap();
    let logits = |trained: &Trained<AdaLora>| trained.valid().logits(&base, &batch).unwrap().reshape([data.len(), 3]);
    let expected = expected.read_f32("logits", &[data.len(), 3]).unwrap();
    let expected = Tensor::<2>::from_data(expected, base.device());
    assert_close(logits(&trained), expected.clone(), REFERENCE, "logits of the saved adapter");
    assert_close(logits(&run.trained), expected, REFERENCE_RUN, "logits after the run");
}

/// I U of E, and the means of I U over the column of P and the row of Q, of every triplet.
fn scores(trained: &Trained<AdaLora>, base: &Base) -> Vec<f32> {
    let values = tensors(trained);
    let sites = values.keys().filter_map(|name| name.strip_prefix("tuner.allocation.sensitivity.")?.strip_suffix(".e"));
    let score = |site: &str| {
        let tensor = |kind: &str, leaf: &str| {
            let data = values[&format!("tuner.allocation.{kind}.{site}.{leaf}")].clone();
            Tensor::<2>::from_data(data, base.device())
        };
        let [p, e, q] = ["p", "e", "q"].map(|leaf| tensor("sensitivity", leaf) * tensor("uncertainty", leaf));
        (e + p.mean_dim(0).transpose() + q.mean_dim(1)).into_data().iter::<f32>().collect::<Vec<_>>()
    };
    sites.flat_map(score).collect()
}

/// A map that has lost its last rank is a matrix without rows in PEFT's files.
#[test]
fn empty_matrices_of_peft_are_read() {
    let (base, folder) = (roberta(), tempfile::tempdir().unwrap());
    let dir = folder.path().join("adapter");
    let names = |layer: usize| format!("roberta.encoder.layer.{layer}.attention.self.query.lora_E");
    let pattern = [(names(1), vec![false; 4]), (names(2), vec![true, false, false, true])];
    let config = AdaLoraConfig { rank_pattern: Some(pattern.into_iter().collect()), ..small() };
    let trained = Trained::new(random(&config, &base, 3), Head::classifier(&base, 2, 0)).unwrap();
    save(&dir, &config, &trained, base.shape(), &Labels::default(), &[]).unwrap();
    let path = dir.join("adapter_model.safetensors");
    let file = Checkpoint::open_file(&path).unwrap();
    let mut all: BTreeMap<String, TensorData> = file
        .names()
        .map(|name| {
            let dims = file.shape(name).unwrap();
            (name.to_string(), file.read_f32(name, dims).unwrap())
        })
        .collect();
    let prefix = "base_model.model.roberta.encoder.layer.1.attention.self.query";
    for (leaf, dims) in [("lora_A", [0, 24]), ("lora_B", [24, 0]), ("lora_E", [0, 1])] {
        assert!(all.insert(format!("{prefix}.{leaf}"), TensorData::new(Vec::<f32>::new(), dims)).is_none());
    }
    write_safetensors(&path, &all).unwrap();
    let (_, loaded) = load::<AdaLoraConfig>(&dir, &base).unwrap();
    assert_eq!(tensors(&loaded), tensors(&trained));
}

#[test]
fn counts_are_the_published_ones() {
    let (base, large) = (Shape::named("roberta-base").unwrap(), Shape::named("roberta-large").unwrap());
    let count = |config: AdaLoraConfig, shape: &Shape| config.count(shape).unwrap();
    assert_eq!(count(AdaLoraConfig::new(12, 8), &base), 442_656);
    assert_eq!(count(AdaLoraConfig::new(12, 8), &base) + Head::count(&base, 2), 1_034_786);
    assert_eq!(count(AdaLoraConfig::new(12, 8), &large) + Head::count(&large, 2), 2_231_874);
    let all = Sites::Pattern("all-linear".into());
    assert_eq!(count(AdaLoraConfig::new(12, 8).with_sites(all.clone()), &base), 1_991_520);
    let llama = Shape::named("llama-7b").unwrap();
    assert_eq!(count(AdaLoraConfig::new(12, 8), &llama), 6_292_224);
    assert_eq!(count(AdaLoraConfig::new(12, 8).with_sites(all), &llama), 29_985_408);
}

#[test]
fn impossible_settings_are_named() {
    let base = roberta();
    let told = |config: AdaLoraConfig| config.init(&base, 0).map(|_| ()).unwrap_err().to_string();
    let good = AdaLoraConfig::default();
    for (bad, key) in [
        (AdaLoraConfig::new(0, 0), "init_r: 0 "),
        (AdaLoraConfig::new(3, 4), "target_r: 4 "),
        (AdaLoraConfig::new(3, 0), "target_r: 0 "),
        (good.clone().with_alpha(0.0), "lora_alpha: 0 "),
        (good.clone().with_alpha(f64::NAN), "lora_alpha: NaN "),
        (good.clone().with_dropout(1.0), "lora_dropout: 1 "),
        (good.clone().with_schedule(0, 0, 0), "deltaT: 0 "),
        (good.clone().with_penalty(-1.0), "orth_reg_weight: -1 "),
        (AdaLoraConfig { beta1: 1.0, ..good.clone() }, "beta1: 1 "),
        (AdaLoraConfig { beta2: 0.0, ..good.clone() }, "beta2: 0 "),
        (AdaLoraConfig { total_step: Some(8), ..good.clone().with_schedule(3, 5, 1) }, "tinit and tfinal: 3 and 5 "),
        (good.clone().with_sites(Part::CrossQuery), "cross_query"),
    ] {
        let message = told(bad);
        assert!(message.contains(key), "{key} is not in: {message}");
    }
    let named = |name: &str, kept: Vec<bool>| {
        told(AdaLoraConfig { rank_pattern: Some([(name.to_string(), kept)].into_iter().collect()), ..good.clone() })
    };
    assert!(named("encoder.lora_E", vec![true; 12]).contains("layer.0.attention.self.query.lora_E"));
    let query = "roberta.encoder.layer.0.attention.self.query.lora_E";
    assert!(named(query, vec![true; 3]).contains("3 values"));

    let start = |config: AdaLoraConfig| {
        let trained = start(&config, &base);
        Trainer::new(settings()).run(&base, trained, &data(), None, &mut ()).map(|_| ()).unwrap_err().to_string()
    };
    let long = start(AdaLoraConfig { total_step: Some(25), ..good.clone() });
    assert!(long.contains("total_step: 25 ") && long.contains("24 steps"), "{long}");
    let late = start(good.with_schedule(12, 12, 1));
    assert!(late.contains("tinit and tfinal: 12 and 12 ") && late.contains("24 steps"), "{late}");
}
