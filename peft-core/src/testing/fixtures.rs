//! Small models, batches and states without any zero, equal dimension or special value.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

use crate::view::{Rewrite, view};
use crate::{Base, Batch, Example, Label, Part, Place, Shape, Slot, random::Random};

/// The device that tests run on: `PEFT_DEVICE`, flex if it is not set.
///
/// # Panics
/// If the device is unknown or not compiled in.
pub fn device() -> Device {
    let name = std::env::var("PEFT_DEVICE").unwrap_or_else(|_| "flex".into());
    crate::device(&name).unwrap_or_else(|e| panic!("PEFT_DEVICE: {e}"))
}

/// The shapes that the suite runs on, one of each architecture.
pub const SHAPES: [&str; 4] = ["roberta-tiny", "bert-tiny", "t5-tiny", "llama-tiny"];

/// Those of them that are encoders, with biases and normalizations behind their sub-layers.
pub const ENCODERS: [&str; 2] = ["roberta-tiny", "bert-tiny"];

/// Those of them that write, with normalizations in front of their sub-layers and without biases.
pub const DECODERS: [&str; 2] = ["t5-tiny", "llama-tiny"];

/// A base of a named shape with random tensors, no bias zero and no gain one.
///
/// # Panics
/// If there is no such shape.
pub fn base(shape: &str, device: &Device) -> Base {
    let shape = Shape::named(shape).unwrap_or_else(|e| panic!("{e}"));
    let (scores_are_plain, width) = (!shape.architecture.family().scales_scores, shape.head_width as f64);
    let draw = |place: &Place| {
        let mut random = Random::new(7, &place.name);
        let (mean, std) = match (place.slot, place.site.part) {
            // T5 does not divide scores by the root of the heads' width: its queries start smaller instead.
            (Slot::Weight, Part::Query | Part::CrossQuery) if scores_are_plain => (0.0, 0.3 / width.sqrt()),
            (Slot::Weight, _) => (0.0, 0.3),
            (Slot::Bias, _) => (0.0, 0.2),
            (Slot::Gain, _) => (1.0, 0.2),
        };
        let values: Vec<f32> = (0..place.count()).map(|_| (mean + std * random.normal()) as f32).collect();
        Ok(TensorData::new(values, place.file_dims()))
    };
    Base::new(shape, device, draw).unwrap_or_else(|e| panic!("{e}"))
}

/// Five labelled examples of different lengths, of two tasks in turn.
pub fn examples(base: &Base) -> Vec<Example> {
    let (shape, mut random) = (base.shape(), Random::new(11, "examples"));
    [9, 5, 12, 7, 3]
        .into_iter()
        .enumerate()
        .map(|(i, length)| Example {
            ids: (0..length).map(|_| (4 + random.below(shape.vocab - 4)) as u32).collect(),
            mask: None,
            types: (shape.types > 1).then(|| (0..length).map(|t| u32::from(t > length / 2)).collect()),
            label: Some(match shape.architecture.is_encoder_decoder() {
                true => {
                    let words = (0..8 - i).map(|_| (2 + random.below(shape.vocab - 2)) as i32);
                    Label::Words(words.collect())
                }
                false => Label::Class(i % 2),
            }),
            task: i % 2,
        })
        .collect()
}

/// The examples as one padded batch.
///
/// # Panics
/// Never on these examples.
pub fn batch(base: &Base) -> Batch {
    base.batch(&examples(base).iter().collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{e}"))
}

/// The module with a random number of standard deviation 0.3 added to every trainable element.
pub fn randomized<M: Module>(module: &M, seed: u64) -> M {
    randomized_by(module, seed, 0.3)
}

/// The same with this standard deviation.
pub fn randomized_by<M: Module>(module: &M, seed: u64, deviation: f64) -> M {
    struct Add(u64, f64);
    impl Rewrite for Add {
        fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
            if !t.is_require_grad() {
                return t;
            }
            let plain = t.clone().inner();
            let moved = plain.clone() + Random::new(self.0, name).normal_tensor(plain.dims(), self.1, &plain.device());
            Tensor::from_inner(moved).require_grad()
        }
    }
    view(module, &mut Add(seed, deviation))
}
