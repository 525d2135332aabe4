use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_core::io::Pretrained;
use peft_core::testing::golden::model;
use peft_core::testing::recorded::Recorded;
use peft_core::testing::tolerances::{MERGED, REFERENCE, REFERENCE_RUN, REFERENCE_TRAJECTORY, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, batch, device, difference, examples, randomized, states};
use peft_core::train::{Probe, Run, TrainConfig, Trainer};
use peft_core::view::tensors;
use peft_core::{Bare, Base, Head, Method, Part, Procedure, Shape, Sites, Trained, random::Random, testing};
use peft_reparam::{LoraConfig, LoraPrune, LoraPruneConfig};
use proptest::prelude::*;

use super::{bases, run, with};

const STEPS: usize = 10;

fn config() -> LoraPruneConfig {
    LoraPruneConfig::new(2).with_alpha(5.0).with_dropout(0.0).with_ratio(0.5, 2)
}

fn settings() -> TrainConfig {
    TrainConfig { weight_decay: 0.1, micro_rows: 12, ..TrainConfig::new(1e-2).with_batch_size(5).with_steps(STEPS) }
}

fn random(config: &LoraPruneConfig, base: &Base, seed: u64) -> LoraPrune {
    randomized(&config.init(base, seed).unwrap(), seed)
}

fn masks(tuner: &LoraPrune) -> BTreeMap<String, Vec<f32>> {
    let all = tensors(tuner).into_iter().filter(|(name, _)| name.starts_with("masks."));
    all.map(|(name, data)| (name, data.iter().collect())).collect()
}

/// With every other group or number of each mask gone, begun at a place that is drawn, so that as many are left in each.
fn masked(tuner: LoraPrune, seed: u64) -> LoraPrune {
    let all = tensors(&tuner).into_iter().filter(|(name, _)| name.starts_with("masks."));
    let all: Vec<(String, TensorData)> = all.collect();
    let values = all.into_iter().map(|(name, data)| {
        let (count, dims) = (data.num_elements(), data.shape().clone());
        let order = Random::new(seed, &name).permutation(count);
        let mut kept = vec![1f32; count];
        order.into_iter().take(count.div_ceil(2).min(count - 1)).for_each(|i| kept[i] = 0.0);
        (name, TensorData::new(kept, dims))
    });
    with(tuner, values)
}

fn start<M: Method>(config: &M, base: &Base) -> Trained<M::Tuner> {
    Trained::new(config.init(base, 1).unwrap(), Head::classifier(base, 2, 3)).unwrap()
}

fn begin(config: &LoraPruneConfig, base: &Base) -> Run<LoraPrune> {
    let (Trained { tuner, head, copies }, settings, data) = (start(config, base), settings(), examples(base));
    let tuner = tuner.prepare(base, Probe::new(&head, &data).with_run(&settings)).unwrap();
    Run::new(&settings, base.clone(), Trained { tuner, head, copies }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]

    #[test]
    fn masked_groups_merge(seed: u64, structured: bool) {
        for base in bases() {
            let config = if structured { config() } else { config().unstructured() };
            let whole = random(&config, &base, seed);
            let tuner = masked(whole.clone(), seed).valid();
            let batch = batch(&base);
            let found = run(&tuner, &base, &batch);
            assert_close(run(&Bare {}, &base.merged(&tuner), &batch), found.clone(), MERGED, "merged");
            prop_assert!(difference(&found.into_data(), &run(&whole, &base, &batch).into_data()) > 10.0 * MERGED.0);
        }
    }

    /// A head or channel that is masked gives nothing, so that a model without it is the same function.
    #[test]
    fn the_compact_model_is_the_masked_one(seed: u64) {
        for base in bases() {
            let llama = base.shape().layers > 0 && base.shape().kv_heads() != base.shape().heads;
            let all = config().with_all_layers();
            let config = if llama { all } else { all.with_sites(Part::Up | Part::Down) };
            let tuner = masked(random(&config, &base, seed), seed).valid();
            let small = tuner.compacted(&base).unwrap();
            let (before, after) = (base.shape(), small.shape());
            prop_assert!(after.intermediate == before.intermediate / 2 && after.count() < before.count());
            prop_assert!(!llama || after.kv_heads() < before.kv_heads());
            let batch = batch(&base);
            assert_close(run(&Bare {}, &small, &batch), run(&tuner, &base, &batch), MERGED, "compact");
        }
    }
}

