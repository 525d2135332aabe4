use std::cell::RefCell;

use burn::module::Module;
use burn::tensor::{Bool, Tensor, TensorData, activation};
use peft_additive::{Coda, CodaConfig};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, randomized};
use peft_core::view::tensors;
use peft_core::{Adapter, Base, Mask, Method, Part, Sequence, Site, Slot, random::Random};
use proptest::prelude::*;

use crate::bottleneck::values;

/// Sequences of 9 and 5 tokens.
const LENGTHS: [usize; 2] = [9, 5];

fn bases() -> Vec<Base> {
    ["roberta-tiny", "bert-tiny", "t5-tiny"].iter().map(|shape| base(shape, &device())).collect()
}

fn random(config: &CodaConfig, base: &Base, seed: u64) -> Coda {
    randomized(&config.clone().with_bottleneck(7).init(base, seed).unwrap(), seed).valid()
}

fn sequence(base: &Base, seed: u64) -> Sequence {
    let hidden = Random::new(seed, "x").normal_tensor([2, 9, 24], 1.0, base.device());
    let padding = LENGTHS.iter().flat_map(|length| (0..9).map(move |i| i >= *length)).collect::<Vec<_>>();
    let padding = Tensor::<2, Bool>::from_data(TensorData::new(padding, [2, 9]), base.device());
    Sequence { hidden, mask: Mask { padding: Some(padding), ..Mask::default() }, prompt: 0, offset: 0, past: 0 }
}

fn layer(coda: &Coda, base: &Base, site: Site, x: Sequence, next: &dyn Fn(Sequence) -> Sequence) -> Tensor<3> {
    let batch = batch(base);
    coda.open(&batch, |hooks| hooks.layer(&base.frame(&batch, hooks), site, x, next)).hidden
}

/// A layer that is a function of each token.
fn f(x: Sequence) -> Sequence {
    Sequence { hidden: x.hidden.clone().sin() * 1.5 - x.hidden * 0.5, ..x }
}

