use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Bool, Tensor, TensorData, activation};
use peft_additive::{Coda, CodaConfig};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, randomized};
use peft_core::view::tensors;
use peft_core::{Adapter, Base, Frame, Hooks, Mask, Method, Next, Part, Sequence, Site, Slot, Stack, random::Random};
use proptest::prelude::*;

use super::bottleneck::values;

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

/// The states that go into each layer.
#[derive(Default)]
struct Tap(RefCell<BTreeMap<usize, Vec<f64>>>);

impl Hooks for Tap {
    fn layer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        if site.stack == Stack::Encoder {
            self.0.borrow_mut().insert(site.layer, values(&x.hidden.clone().into_data()));
        }
        next(x)
    }
}

/// Which tokens run through which layer, 1 or 0, `[layers, batch, tokens]`: those whose states go in.
fn routed(coda: &Coda, case: &Case) -> Vec<f32> {
    let (around, inside) = (Tap::default(), Tap::default());
    coda.open(&case.batch, |hooks| {
        case.base.forward(&case.batch, &(&around, (hooks, &inside))).unwrap();
    });
    let lengths: Vec<usize> = case.batch.padding.as_ref().map_or(vec![], |padding| {
        let padded = padding.clone().into_data().iter::<bool>().collect::<Vec<_>>();
        padded.chunks(padding.dims()[1]).map(|row| row.iter().filter(|padded| !**padded).count()).collect()
    });
    let [size, tokens] = case.batch.dims();
    let ran = |layer: usize| {
        let (all, some) = (&around.0.borrow()[&layer], &inside.0.borrow()[&layer]);
        let (all, some): (Vec<&[f64]>, Vec<&[f64]>) = (all.chunks(24).collect(), some.chunks(24).collect());
        let k = some.len() / size;
        // Free places hold tokens too, behind those that were chosen.
        let chosen = |i: usize| some[i * k..][..lengths[i].div_ceil(3)].to_vec();
        let flag = |i: usize, j: usize| f32::from(j < lengths[i] && chosen(i).contains(&all[i * tokens + j]));
        (0..size).flat_map(|i| (0..tokens).map(move |j| (i, j))).map(|(i, j)| flag(i, j)).collect::<Vec<_>>()
    };
    (0..case.base.shape().layers).flat_map(ran).collect()
}

/// Logits, gradients, ten steps, and in each of these the tokens that run through each layer.
#[test]
fn equals_the_derivation_of_coda() {
    for (name, base) in [("coda", "roberta-classify"), ("coda-t5", "t5")] {
        let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), base);
        case.check_method::<CodaConfig>();
        let (config, trained) = case.load::<CodaConfig>();
        let expected: Vec<f32> = case.expected("watched").iter().collect();
        let steps: Vec<&[f32]> = expected.chunks(expected.len() / 10).collect();
        assert!(steps.iter().any(|step| *step != steps[0]), "{name}: the routes never change");
        case.check_run(
            trained,
            |name| case.key(&config, name),
            |step, trained| {
                if let Some(expected) = steps.get(step) {
                    assert_eq!(routed(&trained.tuner.valid(), &case), *expected, "{name}, step {step}");
                }
                trained
            },
        );
    }
}

/// min(1, exp((s + a) / e)) with the a, found by bisection, for which the sum is k.
fn maximum(scores: &[f64], k: f64, epsilon: f64) -> Vec<f64> {
    let shares = |a: f64| scores.iter().map(move |s| ((s + a) / epsilon).exp().min(1.0));
    let (mut low, mut high) = (-100.0, 100.0);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if shares(middle).sum::<f64>() < k { low = middle } else { high = middle }
    }
    shares(low).collect()
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

    /// x + l (f(x) - x) + B(N(x)) where x is one of the k with the largest scores, with the l that is the maximum, and x + B(N(x))
    /// elsewhere. A third of 9 tokens are 3, of 5 tokens 2.
    #[test]
    fn a_layer_is_its_equation_on_the_chosen_tokens(seed: u64) {
        let epsilon = 0.5;
        for base in bases() {
            let coda = random(&CodaConfig::new(3).with_ascent(2000, epsilon), &base, seed);
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
            let (read, router) = (values(&read.into_data()), values(&tensors(&coda)[&format!("routers.{site}")]));
            let score = |row: &[f64]| row.iter().zip(&router).map(|(x, w)| x * w).sum::<f64>();
            let scores: Vec<f64> = read.chunks(24).map(score).collect();
            let shares = LENGTHS.into_iter().zip(scores.chunks(9)).flat_map(|(length, scores)| {
                let (scores, k) = (&scores[..length], length.div_ceil(3));
                let rank = |i: usize| scores.iter().filter(|other| **other > scores[i]).count();
                let shares = maximum(scores, k as f64, epsilon);
                (0..9).map(|i| if i < length && rank(i) < k { shares[i] } else { 0.0 }).map(|l| l as f32).collect::<Vec<_>>()
            });
            let shares = Tensor::<3>::from_data(TensorData::new(shares.collect(), [2, 9, 1]), base.device());
            let update = f(x.clone()).hidden - x.hidden.clone();
            assert_close(found, x.hidden + update * shares + added, SAME_FUNCTION, &format!("{site}"));
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

#[test]
fn of_two_tokens_one_runs() {
    for base in bases() {
        let coda = random(&CodaConfig::new(2), &base, 1);
        let x = sequence(&base, 1);
        let x = Sequence { hidden: x.hidden.narrow(1, 0, 2), mask: Mask::default(), ..x };
        layer(&coda, &base, Site::encoder(1, Part::Layer), x, &|x| {
            assert_eq!(x.hidden.dims(), [2, 1, 24]);
            f(x)
        });
    }
}
