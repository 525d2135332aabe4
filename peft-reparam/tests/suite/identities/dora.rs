use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::random::{Noise, Random};
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION};
use peft_core::testing::{batch, conformance::loss, difference, golden::named, randomized};
use peft_core::view::tensors;
use peft_core::{Adapter, Architecture, Base, Method, Part, Site, Slot, Tuner, Weight};
use peft_reparam::{Lora, LoraConfig};
use proptest::prelude::*;

use super::{bases, run, with};

fn config() -> LoraConfig {
    LoraConfig::new(3).with_alpha(5.0).with_sites(Part::Query | Part::Down)
}

fn random(config: &LoraConfig, base: &Base, seed: u64) -> Lora {
    randomized(&config.init(base, seed).unwrap(), seed)
}

fn lengths(v: Tensor<2>) -> Tensor<1> {
    (v.clone() * v).sum_dim(0).sqrt().squeeze_dim(0)
}

/// A LoRA, and the DoRA of its factors with the lengths of W + s B A as magnitudes.
fn alike(base: &Base, seed: u64) -> (Lora, Lora) {
    let lora = random(&config(), base, seed);
    let merged = base.merged(&lora.clone());
    let magnitudes = config()
        .target_modules
        .resolve(base.shape())
        .unwrap()
        .into_iter()
        .map(|site| (format!("factors.{site}.magnitude"), lengths(merged.weight(site).dense()).into_data()));
    let dora = config().with_dora().init(base, seed).unwrap();
    let values = tensors(&lora).into_iter().chain(magnitudes);
    (lora.clone(), with(dora, values))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn magnitudes_are_the_lengths(seed: u64) {
        for base in bases() {
            let dora = random(&config().with_dora(), &base, seed);
            let (merged, values) = (base.merged(&dora), tensors(&dora));
            for site in config().target_modules.resolve(base.shape()).unwrap() {
                let found = lengths(merged.weight(site).dense());
                let m = Tensor::<1>::from_data(values[&format!("factors.{site}.magnitude")].clone(), base.device());
                prop_assert!(difference(&found.into_data(), &m.abs().into_data()) <= SAME_FUNCTION.0, "{}", site);
            }
        }
    }

    #[test]
    fn with_the_lengths_as_magnitudes_it_is_lora(seed: u64) {
        for base in bases() {
            let (lora, dora) = alike(&base, seed);
            let (lora, dora) = (run(&lora, &base, &batch(&base)), run(&dora, &base, &batch(&base)));
            let size = lora.clone().abs().max().into_scalar::<f32>().max(1.0);
            prop_assert!(difference(&lora.into_data(), &dora.into_data()) <= MERGED.0 * size);
        }
    }

    /// Were the norm differentiated, the gradient of V would lack its part along V. On T5 a rounding can open or close a ReLU, which
    /// moves gradients by more than roundings do; there the gradients are PEFT's (`dora-t5`).
    #[test]
    fn the_norm_has_no_gradient(seed: u64) {
        for base in bases().into_iter().filter(|base| !matches!(base.shape().architecture, Architecture::T5(_))) {
            let (lora, dora) = alike(&base, seed);
            let gradients = |lora: &Lora| {
                let loss = loss(lora.run(&base, &batch(&base)).unwrap());
                named(lora, &GradientsParams::from_grads(loss.backward(), lora))
            };
            let (lora, dora) = (gradients(&lora), gradients(&dora));
            let size = |name: &str| lora[name].iter::<f32>().fold(0.0, |m: f32, g| m.max(g.abs()));
            let largest = lora.keys().map(|name| size(name)).fold(0.0, f32::max);
            for (name, gradient) in &lora {
                let differ = difference(gradient, &dora[name]);
                prop_assert!(differ <= MERGED.0 * largest, "{}: {} of {}", name, differ, largest);
            }
        }
    }

    /// W x + b + (m / |V| - 1) W x' + m / |V| s B A x' with x' the input after dropout, as PEFT has it.
    #[test]
    fn dropout_leaves_the_frozen_product(seed: u64, p in 0.2..0.8) {
        for base in bases() {
            let dora = random(&config().with_dora().with_dropout(p), &base, seed);
            let site = Site { part: Part::Down, ..base.shape().sites(Part::Layer)[0] };
            let [rows, columns] = base.shape().linear_dims(site);
            let draw = |name: &str, dims: [usize; 3]| Random::new(seed, name).normal_tensor(dims, 0.5, base.device());
            let (x, w): (Tensor<3>, _) = (draw("x", [2, 3, rows]), base.weight(site).dense());
            let b: Tensor<1> = draw("b", [1, 1, columns]).reshape([columns]);
            let noise = Noise { seed, step: 1, samples: [4, 5].into_iter().collect() };
            let one = batch(&base).with_noise(Noise { samples: [4, 5].into_iter().collect(), ..noise.clone() });
            let found = dora.open(&one, |hooks| {
                hooks.linear(site, x.clone(), &|x| {
                    hooks.weight(site, Weight::Dense(w.clone())).linear(x, Some(hooks.vector(site, Slot::Bias, b.clone())))
                })
            });
            let values = tensors(&dora);
            let matrix = |leaf: &str| {
                Tensor::<2>::from_data(values[&format!("factors.{site}.{leaf}")].clone(), base.device())
            };
            let m = Tensor::<1>::from_data(values[&format!("factors.{site}.magnitude")].clone(), base.device());
            let update = matrix("a").matmul(matrix("b")) * (5.0 / 3.0);
            let scale = (m / lengths(w.clone() + update.clone())).unsqueeze::<3>();
            let dropped = noise.dropout(x.clone(), p, &format!("lora.{site}"));
            prop_assert!(difference(&dropped.to_data(), &x.to_data()) > 0.0);
            let product = |x: Tensor<3>, w: &Tensor<2>| x.matmul(w.clone().unsqueeze());
            let expected = product(x, &w) + b.unsqueeze() + product(dropped.clone(), &w) * (scale.clone() - 1.0)
                + product(dropped, &update) * scale;
            let size = expected.clone().abs().max().into_scalar::<f32>().max(1.0);
            prop_assert!(difference(&found.inner().into_data(), &expected.into_data()) <= SAME_FUNCTION.0 * size);
        }
    }
}
