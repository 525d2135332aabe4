//! What the methods of this crate are the same as, and when.

use burn::module::Module;
use peft_additive::SequentialConfig;
use peft_core::testing::{randomized, states};
use peft_core::view::{tensors, with_values};
use peft_core::{AnyMethod, AnyTuner, Bare, Base, Method, equivalences};
use peft_reparam::LoraConfig;
use peft_unified::{AdaMixConfig, ProPetl, ProPetlConfig, Scorer, Sparse, SparseConfig};

fn shared(inner: impl Into<AnyMethod>, density: f64, base: &Base, seed: u64) -> ProPetl {
    randomized(&ProPetlConfig::new(inner).with_density(density).init(base, seed).unwrap(), seed)
}

fn sparse(sparsity: f64, base: &Base, seed: u64) -> Sparse {
    let config = SparseConfig::new(LoraConfig::new(3), sparsity, Scorer::Random);
    randomized(&config.init(base, seed).unwrap(), seed)
}

equivalences! {
    an_adapter_shared_whole_is_one_in_all_layers: "ProPETL with adapters" = "sequential adapter (Pfeiffer)" if "k = 1 and all layers hold the shared tensors",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let config = SequentialConfig::pfeiffer(5);
            let propetl = shared(config.clone(), if holds { 1.0 } else { 0.5 }, base, seed);
            let own = tensors(&propetl);
            let adapter = config.init(base, 0).unwrap();
            let values = tensors(&adapter).into_keys().map(|name| {
                let mut words: Vec<&str> = name.split('.').collect();
                words[2] = "0";
                (name.clone(), own[&format!("prototype.{}", words.join("."))].clone())
            });
            let values = values.collect();
            [states(&propetl, base), states(&with_values(adapter, &values).unwrap(), base)]
        };

    a_shared_lora_folds_into_the_weights: "ProPETL with LoRA" = "base" if "W' = W + s (A o m_A) (B o m_B) in each layer", MERGED on SHAPES,
        |base, seed, holds| {
            let propetl = shared(LoraConfig::new(3), 0.5, base, seed);
            let folded = shared(LoraConfig::new(3), 0.5, base, if holds { seed } else { seed + 1 });
            let method = AnyMethod::from(ProPetlConfig::new(LoraConfig::new(3)).with_density(0.5));
            [states(&propetl, base), states(&Bare {}, &method.merged(&AnyTuner::new(folded.valid()), base).unwrap())]
        };

    an_adapter_that_is_not_pruned_is_itself: "SparseAdapter with LoRA" = "LoRA" if "s = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let sparse = sparse(if holds { 0.0 } else { 0.5 }, base, seed);
        let values = tensors(&sparse).into_iter();
        let values = values.filter_map(|(name, data)| Some((name.strip_prefix("adapter.")?.to_string(), data))).collect();
        let lora = with_values(LoraConfig::new(3).init(base, 0).unwrap(), &values).unwrap();
        [states(&sparse, base), states(&lora, base)]
    };

    a_pruned_lora_folds_into_the_weights: "SparseAdapter with LoRA" = "base" if "W' = W + s (A o M_A) (B o M_B)", MERGED on SHAPES,
        |base, seed, holds| {
            let folded = sparse(0.4, base, if holds { seed } else { seed + 1 });
            let method = AnyMethod::from(SparseConfig::new(LoraConfig::new(3), 0.4, Scorer::Random));
            let folded = method.merged(&AnyTuner::new(folded.valid()), base).unwrap();
            [states(&sparse(0.4, base, seed), base), states(&Bare {}, &folded)]
        };

    a_mixture_of_one_is_its_adapter: "AdaMix with LoRA" = "LoRA" if "M = 1", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let experts = if holds { 1 } else { 3 };
        let mix = AdaMixConfig::new(LoraConfig::new(3)).with_experts(experts).init(base, seed).unwrap();
        let mix = randomized(&mix, seed);
        let values = tensors(&mix).into_iter();
        let values = values.filter_map(|(name, data)| Some((name.strip_prefix("first.")?.to_string(), data))).collect();
        let lora = with_values(LoraConfig::new(3).init(base, 0).unwrap(), &values).unwrap();
        [states(&mix, base), states(&lora, base)]
    };

    the_same_experts_are_one_adapter: "AdaMix with adapters" = "sequential adapter" if "all experts of a map are the same", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let (config, inner) = (SequentialConfig::houlsby(5), SequentialConfig::houlsby(5).init(base, seed).unwrap());
            let start = AdaMixConfig::new(config).init(base, seed).unwrap();
            [states(&if holds { start } else { randomized(&start, seed) }, base), states(&inner, base)]
        };

    a_mixed_lora_folds_into_the_weights: "AdaMix with LoRA" = "base" if "W' = W + s mean(A) mean(B)", MERGED on SHAPES, |base, seed, holds| {
        let config = AdaMixConfig::new(LoraConfig::new(3)).with_shared(false, false);
        let mix = |seed| randomized(&config.init(base, seed).unwrap(), seed);
        let folded = mix(if holds { seed } else { seed + 1 });
        let folded = AnyMethod::from(config.clone()).merged(&AnyTuner::new(folded.valid()), base).unwrap();
        [states(&mix(seed), base), states(&Bare {}, &folded)]
    };
}
