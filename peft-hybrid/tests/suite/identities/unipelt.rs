use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{PrefixTuningConfig, SequentialConfig};
use peft_core::random::{Noise, Random};
use peft_core::testing::fixtures::ENCODERS;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, golden::Case, randomized, states};
use peft_core::view::{tensors, with_values};
use peft_core::{Adapter, Added, Base, Delta, Head, Method, Part, Sequence, Trained};
use peft_hybrid::{UniPelt, UniPeltConfig};
use peft_reparam::LoraConfig;
use proptest::prelude::*;

use super::{bases, gradients, values};

fn config() -> UniPeltConfig {
    UniPeltConfig::new(3, 5, 7).with_projection(11)
}

fn encoders() -> [Base; 2] {
    ENCODERS.map(|shape| base(shape, &device()))
}

fn random(config: &UniPeltConfig, base: &Base, seed: u64) -> UniPelt {
    randomized(&config.init(base, seed).unwrap(), seed).valid()
}

/// With this number in front of every gate's sigmoid.
fn gated(unipelt: UniPelt, score: f32) -> UniPelt {
    let gates = tensors(&unipelt).into_iter().filter(|(name, _)| name.starts_with("gates."));
    let number = |(name, data): (String, TensorData)| {
        let value = if name.ends_with("bias") { score } else { 0.0 };
        (name, TensorData::full(data.shape().clone(), value))
    };
    with_values(unipelt, &gates.map(number).collect()).unwrap()
}

