//! Bottleneck adapters of any variant.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{
    Activation, Bn, BnConfig, ParallelConfig, Reduction, ResidualAt, Scaling, SequentialConfig, TrainedScaling,
};
use peft_core::random::Random;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, randomized};
use peft_core::view::{tensors, with_values};
use peft_core::{Bare, Base, Method, Part, Tuner};

const SHAPES: [&str; 4] = ["roberta-tiny", "bert-tiny", "t5-tiny", "llama-tiny"];

/// One adapter a layer, of width 5, and nothing besides.
fn plain() -> BnConfig {
    BnConfig { reduction_factor: Reduction::All(4.8), ..Default::default() }
}

fn states(tuner: &impl Tuner, base: &Base) -> Tensor<3> {
    tuner.run(base, &batch(base)).unwrap().states
}

fn random(config: &BnConfig, base: &Base) -> Bn {
    randomized(&config.init(base, 1).unwrap(), 2).valid()
}

/// With these tensors in place of those of the names that end so.
fn with(tuner: Bn, change: impl Fn(&str, &TensorData) -> Option<TensorData>) -> Bn {
    let values = tensors(&tuner).into_iter().filter_map(|(name, data)| Some((name.clone(), change(&name, &data)?)));
    let values: BTreeMap<String, TensorData> = values.collect();
    assert!(!values.is_empty());
    with_values(tuner, &values).unwrap()
}

fn filled(data: &TensorData, value: f32) -> TensorData {
    TensorData::new(vec![value; data.num_elements()], data.shape().clone())
}

#[test]
fn maps_of_zeros_are_the_base() {
    for shape in SHAPES {
        let base = base(shape, &device());
        for config in [
            plain(),
            BnConfig { is_parallel: true, use_gating: true, mh_adapter: true, ..plain() },
            BnConfig { original_ln_before: false, cross_adapter: true, ln_before: true, ..plain() },
        ] {
            let zeros =
                with(random(&config, &base), |name, data| name.contains(".maps.up.").then(|| filled(data, 0.0)));
            assert_close(states(&zeros, &base), states(&Bare {}, &base), SAME_FUNCTION, shape);
        }
    }
}

#[test]
fn plain_settings_are_the_plain_adapters() {
    for shape in SHAPES {
        let base = base(shape, &device());
        let own = |names: BTreeMap<String, TensorData>, config: &BnConfig| {
            let values = names.into_iter().map(|(name, data)| {
                let (front, leaf) = name
                    .rsplit_once('.')
                    .and_then(|(front, leaf)| front.rsplit_once('.').map(|(f, m)| (f, format!("{m}.{leaf}"))))
                    .unwrap();
                (format!("{front}.maps.{leaf}"), data)
            });
            let values: BTreeMap<String, TensorData> = values.collect();
            let bn = config.init(&base, 0).unwrap().valid();
            assert_eq!(tensors(&bn).keys().collect::<Vec<_>>(), values.keys().collect::<Vec<_>>());
            with_values(bn, &values).unwrap()
        };
        let pfeiffer = randomized(&SequentialConfig::pfeiffer(5).init(&base, 1).unwrap(), 2).valid();
        let bn = own(tensors(&pfeiffer), &plain());
        assert_close(states(&bn, &base), states(&pfeiffer, &base), SAME_FUNCTION, shape);
        let houlsby = SequentialConfig::houlsby(5).with_train_layernorm(false);
        let houlsby = randomized(&houlsby.init(&base, 1).unwrap(), 2).valid();
        let config =
            BnConfig { mh_adapter: true, original_ln_before: false, non_linearity: Activation::Gelu, ..plain() };
        let bn = own(tensors(&houlsby), &config);
        assert_close(states(&bn, &base), states(&houlsby, &base), SAME_FUNCTION, shape);
        let parallel = ParallelConfig::new(5).with_sublayers([Part::FeedForward]).with_scaling(3.0);
        let parallel = randomized(&parallel.init(&base, 1).unwrap(), 2).valid();
        let config = BnConfig { is_parallel: true, scaling: Scaling::Number(3.0), ..plain() };
        let bn = own(tensors(&parallel), &config);
        assert_close(states(&bn, &base), states(&parallel, &base), SAME_FUNCTION, shape);
    }
}

#[test]
fn a_trained_scale_is_the_number() {
    let base = base("bert-tiny", &device());
    let number = random(&BnConfig { scaling: Scaling::Number(2.5), ..plain() }, &base);
    let maps = tensors(&number);
    for kind in [TrainedScaling::Learned, TrainedScaling::Channel] {
        let trained = random(&BnConfig { scaling: Scaling::Trained(kind), ..plain() }, &base);
        let trained = with(trained, |name, data| match name.ends_with("scaling") {
            true => Some(filled(data, 2.5)),
            false => Some(maps[name].clone()),
        });
        assert_close(states(&trained, &base), states(&number, &base), SAME_FUNCTION, "scaled");
    }
}

#[test]
fn the_block_can_be_turned_back() {
    for shape in SHAPES {
        let base = base(shape, &device());
        let bn = random(&BnConfig { non_linearity: Activation::Gelu, ..BnConfig::mad_x() }, &base);
        let block = bn.block().unwrap();
        let x: Tensor<3> = Random::new(3, "x").normal_tensor([2, 5, base.shape().hidden], 1.0, &device());
        let y = block.forward(x.clone(), Activation::Gelu);
        assert!((y.clone() - x.clone()).abs().max().into_scalar::<f32>() > 0.1);
        assert_close(block.backward(y, Activation::Gelu), x, SAME_FUNCTION, shape);
        assert!((states(&bn, &base) - states(&random(&plain(), &base), &base)).abs().max().into_scalar::<f32>() > 0.01);
    }
}

/// What the normalization makes of a sum is passed over where an adapter says so, and there alone.
#[test]
fn without_a_normalization_behind_it_the_states_are_the_adapters_output() {
    let base = base("roberta-tiny", &device());
    let last = base.shape().layers - 1;
    let bare = |residual| BnConfig {
        original_ln_after: false,
        residual_before_ln: ResidualAt::BeforeNorm(residual),
        leave_out: (0..last).collect(),
        ..plain()
    };
    let zeros = |config: &BnConfig| {
        with(random(config, &base), |name, data| name.contains(".maps.up.").then(|| filled(data, 0.0)))
    };
    // Behind the model's normalization the residual is the base's state itself.
    assert_close(states(&zeros(&bare(false)), &base), states(&Bare {}, &base), SAME_FUNCTION, "normalized before");
    let off = states(&zeros(&bare(true)), &base) - states(&Bare {}, &base);
    assert!(off.abs().max().into_scalar::<f32>() > 0.1, "the sub-layer's bare output");
}
