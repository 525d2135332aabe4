//! What every tensor of every method starts from: the numbers of its reference.

use std::collections::BTreeMap;

use peft_additive::{
    AdapterDropConfig, AttentionFusionConfig, CodaConfig, HadamardConfig, HyperformerConfig, Ia3Config, Importance,
    Init, LstConfig, PTuningConfig, ParallelConfig, PastaConfig, PrefixTuningConfig, PromptInit, PromptTuningConfig,
    Reparameterization, ResidualConfig, SequentialConfig, TinyAttnConfig,
};
use peft_core::testing::tolerances::STANDARD_ERRORS;
use peft_core::testing::{base, device};
use peft_core::view::tensors;
use peft_core::{Base, Method};

use super::bottleneck::values;
use Law::*;

/// How numbers are drawn.
#[derive(Clone, Copy, Debug)]
enum Law {
    /// All the same.
    All(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// The same, cut off at twice that.
    Cut(f64),
    /// Uniform within 1 / sqrt(n) of 0.
    Within(usize),
    /// Those of the base.
    OfTheBase,
}

impl Law {
    /// The mean of the squares, and the largest number that can be.
    fn square_and_bound(self) -> (f64, f64) {
        match self {
            Normal(std) => (std * std, f64::INFINITY),
            // 1 - 4 phi(2) / (2 Phi(2) - 1).
            Cut(std) => ((1.0 - 4.0 * 0.053_990_966_5 / 0.954_499_736_1) * std * std, 2.0 * std),
            Within(n) => (1.0 / (3.0 * n as f64), 1.0 / (n as f64).sqrt()),
            All(_) | OfTheBase => unreachable!("no law of chance"),
        }
    }

    fn check(self, drawn: &[f64], what: &str) {
        if let All(value) = self {
            return assert!(drawn.iter().all(|x| *x == value), "{what}");
        }
        if let OfTheBase = self {
            return;
        }
        let near = |of: &dyn Fn(f64) -> f64, expected: f64, of_what: &str| {
            let n = drawn.len() as f64;
            let mean = drawn.iter().map(|x| of(*x)).sum::<f64>() / n;
            let error = (drawn.iter().map(|x| (of(*x) - mean).powi(2)).sum::<f64>() / n / n).sqrt();
            let errors = ((mean - expected) / error).abs();
            assert!(errors <= f64::from(STANDARD_ERRORS.0), "{what}: {of_what} {mean} +- {error}, expected {expected}");
        };
        let (square, bound) = self.square_and_bound();
        near(&|x| x, 0.0, "the mean is");
        near(&|x| x * x, square, "the mean square is");
        let largest = drawn.iter().fold(0.0, |largest, x| x.abs().max(largest));
        assert!(drawn.len() > 200, "{what}: {} numbers tell no law", drawn.len());
        assert!(largest <= bound * (1.0 + f64::from(f32::EPSILON)), "{what}: {largest} is beyond {bound}");
        let reached = if bound.is_finite() { 0.9 * bound } else { 2.2 * square.sqrt() };
        assert!(largest > reached, "{what}: no number beyond {reached}");
    }
}

/// The tensors with these words in their names start so; the first words that fit count, and every tensor has some.
fn check<M: Method>(config: M, base: &Base, laws: &[(&str, Law)]) {
    let mut drawn: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, data) in (0..8).flat_map(|seed| tensors(&config.init(base, seed).unwrap())) {
        let words = laws.iter().map(|(words, _)| *words).find(|words| words.split(' ').all(|word| name.contains(word)));
        let words = words.unwrap_or_else(|| panic!("{} has a tensor {name}", M::NAME));
        drawn.entry(words).or_default().extend(values(&data));
    }
    for (words, law) in laws {
        let numbers = drawn.get(words).unwrap_or_else(|| panic!("{} has no tensor {words}", M::NAME));
        law.check(numbers, &format!("{} {words} of {:?}", M::NAME, base.shape().architecture));
    }
}

