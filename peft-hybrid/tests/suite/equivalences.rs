//! What the methods of this crate are the same as, and when.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Activation, SequentialConfig};
use peft_core::testing::{randomized, states};
use peft_core::view::{Rewrite, tensors, view, with_values};
use peft_core::{Bare, Base, Method, equivalences};
use peft_hybrid::{CompacterConfig, UniPelt, UniPeltConfig};

/// Zeros in what has one of these ends of names.
struct Silent(&'static [&'static str]);

impl Rewrite for Silent {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        if self.0.iter().any(|end| name.ends_with(end)) { t.zeros_like() } else { t }
    }
}

/// The sum of the Kronecker products of A_i with s_i t_i.
fn kronecker_sum(rule: Tensor<3>, left: Tensor<3>, right: Tensor<3>) -> TensorData {
    let [n, rows, columns] = [rule.dims()[0], left.dims()[1], right.dims()[2]];
    let blocks = left.matmul(right).reshape([n, 1, rows, 1, columns]);
    let products: Tensor<5> = rule.reshape([n, n, 1, n, 1]) * blocks;
    products.sum_dim(0).reshape([n * rows, n * columns]).into_data()
}

fn unipelt() -> UniPeltConfig {
    UniPeltConfig { prefix_projection: false, ..UniPeltConfig::new(3, 5, 7) }
}

/// At a random state, with this number in front of every gate's sigmoid if there is one.
fn gated(base: &Base, seed: u64, score: Option<f32>) -> UniPelt {
    let unipelt = randomized(&unipelt().init(base, seed).unwrap(), seed);
    let Some(score) = score else { return unipelt };
    let gates = tensors(&unipelt).into_iter().filter(|(name, _)| name.starts_with("gates."));
    let number = |(name, data): (String, TensorData)| {
        let value = if name.ends_with("bias") { score } else { 0.0 };
        (name, TensorData::full(data.shape().clone(), value))
    };
    with_values(unipelt, &gates.map(number).collect()).unwrap()
}

/// A part with the tensors that it has in the whole.
fn part<M: Method>(config: &M, name: &str, whole: &UniPelt, base: &Base) -> M::Tuner {
    let own = tensors(whole).into_iter();
    let own = own.filter_map(|(tensor, data)| Some((tensor.strip_prefix(name)?.to_string(), data)));
    with_values(config.init(base, 0).unwrap(), &own.collect::<BTreeMap<_, _>>()).unwrap()
}

equivalences! {
    a_compacter_is_an_adapter_of_kronecker_sums: "Compacter" = "sequential adapter" if "its matrices are the sums of Kronecker products", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let compacter = randomized(&CompacterConfig::new(6).with_products(2, 3).init(base, seed).unwrap(), seed);
            let mut values = tensors(&compacter);
            let tensor = |name: &str| Tensor::<3>::from_data(values[name].clone(), base.device());
            let matrices = values.keys().filter_map(|name| {
                let map = name.strip_suffix(".left")?;
                let rule = if holds { tensor("rule") } else { tensor("rule").swap_dims(1, 2) };
                Some((format!("{map}.weight"), kronecker_sum(rule, tensor(name), tensor(&format!("{map}.right")))))
            });
            let matrices: Vec<_> = matrices.collect();
            values.extend(matrices);
            let adapter = SequentialConfig::houlsby(6).with_activation(Activation::GeluNew).init(base, 0).unwrap();
            [states(&compacter, base), states(&with_values(adapter, &values).unwrap(), base)]
        };

    a_compacter_without_a_rule_is_the_base: "Compacter" = "base" if "A = 0, the biases are 0, its normalizations are the base's", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = CompacterConfig::new(8).with_train_layernorm(false);
            let compacter = randomized(&config.init(base, seed).unwrap(), seed).valid();
            let silent = if holds { view(&compacter, &mut Silent(&["rule", "bias"])) } else { compacter };
            [states(&silent, base), states(&Bare {}, base)]
        };

    open_gates_are_the_three_at_once: "UniPELT" = "LoRA, prefix tuning and sequential adapter" if "all gates are 1", SAME_FUNCTION on ENCODERS,
        |base, seed, holds| {
            let whole = gated(base, seed, holds.then_some(1e4));
            let (lora, prefix, adapter) = (unipelt().lora(), unipelt().prefix(), unipelt().adapter());
            let rest = (part(&prefix, "prefix.", &whole, base), part(&adapter, "adapter.", &whole, base));
            [states(&whole, base), states(&(part(&lora, "lora.", &whole, base), rest), base)]
        };

    closed_gates_are_a_prefix_of_zeros: "UniPELT" = "prefix tuning" if "all gates and the rows of the prefix are 0", SAME_FUNCTION on ENCODERS,
        |base, seed, holds| {
            let whole = gated(base, seed, holds.then_some(-1e4));
            let prefix = view(&part(&unipelt().prefix(), "prefix.", &whole, base).valid(), &mut Silent(&["embedding"]));
            [states(&whole, base), states(&prefix, base)]
        };
}
