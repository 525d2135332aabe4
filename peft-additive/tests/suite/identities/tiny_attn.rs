use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Bool, Tensor, TensorData};
use peft_additive::{TinyAttn, TinyAttnConfig};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, examples, fixtures::SHAPES, randomized};
use peft_core::train::{Run, TrainConfig};
use peft_core::view::{Rewrite, tensors, view, with_values};
use peft_core::{
    Adapter, Bare, Base, Head, Mask, Method, Part, Procedure, Sequence, Site, Trained,
    random::{Noise, Random},
};
use proptest::prelude::*;

use super::bottleneck::{ZeroUp, normalize, values};
use super::run;

const WIDTH: usize = 6;
/// Of two sequences.
const LENGTHS: [usize; 2] = [5, 3];

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn config() -> TinyAttnConfig {
    TinyAttnConfig::new(2).with_attention_embd(WIDTH)
}

fn random(base: &Base, seed: u64) -> TinyAttn {
    randomized(&config().init(base, seed).unwrap(), seed).valid()
}

/// The sub-layers behind self-attentions, with whether tokens see later ones.
fn sites(base: &Base, layer: usize) -> Vec<(Site, bool)> {
    let crossed = base.shape().sites(Part::CrossAttention);
    let all = base.shape().sites(Part::FeedForward).into_iter().filter(|site| site.layer == layer);
    let own = |site: Site| crossed.iter().find(|c| c.stack == site.stack && c.layer == layer).copied().unwrap_or(site);
    all.map(|site| (own(site), site.stack == peft_core::Stack::Encoder)).collect()
}

fn sequence(base: &Base, x: Tensor<3>, looks_ahead: bool) -> Sequence {
    let padding = LENGTHS.iter().flat_map(|length| (0..5).map(move |i| i >= *length)).collect::<Vec<_>>();
    let padding = Tensor::<2, Bool>::from_data(TensorData::new(padding, [2, 5]), base.device());
    let causal = (!looks_ahead).then_some(0);
    Sequence { hidden: x, mask: Mask { padding: Some(padding), causal, bias: None }, prompt: 0, offset: 0, past: 0 }
}

/// What the adapter adds, twice: to what the next sub-layer reads, which here gives nothing, and to the residual.
fn added(tiny: &TinyAttn, base: &Base, site: Site, x: Sequence) -> Tensor<3> {
    let (batch, before) = (batch(base), x.hidden.clone());
    let read = std::cell::RefCell::new(None);
    let found = tiny.open(&batch, |hooks| {
        hooks.sublayer(&base.frame(&batch, hooks), site, x, &|x| {
            *read.borrow_mut() = Some(x.hidden.clone());
            x.hidden.zeros_like()
        })
    });
    assert_close(read.into_inner().unwrap(), before + found.clone(), SAME_FUNCTION, "what is read");
    found
}

/// The tensors of an adapter at a site.
struct Own<'a>(BTreeMap<String, TensorData>, Site, &'a Base);

impl Own<'_> {
    fn vector(&self, leaf: &str) -> Tensor<1> {
        Tensor::from_data(self.0[&format!("adapters.{}.{leaf}", self.1)].clone(), self.2.device())
    }

    fn affine(&self, x: Tensor<3>, map: &str) -> Tensor<3> {
        let weight = self.0[&format!("adapters.{}.{map}.weight", self.1)].clone();
        x.matmul(Tensor::<2>::from_data(weight, self.2.device()).unsqueeze())
            + self.vector(&format!("{map}.bias")).unsqueeze()
    }

    /// [q, k, v] in front of the attention's own projections.
    fn read(&self, x: Tensor<3>) -> Tensor<3> {
        let (gain, bias) = (self.vector("norm.gain").unsqueeze(), self.vector("norm.bias").unsqueeze());
        self.affine(normalize(x, gain, bias, self.2.shape().eps), "down")
    }

    /// Query, key or value of each token, token by token in f64.
    fn projected(&self, read: &Tensor<3>, which: usize) -> Vec<Vec<f64>> {
        let third = |x: Tensor<3>| x.narrow(2, which * WIDTH, WIDTH);
        let weight =
            Tensor::<2>::from_data(self.0[&format!("adapters.{}.mix.weight", self.1)].clone(), self.2.device());
        let weight = weight.narrow(1, which * WIDTH, WIDTH).unsqueeze();
        let bias = third(self.vector("mix.bias").unsqueeze());
        let projected = values(&(third(read.clone()).matmul(weight) + bias).into_data());
        projected.chunks(WIDTH).map(<[f64]>::to_vec).collect()
    }
}

