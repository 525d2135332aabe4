//! What the methods of this crate are the same as, and when.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData, activation};
use peft_additive::{
    AdapterDropConfig, AdapterFusionConfig, AdapterSoupConfig, AttemptConfig, AttentionFusionConfig, CodaConfig,
    HadamardConfig, HyperformerConfig, Ia3Config, Init, LstConfig, MeraConfig, MptConfig, PTuningConfig,
    ParallelConfig, PastaConfig, PrefixTuningConfig, PromptTuningConfig, Reparameterization, ResidualConfig,
    SequentialConfig, TinyAttnConfig, WarpConfig,
};
use peft_core::testing::{examples, randomized, states};
use peft_core::view::{tensors, with_values};
use peft_core::{
    AnyTuner, Bare, Base, Example, Frame, Head, Hooks, Method, Next, Part, Procedure, Sequence, Site, Sites, Source,
    Trained, Tuner, adapter, equivalences,
};

fn random<M: Method>(config: &M, base: &Base, seed: u64) -> M::Tuner {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// One with these tensors.
fn with<M: Method>(config: &M, base: &Base, values: BTreeMap<String, TensorData>) -> M::Tuner {
    with_values(config.init(base, 0).unwrap(), &values).unwrap()
}

/// At its start, or (`holds` is false) at a random state.
fn start<M: Method>(config: &M, base: &Base, seed: u64, holds: bool) -> M::Tuner {
    if holds { config.init(base, seed).unwrap() } else { random(config, base, seed) }
}

/// A finished adapter.
fn source<M: Method>(config: M, tuner: M::Tuner, base: &Base) -> Source {
    let trained = Trained::new(AnyTuner::new(tuner), Head::classifier(base, 2, 3)).unwrap();
    Source { name: "source".into(), config: config.into(), trained }
}

/// Two methods that act at different seams, and both in the other order; without `holds` one of them is another.
fn both_ways<A: Method, B: Method>(a: A, b: B, base: &Base, seed: u64, holds: bool) -> [Tensor<3>; 2]
where
    A::Tuner: peft_core::Adapter,
    B::Tuner: peft_core::Adapter,
{
    let (first, second) = (random(&a, base, seed), random(&b, base, seed + 1));
    let other = if holds { second.clone() } else { random(&b, base, seed + 2) };
    [states(&(first.clone(), second), base), states(&(other, first), base)]
}

/// Two of a kind in a row against one with all their rows; without `holds` in the other order.
fn joined<M: Method>(config: impl Fn(usize) -> M, name: &str, base: &Base, seed: u64, holds: bool) -> [Tensor<3>; 2]
where
    M::Tuner: peft_core::Adapter,
{
    // On T5 PEFT's prompts hold rows for the decoder behind those for the encoder.
    let halves = |tuner: &M::Tuner, n: usize| {
        let rows = Tensor::<2>::from_data(tensors(tuner)[name].clone(), base.device());
        (0..rows.dims()[0] / n).map(|half| rows.clone().narrow(0, half * n, n)).collect::<Vec<_>>()
    };
    let (a, b) = (random(&config(2), base, seed), random(&config(3), base, seed + 1));
    let rows = halves(&a, 2).into_iter().zip(halves(&b, 3));
    let rows = rows.flat_map(|(a, b)| if holds { [a, b] } else { [b, a] }).collect();
    let one = with(&config(5), base, [(name.to_string(), Tensor::cat(rows, 0).into_data())].into());
    [states(&(a, b), base), states(&one, base)]
}

/// y = layer(x) + relu(x W_down + b_down) W_up + b_up, with the tensors of CoDA's adapters.
#[derive(Module, Debug)]
struct Beside {
    #[module(skip)]
    own: BTreeMap<String, TensorData>,
}

impl Hooks for Beside {
    fn layer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        let (input, device) = (x.hidden.clone(), x.hidden.device());
        let map = |x: Tensor<3>, map: &str| {
            let own = |leaf: &str| self.own[&format!("adapters.{site}.{map}.{leaf}")].clone();
            let (weight, bias) =
                (Tensor::<2>::from_data(own("weight"), &device), Tensor::<1>::from_data(own("bias"), &device));
            x.matmul(weight.unsqueeze()) + bias.unsqueeze()
        };
        let added = map(activation::relu(map(input, "down")), "up");
        let x = next(x);
        Sequence { hidden: x.hidden.clone() + added, ..x }
    }
}

