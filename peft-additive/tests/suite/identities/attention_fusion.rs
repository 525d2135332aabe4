use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{AttentionFusion, AttentionFusionConfig};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, fixtures::SHAPES, randomized};
use peft_core::{Bare, Base, Frame, Hooks, Method, Next, Part, Sequence, Site, Stack, Tuner, random::Random};
use proptest::prelude::*;

use super::{run, with};

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn random(config: &AttentionFusionConfig, base: &Base, seed: u64) -> AttentionFusion {
    randomized(&config.init(base, seed).unwrap(), seed).valid()
}

/// What goes into the first layer of each stack, and what each layer gives.
#[derive(Default)]
struct Tap(RefCell<BTreeMap<(Stack, usize), Tensor<3>>>);

impl Hooks for Tap {
    fn layer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        self.0.borrow_mut().entry((site.stack, site.layer)).or_insert(x.hidden.clone());
        let x = next(x);
        self.0.borrow_mut().insert((site.stack, site.layer + 1), x.hidden.clone());
        x
    }
}

/// The states of the last stack, from in front of its first layer on, as the model's last normalization, if it has one, makes them.
fn states(base: &Base) -> Vec<Tensor<3>> {
    let (tap, batch) = (Tap::default(), batch(base));
    base.forward(&batch, &tap).unwrap();
    let (stack, layers) = *base.shape().stacks().last().unwrap();
    let states = tap.0.into_inner();
    let frame = base.frame(&batch, &());
    let normed = |state: Tensor<3>| match base.shape().pre_norm() {
        true => frame.norm(Site { stack, layer: 0, part: Part::NormFinal }, state),
        false => state,
    };
    (0..=layers).map(|layer| normed(states[&(stack, layer)].clone())).collect()
}

/// Weighted sums of states, token by token, in f64; the weights of a token follow from its numbers in each state.
fn mixed(states: &[Tensor<3>], weights: impl Fn(&[&[f64]]) -> Vec<f64>) -> Tensor<3> {
    let numbers: Vec<Vec<f64>> = states.iter().map(|x| x.to_data().iter::<f32>().map(f64::from).collect()).collect();
    let tokens = numbers[0].len() / 24;
    let token = |i: usize| {
        let rows: Vec<&[f64]> = numbers.iter().map(|state| &state[i * 24..][..24]).collect();
        let weights = weights(&rows);
        (0..24).map(|c| weights.iter().zip(&rows).map(|(w, row)| w * row[c]).sum::<f64>() as f32).collect::<Vec<_>>()
    };
    let values = (0..tokens).flat_map(token).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, states[0].dims()), &states[0].device())
}

#[test]
fn equals_the_derivation_of_attention_fusion() {
    for (case, base) in [
        ("attention-fusion", "roberta-classify"),
        ("attention-fusion-bert", "bert-classify"),
        ("attention-fusion-t5", "t5"),
    ] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        Case::open(dir, base).check_method::<AttentionFusionConfig>();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn fused_states_are_the_equation(seed: u64) {
        for base in bases() {
            for layers in [vec![1, 2], vec![2, 0, 1]] {
                let fusion = random(&AttentionFusionConfig::new().with_layers(layers.clone()), &base, seed);
                let query: Vec<f64> = peft_core::view::tensors(&fusion)["query"].iter::<f32>().map(f64::from).collect();
                let all = states(&base);
                let chosen: Vec<Tensor<3>> = layers.iter().map(|layer| all[*layer].clone()).collect();
                let expected = mixed(&chosen, |rows| {
                    let scores = rows.iter().map(|row| row.iter().zip(&query).map(|(v, q)| v * q).sum::<f64>().exp());
                    let scores: Vec<f64> = scores.collect();
                    let sum: f64 = scores.iter().sum();
                    scores.iter().map(|score| score / sum).collect()
                });
                assert_close(run(&fusion, &base, &batch(&base)), expected, SAME_FUNCTION, "fused");
            }
        }
    }

    /// And a query t q for a large t the state in which q . v is largest.
    #[test]
    fn a_long_query_takes_one_layer(seed: u64) {
        for base in bases() {
            let query: Tensor<1> = Random::new(seed, "q").normal_tensor([24], 1e6, base.device());
            let long = with(AttentionFusionConfig::new().init(&base, 0).unwrap(), "query", query.clone());
            let query: Vec<f64> = query.into_data().iter::<f32>().map(f64::from).collect();
            let largest = mixed(&states(&base)[1..], |rows| {
                let scores: Vec<f64> = rows.iter().map(|row| row.iter().zip(&query).map(|(v, q)| v * q).sum()).collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                scores.iter().map(|score| f64::from(*score == most)).collect()
            });
            assert_close(run(&long, &base, &batch(&base)), largest, SAME_FUNCTION, "the largest");
        }
    }

    #[test]
    fn the_order_of_the_layers_does_not_matter(seed: u64) {
        for base in bases() {
            let fused = |layers: [usize; 3]| {
                run(&random(&AttentionFusionConfig::new().with_layers(layers), &base, seed), &base, &batch(&base))
            };
            assert_close(fused([0, 1, 2]), fused([2, 0, 1]), SAME_FUNCTION, "another order");
        }
    }

    /// The pooled state is the base's too.
    #[test]
    fn the_last_layer_alone_is_the_base(seed: u64) {
        for base in bases() {
            let last = base.shape().stacks().last().unwrap().1;
            let batch = batch(&base);
            let run = |tuner: &dyn Fn() -> peft_core::Hidden| {
                let hidden = tuner();
                (hidden.states.into_data(), hidden.pooled.map(Tensor::into_data))
            };
            let one = random(&AttentionFusionConfig::new().with_layers([last]), &base, seed);
            let all = random(&AttentionFusionConfig::new(), &base, seed);
            let bare = run(&|| Bare {}.run(&base, &batch).unwrap());
            prop_assert_eq!(&run(&|| one.run(&base, &batch).unwrap()), &bare);
            let fused = run(&|| all.run(&base, &batch).unwrap());
            prop_assert_ne!(&fused.0, &bare.0);
            prop_assert!(bare.1.is_none() || fused.1 != bare.1);
        }
    }
}

#[test]
fn a_query_of_zeros_takes_the_mean() {
    for base in bases() {
        let start = AttentionFusionConfig::new().init(&base, 0).unwrap();
        let mean = mixed(&states(&base)[1..], |rows| vec![1.0 / rows.len() as f64; rows.len()]);
        assert_close(run(&start, &base, &batch(&base)), mean, SAME_FUNCTION, "the mean");
    }
}
