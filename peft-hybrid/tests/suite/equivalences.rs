//! What the methods of this crate are the same as, and when.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Activation, ParallelConfig, PrefixTuningConfig, SequentialConfig};
use peft_core::testing::{randomized, states};
use peft_core::view::{Rewrite, tensors, view, with_values};
use peft_core::{Bare, Base, Method, equivalences};
use peft_hybrid::{
    AutoPeftConfig, CompacterConfig, MamConfig, PrunedMamConfig, S4Config, Strategy, UniPelt, UniPeltConfig,
};
use peft_partial::BitFitConfig;
use peft_reparam::LoraConfig;

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
fn part<M: Method>(config: &M, name: &str, whole: &impl Module, base: &Base) -> M::Tuner {
    let own = tensors(whole).into_iter();
    let own = own.filter_map(|(tensor, data)| Some((tensor.strip_prefix(name)?.to_string(), data)));
    with_values(config.init(base, 0).unwrap(), &own.collect::<BTreeMap<_, _>>()).unwrap()
}

/// S4 with one group of all layers, and one method that the group has, with the same numbers.
fn s4_with<M: Method>(group: Vec<Strategy>, plain: M, base: &Base, seed: u64) -> [Tensor<3>; 2] {
    let s4 = randomized(&S4Config::new(5, 4, 3).with_groups([group]).init(base, seed).unwrap(), seed).valid();
    [states(&s4, base), states(&part(&plain, "methods.parts.0.", &s4, base), base)]
}

/// A strategy alone, or with another.
fn alone(strategy: Strategy, holds: bool) -> Vec<Strategy> {
    let other = if strategy == Strategy::Lora { Strategy::Prefix } else { Strategy::Lora };
    if holds { vec![strategy] } else { vec![strategy, other] }
}

fn autopeft(config: &AutoPeftConfig, base: &Base, seed: u64) -> peft_core::Many {
    randomized(&config.init(base, seed).unwrap(), seed).valid()
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

    a_mam_of_which_all_is_left_is_itself: "U-MAM" = "MAM adapter" if "no number is removed", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let config = PrunedMamConfig::new(5, 7, 0.5);
        let whole = randomized(&config.init(base, seed).unwrap(), seed).valid();
        let pruned = if holds { whole.clone() } else { view(&whole, &mut Silent(&["masks.0.embedding"])) };
        [states(&pruned, base), states(&part(&config.mam(), "mam.", &whole, base), base)]
    };

    an_s4_of_adapters_is_a_sequential_adapter: "S4" = "sequential adapter" if "all layers have adapters alone", SAME_FUNCTION on ENCODERS, |base, seed, holds| {
        s4_with(alone(Strategy::Adapter, holds), SequentialConfig::pfeiffer(5), base, seed)
    };

    an_s4_of_prefixes_is_prefix_tuning: "S4" = "prefix tuning" if "all layers have prefixes alone, positions stay", SAME_FUNCTION on ENCODERS, |base, seed, holds| {
        s4_with(alone(Strategy::Prefix, holds), PrefixTuningConfig::new(4).with_shift_positions(false), base, seed)
    };

    an_s4_of_lora_is_lora: "S4" = "LoRA" if "all layers have LoRA alone, alpha = r", SAME_FUNCTION on ENCODERS, |base, seed, holds| {
        s4_with(alone(Strategy::Lora, holds), LoraConfig::new(3).with_alpha(3.0), base, seed)
    };

    an_s4_of_biases_is_bitfit: "S4" = "BitFit" if "all layers have biases alone, and nothing outside of the layers has", SAME_FUNCTION on ENCODERS, |base, seed, holds| {
        let parts = S4Config::new(5, 4, 3).with_groups([vec![Strategy::Bias]]).parts(base.shape()).unwrap();
        let own = parts[0].downcast_ref::<BitFitConfig>().and_then(|bitfit| bitfit.parts.clone()).unwrap();
        s4_with(alone(Strategy::Bias, holds), BitFitConfig::new().with_parts(own), base, seed)
    };

    an_autopeft_without_layers_is_the_base: "AutoPEFT" = "base" if "no layer is chosen", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let config = AutoPeftConfig::new(3, 5, 4).with_layers(if holds { vec![] } else { vec![0] });
        [states(&autopeft(&config, base, seed), base), states(&Bare {}, base)]
    };

    an_autopeft_of_parallel_adapters_is_one: "AutoPEFT" = "parallel adapter" if "all layers have parallel adapters alone", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let whole = autopeft(&AutoPeftConfig::new(0, 5, if holds { 0 } else { 4 }), base, seed);
        [states(&whole, base), states(&part(&ParallelConfig::new(5), "parts.0.", &whole, base), base)]
    };

    an_autopeft_of_serial_adapters_is_a_sequential_adapter: "AutoPEFT" = "sequential adapter" if "all layers have serial adapters alone", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let whole = autopeft(&AutoPeftConfig::new(3, if holds { 0 } else { 5 }, 0), base, seed);
        [states(&whole, base), states(&part(&SequentialConfig::pfeiffer(3), "parts.0.", &whole, base), base)]
    };

    an_autopeft_without_serial_adapters_is_mam: "AutoPEFT" = "MAM adapter" if "all layers have parallel adapters of the same scale and a prefix, not serial ones", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let config = AutoPeftConfig::new(0, 5, 4).with_scaling(if holds { 4.0 } else { 2.0 });
        let whole = autopeft(&config, base, seed);
        // MAM has the prefix first.
        let turned = |(name, data): (String, TensorData)| match name.strip_prefix("parts.0.") {
            Some(name) => (format!("1.{name}"), data),
            None => (name.replacen("parts.1.", "0.", 1), data),
        };
        let own = tensors(&whole).into_iter().map(turned).collect();
        let mam = MamConfig { prefix_projection: false, ..MamConfig::new(4, 5) };
        [states(&whole, base), states(&with_values(mam.init(base, 0).unwrap(), &own).unwrap(), base)]
    };
}