/// The tensors of one of the three, by their own names.
fn part(unipelt: &UniPelt, part: &str) -> BTreeMap<String, TensorData> {
    let own = tensors(unipelt).into_iter();
    own.filter_map(|(name, data)| Some((name.strip_prefix(part)?.to_string(), data))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn open_gates_leave_the_three(seed: u64) {
        for base in encoders() {
            let unipelt = random(&config(), &base, seed);
            let lora = with_values(config().lora().init(&base, 0).unwrap(), &part(&unipelt, "lora.")).unwrap();
            let prefix = with_values(config().prefix().init(&base, 0).unwrap(), &part(&unipelt, "prefix.")).unwrap();
            let adapter = with_values(config().adapter().init(&base, 0).unwrap(), &part(&unipelt, "adapter.")).unwrap();
            let three = states(&(lora, (prefix, adapter)), &base);
            prop_assert_ne!(states(&unipelt, &base).into_data(), three.clone().into_data());
            assert_close(states(&gated(unipelt, 1e4), &base), three, SAME_FUNCTION, "open");
        }
    }

    #[test]
    fn closed_gates_leave_a_prefix_of_zeros(seed: u64) {
        for base in encoders() {
            let zeros = PrefixTuningConfig::new(5).with_shift_positions(false).init(&base, 0).unwrap();
            let zeros = TensorData::full(tensors(&zeros)["embedding"].shape().clone(), 0.0f32);
            let prefix = PrefixTuningConfig::new(5).with_shift_positions(false).init(&base, 0).unwrap();
            let prefix = with_values(prefix, &BTreeMap::from([("embedding".to_string(), zeros)])).unwrap();
            let closed = gated(random(&config(), &base, seed), -1e4);
            assert_close(states(&closed, &base), states(&prefix, &base), SAME_FUNCTION, "closed");
        }
    }

    /// The mean of sigmoid(x w + b) over the real tokens, or over all, by its definition.
    #[test]
    fn a_gate_is_one_number_for_a_text(seed: u64) {
        for base in encoders() {
            for pool_padding in [false, true] {
                let unipelt = random(&config().with_pool_padding(pool_padding), &base, seed);
                let (batch, site) = (batch(&base), base.shape().sites(Part::Query)[1]);
                let [size, rows] = batch.dims();
                let x = Random::new(seed, "x").normal_tensor::<3>([size, rows, 24], 1.0, base.device());
                let own = |name: &str| values(&tensors(&unipelt)[&format!("gates.{site}.{name}")]);
                let (w, b, padding) = (own("weight"), own("bias")[0], batch.padding.clone().unwrap().into_data());
                let padding: Vec<bool> = padding.iter().collect();
                let numbers = values(&x.clone().into_data());
                let mean = |i: usize| {
                    let tokens = (i * rows..(i + 1) * rows).filter(|t| pool_padding || !padding[*t]);
                    let score = |t: usize| numbers[t * 24..(t + 1) * 24].iter().zip(&w).map(|(x, w)| x * w).sum::<f32>();
                    let open: Vec<f32> = tokens.map(|t| 1.0 / (1.0 + (-score(t) - b).exp())).collect();
                    open.iter().sum::<f32>() / open.len() as f32
                };
                let gates = Tensor::<1>::from_floats((0..size).map(mean).collect::<Vec<_>>().as_slice(), base.device());
                let lora = with_values(config().lora().init(&base, 0).unwrap(), &part(&unipelt, "lora.")).unwrap();
                let added = lora.valid().to_linear(&batch, site, &x).unwrap() * gates.reshape([size, 1, 1]);
                let found = unipelt.open(&batch, |hooks| hooks.linear(site, x.clone(), &|x| x.zeros_like()));
                assert_close(found, added, SAME_FUNCTION, &site.to_string());
            }
        }
    }

    /// At the start LoRA adds nothing.
    #[test]
    fn a_gate_on_nothing_has_no_gradient(seed: u64) {
        for base in encoders() {
            for (name, gradient) in gradients(&config().init(&base, seed).unwrap(), &base) {
                let none = values(&gradient).iter().all(|x| *x == 0.0);
                let of_lora = name.contains(".query.") || name.contains(".value.");
                if name.starts_with("gates.") {
                    prop_assert_eq!(none, of_lora, "{}", name);
                }
            }
        }
    }

    #[test]
    fn what_is_added_bare_is_what_hooks_add(seed: u64) {
        for base in bases() {
            let batch = batch(&base);
            let [size, rows] = batch.dims();
            let noise = Noise { seed, step: 1, samples: (0..size as u32).collect() };
            let batch = batch.with_noise(noise);
            let draw = |name| Random::new(seed, name).normal_tensor::<3>([size, rows, 24], 1.0, base.device());
            let (x, u) = (draw("x"), draw("u"));
            for config in [SequentialConfig::pfeiffer(7), SequentialConfig::survey().with_bottleneck(5)] {
                let adapter = randomized(&config.init(&base, seed).unwrap(), seed).valid();
                let site = base.shape().sites(Part::FeedForward)[1];
                let frame = base.frame(&batch, &adapter);
                let Added { delta, .. } = adapter.to_sublayer(&frame, site, &x, &u).unwrap();
                let input = Sequence { hidden: x.clone(), mask: Default::default(), prompt: 0, offset: 0, past: 0 };
                let found = adapter.open(&batch, |hooks| hooks.sublayer(&frame, site, input, &|_| u.clone()));
                prop_assert_eq!(found.into_data(), (u.clone() + delta).into_data());
                prop_assert!(adapter.to_linear(&batch, base.shape().sites(Part::Query)[0], &x).is_none());
            }
            let config = LoraConfig::new(3).with_dropout(0.3);
            let site = base.shape().sites(Part::Query)[0];
            let lora = randomized(&config.init(&base, seed).unwrap(), seed).valid();
            let delta = lora.to_linear(&batch, site, &x).unwrap();
            let found = lora.open(&batch, |hooks| hooks.linear(site, x.clone(), &|x| Tensor::zeros([size, rows, delta.dims()[2]], &x.device())));
            prop_assert_eq!(found.into_data(), delta.into_data());
            let dora = config.with_dora().init(&base, seed).unwrap().valid();
            prop_assert!(dora.to_linear(&batch, site, &x).is_none());
        }
    }
}

#[test]
fn equals_the_package() {
    let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/unipelt"), "roberta-classify");
    let config = UniPeltConfig::new(3, 4, 5).with_projection(11).with_pool_padding(true);
    let head = Head::classifier(&case.base, 3, 0);
    case.check_from_start(Trained::new(config.init(&case.base, 0).unwrap(), head).unwrap());
}
