use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{
    AdapterDropConfig, CodaConfig, HadamardConfig, HyperformerConfig, Ia3Config, PTuningConfig, ParallelConfig,
    PastaConfig, PrefixTuningConfig, PromptInit, PromptTuningConfig, ResidualConfig, SequentialConfig, TinyAttnConfig,
};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, fixtures::SHAPES, randomized};
use peft_core::view::{tensors, with_values};
use peft_core::{Adapter, Bare, Base, Hooks, Method, Procedure, Site, Slot, Stack, Tuner, Weight, Within, adapter};

use super::{bases, run, with};

fn random<M: Method>(config: M, base: &Base, seed: u64) -> M::Tuner {
    randomized(&config.init(base, seed).unwrap(), seed)
}

fn bits(tuner: &impl Tuner, base: &Base) -> TensorData {
    run(tuner, base, &batch(base)).into_data()
}

/// Methods on different seams give the same in either order, differ from each alone, and all their tensors are trained.
fn commute(a: impl Adapter, b: impl Adapter, base: &Base) {
    let both = bits(&(a.clone(), b.clone()), base);
    assert_eq!(both, bits(&(b.clone(), a.clone()), base));
    assert!(both != bits(&a, base) && both != bits(&b, base));
    let pair = (a, b);
    let states = pair.run(base, &batch(base)).unwrap().states;
    let gradients = GradientsParams::from_grads((states.clone() * states.sin()).mean().backward(), &pair);
    assert_eq!(gradients.len(), tensors(&pair).len());
}

#[test]
fn methods_on_different_seams_commute() {
    for base in bases() {
        let (prompt, prefix) = (PromptTuningConfig::new(5), PrefixTuningConfig::new(7));
        let sequential = || random(SequentialConfig::houlsby(6), &base, 3);
        commute(random(prefix.clone(), &base, 1), random(Ia3Config::new(), &base, 2), &base);
        commute(random(prompt.clone(), &base, 1), sequential(), &base);
        commute(random(prompt, &base, 1), random(prefix, &base, 2), &base);
        commute(random(Ia3Config::paper(), &base, 1), sequential(), &base);
    }
}

/// The outer one of two sequential adapters reads what the inner one wrote.
#[test]
fn methods_on_one_seam_do_not_commute() {
    for base in bases() {
        let frozen_norms = SequentialConfig::houlsby(6).with_train_layernorm(false);
        let (a, b) = (random(frozen_norms.clone(), &base, 1), random(frozen_norms, &base, 2));
        assert_ne!(bits(&(a.clone(), b.clone()), &base), bits(&(b, a), &base));
    }
}

/// Two prompts, or two prefixes, are one of all their rows, and no head reads any of them.
#[test]
fn virtual_tokens_join() {
    fn check<M: Method>(config: impl Fn(usize) -> M, name: &str, base: &Base)
    where
        M::Tuner: Adapter,
    {
        let (a, b) = (random(config(5), base, 1), random(config(3), base, 2));
        let rows = |tuner: &M::Tuner| Tensor::<2>::from_data(tensors(tuner)[name].clone(), base.device());
        let joined = with(random(config(8), base, 3), name, Tensor::cat(vec![rows(&a), rows(&b)], 0));
        let batch = batch(base);
        let (found, expected) = ((a, b).valid().run(base, &batch).unwrap(), joined.valid().run(base, &batch).unwrap());
        assert_close(found.states.clone(), expected.states.clone(), SAME_FUNCTION, name);
        assert_close(found.tokens(), expected.tokens(), SAME_FUNCTION, name);
    }
    for base in ["roberta-tiny", "bert-tiny", "llama-tiny"].map(|shape| base(shape, &device())) {
        check(PromptTuningConfig::new, "prompt_embeddings", &base);
        check(PrefixTuningConfig::new, "embedding", &base);
    }
}

/// In some layers only, a method is itself with nothing trained in the others.
#[test]
fn within_some_layers_the_others_are_the_base() {
    fn check<M: Method>(config: M, untrained: M, base: &Base)
    where
        M::Tuner: Adapter,
    {
        let all = random(config, base, 1);
        let mut values = tensors(&untrained.init(base, 1).unwrap());
        values.extend(tensors(&all).into_iter().filter(|(name, _)| name.contains(".encoder.1.")));
        let one = with_values(all.clone(), &values).unwrap();
        let within = bits(&Within::new(all.clone(), 1..2), base);
        assert_eq!(within, bits(&one, base));
        assert!(within != bits(&all, base) && within != bits(&Bare {}, base));
    }
    for base in bases() {
        check(Ia3Config::new(), Ia3Config::new(), &base);
        let sequential = SequentialConfig::pfeiffer(6);
        check(sequential.clone(), sequential.with_init(peft_additive::Init::ZeroUp), &base);
    }
}

/// Other numbers in every tensor of the base, as a method that trains biases or normalizations makes them.
#[derive(Module, Debug)]
struct Other {}

impl Hooks for Other {
    fn weight(&self, _site: Site, w: Weight) -> Weight {
        Weight::Dense(w.dense() * 1.25)
    }
    fn vector(&self, _site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        if slot == Slot::Gain { v * 1.5 } else { v + 0.25 }
    }
}

adapter!(Other);
impl Procedure for Other {}

/// What a method reads of the base is what those beside it have made of that, in either order.
#[test]
fn a_method_sees_the_base_as_the_others_rewrite_it() {
    fn check<M: Method>(config: M, base: &Base)
    where
        M::Tuner: Adapter,
    {
        let rewritten = base.rewritten(&Other {});
        let tuner = random(config.clone(), base, 3);
        let expected = bits(&random(config, &rewritten, 3), &rewritten);
        assert_eq!(bits(&(tuner.clone(), Other {}), base), expected, "{}", M::NAME);
        assert_eq!(bits(&(Other {}, tuner.clone()), base), expected, "{}", M::NAME);
        assert_ne!(bits(&tuner, base), expected, "{}", M::NAME);
    }
    for base in SHAPES.map(|shape| base(shape, &device())) {
        check(SequentialConfig::pfeiffer(6), &base);
        check(SequentialConfig::survey().with_bottleneck(6), &base);
        check(AdapterDropConfig::new(1).with_bottleneck(6), &base);
        check(ParallelConfig::new(6), &base);
        check(ResidualConfig::new(6), &base);
        check(TinyAttnConfig::new(2), &base);
        check(PastaConfig::new().with_special_tokens((4..97).step_by(3), 2), &base);
        check(HyperformerConfig::new(2).with_dims(4, 5, 6).with_train_layernorm(false), &base);
        check(Ia3Config::new(), &base);
        check(HadamardConfig::new().with_train_layernorm(false), &base);
        check(PromptTuningConfig::new(3).with_init(PromptInit::Random), &base);
        check(PTuningConfig::new(3), &base);
        check(PrefixTuningConfig::new(3), &base);
        if base.shape().stacks()[0].0 == Stack::Encoder {
            check(CodaConfig::new(2).with_bottleneck(6), &base);
        }
    }
}
