use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::io::peft::{Labels, load, save};
use peft_core::random::Noise;
use peft_core::testing::recorded::Recorded;
use peft_core::testing::tolerances::{REFERENCE_RUN, REFERENCE_TRAJECTORY, SAME_FUNCTION, SAME_GRADIENT};
use peft_core::testing::{
    assert_close, base, batch, conformance::loss, device, difference, examples, golden::named, randomized, states,
};
use peft_core::train::{Checkpoints, Observer, Probe, Run, StepReport, TrainConfig, Trainer};
use peft_core::view::{shapes, tensors, trainable};
use peft_core::{
    Adapter, Base, Error, Head, Method, Part, Procedure, Result, Shape, Site, Trained, Tuner, Weight, split_name,
};
use peft_reparam::{AdaLoraConfig, IncreLora, IncreLoraConfig};
use proptest::prelude::*;

use super::{bases, with};

const STEPS: usize = 16;

/// Six maps of rank 1, which grow by 2 two at a time: 6, 10, 12.
fn config() -> IncreLoraConfig {
    let config = IncreLoraConfig { target_r: 2, ..IncreLoraConfig::default() };
    config.with_alpha(5.0).with_growth(2, 2).with_schedule(2, 3).with_sites(Part::Query | Part::Down)
}

fn settings() -> TrainConfig {
    TrainConfig { weight_decay: 0.1, micro_rows: 12, ..TrainConfig::new(2e-2).with_batch_size(5).with_steps(STEPS) }
}

fn roberta() -> Base {
    base("roberta-tiny", &device())
}

fn start<M: Method>(config: &M, base: &Base) -> Trained<M::Tuner> {
    Trained::new(config.init(base, 1).unwrap(), Head::classifier(base, 2, 3)).unwrap()
}

/// A run step by step, as the trainer makes it.
fn begin<M: Method>(settings: &TrainConfig, base: &Base, config: &M) -> Run<M::Tuner> {
    let Trained { tuner, head, copies } = start(config, base);
    let data = examples(base);
    let tuner = tuner.prepare(base, Probe::new(&head, &data).with_run(settings)).unwrap();
    Run::new(settings, base.clone(), Trained { tuner, head, copies }).unwrap()
}

/// The run after so many steps.
fn after(steps: usize, config: &IncreLoraConfig, base: &Base) -> Run<IncreLora> {
    let mut run = begin(&settings(), base, config);
    for _ in 0..steps {
        run.step(&examples(base)).unwrap();
    }
    run
}

/// How many triplets each map has, those to come included.
fn sizes(tuner: &IncreLora) -> BTreeMap<Site, usize> {
    let mut sizes = BTreeMap::new();
    for (name, dims) in shapes(tuner).into_iter().filter(|(name, _)| name.ends_with(".e")) {
        *sizes.entry(split_name(&name).1).or_default() += dims[0];
    }
    sizes
}

fn ranks(config: &IncreLoraConfig, tuner: &IncreLora, base: &Base) -> Vec<usize> {
    config.learned(tuner, base.shape()).rank_pattern.unwrap().into_values().collect()
}

#[test]
fn ranks_grow_to_the_budget() {
    let base = roberta();
    let mut run = begin(&settings(), &base, &config());
    let mut last = vec![1; 6];
    for step in 1..=STEPS {
        run.step(&examples(&base)).unwrap();
        let found = ranks(&config(), &run.trained.tuner, &base);
        assert!(found.iter().zip(&last).all(|(now, before)| now >= before), "{found:?} after {last:?}");
        // Steps count from 0: it grows in those of 3 and 6.
        let expected = if step <= 3 {
            6
        } else if step <= 6 {
            10
        } else {
            12
        };
        assert_eq!(found.iter().sum::<usize>(), expected, "step {step}");
        let to_come = if step <= 6 { 12 } else { 0 };
        assert_eq!(sizes(&run.trained.tuner).values().sum::<usize>(), expected + to_come, "step {step}");
        last = found;
    }
    let trained =
        Trainer::new(settings()).run(&base, start(&config(), &base), &examples(&base), None, &mut ()).unwrap();
    assert_eq!(ranks(&config(), &trained.tuner, &base), last);
    let learned = config().learned(&trained.tuner, base.shape());
    assert_eq!(trainable(&trained.tuner), learned.count(base.shape()).unwrap());
}

