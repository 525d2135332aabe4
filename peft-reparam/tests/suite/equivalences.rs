//! What the methods of this crate are the same as, and when.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_core::testing::{randomized, states};
use peft_core::view::{tensors, with_values};
use peft_core::{AnyTuner, Bare, Base, Head, Method, Part, Sites, Source, Trained, Within, equivalences};
use peft_reparam::{
    AdaLoraConfig, DyLoraConfig, IncreLoraConfig, IntrinsicSaidConfig, KernelMixConfig, KronaBConfig, KronaConfig,
    LaplaceLoraConfig, LoftQConfig, Lora, LoraConfig, LoraPruneConfig, MoeLoraConfig, QaLoraConfig,
};

use crate::packed::{grouped, nf4};

fn random<M: Method>(config: &M, base: &Base, seed: u64) -> M::Tuner {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// At its start, or (`holds` is false) at a random state, and the base.
fn start<M: Method>(config: &M, base: &Base, seed: u64, holds: bool) -> [Tensor<3>; 2] {
    let start = config.init(base, seed).unwrap();
    [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
}

/// One with the values that `change` makes of each factor's, told its leaf.
fn changed(config: &LoraConfig, of: &Lora, base: &Base, change: impl Fn(&str, &str, Tensor<2>) -> Tensor<2>) -> Lora {
    let values = tensors(of).into_iter().map(|(name, data)| {
        let leaf = name.rsplit_once('.').unwrap().1.to_string();
        let value = change(&name, &leaf, Tensor::from_data(data, base.device()));
        (name, value.into_data())
    });
    with_values(config.init(base, 0).unwrap(), &values.collect()).unwrap()
}

equivalences! {
    lora_starts_as_the_base: "LoRA" = "base" if "B = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let start = LoraConfig::new(3).init(base, seed).unwrap();
        [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
    };

    lora_folds_into_the_weights: "LoRA" = "base" if "W' = W + s B A", MERGED on SHAPES, |base, seed, holds| {
        let lora = random(&LoraConfig::new(3), base, seed);
        let folded = if holds { lora.clone() } else { random(&LoraConfig::new(3), base, seed + 1) };
        [states(&lora, base), states(&Bare {}, &base.merged(&folded.valid()))]
    };

    two_loras_are_one_of_both_ranks: "LoRA" = "LoRA and LoRA" if "its factors are theirs side by side", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = |rank: usize| LoraConfig::new(rank).with_alpha(rank as f64);
            let (one, two) = (random(&config(1), base, seed), random(&config(2), base, seed + 1));
            let theirs = tensors(&two);
            let joined = changed(&config(3), &one, base, |name, leaf, own| {
                let other = Tensor::from_data(theirs[name].clone(), base.device());
                let own = if holds { own } else { own * 0.5 };
                Tensor::cat(vec![own, other], usize::from(leaf == "a"))
            });
            [states(&joined, base), states(&(one, two), base)]
        };

    the_order_of_the_ranks_does_not_matter: "LoRA" = "LoRA" if "columns of A and rows of B are permuted alike",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let (config, order) = (LoraConfig::new(3), [2usize, 0, 1]);
            let lora = random(&config, base, seed);
            let permuted = changed(&config, &lora, base, |_, leaf, own| match (leaf, holds) {
                ("a", _) => Tensor::cat(order.iter().map(|i| own.clone().narrow(1, *i, 1)).collect(), 1),
                (_, true) => Tensor::cat(order.iter().map(|i| own.clone().narrow(0, *i, 1)).collect(), 0),
                (_, false) => own,
            });
            [states(&permuted, base), states(&lora, base)]
        };

    alpha_may_stand_in_b: "LoRA" = "LoRA" if "alpha' = c alpha and B' = B / c", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let lora = random(&LoraConfig::new(3).with_alpha(2.0), base, seed);
        let (config, by) = (LoraConfig::new(3).with_alpha(5.0), if holds { 2.5 } else { 1.0 });
        let scaled = changed(&config, &lora, base, |_, leaf, own| if leaf == "b" { own / by } else { own });
        [states(&scaled, base), states(&lora, base)]
    };

    rslora_is_lora_of_another_alpha: "rsLoRA" = "LoRA" if "its alpha is alpha / sqrt(r)", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let lora = random(&LoraConfig::new(3).with_alpha(2.0), base, seed);
            let alpha = if holds { 2.0 / 3f64.sqrt() } else { 2.0 };
            let rslora = LoraConfig::new(3).with_alpha(alpha).with_rslora();
            [states(&changed(&rslora, &lora, base, |_, _, own| own), base), states(&lora, base)]
        };

    a_rank_of_zeros_adds_nothing: "LoRA" = "LoRA of a lower rank" if "the other rows of B are 0", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let low = random(&LoraConfig::new(2).with_alpha(2.0), base, seed);
            let high = LoraConfig::new(3).with_alpha(3.0);
            let more = tensors(&random(&high, base, seed + 1));
            let padded = changed(&high, &low, base, |name, leaf, own| {
                let dim = usize::from(leaf == "a");
                let last = Tensor::<2>::from_data(more[name].clone(), base.device()).narrow(dim, 2, 1);
                let last = if holds && leaf == "b" { last.zeros_like() } else { last };
                Tensor::cat(vec![own, last], dim)
            });
            [states(&padded, base), states(&low, base)]
        };

    within_all_layers_it_is_itself: "LoRA within some layers" = "LoRA" if "they are all", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let lora = random(&LoraConfig::new(2), base, seed);
            let layers = base.shape().layers.max(3);
            [states(&Within::new(lora.clone(), 0..if holds { layers } else { 1 }), base), states(&lora, base)]
        };

    within_no_layer_it_is_the_base: "LoRA within some layers" = "base" if "they are none", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let lora = random(&LoraConfig::new(2), base, seed);
            [states(&Within::new(lora, 0..usize::from(!holds)), base), states(&Bare {}, base)]
        };

    loras_at_different_sites_are_one_at_all_of_them: "LoRA" = "LoRA and LoRA" if "its sites are theirs, with their factors",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let on = |part, seed| random(&LoraConfig::new(2).with_sites(part), base, seed);
            let (a, b) = (on(Part::Query, seed), on(Part::Value, seed + 1));
            let other = if holds { b.clone() } else { on(Part::Value, seed + 2) };
            let both = [tensors(&a), tensors(&other)].into_iter().flatten().collect();
            let one = with_values(LoraConfig::new(2).with_sites(Part::Query | Part::Value).init(base, 0).unwrap(), &both);
            [states(&one.unwrap(), base), states(&(a, b), base)]
        };

    adalora_starts_as_the_base: "AdaLoRA" = "base" if "E = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let start = AdaLoraConfig::new(4, 2).init(base, seed).unwrap();
        [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
    };

    adalora_is_a_lora: "AdaLoRA" = "LoRA" if "A = P, B = E Q, s = alpha / (r + 1e-5)", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let (alpha, r) = (5.0, 4.0);
        let adalora = randomized(&AdaLoraConfig::new(4, 2).with_alpha(alpha).init(base, seed).unwrap(), seed);
        let values = tensors(&adalora);
        let matrix = |name: String| Tensor::<2>::from_data(values[&name].clone(), base.device());
        let sites = values.keys().filter_map(|name| name.strip_prefix("triplets.")?.strip_suffix(".p"));
        let factors = sites.flat_map(|site| {
            let [p, e, q] = ["p", "e", "q"].map(|leaf| matrix(format!("triplets.{site}.{leaf}")));
            let b = if holds { e * q } else { q };
            [(format!("factors.{site}.a"), p.into_data()), (format!("factors.{site}.b"), b.into_data())]
        });
        let config = LoraConfig::new(4).with_alpha(alpha * r / (r + 1e-5));
        let lora = with_values(config.init(base, 0).unwrap(), &factors.collect()).unwrap();
        [states(&adalora, base), states(&lora, base)]
    };

    increlora_starts_as_the_base: "IncreLoRA" = "base" if "E = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        start(&IncreLoraConfig::new(2), base, seed, holds)
    };

    increlora_is_a_lora: "IncreLoRA" = "LoRA" if "A = P, B = E Q, s = alpha / (r + 1e-5), r its rank now", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = IncreLoraConfig { init_r: 2, ..IncreLoraConfig::new(3) };
            let increlora = random(&config, base, seed);
            let values = tensors(&increlora);
            let matrix = |name: String| Tensor::<2>::from_data(values[&name].clone(), base.device());
            let sites = values.keys().filter_map(|name| name.strip_prefix("maps.")?.strip_suffix(".0.p"));
            let factors = sites.flat_map(|site| {
                let [p, e, q] = ["p", "e", "q"].map(|leaf| matrix(format!("maps.{site}.0.{leaf}")));
                let b = if holds { e * q } else { q };
                [(format!("factors.{site}.a"), p.into_data()), (format!("factors.{site}.b"), b.into_data())]
            });
            let lora = LoraConfig::new(2).with_alpha(32.0 * 2.0 / (2.0 + 1e-5)).with_sites(config.target_modules);
            let lora = with_values(lora.init(base, 0).unwrap(), &factors.collect()).unwrap();
            [states(&increlora, base), states(&lora, base)]
        };

    the_mean_of_laplace_lora_is_a_lora: "Laplace-LoRA" = "LoRA" if "the LoRA is its mean", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let config = LoraConfig::new(2);
        let lora = random(&config, base, seed);
        let of = if holds { lora.clone() } else { random(&config, base, seed + 1) };
        let trained = Trained::new(AnyTuner::new(of), Head::classifier(base, 2, 3)).unwrap();
        let source = Source { name: "finished".into(), config: config.clone().into(), trained };
        let laplace = LaplaceLoraConfig::of(&config).unwrap().init_from(base, 0, &[source]).unwrap();
        [states(&laplace, base), states(&lora, base)]
    };

    loraprune_starts_as_the_base: "LoRAPrune" = "base" if "B = 0, nothing is masked", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        start(&LoraPruneConfig::new(2), base, seed, holds)
    };

    loraprune_of_everything_is_a_lora: "LoRAPrune" = "LoRA" if "nothing is masked, with its factors", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let pruned = random(&LoraPruneConfig::new(2), base, seed);
            let factors = tensors(&pruned).into_iter().filter(|(name, _)| name.starts_with("factors.")).collect();
            let all = LoraConfig::new(2).with_alpha(16.0).with_sites(Sites::Pattern("all-linear".into()));
            let lora = with_values(all.init(base, 0).unwrap(), &factors).unwrap();
            let gone = tensors(&pruned).into_iter().filter(|(name, _)| name.starts_with("masks.") && !holds);
            let gone = gone.map(|(name, data)| (name, TensorData::zeros::<f32, _>(data.shape().clone()))).collect();
            [states(&with_values(pruned, &gone).unwrap(), base), states(&lora, base)]
        };

    said_starts_as_the_base: "Intrinsic SAID" = "base" if "theta = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let start = IntrinsicSaidConfig::new(307).init(base, seed).unwrap();
        [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, base)]
    };

    said_without_scales_is_did: "Intrinsic SAID" = "DID" if "lambda = 1, the same theta and seed", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let said = IntrinsicSaidConfig::new(307).with_seed(seed);
            let tuner = said.init(base, 0).unwrap();
            let mut values = tensors(&randomized(&tuner, seed));
            let theta = values["theta"].clone();
            if holds {
                values.insert("lambda".into(), tensors(&tuner)["lambda"].clone());
            }
            let did = IntrinsicSaidConfig::new(theta.shape()[0]).without_scales().with_seed(seed);
            let did = with_values(did.init(base, 0).unwrap(), &[("theta".to_string(), theta)].into()).unwrap();
            [states(&with_values(tuner, &values).unwrap(), base), states(&did, base)]
        };

    krona_starts_as_the_base: "KronA" = "base" if "A = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        start(&KronaConfig::new(), base, seed, holds)
    };

    krona_folds_into_the_weights: "KronA" = "base" if "W' = W + s (A (x) B)", MERGED on SHAPES, |base, seed, holds| {
        let krona = random(&KronaConfig::new(), base, seed);
        let folded = if holds { krona.clone() } else { random(&KronaConfig::new(), base, seed + 1) };
        [states(&krona, base), states(&Bare {}, &base.merged(&folded.valid()))]
    };

    krona_of_a_column_and_a_row_is_a_lora: "KronA" = "LoRA of rank 1" if "a2 = b1 = 1, with its factors", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let krona = KronaConfig::new().with_factor([base.shape().hidden, 1]).with_sites(Part::Query);
            let krona = random(&krona, base, seed);
            let values = tensors(&krona).into_iter().map(|(name, data)| {
                let name = name.replace("maps.", "factors.").replace(".product", "").replace(".Whole", "");
                let scaled = Tensor::<2>::from_data(data, base.device()) * if holds { 1.0 } else { 0.5 };
                (name, scaled.into_data())
            });
            let lora = LoraConfig::new(1).with_alpha(1.0).with_sites(Part::Query).init(base, 0).unwrap();
            [states(&krona, base), states(&with_values(lora, &values.collect()).unwrap(), base)]
        };

    lokr_is_krona: "LoKr" = "KronA" if "its B is the product of what is split", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let lokr = random(&KronaConfig::lokr(1).with_alpha(2.0), base, seed);
        let values = tensors(&lokr);
        let matrix = |name: String| Tensor::<2>::from_data(values[&name].clone(), base.device());
        let whole = values.iter().filter_map(|(name, data)| {
            let Some(of) = name.strip_suffix(".b.Split.a") else {
                return name.ends_with(".Whole").then(|| (name.clone(), data.clone()));
            };
            let [a, b] = ["a", "b"].map(|leaf| matrix(format!("{of}.b.Split.{leaf}")));
            let b = if holds { b } else { b * 0.5 };
            Some((format!("{of}.b.Whole"), a.matmul(b).into_data()))
        });
        let krona = KronaConfig::new().with_alpha(2.0).init(base, 0).unwrap();
        [states(&lokr, base), states(&with_values(krona, &whole.collect()).unwrap(), base)]
    };

    krona_b_starts_as_the_base: "KronA_B" = "base" if "A = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        start(&KronaBConfig::new(), base, seed, holds)
    };

    krona_b_res_without_a_residual_is_krona_b: "KronA_B_res" = "KronA_B" if "t = 0, the same factors", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let plain = random(&KronaBConfig::new(), base, seed);
            let residual = KronaBConfig { residual: Some(if holds { 0.0 } else { 0.5 }), ..KronaBConfig::new() };
            let residual = with_values(residual.init(base, 0).unwrap(), &tensors(&plain)).unwrap();
            [states(&residual, base), states(&plain, base)]
        };

    lora_fa_is_a_lora: "LoRA-FA" = "LoRA" if "the same A and B", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let frozen = random(&LoraConfig::new(3).with_frozen_a(), base, seed);
        let other = random(&LoraConfig::new(3).with_frozen_a(), base, seed + 1);
        let lora = LoraConfig::new(3).init(base, 0).unwrap();
        [states(&frozen, base), states(&with_values(lora, &tensors(if holds { &frozen } else { &other })).unwrap(), base)]
    };

    sums_of_l_loras_are_l_loras: "L-LoRA" = "L-LoRA and L-LoRA" if "its B is the sum of theirs, with the shared A", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = LoraConfig::new(3).with_shared_a(42);
            let (one, two) = (random(&config, base, seed), random(&config, base, seed + 1));
            let others = tensors(&two);
            let sum = changed(&config, &one, base, |name, leaf, own| match (leaf, holds) {
                ("b", true) => own + Tensor::from_data(others[name].clone(), base.device()),
                _ => own,
            });
            [states(&sum, base), states(&(one, two), base)]
        };

    dylora_starts_as_the_base: "DyLoRA" = "base" if "B = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        start(&DyLoraConfig::new(3), base, seed, holds)
    };

    dylora_served_at_a_rank_is_a_lora: "DyLoRA" = "LoRA of rank b" if "rank b is served, with the first b components and the same alpha",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let config = DyLoraConfig::new(4);
            let dylora = random(&config, base, seed);
            let (_, lora) = config.as_lora(&dylora.clone().with_rank(2), base).unwrap();
            [states(&dylora.with_rank(if holds { 2 } else { 3 }), base), states(&lora, base)]
        };

    kernel_mix_starts_as_the_base: "Kernel-mix-lite" = "base" if "B = 0, c = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        start(&KernelMixConfig::new(1, 2).with_output(), base, seed, holds)
    };

    kernel_mix_folds_into_the_weights: "Kernel-mix-lite" = "base" if "W_q, W_v, W_o and their biases take the heads' products in",
        MERGED on SHAPES, |base, seed, holds| {
            let config = KernelMixConfig::new(1, 2).with_output();
            let mix = random(&config, base, seed);
            let folded = if holds { mix.clone() } else { random(&config, base, seed + 1) };
            [states(&mix, base), states(&Bare {}, &base.merged(&folded.valid()))]
        };

    moelora_starts_as_the_base: "MOELoRA" = "base" if "all B_i = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        start(&MoeLoraConfig::new(2).with_dropout(0.0), base, seed, holds)
    };

    moelora_of_one_expert_is_a_lora: "MOELoRA" = "LoRA" if "there is one expert", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let config = MoeLoraConfig::new(2).with_experts(if holds { 1 } else { 2 }, 4).with_alpha(4.0).with_dropout(0.0);
        let moelora = random(&config, base, seed);
        let values = tensors(&moelora).into_iter();
        let factors = values.filter_map(|(name, data)| Some((format!("factors.{}", name.strip_prefix("maps.")?), data)));
        let lora = LoraConfig::new(4).with_alpha(4.0).with_sites(Sites::Pattern("all-linear".into())).init(base, 0).unwrap();
        [states(&moelora, base), states(&with_values(lora, &factors.collect()).unwrap(), base)]
    };

    loftq_of_no_steps_is_a_lora_on_nf4: "LoftQ" = "LoRA on the base in NF4" if "T = 0, the same factors", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let loftq = random(&LoftQConfig::new(3).with_steps(0).with_sites(Part::Query), base, seed);
            let lora = LoraConfig::new(3).with_sites(Part::Query).init(base, 0).unwrap();
            let quantized = if holds { nf4(base, &Part::Query.into()) } else { base.clone() };
            [states(&loftq, base), states(&with_values(lora, &tensors(&loftq)).unwrap(), &quantized)]
        };

    loftq_of_full_rank_starts_as_the_base: "LoftQ" = "base" if "r = min(d_in, d_out), at the start", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = LoftQConfig::new(if holds { 24 } else { 8 }).with_sites(Part::Query);
            [states(&config.init(base, seed).unwrap(), base), states(&Bare {}, base)]
        };

    loftq_on_nf4_starts_as_the_base: "LoftQ" = "base" if "the base is in NF4 already, at the start", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let base = if holds { nf4(base, &Part::Query.into()) } else { base.clone() };
            let start = LoftQConfig::new(3).with_sites(Part::Query).init(&base, seed).unwrap();
            [states(&start, &base), states(&Bare {}, &base)]
        };

    qa_lora_starts_as_the_quantized_base: "QA-LoRA" = "base in integers of groups" if "B = 0", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = QaLoraConfig::new(3).with_groups(4, 8).with_sites(Part::Query);
            let start = config.init(base, seed).unwrap();
            let quantized = grouped(base, &Part::Query.into(), 4, 8);
            [states(&if holds { start } else { randomized(&start, seed) }, base), states(&Bare {}, &quantized)]
        };

    qa_lora_of_groups_of_one_is_a_lora: "QA-LoRA" = "LoRA on the base in integers of groups" if "G = 1, the same factors", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = QaLoraConfig::new(3).with_alpha(8.0).with_groups(8, 1).with_sites(Part::Query);
            let qa_lora = random(&config, base, seed);
            let lora = LoraConfig::new(3).with_sites(Part::Query).init(base, 0).unwrap();
            let other = tensors(&random(&config, base, seed + 1));
            let values = if holds { tensors(&qa_lora) } else { other };
            let quantized = grouped(base, &Part::Query.into(), 8, 1);
            [states(&qa_lora, base), states(&with_values(lora, &values).unwrap(), &quantized)]
        };

    qa_lora_folds_into_zero_points: "QA-LoRA" = "base in integers of groups" if "z' = z - s A B / a", MERGED on SHAPES, |base, seed, holds| {
        let config = QaLoraConfig::new(3).with_alpha(2.0).with_groups(4, 8).with_sites(Part::Query);
        let qa_lora = random(&config, base, seed);
        let folded = if holds { qa_lora.clone() } else { random(&config, base, seed + 1) };
        [states(&qa_lora, base), states(&Bare {}, &base.merged(&folded.valid()))]
    };
}
