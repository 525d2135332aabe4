use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{TensorData, activation::log_softmax};
use peft_core::testing::tolerances::{REFERENCE, REFERENCE_TRAJECTORY, SAME_FUNCTION, STANDARD_ERRORS};
use peft_core::train::{Probe, TrainConfig};
use peft_core::view::tensors;
use peft_core::{Base, Example, Label, Method, loss::IGNORED};
use peft_partial::{FishMaskConfig, FullConfig, MaskedUpdate};
use proptest::prelude::*;

use super::{
    Values, assert_largest, bases, data, dense, drawn, gradient, key, masks, numbers, recorded, settings, start, train,
    under, whole,
};

fn mask(tuner: &MaskedUpdate, base: &Base) -> BTreeMap<String, Vec<bool>> {
    masks(&tensors(tuner), &base.shape().places())
}

/// The squared gradients of single examples, summed.
fn fisher<'a>(base: &Base, examples: impl IntoIterator<Item = &'a Example>) -> BTreeMap<String, Vec<f32>> {
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for example in examples {
        for (name, gradient) in gradient(base, &[example]) {
            let sum = sums.entry(name).or_insert_with(|| vec![0.0; gradient.len()]);
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g * g);
        }
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn the_mask_is_what_has_the_largest_fisher_information(seed: u64, share in 0.01..0.6, samples in 1usize..8) {
        for base in bases() {
            let (config, data) = (FishMaskConfig::new(share).with_num_samples(samples), data(&base));
            let places = drawn(seed, &base).into_iter().take(samples);
            let scores = fisher(&base, places.map(|place| &data[place]));
            let tuner = train(settings(seed), &base, start(&config, &base)).tuner;
            assert_largest(&mask(&tuner, &base), &scores, (share * base.shape().count() as f64) as usize);
        }
    }

    #[test]
    fn a_mask_by_drawn_labels_is_that_of_the_drawn_labels(seed: u64) {
        for base in bases() {
            let config = FishMaskConfig::new(0.1).with_drawn_labels();
            let (settings, data, head) = (settings(seed), data(&base), start(&config, &base).head);
            let (full, places) = (FullConfig::default().init(&base, 0).unwrap(), drawn(seed, &base));
            let labelled = Probe::new(&head, &data).with_run(&settings).labelled_by_model(&full, &base, &places).unwrap();
            prop_assert!(labelled.iter().zip(&places).all(|(own, place)| own.ids == data[*place].ids));
            let tuner = train(settings.clone(), &base, start(&config, &base)).tuner;
            assert_largest(&mask(&tuner, &base), &fisher(&base, &labelled), base.shape().count() / 10);
        }
    }
}

/// The mean log-probability of labels that are drawn is minus the entropy, and a label is drawn as often as it is likely: together they
/// tell a distribution from its neighbours. Words that do not count stay.
#[test]
fn drawn_labels_are_right_on_average() {
    for base in bases() {
        let mut example = data(&base)[1].clone();
        if let Some(Label::Words(words)) = &mut example.label {
            let ignored = words.iter().enumerate().map(|(i, word)| if i == 2 { IGNORED } else { *word });
            *words = ignored.collect();
        }
        let copies = vec![example.clone(); 500];
        let (config, batch) = (FullConfig::default(), base.batch(&[&example]).unwrap());
        let trained = start(&config, &base);
        let logits = trained.valid().logits(&base, &batch).unwrap();
        let [_, rows, outputs] = logits.dims();
        let logits: Vec<f64> = log_softmax(logits, 2).into_data().iter::<f32>().map(f64::from).collect();
        let row = |row: usize| &logits[row * outputs..(row + 1) * outputs];
        let ahead = trained.head.ahead(base.shape());
        let places: Vec<usize> = (0..copies.len()).collect();
        let drawn = Probe::new(&trained.head, &copies).labelled_by_model(&trained.tuner, &base, &places).unwrap();
        let (mut sum, mut first, mut expected, mut variance) = (0.0, 0.0, 0.0, 0.0);
        let (mut first_expected, mut first_variance) = (0.0, 0.0);
        for copy in &drawn {
            let classes: Vec<(usize, usize)> = match (&copy.label, &example.label) {
                (Some(Label::Class(class)), _) => vec![(0, *class)],
                (Some(Label::Words(words)), Some(Label::Words(own))) => {
                    let counts = |i: usize| i >= ahead && own[i] != IGNORED;
                    assert!((0..own.len()).all(|i| counts(i) || words[i] == own[i]), "{words:?} {own:?}");
                    (0..own.len()).filter(|i| counts(*i)).map(|i| (i - ahead, words[i] as usize)).collect()
                }
                other => panic!("{other:?}"),
            };
            for (at, class) in classes {
                assert!(at < rows);
                let log = row(at);
                let entropy: f64 = log.iter().map(|log| log.exp() * log).sum();
                sum += log[class];
                expected += entropy;
                variance += log.iter().map(|log| log.exp() * (log - entropy).powi(2)).sum::<f64>();
                let likely = log.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
                let p = likely.1.exp();
                first += f64::from(u8::from(likely.0 == class));
                first_expected += p;
                first_variance += p * (1.0 - p);
            }
        }
        let bound = f64::from(STANDARD_ERRORS.0);
        assert!((sum - expected).abs() <= bound * variance.sqrt(), "{sum} is not {expected}");
        assert!((first - first_expected).abs() <= bound * first_variance.sqrt(), "{first} is not {first_expected}");
    }
}