#[test]
fn a_growth_scales_what_was_there() {
    let base = roberta();
    let before = after(3, &config(), &base).trained.tuner;
    let grown = after(4, &config(), &base).trained.tuner;
    let (old, new) = (ranks(&config(), &before, &base), ranks(&config(), &grown, &base));
    // With what has come, and what is to come, at E = 0.
    let without = |tuner: &IncreLora| {
        let late = tensors(tuner).into_iter().filter(|(name, _)| name.ends_with(".e") && !name.ends_with(".0.e"));
        with(tuner.clone(), late.map(|(name, _)| (name, TensorData::new(vec![0f32], [1, 1]))))
    };
    let update = |tuner: &IncreLora, site: Site| {
        let zero = Weight::Dense(Tensor::zeros(base.shape().linear_dims(site), base.device()));
        let tuner = without(tuner).valid();
        IncreLoraConfig::merge(&tuner).unwrap().weight(site, &zero).unwrap()
    };
    let first = tensors(&before)
        .into_iter()
        .filter(|(name, _)| name.starts_with("maps.") && split_name(name).2.starts_with("0."));
    let first = with(grown, first);
    for (site, (old, new)) in sizes(&before).into_keys().zip(old.into_iter().zip(new)) {
        let expected = update(&before, site) * ((old as f64 + 1e-5) / (new as f64 + 1e-5));
        assert_close(update(&first, site), expected, SAME_FUNCTION, "an update after a growth");
    }
}

#[test]
fn what_is_to_come_is_left_out_at_the_end() {
    let base = roberta();
    let tuner = after(2, &config(), &base).trained.tuner;
    let coming = |tuner: &IncreLora, e: f32| {
        let late = tensors(tuner).into_iter().filter(|(name, _)| name.ends_with(".1.e") || name.ends_with(".2.e"));
        let late: Vec<String> = late.map(|(name, _)| name).collect();
        assert_eq!(late.len(), 12);
        with(tuner.clone(), late.into_iter().map(|name| (name, TensorData::new(vec![e], [1, 1]))))
    };
    let finished = tuner.clone().finish(&base).unwrap();
    assert_close(states(&finished, &base), states(&coming(&tuner, 0.0), &base), SAME_FUNCTION, "at the end");
    assert!(sizes(&finished).values().all(|size| *size == 1));
    let other = difference(&states(&coming(&tuner, 1.0), &base).into_data(), &states(&finished, &base).into_data());
    assert!(other > 10.0 * SAME_FUNCTION.0, "what is to come does nothing");
    // Its E stays while its P and Q are trained.
    let of = |step: usize, leaf: &str| tensors(&after(step, &config(), &base).trained.tuner)[leaf].clone();
    let names = ["maps.encoder.0.query.1.e", "maps.encoder.0.query.1.p"];
    assert_eq!(of(1, names[0]), of(3, names[0]));
    assert_ne!(of(1, names[1]), of(3, names[1]));
}

