use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use peft_additive::{AdapterSoup, AdapterSoupConfig, Sequential, SequentialConfig};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::REFERENCE;
use peft_core::testing::{base, batch, device, difference, examples, fixtures::SHAPES, randomized};
use peft_core::train::{Probe, Run, TrainConfig, Trainer};
use peft_core::view::{tensors, weighted_sum, with_values};
use peft_core::{Base, Example, Head, Label, LanguageModel, Method, Procedure, Trained, Tuner};
use proptest::prelude::*;

use super::bottleneck::values;
use super::{finished, run, sources};

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn config() -> SequentialConfig {
    SequentialConfig::houlsby(5)
}

fn adapter(base: &Base, seed: u64) -> Sequential {
    randomized(&config().init(base, seed).unwrap(), seed)
}

fn head(base: &Base) -> Head {
    match examples(base)[0].label {
        Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
        _ => Head::classifier(base, 2, 3),
    }
}

fn soup(config: &AdapterSoupConfig, base: &Base, adapters: &[Sequential]) -> AdapterSoup {
    config.init_from(base, 3, &sources(&self::config(), &head(base), adapters)).unwrap()
}

fn uniform(base: &Base, adapters: &[Sequential]) -> AdapterSoup {
    soup(&AdapterSoupConfig::default(), base, adapters)
}

/// The mean of these, tensor by tensor.
fn mean(adapters: &[&Sequential]) -> BTreeMap<String, TensorData> {
    let all: Vec<_> = adapters.iter().map(|adapter| tensors(*adapter)).collect();
    let of = |(name, data): (&String, &TensorData)| {
        let sum = |i: usize| all.iter().map(|one| values(&one[name])[i]).sum::<f64>() / all.len() as f64;
        let mean: Vec<f32> = (0..data.num_elements()).map(|i| sum(i) as f32).collect();
        (name.clone(), TensorData::new(mean, data.shape().clone()))
    };
    all[0].iter().map(of).collect()
}

/// The mean of the package's three adapters is its average, with its logits and steps.
#[test]
fn equals_adapterhubs_average() {
    for (case, base) in [("adapter-soup", "roberta-classify"), ("adapter-soup-bert", "bert-classify")] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let case = Case::open(dir.clone(), base);
        let sources = finished(&case, &dir);
        let made = AdapterSoupConfig::default().init_from(&case.base, 0, &sources).unwrap();
        let (_, average) = case.load::<AdapterSoupConfig>();
        for (name, data) in tensors(&average.tuner) {
            assert!(difference(&tensors(&made)[&name], &data) <= REFERENCE.0, "{name}");
        }
        case.check_logits_of(&Trained { tuner: made, ..average });
        case.check_method::<AdapterSoupConfig>();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn a_soup_of_copies_is_the_copy(seed: u64, copies in 1..4usize) {
        for base in bases() {
            let one = adapter(&base, seed);
            let all = vec![one.clone(); copies];
            prop_assert_eq!(tensors(uniform(&base, &all).adapter()), tensors(&one));
            let greedy = soup(&AdapterSoupConfig::greedy(), &base, &all);
            let (head, data) = (head(&base), examples(&base));
            let greedy = greedy.prepare(&base, Probe::new(&head, &data)).unwrap();
            prop_assert_eq!(tensors(greedy.adapter()), tensors(&one));
            // One weight of 1 among zeros is an adapter, to the bit.
            let others = [one.clone(), adapter(&base, !seed)];
            for (weights, adapter) in [([1.0, 0.0], &others[0]), ([0.0, 1.0], &others[1])] {
                prop_assert_eq!(tensors(&weighted_sum(&others, &weights).unwrap()), tensors(adapter));
            }
        }
    }

    #[test]
    fn a_soup_is_the_mean_of_its_tensors(seed: u64) {
        for base in bases() {
            let all: Vec<Sequential> = (0..3).map(|i| adapter(&base, seed ^ i)).collect();
            let made = uniform(&base, &all);
            for (name, data) in mean(&all.iter().collect::<Vec<_>>()) {
                prop_assert!(difference(&tensors(made.adapter())[&name], &data) <= f32::EPSILON, "{}", name);
            }
            let turned = uniform(&base, &[all[2].clone(), all[0].clone(), all[1].clone()]);
            let batch = batch(&base);
            let states = |tuner: &Sequential| run(tuner, &base, &batch);
            for ((name, a), b) in tensors(turned.adapter()).iter().zip(tensors(made.adapter()).into_values()) {
                // The order of the sum may round its last bit.
                prop_assert!(difference(a, &b) <= f32::EPSILON, "{}", name);
            }
            let outputs = all.iter().map(states).reduce(|a, b| a + b).unwrap() / 3.0;
            prop_assert!(difference(&run(&made, &base, &batch).into_data(), &outputs.into_data()) > REFERENCE.0);
        }
    }
}

