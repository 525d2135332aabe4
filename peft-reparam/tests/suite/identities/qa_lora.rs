use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, difference, randomized, states};
use peft_core::view::tensors;
use peft_core::{Adapter, Bare, Base, Method, Part, Shape, Site, Sites, Weight};
use peft_quant::Grouped;
use peft_reparam::{Lora, LoraConfig, Pooling, QaLora, QaLoraConfig};
use proptest::prelude::*;

use super::{bases, run, with};
use crate::packed::{by_outputs, grouped, symmetric};

const RANK: usize = 3;
const BITS: u32 = 4;
const GROUP: usize = 8;

fn sites() -> Sites {
    Part::Query | Part::Value
}

fn config() -> QaLoraConfig {
    QaLoraConfig::new(RANK).with_alpha(2.0).with_groups(BITS, GROUP).with_sites(sites())
}

fn random(config: &QaLoraConfig, base: &Base, seed: u64) -> QaLora {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// With the A and the B that `change` makes of its own.
fn changed(of: &QaLora, base: &Base, change: impl Fn(&str, Tensor<2>) -> Tensor<2>) -> Vec<(String, TensorData)> {
    let value = |(name, data): (String, TensorData)| {
        let value = change(&name[name.len() - 1..], Tensor::from_data(data, base.device()));
        (name, value.into_data())
    };
    tensors(of).into_iter().map(value).collect()
}

/// LoRA whose A has each row of this one's for each input of a group.
fn repeated(of: &QaLora, base: &Base, group: usize) -> Lora {
    let values = changed(of, base, |leaf, own| match leaf {
        "a" => {
            let [groups, rank] = own.dims();
            own.unsqueeze_dim::<3>(1).expand([groups, group, rank]).reshape([groups * group, rank])
        }
        _ => own,
    });
    with(LoraConfig::new(RANK).with_alpha(2.0).with_sites(sites()).init(base, 0).unwrap(), values)
}

fn resolved(base: &Base) -> Vec<Site> {
    sites().resolve(base.shape()).unwrap()
}

fn packed(base: &Base, site: Site) -> Grouped {
    let (values, dims) = by_outputs(base, site);
    Grouped::encode(&values, dims, BITS, GROUP, false).unwrap()
}

fn zeros(of: &QaLora, site: Site) -> Vec<f32> {
    of.merged(site).unwrap().unwrap().zeros().to_vec()
}

/// What it adds to the output of a map whose input is this.
fn added(of: &QaLora, base: &Base, site: Site, x: Tensor<3>) -> Tensor<3> {
    let outputs = base.shape().linear_dims(site)[1];
    of.valid().open(&batch(base), |hooks| {
        hooks.linear(site, x, &|x: Tensor<3>| {
            let [batch, tokens, _] = x.dims();
            Tensor::zeros([batch, tokens, outputs], &x.device())
        })
    })
}

fn inputs(base: &Base, site: Site, seed: u64) -> Tensor<3> {
    let inputs = base.shape().linear_dims(site)[0];
    peft_core::random::Random::new(seed, "inputs").normal_tensor([2, 5, inputs], 1.0, base.device())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn it_starts_as_the_quantized_base(seed: u64) {
        for base in bases() {
            let start = config().init(&base, seed).unwrap();
            let quantized = states(&Bare {}, &grouped(&base, &sites(), BITS, GROUP)).into_data();
            prop_assert_eq!(states(&start, &base).into_data(), quantized.clone());
            let found = difference(&states(&Bare {}, &base).into_data(), &quantized);
            prop_assert!(found > 10.0 * SAME_FUNCTION.0, "{}", found);
        }
    }

    #[test]
    fn on_a_model_of_integers_it_keeps_those(seed: u64) {
        for base in bases() {
            let model = symmetric(&base, &sites(), BITS, GROUP);
            let start = config().init(&model, seed).unwrap();
            prop_assert_eq!(states(&start, &model).into_data(), states(&Bare {}, &model).into_data());
            let qa_lora = random(&config(), &model, seed);
            for site in resolved(&base) {
                let (values, dims) = by_outputs(&base, site);
                let own = Grouped::encode(&values, dims, BITS, GROUP, true).unwrap();
                let merged = qa_lora.merged(site).unwrap().unwrap();
                prop_assert_eq!((own.codes(), own.scales()), (merged.codes(), merged.scales()));
            }
            for (config, key, expected) in [
                (config().with_groups(8, GROUP), "bits: 8", "4, as in the model"),
                (config().with_groups(BITS, GROUP / 2), "qalora_group_size: 4", "8, as in the model"),
            ] {
                let message = config.init(&model, seed).unwrap_err().to_string();
                prop_assert!(message.contains(key) && message.contains(expected), "{}", message);
            }
        }
    }

    #[test]
    fn merging_keeps_integers_and_scales(seed: u64) {
        for base in bases() {
            let qa_lora = random(&config(), &base, seed);
            for site in resolved(&base) {
                let (before, after) = (packed(&base, site), qa_lora.merged(site).unwrap().unwrap());
                prop_assert_eq!((before.codes(), before.scales()), (after.codes(), after.scales()));
                prop_assert!(before.zeros() != after.zeros());
                // An input of 1 reads the row that the adapter adds.
                let dims = after.dims();
                let unit = Tensor::<2>::eye(dims[1], base.device()).unsqueeze();
                let delta = added(&qa_lora, &base, site, unit).squeeze_dim::<2>(0);
                let turned = |of: &Grouped| Tensor::<2>::from_data(TensorData::new(of.decode::<f32>(), dims), base.device());
                assert_close(turned(&after).transpose(), turned(&before).transpose() + delta, SAME_FUNCTION, "W'");
            }
        }
    }

    #[test]
    fn zero_points_are_moved_back(seed: u64) {
        for base in bases() {
            let forth = random(&config(), &base, seed);
            let back = with(forth.clone(), changed(&forth, &base, |leaf, own| if leaf == "b" { -own } else { own }));
            for site in resolved(&base) {
                let own = packed(&base, site);
                let moved = zeros(&forth, site).into_iter().zip(zeros(&back, site)).zip(own.zeros());
                for ((forth, back), zero) in moved {
                    let rest = (forth - zero) + (back - zero);
                    prop_assert!(rest.abs() <= SAME_FUNCTION.0 * (1.0 + forth.abs()), "{} and {} about {}", forth, back, zero);
                }
            }
        }
    }

    #[test]
    fn two_adapters_merge_additively(seed: u64) {
        for base in bases() {
            let (one, two) = (random(&config(), &base, seed), random(&config(), &base, seed ^ 1));
            let theirs = tensors(&two);
            let both = tensors(&one).into_iter().map(|(name, data)| {
                let (dim, other) = (usize::from(name.ends_with(".a")), theirs[&name].clone());
                let both = [data, other].map(|data| Tensor::<2>::from_data(data, base.device()));
                (name, Tensor::cat(both.into(), dim).into_data())
            });
            let both = with(QaLoraConfig { r: 2 * RANK, ..config().with_alpha(4.0) }.init(&base, 0).unwrap(), both);
            for site in resolved(&base) {
                let own = packed(&base, site);
                let moved = zeros(&one, site).into_iter().zip(zeros(&two, site)).zip(zeros(&both, site)).zip(own.zeros());
                for (((one, two), both), zero) in moved {
                    let rest = (one - zero) + (two - zero) - (both - zero);
                    prop_assert!(rest.abs() <= SAME_FUNCTION.0 * (1.0 + one.abs() + two.abs()), "{one} and {two}, together {both}");
                }
            }
        }
    }

    #[test]
    fn groups_of_one_are_a_lora(seed: u64) {
        for base in bases() {
            let qa_lora = random(&config().with_groups(8, 1), &base, seed);
            let (quantized, batch) = (grouped(&base, &sites(), 8, 1), batch(&base));
            let lora = repeated(&qa_lora, &base, 1);
            assert_close(run(&qa_lora, &base, &batch), run(&lora, &quantized, &batch), SAME_FUNCTION, "a LoRA");
        }
    }

    #[test]
    fn it_is_a_lora_with_repeated_rows(seed: u64) {
        for base in bases() {
            let qa_lora = random(&config(), &base, seed);
            let (quantized, batch) = (grouped(&base, &sites(), BITS, GROUP), batch(&base));
            let lora = repeated(&qa_lora, &base, GROUP);
            assert_close(run(&qa_lora, &base, &batch), run(&lora, &quantized, &batch), SAME_FUNCTION, "a LoRA");
        }
    }

    #[test]
    fn inputs_that_cancel_add_nothing(seed: u64) {
        for base in bases() {
            let (qa_lora, site) = (random(&config(), &base, seed), resolved(&base)[0]);
            let x = inputs(&base, site, seed);
            let [batch, tokens, width] = x.dims();
            let groups = x.clone().reshape([batch, tokens, width / GROUP, GROUP]);
            let centred = (groups.clone() - groups.mean_dim(3)).reshape([batch, tokens, width]);
            let nothing = added(&qa_lora, &base, site, centred);
            assert_close(nothing.clone(), nothing.zeros_like(), SAME_FUNCTION, "nothing");
            prop_assert!(added(&qa_lora, &base, site, x).abs().max().into_scalar::<f32>() > 0.1);
        }
    }

    #[test]
    fn inputs_of_a_group_may_change_places(seed: u64, by in 1..GROUP) {
        for base in bases() {
            let (qa_lora, site) = (random(&config(), &base, seed), resolved(&base)[0]);
            let x = inputs(&base, site, seed);
            let [batch, tokens, width] = x.dims();
            // Each group turned by so many places.
            let groups = x.clone().reshape([batch, tokens, width / GROUP, GROUP]);
            let turned = Tensor::cat(vec![groups.clone().narrow(3, by, GROUP - by), groups.narrow(3, 0, by)], 3);
            let turned = turned.reshape([batch, tokens, width]);
            assert_close(added(&qa_lora, &base, site, turned), added(&qa_lora, &base, site, x), SAME_FUNCTION, "turned");
        }
    }

    #[test]
    fn poolings_differ_by_a_factor_of_a(seed: u64) {
        for base in bases() {
            let (sum, batch) = (random(&config(), &base, seed), batch(&base));
            // Queries and values read as many inputs.
            let (group, inputs) = (GROUP as f64, base.shape().hidden as f64);
            for (pooling, by) in [(Pooling::Mean, group), (Pooling::Peft, group * group / inputs)] {
                let other = config().with_pooling(pooling).init(&base, 0).unwrap();
                let other = with(other, changed(&sum, &base, |leaf, own| if leaf == "a" { own * by } else { own }));
                assert_close(run(&other, &base, &batch), run(&sum, &base, &batch), SAME_FUNCTION, "the sum");
            }
        }
    }
}

#[test]
fn counts_are_those_of_the_authors() {
    let count = |group: usize| {
        let config = QaLoraConfig::default().with_groups(4, group);
        config.count(&Shape::named("llama-7b").unwrap()).unwrap()
    };
    assert_eq!([count(32), count(128)], [89_309_184, 87_601_152]);
}

#[test]
fn impossible_settings_and_weights_are_named() {
    let plain = base("roberta-tiny", &device());
    let refused = |config: QaLoraConfig, base: &Base, words: &[&str]| {
        let message = config.init(base, 0).map(|_| ()).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{words:?} are not in: {message}");
    };
    let query = "roberta.encoder.layer.0.attention.self.query";
    refused(QaLoraConfig { r: 0, ..config() }, &plain, &["r: 0"]);
    refused(config().with_alpha(f64::NAN), &plain, &["lora_alpha: NaN"]);
    refused(QaLoraConfig { lora_dropout: -0.1, ..config() }, &plain, &["lora_dropout: -0.1"]);
    for group in [0, 5, 48] {
        let found = format!("qalora_group_size: {group}");
        refused(config().with_groups(4, group), &plain, &[&found, "a divisor of 24", query]);
    }
    refused(config().with_groups(5, 8), &plain, &["bits", query, "2, 3, 4 or 8"]);
    // 24 codes of two bits are no whole words.
    refused(config().with_groups(2, 8), &plain, &["inputs", query, "24", "16"]);
    let site = Site::encoder(2, Part::Value);
    let w = plain.weight(site).dense();
    let w = w.clone().slice_assign([1..2, 4..5], Tensor::full([1, 1], f32::NAN, plain.device()));
    let bad = plain.with_weight(site, Weight::Dense(w));
    refused(config(), &bad, &["element 97", "layer.2.attention.self.value", "NaN", "finite"]);
}