#[test]
fn as_many_groups_go_as_the_ratio_says() {
    for structured in [true, false] {
        let base = base("roberta-tiny", &device());
        let config = if structured { config() } else { config().unstructured().with_sites(Part::Value) };
        let mut run = begin(&config, &base);
        let mut last = masks(&run.trained.tuner);
        for step in 0..STEPS {
            run.step(&examples(&base)).unwrap();
            let now = masks(&run.trained.tuner);
            // Choices after the steps 2, 4, 6, 8 and 9, counted from 0, from 0 at 1 to all of the ratio at 9.
            let share = match step {
                2 | 4 | 6 | 8 => Some(1.0 - (1.0 - (step as f64 - 1.0) / 8.0).powi(3)),
                9 => Some(1.0),
                _ => None,
            };
            for (name, mask) in &now {
                let gone = mask.iter().filter(|m| **m == 0.0).count();
                let before = last[name].iter().filter(|m| **m == 0.0).count();
                let expected = share.map_or(before, |share| (0.5 * share * mask.len() as f64 + 1e-9) as usize);
                assert_eq!(gone, expected, "{name} after step {step}");
                assert!(mask.iter().zip(&last[name]).all(|(now, before)| now <= before), "{name}: one came back");
            }
            last = now;
        }
        // Of three layers the last is spared.
        assert_eq!(last.len(), if structured { 4 } else { 2 });
        assert!(last.keys().all(|name| !name.contains("encoder.2.")));
        assert!(last.values().all(|mask| mask.contains(&0.0)));
    }
}

#[test]
fn with_nothing_to_prune_a_run_is_that_of_lora() {
    let base = base("roberta-tiny", &device());
    let all = Sites::Pattern("all-linear".into());
    let lora = LoraConfig::new(2).with_alpha(5.0).with_dropout(0.1).with_sites(all);
    let pruned = config().with_dropout(0.1).with_ratio(0.0, 2);
    let data = examples(&base);
    let train = |name: &str| match name {
        "lora" => {
            tensors(&Trainer::new(settings()).run(&base, start(&lora, &base), &data, None, &mut ()).unwrap().tuner)
        }
        _ => tensors(&Trainer::new(settings()).run(&base, start(&pruned, &base), &data, None, &mut ()).unwrap().tuner),
    };
    let ours: BTreeMap<_, _> =
        train("loraprune").into_iter().filter(|(name, _)| name.starts_with("factors.")).collect();
    assert_eq!(ours, train("lora"));
    let other = Trainer::new(settings()).run(&base, start(&config(), &base), &data, None, &mut ()).unwrap();
    assert_ne!(ours, tensors(&other.tuner).into_iter().filter(|(name, _)| name.starts_with("factors.")).collect());
}

fn golden_run(case: &str, config: &LoraPruneConfig) {
    let golden =
        Recorded::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case), "roberta-classify");
    let losses: Vec<f32> = golden.expected("losses").iter().collect();
    let settings = TrainConfig {
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        adam_epsilon: 1e-3,
        shuffle: false,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(losses.len()).with_seed(3)
    };
    let mut run = golden.begin(&settings, config.init(&golden.base, 3).unwrap());
    let found: Vec<f32> = losses.iter().map(|_| run.step(&golden.examples).unwrap().loss as f32).collect();
    golden.compare("losses", &TensorData::new(found, [losses.len()]), REFERENCE);
    let all = tensors(&run.trained.tuner);
    golden.compare_all("mask", &all, |name| peft_core::Key::plain(name), SAME_FUNCTION);
    for (name, data) in all.iter().filter_map(|(name, data)| Some((name.strip_prefix("importances.")?, data))) {
        let expected = golden.expected(&format!("importance.{name}"));
        let largest = expected.iter::<f32>().fold(0.0, f32::max);
        assert!(difference(data, &expected) <= REFERENCE_RUN.0 * largest, "{name}");
    }
    let all = all.into_iter().filter(|(name, _)| name.starts_with("factors.")).collect();
    golden.compare_all("final", &all, |name| config.key(name, golden.base.shape()), REFERENCE_TRAJECTORY);
    golden.compare_logits("logits", &golden.base, &run.trained, REFERENCE_TRAJECTORY);
}

