//! Adapters inside one another and inside some layers only.

use std::cell::RefCell;
use std::ops::Range;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use peft_core::testing::{self, assert_close, base, batch, device, randomized, tolerances::SAME_FUNCTION};
use peft_core::{
    Adapter, AnyMethod, Bare, Base, Batch, Frame, Head, Hooks, Key, Method, Next, Packed, Part, Result, Sequence,
    Shape, Site, Sites, Trained, Tuner, Weight, Within, io,
};
use peft_reparam::{Lora, LoraConfig};

fn lora(base: &Base, sites: impl Into<Sites>, seed: u64) -> Lora {
    randomized(&LoraConfig::new(2).with_alpha(3.0).with_sites(sites).init(base, seed).unwrap(), seed)
}

fn states(tuner: &impl Tuner, base: &Base, batch: &Batch) -> Tensor<3> {
    tuner.run(base, batch).unwrap().states
}

/// Records what goes into each layer.
#[derive(Default)]
struct Tap(RefCell<Vec<Tensor<3>>>);

impl Hooks for Tap {
    fn layer(&self, _: &Frame<'_>, _: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        self.0.borrow_mut().push(x.hidden.clone());
        next(x)
    }
}

#[test]
fn below_the_lowest_layer_nothing_is_differentiated() {
    let base = base("roberta-tiny", &device());
    let batch = batch(&base);
    let upper = Within::new(lora(&base, Part::Query | Part::Value, 1), 2..3);
    let tap = Tap::default();
    let hidden = upper.open(&batch, |hooks| base.forward(&batch, &(hooks, &tap)).unwrap());
    let inputs: Vec<bool> = tap.0.borrow().iter().map(Tensor::is_autodiff).collect();
    assert_eq!((inputs, hidden.states.is_autodiff()), (vec![false; 3], true));
    let gradients = GradientsParams::from_grads((hidden.states.clone() * hidden.states).mean().backward(), &upper);
    assert_eq!(gradients.len(), 4, "two factors of query and value in one of three layers");
}

#[test]
fn in_all_layers_it_is_the_adapter_and_in_none_the_base() {
    let base = base("bert-tiny", &device());
    let (lora, batch) = (lora(&base, Part::Query | Part::Down, 1).valid(), batch(&base));
    let bits = |tuner: &Within| states(tuner, &base, &batch).into_data();
    assert_eq!(bits(&Within::new(lora.clone(), 0..2)), states(&lora, &base, &batch).into_data());
    assert_eq!(bits(&Within::new(lora.clone(), 0..0)), states(&Bare {}, &base, &batch).into_data());
    assert_ne!(bits(&Within::new(lora.clone(), 1..2)), states(&lora, &base, &batch).into_data());
}

#[test]
fn adapters_at_different_sites_commute_and_nest() {
    let base = base("roberta-tiny", &device());
    let (a, b, batch) = (lora(&base, Part::Query, 1).valid(), lora(&base, Part::Up, 2).valid(), batch(&base));
    let (ab, ba) = (states(&(a.clone(), b.clone()), &base, &batch), states(&(b.clone(), a.clone()), &base, &batch));
    assert_eq!(ab.clone().into_data(), ba.into_data());
    let nested = Within::new((Bare {}, (a, Within::new(b, 0..3))), 0..3);
    assert_eq!(states(&nested, &base, &batch).into_data(), ab.into_data());
}

/// A weight stored otherwise: here as its transpose.
#[derive(Debug)]
struct Transposed(Tensor<2>);

impl Packed for Transposed {
    fn dims(&self) -> [usize; 2] {
        let [outputs, inputs] = self.0.dims();
        [inputs, outputs]
    }

    fn kind(&self) -> String {
        "transposed".into()
    }

    fn outputs(&self, outputs: Range<usize>) -> Vec<f32> {
        self.0.clone().slice([outputs]).into_data().try_into_vec().unwrap()
    }

    fn tile(&self, outputs: Range<usize>, inputs: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(self.0.clone().slice([outputs, inputs]).into_data().as_slice().unwrap());
    }

    fn device(&self) -> Device {
        self.0.device()
    }
}

#[test]
fn hooks_do_not_see_how_a_weight_is_stored() {
    let base = base("roberta-tiny", &device());
    let (lora, batch) = (lora(&base, Part::Query | Part::Value, 1), batch(&base));
    let packed = base.shape().linears().into_iter().fold(base.clone(), |packed, (site, _)| {
        let stored = Transposed(base.weight(site).dense().transpose());
        packed.with_weight(site, Weight::Packed(std::sync::Arc::new(stored)))
    });
    assert_close(states(&lora, &packed, &batch), states(&lora, &base, &batch), SAME_FUNCTION, "a packed base");
    let merged = |base: &Base| states(&Bare {}, &base.merged(&lora.valid()), &batch);
    assert_close(merged(&packed), merged(&base), SAME_FUNCTION, "merged into a packed base");
}

/// Two LoRAs whose tensors have the same keys: a file would hold one of them.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Twice(LoraConfig);

impl Method for Twice {
    const NAME: &'static str = "twice";
    const PEFT_TYPE: &'static str = "TWICE";
    type Tuner = (Lora, Lora);

    fn init(&self, base: &Base, seed: u64) -> Result<Self::Tuner> {
        Ok((self.0.init(base, seed)?, self.0.init(base, seed + 1)?))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(2 * self.0.count(shape)?)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        self.0.key(name.split_once('.').unwrap().1, shape)
    }
}

#[test]
fn tensors_that_one_key_would_lose_are_named() {
    let (base, method) = (base("roberta-tiny", &device()), Twice(LoraConfig::new(2)));
    let trained = Trained::new(method.init(&base, 0).unwrap(), Head::classifier(&base, 2, 0)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("adapter");
    let error = io::peft::save(&dir, &method, &trained, base.shape(), &io::peft::Labels::default(), &[]).unwrap_err();
    let suite = testing::conformance::c4(&AnyMethod::new(method), &base).unwrap_err();
    for error in [error.to_string(), suite] {
        for tensor in
            ["method.0.factors.encoder.0.query.a", "method.1.factors.encoder.0.query.a", "one key, base_model."]
        {
            assert!(error.contains(tensor), "{tensor}: {error}");
        }
    }
    assert!(!dir.exists());
}
