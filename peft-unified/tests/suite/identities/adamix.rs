use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Activation, Placement, SequentialConfig};
use peft_core::loss::{IGNORED, divergence};
use peft_core::random::{Noise, Random};
use peft_core::testing::golden::named;
use peft_core::testing::tolerances::{REFERENCE, REFERENCE_TRAJECTORY, SAME_FUNCTION};
use peft_core::testing::{assert_close, batch, examples, randomized, recorded::Recorded, states};
use peft_core::train::{Procedure, Run, TrainConfig};
use peft_core::view::{tensors, with_values};
use peft_core::{AnyMethod, AnyTuner, Base, Example, Head, Key, Label, LanguageModel, Readout, Shape, Trained};
use peft_reparam::LoraConfig;
use peft_unified::{AdaMix, AdaMixConfig, Mixing};
use proptest::prelude::*;

use super::{bases, bits, values};

fn adapters() -> AdaMixConfig {
    AdaMixConfig::new(SequentialConfig::houlsby(5)).with_experts(3).with_shared(false, false)
}

fn lora() -> AdaMixConfig {
    AdaMixConfig::new(LoraConfig::new(3).with_alpha(5.0)).with_experts(3)
}

fn random(config: &AdaMixConfig, base: &Base, seed: u64) -> AdaMix {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// On two routes.
fn sampled(config: &AdaMixConfig, base: &Base, seed: u64) -> AdaMix {
    random(config, base, seed).sample(&mut Random::new(seed, "routes"))
}

fn head(data: &[Example], base: &Base) -> Head {
    match data[0].label {
        Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
        // One at its start would give next to the same logits whatever it reads.
        _ => randomized(&Head::classifier(base, 2, 1), 1),
    }
}

/// The loss that is trained, of the tests' examples, under dropout or none.
fn objective<T: Procedure>(tuner: T, base: &Base, dropout: f64) -> (Tensor<1>, Trained<T>) {
    let (base, data) = (base.clone().with_dropout(dropout), examples(base));
    let trained = Trained::new(tuner, head(&data, &base)).unwrap();
    let batch = batch(&base);
    let size = batch.dims()[0];
    let noise = Noise { seed: 3, step: 0, samples: (0..size as u32).collect() };
    let labels: Vec<&Label> = data.iter().filter_map(|example| example.label.as_ref()).collect();
    let loss = trained.objective(&base, &batch.with_noise(noise), &labels);
    (loss.unwrap(), trained)
}

fn number(x: Tensor<1>) -> f32 {
    x.into_scalar()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// As a function to the bit, and in what is trained, where no dropout tells two routes apart.
    #[test]
    fn one_expert_is_the_adapter(seed: u64) {
        for base in bases() {
            let one = sampled(&adapters().with_experts(1), &base, seed);
            let adapter = one.routed(None);
            prop_assert_eq!(bits(&one, &base), bits(&adapter, &base));
            let [mixed, plain] = [objective(one, &base, 0.0).0, objective(adapter, &base, 0.0).0];
            assert_close(mixed, plain, SAME_FUNCTION, "the loss");
        }
    }

    /// As all start.
    #[test]
    fn the_same_experts_are_one_on_every_route(seed: u64) {
        for base in bases() {
            let start = adapters().init(&base, seed).unwrap();
            let adapter = bits(&adapters().inner.init(&base, seed).unwrap(), &base);
            let routed = start.clone().sample(&mut Random::new(seed, "routes"));
            for route in [Some(0), Some(1)] {
                prop_assert_eq!(&bits(&routed.routed(route), &base), &adapter);
            }
            assert_close(states(&start, &base), states(&routed, &base), SAME_FUNCTION, "the mean");
            let other = sampled(&adapters(), &base, seed);
            prop_assert_ne!(bits(&other.routed(Some(0)), &base), bits(&other.routed(Some(1)), &base));
        }
    }

    #[test]
    fn the_mean_is_that_of_the_experts(seed: u64) {
        for base in bases() {
            let mix = random(&adapters(), &base, seed);
            let own = tensors(&mix);
            let method = AnyMethod::from(adapters());
            let saved = method.to_saved(AnyTuner::new(mix.clone()));
            let means = tensors(&saved);
            let mut turned = BTreeMap::new();
            for (name, mean) in &means {
                let name = name.strip_prefix("first.").unwrap();
                let names = [format!("first.{name}"), format!("others.1.{name}"), format!("others.2.{name}")];
                let all = names.clone().map(|name| own.get(&name).map_or(vec![], values));
                if all[1].is_empty() {
                    prop_assert!(name.starts_with("norms."));
                    continue;
                }
                for (i, mean) in values(mean).into_iter().enumerate() {
                    let expected = all.iter().map(|numbers| f64::from(numbers[i])).sum::<f64>() / 3.0;
                    prop_assert!((f64::from(mean) - expected).abs() <= f64::from(SAME_FUNCTION.0));
                }
                for (to, from) in [(0, 1), (1, 2), (2, 0)] {
                    let data = own[&names[from]].iter::<f32>().collect::<Vec<_>>();
                    turned.insert(names[to].clone(), TensorData::new(data, own[&names[to]].shape().clone()));
                }
            }
            let turned = with_values(mix.clone(), &turned).unwrap();
            prop_assert_ne!(tensors(&turned), own);
            assert_close(states(&turned, &base), states(&mix, &base), SAME_FUNCTION, "in another order");
            prop_assert_eq!(bits(&saved, &base), bits(&mix, &base));
            let again = method.to_saved(saved.clone());
            prop_assert_eq!(tensors(&again), means);
        }
    }

    #[test]
    fn only_drawn_experts_get_gradients(seed: u64) {
        for base in bases() {
            let mix = sampled(&lora(), &base, seed);
            // The second maps are shared. Two of three experts at most are drawn for each of the others.
            let (mut random, mut drawn) = (Random::new(seed, "routes"), BTreeSet::new());
            for name in tensors(&mix).keys().filter_map(|name| name.strip_prefix("first.")) {
                drawn.extend(name.ends_with(".b").then(|| format!("tuner.first.{name}")));
                for _ in 0..if name.ends_with(".a") { 2 } else { 0 } {
                    drawn.insert(match random.below(3) {
                        0 => format!("tuner.first.{name}"),
                        i => format!("tuner.others.{i}.{name}"),
                    });
                }
            }
            let (loss, trained) = objective(mix, &base, 0.0);
            let gradients = named(&trained, &GradientsParams::from_grads(loss.backward(), &trained));
            let found = gradients.into_keys().filter(|name| name.starts_with("tuner.")).collect::<BTreeSet<_>>();
            prop_assert_eq!(&found, &drawn);
            for name in tensors(&trained).keys().filter_map(|name| name.strip_prefix("tuner.")) {
                prop_assert_eq!(trained.tuner.may_rest(name), name.ends_with(".a"), "{}", name);
            }
        }
    }

    #[test]
    fn the_divergence_is_symmetric(seed: u64) {
        let base = &bases()[0];
        let draw = |name| Random::new(seed, name).normal_tensor::<2>([4, 5], 1.0, base.device());
        let [p, q] = [draw("p"), draw("q")];
        prop_assert_eq!(number(divergence(p.clone(), p.clone())), 0.0);
        let found = number(divergence(p.clone(), q.clone()));
        prop_assert_eq!(found, number(divergence(q.clone(), p.clone())));
        let softmax = |row: &[f32]| {
            let exp: Vec<f64> = row.iter().map(|x| f64::from(*x).exp()).collect();
            exp.iter().map(|x| x / exp.iter().sum::<f64>()).collect::<Vec<_>>()
        };
        let [p, q] = [p, q].map(|x| values(&x.into_data()));
        let rows = p.chunks(5).zip(q.chunks(5)).map(|(p, q)| (softmax(p), softmax(q)));
        let terms = rows.flat_map(|(p, q)| p.into_iter().zip(q).map(|(p, q)| (p - q) * (p / q).ln() / 2.0));
        prop_assert!((f64::from(found) - terms.sum::<f64>()).abs() <= f64::from(SAME_FUNCTION.0));
    }

    /// So that the gradient of either is half the difference of the probabilities.
    #[test]
    fn the_divergence_holds_the_other_fixed(seed: u64) {
        let device = bases()[0].device().clone().autodiff();
        let draw = |name| Random::new(seed, name).normal_tensor::<2>([4, 5], 1.0, &device).require_grad();
        let [p, q] = [draw("p"), draw("q")];
        let gradients = divergence(p.clone(), q.clone()).backward();
        let [a, b] = [&p, &q].map(|x| burn::tensor::activation::softmax(x.clone().inner(), 1));
        assert_close(p.grad(&gradients).unwrap(), (a.clone() - b.clone()) * 0.5, SAME_FUNCTION, "p");
        assert_close(q.grad(&gradients).unwrap(), (b - a) * 0.5, SAME_FUNCTION, "q");
    }
}

#[test]
fn routes_have_dropout_of_their_own() {
    for base in bases() {
        let loss = |consistency, dropout| {
            let one = sampled(&adapters().with_experts(1).with_consistency(consistency), &base, 1);
            number(objective(one, &base, dropout).0)
        };
        assert!((loss(1.0, 0.0) - loss(0.0, 0.0)).abs() <= SAME_FUNCTION.0);
        assert!(loss(1.0, 0.3) > loss(0.0, 0.3) + 10.0 * SAME_FUNCTION.0);
        let [more, most] = [1.0, 3.0].map(|consistency| loss(consistency, 0.3) - loss(0.0, 0.3));
        assert!((3.0 * more - most).abs() <= SAME_FUNCTION.0 * most.max(1.0), "{more} and {most}");
    }
}

#[test]
fn tokens_without_a_class_do_not_diverge() {
    let base = &bases()[0];
    let (head, batch) = (Head::tokens(base, 4, 1), batch(base));
    let [size, tokens] = batch.dims();
    let tag = |i: usize, t: usize| if (i + t).is_multiple_of(3) { (t % 4) as i32 } else { IGNORED };
    let tags = |i: usize| Label::Tags((0..examples(base)[i].ids.len()).map(|t| tag(i, t)).collect());
    let labels: Vec<Label> = (0..size).map(tags).collect();
    let readout =
        |labels: &[Label]| Readout::new(base, &batch, &head).with_labels(&labels.iter().collect::<Vec<_>>()).unwrap();
    let logits = Random::new(1, "logits").normal_tensor::<3>([size, tokens, 4], 1.0, base.device());
    let found = readout(&labels).predictions(logits.clone()).unwrap().unwrap();
    let places = (0..size).flat_map(|i| (0..examples(base)[i].ids.len()).map(move |t| (i, t)));
    let counted: Vec<_> = places.filter(|(i, t)| tag(*i, *t) != IGNORED).collect();
    let rows = counted.iter().map(|(i, t)| logits.clone().slice([*i..i + 1, *t..t + 1, 0..4]).reshape([1, 4]));
    assert_eq!(found.into_data(), Tensor::<2>::cat(rows.collect(), 0).into_data());
    let none: Vec<Label> = labels
        .iter()
        .map(|label| match label {
            Label::Tags(tags) => Label::Tags(tags.iter().map(|_| IGNORED).collect()),
            other => other.clone(),
        })
        .collect();
    assert!(readout(&none).predictions(logits).unwrap().is_none());
}

#[test]
fn routes_and_steps_are_those_of_the_reference() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adamix-run");
    let golden = Recorded::open(dir, "roberta-classify");
    let settings = TrainConfig {
        weight_decay: 0.1,
        adam_epsilon: 1e-3,
        shuffle: false,
        ..TrainConfig::new(1e-2).with_batch_size(8).with_steps(10).with_seed(7)
    };
    let inner = SequentialConfig::pfeiffer(5).with_placement(Placement::FeedForward).with_activation(Activation::Gelu);
    let config = AdaMixConfig::new(inner).with_experts(3).with_shared(false, false).with_consistency(0.7);
    let fresh = config.init(&golden.base, 0).unwrap();
    let start = tensors(&fresh).into_keys().map(|name| (name.clone(), golden.expected(&format!("start.{name}"))));
    let mut run: Run<_> = golden.begin(&settings, with_values(fresh, &start.collect()).unwrap());
    golden.compare_logits("logits", &run.base, &run.trained, REFERENCE);
    let losses: Vec<f32> = (0..10).map(|_| run.step(&golden.examples).unwrap().loss as f32).collect();
    golden.compare("losses", &TensorData::new(losses, [10]), REFERENCE);
    golden.compare_all("final", &tensors(&run.trained.tuner), |name| Key::plain(name), REFERENCE_TRAJECTORY);
    golden.compare_logits("logits_final", &run.base, &run.trained, REFERENCE_TRAJECTORY);
}

#[test]
fn counts_are_those_of_the_paper() {
    let shape = Shape::named("roberta-base").unwrap();
    let count = |config: AdaMixConfig| AnyMethod::from(config).count(&shape).unwrap();
    let adapter = AdaMixConfig::default();
    assert_eq!(count(adapter.clone()), 747_264);
    assert_eq!(count(adapter.clone().with_experts(1)), 304_320);
    assert_eq!(count(adapter.with_shared(false, false)), 4 * 304_320);
    let lora = AnyMethod::usual_over::<Mixing>(AnyMethod::of::<LoraConfig>());
    assert_eq!(lora.count(&shape).unwrap(), 24 * 4 * (4 * 768 + 768));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let base = bases().remove(0);
    for (config, word) in [
        (adapters().with_experts(0), "num_experts: 0 "),
        (adapters().with_experts(1 << 40), "num_experts: 1099511627776 "),
        (adapters().with_shared(true, true), "share_first, share_second: both "),
        (adapters().with_consistency(-1.0), "consistency: -1 "),
        (adapters().with_consistency(f64::NAN), "consistency: NaN "),
    ] {
        let message = config.init(&base, 0).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
}