#[test]
fn equals_the_derivation_of_tiny_attn() {
    for (case, base) in
        [("tiny-attn", "roberta-classify"), ("tiny-attn-heads-bert", "bert-classify"), ("tiny-attn-t5", "t5")]
    {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        Case::open(dir, base).check_method::<TinyAttnConfig>();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// The card's equations, worked out from the tensors, token by token.
    #[test]
    fn a_tiny_attention_is_its_equation(seed: u64, layer in 0..2usize) {
        for base in bases() {
            let tiny = random(&base, seed);
            for (site, looks_ahead) in sites(&base, layer) {
                let own = Own(tensors(&tiny), site, &base);
                let x: Tensor<3> = Random::new(seed, "x").normal_tensor([2, 5, 24], 1.0, base.device());
                let read = own.read(x.clone());
                let [query, key, value] = [0, 1, 2].map(|which| own.projected(&read, which));
                let mut context = vec![];
                for (row, i) in (0..2).flat_map(|row| (0..5).map(move |i| (row, i))) {
                    for head in [0..3, 3..6] {
                        let seen = (0..LENGTHS[row]).filter(|j| looks_ahead || *j <= i).map(|j| row * 5 + j);
                        let score = |j: usize| head.clone().map(|c| query[row * 5 + i][c] * key[j][c]).sum::<f64>() / 3f64.sqrt();
                        let weights: Vec<(usize, f64)> = seen.map(|j| (j, score(j).exp())).collect();
                        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
                        context.extend(head.map(|c| {
                            weights.iter().map(|(j, weight)| weight / sum * value[*j][c]).sum::<f64>() as f32
                        }));
                    }
                }
                let context = Tensor::<3>::from_data(TensorData::new(context, [2, 5, WIDTH]), base.device());
                let expected = own.affine(own.affine(context, "out"), "up");
                let found = added(&tiny, &base, site, sequence(&base, x, looks_ahead));
                assert_close(found, expected, SAME_FUNCTION, &format!("{site}"));
            }
        }
    }

    #[test]
    fn a_tiny_attention_without_an_output_is_the_base(seed: u64) {
        for base in bases() {
            let (tiny, batch) = (random(&base, seed), batch(&base));
            let silent = view(&tiny, &mut ZeroUp { bias: true });
            prop_assert_eq!(run(&silent, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
            prop_assert_ne!(run(&tiny, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
        }
    }

    /// It sees itself only, whatever its query and key are.
    #[test]
    fn a_token_alone_is_mapped_linearly(seed: u64) {
        for base in bases() {
            let tiny = random(&base, seed);
            for (site, _) in sites(&base, 1) {
                let own = Own(tensors(&tiny), site, &base);
                let x: Tensor<3> = Random::new(seed, "x").normal_tensor([1, 1, 24], 1.0, base.device());
                let value: Vec<f32> = own.projected(&own.read(x.clone()), 2)[0].iter().map(|v| *v as f32).collect();
                let value = Tensor::<3>::from_data(TensorData::new(value, [1, 1, WIDTH]), base.device());
                let expected = own.affine(own.affine(value, "out"), "up");
                let alone = Sequence { hidden: x, mask: Mask::default(), prompt: 0, offset: 0, past: 0 };
                assert_close(added(&tiny, &base, site, alone), expected, SAME_FUNCTION, &format!("{site}"));
            }
        }
    }

    /// Where the second head has the first one's projections. In general one head does less than two.
    #[test]
    fn averaged_heads_are_the_heads_where_these_are_alike(seed: u64) {
        /// Columns of the second head's queries, keys and values as the first's.
        struct Alike;
        impl Rewrite for Alike {
            fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
                if !name.contains(".mix.") {
                    return t;
                }
                let first = |i: usize| t.clone().narrow(D - 1, i * WIDTH, WIDTH / 2);
                Tensor::cat((0..3).flat_map(|i| [first(i), first(i)]).collect(), D - 1)
            }
        }
        for base in bases() {
            let (tiny, batch) = (random(&base, seed), batch(&base));
            let alike = view(&tiny, &mut Alike);
            let averaged = alike.clone().averaged();
            assert_close(run(&averaged, &base, &batch), run(&alike, &base, &batch), SAME_FUNCTION, "alike");
            let again = averaged.clone().averaged();
            assert_close(run(&again, &base, &batch), run(&averaged, &base, &batch), SAME_FUNCTION, "one head");
            let [two, one] = [tiny.clone(), tiny.averaged()].map(|tiny| run(&tiny, &base, &batch).into_data());
            prop_assert!(peft_core::testing::difference(&two, &one) > 10.0 * SAME_FUNCTION.0);
        }
    }
}

/// What a run leaves is the average, under the settings of one head.
#[test]
fn a_run_may_end_in_averaged_heads() {
    let base = base("roberta-tiny", &device());
    let config = config().with_average_heads();
    let start = Trained::new(config.init(&base, 1).unwrap(), Head::classifier(&base, 2, 3)).unwrap();
    let mut steps = Run::new(&TrainConfig::new(1e-2).with_steps(2), base.clone(), start).unwrap();
    steps.step(&examples(&base)).unwrap();
    let trained = steps.trained.tuner.clone().valid();
    let finished = trained.clone().finish(&base).unwrap();
    assert_eq!(tensors(&finished), tensors(&trained.averaged()));
    let learned = config.learned(&finished, base.shape());
    assert_eq!(learned, TinyAttnConfig::new(1).with_attention_embd(WIDTH / 2));
    let loaded = with_values(learned.init(&base, 0).unwrap(), &tensors(&finished)).unwrap();
    let batch = batch(&base);
    assert_eq!(run(&loaded, &base, &batch).into_data(), run(&finished, &base, &batch).into_data());
}

/// A weight that is dropped takes its value out; those that are kept grow.
#[test]
fn dropout_acts_on_the_attention_weights() {
    for base in bases() {
        let config = config().with_attention_dropout(0.5);
        let tiny = randomized(&config.init(&base, 3).unwrap(), 3).valid();
        let (site, _) = sites(&base, 1)[0];
        let own = Own(tensors(&tiny), site, &base);
        let noise = Noise { seed: 1, step: 2, samples: [4, 7].into_iter().collect() };
        let batch = batch(&base).with_noise(noise.clone());
        let x: Tensor<3> = Random::new(3, "x").normal_tensor([2, 1, 24], 1.0, base.device());
        // Of one token the weight is 1.
        let kept = noise.dropout(Tensor::<4>::ones([2, 2, 1, 1], base.device()), 0.5, &format!("tiny_attn.{site}"));
        let value = own.projected(&own.read(x.clone()), 2).concat();
        let kept = values(&kept.into_data());
        let context: Vec<f32> = value.iter().enumerate().map(|(i, v)| (v * kept[i / 3]) as f32).collect();
        let context = Tensor::<3>::from_data(TensorData::new(context, [2, 1, WIDTH]), base.device());
        let expected = own.affine(own.affine(context, "out"), "up");
        let input = Sequence { hidden: x, mask: Mask::default(), prompt: 0, offset: 0, past: 0 };
        let found = tiny
            .open(&batch, |hooks| hooks.sublayer(&base.frame(&batch, hooks), site, input, &|x| x.hidden.zeros_like()));
        assert_close(found, expected, SAME_FUNCTION, "dropped");
    }
}

#[test]
fn what_a_tiny_attention_cannot_be_is_refused_by_name() {
    let base = base("llama-tiny", &device());
    let good = TinyAttnConfig::new(2);
    for (config, words) in [
        (TinyAttnConfig::new(0), ["attention_embd", "0", "1 to 24"]),
        (good.clone().with_attention_embd(25), ["attention_embd", "25", "1 to 24"]),
        (good.clone().with_attention_embd(3), ["attention_head", "2", "a divisor of attention_embd 3"]),
        (good.with_attention_dropout(1.0), ["dropout", "1", "below 1"]),
    ] {
        for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
            let message = message.to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
