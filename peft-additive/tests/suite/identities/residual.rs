use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use peft_additive::{Activation, Residual, ResidualConfig};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, fixtures::SHAPES, randomized};
use peft_core::view::{Rewrite, tensors, view};
use peft_core::{Adapter, Bare, Base, Method, Part, Sequence, Stack, random::Random};
use proptest::prelude::*;

use super::bottleneck::{Permute, ZeroUp, activate, normalize};
use super::run;

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn random(base: &Base, seed: u64) -> Residual {
    randomized(&ResidualConfig::new(7).init(base, seed).unwrap(), seed).valid()
}

fn sequence(hidden: Tensor<3>) -> Sequence {
    Sequence { hidden, mask: Default::default(), prompt: 0, offset: 0, past: 0 }
}

/// No task embedding.
struct NoTask;

impl Rewrite for NoTask {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        if name.starts_with("tasks.") { t.zeros_like() } else { t }
    }
}

#[test]
fn equals_adapterhub_with_a_normalization_inside() {
    for (case, base) in [("residual", "roberta-classify"), ("residual-bert", "bert-classify"), ("residual-t5", "t5")] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        Case::open(dir, base).check_method::<ResidualConfig>();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The card's equations, worked out from the tensors, behind what a layer gives.
    #[test]
    fn a_residual_adapter_is_its_equation(seed: u64, layer in 0..2usize) {
        for base in bases() {
            let (residual, batch) = (random(&base, seed), batch(&base));
            let own = tensors(&residual);
            let draw = |name| Random::new(seed, name).normal_tensor([2, 5, 24], 1.0, base.device());
            let (x, y): (Tensor<3>, Tensor<3>) = (draw("x"), draw("y"));
            for site in base.shape().sites(Part::Layer).into_iter().filter(|site| site.layer == layer) {
                let get = |leaf: &str| own[&format!("adapters.{site}.{leaf}")].clone();
                let matrix = |map: &str| Tensor::<2>::from_data(get(&format!("{map}.weight")), base.device()).unsqueeze();
                let vector = |leaf: &str| Tensor::<1>::from_data(get(leaf), base.device()).unsqueeze::<3>();
                let n = normalize(y.clone(), vector("norm.gain"), vector("norm.bias"), base.shape().eps);
                let inner = activate(n.matmul(matrix("down")) + vector("down.bias"), Activation::Relu);
                let expected = y.clone() + inner.matmul(matrix("up")) + vector("up.bias");
                let found = residual.open(&batch, |hooks| {
                    hooks.layer(&base.frame(&batch, hooks), site, sequence(x.clone()), &|_| sequence(y.clone()))
                });
                assert_close(found.hidden, expected, SAME_FUNCTION, &format!("{site}"));
            }
            for (stack, name) in [(Stack::Encoder, "encoder"), (Stack::Decoder, "decoder")] {
                let found = residual.open(&batch, |hooks| hooks.embed(stack, sequence(x.clone()))).hidden;
                let task = own.get(&format!("tasks.{name}.0.words"));
                prop_assert_eq!(task.is_some(), base.shape().stacks().iter().any(|(own, _)| *own == stack));
                let task = task.map_or(Tensor::zeros([24], base.device()), |e| Tensor::<1>::from_data(e.clone(), base.device()));
                assert_close(found, x.clone() + task.unsqueeze(), SAME_FUNCTION, name);
            }
        }
    }

    #[test]
    fn a_residual_adapter_without_a_second_map_is_the_base(seed: u64) {
        for base in bases() {
            let (residual, batch) = (random(&base, seed), batch(&base));
            let silent = view(&view(&residual, &mut ZeroUp { bias: true }), &mut NoTask);
            prop_assert_eq!(run(&silent, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
            prop_assert_ne!(run(&residual, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
        }
    }

    /// The normalization takes out what all channels of a state have in common, the residual keeps it.
    #[test]
    fn a_number_added_to_a_state_passes_through(seed: u64, c in 0.5..2.0f64) {
        for base in bases() {
            let (residual, batch) = (random(&base, seed), batch(&base));
            let y: Tensor<3> = Random::new(seed, "y").normal_tensor([2, 5, 24], 1.0, base.device());
            let site = base.shape().sites(Part::Layer)[1];
            let behind = |y: Tensor<3>| residual.open(&batch, |hooks| {
                hooks.layer(&base.frame(&batch, hooks), site, sequence(y), &|y| y).hidden
            });
            assert_close(behind(y.clone() + c), behind(y) + c, SAME_FUNCTION, "shifted");
        }
    }

    #[test]
    fn the_order_of_the_units_does_not_matter_behind_a_layer(seed: u64) {
        for base in bases() {
            let (residual, batch) = (random(&base, seed), batch(&base));
            let permuted = view(&residual, &mut Permute(&[3, 0, 6, 1, 5, 2, 4]));
            prop_assert_ne!(tensors(&residual), tensors(&permuted));
            assert_close(run(&residual, &base, &batch), run(&permuted, &base, &batch), SAME_FUNCTION, "permuted");
        }
    }
}