/// A value's squared error is the negative log-likelihood of variance 1/2.
#[test]
fn drawn_values_have_the_variance_of_the_squared_error() {
    let base = bases().next().unwrap();
    let example = Example { label: Some(Label::Value(3.0)), ..data(&base)[0].clone() };
    let copies = vec![example.clone(); 500];
    let head = peft_core::Head::classifier(&base, 1, 0);
    let trained = peft_core::Trained::new(FullConfig::default().init(&base, 0).unwrap(), head).unwrap();
    let predicted = trained.valid().logits(&base, &base.batch(&[&example]).unwrap()).unwrap().into_scalar::<f32>();
    let places: Vec<usize> = (0..copies.len()).collect();
    let drawn = Probe::new(&trained.head, &copies).labelled_by_model(&trained.tuner, &base, &places).unwrap();
    let errors: Vec<f64> =
        drawn.iter().map(|copy| f64::from(copy.label.as_ref().unwrap().value().unwrap() - predicted)).collect();
    let (n, bound) = (errors.len() as f64, f64::from(STANDARD_ERRORS.0));
    let mean = errors.iter().sum::<f64>() / n;
    let square = errors.iter().map(|error| error * error).sum::<f64>() / n;
    assert!(mean.abs() <= bound * (0.5 / n).sqrt(), "{mean}");
    // The variance of a squared normal number of variance v is 2 v^2.
    assert!((square - 0.5).abs() <= bound * (0.5 / n).sqrt(), "{square}");
}

/// The run of the golden files, after all of its steps.
pub fn check_run<M: Method<Tuner = MaskedUpdate>>(case: &str, config: &M) {
    let golden = recorded(case);
    let settings = TrainConfig {
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        adam_epsilon: 1e-3,
        shuffle: false,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(10).with_seed(3)
    };
    let mut run = golden.begin(&settings, config.init(&golden.base, 0).unwrap());
    let key_of = |name: &str| key(name, &golden.base);
    let masks = dense(mask(&run.trained.tuner, &golden.base), &golden.base);
    golden.compare_all("mask", &masks, key_of, SAME_FUNCTION);
    let losses = (0..10).map(|_| run.step(&golden.examples).unwrap().loss as f32).collect::<Vec<_>>();
    golden.compare("losses", &TensorData::new(losses, [10]), REFERENCE);
    let head = under(&tensors(&run.trained), "head.");
    let head = head.into_iter().map(|(name, data)| (format!("classifier.{name}"), data));
    let all: Values = whole::<M>(&run.trained.tuner, &golden.base).into_iter().chain(head).collect();
    let key = |name: &str| match name.strip_prefix("classifier.") {
        Some(name) => golden.head_key(name),
        None => key_of(name),
    };
    golden.compare_all("final", &all, key, REFERENCE_TRAJECTORY);
    golden.compare_logits("logits", &run.base, &run.trained, REFERENCE_TRAJECTORY);
}

#[test]
fn a_run_of_fish_mask_is_that_of_the_reference() {
    check_run("fish-mask-run", &FishMaskConfig::new(0.02).with_num_samples(15));
    assert_eq!(numbers(&recorded("fish-mask-run").expected("losses")).len(), 10);
}
