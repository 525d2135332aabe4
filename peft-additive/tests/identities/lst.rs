use std::cell::RefCell;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Lst, LstConfig};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, fixtures::SHAPES, randomized};
use peft_core::view::{Rewrite, tensors, view};
use peft_core::{Bare, Base, Frame, Hooks, Method, Next, Part, Sequence, Site, Slot, Tuner, random::Random};
use proptest::prelude::*;

use crate::run;

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn random(config: &LstConfig, base: &Base, seed: u64) -> Lst {
    randomized(&config.init(base, seed).unwrap(), seed).valid()
}

fn bits(tuner: &impl Tuner, base: &Base) -> TensorData {
    run(tuner, base, &batch(base)).into_data()
}

/// All gates at a value.
struct Gates(f64);

impl Rewrite for Gates {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        if name.starts_with("gates.") { t.full_like(self.0) } else { t }
    }
}

/// Other numbers in the tensors whose names start so.
struct Other(&'static str);

impl Rewrite for Other {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        match name.starts_with(self.0) {
            true => t.clone() + Random::new(9, name).normal_tensor(t.dims(), 0.3, &t.device()),
            false => t,
        }
    }
}

/// The identity on the way into the side network and out of it.
struct Straight;

impl Rewrite for Straight {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        if !name.starts_with("starts.") && !name.starts_with("up.") {
            return t;
        }
        let dims = t.dims();
        let diagonal = |i: usize| if D == 2 && i / dims[1] == i % dims[1] { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..dims.iter().product()).map(diagonal).collect();
        Tensor::from_data(TensorData::new(values, dims), &t.device())
    }
}

#[test]
fn a_side_network_of_full_width_is_the_backbone() {
    for base in bases() {
        let start = LstConfig::new(1).init(&base, 3).unwrap().valid();
        let same = view(&view(&start, &mut Straight), &mut Gates(1e3));
        let batch = batch(&base);
        let (found, bare) = (same.run(&base, &batch).unwrap(), Bare {}.run(&base, &batch).unwrap());
        assert_close(found.states, bare.states, SAME_FUNCTION, "states");
        assert_close(found.words.clone(), bare.words, SAME_FUNCTION, "words");
        assert_eq!(found.pooled.is_some(), bare.pooled.is_some());
        if let (Some(found), Some(bare)) = (found.pooled, bare.pooled) {
            assert_close(found, bare, SAME_FUNCTION, "pooled");
        }
        assert_ne!(bits(&start, &base), bits(&same, &base));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Open for the side, nothing of D_i h_i comes in; open for the backbone, nothing of D_0 h_0 is left.
    #[test]
    fn gates_choose_between_the_side_and_the_backbone(seed: u64) {
        for base in bases() {
            let lst = random(&LstConfig::new(2), &base, seed);
            let [side, backbone] = [1e3, -1e3].map(|gate| view(&lst, &mut Gates(gate)));
            let other = |lst: &Lst, name| bits(&view(lst, &mut Other(name)), &base);
            prop_assert_eq!(other(&side, "downs."), bits(&side, &base));
            prop_assert_ne!(other(&side, "starts."), bits(&side, &base));
            prop_assert_eq!(other(&backbone, "starts."), bits(&backbone, &base));
            prop_assert_ne!(other(&backbone, "downs."), bits(&backbone, &base));
        }
    }

    /// The states behind the last layer of a stack, if that has no side layer: whatever the layer does.
    #[test]
    fn a_dropped_layer_has_no_rung(seed: u64) {
        for base in bases() {
            let shape = base.shape();
            let (stack, layers) = *shape.stacks().last().unwrap();
            let norm = Site { stack, layer: layers - 1, part: Part::NormFeedForward };
            let moved = base.clone().with_vector(norm, Slot::Gain, base.vector(norm, Slot::Gain) * 1.5);
            let some = random(&LstConfig::new(2).with_side_layers([0, 1][..layers - 1].iter().copied()), &base, seed);
            let all = random(&LstConfig::new(2), &base, seed);
            prop_assert_eq!(bits(&some, &base), bits(&some, &moved));
            prop_assert_ne!(bits(&all, &base), bits(&all, &moved));
            let last = format!(".{}.", layers - 1);
            prop_assert!(tensors(&all).keys().any(|name| name.contains(&last)));
            prop_assert!(tensors(&some).keys().all(|name| !name.contains(&last)));
        }
    }
}

/// Side layers whose sub-layers add nothing: what is left of each are its two normalizations.
struct Normalizing;

impl Rewrite for Normalizing {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        let silent = name.starts_with("weights.") && (name.ends_with(".output") || name.ends_with(".down"));
        match name.split('.').next() {
            Some("gains") => t.ones_like(),
            Some("biases") => t.zeros_like(),
            _ if silent => t.zeros_like(),
            _ => t,
        }
    }
}

/// What goes into the first layer, and what comes out of each.
#[derive(Default)]
struct Record(RefCell<Vec<Tensor<3>>>);

impl Hooks for Record {
    fn layer(&self, _frame: &Frame<'_>, _site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        if self.0.borrow().is_empty() {
            self.0.borrow_mut().push(x.hidden.clone());
        }
        let x = next(x);
        self.0.borrow_mut().push(x.hidden.clone());
        x
    }
}

/// With gates between their ends, and a temperature that is not 1.
#[test]
fn a_side_layer_works_on_the_mixed_states() {
    for base in crate::bases() {
        let config = LstConfig { gate_temperature: 0.7, ..LstConfig::new(2) };
        let lst = view(&random(&config, &base, 5), &mut Normalizing);
        let (batch, record, values) = (batch(&base), Record::default(), tensors(&lst));
        base.forward(&batch, &record).unwrap();
        let tensor = |name: String| values[&name].clone();
        let affine = |name: &str, x: Tensor<3>| {
            let weight = Tensor::<2>::from_data(tensor(format!("{name}.weight")), base.device());
            let bias = Tensor::<1>::from_data(tensor(format!("{name}.bias")), base.device());
            x.matmul(weight.unsqueeze()) + bias.unsqueeze()
        };
        let norm = |x: Tensor<3>| {
            let centred = x.clone() - x.mean_dim(2);
            let variance = centred.clone().powf_scalar(2.0).mean_dim(2);
            centred / (variance + base.shape().eps).sqrt()
        };
        let states = record.0.into_inner();
        let mut s = affine("starts.encoder.0.layer", states[0].clone());
        for (layer, h) in states[1..].iter().enumerate() {
            let a: f32 = tensor(format!("gates.encoder.{layer}.layer")).iter().next().unwrap();
            let g = 1.0 / (1.0 + (-f64::from(a) / 0.7).exp());
            let h = affine(&format!("downs.encoder.{layer}.layer"), h.clone());
            s = norm(norm(s * g + h * (1.0 - g)));
        }
        assert_close(run(&lst, &base, &batch), affine("up", s), SAME_FUNCTION, "states");
    }
}
