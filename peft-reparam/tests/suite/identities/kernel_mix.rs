use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, randomized};
use peft_core::view::tensors;
use peft_core::{Base, Merge, Method, Part, Shape, Site, Sites, Weight};
use peft_reparam::{KernelMix, KernelMixConfig, LoraConfig};
use proptest::prelude::*;

use super::{bases, run, with};

fn random(config: &KernelMixConfig, base: &Base, seed: u64) -> KernelMix {
    randomized(&config.init(base, seed).unwrap(), seed).valid()
}

/// Blocks `[rows, columns]` on a diagonal.
fn diagonal(blocks: Vec<Tensor<2>>) -> Tensor<2> {
    let n = blocks.len();
    let row = |i: usize| {
        let at = |j: usize| if i == j { blocks[i].clone() } else { blocks[i].zeros_like() };
        Tensor::cat((0..n).map(at).collect(), 1)
    };
    Tensor::cat((0..n).map(row).collect(), 0)
}

/// The values of a tensor by its heads.
fn heads(values: &BTreeMap<String, TensorData>, name: &str, base: &Base) -> Vec<Tensor<2>> {
    let all = Tensor::<3>::from_data(values[name].clone(), base.device());
    (0..all.dims()[0]).map(|head| all.clone().narrow(0, head, 1).squeeze_dim(0)).collect()
}

fn zero(data: &TensorData) -> TensorData {
    TensorData::new(vec![0f32; data.num_elements()], data.shape().clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn heads_side_by_side_are_a_lora(seed: u64) {
        for base in bases() {
            let shape = base.shape();
            let rank = 2;
            let mix = random(&KernelMixConfig::new(rank, rank).with_output(), &base, seed);
            // Without what is no product of the map's own input: values, and biases.
            let silent = |name: &str| name.ends_with(".bias") || name.contains("value.");
            let values: BTreeMap<_, _> = tensors(&mix).into_iter()
                .map(|(name, data)| if silent(&name) { (name, zero(&data)) } else { (name, data) }).collect();
            let sites: Sites = Part::Query | Part::Output;
            let config = LoraConfig::new(shape.heads * rank).with_alpha((shape.heads * rank) as f64).with_sites(sites.clone());
            let factors = sites.resolve(shape).unwrap().into_iter().flat_map(|site| {
                let [a, b] = ["a", "b"].map(|leaf| heads(&values, &format!("maps.{site}.{leaf}"), &base));
                let (a, b) = match site.part {
                    Part::Query | Part::CrossQuery => (Tensor::cat(a, 1), diagonal(b)),
                    _ => (diagonal(a), Tensor::cat(b, 0)),
                };
                [(format!("factors.{site}.a"), a.into_data()), (format!("factors.{site}.b"), b.into_data())]
            });
            let lora = with(config.init(&base, 0).unwrap(), factors);
            let batch = batch(&base);
            assert_close(run(&with(mix, values), &base, &batch), run(&lora, &base, &batch), SAME_FUNCTION, "a LoRA");
        }
    }

    #[test]
    fn a_head_changes_its_own_slice(seed: u64) {
        for base in bases() {
            let shape = base.shape();
            let mix = random(&KernelMixConfig::new(1, 2), &base, seed);
            let parts = Part::Query | Part::Value;
            for site in parts.resolve(shape).unwrap() {
                let update = |mix: &KernelMix| Merge::weight(mix, site, &Weight::Dense(base.weight(site).dense())).unwrap();
                let name = format!("maps.{site}.b");
                let mut all = heads(&tensors(&mix), &name, &base);
                all[1] = all[1].clone() + 1.0;
                let moved = Tensor::<2>::stack::<3>(all, 0).into_data();
                let difference = (update(&with(mix.clone(), [(name, moved)])) - update(&mix)).abs();
                let width = shape.head_width;
                for head in 0..difference.dims()[1] / width {
                    let largest = difference.clone().narrow(1, head * width, width).max().into_scalar::<f32>();
                    prop_assert_eq!(largest > 0.0, head == 1, "{}, head {}", site, head);
                }
            }
        }
    }
}

#[test]
fn counts_are_those_of_the_settings() {
    let count = |config: KernelMixConfig, name: &str| config.count(&Shape::named(name).unwrap()).unwrap();
    let (qv, qvo) = (KernelMixConfig::default(), KernelMixConfig::default().with_output());
    assert_eq!([count(qv.clone(), "roberta-base"), count(qvo.clone(), "roberta-base")], [175_104, 423_936]);
    // A LLaMA has no biases.
    assert_eq!([count(qv, "llama-7b"), count(qvo, "llama-7b")], [5_111_808 - 32 * 8192, 13_893_632 - 32 * 12288]);
}

#[test]
fn impossible_settings_are_named() {
    let base = base("roberta-tiny", &device());
    for (config, key) in [
        (KernelMixConfig::new(0, 1), "q_rank: 0"),
        (KernelMixConfig::new(1, 0), "v_rank: 0"),
        (KernelMixConfig::new(1, 1).with_dropout(-0.1), "lora_dropout: -0.1"),
    ] {
        let message = config.init(&base, 0).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(key), "{key} is not in: {message}");
    }
}

/// A merge takes the keys in, whatever the site of the values.
#[test]
fn values_read_the_keys_of_their_attention() {
    let base = base("t5-tiny", &device());
    let mix = random(&KernelMixConfig::new(1, 2), &base, 3);
    let part = |part| Site::decoder(0, part);
    let none = |site: Site| Merge::weight(&mix, site, base.weight(site)).is_none();
    assert!(none(part(Part::Key)) && none(part(Part::CrossKey)) && none(part(Part::Output)));
    assert!(!none(part(Part::CrossValue)) && !none(part(Part::CrossQuery)));
}
