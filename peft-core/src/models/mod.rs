//! Frozen backbones: their tensors by site, and one readable forward for each family.

pub(crate) mod bert;
mod cache;
pub(crate) mod fields;
pub(crate) mod llama;
pub(crate) mod places;
pub(crate) mod t5;

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use burn::module::ParamId;
use burn::tensor::{Device, Int, Tensor, TensorData, activation, module};

pub use cache::Cache;
use cache::Owner;

use crate::recompute::{Recorder, untracked};
use crate::{
    Architecture, Attention, Batch, Error, Example, Hooks, Label, Lookup, Next, Packed, Part, Place, Purpose, Result,
    Sequence, Shape, Site, Slot, Stack, Weight,
    random::{Random, fingerprint},
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
}

/// A tensor as a backbone takes it.
#[derive(Debug)]
pub enum Stored {
    /// As files hold it, linear maps as `[out, in]`.
    Data(TensorData),
    /// The matrix of a linear map, packed.
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
    pub fn new<T: Into<Stored>>(
        shape: Shape,
        device: &Device,
        mut tensor: impl FnMut(&Place) -> Result<T>,
    ) -> Result<Self> {
        let device = device.clone().inner();
        let mut base =
            Base { shape: Arc::new(shape), device, weights: BTreeMap::new(), vectors: BTreeMap::new(), hollow: false };
        for place in base.shape.clone().places() {
            match tensor(&place)?.into() {
                Stored::Data(data) => base.set(&place, data),
                Stored::Packed(w) => base = base.with_weight(place.site, Weight::Packed(w)),
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
        Base { shape, device, weights, vectors, hollow: true }
    }

    /// Whether it is one for counting: what a method computes from its tensors need not be computed.
    pub fn is_hollow(&self) -> bool {
        self.hollow
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
        self
    }

    /// The same base (sharing all else) with another bias or gain at a site.
    pub fn with_vector(mut self, site: Site, slot: Slot, vector: Tensor<1>) -> Self {
        self.vectors.insert((site, slot), vector);
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
        if let Architecture::T5(_) = self.shape.architecture {
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

    /// A hash of every bit of the base, and of what its shape says beside them (heads, activation, positions, dropout ..).
    pub fn fingerprint(&self) -> u64 {
        fingerprint("shape", format!("{:?}", self.shape).as_bytes()) ^ self.weights_fingerprint()
    }

    /// A hash of every bit of its tensors as files hold them, in f32, whatever type they had there. It stays the same from version to
    /// version of this library.
    pub fn weights_fingerprint(&self) -> u64 {
        let one = |place: &Place| fingerprint(&place.name, self.tensor_data(place).as_bytes());
        self.shape.places().iter().fold(0, |all, place| all ^ one(place))
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
            let rotary = matches!(self.shape.architecture, Architecture::Llama(_));
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
        match self.shape.architecture {
            Architecture::T5(t5) => batch.with_decoder(&self.shifted(labels, t5.start)?, &self.device),
            _ => Ok(batch),
        }
    }

    /// What a decoder sees of the texts that it is to predict: all behind it by one, as in transformers. Without a text, the start.
    fn shifted<'a>(&self, labels: impl IntoIterator<Item = Option<&'a Label>>, start: usize) -> Result<Vec<Vec<u32>>> {
        let word = |word: &i32| match *word {
            crate::loss::IGNORED => Ok(self.shape.pad as u32),
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
        self.frame(batch, hooks).run()
    }

    /// The same base by the same values, of which none is tracked, as copies that are trained are.
    pub(crate) fn without_gradients(&self) -> Self {
        let weight = |w: &Weight| match w {
            Weight::Dense(w) => Weight::Dense(untracked(w.clone())),
            Weight::Packed(w) => Weight::Packed(w.clone()),
        };
        let weights = self.weights.iter().map(|(site, w)| (*site, weight(w))).collect();
        let vectors = self.vectors.iter().map(|(place, v)| (*place, untracked(v.clone()))).collect();
        Base { weights, vectors, ..self.clone() }
    }
}

/// What a layer reads beside the sequence.
#[derive(Clone)]
pub(crate) enum Beside {
    Nothing,
    Rotary(llama::Rotary),
    Encoded(Sequence),
}

impl Beside {
    /// The frozen computation of a layer.
    pub(crate) fn layer(&self, frame: &Frame<'_>, site: Site, x: Sequence) -> Sequence {
        match (&frame.base.shape.architecture, self) {
            (Architecture::T5(t5), Beside::Encoded(encoded)) => t5::one_layer(frame, t5, site, x, Some(encoded)),
            (Architecture::T5(t5), _) => t5::one_layer(frame, t5, site, x, None),
            (_, Beside::Rotary(rotary)) => llama::decoder_layer(frame, rotary, site.layer, x),
            (_, _) => bert::encoder_layer(frame, site.layer, x),
        }
    }

    pub(crate) fn without_gradients(&self) -> Self {
        match self {
            Beside::Encoded(x) => Beside::Encoded(x.clone().without_gradients()),
            other => other.clone(),
        }
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

/// A forward in progress: the operations that backbones share, each with its seam. A hook that is called around some of them has
/// the same at hand, for what it computes of its own.
pub struct Frame<'a> {
    pub(crate) base: &'a Base,
    pub(crate) hooks: &'a dyn Hooks,
    pub(crate) batch: &'a Batch,
    pub(crate) recorder: Option<&'a Recorder<'a>>,
}

impl Frame<'_> {
    /// Runs all steps.
    pub(crate) fn run(&self) -> Result<Hidden> {
        match &self.base.shape.architecture {
            Architecture::Bert | Architecture::Roberta => bert::forward(self),
            Architecture::T5(t5) => t5::forward(self, t5),
            Architecture::Llama(llama) => llama::forward(self, llama),
        }
    }

    /// A layer inside its hook.
    pub(crate) fn layer(&self, site: Site, x: Sequence, beside: &Beside) -> Sequence {
        match self.recorder {
            Some(recorder) => recorder.layer(site, x, beside),
            None => self.hooks.layer(self, site, x, &|x| beside.layer(self, site, x)),
        }
    }

    /// A tensor that is read in more than one place between and in layers.
    pub(crate) fn held<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.recorder {
            Some(recorder) => recorder.held(x),
            None => x,
        }
    }

    /// The shape of the base.
    pub fn shape(&self) -> &Shape {
        &self.base.shape
    }

    /// A matrix or table after the hook `weight`.
    ///
    /// # Panics
    /// If the model has none there.
    pub fn weight(&self, site: Site) -> Weight {
        self.hooks.weight(site, self.base.weight(site).clone())
    }

    /// A bias or gain after the hook `vector`.
    ///
    /// # Panics
    /// If the model has none there.
    pub fn vector(&self, site: Site, slot: Slot) -> Tensor<1> {
        self.hooks.vector(site, slot, self.base.vector(site, slot))
    }

    /// A linear map with its bias, if it has one, inside the hook `linear`.
    pub(crate) fn linear(&self, site: Site, x: Tensor<3>) -> Tensor<3> {
        let bias = || self.base.vectors.get(&(site, Slot::Bias)).cloned();
        let bias = || bias().map(|bias| self.hooks.vector(site, Slot::Bias, bias));
        self.hooks.linear(site, x, &|x| self.weight(site).linear(x, bias()))
    }

    /// A normalization of the model, after the hook `vector`: where it has a bias a layer normalization, else one by the root of the
    /// mean square.
    ///
    /// # Panics
    /// If the model has none there.
    pub fn norm(&self, site: Site, x: Tensor<3>) -> Tensor<3> {
        let (gain, eps) = (self.vector(site, Slot::Gain), self.base.shape.eps);
        if self.base.vectors.contains_key(&(site, Slot::Bias)) {
            return module::layer_norm(x, gain, Some(self.vector(site, Slot::Bias)), eps);
        }
        let scale = (x.clone().powi_scalar(2).mean_dim(2) + eps).sqrt();
        x / scale * gain.unsqueeze()
    }

    /// What makes logits over words: the word table after the hook for that use too, or one of its own.
    pub(crate) fn vocabulary(&self, words: Tensor<2>) -> Tensor<2> {
        match self.base.shape.tied {
            true => self.hooks.weight(VOCABULARY, Weight::Dense(words)).dense(),
            false => self.weight(VOCABULARY).dense(),
        }
    }

    /// The word table of the decoder behind an encoder: the encoder's `words`, if it has none of its own.
    pub(crate) fn decoder_words(&self, words: &Tensor<2>) -> Tensor<2> {
        match self.base.weights.get(&DECODER_WORDS) {
            Some(own) => self.hooks.weight(DECODER_WORDS, own.clone()).dense(),
            None => words.clone(),
        }
    }

    /// Rows of a table, inside the hook `rows`.
    pub(crate) fn rows(&self, site: Site, table: &Tensor<2>, ids: Tensor<2, Int>, padding: Option<usize>) -> Tensor<3> {
        let lookup = Lookup { table, ids, padding };
        self.hooks.rows(site, &lookup, lookup.of(table.clone()))
    }

    /// Dropout with probability `p`, while training; `place` tells it from every other.
    pub fn dropout<const D: usize>(&self, x: Tensor<D>, p: f64, place: impl Display) -> Tensor<D> {
        match &self.batch.noise {
            Some(noise) => noise.dropout(x, p, &place.to_string()),
            None => x,
        }
    }

    /// x + f(x), with `f` a sub-layer inside its hook.
    pub(crate) fn residual(&self, site: Site, x: Sequence, f: Next<'_, Sequence, Tensor<3>>) -> Sequence {
        let output = self.hooks.sublayer(self, site, x.clone(), f);
        Sequence { hidden: x.hidden + output, ..x }
    }

    /// Multi-head attention from split queries, keys and values, inside the hook `attend`; heads are joined again. Scores are divided
    /// by the root of the heads' width, if they are to be.
    pub(crate) fn attend(&self, site: Site, attention: Attention, scaled: bool) -> Tensor<3> {
        let attend = |a: Attention| {
            let [batch, heads, rows, width] = a.query.dims();
            // Heads that share keys and values read the same ones; copies of them would cost more than the product.
            let own = a.key.dims()[1];
            let product = |x: Tensor<4>, y: Tensor<4>| {
                let [inner, outer] = [x.dims()[3], y.dims()[3]];
                if own == heads {
                    return x.matmul(y);
                }
                let x = x.reshape([batch, own, heads / own, rows, inner]);
                x.matmul(y.unsqueeze_dim(2)).reshape([batch, heads, rows, outer])
            };
            let scores = product(a.query, a.key.swap_dims(2, 3));
            let scores = if scaled { scores.div_scalar((width as f64).sqrt()) } else { scores };
            let weights = activation::softmax(a.mask.apply(scores), 3);
            product(self.dropout(weights, self.base.shape.attention_dropout, site), a.value)
        };
        let context = self.hooks.attend(site, attention, &attend);
        let [batch, heads, tokens, width] = context.dims();
        context.swap_dims(1, 2).reshape([batch, tokens, heads * width])
    }

    /// Splits `[batch, tokens, heads * width]` into heads, `[batch, heads, tokens, width]`.
    pub(crate) fn split(&self, x: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, tokens, inner] = x.dims();
        x.reshape([batch, tokens, heads, inner / heads]).swap_dims(1, 2)
    }

    /// How many rows the cache holds.
    pub(crate) fn past(&self) -> usize {
        self.batch.cache.as_ref().map_or(0, Cache::rows)
    }

    /// A decoder's sequence with what its rows see of those in the cache.
    pub(crate) fn follow(&self, mut x: Sequence) -> Sequence {
        let Some(cache) = self.batch.cache.as_ref().filter(|_| x.past > 0) else { return x };
        let [size, rows, _] = x.hidden.dims();
        let visible = |n| Tensor::full([size, n], false, &self.base.device);
        x.mask.padding = match (cache.padding(), x.mask.padding) {
            (None, None) => None,
            (before, new) => {
                let (before, new) = (before.unwrap_or_else(|| visible(x.past)), new.unwrap_or_else(|| visible(rows)));
                Some(Tensor::cat(vec![before, new], 1))
            }
        };
        x.mask.causal = x.mask.causal.map(|causal| causal + x.past);
        x
    }

    /// Keys and values of a decoder's rows behind those in the cache.
    pub(crate) fn remember(&self, site: Site, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        match &self.batch.cache {
            Some(cache) => cache.extend(Owner::Model(site), key, value),
            None => (key, value),
        }
    }

    /// The same for what a method keeps of a decoder's rows, `[batch, heads, rows, width]`, under the id of a tensor of its own.
    pub fn remember_own(&self, owner: ParamId, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        match &self.batch.cache {
            Some(cache) => cache.extend(Owner::Method(owner), key, value),
            None => (key, value),
        }
    }

    /// Keys and values of the encoder's rows, computed once for a text.
    pub(crate) fn remember_once(
        &self,
        site: Site,
        compute: impl FnOnce() -> (Tensor<4>, Tensor<4>),
    ) -> (Tensor<4>, Tensor<4>) {
        match &self.batch.cache {
            Some(cache) => cache.once(Owner::Model(site), compute),
            None => compute(),
        }
    }

    /// The encoder's output in the cache.
    pub(crate) fn encoded(&self) -> Option<Sequence> {
        self.batch.cache.as_ref().and_then(Cache::encoded)
    }

    /// Puts the encoder's output into the cache.
    pub(crate) fn keep_encoded(&self, x: &Sequence) {
        if let Some(cache) = &self.batch.cache {
            cache.set_encoded(x.clone());
        }
    }

    /// Ends a decoder's step in the cache.
    pub(crate) fn finish(&self, x: &Sequence) {
        if let Some(cache) = &self.batch.cache {
            cache.advance(x.hidden.dims()[1], x.mask.padding.clone());
        }
    }
}
