//! Frozen backbones: their tensors by site, and one readable forward for each family.

pub(crate) mod bert;
mod cache;
pub(crate) mod family;
pub(crate) mod fields;
mod frame;
mod hashes;
pub(crate) mod llama;
pub(crate) mod places;
pub(crate) mod plain;
pub(crate) mod t5;

use std::{collections::BTreeMap, sync::Arc};

use burn::tensor::{Device, Tensor, TensorData};

pub use cache::Cache;
pub(crate) use family::Beside;
pub use frame::Frame;
use hashes::Hashes;

use crate::recompute::untracked;
use crate::{
    Batch, Compute, Error, Example, Hooks, Label, Packed, Part, Place, Purpose, Result, Shape, Site, Slot, Stack,
    Weight, random::Random,
};

/// The table that makes logits over words, where it is not the word table.
const VOCABULARY: Site = Site { stack: Stack::Decoder, layer: 0, part: Part::Vocabulary };
/// The word table of a decoder.
const DECODER_WORDS: Site = Site { stack: Stack::Decoder, layer: 0, part: Part::Words };

/// A frozen backbone. Its tensors are plain (they never carry gradients), lie on one device and are shared by all clones.
#[derive(Clone, Debug)]
pub struct Base {
    shape: Arc<Shape>,
    device: Device,
    weights: BTreeMap<Site, Weight>,
    vectors: BTreeMap<(Site, Slot), Tensor<1>>,
    hollow: bool,
    hashes: Hashes,
    compute: Compute,
}

/// A tensor as a backbone takes it.
#[derive(Debug)]
pub enum Stored {
    /// As files hold it, linear maps as `[out, in]`.
    Data(TensorData),
    /// The matrix of a linear map, or a table, packed.
    Packed(Arc<dyn Packed>),
}

impl From<TensorData> for Stored {
    fn from(data: TensorData) -> Self {
        Stored::Data(data)
    }
}

