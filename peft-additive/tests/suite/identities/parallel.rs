use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Activation, Parallel, ParallelConfig};
use peft_core::io::peft::from_settings;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, fixtures::SHAPES, randomized};
use peft_core::view::{Rewrite, tensors, view, with_values};
use peft_core::{
    Adapter, Bare, Base, Method, Part, Sequence, Site,
    random::{Noise, Random},
};
use proptest::prelude::*;

use super::bottleneck::{Permute, ZeroUp, activate};
use super::run;

const SCALING: f64 = 1.7;

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn config() -> ParallelConfig {
    ParallelConfig::new(7).with_scaling(SCALING).with_sublayers([Part::SelfAttention, Part::FeedForward])
}

fn random(config: &ParallelConfig, base: &Base, seed: u64) -> Parallel {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// What the adapter at a site makes of the sub-layer `next` on an input.
fn sublayer(
    adapter: &Parallel,
    base: &Base,
    site: Site,
    x: Tensor<3>,
    next: &dyn Fn(Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    let input = Sequence { hidden: x, mask: Default::default(), prompt: 0, offset: 0, past: 0 };
    let batch = batch(base);
    adapter.open(&batch, |hooks| hooks.sublayer(&base.frame(&batch, hooks), site, input, &|x| next(x.hidden)))
}

/// The tensors of the adapter at a site: Wd, bd, Wu, bu, with dimensions in front.
fn maps(adapter: &Parallel, base: &Base, site: Site) -> [Tensor<3>; 4] {
    let own = tensors(adapter);
    let get = |leaf: &str| own[&format!("adapters.{site}.{leaf}")].clone();
    let matrix = |map: &str| Tensor::<2>::from_data(get(&format!("{map}.weight")), base.device()).unsqueeze();
    let bias = |map: &str| Tensor::<1>::from_data(get(&format!("{map}.bias")), base.device()).unsqueeze();
    [matrix("down"), bias("down"), matrix("up"), bias("up")]
}

/// A factor on the second map.
struct ScaleUp(f64);

impl Rewrite for ScaleUp {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        if name.contains(".up.") { t * self.0 } else { t }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// u + s (act(x Wd + bd) Wu + bu) with x, not u, in it.
    #[test]
    fn a_parallel_adapter_is_its_equation(seed: u64) {
        use Activation::*;
        for base in bases() {
            for act in [Gelu, Relu, Swish, Identity] {
                let adapter = random(&config().with_activation(act), &base, seed).valid();
                for part in [Part::SelfAttention, Part::FeedForward] {
                    let site = base.shape().sites(part)[1];
                    let draw = |name| Random::new(seed, name).normal_tensor([2, 5, 24], 1.0, base.device());
                    let (x, u): (Tensor<3>, Tensor<3>) = (draw("x"), draw("u"));
                    let [down, down_bias, up, up_bias] = maps(&adapter, &base, site);
                    let found = sublayer(&adapter, &base, site, x.clone(), &|_| u.clone());
                    let added = activate(x.matmul(down) + down_bias, act).matmul(up) + up_bias;
                    assert_close(found, u + added * SCALING, SAME_FUNCTION, &format!("{act:?} at {site}"));
                }
            }
        }
    }

    /// Beside a linear map W, W + s Wd Wu with the bias s (bd Wu + bu).
    #[test]
    fn without_a_non_linearity_it_is_a_low_rank_update(seed: u64) {
        for base in bases() {
            let adapter = random(&config().with_activation(Activation::Identity), &base, seed).valid();
            let site = base.shape().sites(Part::FeedForward)[1];
            let draw = |dims, name| Random::new(seed, name).normal_tensor(dims, 0.3, base.device());
            let (x, w): (Tensor<3>, Tensor<3>) = (draw([2, 5, 24], "x"), draw([1, 24, 24], "w"));
            let [down, down_bias, up, up_bias] = maps(&adapter, &base, site);
            let found = sublayer(&adapter, &base, site, x.clone(), &|x| x.matmul(w.clone()));
            let bias = (down_bias.matmul(up.clone()) + up_bias) * SCALING;
            let expected = x.matmul(w + down.matmul(up) * SCALING) + bias;
            assert_close(found, expected, SAME_FUNCTION, "a low-rank update");
        }
    }

    /// The bottleneck's units have no order.
    #[test]
    fn the_order_of_the_units_does_not_matter_in_parallel(seed: u64) {
        for base in bases() {
            let adapter = random(&config(), &base, seed);
            let permuted = view(&adapter.valid(), &mut Permute(&[3, 0, 6, 1, 5, 2, 4]));
            prop_assert_ne!(tensors(&adapter), tensors(&permuted));
            let batch = batch(&base);
            assert_close(run(&adapter, &base, &batch), run(&permuted, &base, &batch), SAME_FUNCTION, "permuted");
        }
    }

    /// With zeros in the second map the base is back, to the bit, wherever training had led.
    #[test]
    fn a_second_map_of_zeros_adds_nothing_in_parallel(seed: u64) {
        for base in bases() {
            let adapter = random(&config(), &base, seed).valid();
            let silent = view(&adapter, &mut ZeroUp { bias: true });
            let bits = |x: Tensor<3>| -> TensorData { x.into_data() };
            let (batch, bare) = (batch(&base), bits(run(&Bare {}, &base, &batch(&base))));
            prop_assert_ne!(bits(run(&adapter, &base, &batch)), bare.clone());
            prop_assert_eq!(bits(run(&silent, &base, &batch)), bare);
        }
    }

    /// With a second map that shows the units: each is there, larger by what is missing, or not; which ones is a matter of the sample
    /// and the position.
    #[test]
    fn dropout_stands_behind_the_activation(seed: u64, p in 0.2..0.8) {
        for base in bases() {
            let act = Activation::Swish;
            let config = ParallelConfig::new(7).with_scaling(SCALING).with_activation(act).with_dropout(p);
            let site = base.shape().sites(Part::FeedForward)[1];
            let adapter = random(&config, &base, seed);
            let eye = Tensor::<2>::eye(7, base.device());
            let shown = Tensor::cat(vec![eye, Tensor::zeros([7, 17], base.device())], 1).into_data();
            let up = |leaf: &str| format!("adapters.{site}.up.{leaf}");
            let none = TensorData::zeros::<f32, _>([24]);
            let values = [(up("weight"), shown), (up("bias"), none)].into();
            let adapter = with_values(adapter, &values).unwrap().valid();
            let x: Tensor<3> = Random::new(seed, "x").normal_tensor([3, 5, 24], 1.0, base.device());
            let units = |x: Tensor<3>, samples: Option<&[u32]>| {
                let samples = samples.map(|samples| Noise { seed, step: 1, samples: samples.iter().copied().collect() });
                let batch = batch(&base);
                let batch = match samples {
                    Some(noise) => batch.with_noise(noise),
                    None => batch,
                };
                let input = Sequence { hidden: x, mask: Default::default(), prompt: 0, offset: 0, past: 0 };
                let next = |x: Sequence| x.hidden.zeros_like();
                let added = adapter.open(&batch, |hooks| hooks.sublayer(&base.frame(&batch, hooks), site, input, &next));
                added.narrow(2, 0, 7) / SCALING
            };
            let [down, down_bias, ..] = maps(&adapter, &base, site);
            let whole = activate(x.clone().matmul(down) + down_bias, act);
            assert_close(units(x.clone(), None), whole.clone(), SAME_FUNCTION, "outside of training");
            let found = units(x.clone(), Some(&[4, 1, 9]));
            let dropped = found.clone().equal_elem(0.0);
            let share = dropped.clone().int().sum().into_scalar::<i32>();
            prop_assert!((1..3 * 5 * 7).contains(&share), "{} are dropped", share);
            assert_close(found.clone(), (whole / (1.0 - p)).mask_fill(dropped, 0.0), SAME_FUNCTION, "in training");
            prop_assert_eq!(units(x.narrow(0, 1, 2), Some(&[1, 9])).into_data(), found.narrow(0, 1, 2).into_data());
        }
    }

    /// Where no probability is set it is the model's.
    #[test]
    fn dropout_is_the_models_unless_it_is_set(seed: u64, p in 0.2..0.8) {
        for base in bases().into_iter().map(|base| base.with_dropout(p)) {
            let states = |dropout| {
                let adapter = random(&ParallelConfig { dropout, ..config() }, &base, seed);
                let batch = batch(&base);
                let samples = (0..batch.dims()[0] as u32).collect();
                run(&adapter, &base, &batch.with_noise(Noise { seed, step: 1, samples })).into_data()
            };
            prop_assert_eq!(states(None), states(Some(p)));
            prop_assert_ne!(states(None), states(Some(0.0)));
        }
    }

    /// Three times the scale is three times the second map.
    #[test]
    fn the_scale_multiplies_the_second_map(seed: u64) {
        for base in bases() {
            let scaled = random(&config().with_scaling(3.0 * SCALING), &base, seed).valid();
            let plain = view(&random(&config(), &base, seed).valid(), &mut ScaleUp(3.0));
            let batch = batch(&base);
            prop_assert_ne!(tensors(&scaled), tensors(&plain));
            assert_close(run(&scaled, &base, &batch), run(&plain, &base, &batch), SAME_FUNCTION, "scaled");
        }
    }
}

/// Names as AdapterHub's modules have them.
#[test]
fn files_call_the_tensors_of_a_parallel_adapter_by_its_sub_layer() {
    let base = base("t5-tiny", &device());
    let config = config();
    let keys: Vec<_> =
        tensors(&config.init(&base, 0).unwrap()).keys().map(|name| config.key(name, base.shape())).collect();
    let named = |name: &str| keys.iter().find(|key| key.name == format!("base_model.model.{name}"));
    assert_eq!(keys.len(), 5 * 2 * 4);
    assert!(named("encoder.block.1.layer.1.DenseReluDense.wo.adapter_down.weight").unwrap().transposed);
    assert!(named("decoder.block.2.layer.0.SelfAttention.o.adapter_up.weight").unwrap().transposed);
    assert!(!named("decoder.block.2.layer.2.DenseReluDense.wo.adapter_up.bias").unwrap().transposed);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let base = base("roberta-tiny", &device());
    for (config, words) in [
        (ParallelConfig::new(0), ["bottleneck", "0", "1 to 384"]),
        (ParallelConfig::new(385), ["bottleneck", "385", "1 to 384"]),
        (config().with_scaling(0.0), ["scaling", "0", "other than 0"]),
        (config().with_dropout(1.0), ["dropout", "1", "below 1"]),
        (config().with_scaling(f64::NAN), ["scaling", "NaN", "finite"]),
        (config().with_sublayers([]), ["sublayers", "none", "self_attention, feed_forward"]),
        (config().with_sublayers([Part::Query]), ["sublayers", "query", "self_attention, feed_forward"]),
    ] {
        for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
            let message = message.to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}

#[test]
fn settings_are_read_as_words() {
    let words =
        ["bottleneck=16", "scaling=2", "activation=swish", "dropout=0.1", "sublayers=self_attention,feed_forward"];
    let expected = config().with_activation(Activation::Swish).with_scaling(2.0).with_dropout(0.1);
    let expected = ParallelConfig { bottleneck: 16, ..expected };
    assert_eq!(from_settings::<ParallelConfig>(&words.map(str::to_string)).unwrap(), expected);
}
