use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::Activation;
use peft_core::testing::tolerances::{SAME_FUNCTION, SAME_GRADIENT, STANDARD_ERRORS};
use peft_core::testing::{assert_close, batch, randomized, states};
use peft_core::view::{Rewrite, tensors, view, with_values};
use peft_core::{Adapter, Bare, Base, Method, Part, Sequence, Site, random::Random};
use peft_hybrid::{Compacter, CompacterConfig};
use proptest::prelude::*;

use super::{bases, bits, gradients, values};

fn configs() -> [CompacterConfig; 2] {
    let plus_plus = CompacterConfig::plus_plus(8).with_activation(Activation::Relu).with_normalized(true);
    [CompacterConfig::new(6).with_products(2, 3), plus_plus.with_train_layernorm(false)]
}

fn random(config: &CompacterConfig, base: &Base, seed: u64) -> Compacter {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// The sum of Kronecker products by its definition, `[in, out]`: the block at (p, u) is the sum of A_i[p, u] s_i t_i.
fn kronecker_sum(rule: &TensorData, left: &TensorData, right: &TensorData, base: &Base) -> Tensor<2> {
    let ([n, inner, rank], outer) = ([0, 1, 2].map(|d| left.shape()[d]), right.shape()[2]);
    let [a, s, t] = [rule, left, right].map(values);
    let mut w = vec![0.0; n * inner * n * outer];
    for (i, p, u) in (0..n * n * n).map(|j| (j / (n * n), j / n % n, j % n)) {
        for (q, v, r) in (0..inner * outer * rank).map(|j| (j / (outer * rank), j / rank % outer, j % rank)) {
            let product = s[(i * inner + q) * rank + r] * t[(i * rank + r) * outer + v];
            w[(p * inner + q) * n * outer + u * outer + v] += a[(i * n + p) * n + u] * product;
        }
    }
    Tensor::from_data(TensorData::new(w, [n * inner, n * outer]), base.device())
}

/// Some tensors times a factor, by the end of their names.
struct Times<'a>(&'a [(&'a str, f64)]);

impl Rewrite for Times<'_> {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        self.0.iter().find(|(end, _)| name.ends_with(end)).map_or(t.clone(), |(_, factor)| t * *factor)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// The card's equations, the matrices made.
    #[test]
    fn a_compacter_is_its_equation(seed: u64, layer in 0..2usize) {
        for base in bases() {
            for config in configs() {
                let compacter = random(&config, &base, seed).valid();
                let own = tensors(&compacter);
                for part in config.sublayers.clone() {
                    let site = base.shape().sites(part)[layer];
                    let draw = |name| Random::new(seed, name).normal_tensor([2, 5, 24], 1.0, base.device());
                    let (x, u): (Tensor<3>, Tensor<3>) = (draw("x"), draw("u"));
                    let input = Sequence { hidden: x.clone(), mask: Default::default(), prompt: 0, offset: 0, past: 0 };
                    let batch = batch(&base);
                    let run = |hooks: &dyn peft_core::Hooks| {
                        let frame = base.frame(&batch, hooks);
                        let found = hooks.sublayer(&frame, site, input, &|_| u.clone());
                        let norm = if part == Part::SelfAttention { Part::NormAttention } else { Part::NormFeedForward };
                        let z = match (config.normalized, base.shape().pre_norm()) {
                            (false, _) => u.clone(),
                            (true, true) => u.clone() + x,
                            (true, false) => frame.norm(Site { part: norm, ..site }, u.clone() + x),
                        };
                        (found, z)
                    };
                    let (found, z) = compacter.open(&batch, run);
                    let map = |map: &str, x: Tensor<3>| {
                        let of = |leaf: &str| own[&format!("adapters.{site}.{map}.{leaf}")].clone();
                        let w = kronecker_sum(&own["rule"], &of("left"), &of("right"), &base);
                        let bias = Tensor::<1>::from_data(of("bias"), base.device());
                        x.matmul(w.unsqueeze()) + bias.unsqueeze()
                    };
                    let expected = u + map("up", config.activation.apply(map("down", z)));
                    assert_close(found, expected, SAME_FUNCTION, &site.to_string());
                }
            }
        }
    }

    #[test]
    fn without_a_rule_a_compacter_is_the_base(seed: u64) {
        for base in bases() {
            for config in configs().map(|config| config.with_train_layernorm(false)) {
                let compacter = random(&config, &base, seed).valid();
                let silent = view(&compacter, &mut Times(&[("rule", 0.0), ("bias", 0.0)]));
                prop_assert_eq!(bits(&silent, &base), bits(&Bare {}, &base));
                prop_assert_ne!(bits(&compacter, &base), bits(&Bare {}, &base));
            }
        }
    }

    #[test]
    fn the_rule_scales_as_the_factors_do(seed: u64, c in 0.5..2.0f64) {
        for base in bases() {
            for config in configs() {
                let compacter = random(&config, &base, seed).valid();
                let scaled = view(&compacter, &mut Times(&[("rule", c), ("right", 1.0 / c)]));
                assert_close(states(&scaled, &base), states(&compacter, &base), SAME_FUNCTION, "scaled");
            }
        }
    }

    /// As c A with t / c is the same, A's product with its gradient is the sum of all t's with theirs.
    #[test]
    fn the_rule_gets_the_gradients_of_all_layers(seed: u64) {
        for base in bases() {
            for config in configs() {
                let compacter = random(&config, &base, seed);
                let (own, gradients) = (tensors(&compacter), gradients(&compacter, &base));
                let product = |name: &str| -> f32 {
                    values(&own[name]).iter().zip(values(&gradients[name])).map(|(x, g)| x * g).sum()
                };
                let factors: Vec<f32> = own.keys().filter(|name| name.ends_with("right")).map(|n| product(n)).collect();
                let size = factors.iter().map(|x| x.abs()).fold(1.0, f32::max);
                prop_assert!(factors.iter().all(|x| *x != 0.0));
                prop_assert!((product("rule") - factors.iter().sum::<f32>()).abs() <= SAME_GRADIENT.0 * size);
            }
        }
    }

    #[test]
    fn compacter_plus_plus_is_without_those_after_attention(seed: u64) {
        for base in bases() {
            let compacter = random(&CompacterConfig::new(8), &base, seed).valid();
            let silent = [("self_attention.up.right", 0.0), ("self_attention.up.bias", 0.0)];
            let plus_plus = CompacterConfig::plus_plus(8).init(&base, 0).unwrap();
            let plus_plus = with_values(plus_plus, &tensors(&compacter)).unwrap();
            prop_assert_eq!(bits(&view(&compacter, &mut Times(&silent)), &base), bits(&plus_plus, &base));
            prop_assert_ne!(bits(&compacter, &base), bits(&plus_plus, &base));
        }
    }
}

/// Each s_i and t_i fills the bounds of Glorot and Bengio for a ReLU, A is normal with its deviation, biases are 0.
#[test]
fn it_starts_as_its_reference() {
    let base = &bases()[0];
    let config = CompacterConfig::new(16).with_products(8, 2);
    for (name, data) in tensors(&config.init(base, 5).unwrap()) {
        let numbers = values(&data);
        let largest = numbers.iter().map(|x| x.abs()).fold(0.0, f32::max);
        match name.rsplit('.').next().unwrap() {
            "left" | "right" => {
                let bound = (12.0 / (data.shape()[1] + data.shape()[2]) as f32).sqrt();
                assert!(largest <= bound && largest > 0.8 * bound, "{name}: {largest} of {bound}");
            }
            "rule" => {
                let (n, std) = (numbers.len() as f32, 1e-4);
                let square = numbers.iter().map(|x| (x / std).powi(2)).sum::<f32>() / n;
                assert!((square - 1.0).abs() <= STANDARD_ERRORS.0 * (2.0 / n).sqrt(), "{square}");
            }
            _ if name.starts_with("adapters") => assert_eq!(largest, 0.0, "{name}"),
            _ => assert!(name.starts_with("norms"), "{name}"),
        }
    }
}