#[test]
fn with_nothing_to_grow_it_is_adalora() {
    let base = roberta();
    let still = IncreLoraConfig { init_r: 2, ..config() };
    let adalora = AdaLoraConfig::new(2, 2).with_alpha(5.0).with_penalty(0.3).with_sites(Part::Query | Part::Down);
    let mut ours = begin(&settings(), &base, &still);
    let mut theirs = begin(&settings(), &base, &adalora);
    let renamed = |tuner: &IncreLora| {
        let all = tensors(tuner).into_iter().filter(|(name, _)| name.starts_with("maps."));
        let renamed = |name: &str| {
            let (_, site, leaf) = split_name(name);
            format!("triplets.{site}.{}", leaf.trim_start_matches("0."))
        };
        all.map(|(name, data)| (renamed(&name), data)).collect::<BTreeMap<_, _>>()
    };
    theirs.trained.tuner = with(theirs.trained.tuner.clone(), renamed(&ours.trained.tuner));
    for step in 0..5 {
        let [a, b] = [ours.step(&examples(&base)).unwrap().loss, theirs.step(&examples(&base)).unwrap().loss];
        assert!((a - b).abs() <= f64::from(SAME_FUNCTION.0), "step {step}: {a} and {b}");
    }
    assert_close(states(&ours.trained.tuner, &base), states(&theirs.trained.tuner, &base), SAME_FUNCTION, "five steps");
}

#[test]
fn new_triplets_warm_up() {
    let base = roberta();
    let warm = TrainConfig { warmup_steps: 4, ..settings() };
    let mut run = begin(&warm, &base, &config());
    let mut growths = BTreeMap::new();
    for step in 0..STEPS {
        run.step(&examples(&base)).unwrap();
        let tuner = &run.trained.tuner;
        for name in tensors(tuner).into_keys().filter(|name| name.starts_with("maps.")) {
            let (number, leaf) = split_name(&name).2.split_once('.').unwrap();
            if number == "0" {
                assert_eq!(tuner.rate(&name, 1.0), 1.0);
            } else if leaf != "e" {
                let born = *growths.entry(name.clone()).or_insert(step);
                assert_eq!(
                    tuner.rate(&name, 2.0),
                    2.0 * ((step - born) as f64 / 4.0).min(1.0),
                    "{name} in step {step}"
                );
            } else if step == 3 && sizes(tuner)[&split_name(&name).1] == 5 && ["1", "2"].contains(&number) {
                // E of what has come with this step is only now to be trained.
                assert_eq!(tuner.rate(&name, 2.0), 0.0);
            }
        }
    }
    assert!(growths.values().any(|born| *born == 0) && growths.values().any(|born| *born == 3));
}

/// The gradients of one step are those of the factors, whether the update stands between or not.
#[test]
fn the_product_is_as_by_the_factors() {
    let base = roberta();
    let run = after(4, &config(), &base);
    let tuner = randomized(&run.trained.tuner, 5);
    let noise = Noise { seed: 0, step: 0, samples: (0..5u32).collect() };
    let view = Adapter::view(&tuner, &base, Some(&noise)).unwrap().unwrap();
    assert!(Adapter::view(&tuner, &base, None).unwrap().is_none());
    assert_close(states(&view, &base), states(&tuner, &base), SAME_FUNCTION, "the update at hand");
    let gradients = |by: &dyn Fn() -> Tensor<1>| named(&tuner, &GradientsParams::from_grads(by().backward(), &tuner));
    let batch = batch(&base);
    let ours = gradients(&|| loss(view.run(&base, &batch).unwrap()));
    let theirs = gradients(&|| loss(tuner.run(&base, &batch).unwrap()));
    assert_eq!(ours.len(), theirs.len());
    for (name, gradient) in theirs {
        let largest = gradient.iter::<f32>().map(f32::abs).fold(0.0, f32::max);
        assert!(difference(&ours[&name], &gradient) <= SAME_GRADIENT.0 * largest, "{name}");
    }
}

/// Stops after a step, as a kill would.
struct Stop(usize);

