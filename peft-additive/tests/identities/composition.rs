use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Ia3Config, PrefixTuningConfig, PromptTuningConfig, SequentialConfig};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, batch, randomized};
use peft_core::view::{tensors, with_values};
use peft_core::{Adapter, Bare, Base, Method, Tuner, Within};

use crate::{bases, run, with};

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

/// Two prompts, or two prefixes, are one of all their rows.
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
        assert_close(run(&(a, b), base, &batch), run(&joined, base, &batch), SAME_FUNCTION, name);
    }
    for base in bases() {
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
