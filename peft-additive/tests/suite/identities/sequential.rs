use std::collections::BTreeSet;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Activation, Init, Placement, Sequential, SequentialConfig};
use peft_core::io::peft::from_settings;
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION, STANDARD_ERRORS};
use peft_core::testing::{assert_close, base, batch, device, fixtures::SHAPES, randomized};
use peft_core::view::{Rewrite, shapes, tensors, view, with_values};
use peft_core::{
    Adapter, Architecture, Bare, Base, Batch, Method, Part, Sequence, Shape, Site, Slot,
    random::{Noise, Random},
};
use proptest::prelude::*;

use super::bottleneck::{Permute, ZeroUp, activate, normalize, values};
use super::{bases, run};

fn configs() -> [SequentialConfig; 4] {
    let (pfeiffer, survey) = (SequentialConfig::pfeiffer(7), SequentialConfig::survey().with_bottleneck(7));
    let all = pfeiffer.clone().with_train_layernorm(true).with_inner_norm([Part::FeedForward]);
    [SequentialConfig::houlsby(7), pfeiffer, survey, all]
}

fn random(config: &SequentialConfig, base: &Base, seed: u64) -> Sequential {
    randomized(&config.init(base, seed).unwrap(), seed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The card's equations, worked out from the tensors: u + act(n Wd + bd) Wu + bu, where n is u or, in Pfeiffer's place, its sum with
    /// the input, normalized if the model does so behind it, and normalized once more where the adapter has a normalization of its own.
    #[test]
    fn an_adapter_is_its_equation(seed: u64, layer in 0..2usize) {
        use Activation::*;
        for base in SHAPES.map(|shape| base(shape, &device())) {
            for (config, act) in configs().into_iter().flat_map(|c: SequentialConfig| [Gelu, Relu, Swish, Identity].map(|a| (c.clone(), a))) {
                let pfeiffer = config.placement == Placement::Pfeiffer;
                let adapter = random(&config.with_activation(act), &base, seed).valid();
                let own = tensors(&adapter);
                let vector = |name: String| Some(Tensor::<1>::from_data(own.get(&name)?.clone(), base.device()));
                for part in [Part::SelfAttention, Part::FeedForward] {
                    let site = base.shape().sites(part)[layer];
                    let norm = Site { part: Part::NormFeedForward, ..site };
                    let draw = |name| Random::new(seed, name).normal_tensor([2, 5, 24], 1.0, base.device());
                    let (x, u): (Tensor<3>, Tensor<3>) = (draw("x"), draw("u"));
                    let input = Sequence { hidden: x.clone(), mask: Default::default(), prompt: 0, offset: 0, past: 0 };
                    let batch = batch(&base);
                    let found = adapter.open(&batch, |hooks| hooks.sublayer(&base.frame(&batch, hooks), site, input, &|_| u.clone()));
                    let matrix = |map| {
                        let data = own.get(&format!("adapters.{site}.{map}.weight"))?.clone();
                        Some(Tensor::<2>::from_data(data, base.device()).unsqueeze::<3>())
                    };
                    let (Some(down), Some(up)) = (matrix("down"), matrix("up")) else {
                        prop_assert!(pfeiffer && part == Part::SelfAttention);
                        prop_assert_eq!(found.into_data(), u.into_data());
                        continue;
                    };
                    let bias = |map| vector(format!("adapters.{site}.{map}.bias")).unwrap().unsqueeze::<3>();
                    let mut n = u.clone();
                    if pfeiffer {
                        n = n + x;
                    }
                    if pfeiffer && !base.shape().pre_norm() {
                        let gain = vector(format!("norms.gains.{norm}")).unwrap_or_else(|| base.vector(norm, Slot::Gain));
                        let shift = vector(format!("norms.biases.{norm}")).unwrap_or_else(|| base.vector(norm, Slot::Bias));
                        n = normalize(n, gain.unsqueeze(), shift.unsqueeze(), base.shape().eps);
                    }
                    if let Some(gain) = vector(format!("adapters.{site}.norm.gain")) {
                        let shift = vector(format!("adapters.{site}.norm.bias")).unwrap();
                        n = normalize(n, gain.unsqueeze(), shift.unsqueeze(), base.shape().eps);
                    }
                    let expected = u + activate(n.matmul(down) + bias("down"), act).matmul(up) + bias("up");
                    assert_close(found, expected, SAME_FUNCTION, &format!("{act:?} at {site}"));
                }
            }
        }
    }

    /// Trained normalizations are those of a base that has them, to the bit, also where an adapter reads through one.
    #[test]
    fn trained_normalizations_are_those_of_another_base(seed: u64) {
        for base in bases() {
            let both = |config: SequentialConfig| [true, false].map(|train| config.clone().with_train_layernorm(train));
            for [trained, frozen] in configs().map(both) {
                let trained = random(&trained, &base, seed);
                let own = tensors(&trained);
                let (mut other, mut replaced) = (base.clone(), 0);
                for place in base.shape().places() {
                    let field = if place.slot == Slot::Gain { "norms.gains" } else { "norms.biases" };
                    if let Some(data) = own.get(&format!("{field}.{}", place.site)).filter(|_| place.slot != Slot::Weight) {
                        other = other.with_vector(place.site, place.slot, Tensor::from_data(data.clone(), base.device()));
                        replaced += 1;
                    }
                }
                prop_assert_eq!(replaced, 2 * (2 * base.shape().layers + 1));
                let frozen = with_values(frozen.init(&other, 0).unwrap(), &own).unwrap();
                let batch = batch(&base);
                prop_assert_eq!(run(&trained, &base, &batch).into_data(), run(&frozen, &other, &batch).into_data());
            }
        }
    }

    /// The bottleneck's units have no order.
    #[test]
    fn the_order_of_the_units_does_not_matter(seed: u64) {
        for base in bases() {
            for config in configs().map(|config: SequentialConfig| config.with_train_layernorm(true)) {
                let adapter = random(&config, &base, seed);
                let permuted = view(&adapter.valid(), &mut Permute(&[3, 0, 6, 1, 5, 2, 4]));
                prop_assert_ne!(tensors(&adapter), tensors(&permuted));
                let batch = batch(&base);
                assert_close(run(&adapter, &base, &batch), run(&permuted, &base, &batch), SAME_FUNCTION, "permuted");
            }
        }
    }

    /// With zeros in the second map the base is back, to the bit, wherever training had led.
    #[test]
    fn a_second_map_of_zeros_is_the_base(seed: u64) {
        for base in bases() {
            for config in configs().map(|config: SequentialConfig| config.with_train_layernorm(false)) {
                let adapter = random(&config, &base, seed).valid();
                let silent = view(&adapter, &mut ZeroUp { bias: true });
                let batch = batch(&base);
                prop_assert_ne!(run(&adapter, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
                prop_assert_eq!(run(&silent, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
                let start = config.clone().with_init(Init::ZeroUp).init(&base, seed).unwrap();
                prop_assert_eq!(run(&start, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
            }
        }
    }

    /// With zeros in the second matrix only, its bias is added to that of the output projection.
    #[test]
    fn the_second_bias_alone_shifts_the_output_projection(seed: u64) {
        for base in bases() {
            let config = SequentialConfig::houlsby(7).with_train_layernorm(false);
            let shift = view(&random(&config, &base, seed).valid(), &mut ZeroUp { bias: false });
            let shifts = tensors(&shift);
            let shifted = base.shape().places().into_iter().filter(|p| p.slot == Slot::Bias).fold(base.clone(), |base, p| {
                let sublayer = match p.site.part {
                    Part::Output => "self_attention",
                    Part::Down => "feed_forward",
                    _ => return base,
                };
                let name = format!("adapters.encoder.{}.{sublayer}.up.bias", p.site.layer);
                let bias = base.vector(p.site, Slot::Bias) + Tensor::from_data(shifts[&name].clone(), base.device());
                base.with_vector(p.site, Slot::Bias, bias)
            });
            let batch = batch(&base);
            assert_close(run(&shift, &base, &batch), run(&Bare {}, &shifted, &batch), SAME_FUNCTION, "shifted");
        }
    }

    /// Without a non-linearity, W' = W (I + Wd Wu) and b' = b (I + Wd Wu) + bd Wu + bu, worked out in f64.
    #[test]
    fn a_linear_adapter_folds_into_the_output_projection(seed: u64) {
        for base in bases() {
            let config = SequentialConfig::houlsby(7).with_train_layernorm(false);
            let adapter = random(&config.with_activation(Activation::Identity), &base, seed).valid();
            let own = tensors(&adapter);
            let folded = base.shape().linears().into_iter().fold(base.clone(), |base, (site, _)| {
                let sublayer = match site.part {
                    Part::Output => "self_attention",
                    Part::Down => "feed_forward",
                    _ => return base,
                };
                let get = |leaf: &str| values(&own[&format!("adapters.encoder.{}.{sublayer}.{leaf}", site.layer)]);
                let (down, up, down_bias, up_bias) =
                    (get("down.weight"), get("up.weight"), get("down.bias"), get("up.bias"));
                let [rows, d] = base.shape().linear_dims(site);
                let apply = |row: &[f64], bias: f64| -> Vec<f64> {
                    let inner: Vec<f64> = (0..7)
                        .map(|m| (0..d).map(|i| row[i] * down[i * 7 + m]).sum::<f64>() + bias * down_bias[m])
                        .collect();
                    let outer = |j: usize| (0..7).map(|m| inner[m] * up[m * d + j]).sum::<f64>() + bias * up_bias[j];
                    (0..d).map(|j| row[j] + outer(j)).collect()
                };
                let weight = values(&base.weight(site).dense().into_data());
                let weight: Vec<f32> =
                    weight.chunks(d).flat_map(|row| apply(row, 0.0)).map(|x| x as f32).collect();
                let bias: Vec<f32> =
                    apply(&values(&base.vector(site, Slot::Bias).into_data()), 1.0).into_iter().map(|x| x as f32).collect();
                let device = base.device().clone();
                let weight = Tensor::from_data(TensorData::new(weight, [rows, d]), &device);
                base.with_weight(site, peft_core::Weight::Dense(weight))
                    .with_vector(site, Slot::Bias, Tensor::from_data(TensorData::new(bias, [d]), &device))
            });
            let batch = batch(&base);
            assert_close(run(&adapter, &base, &batch), run(&Bare {}, &folded, &batch), MERGED, "folded");
        }
    }
}

/// With the identity as second map the first seven numbers of what is added are the bottleneck's: each is dropped or scaled, about as
/// many as asked for, others for each sample, position and layer, and none without noise.
#[test]
fn dropout_stands_between_the_maps() {
    let (base, p) = (base("roberta-tiny", &device()), 0.25);
    let config = SequentialConfig::houlsby(7).with_train_layernorm(false).with_activation(Activation::Identity);
    let adapter = view(&random(&config.with_dropout(p), &base, 3).valid(), &mut Straight);
    let u: Tensor<3> = Random::new(5, "u").normal_tensor([6, 40, 24], 1.0, base.device());
    let added = |layer: usize, batch: &Batch| {
        let site = Site::encoder(layer, Part::FeedForward);
        let input = Sequence { hidden: u.clone(), mask: Default::default(), prompt: 0, offset: 0, past: 0 };
        let next = |_| u.clone();
        let found = adapter.open(batch, |hooks| hooks.sublayer(&base.frame(batch, hooks), site, input, &next));
        values(&(found - u.clone()).narrow(2, 0, 7).into_data())
    };
    let batch = batch(&base);
    let noisy = batch.clone().with_noise(Noise { seed: 1, step: 2, samples: (0..6).collect() });
    let (inner, dropped) = (added(1, &batch), added(1, &noisy));
    let pattern = |numbers: &[f64]| numbers.iter().map(|x| *x != 0.0).collect::<Vec<_>>();
    let kept = pattern(&dropped);
    for ((found, inner), kept) in dropped.iter().zip(&inner).zip(&kept) {
        let expected = if *kept { inner / (1.0 - p) } else { 0.0 };
        assert!((found - expected).abs() <= f64::from(SAME_FUNCTION.0) * expected.abs().max(1.0), "{found} of {inner}");
    }
    let (n, lost) = (kept.len() as f64, kept.iter().filter(|kept| !**kept).count() as f64);
    let error = (n * p * (1.0 - p)).sqrt();
    assert!((lost - n * p).abs() <= f64::from(STANDARD_ERRORS.0) * error, "{lost} of {n}");
    let rows: BTreeSet<&[bool]> = kept.chunks(7).collect();
    assert!(rows.len() > 40, "{} rows of units differ", rows.len());
    assert_ne!(kept, pattern(&added(0, &noisy)), "the layers drop the same");
}

/// The first numbers of d as those of the bottleneck, no bias.
struct Straight;

impl Rewrite for Straight {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        if !name.ends_with("up.weight") {
            return if name.ends_with("up.bias") { t.zeros_like() } else { t };
        }
        let dims = t.dims();
        let diagonal = |i: usize| if i / dims[1] == i % dims[1] { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..dims.iter().product()).map(diagonal).collect();
        Tensor::from_data(TensorData::new(values, dims), &t.device())
    }
}

/// Names and shapes as in a state of torch.
#[test]
fn files_call_the_tensors_of_an_adapter_by_its_sub_layer() {
    let base = base("roberta-tiny", &device());
    let config = SequentialConfig::survey().with_bottleneck(5).with_train_layernorm(true);
    let named = |(name, mut dims): (String, Vec<usize>)| {
        let key = config.key(&name, base.shape());
        if key.transposed {
            dims.reverse();
        }
        let path = key.name.strip_prefix("base_model.model.roberta.").map(str::to_string);
        (path.unwrap_or_else(|| panic!("{}", key.name)), dims)
    };
    let all: Vec<_> = shapes(&config.init(&base, 0).unwrap()).into_iter().map(named).collect();
    let at = |start: &str| -> Vec<(&str, &[usize])> {
        let mut found: Vec<_> =
            all.iter().filter_map(|(name, dims)| Some((name.strip_prefix(start)?, &dims[..]))).collect();
        found.sort();
        found
    };
    let maps = [("down.bias", &[5][..]), ("down.weight", &[5, 24]), ("up.bias", &[24]), ("up.weight", &[24, 5])];
    assert_eq!(at("encoder.layer.1.output.adapter_"), maps);
    let norm = [("norm_before.bias", &[24][..]), ("norm_before.weight", &[24])];
    assert_eq!(at("encoder.layer.1.attention.output.adapter_"), [&maps[..2], &norm, &maps[2..]].concat());
    let norm = [("bias", &[24][..]), ("weight", &[24])];
    for path in ["embeddings", "encoder.layer.1.attention.output", "encoder.layer.1.output"] {
        assert_eq!(at(&format!("{path}.LayerNorm.")), norm);
    }
    assert_eq!(all.len(), 3 * (4 + 6) + 7 * 2);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let base = base("roberta-tiny", &device());
    let good = SequentialConfig::default();
    for (config, words) in [
        (SequentialConfig::houlsby(0), ["bottleneck", "0", "1 to 384"]),
        (SequentialConfig::houlsby(385), ["bottleneck", "385", "1 to 384"]),
        (SequentialConfig::houlsby(usize::MAX), ["bottleneck", "18446744073709551615", "1 to 384"]),
        (good.clone().with_dropout(1.0), ["dropout", "1", "0 to below 1"]),
        (good.clone().with_init_std(f64::NAN), ["init_std", "NaN", "above 0, at most 1"]),
        (good.clone().with_init_std(0.0).with_init(Init::ZeroUp), ["init_std", "0", "above 0, at most 1"]),
        (good.with_inner_norm([Part::Query]), ["inner_norm", "query", "self_attention, feed_forward"]),
        (
            SequentialConfig::pfeiffer(4).with_inner_norm([Part::SelfAttention]),
            ["inner_norm", "self_attention", "expected feed_forward"],
        ),
    ] {
        for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
            let message = message.to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}

#[test]
fn only_a_linear_map_of_the_output_merges() {
    let linear = SequentialConfig::houlsby(5).with_activation(Activation::Identity);
    let merges = |config: &SequentialConfig, shape: &Shape| {
        let base = Base::random(shape.clone(), 0, &device());
        SequentialConfig::merge(&config.init(&base, 0).unwrap()).is_some()
    };
    let encoder = Shape::named("roberta-tiny").unwrap();
    assert!(merges(&linear, &encoder));
    assert!(!merges(&linear.clone().with_inner_norm([Part::FeedForward]), &encoder));
    assert!(!merges(&linear.clone().with_placement(Placement::Pfeiffer), &encoder));
    for act in [Activation::Gelu, Activation::Relu, Activation::Swish] {
        assert!(!merges(&linear.clone().with_activation(act), &encoder), "{act:?}");
    }
    assert!(!merges(&linear, &Shape::named("t5-tiny").unwrap()), "no bias takes that of the adapter in");
    // A LLaMA may have biases behind attention, behind the feed-forward network, or both.
    let feed_forward = linear.clone().with_placement(Placement::FeedForward);
    for (attention_bias, mlp_bias) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut shape = Shape::named("llama-tiny").unwrap();
        if let Architecture::Llama(llama) = &mut shape.architecture {
            (llama.attention_bias, llama.mlp_bias) = (attention_bias, mlp_bias);
        }
        assert_eq!(merges(&linear, &shape), attention_bias && mlp_bias, "{attention_bias} {mlp_bias}");
        assert_eq!(merges(&feed_forward, &shape), mlp_bias, "{attention_bias} {mlp_bias}");
    }
}

#[test]
fn settings_are_read_as_words() {
    let read = |words: &str| {
        let words: Vec<String> = words.split_whitespace().map(str::to_string).collect();
        from_settings::<SequentialConfig>(&words)
    };
    let survey = "bottleneck=200 activation=relu init=normal init_std=0.02 dropout=0.1 inner_norm=self_attention train_layernorm=false";
    assert_eq!(read(survey).unwrap(), SequentialConfig::survey());
    let words = "placement=pfeiffer activation=swish init=zero_up init_std=0.02 inner_norm=self_attention,feed_forward";
    let config = SequentialConfig::default()
        .with_placement(Placement::Pfeiffer)
        .with_activation(Activation::Swish)
        .with_init(Init::ZeroUp)
        .with_init_std(0.02)
        .with_inner_norm([Part::SelfAttention, Part::FeedForward]);
    assert_eq!(read(words).unwrap(), config);
    for (word, allowed) in
        [("inner_norm=attn", "self_attention"), ("placement=parallel", "pfeiffer"), ("activation=tanh", "swish")]
    {
        let (key, value) = word.split_once('=').unwrap();
        let message = read(word).unwrap_err().to_string();
        assert!([key, value, allowed].iter().all(|part| message.contains(part)), "{message}");
    }
}