#[test]
fn a_run_of_loraprune_is_that_of_a_derivation_in_float64() {
    let config = LoraPruneConfig { cooldown_iters: 0.2, ..config().with_ratio(0.5, 4) };
    golden_run("loraprune-run", &config);
    golden_run("loraprune-unstructured-run", &config.unstructured().with_sites(Part::Value | Part::Down));
}

/// The smaller model as a directory that transformers loads.
#[test]
fn a_compact_model_is_written_and_read() {
    let llama = model("llama-classify");
    let head = llama.head.clone().unwrap();
    let config = config().with_all_layers();
    let tuner = masked(random(&config, &llama.base, 4), 4).valid();
    let small = tuner.compacted(&llama.base).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small");
    llama.save(&path, &small, &head, &[]).unwrap();
    let read = Pretrained::open(&path.to_string_lossy(), &device()).unwrap();
    assert_eq!(read.base.shape().count(), small.shape().count());
    assert_eq!(states(&Bare {}, &read.base).into_data(), states(&Bare {}, &small).into_data());
    let size = |base: &Base| base.shape().places().iter().map(peft_core::Place::count).sum::<usize>();
    assert!(size(&read.base) < size(&llama.base));
}

#[test]
fn counts_are_those_of_lora() {
    let count = |name: &str| LoraPruneConfig::new(8).count(&Shape::named(name).unwrap()).unwrap();
    assert_eq!([count("roberta-base"), count("llama-7b")], [1_327_104, 19_988_480]);
}

#[test]
fn impossible_settings_are_named() {
    let base = base("roberta-tiny", &device());
    let good = LoraPruneConfig::default;
    for (config, key) in [
        (LoraPruneConfig::new(0), "r: 0 "),
        (good().with_alpha(0.0), "lora_alpha: 0 "),
        (good().with_dropout(1.0), "lora_dropout: 1 "),
        (good().unstructured().with_dropout(0.1), "lora_dropout: 0.1 "),
        (good().with_ratio(1.0, 1), "ratio: 1 "),
        (good().with_ratio(-0.1, 1), "ratio: -0.1 "),
        (good().with_ratio(f64::NAN, 1), "ratio: NaN "),
        (good().with_ratio(0.5, 0), "prune_freq: 0 "),
        (LoraPruneConfig { warmup_iters: 0.5, cooldown_iters: 0.5, ..good() }, "warmup_iters: 0.5 "),
        (LoraPruneConfig { cooldown_iters: -0.1, ..good() }, "cooldown_iters: -0.1 "),
        (good().with_sites(Part::CrossQuery), "cross_query"),
    ] {
        let message = config.init(&base, 0).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(key), "{key} is not in: {message}");
    }
    let told = |tuner: LoraPrune| tuner.compacted(&base).map(|_| ()).unwrap_err().to_string();
    let uneven = told(masked(random(&config(), &base, 1), 1));
    assert!(uneven.contains("masks: ") && uneven.contains("as many in each layer"), "{uneven}");
    let heads = told(masked(random(&config().with_all_layers(), &base, 1), 1));
    assert!(heads.contains("1 of 3 heads left") && heads.contains("LLaMA"), "{heads}");
    assert!(told(random(&config().unstructured(), &base, 1)).contains("structured: false"));
    let probe = start(&config(), &base);
    let outside = probe.tuner.prepare(&base, Probe::new(&probe.head, &examples(&base))).map(|_| ()).unwrap_err();
    assert!(outside.to_string().contains("ratio: 0.5 "), "{outside}");
    let _: Tensor<3> = testing::states(&random(&config(), &base, 1), &base);
}
