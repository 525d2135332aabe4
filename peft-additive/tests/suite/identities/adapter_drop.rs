use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{AdapterDrop, AdapterDropConfig, SequentialConfig};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::STANDARD_ERRORS;
use peft_core::testing::{base, batch, device, fixtures::SHAPES, randomized};
use peft_core::train::{Optim, Procedure};
use peft_core::view::{Rewrite, tensors, view, with_values};
use peft_core::{
    Adapter, Bare, Base, Frame, Hooks, Method, Next, Sequence, Site, Stack, Trained, Tuner, random::Random,
};
use proptest::prelude::*;

use super::run;

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn random(config: &AdapterDropConfig, base: &Base, seed: u64) -> AdapterDrop {
    randomized(&config.clone().with_bottleneck(7).init(base, seed).unwrap(), seed)
}

fn bits(tuner: &impl Tuner, base: &Base) -> TensorData {
    run(tuner, base, &batch(base)).into_data()
}

/// What each layer gives: its states, and whether they are tracked.
#[derive(Default)]
struct Tap(RefCell<BTreeMap<Site, (TensorData, bool)>>);

impl Hooks for Tap {
    fn layer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        let x = next(x);
        let states = (x.hidden.clone().into_data(), x.hidden.is_autodiff());
        self.0.borrow_mut().insert(site, states);
        x
    }
}

fn tapped(tuner: &impl Adapter, base: &Base) -> BTreeMap<Site, (TensorData, bool)> {
    let (tap, batch) = (Tap::default(), batch(base));
    tuner.open(&batch, |hooks| base.forward(&batch, &(&tap, hooks))).unwrap();
    tap.0.into_inner()
}

/// Zeros in the second maps of the lowest layers.
struct Silent(usize);

impl Rewrite for Silent {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        let below = (0..self.0).any(|layer| name.contains(&format!("coder.{layer}.")));
        if below && name.contains(".up.") { t.zeros_like() } else { t }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn without_dropping_it_is_the_adapter_of_all_layers(seed: u64) {
        for base in bases() {
            let start = AdapterDropConfig::new(0).with_bottleneck(7).init(&base, seed).unwrap();
            let starts = tensors(&start).into_iter().map(|(name, data)| (name.replace("adapters.inner.", ""), data));
            let pfeiffer = SequentialConfig::pfeiffer(7);
            prop_assert_eq!(starts.collect::<BTreeMap<_, _>>(), tensors(&pfeiffer.init(&base, seed).unwrap()));
            let all = random(&AdapterDropConfig::new(0), &base, seed);
            let own = tensors(&all).into_iter().map(|(name, data)| (name.replace("adapters.inner.", ""), data)).collect();
            let sequential = with_values(pfeiffer.init(&base, 0).unwrap(), &own).unwrap();
            prop_assert_eq!(tensors(&sequential), own);
            prop_assert_eq!(bits(&all, &base), bits(&sequential, &base));
        }
    }

    #[test]
    fn a_dropped_adapter_is_one_of_zeros(seed: u64) {
        for base in bases() {
            let all = random(&AdapterDropConfig::new(0), &base, seed).valid();
            let dropped = bits(&all.clone().dropping(1), &base);
            prop_assert_ne!(&dropped, &bits(&all, &base));
            prop_assert_eq!(&dropped, &bits(&view(&all, &mut Silent(1)), &base));
            prop_assert_ne!(&dropped, &bits(&Bare {}, &base));
        }
    }

    #[test]
    fn a_robust_one_holds_every_specialised_one(seed: u64) {
        for base in bases() {
            let robust = random(&AdapterDropConfig::new(1).robust(), &base, seed);
            let special = random(&AdapterDropConfig::new(1), &base, seed ^ 1);
            let upper = tensors(&special).into_keys().map(|name| (name.clone(), tensors(&robust)[&name].clone())).collect();
            prop_assert!(tensors(&special).len() < tensors(&robust).len());
            prop_assert_eq!(bits(&with_values(special, &upper).unwrap(), &base), bits(&robust, &base));
        }
    }

