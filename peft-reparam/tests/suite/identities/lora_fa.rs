use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::testing::tolerances::{FINITE_DIFFERENCE, SAME_FUNCTION, SAME_GRADIENT};
use peft_core::testing::{
    assert_close, batch, conformance::loss, difference, examples, golden::named, randomized, states,
};
use peft_core::train::{TrainConfig, Trainer};
use peft_core::view::tensors;
use peft_core::{Base, Head, Label, LanguageModel, Method, Part, Shape, Trained, Tuner};
use peft_reparam::{Lora, LoraConfig};
use proptest::prelude::*;

use super::{bases, run, with};

fn config() -> LoraConfig {
    LoraConfig::new(3).with_alpha(5.0).with_sites(Part::Query | Part::Down)
}

fn random(config: &LoraConfig, base: &Base, seed: u64) -> Lora {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// One with the A of `a` and the B that `f` makes of each site's tensors of both.
fn of(a: &Lora, b: &Lora, base: &Base, f: impl Fn(Tensor<2>, Tensor<2>) -> Tensor<2>) -> Lora {
    let (of_a, of_b) = (tensors(a), tensors(b));
    let values = of_a.iter().map(|(name, data)| {
        let tensor = |data: &burn::tensor::TensorData| Tensor::<2>::from_data(data.clone(), base.device());
        let value = if name.ends_with(".b") { f(tensor(data), tensor(&of_b[name])) } else { tensor(data) };
        (name.clone(), value.into_data())
    });
    with(config().init(base, 0).unwrap(), values)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn with_a_frozen_b_has_the_gradient_of_lora(seed: u64) {
        for base in bases() {
            let lora = random(&config(), &base, seed);
            let frozen = with(config().with_frozen_a().init(&base, 0).unwrap(), tensors(&lora));
            let gradients = |lora: &Lora| {
                let loss = loss(lora.run(&base, &batch(&base)).unwrap());
                named(lora, &GradientsParams::from_grads(loss.backward(), lora))
            };
            let (whole, part) = (gradients(&lora), gradients(&frozen));
            prop_assert!(part.keys().all(|name| name.ends_with(".b")) && 2 * part.len() == whole.len());
            for (name, gradient) in part {
                let largest = whole[&name].iter::<f32>().fold(0.0, |m: f32, g| m.max(g.abs()));
                prop_assert!(difference(&gradient, &whole[&name]) <= SAME_GRADIENT.0 * largest, "{}", name);
            }
            let batch = batch(&base);
            prop_assert_eq!(run(&lora, &base, &batch).into_data(), run(&frozen, &base, &batch).into_data());
        }
    }

    #[test]
    fn updates_with_one_a_add_up(seed: u64) {
        for base in bases() {
            let shared = config().with_shared_a(42);
            let (one, two) = (random(&shared, &base, seed), random(&shared, &base, seed ^ 1));
            let sum = of(&one, &two, &base, |a, b| a + b);
            let batch = batch(&base);
            assert_close(run(&sum, &base, &batch), run(&(one, two), &base, &batch), SAME_FUNCTION, "the sum");
        }
    }

    /// LoRA along a line from its start (A0, 0): its value there, and its slope by central differences, are those of L-LoRA.
    #[test]
    fn it_is_the_tangent_of_lora(seed: u64) {
        for base in bases() {
            let start = config().init(&base, seed).unwrap();
            let (end, step) = (random(&config(), &base, seed), 1e-2);
            let along = |t: f32| {
                let (from, to) = (tensors(&start), tensors(&end));
                let values = from.into_iter().map(|(name, data)| {
                    let [from, to] = [&data, &to[&name]].map(|data| Tensor::<2>::from_data(data.clone(), base.device()));
                    (name, (from.clone() + (to - from) * t).into_data())
                });
                updates(&with(config().init(&base, 0).unwrap(), values), &base)
            };
            let tangent = updates(&of(&start, &end, &base, |_, b| b), &base);
            for (((after, before), start), tangent) in along(step).into_iter().zip(along(-step)).zip(along(0.0)).zip(tangent) {
                let slope = (after - before) / (2.0 * step);
                assert_close(slope, tangent, FINITE_DIFFERENCE, "the slope");
                assert_close(start.clone(), start.zeros_like(), SAME_FUNCTION, "the value");
            }
        }
    }

    #[test]
    fn lora_has_a_second_order_beside_it(seed: u64) {
        for base in bases() {
            let (start, end) = (config().init(&base, seed).unwrap(), random(&config(), &base, seed));
            let tangent = updates(&of(&start, &end, &base, |_, b| b), &base);
            let moved: Vec<_> = tensors(&start).into_iter().zip(tensors(&end)).map(|((name, from), (_, to))| {
                let [from, to] = [from, to].map(|data| Tensor::<2>::from_data(data, base.device()));
                (name, (to - from).into_data())
            }).collect();
            let rest = updates(&with(config().init(&base, 0).unwrap(), moved), &base);
            for ((whole, tangent), rest) in updates(&end, &base).into_iter().zip(tangent).zip(rest) {
                assert_close(whole, tangent + rest, SAME_FUNCTION, "the tangent and the rest");
            }
        }
    }
}

/// s A B at each site.
fn updates(lora: &Lora, base: &Base) -> Vec<Tensor<2>> {
    use burn::module::Module;
    use peft_core::{Merge, Weight};
    let lora = lora.valid();
    let update = |site| {
        let zero = Weight::Dense(Tensor::zeros(base.shape().linear_dims(site), base.device()));
        Merge::weight(&lora, site, &zero).unwrap()
    };
    config().target_modules.resolve(base.shape()).unwrap().into_iter().map(update).collect()
}

#[test]
fn tasks_share_a() {
    for base in bases() {
        let start = |config: LoraConfig, seed| tensors(&config.init(&base, seed).unwrap());
        assert_eq!(start(config().with_shared_a(42), 1), start(config().with_shared_a(42), 2));
        assert_ne!(start(config().with_shared_a(42), 1), start(config().with_shared_a(43), 1));
        assert_ne!(start(config().with_frozen_a(), 1), start(config().with_frozen_a(), 2));
    }
}

#[test]
fn a_frozen_a_keeps_its_bits() {
    for base in bases() {
        let data = examples(&base);
        let head = match data[0].label {
            Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
            _ => Head::classifier(&base, 2, 3),
        };
        let start = Trained::new(config().with_frozen_a().init(&base, 3).unwrap(), head).unwrap();
        let settings = TrainConfig::new(1e-2).with_batch_size(5).with_steps(3);
        let end = Trainer::new(settings).run(&base, start.clone(), &data, None, &mut ()).unwrap();
        for ((name, before), (_, after)) in tensors(&start.tuner).into_iter().zip(tensors(&end.tuner)) {
            assert_eq!(before == after, name.ends_with(".a"), "{name}");
        }
        assert!(states(&start.tuner, &base).into_data() != states(&end.tuner, &base).into_data());
    }
}

#[test]
fn counts_are_those_of_b_alone() {
    let count = |name: &str| LoraConfig::new(8).with_frozen_a().count(&Shape::named(name).unwrap()).unwrap();
    assert_eq!([count("roberta-base"), count("llama-7b")], [147_456, 2_097_152]);
}
