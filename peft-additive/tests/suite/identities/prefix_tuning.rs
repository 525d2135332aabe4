use burn::module::Module;
use burn::tensor::{Tensor, TensorData, activation};
use peft_additive::{PrefixTuning, PrefixTuningConfig};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, fixtures::SHAPES, randomized};
use peft_core::view::tensors;
use peft_core::{Adapter, Attention, Bare, Base, Method, Part, Site, Weight, Within, random::Random};
use proptest::prelude::*;

use super::{bases, pick, run, with};

fn random(config: &PrefixTuningConfig, base: &Base, seed: u64) -> PrefixTuning {
    randomized(&config.init(base, seed).unwrap(), seed)
}

fn table(prefix: &PrefixTuning, base: &Base) -> Tensor<2> {
    Tensor::from_data(tensors(prefix)["embedding"].clone(), base.device())
}

fn flat(base: &Base, table: Tensor<2>) -> PrefixTuning {
    let fresh = PrefixTuningConfig::new(table.dims()[0]).init(base, 0).unwrap();
    with(fresh, "embedding", table)
}

/// Queries, keys and values of the batch's size, with its padding.
fn attention(base: &Base, seed: u64) -> Attention {
    let (shape, batch) = (base.shape(), batch(base));
    let ([size, tokens], width) = (batch.dims(), shape.hidden / shape.heads);
    let draw = |name| Random::new(seed, name).normal_tensor([size, shape.heads, tokens, width], 1.0, base.device());
    let input = Tensor::zeros([size, tokens, shape.hidden], base.device());
    Attention { input, query: draw("q"), key: draw("k"), value: draw("v"), mask: batch.mask() }
}

fn scores(a: &Attention) -> Tensor<4> {
    let width = a.query.dims()[3] as f64;
    a.mask.apply(a.query.clone().matmul(a.key.clone().swap_dims(2, 3)) / width.sqrt())
}

fn attend(a: Attention) -> Tensor<4> {
    activation::softmax(scores(&a), 3).matmul(a.value)
}

/// An attention with the prefix in front.
fn attend_with(prefix: &PrefixTuning, base: &Base, layer: usize, a: Attention) -> Tensor<4> {
    let site = Site::encoder(layer, Part::SelfAttention);
    prefix.valid().open(&batch(base), |hooks| hooks.attend(site, a, &attend))
}