    /// Of two tasks with the same n, so that they are computed once for both. In an encoder-decoder that is the encoder's.
    #[test]
    fn states_below_are_those_of_the_base(seed: u64) {
        for base in bases() {
            let layers = base.shape().layers;
            let drop = layers - 1;
            let (a, b) = (random(&AdapterDropConfig::new(drop), &base, seed), random(&AdapterDropConfig::new(drop), &base, seed ^ 1));
            let [a, b, bare] = [tapped(&a.valid(), &base), tapped(&b.valid(), &base), tapped(&Bare {}, &base)];
            let first = base.shape().stacks()[0].0;
            for site in bare.keys().filter(|site| site.stack == first) {
                let same = a[site] == bare[site] && b[site] == bare[site];
                prop_assert_eq!(same, site.layer < drop, "{}", site);
            }
        }
    }
}

/// The graph begins in the lowest layer that has an adapter. The decoder of an encoder-decoder sees the encoder's.
#[test]
fn nothing_below_is_differentiated() {
    for base in bases() {
        for drop in 0..base.shape().layers {
            let states = tapped(&random(&AdapterDropConfig::new(drop), &base, 3), &base);
            for (site, (_, tracked)) in states {
                let behind = site.stack == Stack::Decoder && base.shape().stacks().len() == 2;
                assert_eq!(tracked, behind || site.layer >= drop, "{site} with the adapters of {drop} layers dropped");
            }
        }
    }
}

fn case(name: &str, base: &str) -> Case {
    Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), base)
}

#[test]
fn equals_the_derivation_of_adapter_drop() {
    case("adapter-drop", "roberta-classify").check_method::<AdapterDropConfig>();
    case("adapter-drop-t5", "t5").check_method::<AdapterDropConfig>();
}

/// An adapter that is left out of a step is neither moved nor decayed by it.
#[test]
fn a_robust_run_is_that_of_the_derivation() {
    let case = case("adapter-drop-robust", "roberta-classify");
    let drops: Vec<usize> = case.expected("watched").iter::<f32>().map(|drop| drop as usize).collect();
    assert_eq!(BTreeSet::from_iter(&drops).len(), 3, "each number of layers occurs: {drops:?}");
    let (config, trained) = case.load::<AdapterDropConfig>();
    case.check_logits_of(&trained);
    let dropped = |step: usize, trained: Trained<AdapterDrop>| {
        let drop = *drops.get(step).unwrap_or(&config.drop);
        Trained { tuner: trained.tuner.dropping(drop), head: trained.head, copies: trained.copies }
    };
    case.check_run(trained, |name| case.key(&config, name), dropped);
}

#[test]
fn each_number_of_layers_is_drawn_alike() {
    let base = base("roberta-tiny", &device());
    let robust = random(&AdapterDropConfig::new(1).robust(), &base, 3);
    let outputs = [0, 1, 2].map(|drop| bits(&robust.clone().dropping(drop), &base));
    let (draws, mut counts) = (600, [0; 3]);
    for step in 0..draws {
        let drawn = robust.clone().sample(&mut Random::new(5, &format!("step {step}")));
        let output = bits(&drawn, &base);
        counts[outputs.iter().position(|o| *o == output).expect("one of the numbers of layers")] += 1;
        if step < 20 {
            let rule = burn::optim::AdamWConfig::new().build();
            let after = drawn.after_step(&base, &mut Optim::new(rule), &robust, 1).unwrap();
            assert_eq!(bits(&after, &base), outputs[1]);
        }
    }
    let (mean, error) = (f64::from(draws) / 3.0, (f64::from(draws) * 2.0 / 9.0).sqrt());
    for count in counts {
        assert!((f64::from(count) - mean).abs() <= f64::from(STANDARD_ERRORS.0) * error, "{counts:?}");
    }
    let special = random(&AdapterDropConfig::new(1), &base, 3);
    assert_eq!(bits(&special.clone().sample(&mut Random::new(5, "step")), &base), bits(&special, &base));
}