/// What router and adapter read of x, and what the adapter adds.
fn adapter(coda: &Coda, base: &Base, site: Site, x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let read = match base.shape().pre_norm() {
        true => {
            let gain = base.vector(Site { part: Part::NormAttention, ..site }, Slot::Gain);
            x.clone() / (x.powi_scalar(2).mean_dim(2) + base.shape().eps).sqrt() * gain.unsqueeze()
        }
        false => x,
    };
    let own = tensors(coda);
    let get = |leaf: &str| own[&format!("adapters.{site}.{leaf}")].clone();
    let matrix = |map: &str| Tensor::<2>::from_data(get(&format!("{map}.weight")), base.device()).unsqueeze::<3>();
    let bias = |map: &str| Tensor::<1>::from_data(get(&format!("{map}.bias")), base.device()).unsqueeze::<3>();
    let inner = activation::relu(read.clone().matmul(matrix("down")) + bias("down"));
    (read, inner.matmul(matrix("up")) + bias("up"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn with_all_tokens_it_is_the_layer_and_a_parallel_adapter(seed: u64) {
        for base in bases() {
            let coda = random(&CodaConfig::new(1), &base, seed);
            let (site, x) = (Site::encoder(1, Part::Layer), sequence(&base, seed));
            let (_, added) = adapter(&coda, &base, site, x.hidden.clone());
            let runs = RefCell::new(vec![]);
            let found = layer(&coda, &base, site, x.clone(), &|x| {
                runs.borrow_mut().push(x.hidden.dims());
                f(x)
            });
            assert_close(found, f(x).hidden + added, SAME_FUNCTION, "all tokens");
            prop_assert_eq!(runs.into_inner(), [[2, 9, 24]]);
        }
    }

    /// x + l (f(x) - x) + B(N(x)) for one l where x is one of the k with the largest scores, x + B(N(x)) elsewhere. A third of 9
    /// tokens are 3, of 5 tokens 2. Which l is right has a test of its own.
    #[test]
    fn a_layer_is_its_equation_on_the_chosen_tokens(seed: u64) {
        for base in bases() {
            let coda = random(&CodaConfig::new(3).with_ascent(500, 0.1), &base, seed);
            let (site, x) = (Site::encoder(1, Part::Layer), sequence(&base, seed));
            let (read, added) = adapter(&coda, &base, site, x.hidden.clone());
            let runs = RefCell::new(vec![]);
            let found = layer(&coda, &base, site, x.clone(), &|x| {
                let free = x.mask.padding.clone().unwrap().into_data().iter::<bool>().collect::<Vec<_>>();
                runs.borrow_mut().push((x.hidden.dims(), free));
                f(x)
            });
            let [free, used] = [true, false];
            prop_assert_eq!(runs.into_inner(), [([2, 3, 24], vec![used, used, used, used, used, free])]);
            let numbers = |t: Tensor<3>| values(&t.into_data());
            let (read, ran) = (numbers(read), numbers(f(x.clone()).hidden));
            let (rest, found, before) = (numbers(x.hidden.clone() + added), numbers(found), numbers(x.hidden));
            let router = values(&tensors(&coda)[&format!("routers.{site}")]);
            for (sample, length) in LENGTHS.into_iter().enumerate() {
                let at = |token: usize| (sample * 9 + token) * 24;
                let score = |token: usize| (0..24).map(|i| read[at(token) + i] * router[i]).sum::<f64>();
                let rank = |token: usize| (0..length).filter(|other| score(*other) > score(token)).count();
                for token in 0..9 {
                    let chosen = token < length && rank(token) < length.div_ceil(3);
                    let update: Vec<f64> = (0..24).map(|i| ran[at(token) + i] - before[at(token) + i]).collect();
                    let change: Vec<f64> = (0..24).map(|i| found[at(token) + i] - rest[at(token) + i]).collect();
                    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                    let share = dot(&update, &change) / dot(&update, &update);
                    let error = (0..24).map(|i| (change[i] - share * update[i]).abs()).fold(0.0, f64::max);
                    prop_assert!(error <= f64::from(SAME_FUNCTION.0), "{} at {}: {}", site, token, error);
                    prop_assert_eq!(share > f64::from(SAME_FUNCTION.0), chosen, "token {} of {}: {}", token, length, share);
                    prop_assert!(share <= 1.0 + f64::from(SAME_FUNCTION.0));
                }
            }
        }
    }

    /// A token is told by its first number, a pair of places by its bias.
    #[test]
    fn relative_positions_follow_the_chosen_tokens(seed: u64) {
        let base = base("t5-tiny", &device());
        let coda = random(&CodaConfig::new(2), &base, seed);
        let mut x = sequence(&base, seed);
        let bias = Random::new(seed, "bias").normal_tensor([1, 3, 9, 9], 1.0, base.device());
        x.mask.bias = Some(bias.clone());
        let names = values(&x.hidden.clone().narrow(2, 0, 1).into_data());
        let bias = values(&bias.into_data());
        layer(&coda, &base, Site::encoder(1, Part::Layer), x, &|x| {
            let places: Vec<usize> = values(&x.hidden.clone().narrow(2, 0, 1).into_data())
                .into_iter()
                .enumerate()
                .map(|(i, name)| names[i / 5 * 9..][..9].iter().position(|other| *other == name).expect("a token of the sequence"))
                .collect();
            let found = x.mask.bias.clone().expect("the chosen tokens have one");
            assert_eq!(found.dims(), [2, 3, 5, 5]);
            let expected = (0..2 * 3 * 5 * 5).map(|i| {
                let (sample, head, a, b) = (i / 75, i / 25 % 3, i / 5 % 5, i % 5);
                bias[(head * 9 + places[sample * 5 + a]) * 9 + places[sample * 5 + b]]
            });
            assert_eq!(values(&found.into_data()), expected.collect::<Vec<_>>());
            f(x)
        });
    }
}