/// The prefix of a layer alone, by the columns of the table: keys and values instead of the text's.
fn prefix_alone(table: Tensor<2>, base: &Base, layer: usize, a: Attention) -> Attention {
    let ([n, _], [size, heads, _, width], hidden) = (table.dims(), a.query.dims(), base.shape().hidden);
    let entry = |kv: usize| {
        let chunk = table.clone().narrow(1, (2 * layer + kv) * hidden, hidden);
        chunk.reshape([n, heads, width]).swap_dims(0, 1).unsqueeze::<4>().expand([size, heads, n, width])
    };
    Attention { key: entry(0), value: entry(1), mask: Default::default(), ..a }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// head = (1 - g) head(K, V) + g head(Pk, Pv), g the share of the prefix in the softmax.
    #[test]
    fn a_prefix_is_a_gate(seed: u64, n in 1..9usize) {
        for base in bases() {
            for layer in 0..base.shape().layers {
                let (prefix, a) = (random(&PrefixTuningConfig::new(n), &base, seed), attention(&base, seed));
                let alone = prefix_alone(table(&prefix, &base), &base, layer, a.clone());
                let mass = |a: &Attention| scores(a).exp().sum_dim(3);
                let gate = mass(&alone) / (mass(&alone) + mass(&a));
                let expected = (1.0 - gate.clone()) * attend(a.clone()) + gate * attend(alone);
                assert_close(attend_with(&prefix, &base, layer, a), expected, SAME_FUNCTION, "gate");
            }
        }
    }

    /// A row that is there r times is that row with its score + ln r.
    #[test]
    fn a_repeated_row_has_a_higher_score(seed: u64, times in prop::collection::vec(1..5usize, 1..7)) {
        for base in bases() {
            let (layer, n, a) = (base.shape().layers - 1, times.len(), attention(&base, seed));
            let rows = table(&random(&PrefixTuningConfig::new(n), &base, seed), &base);
            let repeated: Vec<usize> = times.iter().enumerate().flat_map(|(row, r)| vec![row; *r]).collect();
            let found = attend_with(&flat(&base, pick(rows.clone(), 0, &repeated)), &base, layer, a.clone());
            let alone = prefix_alone(rows, &base, layer, a.clone());
            let logs: Vec<f32> = times.iter().map(|r| (*r as f32).ln()).collect();
            let logs = Tensor::<1>::from_data(TensorData::new(logs, [n]), base.device()).unsqueeze::<4>();
            let all = Tensor::cat(vec![scores(&alone) + logs, scores(&a)], 3);
            let expected = activation::softmax(all, 3).matmul(Tensor::cat(vec![alone.value, a.value], 2));
            assert_close(found, expected, SAME_FUNCTION, "repeated");
        }
    }

    /// The order of the rows does not matter.
    #[test]
    fn rows_can_be_permuted(seed: u64, n in 2..9usize) {
        for base in bases() {
            let prefix = random(&PrefixTuningConfig::new(n), &base, seed);
            let order = Random::new(seed, "order").permutation(n);
            let permuted = flat(&base, pick(table(&prefix, &base), 0, &order));
            let (batch, what) = (batch(&base), "permuted");
            assert_close(run(&prefix, &base, &batch), run(&permuted, &base, &batch), SAME_FUNCTION, what);
        }
    }

    /// A projection is the flat prefix of what it computes: M = tanh(P W1 + b1) W2 + b2.
    #[test]
    fn a_projection_folds_into_the_flat_form(seed: u64, n in 1..9usize, width in 1..31usize) {
        for base in bases() {
            let projected = random(&PrefixTuningConfig::new(n).with_projection(width), &base, seed);
            let all = tensors(&projected);
            let matrix = |name: &str| Tensor::<2>::from_data(all[name].clone(), base.device());
            let vector = |name: &str| Tensor::<1>::from_data(all[name].clone(), base.device()).unsqueeze::<2>();
            let inner = matrix("embedding").matmul(matrix("projection.inner.weight")) + vector("projection.inner.bias");
            let m = inner.tanh().matmul(matrix("projection.outer.weight")) + vector("projection.outer.bias");
            let (batch, by_hand) = (batch(&base), flat(&base, m));
            let folded = PrefixTuningConfig::to_saved(projected.valid());
            prop_assert_eq!(tensors(&folded).into_keys().collect::<Vec<_>>(), ["embedding"]);
            let found = run(&projected, &base, &batch);
            prop_assert_eq!(found.to_data(), run(&folded, &base, &batch).into_data());
            assert_close(found, run(&by_hand, &base, &batch), SAME_FUNCTION, "by hand");
        }
    }

    /// In no layer at all, what is left of n virtual tokens is that positions begin n later.
    #[test]
    fn positions_begin_after_the_prefix(seed: u64, n in 1..9usize) {
        for base in bases() {
            let (shape, site) = (base.shape().clone(), Site::encoder(0, Part::Positions));
            let positions = base.weight(site).dense();
            // RoBERTa's padding keeps its own position, which no real token sees.
            let first = shape.first_position;
            let order: Vec<usize> = (0..shape.positions - n).map(|i| if i < first { i } else { i + n }).collect();
            let shifted = base.clone().with_weight(site, Weight::Dense(pick(positions, 0, &order)));
            let prefix = Within::new(random(&PrefixTuningConfig::new(n), &base, seed), 0..0);
            let batch = batch(&base);
            let found = super::real(run(&prefix, &base, &batch), &batch);
            prop_assert_eq!(found.into_data(), super::real(run(&Bare {}, &shifted, &batch), &batch).into_data());
        }
    }

    /// In no layer at all nothing is left of one that leaves positions in their places.
    #[test]
    fn positions_stay_in_place(seed: u64, n in 1..9usize) {
        for base in SHAPES.map(|shape| base(shape, &device())) {
            let config = PrefixTuningConfig::new(n).with_shift_positions(false);
            let (prefix, batch) = (Within::new(random(&config, &base, seed), 0..0), batch(&base));
            prop_assert_eq!(run(&prefix, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
        }
    }
}
