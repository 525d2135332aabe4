use burn::tensor::{Tensor, TensorData};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, examples, randomized, states};
use peft_core::train::{Probe, TrainConfig, Trainer};
use peft_core::view::tensors;
use peft_core::{AnyTuner, Base, Head, Method, Procedure, Source, Trained};
use peft_reparam::{Lora, LoraConfig, LoraHub, LoraHubConfig};
use proptest::prelude::*;

use super::{bases, run, with};

const MODULES: usize = 3;

fn module() -> LoraConfig {
    LoraConfig::new(2).with_alpha(3.0)
}

fn config() -> LoraHubConfig {
    LoraHubConfig::new(MODULES, 2).with_alpha(3.0)
}

fn loras(base: &Base, seed: u64) -> Vec<Lora> {
    (0..MODULES as u64).map(|i| randomized(&module().init(base, seed ^ i).unwrap(), seed ^ i)).collect()
}

fn source(name: &str, config: &LoraConfig, lora: &Lora, base: &Base) -> Source {
    let trained = Trained::new(AnyTuner::new(lora.clone()), Head::classifier(base, 2, 3)).unwrap();
    Source { name: name.into(), config: config.clone().into(), trained }
}

fn hub(config: &LoraHubConfig, loras: &[Lora], base: &Base) -> LoraHub {
    let sources: Vec<Source> = loras.iter().map(|lora| source("a task", &module(), lora, base)).collect();
    config.init_from(base, 0, &sources).unwrap()
}

fn weighed(hub: &LoraHub, weights: &[f32]) -> LoraHub {
    with(hub.clone(), [("weights".to_string(), TensorData::new(weights.to_vec(), [weights.len()]))])
}

fn weights(hub: &LoraHub) -> Vec<f64> {
    tensors(hub)["weights"].iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn the_composition_is_that_of_the_equations(seed: u64, w in prop::array::uniform3(-1.5f32..1.5)) {
        for base in bases() {
            let loras = loras(&base, seed);
            let all: Vec<_> = loras.iter().map(tensors).collect();
            let sum = all[0].keys().map(|name| {
                let terms = all.iter().zip(w).map(|(one, w)| Tensor::<2>::from_data(one[name].clone(), base.device()) * w);
                (name.clone(), terms.reduce(|a, b| a + b).unwrap().into_data())
            });
            let lora = with(module().init(&base, 0).unwrap(), sum);
            let hub = weighed(&hub(&config(), &loras, &base), &w);
            let batch = batch(&base);
            assert_close(run(&hub, &base, &batch), run(&lora, &base, &batch), SAME_FUNCTION, "the composition");
        }
    }

    #[test]
    fn a_module_alone_is_itself(seed: u64, at in 0..MODULES) {
        for base in bases() {
            let loras = loras(&base, seed);
            let hub = hub(&config(), &loras, &base);
            let alone = |w: f32| {
                let mut weights = [0.0; MODULES];
                weights[at] = w;
                states(&weighed(&hub, &weights), &base)
            };
            assert_close(alone(1.0), states(&loras[at], &base), SAME_FUNCTION, "a weight of 1");
            prop_assert!(alone(-0.7).into_data() == alone(0.7).into_data());
        }
    }
}

/// What is searched for: the mean loss and the cost of the weights.
fn value(hub: &LoraHub, base: &Base, probe: Probe<'_>) -> f64 {
    probe.loss(hub, base).unwrap() + 0.05 * weights(hub).iter().map(|w| w.abs()).sum::<f64>() / MODULES as f64
}

#[test]
fn a_longer_search_ends_no_higher() {
    let base = base("roberta-tiny", &device());
    let (data, loras) = (examples(&base), loras(&base, 1));
    // A fresh head tells examples apart so little that no module is worth its cost.
    let head = randomized(&Head::classifier(&base, 2, 3), 7);
    let settings = TrainConfig { seed: 5, ..Default::default() };
    let probe = Probe::new(&head, &data).with_run(&settings);
    let found = [0, 1, 4, 16, 40].map(|steps| {
        let hub = hub(&config().with_steps(steps), &loras, &base).prepare(&base, probe).unwrap();
        assert!(weights(&hub).iter().all(|w| w.abs() <= 1.5), "{:?}", weights(&hub));
        value(&hub, &base, probe)
    });
    assert!(found.windows(2).all(|pair| pair[1] <= pair[0]) && found[4] < found[0], "{found:?}");
    assert_eq!(found[0], value(&hub(&config(), &loras, &base), &base, probe));
}