/// What a backbone gives to a head.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// Final hidden states, `[batch, prompt + tokens, hidden]`; the decoder's, where there are an encoder and a decoder.
    pub states: Tensor<3>,
    /// How many rows at the front are virtual tokens.
    pub prompt: usize,
    /// The pooler's output, `[batch, hidden]`, if the model has one.
    pub pooled: Option<Tensor<2>>,
    /// What makes logits over words, `[vocab, hidden]`, as this run used it: the word table, or the model's own for that.
    pub words: Weight,
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
    pub fn new<T: Into<Stored>>(
        shape: Shape,
        device: &Device,
        mut tensor: impl FnMut(&Place) -> Result<T>,
    ) -> Result<Self> {
        let device = device.clone().inner();
        let mut base = Base {
            shape: Arc::new(shape),
            device,
            weights: BTreeMap::new(),
            vectors: BTreeMap::new(),
            hollow: false,
            hashes: Hashes::default(),
            compute: Compute::F32,
        };
        for place in base.shape.clone().places() {
            match tensor(&place)?.into() {
                Stored::Data(data) => base.set(&place, data),
                Stored::Packed(w) if place.transposed => base = base.with_weight(place.site, Weight::Packed(w)),
                Stored::Packed(w) => base = base.with_weight(place.site, Weight::Table(w)),
            }
        }
        Ok(base)
    }

    /// A backbone with random tensors: normal with standard deviation 0.02 as BERT and RoBERTa start, biases 0, gains 1.
    pub fn random(shape: Shape, seed: u64, device: &Device) -> Self {
        Base::new(shape, device, |place| Ok(random(place, seed)))
            .unwrap_or_else(|_: crate::Error| unreachable!("nothing here fails"))
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
        Base { shape, device, weights, vectors, hollow: true, hashes: Hashes::default(), compute: Compute::F32 }
    }

    /// Whether it is one for counting: what a method computes from its tensors need not be computed.
    pub fn is_hollow(&self) -> bool {
        self.hollow
    }

    /// The same base, the products of whose linear maps are computed so. Tensors stay as they are.
    pub fn with_compute(self, compute: Compute) -> Self {
        Base { compute, ..self }
    }

    /// What the products of its linear maps are computed in.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// What multiplies with the matrices of its linear maps on this machine: a kernel of our own (`portable`, `avx2`, `avx512`, `avx512-bf16`),
    /// or the tensor library.
    pub fn kernel(&self) -> &'static str {
        #[cfg(feature = "flex")]
        {
            let packed = self.weights.values().any(|w| matches!(w, Weight::Packed(_) | Weight::Table(_)));
            if self.device == Device::flex() && (packed || self.compute == Compute::Bf16) {
                return crate::kernels::Kernel::best().name(self.compute);
            }
        }
        "the tensor library's"
    }

    fn set(&mut self, place: &Place, data: TensorData) {
        match place.slot {
            Slot::Weight => {
                let stored = |data| Tensor::<2>::from_data(data, &self.device);
                // Its rows one after the other in memory too: a product with few rows reads a matrix that lies transposed twice.
                let data = if place.transposed { stored(data).transpose().into_data() } else { data };
                self.weights.insert(place.site, Weight::Dense(stored(data)));
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

    /// The matrix or table at a site: for a use of the word table that has none of its own, that.
    ///
    /// # Panics
    /// If the model has none there.
    pub fn weight(&self, site: Site) -> &Weight {
        let site = match self.weights.contains_key(&site) {
            false if [DECODER_WORDS, VOCABULARY].contains(&site) => self.shape.words(),
            _ => site,
        };
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
        self.hashes = self.hashes.without(site, Slot::Weight);
        self
    }

    /// The same base (sharing all else) with another bias or gain at a site.
    pub fn with_vector(mut self, site: Site, slot: Slot, vector: Tensor<1>) -> Self {
        self.vectors.insert((site, slot), vector);
        self.hashes = self.hashes.without(site, slot);
        self
    }

    /// A base with each tensor as the hooks rewrite it.
    pub fn rewritten(&self, hooks: &dyn Hooks) -> Self {
        self.shape().places().iter().fold(self.clone(), |base, Place { site, slot, .. }| match slot {
            Slot::Weight => base.with_weight(*site, hooks.weight(*site, self.weight(*site).clone())),
            slot => base.with_vector(*site, *slot, hooks.vector(*site, *slot, self.vector(*site, *slot))),
        })
    }

    /// The same base with a table of its own, as yet the same, for each use of the word table.
    pub(crate) fn untied(mut self) -> Self {
        let words = self.weight(self.shape.words()).clone();
        self.hashes = self.hashes.without(VOCABULARY, Slot::Weight).without(DECODER_WORDS, Slot::Weight);
        if self.shape.architecture.is_encoder_decoder() {
            self.weights.entry(DECODER_WORDS).or_insert(words.clone());
        }
        if self.shape.tied {
            self.shape = Arc::new(Shape { tied: false, ..(*self.shape).clone() });
            self.weights.insert(VOCABULARY, words);
        }
        self
    }

    /// What makes logits over words.
    #[cfg(feature = "load")]
    pub(crate) fn vocabulary(&self) -> &Weight {
        self.weight(if self.shape.tied { self.shape.words() } else { VOCABULARY })
    }

    /// The places of its tensors.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (Site, Slot)> {
        self.weights.keys().map(|site| (*site, Slot::Weight)).chain(self.vectors.keys().copied())
    }

    /// Whether the decoder behind an encoder has another word table than that.
    #[cfg(feature = "load")]
    pub(crate) fn has_two_word_tables(&self) -> bool {
        let data = |w: &Weight| w.dense().into_data();
        self.weights
            .get(&DECODER_WORDS)
            .is_some_and(|w| self.shape.words() != DECODER_WORDS && data(w) != data(self.weight(self.shape.words())))
    }

    /// The same base with other dropout probabilities, all `p`.
    pub fn with_dropout(mut self, p: f64) -> Self {
        self.shape = Arc::new((*self.shape).clone().with_dropout(p));
        self
    }

    /// The same base with the first layer of each stack alone.
    pub fn one_layer(&self) -> Self {
        Base { shape: Arc::new(self.shape().clone().one_layer()), ..self.clone() }
    }

    /// The same base as a model for this purpose has it, see [`Shape::for_purpose`]. RoBERTa's states have a pooler, if its tensors
    /// were read.
    pub fn for_purpose(&self, purpose: Purpose) -> Self {
        let mut shape = self.shape().clone().for_purpose(purpose);
        let pooler = Site::encoder(0, Part::Pooler);
        shape.pooler |= purpose == Purpose::States && self.weights.contains_key(&pooler);
        Base { shape: Arc::new(shape), ..self.clone() }
    }

    /// The same base with the settings (not the sizes) of another shape.
    #[cfg(feature = "load")]
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

    /// Pads examples to a batch on this device, refusing what the model cannot take.
    pub fn batch(&self, examples: &[&Example]) -> Result<Batch> {
        for example in examples {
            let length = example.ids.len();
            let wrong = |key: &str, found: String, expected: String| Err(Error::config(key, found, expected));
            self.shape.check_ids(&example.ids)?;
            // A model without a type table takes types of 0, which say nothing.
            if let Some(kind) = example.types.iter().flatten().find(|t| **t as usize >= self.shape.types.max(1)) {
                return wrong("token_type_ids", kind.to_string(), format!("types below {}", self.shape.types));
            }
            let masked = example.mask.as_ref().map_or(length, Vec::len);
            let typed = example.types.as_ref().map_or(length, Vec::len);
            // transformers counts rotary positions by places, we by real rows.
            let rotary = self.shape.architecture.family().rotary;
            let hole =
                |mask: &Vec<bool>| mask.iter().skip_while(|real| !**real).skip_while(|real| **real).any(|real| *real);
            if rotary && example.mask.as_ref().is_some_and(hole) {
                return wrong("attention_mask", "a hole".to_string(), "ones without zeros between them".to_string());
            }
            if masked != length || typed != length {
                return wrong(
                    "attention_mask, token_type_ids",
                    format!("{masked}, {typed} long"),
                    format!("{length}, as input_ids"),
                );
            }
        }
        let batch = Batch::new(examples.iter().copied(), self.shape.pad, &self.device)?;
        self.answering(batch, examples.iter().map(|example| example.label.as_ref()))
    }

    /// A batch whose decoder, if the model has one behind an encoder, is to predict these words.
    pub(crate) fn answering<'a>(
        &self,
        batch: Batch,
        labels: impl IntoIterator<Item = Option<&'a Label>>,
    ) -> Result<Batch> {
        match self.shape.architecture.start() {
            Some(start) => batch.with_decoder(&self.shifted(labels, start)?, &self.device),
            None => Ok(batch),
        }
    }

    /// What a decoder sees of the texts that it is to predict: all behind it by one, as in transformers. Without a text, the start.
    fn shifted<'a>(&self, labels: impl IntoIterator<Item = Option<&'a Label>>, start: usize) -> Result<Vec<Vec<u32>>> {
        let word = |word: &i32| match *word {
            crate::ops::loss::IGNORED => Ok(self.shape.pad as u32),
            word if (0..self.shape.vocab as i32).contains(&word) => Ok(word as u32),
            word => Err(Error::config("labels", word, format!("words below {}", self.shape.vocab))),
        };
        let shifted = |label: Option<&Label>| {
            let words = match label {
                Some(Label::Words(words)) => words.iter().map(word).collect::<Result<Vec<_>>>()?,
                _ => vec![],
            };
            let before = &words[..words.len().saturating_sub(1)];
            Ok(std::iter::once(start as u32).chain(before.iter().copied()).collect())
        };
        labels.into_iter().map(shifted).collect()
    }

    /// A forward of a batch with `hooks` at its seams, before its first step.
    pub fn frame<'a>(&'a self, batch: &'a Batch, hooks: &'a dyn Hooks) -> Frame<'a> {
        Frame { base: self, hooks, batch, recorder: None }
    }

    /// Runs a batch through the frozen layers with `hooks` at their seams.
    pub fn forward(&self, batch: &Batch, hooks: &dyn Hooks) -> Result<Hidden> {
        let frame = self.frame(batch, hooks);
        family::forward(&frame)
    }

    /// The same base by the same values, of which none is tracked, as copies that are trained are.
    pub(crate) fn without_gradients(&self) -> Self {
        let weight = |w: &Weight| match w {
            Weight::Dense(w) => Weight::Dense(untracked(w.clone())),
            packed => packed.clone(),
        };
        let weights = self.weights.iter().map(|(site, w)| (*site, weight(w))).collect();
        let vectors = self.vectors.iter().map(|(place, v)| (*place, untracked(v.clone()))).collect();
        Base { weights, vectors, ..self.clone() }
    }
}

/// What [`Base::random`] has at a place, drawn by all threads of the machine.
pub(crate) fn random(place: &Place, seed: u64) -> TensorData {
    // Fewer are drawn before a thread has started.
    const LEAST: usize = 1 << 18;
    let mut values = vec![if place.slot == Slot::Gain { 1.0 } else { 0.0 }; place.count()];
    if place.slot == Slot::Weight {
        let random = Random::new(seed, &place.name);
        let draw = &|start: usize, values: &mut [f32]| {
            // A normal number takes two.
            let mut random = random.clone().after(2 * start);
            values.iter_mut().for_each(|x| *x = (random.normal() * 0.02) as f32);
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let each = values.len().div_ceil(threads).max(LEAST);
        std::thread::scope(|scope| {
            let mut pieces = values.chunks_mut(each).enumerate();
            let first = pieces.next();
            pieces.for_each(|(i, values)| drop(scope.spawn(move || draw(i * each, values))));
            first.into_iter().for_each(|(_, values)| draw(0, values));
        });
    }
    TensorData::new(values, place.file_dims())
}
