//! Frozen backbones: their tensors by site, and one readable forward for each family.

pub mod bert;

use std::{collections::BTreeMap, sync::Arc};

use burn::tensor::{Device, Tensor, TensorData, activation, module};

use crate::{
    Attention, Batch, Error, Example, Hooks, Place, Result, Shape, Site, Slot, Weight,
    random::{Random, fingerprint},
};

/// A frozen backbone. Its tensors are plain (they never carry gradients), lie on one device and are shared by all clones.
#[derive(Clone, Debug)]
pub struct Base {
    shape: Arc<Shape>,
    device: Device,
    weights: BTreeMap<Site, Weight>,
    vectors: BTreeMap<(Site, Slot), Tensor<1>>,
}

/// What a backbone gives to a head.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// Final hidden states, `[batch, prompt + tokens, hidden]`.
    pub states: Tensor<3>,
    /// How many rows at the front are virtual tokens.
    pub prompt: usize,
    /// The pooler's output, `[batch, hidden]`, if the model has one.
    pub pooled: Option<Tensor<2>>,
    /// The word table as this run used it, `[vocab, hidden]`, for heads tied to it.
    pub words: Tensor<2>,
}

impl Hidden {
    /// The states of the tokens, without those of virtual tokens.
    pub fn tokens(&self) -> Tensor<3> {
        let rows = self.states.dims()[1];
        self.states.clone().narrow(1, self.prompt, rows - self.prompt)
    }
}

impl Base {
    /// A backbone of this shape whose tensors come from `tensor`.
    pub fn new(shape: Shape, device: &Device, mut tensor: impl FnMut(&Place) -> Result<TensorData>) -> Result<Self> {
        let device = device.clone().inner();
        let mut base = Base { shape: Arc::new(shape), device, weights: BTreeMap::new(), vectors: BTreeMap::new() };
        for place in base.shape.clone().places() {
            let data = tensor(&place)?;
            base.set(&place, data);
        }
        Ok(base)
    }

    /// A backbone with random tensors: normal with standard deviation 0.02 as BERT and RoBERTa start, biases 0, gains 1.
    pub fn random(shape: Shape, seed: u64, device: &Device) -> Self {
        let draw = |place: &Place| {
            let mut random = Random::new(seed, &place.name);
            let value = |_| match place.slot {
                Slot::Weight => (random.normal() * 0.02) as f32,
                Slot::Bias => 0.0,
                Slot::Gain => 1.0,
            };
            Ok(TensorData::new((0..place.count()).map(value).collect(), place.file_dims()))
        };
        Base::new(shape, device, draw).unwrap_or_else(|_: crate::Error| unreachable!("nothing here fails"))
    }

    /// A backbone of zeros that takes no memory, however large the shape: for counting.
    pub fn hollow(shape: Shape, device: &Device) -> Self {
        let device = device.clone().inner();
        let (shape, zero) = (Arc::new(shape), Tensor::<1>::zeros([1], &device));
        let (mut weights, mut vectors) = (BTreeMap::new(), BTreeMap::new());
        for place in shape.places() {
            match place.dims[..] {
                [rows, columns] => {
                    weights.insert(place.site, Weight::Dense(zero.clone().expand([rows, columns])));
                }
                _ => {
                    vectors.insert((place.site, place.slot), zero.clone().expand([place.count()]));
                }
            }
        }
        Base { shape, device, weights, vectors }
    }

    fn set(&mut self, place: &Place, data: TensorData) {
        match place.slot {
            Slot::Weight => {
                let stored = Tensor::<2>::from_data(data, &self.device);
                let weight = if place.transposed { stored.transpose() } else { stored };
                self.weights.insert(place.site, Weight::Dense(weight));
            }
            slot => {
                self.vectors.insert((place.site, slot), Tensor::from_data(data, &self.device));
            }
        }
    }

    /// Its shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The plain device it lies on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The matrix or table at a site.
    ///
    /// # Panics
    /// If the model has none there.
    pub fn weight(&self, site: Site) -> &Weight {
        self.weights.get(&site).unwrap_or_else(|| panic!("the model has no matrix at {site}"))
    }

    /// The bias or gain at a site.
    ///
    /// # Panics
    /// If the model has none there.
    pub fn vector(&self, site: Site, slot: Slot) -> Tensor<1> {
        self.vectors.get(&(site, slot)).cloned().unwrap_or_else(|| panic!("the model has no {slot:?} at {site}"))
    }

    /// The same base (sharing all else) with another matrix at a site.
    pub fn with_weight(mut self, site: Site, weight: Weight) -> Self {
        self.weights.insert(site, weight);
        self
    }

    /// The same base (sharing all else) with another bias or gain at a site.
    pub fn with_vector(mut self, site: Site, slot: Slot, vector: Tensor<1>) -> Self {
        self.vectors.insert((site, slot), vector);
        self
    }