adapter!(Beside);
impl Procedure for Beside {}

fn hyperformer() -> HyperformerConfig {
    HyperformerConfig::new(3).with_bottleneck(5).with_dims(4, 6, 7)
}

/// Final states on the tests' sequences as those of one task.
fn states_of_task(tuner: &impl Tuner, base: &Base, task: usize) -> Tensor<3> {
    let examples: Vec<Example> = examples(base).into_iter().map(|example| Example { task, ..example }).collect();
    let batch = base.batch(&examples.iter().collect::<Vec<_>>()).unwrap();
    tuner.valid().run(base, &batch).unwrap().states
}

equivalences! {
    an_adapter_without_an_output_is_the_base: "sequential adapter" = "base" if "W_up = 0, b_up = 0, its normalizations are the base's", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = SequentialConfig::houlsby(5).with_init(Init::ZeroUp);
            [states(&start(&config, base, seed, holds), base), states(&Bare {}, base)]
        };

    a_residual_adapter_without_an_output_is_the_base: "residual adapter" = "base" if "W_up = 0, b_up = 0, e = 0", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let mut values = tensors(&random(&ResidualConfig::new(5), base, seed));
            for (_, data) in values.iter_mut().filter(|(name, _)| holds && (name.contains(".up.") || name.starts_with("tasks"))) {
                *data = TensorData::zeros::<f32, _>(data.shape().clone());
            }
            [states(&with(&ResidualConfig::new(5), base, values), base), states(&Bare {}, base)]
        };

    a_tiny_attention_without_an_output_is_the_base: "Tiny-Attn adapter" = "base" if "W_up = 0, b_up = 0", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let mut values = tensors(&random(&TinyAttnConfig::new(2), base, seed));
            for (_, data) in values.iter_mut().filter(|(name, _)| holds && name.contains(".up.")) {
                *data = TensorData::zeros::<f32, _>(data.shape().clone());
            }
            [states(&with(&TinyAttnConfig::new(2), base, values), base), states(&Bare {}, base)]
        };

    heads_are_their_average: "Tiny-Attn adapter" = "Tiny-Attn adapter of one head, their average" if "the heads have the same queries, keys and values",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let mut values = tensors(&random(&TinyAttnConfig::new(2), base, seed));
            for (_, data) in values.iter_mut().filter(|(name, _)| holds && name.contains(".mix.")) {
                let numbers: Vec<f32> = data.iter().collect();
                let alike = (0..numbers.len()).map(|i| numbers[i - i % 2]).collect();
                *data = TensorData::new(alike, data.shape().clone());
            }
            let heads = with(&TinyAttnConfig::new(2), base, values).valid();
            [states(&heads, base), states(&heads.averaged(), base)]
        };

    ia3_starts_as_the_base: "(IA)^3" = "base" if "l = 1", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        [states(&start(&Ia3Config::new(), base, seed, holds), base), states(&Bare {}, base)]
    };

    ia3_folds_into_the_weights: "(IA)^3" = "base" if "W' = W diag(l), b' = b l, or W' = diag(l) W", MERGED on SHAPES,
        |base, seed, holds| {
            let ia3 = random(&Ia3Config::new(), base, seed);
            let folded = random(&Ia3Config::new(), base, if holds { seed } else { seed + 1 });
            [states(&ia3, base), states(&Bare {}, &base.merged(&folded.valid()))]
        };

    two_ia3_are_their_product: "(IA)^3" = "(IA)^3 and (IA)^3" if "its factors are the products of theirs", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let (a, b) = (random(&Ia3Config::new(), base, seed), random(&Ia3Config::new(), base, seed + 1));
            let mut product = tensors(&a);
            for (name, other) in tensors(&b) {
                let own: Vec<f32> = product[&name].iter().collect();
                let other = other.iter::<f32>().map(|factor| if holds { factor } else { 1.0 });
                let values: Vec<f32> = own.iter().zip(other).map(|(own, other)| own * other).collect();
                product.insert(name.clone(), TensorData::new(values, product[&name].shape().clone()));
            }
            [states(&with(&Ia3Config::new(), base, product), base), states(&(a, b), base)]
        };

    factors_of_keys_may_be_those_of_queries: "(IA)^3 on the keys" = "(IA)^3 on the queries" if "the factors are the same",
        SAME_FUNCTION on ENCODERS, |base, seed, holds| {
            let on = |part: Part| Ia3Config::new().with_sites(part, Sites::Parts(vec![]));
            let key = random(&on(Part::Key), base, seed);
            let other = if holds { key.clone() } else { random(&on(Part::Key), base, seed + 1) };
            let named = tensors(&other).into_iter().map(|(name, data)| (name.replace("key", "query"), data)).collect();
            [states(&key, base), states(&with(&on(Part::Query), base, named), base)]
        };

    a_hadamard_adapter_starts_as_the_base: "Hadamard adapter" = "base" if "w = 1, b = 0, the normalizations are the base's", SAME_FUNCTION on SHAPES,
        |base, seed, holds| [states(&start(&HadamardConfig::new(), base, seed, holds), base), states(&Bare {}, base)];

    a_hadamard_adapter_on_the_heads_is_ia3: "Hadamard adapter, normalizations frozen" = "(IA)^3 on the values" if "w = l, b = 0", SAME_FUNCTION on ENCODERS,
        |base, seed, holds| {
            let mut values = tensors(&random(&HadamardConfig::new().with_train_layernorm(false), base, seed));
            let on_values = Ia3Config::new().with_sites(Part::Value, Sites::Parts(vec![]));
            for (_, b) in values.iter_mut().filter(|(name, _)| holds && name.starts_with("biases.")) {
                *b = TensorData::zeros::<f32, _>(b.shape().clone());
            }
            let factors = values.iter().filter_map(|(name, w)| {
                let name = name.strip_prefix("weights.")?.replace("output", "value");
                Some((format!("outputs.{name}"), TensorData::new(w.iter::<f32>().collect::<Vec<_>>(), [24, 1])))
            });
            let ia3 = with(&on_values, base, factors.collect());
            [states(&with(&HadamardConfig::new().with_train_layernorm(false), base, values), base), states(&ia3, base)]
        };

    pasta_without_vectors_is_the_base: "PASTA" = "base" if "e = 0", SAME_FUNCTION on SHAPES, |base, seed, holds| {
        let config = PastaConfig::new().with_special_tokens((4..97).step_by(3), 2);
        let mut values = tensors(&random(&config, base, seed));
        for data in values.values_mut().filter(|_| holds) {
            *data = TensorData::zeros::<f32, _>(data.shape().clone());
        }
        [states(&with(&config, base, values), base), states(&Bare {}, base)]
    };

    fusion_of_the_last_layer_is_the_base: "AttentionFusion" = "base" if "the last layer is the only one", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let last = base.shape().stacks().last().map_or(0, |(_, layers)| *layers);
            let layers = if holds { vec![last] } else { vec![last - 1, last] };
            let fusion = random(&AttentionFusionConfig::new().with_layers(layers), base, seed);
            [states(&fusion, base), states(&Bare {}, base)]
        };

    attempt_starts_as_twice_its_source: "ATTEMPT of one source" = "prompt tuning" if "P_t = P_1 = P, the rows are 2 P", SAME_FUNCTION on ENCODERS,
        |base, seed, holds| {
            let config = PromptTuningConfig::new(3);
            let prompt = random(&config, base, seed);
            let source = source(config.clone(), prompt.clone(), base);
            let start = AttemptConfig::new(3).init_from(base, seed, &[source]).unwrap();
            let twice = prompt.valid().rows() * 2.0;
            let twice = with(&config, base, [("prompt_embeddings".to_string(), twice.into_data())].into());
            [states(&if holds { start } else { randomized(&start, seed) }, base), states(&twice, base)]
        };

    a_task_of_mpt_is_prompt_tuning: "MPT on one task" = "prompt tuning" if "the rows are P* o (C_k R_k)", SAME_FUNCTION on ENCODERS,
        |base, seed, holds| {
            let mpt = random(&MptConfig::new(4, 3).with_ranks(2), base, seed);
            let folded = mpt.folded(if holds { 1 } else { 2 }, base).unwrap();
            [states_of_task(&mpt, base, 1), states_of_task(&folded, base, 1)]
        };

    mpt_of_factors_alike_is_one_task: "MPT on one task" = "MPT on another" if "they have the same factors", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let mut values = tensors(&random(&MptConfig::new(4, 2), base, seed));
            for (_, data) in values.iter_mut().filter(|(name, _)| holds && *name != "shared") {
                let numbers: Vec<f32> = data.iter().collect();
                let first = numbers[..numbers.len() / 2].repeat(2);
                *data = TensorData::new(first, data.shape().clone());
            }
            let mpt = with(&MptConfig::new(4, 2), base, values);
            [0, 1].map(|task| states_of_task(&mpt, base, task))
        };

    warp_of_words_is_the_base: "WARP" = "base on a text with mask and words in the template's places" if "the slots are the rows of these words",
        SAME_FUNCTION on ENCODERS, |base, seed, holds| {
            let config = WarpConfig::new("1 <mask> 1 {text}").with_mask(5).with_words([30, if holds { 31 } else { 32 }]);
            let hard = examples(base).into_iter().map(|mut text| {
                text.ids.splice(1..1, [30, 5, 31]);
                text.types.as_mut().into_iter().for_each(|types| drop(types.splice(1..1, [0, 0, 0])));
                text
            });
            let batch = base.batch(&hard.collect::<Vec<_>>().iter().collect::<Vec<_>>()).unwrap();
            let [_, rows] = batch.dims();
            let padding = batch.padding.clone().unwrap().unsqueeze_dim::<3>(2);
            let real = |states: Tensor<3>| states.clone().mask_fill(padding.clone().expand(states.dims()), 0.0);
            // Mask and slots stand in front.
            let soft = states(&config.init(base, seed).unwrap(), base);
            let row = |from: usize, n: usize| soft.clone().narrow(1, from, n);
            let soft = Tensor::cat(vec![row(3, 1), row(1, 1), row(0, 1), row(2, 1), row(4, rows - 4)], 1);
            [real(soft), real(Bare {}.run(base, &batch).unwrap().states)]
        };

    two_prompts_are_one: "prompt tuning" = "prompt tuning and prompt tuning" if "its rows are theirs, the outer one's first",
        SAME_FUNCTION on SHAPES, |base, seed, holds| joined(PromptTuningConfig::new, "prompt_embeddings", base, seed, holds);

    two_prefixes_are_one: "prefix tuning" = "prefix tuning and prefix tuning" if "its rows are theirs, the inner one's first", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let (a, b) = (random(&PrefixTuningConfig::new(2), base, seed), random(&PrefixTuningConfig::new(3), base, seed + 1));
            let rows = |prefix| Tensor::<2>::from_data(tensors(prefix)["embedding"].clone(), base.device());
            let last = if holds { rows(&b) } else { rows(&b) * 0.5 };
            let all = Tensor::cat(vec![last, rows(&a)], 0).into_data();
            let one = with(&PrefixTuningConfig::new(5), base, [("embedding".to_string(), all)].into());
            [states(&(a, b), base), states(&one, base)]
        };

    a_projected_prefix_is_a_flat_one: "prefix tuning with a projection" = "prefix tuning" if "its rows are what the projection gives",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let projected = random(&PrefixTuningConfig::new(4).with_projection(7), base, seed).valid();
            let own = tensors(&projected);
            let matrix = |name: &str| Tensor::<2>::from_data(own[name].clone(), base.device());
            let vector = |name: &str| Tensor::<1>::from_data(own[name].clone(), base.device()).unsqueeze::<2>();
            let inner = matrix("embedding").matmul(matrix("projection.inner.weight")) + vector("projection.inner.bias");
            let inner = if holds { inner.tanh() } else { inner };
            let rows = inner.matmul(matrix("projection.outer.weight")) + vector("projection.outer.bias");
            let flat = with(&PrefixTuningConfig::new(4), base, [("embedding".to_string(), rows.into_data())].into());
            [states(&projected, base), states(&flat, base)]
        };

    p_tuning_is_prompt_tuning: "P-tuning" = "prompt tuning" if "the prompt is what its encoder gives", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = PTuningConfig::new(4).with_hidden_size(7).with_encoder(Reparameterization::Lstm);
            let tuned = random(&config, base, seed).valid();
            let other = if holds { tuned.clone() } else { random(&config, base, seed + 1).valid() };
            let rows = tensors(&PTuningConfig::to_saved(other)).into_values().next().unwrap();
            let prompt = with(&PromptTuningConfig::new(4), base, [("prompt_embeddings".to_string(), rows)].into());
            [states(&tuned, base), states(&prompt, base)]
        };

    a_prompt_and_a_prefix_commute: "prompt tuning and prefix tuning" = "prefix tuning and prompt tuning" if "they are the same",
        SAME_FUNCTION on SHAPES,
        |base, seed, holds| both_ways(PromptTuningConfig::new(2), PrefixTuningConfig::new(3), base, seed, holds);

    a_prefix_and_ia3_commute: "prefix tuning and (IA)^3" = "(IA)^3 and prefix tuning" if "they are the same", SAME_FUNCTION on SHAPES,
        |base, seed, holds| both_ways(PrefixTuningConfig::new(3), Ia3Config::new(), base, seed, holds);

    a_prompt_and_an_adapter_commute: "prompt tuning and sequential adapter" = "sequential adapter and prompt tuning"
        if "they are the same", SAME_FUNCTION on SHAPES,
        |base, seed, holds| both_ways(PromptTuningConfig::new(2), SequentialConfig::houlsby(5), base, seed, holds);

    generated_adapters_are_ordinary_ones: "Hyperformer++" = "adapters with a normalization behind them"
        if "they are those generated for the task", SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let tuned = random(&hyperformer(), base, seed);
            let cached = tuned.cached(if holds { 1 } else { 2 }).unwrap();
            [states_of_task(&tuned, base, 1), states_of_task(&cached, base, 1)]
        };

    a_task_is_its_embedding: "Hyperformer++ on one task" = "Hyperformer++ on another" if "the tasks have the same embedding",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let tuned = random(&hyperformer(), base, seed).valid();
            let z = Tensor::<2>::from_data(tensors(&tuned)["tasks"].clone(), base.device());
            let row = |task| z.clone().narrow(0, task, 1);
            let rows = Tensor::cat(vec![row(0), row(0), row(2)], 0).into_data();
            let same = with_values(tuned, &[("tasks".to_string(), rows)].into()).unwrap();
            [states_of_task(&same, base, 0), states_of_task(&same, base, if holds { 1 } else { 2 })]
        };

    adapters_normalized_to_nothing_are_the_base: "Hyperformer++" = "base" if "the generated gain and bias are 0, the model's normalizations are frozen",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let config = hyperformer().with_train_layernorm(false);
            let mut values = tensors(&random(&config, base, seed));
            for (_, data) in values.iter_mut().filter(|(name, _)| holds && name.contains(".post.")) {
                *data = TensorData::zeros::<f32, _>(data.shape().clone());
            }
            [states(&with(&config, base, values), base), states(&Bare {}, base)]
        };

    a_parallel_adapter_starts_as_the_base: "parallel adapter" = "base" if "W_up = 0, b_up = 0", SAME_FUNCTION on SHAPES,
        |base, seed, holds| [states(&start(&ParallelConfig::new(5), base, seed, holds), base), states(&Bare {}, base)];

    coda_of_all_tokens_is_the_base: "CoDA" = "base" if "k = n, W_up = 0, b_up = 0", SAME_FUNCTION on ENCODERS, |base, seed, holds| {
        [states(&start(&CodaConfig::new(1), base, seed, holds), base), states(&Bare {}, base)]
    };

    coda_of_all_tokens_is_a_parallel_adapter: "CoDA" = "an adapter beside each layer" if "k = n", SAME_FUNCTION on ENCODERS,
        |base, seed, holds| {
            let all = random(&CodaConfig::new(1), base, seed);
            let coda = if holds { all.clone() } else { random(&CodaConfig::new(3), base, seed) };
            [states(&coda, base), states(&Beside { own: tensors(&all) }, base)]
        };

    adapters_of_which_none_are_dropped: "AdapterDrop" = "sequential adapter (Pfeiffer)" if "n = 0", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let all = random(&AdapterDropConfig::new(0), base, seed);
            let own = tensors(&all).into_iter().map(|(name, data)| (name.replace("adapters.inner.", ""), data));
            let sequential = with(&SequentialConfig::pfeiffer(48), base, own.collect());
            let all = if holds { all.valid() } else { all.valid().dropping(1) };
            [states(&all, base), states(&sequential, base)]
        };

    fusion_of_one_adapter_is_that: "AdapterFusion of one adapter" = "sequential adapter (Pfeiffer)" if "W_v = I", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = SequentialConfig::pfeiffer(5);
            let one = random(&config, base, seed);
            let source = source(config, one.clone(), base);
            let fusion = AdapterFusionConfig::default().init_from(base, seed, &[source]).unwrap();
            let mut values = tensors(&randomized(&fusion, seed));
            for (_, data) in values.iter_mut().filter(|(name, _)| holds && name.starts_with("value.")) {
                let eye = (0..24 * 24).map(|i| f32::from(u8::from(i / 24 == i % 24))).collect::<Vec<_>>();
                *data = TensorData::new(eye, [24, 24]);
            }
            [states(&with_values(fusion, &values).unwrap(), base), states(&one, base)]
        };

    a_soup_of_copies_is_the_adapter: "AdapterSoup" = "sequential adapter" if "all adapters are that one", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let config = SequentialConfig::pfeiffer(5);
            let one = random(&config, base, seed);
            let other = if holds { one.clone() } else { random(&config, base, seed + 1) };
            let sources = [source(config.clone(), one.clone(), base), source(config, other, base)];
            let soup = AdapterSoupConfig::default().init_from(base, seed, &sources).unwrap();
            [states(&soup, base), states(&one, base)]
        };

    mera_of_units_in_another_order_is_the_adapter: "MerA of two adapters" = "sequential adapter" if "both are that one but for the order of their units",
        SAME_FUNCTION on SHAPES, |base, seed, holds| {
            let config = SequentialConfig::pfeiffer(5);
            let one = random(&config, base, seed);
            let mut values = tensors(&one);
            // The columns of the first map and its bias backwards, and, where they go along, the rows of the second.
            for (name, data) in &mut values {
                let (numbers, columns) = (data.iter().collect::<Vec<f32>>(), data.shape().iter().copied().last().unwrap_or(1));
                let backwards = |row: &[f32]| row.iter().rev().copied().collect::<Vec<_>>();
                if name.contains(".down.") {
                    let rows = numbers.chunks(columns).flat_map(backwards).collect();
                    *data = TensorData::new(rows, data.shape().clone());
                } else if name.ends_with("up.weight") && holds {
                    let rows = numbers.chunks(columns).rev().flatten().copied().collect::<Vec<_>>();
                    *data = TensorData::new(rows, data.shape().clone());
                }
            }
            let sources = [source(config.clone(), one.clone(), base), source(config.clone(), with(&config, base, values), base)];
            let merged = MeraConfig::default().init_from(base, seed, &sources).unwrap();
            [states(&merged, base), states(&one, base)]
        };

    a_side_network_of_full_width: "ladder side-tuning" = "base" if "r = 1, D_0 = U = I, g = 1", SAME_FUNCTION on SHAPES,
        |base, seed, holds| {
            let mut values = tensors(&LstConfig::new(1).init(base, seed).unwrap());
            for (name, data) in &mut values {
                let dims: Vec<usize> = data.shape().iter().copied().collect();
                let identity = |i: usize| if dims.len() == 2 && i / dims[1] == i % dims[1] { 1f32 } else { 0.0 };
                let count = dims.iter().product();
                if name.starts_with("gates.") && holds {
                    *data = TensorData::new(vec![1e3f32; count], dims);
                } else if name.starts_with("starts.") || name.starts_with("up.") {
                    *data = TensorData::new((0..count).map(identity).collect::<Vec<_>>(), dims);
                }
            }
            [states(&with(&LstConfig::new(1), base, values), base), states(&Bare {}, base)]
        };
}