#[test]
fn each_form_starts_as_its_reference() {
    for base in ["roberta-tiny", "t5-tiny", "llama-tiny"].map(|shape| base(shape, &device())) {
        let (d, cut) = (base.shape().hidden, [("weight", Cut(1e-3)), ("bias", All(0.0))]);
        let like_bert = [("weight", Normal(0.02)), ("bias", All(0.0))];
        check(SequentialConfig::houlsby(64).with_train_layernorm(false), &base, &cut);
        check(SequentialConfig::pfeiffer(64), &base, &like_bert);
        check(SequentialConfig::survey(), &base, &[&[("gain", All(1.0))], &like_bert[..]].concat());
        check(
            SequentialConfig::houlsby(64).with_init(Init::ZeroUp),
            &base,
            &[("norms", OfTheBase), ("up", All(0.0)), cut[0], cut[1]],
        );
        check(AdapterDropConfig::new(1), &base, &like_bert);
        check(AdapterDropConfig::new(1).robust(), &base, &like_bert);
        let kaiming = [("down.weight", Within(d)), ("up", All(0.0)), ("bias", All(0.0))];
        check(ParallelConfig::new(64), &base, &kaiming);
        let inside = [("norm.gain", All(1.0)), ("bias", All(0.0)), ("", Normal(0.02))];
        check(ResidualConfig::new(64), &base, &inside);
        if base.shape().stacks()[0].0 == peft_core::Stack::Encoder {
            check(CodaConfig::default(), &base, &[&[("routers", Normal(0.02))], &kaiming[..]].concat());
        }
        check(Ia3Config::new(), &base, &[("", All(1.0))]);
        check(AttentionFusionConfig::new(), &base, &[("query", All(0.0))]);
        check(PastaConfig::new().with_special_tokens([5, 6], 3), &base, &[("vectors", Normal(0.02))]);
        let shrunk = |n: usize| Within(n * 10_000);
        check(
            TinyAttnConfig::new(6),
            &base,
            &[
                ("norm.gain", All(1.0)),
                ("norm.bias", All(0.0)),
                ("down", Within(d)),
                ("mix.weight", Within(4)),
                ("out.weight", Within(6)),
                ("up", shrunk(6)),
                ("bias", All(0.0)),
            ],
        );
        check(HadamardConfig::new(), &base, &[("norms", OfTheBase), ("weights", All(1.0)), ("biases", All(0.0))]);
        check(PromptTuningConfig::new(12).with_init(PromptInit::Random), &base, &[("", Normal(1.0))]);
        check(
            PrefixTuningConfig::new(12).with_projection(40),
            &base,
            &[
                ("embedding", Normal(1.0)),
                ("inner", Within(base.shape().kv_heads() * base.shape().head_width)),
                ("outer", Within(40)),
            ],
        );
        let settings = PTuningConfig { encoder_hidden_size: Some(d), ..PTuningConfig::new(12) };
        check(settings.clone(), &base, &[("embedding", Normal(1.0)), ("maps", Within(d))]);
        let lstm = PTuningConfig {
            encoder_reparameterization_type: Reparameterization::Lstm,
            encoder_num_layers: 2,
            ..settings
        };
        check(lstm, &base, &[("embedding", Normal(1.0)), ("lstm", Within(d)), ("maps", Within(2 * d))]);
        check(
            HyperformerConfig::new(40).with_dims(10, 12, 14).with_train_layernorm(false),
            &base,
            &[
                ("tasks", Normal(1.0)),
                ("norm.gain", All(1.0)),
                ("norm.bias", All(0.0)),
                (".weight", Normal(0.01)),
                (".bias", All(0.0)),
                ("", OfTheBase),
            ],
        );
        let std = if base.shape().pre_norm() { 0.01 } else { 0.02 };
        let taken = ["weights.", "gains."].map(|taken| (taken, OfTheBase));
        let own = [("gates", All(0.0)), ("weight", Normal(std)), ("bias", All(0.0))];
        let biases = base.shape().stacks()[0].0 == peft_core::Stack::Encoder && !base.shape().pre_norm();
        let taken = [&taken[..], &[("biases.", OfTheBase)][..usize::from(biases)]].concat();
        check(LstConfig::new(2).with_importance(Importance::Weights), &base, &[&taken[..], &own].concat());
    }
}