#[test]
fn other_tensors_do_not_sum() {
    let base = base("bert-tiny", &device());
    let (one, wider) = (adapter(&base, 1), SequentialConfig::houlsby(6).init(&base, 1).unwrap());
    let message = |modules: &[Sequential], weights: &[f64]| weighted_sum(modules, weights).unwrap_err().to_string();
    for (found, words) in [
        (message(&[one.clone(), wider], &[1.0, 1.0]), "other tensors in number 1"),
        (message(&[one], &[1.0, 1.0]), "as many as weights, 2"),
        (message(&[], &[]), "at least one"),
    ] {
        assert!(found.contains(words), "{found}");
    }
}

/// The mean of a text's states behind the last layer, of length 1, one token after the other.
fn embedding(base: &Base, text: &Example) -> Vec<f64> {
    use std::cell::RefCell;

    use peft_core::{Frame, Hooks, Next, Sequence, Site};
    struct Last(RefCell<Option<Tensor<3>>>, Site);
    impl Hooks for Last {
        fn layer(&self, _: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
            let x = next(x);
            if (site.stack, site.layer) == (self.1.stack, self.1.layer) {
                self.0.replace(Some(x.hidden.clone()));
            }
            x
        }
    }
    let (stack, layers) = base.shape().stacks()[0];
    let last = Last(RefCell::new(None), Site { stack, layer: layers - 1, part: peft_core::Part::Layer });
    base.forward(&base.batch(&[text]).unwrap(), &last).unwrap();
    let states = values(&last.0.take().unwrap().into_data());
    let mean: Vec<f64> = (0..24).map(|c| states.iter().skip(c).step_by(24).sum()).collect();
    let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    mean.into_iter().map(|x| x / length).collect()
}

/// By all pairs of texts; the texts of the new domain are of the last task.
#[test]
fn the_nearest_domains_are_taken() {
    for base in bases() {
        let adapters: Vec<Sequential> = (0..3).map(|i| adapter(&base, i)).collect();
        let task = |i: usize| [0, 1, 2, 3, 3, 1, 0, 2, 3][i % 9];
        let texts = examples(&base).into_iter().cycle().take(18).enumerate();
        // Texts that occur twice are of different domains.
        let texts: Vec<Example> = texts
            .map(|(i, mut text)| {
                text.ids.iter_mut().for_each(|id| *id = 4 + (*id + 3 * i as u32) % 50);
                Example { task: task(i), ..text }
            })
            .collect();
        let of = |domain: usize| {
            texts.iter().filter(move |text| text.task == domain).map(|text| embedding(&base, text)).collect::<Vec<_>>()
        };
        let cosine = |domain: usize| {
            let (a, b) = (of(domain), of(3));
            let pairs = a.iter().flat_map(|a| b.iter().map(move |b| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()));
            pairs.sum::<f64>() / (a.len() * b.len()) as f64
        };
        let mut order = [0, 1, 2];
        order.sort_by(|a, b| cosine(*b).total_cmp(&cosine(*a)));
        let head = head(&base);
        for k in 1..4 {
            let start = soup(&AdapterSoupConfig::nearest(k), &base, &adapters);
            let made = start.prepare(&base, Probe::new(&head, &texts)).unwrap();
            let chosen: Vec<&Sequential> = order[..k].iter().map(|i| &adapters[*i]).collect();
            for (name, data) in mean(&chosen) {
                assert!(difference(&tensors(made.adapter())[&name], &data) <= f32::EPSILON, "{k}: {name}");
            }
        }
    }
}