    /// The same base with other dropout probabilities, all `p`.
    pub fn with_dropout(mut self, p: f64) -> Self {
        self.shape = Arc::new((*self.shape).clone().with_dropout(p));
        self
    }

    /// The same base with the settings (not the sizes) of another shape.
    #[cfg(feature = "train")]
    pub(crate) fn with_shape(self, shape: Shape) -> Self {
        Base { shape: Arc::new(shape), ..self }
    }

    /// One tensor as files hold it.
    pub fn tensor_data(&self, place: &Place) -> TensorData {
        match place.slot {
            Slot::Weight => {
                let dense = self.weight(place.site).dense();
                if place.transposed { dense.transpose() } else { dense }.into_data()
            }
            slot => self.vector(place.site, slot).into_data(),
        }
    }

    /// A hash of every bit of the base, to tell whether it changed.
    pub fn fingerprint(&self) -> u64 {
        let one = |place: &Place| fingerprint(&place.name, self.tensor_data(place).as_bytes());
        self.shape.places().iter().fold(0, |all, place| all ^ one(place))
    }

    /// Pads examples to a batch on this device, refusing what the model cannot take.
    pub fn batch(&self, examples: &[&Example]) -> Result<Batch> {
        for example in examples {
            let length = example.ids.len();
            let wrong = |key: &str, found: String, expected: String| Err(Error::config(key, found, expected));
            if let Some(id) = example.ids.iter().find(|id| **id as usize >= self.shape.vocab) {
                return wrong(
                    "input_ids",
                    id.to_string(),
                    format!("ids below {}, the model's vocabulary", self.shape.vocab),
                );
            }
            if let Some(kind) = example.types.iter().flatten().find(|t| **t as usize >= self.shape.types) {
                return wrong("token_type_ids", kind.to_string(), format!("types below {}", self.shape.types));
            }
            let masked = example.mask.as_ref().map_or(length, Vec::len);
            let typed = example.types.as_ref().map_or(length, Vec::len);
            if masked != length || typed != length {
                return wrong(
                    "attention_mask, token_type_ids",
                    format!("{masked}, {typed} long"),
                    format!("{length}, as input_ids"),
                );
            }
        }
        Batch::new(examples.iter().copied(), self.shape.pad, &self.device)
    }

    /// Runs a batch through the frozen layers with `hooks` at their seams.
    pub fn forward(&self, batch: &Batch, hooks: &dyn Hooks) -> Result<Hidden> {
        bert::forward(&Frame { base: self, hooks, batch })
    }
}

/// A forward in progress: the operations that backbones share, each with its seam.
pub(crate) struct Frame<'a> {
    pub base: &'a Base,
    pub hooks: &'a dyn Hooks,
    pub batch: &'a Batch,
}

impl Frame<'_> {
    /// A matrix or table after the hook `weight`.
    pub fn weight(&self, site: Site) -> Weight {
        self.hooks.weight(site, self.base.weight(site).clone())
    }

    /// A bias or gain after the hook `vector`.
    pub fn vector(&self, site: Site, slot: Slot) -> Tensor<1> {
        self.hooks.vector(site, slot, self.base.vector(site, slot))
    }

    /// A linear map with its bias, inside the hook `linear`.
    pub fn linear(&self, site: Site, x: Tensor<3>) -> Tensor<3> {
        self.hooks.linear(site, x, &|x| self.weight(site).linear(x, Some(self.vector(site, Slot::Bias))))
    }

    /// A layer normalization.
    pub fn norm(&self, site: Site, x: Tensor<3>) -> Tensor<3> {
        let (gain, bias) = (self.vector(site, Slot::Gain), self.vector(site, Slot::Bias));
        module::layer_norm(x, gain, Some(bias), self.base.shape.eps)
    }

    /// Dropout, while training.
    pub fn dropout<const D: usize>(&self, x: Tensor<D>, p: f64, site: Site) -> Tensor<D> {
        match &self.batch.noise {
            Some(noise) => noise.dropout(x, p, &site.to_string()),
            None => x,
        }
    }

    /// Multi-head attention from split queries, keys and values, inside the hook `attend`; heads are joined again.
    pub fn attend(&self, site: Site, attention: Attention) -> Tensor<3> {
        let attend = |a: Attention| {
            let width = a.query.dims()[3];
            let scores = a.query.matmul(a.key.swap_dims(2, 3)).div_scalar((width as f64).sqrt());
            let weights = activation::softmax(a.mask.apply(scores), 3);
            self.dropout(weights, self.base.shape.attention_dropout, site).matmul(a.value)
        };
        let context = self.hooks.attend(site, attention, &attend);
        let [batch, heads, tokens, width] = context.dims();
        context.swap_dims(1, 2).reshape([batch, tokens, heads * width])
    }

    /// Splits `[batch, tokens, hidden]` into heads, `[batch, heads, tokens, head width]`.
    pub fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, hidden] = x.dims();
        let heads = self.base.shape.heads;
        x.reshape([batch, tokens, heads, hidden / heads]).swap_dims(1, 2)
    }
}
