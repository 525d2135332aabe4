use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Activation, Init, Sequential, SequentialConfig};
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION};
use peft_core::testing::{assert_close, batch, randomized};
use peft_core::view::{Rewrite, tensors, view};
use peft_core::{Bare, Base, Method, Part, Slot};
use proptest::prelude::*;

use crate::{bases, pick, run};

fn configs() -> [SequentialConfig; 3] {
    let inner = SequentialConfig { bottleneck: 7, ..SequentialConfig::survey() };
    [SequentialConfig::houlsby(7), SequentialConfig::pfeiffer(7), inner]
}

fn random(config: &SequentialConfig, base: &Base, seed: u64) -> Sequential {
    randomized(&config.init(base, seed).unwrap(), seed)
}

/// Another order of the bottleneck's units.
struct Permute<'a>(&'a [usize]);

impl Rewrite for Permute<'_> {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        match name.rsplit_once('.').unwrap() {
            (path, "weight") if path.ends_with("down") => pick(t, 1, self.0),
            (path, "weight") if path.ends_with("up") => pick(t, 0, self.0),
            (path, "bias") if path.ends_with("down") => pick(t, 0, self.0),
            _ => t,
        }
    }
}

/// Zeros in the second map; its bias too, or not.
struct ZeroUp {
    bias: bool,
}

impl Rewrite for ZeroUp {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        let zero = name.ends_with("up.weight") || self.bias && name.ends_with("up.bias");
        if zero { t.zeros_like() } else { t }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The bottleneck's units have no order.
    #[test]
    fn the_order_of_the_units_does_not_matter(seed: u64) {
        for base in bases() {
            for config in configs() {
                let adapter = random(&config, &base, seed);
                let permuted = view(&adapter.valid(), &mut Permute(&[3, 0, 6, 1, 5, 2, 4]));
                prop_assert_ne!(tensors(&adapter), tensors(&permuted));
                let batch = batch(&base);
                assert_close(run(&adapter, &base, &batch), run(&permuted, &base, &batch), SAME_FUNCTION, "permuted");
            }
        }
    }

    /// With zeros in the second map the base is back, to the bit, wherever training had led.
    #[test]
    fn a_second_map_of_zeros_is_the_base(seed: u64) {
        for base in bases() {
            for config in configs().map(|config| SequentialConfig { train_layernorm: false, ..config }) {
                let adapter = random(&config, &base, seed).valid();
                let silent = view(&adapter, &mut ZeroUp { bias: true });
                let batch = batch(&base);
                prop_assert_ne!(run(&adapter, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
                prop_assert_eq!(run(&silent, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
                let start = config.clone().with_init(Init::ZeroUp).init(&base, seed).unwrap();
                prop_assert_eq!(run(&start, &base, &batch).into_data(), run(&Bare {}, &base, &batch).into_data());
            }
        }
    }

    /// With zeros in the second matrix only, its bias is added to that of the output projection.
    #[test]
    fn the_second_bias_alone_shifts_the_output_projection(seed: u64) {
        for base in bases() {
            let config = SequentialConfig { train_layernorm: false, ..SequentialConfig::houlsby(7) };
            let shift = view(&random(&config, &base, seed).valid(), &mut ZeroUp { bias: false });
            let shifts = tensors(&shift);
            let shifted = base.shape().places().into_iter().filter(|p| p.slot == Slot::Bias).fold(base.clone(), |base, p| {
                let sublayer = match p.site.part {
                    Part::Output => "self_attention",
                    Part::Down => "feed_forward",
                    _ => return base,
                };
                let name = format!("adapters.encoder.{}.{sublayer}.up.bias", p.site.layer);
                let bias = base.vector(p.site, Slot::Bias) + Tensor::from_data(shifts[&name].clone(), base.device());
                base.with_vector(p.site, Slot::Bias, bias)
            });
            let batch = batch(&base);
            assert_close(run(&shift, &base, &batch), run(&Bare {}, &shifted, &batch), SAME_FUNCTION, "shifted");
        }
    }

    /// Without a non-linearity, W' = W (I + Wd Wu) and b' = b (I + Wd Wu) + bd Wu + bu, worked out in f64.
    #[test]
    fn a_linear_adapter_folds_into_the_output_projection(seed: u64) {
        for base in bases() {
            let config = SequentialConfig { train_layernorm: false, ..SequentialConfig::houlsby(7) };
            let adapter = random(&config.with_activation(Activation::Identity), &base, seed).valid();
            let own = tensors(&adapter);
            let folded = base.shape().linears().into_iter().fold(base.clone(), |base, (site, _)| {
                let sublayer = match site.part {
                    Part::Output => "self_attention",
                    Part::Down => "feed_forward",
                    _ => return base,
                };
                let get = |leaf: &str| values(&own[&format!("adapters.encoder.{}.{sublayer}.{leaf}", site.layer)]);
                let (down, up, down_bias, up_bias) =
                    (get("down.weight"), get("up.weight"), get("down.bias"), get("up.bias"));
                let [rows, d] = base.shape().linear_dims(site);
                let apply = |row: &[f64], bias: f64| -> Vec<f64> {
                    let inner: Vec<f64> = (0..7)
                        .map(|m| (0..d).map(|i| row[i] * down[i * 7 + m]).sum::<f64>() + bias * down_bias[m])
                        .collect();
                    let outer = |j: usize| (0..7).map(|m| inner[m] * up[m * d + j]).sum::<f64>() + bias * up_bias[j];
                    (0..d).map(|j| row[j] + outer(j)).collect()
                };
                let weight = values(&base.weight(site).dense().into_data());
                let weight: Vec<f32> =
                    weight.chunks(d).flat_map(|row| apply(row, 0.0)).map(|x| x as f32).collect();
                let bias: Vec<f32> =
                    apply(&values(&base.vector(site, Slot::Bias).into_data()), 1.0).into_iter().map(|x| x as f32).collect();
                let device = base.device().clone();
                let weight = Tensor::from_data(TensorData::new(weight, [rows, d]), &device);
                base.with_weight(site, peft_core::Weight::Dense(weight))
                    .with_vector(site, Slot::Bias, Tensor::from_data(TensorData::new(bias, [d]), &device))
            });
            let batch = batch(&base);
            assert_close(run(&adapter, &base, &batch), run(&Bare {}, &folded, &batch), MERGED, "folded");
        }
    }
}

fn values(data: &TensorData) -> Vec<f64> {
    data.iter::<f32>().map(f64::from).collect()
}