/// What a search by hand over the same losses takes.
#[test]
fn a_greedy_soup_takes_what_helps() {
    let (mut several, mut left_out) = (false, false);
    for (base, seed) in bases().into_iter().flat_map(|base| (0..3).map(move |seed| (base.clone(), seed))) {
        let adapters: Vec<Sequential> = (0..4).map(|i| adapter(&base, 10 * seed + i)).collect();
        let (head, data) = (head(&base), examples(&base));
        let probe = Probe::new(&head, &data);
        let loss = |chosen: &[usize]| {
            let chosen: Vec<&Sequential> = chosen.iter().map(|i| &adapters[*i]).collect();
            probe.loss(&with_values(adapters[0].clone(), &mean(&chosen)).unwrap(), &base).unwrap()
        };
        let mut order = [0, 1, 2, 3];
        order.sort_by(|a, b| loss(&[*a]).total_cmp(&loss(&[*b])));
        let mut chosen = vec![];
        for i in order {
            let tried = [&chosen[..], &[i]].concat();
            if chosen.is_empty() || loss(&tried) <= loss(&chosen) {
                chosen = tried;
            }
        }
        (several, left_out) = (several || chosen.len() > 1, left_out || chosen.len() < 4);
        let made = soup(&AdapterSoupConfig::greedy(), &base, &adapters).prepare(&base, probe).unwrap();
        let found = probe.loss(made.adapter(), &base).unwrap();
        assert!(found <= loss(&[order[0]]) * (1.0 + f64::from(f32::EPSILON)), "{found}");
        for (name, data) in mean(&chosen.iter().map(|i| &adapters[*i]).collect::<Vec<_>>()) {
            assert!(difference(&tensors(made.adapter())[&name], &data) <= f32::EPSILON, "{chosen:?}: {name}");
        }
    }
    assert!(several && left_out, "a search that takes all, or one, tells nothing");
}

#[test]
fn a_run_keeps_the_soup() {
    for base in bases() {
        let adapters: Vec<Sequential> = (0..2).map(|i| adapter(&base, i)).collect();
        let data = examples(&base);
        let settings = TrainConfig { weight_decay: 0.1, ..TrainConfig::new(1e-2).with_steps(3) };
        let ended = |config: &AdapterSoupConfig, data: &[Example]| {
            let start = Trained::new(soup(config, &base, &adapters), head(&base)).unwrap();
            Trainer::new(settings.clone()).run(&base, start, data, None, &mut ()).unwrap()
        };
        let kept = ended(&AdapterSoupConfig::default(), &data);
        assert_eq!(tensors(kept.tuner.adapter()), mean(&adapters.iter().collect::<Vec<_>>()));
        let trained = ended(&AdapterSoupConfig::default().with_training(), &data);
        assert_ne!(tensors(trained.tuner.adapter()), tensors(kept.tuner.adapter()));
    }
}

/// Texts of other domains are read for the choice alone, whatever their labels.
#[test]
fn only_texts_of_the_new_domain_are_trained_on() {
    for base in bases() {
        let start =
            Trained::new(soup(&AdapterSoupConfig::nearest(1), &base, &[adapter(&base, 1)]), head(&base)).unwrap();
        assert!(start.tuner.check_tasks(&[2]).unwrap_err().to_string().contains("below 2"));
        let data = examples(&base);
        let settings = TrainConfig::new(1e-2).with_steps(1);
        let loss = |data: &[Example]| {
            let trained = Run::new(&settings, base.clone(), start.clone()).unwrap().trained;
            let batch = base.batch(&data.iter().collect::<Vec<_>>()).unwrap();
            let labels: Vec<&Label> = data.iter().map(|example| example.label.as_ref().unwrap()).collect();
            trained.objective(&base, &batch, &labels).unwrap().into_scalar::<f32>()
        };
        let of = |task: usize| data.iter().filter(|text| text.task == task).cloned().collect::<Vec<_>>();
        let (all, new) = (loss(&data), loss(&of(1)));
        assert!((all - new).abs() <= REFERENCE.0 && new > 0.0, "{all}, {new}");
        assert_eq!(loss(&of(0)), 0.0);
    }
}