#[test]
fn a_run_keeps_what_the_search_found() {
    let base = base("roberta-tiny", &device());
    let (data, loras) = (examples(&base), loras(&base, 1));
    // A fresh head tells examples apart so little that no module is worth its cost.
    let head = randomized(&Head::classifier(&base, 2, 3), 7);
    let settings = TrainConfig { seed: 5, ..TrainConfig::new(1e-2).with_batch_size(5).with_steps(3) };
    let hub = hub(&config(), &loras, &base);
    let searched = hub.clone().prepare(&base, Probe::new(&head, &data).with_run(&settings)).unwrap();
    let trained = Trained::new(hub, head.clone()).unwrap();
    let end = Trainer::new(settings).run(&base, trained, &data, None, &mut ()).unwrap();
    assert_eq!(tensors(&end.tuner), tensors(&searched));
    assert_ne!(tensors(&end.head), tensors(&head));
    assert!(weights(&searched).iter().any(|w| *w != 0.0));
}

/// From a head at its random start, under which the search alone finds no module worth its cost.
#[test]
fn the_search_is_under_the_trained_head() {
    let base = base("roberta-tiny", &device());
    let (data, loras) = (examples(&base), loras(&base, 1));
    let head = Head::classifier(&base, 2, 3);
    let settings = |steps| TrainConfig { seed: 5, ..TrainConfig::new(1e-1).with_batch_size(5).with_steps(steps) };
    let run = |config: &LoraHubConfig, steps| {
        let trained = Trained::new(hub(config, &loras, &base), head.clone()).unwrap();
        Trainer::new(settings(steps)).run(&base, trained, &data, None, &mut ()).unwrap()
    };
    assert_eq!(weights(&run(&config(), 9).tuner), [0.0; MODULES]);
    let behind = run(&config().with_head_share(0.9), 9);
    // The head of the first stage is that of a run of the head alone.
    let first = run(&config().with_steps(0), 8).head;
    let long = settings(9);
    let probe = Probe::new(&first, &data).with_run(&long).with_phase(1);
    let searched = hub(&config(), &loras, &base).prepare(&base, probe).unwrap();
    assert_eq!(tensors(&behind.tuner), tensors(&searched));
    assert!(weights(&searched).iter().any(|w| *w != 0.0));
    // In front of the first stage there is no search, under whatever head.
    let early = Probe::new(&first, &data).with_run(&long);
    let waiting = hub(&config().with_head_share(0.9), &loras, &base).prepare(&base, early).unwrap();
    assert_eq!(weights(&waiting), [0.0; MODULES]);
}

#[test]
fn what_is_no_module_is_refused_by_name() {
    let base = base("roberta-tiny", &device());
    let all = loras(&base, 1);
    let told = |config: LoraHubConfig, sources: &[Source]| {
        config.init_from(&base, 0, sources).map(|_| ()).unwrap_err().to_string()
    };
    let good: Vec<Source> = all.iter().map(|lora| source("a task", &module(), lora, &base)).collect();
    assert!(told(config(), &good[..2]).contains("sources: 2"));
    assert!(told(LoraHubConfig::new(0, 2), &[]).contains("modules: 0"));
    assert!(told(config().with_head_share(1.0), &good).contains("head_share"));
    let other = LoraConfig::new(3).with_alpha(3.0);
    let other = source("another", &other, &other.init(&base, 0).unwrap(), &base);
    let louder = source("louder", &module().with_alpha(4.0), &all[0], &base);
    for (name, source) in [("another", other), ("louder", louder)] {
        let message = told(config(), &[good[0].clone(), source, good[1].clone()]);
        assert!(message.contains(name) && message.contains("rank 2, alpha 3"), "{message}");
    }
}
