//! What methods of different families are the same as, and when.

use burn::tensor::{Tensor, TensorData};
use peft_additive::{HadamardConfig, Ia3Config, Position, PrefixTuningConfig};
use peft_core::testing::{randomized, states};
use peft_core::view::{tensors, with_values};
use peft_core::{Base, Method, Part, Sites, equivalences};
use peft_hybrid::MamConfig;
use peft_partial::{BitFitConfig, FullConfig};
use peft_reparam::{BiasMode, LoraConfig};

fn random<M: Method>(config: &M, base: &Base, seed: u64) -> M::Tuner {
    randomized(&config.init(base, seed).unwrap(), seed)
}

equivalences! {
    lora_is_full_fine_tuning_of_low_rank: "LoRA" = "full fine-tuning" if "W' = W + s B A, the rest is the base's", MERGED on SHAPES,
        |base, seed, holds| {
            let lora = random(&LoraConfig::new(3).with_alpha(3.0), base, seed);
            let mut values = tensors(&FullConfig::default().init(base, 0).unwrap());
            let factors = tensors(&lora);
            for (name, a) in factors.iter().filter_map(|(name, a)| Some((name.strip_suffix(".a")?, a))) {
                let matrix = |data: &TensorData| Tensor::<2>::from_data(data.clone(), base.device());
                let update = matrix(a).matmul(matrix(&factors[&format!("{name}.b")]));
                let weight = name.replace("factors", "weights");
                let updated = matrix(&values[&weight]) + if holds { update } else { update * 0.5 };
                values.insert(weight, updated.into_data());
            }
            let full = with_values(FullConfig::default().init(base, 0).unwrap(), &values).unwrap();
            [states(&lora, base), states(&full, base)]
        };

    ia3_is_full_fine_tuning_of_scaled_columns: "(IA)^3 on the values" = "full fine-tuning" if "W_v' = W_v diag(l), b_v' = b_v l",
        MERGED on SHAPES, |base, seed, holds| {
            let ia3 = random(&Ia3Config::new().with_sites(Part::Value, Sites::Parts(vec![])), base, seed);
            let mut values = tensors(&FullConfig::default().init(base, 0).unwrap());
            for (name, l) in tensors(&ia3) {
                let site = name.strip_prefix("outputs.").unwrap();
                let l: Vec<f32> = l.iter().map(|l: f32| if holds { l } else { 1.0 }).collect();
                for name in [format!("weights.{site}"), format!("biases.{site}")] {
                    let Some(own) = values.get(&name) else { continue };
                    let scaled: Vec<f32> = own.iter::<f32>().enumerate().map(|(i, w)| w * l[i % l.len()]).collect();
                    values.insert(name, TensorData::new(scaled, own.shape().clone()));
                }
            }
            let full = with_values(FullConfig::default().init(base, 0).unwrap(), &values).unwrap();
            [states(&ia3, base), states(&full, base)]
        };

    lora_of_no_rank_with_biases_is_bitfit: "LoRA with all biases" = "BitFit" if "B = 0, the biases are the same", SAME_FUNCTION on ENCODERS,
        |base, seed, holds| {
            let config = LoraConfig::new(2).with_bias(BiasMode::All);
            let bitfit = random(&BitFitConfig::new(), base, seed);
            let start = config.init(base, seed).unwrap();
            let lora = with_values(if holds { start } else { randomized(&start, seed) }, &tensors(&bitfit)).unwrap();
            [states(&lora, base), states(&bitfit, base)]
        };

    a_hadamard_adapter_without_factors_is_bitfit: "Hadamard adapter behind the output projection, normalizations frozen" = "BitFit on the output projection"
        if "w = 1, b is the difference of the biases", SAME_FUNCTION on ENCODERS, |base, seed, holds| {
            let config = HadamardConfig::new().with_position(Position::Output).with_train_layernorm(false);
            let mut values = tensors(&random(&config, base, seed));
            for (_, w) in values.iter_mut().filter(|(name, _)| holds && name.starts_with("weights.")) {
                *w = TensorData::ones::<f32, _>(w.shape().clone());
            }
            let bitfit = BitFitConfig::new().with_parts([Part::Output]).init(base, 0).unwrap();
            let moved = tensors(&bitfit).into_iter().map(|(name, bias)| {
                let moved = bias.iter::<f32>().zip(values[&name].iter::<f32>()).map(|(bias, b)| bias + b);
                let moved = TensorData::new(moved.collect::<Vec<_>>(), bias.shape().clone());
                (name, moved)
            });
            let bitfit = with_values(bitfit.clone(), &moved.collect()).unwrap();
            let hadamard = with_values(config.init(base, 0).unwrap(), &values).unwrap();
            [states(&hadamard, base), states(&bitfit, base)]
        };

    lora_and_a_prefix_commute: "LoRA and prefix tuning" = "prefix tuning and LoRA" if "they are the same", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let (lora, prefix) = (random(&LoraConfig::new(2), base, seed), random(&PrefixTuningConfig::new(3), base, seed));
            let other = if holds { lora.clone() } else { random(&LoraConfig::new(2), base, seed + 1) };
            [states(&(lora, prefix.clone()), base), states(&(prefix, other), base)]
        };

    full_fine_tuning_inside_shows_nothing_of_the_base: "LoRA and full fine-tuning" = "full fine-tuning" if "B = 0",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let (lora, full) = (LoraConfig::new(2).init(base, seed).unwrap(), random(&FullConfig::default(), base, seed));
            let lora = if holds { lora } else { randomized(&lora, seed) };
            [states(&(lora, full.clone()), base), states(&full, base)]
        };

    mam_without_its_adapters_is_its_prefix: "MAM adapter" = "prefix tuning" if "W_up = 0, b_up = 0, P is the same",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let config = MamConfig::new(3, 5).with_projection(7);
            let (prefix, adapter) = random(&config, base, seed);
            let adapter = if holds { config.parallel().init(base, seed).unwrap() } else { adapter };
            [states(&(prefix.clone(), adapter), base), states(&prefix, base)]
        };

    the_parts_of_mam_commute: "MAM adapter" = "parallel adapter and prefix tuning" if "they are the same", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = MamConfig::new(3, 5).with_projection(7);
            let (prefix, adapter) = random(&config, base, seed);
            let other = if holds { adapter.clone() } else { random(&config, base, seed + 1).1 };
            [states(&(prefix.clone(), adapter), base), states(&(other, prefix), base)]
        };
}