impl Observer for Stop {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        if report.step > self.0 { Err(Error::config("run", "stopped", "to go on")) } else { Ok(()) }
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_with_the_ranks_that_it_has() {
    let (base, folder) = (roberta(), tempfile::tempdir().unwrap());
    let (dir, settings) = (folder.path().join("checkpoints"), TrainConfig { warmup_steps: 2, ..settings() });
    let run = |checkpoints: Option<Checkpoints>, stop: usize| {
        let trainer = Trainer::new(settings.clone());
        let trainer = match checkpoints {
            Some(checkpoints) => trainer.with_checkpoints(checkpoints),
            None => trainer,
        };
        trainer.run(&base, start(&config(), &base), &examples(&base), None, &mut Stop(stop))
    };
    // After each kind of step: the first, one between, each growth, and when ranks are found.
    for stop in [1, 2, 4, 5, 7, 9] {
        run(Some(Checkpoints { dir: dir.clone(), every: Some(1), resume: dir.exists() }), stop).unwrap_err();
    }
    let taken_up = run(Some(Checkpoints { dir: dir.clone(), every: Some(1), resume: true }), STEPS).unwrap();
    assert_eq!(tensors(&taken_up), tensors(&run(None, STEPS).unwrap()));
    let path = folder.path().join("adapter");
    save(&path, &config(), &taken_up, base.shape(), &Labels::default(), &[]).unwrap();
    let (found, loaded) = load::<IncreLoraConfig>(&path, &base).unwrap();
    assert_eq!(found.count(base.shape()).unwrap(), trainable(&loaded.tuner));
    assert_eq!(states(&loaded.tuner, &base).into_data(), states(&taken_up.tuner, &base).into_data());
    // Trained on, it keeps its ranks.
    let more = Trainer::new(settings.clone()).run(&base, loaded, &examples(&base), None, &mut ()).unwrap();
    assert_eq!(shapes(&more.tuner), shapes(&taken_up.tuner));
}

#[test]
fn a_run_is_that_of_a_derivation_in_float64() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/increlora-run");
    let golden = Recorded::open(dir, "roberta-classify");
    let config = IncreLoraConfig { init_r: 2, target_r: 3, beta2: 0.8, ..IncreLoraConfig::default() };
    let config = config.with_alpha(5.0).with_growth(2, 4).with_schedule(3, 5);
    let losses: Vec<f32> = golden.expected("losses").iter().collect();
    let settings = TrainConfig {
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        adam_epsilon: 1e-3,
        shuffle: false,
        warmup_steps: 3,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(losses.len()).with_seed(3)
    };
    let rows = |name: &str| {
        golden.expected(name).iter::<f32>().collect::<Vec<_>>().chunks(18).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let (scores, expected) = (rows("scores"), rows("ranks"));
    let mut run = golden.begin(&settings, config.init(&golden.base, 3).unwrap());
    let (mut found, mut worst) = (vec![], 0f32);
    for (step, expected) in expected.iter().enumerate() {
        let growing = tensors(&run.trained).contains_key("tuner.scores.sensitivity");
        found.push(run.step(&golden.examples).unwrap().loss as f32);
        let ranks: Vec<f32> = ranks(&config, &run.trained.tuner, &golden.base).into_iter().map(|r| r as f32).collect();
        assert_eq!(ranks, *expected, "ranks after step {step}");
        assert_eq!(growing, step < scores.len());
        let all = tensors(&run.trained);
        // The last scores are not kept.
        if let (Some(scores), Some(mean)) = (scores.get(step), all.get("tuner.scores.sensitivity")) {
            let largest = scores.iter().copied().fold(0.0, f32::max);
            let deviation = all["tuner.scores.uncertainty"].iter::<f32>();
            let score = mean.iter::<f32>().zip(deviation).map(|(mean, deviation)| mean * deviation);
            worst = score.zip(scores).map(|(a, b)| (a - b).abs() / largest).fold(worst, f32::max);
        }
    }
    println!("scores differ by {worst:e} of the largest");
    assert!(worst <= REFERENCE_RUN.0);
    golden.compare("losses", &TensorData::new(found, [losses.len()]), REFERENCE_TRAJECTORY);
    let Trained { tuner, head, copies } = run.trained;
    let trained = Trained { tuner: tuner.finish(&golden.base).unwrap(), head, copies };
    let key = |name: &str| config.key(name, golden.base.shape());
    golden.compare_all("final", &tensors(&trained.tuner), key, REFERENCE_TRAJECTORY);
    golden.compare_logits("logits", &golden.base, &trained, REFERENCE_TRAJECTORY);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Of any schedule that fits the last growth leaves a step, and one that does not fit is refused.
    #[test]
    fn every_rank_is_trained(warmup in 0..6usize, interval in 1..5usize, top_h in 1..8usize, steps in 2..30usize) {
        let base = roberta();
        let config = config().with_growth(top_h, 1).with_schedule(warmup, interval);
        let trained = Trainer::new(settings().with_steps(steps)).run(&base, start(&config, &base), &examples(&base), None, &mut ());
        let first = (warmup / interval + 1) * interval;
        let fits = first + (6usize.div_ceil(top_h) - 1) * interval + 1 < steps;
        prop_assert_eq!(trained.is_ok(), fits);
        if let Ok(trained) = trained {
            prop_assert_eq!(ranks(&config, &trained.tuner, &base).iter().sum::<usize>(), 12);
            let ends = tensors(&trained.tuner).into_iter().filter(|(name, _)| name.ends_with(".e"));
            prop_assert!(ends.flat_map(|(_, e)| e.iter::<f32>().collect::<Vec<_>>()).all(|e| e != 1e-5 && e != 0.0));
        }
    }
}

#[test]
fn counts_are_the_closed_form() {
    let count = |name: &str, config: IncreLoraConfig| config.count(&Shape::named(name).unwrap()).unwrap();
    let fixed = |r| IncreLoraConfig { init_r: r, ..IncreLoraConfig::new(r) };
    assert_eq!(count("roberta-base", fixed(2)), 331_920);
    assert_eq!(count("llama-7b", fixed(2)), 4_997_568);
    assert_eq!(count("roberta-base", IncreLoraConfig::new(2)), 331_920 / 2);
    assert!(bases().len() == 4);
}

#[test]
fn impossible_settings_are_named() {
    let base = roberta();
    let told = |config: IncreLoraConfig| config.init(&base, 0).map(|_| ()).unwrap_err().to_string();
    let good = IncreLoraConfig::default();
    for (bad, key) in [
        (IncreLoraConfig { init_r: 0, ..good.clone() }, "init_r: 0 "),
        (IncreLoraConfig::new(0), "target_r: 0 "),
        (IncreLoraConfig { init_r: 3, ..good.clone() }, "target_r: 2 "),
        (IncreLoraConfig::new(25), "target_r: 25 "),
        (good.clone().with_growth(0, 1), "top_h: 0 "),
        (good.clone().with_growth(1, 0), "incre_r: 0 "),
        (good.clone().with_schedule(0, 0), "incre_interval: 0 "),
        (good.clone().with_alpha(0.0), "lora_alpha: 0 "),
        (good.clone().with_dropout(1.0), "lora_dropout: 1 "),
        (IncreLoraConfig { beta1: 1.0, ..good.clone() }, "beta1: 1 "),
        (IncreLoraConfig { beta2: 0.0, ..good.clone() }, "beta2: 0 "),
        (IncreLoraConfig { orth_reg_weight: -1.0, ..good.clone() }, "orth_reg_weight: -1 "),
        (good.clone().with_sites(Part::CrossQuery), "cross_query"),
        (
            IncreLoraConfig { rank_pattern: Some([("encoder".to_string(), 2)].into_iter().collect()), ..good.clone() },
            "layer.0.attention.self.query",
        ),
    ] {
        let message = told(bad);
        assert!(message.contains(key), "{key} is not in: {message}");
    }
    let short = Trainer::new(settings().with_steps(7));
    let message = short.run(&base, start(&config(), &base), &examples(&base), None, &mut ()).unwrap_err().to_string();
    assert!(
        message.contains("init_warmup and incre_interval: 2, and 3 steps") && message.contains("7 steps"),
        "{message}"
    );
}
