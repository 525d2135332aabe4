//! Task heads: what turns hidden states into logits. Always trained, counted apart from the method.

use std::borrow::Borrow;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData, activation, module};

use crate::activation::gelu;
use crate::random::{Noise, Random};
use crate::{
    Architecture, Bare, Base, Batch, Copies, Error, Hidden, Key, Label, Result, Shape, Text, Tuner, Verbalizer, loss,
    weight::linear,
};

/// A linear map with bias.
#[derive(Module, Debug)]
pub struct Affine {
    /// `[in, out]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

impl Affine {
    /// Normal weights with standard deviation `std`, zero biases.
    pub fn init([rows, columns]: [usize; 2], std: f64, random: Random, device: &Device) -> Self {
        Affine {
            weight: Param::from_tensor(random.normal_tensor([rows, columns], std, device)),
            bias: Param::from_tensor(Tensor::zeros([columns], device)),
        }
    }

    /// `x W + b`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.val(), Some(self.bias.val()))
    }
}

/// A normalization's gain and bias.
#[derive(Module, Debug)]
pub struct Norm {
    /// `[hidden]`.
    pub gain: Param<Tensor<1>>,
    /// `[hidden]`.
    pub bias: Param<Tensor<1>>,
}

/// A head. Its record names are those of a Hugging Face checkpoint up to the names of its leaves.
#[derive(Module, Debug)]
pub enum Head {
    /// Sequence classification (or regression, with one output) from the first position.
    Classifier(Classifier),
    /// RoBERTa's form of it on a BERT, as AdapterHub has it: from the first position's state, past the pooler.
    TwoLayers(Classifier),
    /// Sequence classification (or regression) from the last real token, as on LLaMA.
    Score(Score),
    /// Prediction of masked words, tied to the word table.
    MaskedLm(MaskedLm),
    /// Prediction of the words of a text with the model's own table; nothing of it is trained.
    LanguageModel(LanguageModel),
    /// Classes and values as texts that the model writes, as on T5; nothing of it is trained.
    Verbalizer(Verbalizer),
}

/// RoBERTa: dense, tanh, out; BERT: out, on the pooler's output.
#[derive(Module, Debug)]
pub struct Classifier {
    /// The first layer, of two.
    pub dense: Option<Affine>,
    /// The last layer, `[hidden, classes]`.
    pub out: Affine,
}

/// A linear map without bias.
#[derive(Module, Debug)]
pub struct Score {
    /// `[hidden, classes]`.
    pub weight: Param<Tensor<2>>,
}

/// The transposed word table, or what the model has in its place.
#[derive(Module, Debug)]
pub struct LanguageModel {}

/// Dense, GELU, LayerNorm, then the transposed word table and a bias.
#[derive(Module, Debug)]
pub struct MaskedLm {
    /// The transform.
    pub dense: Affine,
    /// Its normalization.
    pub norm: Norm,
    /// One for each word.
    pub bias: Param<Tensor<1>>,
}

impl Head {
    /// A fresh classification head with this many outputs (1: regression), on the base's device with autodiff. T5, which writes
    /// classes as texts ([`Verbalizer`]), gets the head for words.
    pub fn classifier(base: &Base, outputs: usize, seed: u64) -> Self {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        match shape.architecture {
            Architecture::Bert => Head::Classifier(Classifier::init(base, outputs, seed, false)),
            Architecture::Roberta => Head::Classifier(Classifier::init(base, outputs, seed, true)),
            Architecture::Llama(_) => {
                let random = Random::new(seed, "score.weight");
                let weight = random.normal_tensor([shape.hidden, outputs], 0.02, &device);
                Head::Score(Score { weight: Param::from_tensor(weight) })
            }
            Architecture::T5(_) => Head::LanguageModel(LanguageModel {}),
        }
    }

    /// A fresh head of two layers for a BERT with this many outputs (1: regression), on the base's device with autodiff.
    pub fn two_layers(base: &Base, outputs: usize, seed: u64) -> Self {
        Head::TwoLayers(Classifier::init(base, outputs, seed, true))
    }

    /// A fresh masked-word head, on the base's device with autodiff.
    pub fn masked_lm(base: &Base, seed: u64) -> Self {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let vector = |value: f64, n| Param::from_tensor(Tensor::full([n], value, &device));
        Head::MaskedLm(MaskedLm {
            dense: Affine::init([shape.hidden; 2], 0.02, Random::new(seed, "lm_head.dense"), &device),
            norm: Norm { gain: vector(1.0, shape.hidden), bias: vector(0.0, shape.hidden) },
            bias: vector(0.0, shape.vocab),
        })
    }

    /// The number of outputs of a classification head.
    pub fn outputs(&self) -> Option<usize> {
        match self {
            Head::Classifier(head) | Head::TwoLayers(head) => Some(head.out.bias.lazy_shape().num_elements()),
            Head::Score(head) => Some(head.weight.lazy_shape()[1]),
            Head::Verbalizer(head) => Some(head.outputs()),
            Head::MaskedLm(_) | Head::LanguageModel(_) => None,
        }
    }

    /// By how many tokens a head for words predicts ahead of the token whose state it reads. An encoder predicts the token itself,
    /// and what the decoder behind an encoder sees is behind its labels already.
    pub fn ahead(&self, shape: &Shape) -> usize {
        usize::from(matches!((self, shape.architecture), (Head::LanguageModel(_), Architecture::Llama(_))))
    }

    /// Number of elements of a classification head with this many outputs.
    pub fn count(shape: &Shape, outputs: usize) -> usize {
        let out = shape.hidden * outputs;
        match shape.architecture {
            Architecture::Bert => out + outputs,
            Architecture::Roberta => shape.hidden * shape.hidden + shape.hidden + out + outputs,
            Architecture::Llama(_) => out,
            Architecture::T5(_) => 0,
        }
    }

    /// Logits: `[batch, 1, classes]` from a classifier, `[batch, tokens, vocab]` from a head for words (of a decoder's tokens, where
    /// there are an encoder and a decoder). Those of classes that are texts take a run for each text: [`Trained::logits`].
    pub fn logits(&self, hidden: Hidden, shape: &Shape, batch: &Batch) -> Result<Tensor<3>> {
        match self {
            Head::Classifier(head) | Head::TwoLayers(head) => head.logits(hidden, shape, batch),
            Head::Score(head) => Ok(head.logits(hidden, batch)),
            Head::MaskedLm(_) | Head::LanguageModel(_) | Head::Verbalizer(_) => {
                Ok(self.words(hidden.tokens(), hidden.words, shape))
            }
        }
    }

    /// Logits over words `[batch, tokens, vocab]` of states `[batch, tokens, hidden]`.
    ///
    /// # Panics
    /// On a head for classes.
    pub(crate) fn words(&self, states: Tensor<3>, words: Tensor<2>, shape: &Shape) -> Tensor<3> {
        match (self, shape.architecture) {
            (Head::MaskedLm(head), _) => head.logits(states, words, shape),
            (Head::LanguageModel(_) | Head::Verbalizer(_), Architecture::T5(t5)) if t5.scaled => {
                linear(states * (shape.hidden as f64).powf(-0.5), words.transpose(), None)
            }
            (Head::LanguageModel(_) | Head::Verbalizer(_), _) => linear(states, words.transpose(), None),
            (Head::Classifier(_) | Head::TwoLayers(_) | Head::Score(_), _) => {
                panic!("a head for classes has no logits over words")
            }
        }
    }

    /// What a Hugging Face checkpoint calls the tensor that records call `name`. Of two layers on a BERT, which has none there, these
    /// are RoBERTa's names, so that nothing takes them for a BERT's head.
    pub fn key(name: &str, architecture: Architecture) -> Key {
        let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
        let word = if leaf == "gain" { "weight" } else { leaf };
        let roberta = architecture == Architecture::Roberta;
        let path = match (module, roberta) {
            ("Score", _) => "score",
            ("Classifier.out", true) => "classifier.out_proj",
            ("Classifier.out", false) => "classifier",
            ("Classifier.dense" | "TwoLayers.dense", _) => "classifier.dense",
            ("TwoLayers.out", _) => "classifier.out_proj",
            ("MaskedLm.dense", true) => "lm_head.dense",
            ("MaskedLm.norm", true) => "lm_head.layer_norm",
            ("MaskedLm", true) => "lm_head",
            ("MaskedLm.dense", false) => "cls.predictions.transform.dense",
            ("MaskedLm.norm", false) => "cls.predictions.transform.LayerNorm",
            ("MaskedLm", false) => "cls.predictions",
            _ => unreachable!("a head has no tensor {name}"),
        };
        Key { name: format!("{path}.{word}"), transposed: leaf == "weight" }
    }
}

impl Classifier {
    fn init(base: &Base, outputs: usize, seed: u64, two_layers: bool) -> Self {
        let (hidden, device) = (base.shape().hidden, base.device().clone().autodiff());
        let affine = |name: &str, columns| {
            Affine::init([hidden, columns], 0.02, Random::new(seed, &format!("classifier.{name}")), &device)
        };
        Classifier { dense: two_layers.then(|| affine("dense", hidden)), out: affine("out", outputs) }
    }

    /// The first position, a prompt's if there is one: as in transformers and PEFT.
    fn logits(&self, hidden: Hidden, shape: &Shape, batch: &Batch) -> Result<Tensor<3>> {
        let drop = |x: Tensor<3>, place| match &batch.noise {
            Some(noise) => noise.dropout(x, shape.classifier_dropout, place),
            None => x,
        };
        let no_pooler = || {
            let expected =
                "a model with a pooler (a checkpoint saved for masked words has none), as BERT's classifier needs";
            Error::config("pooler.dense.weight", "no such tensor in the model", expected)
        };
        let x = match &self.dense {
            Some(dense) => {
                let first = drop(hidden.states.narrow(1, 0, 1), "classifier.dense");
                activation::tanh(dense.forward(first))
            }
            None => hidden.pooled.ok_or_else(no_pooler)?.unsqueeze_dim(1),
        };
        Ok(self.out.forward(drop(x, "classifier.out")))
    }
}

impl Score {
    /// The last real token's.
    fn logits(&self, hidden: Hidden, batch: &Batch) -> Tensor<3> {
        let states = hidden.tokens();
        let [size, tokens, width] = states.dims();
        let last = match &batch.padding {
            None => states.narrow(1, tokens - 1, 1),
            Some(padding) => {
                let places = Tensor::<1, Int>::arange(0..tokens as i64, &padding.device()).unsqueeze::<2>();
                let places = places.expand([size, tokens]).mask_fill(padding.clone(), -1).max_dim(1);
                states.gather(1, places.unsqueeze_dim::<3>(2).expand([size, 1, width]))
            }
        };
        module::linear(last, self.weight.val(), None)
    }
}

impl MaskedLm {
    fn logits(&self, states: Tensor<3>, words: Tensor<2>, shape: &Shape) -> Tensor<3> {
        let x = gelu(self.dense.forward(states));
        let x = module::layer_norm(x, self.norm.gain.val(), Some(self.norm.bias.val()), shape.eps);
        linear(x, words.transpose(), Some(self.bias.val()))
    }
}

/// What is trained and saved: a way to run the base, and a head.
#[derive(Module, Debug)]
pub struct Trained<T: Module> {
    /// The method.
    pub tuner: T,
    /// The head.
    pub head: Head,
    /// Copies of tensors of the base, beside the method.
    pub copies: Copies,
}

impl<T: Tuner> Trained<T> {
    /// The two together, with parameter ids derived from names.
    pub fn new(tuner: T, head: Head) -> Result<Self> {
        crate::view::with_ids_from_names(Trained { tuner, head, copies: Copies::default() })
    }

    /// With these copies of tensors of the base.
    pub fn with_copies(self, copies: Copies) -> Result<Self> {
        crate::view::with_ids_from_names(Trained { copies, ..self })
    }

    /// What the base gives with the method and the copies.
    pub fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        match self.copies.is_empty() {
            true => self.tuner.run(base, batch),
            false => self.tuner.run(&self.copies.onto(base), batch),
        }
    }

    /// The same function on a base of its own, where the method only rewrites tensors, see [`Tuner::rewritten`].
    pub fn rewritten(&self, base: &Base, noise: Option<Arc<Noise>>) -> Result<Option<(Base, Trained<Bare>)>> {
        let bare = |base| (base, Trained { tuner: Bare {}, head: self.head.clone(), copies: Copies::default() });
        Ok(self.tuner.rewritten(&self.copies.onto(base), noise)?.map(bare))
    }

    /// Logits of a batch, see [`Head::logits`]. Those of classes that are texts are the texts' log-likelihoods; of values that are
    /// texts there is one, the likeliest.
    pub fn logits(&self, base: &Base, batch: &Batch) -> Result<Tensor<3>> {
        let Head::Verbalizer(verbalizer) = &self.head else {
            return self.head.logits(self.run(base, batch)?, base.shape(), batch);
        };
        let size = batch.dims()[0];
        let likelihood = |text: &Text| {
            let words = vec![text.words(); size];
            let losses = self.answer_losses(base, batch, &words)?;
            Ok(losses.reshape([size, text.ids.len()]).sum_dim(1).neg())
        };
        let all = Tensor::cat(verbalizer.texts().iter().map(likelihood).collect::<Result<_>>()?, 1);
        let outputs = match verbalizer.values() {
            None => all,
            Some(values) => {
                let values = Tensor::<1>::from_data(TensorData::from(values.as_slice()), &all.device());
                values.select(0, all.argmax(1).reshape([size])).unsqueeze_dim(1)
            }
        };
        Ok(outputs.unsqueeze_dim(1))
    }

    /// The summed loss of a batch with its labels. Of a head for words only the rows that have a label are computed.
    pub fn loss(&self, base: &Base, batch: &Batch, labels: &[&Label]) -> Result<Tensor<1>> {
        match &self.head {
            Head::Classifier(_) | Head::TwoLayers(_) | Head::Score(_) => {
                loss::task_loss(self.logits(base, batch)?, labels)
            }
            Head::MaskedLm(_) | Head::LanguageModel(_) => Ok(self.word_losses(base, batch, labels)?.sum()),
            Head::Verbalizer(head) => {
                let words = labels.iter().map(|label| head.words(label)).collect::<Result<Vec<_>>>()?;
                Ok(self.answer_losses(base, batch, &words)?.sum())
            }
        }
    }

    /// The loss of each word of these answers to the batch.
    fn answer_losses(&self, base: &Base, batch: &Batch, words: &[Label]) -> Result<Tensor<1>> {
        self.word_losses(base, &base.answering(batch.clone(), words.iter().map(Some))?, words)
    }

    /// The loss of each word that counts.
    fn word_losses(&self, base: &Base, batch: &Batch, labels: &[impl Borrow<Label>]) -> Result<Tensor<1>> {
        let hidden = self.run(base, batch)?;
        let states = hidden.tokens();
        let [size, tokens, width] = states.dims();
        let (rows, words) = loss::words(labels, tokens, base.shape().vocab, self.head.ahead(base.shape()))?;
        if rows.is_empty() {
            return Ok(states.sum() * 0.0);
        }
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [words.len()]), base.device());
        let states = states.reshape([size * tokens, width]).select(0, rows);
        let logits = self.head.words(states.unsqueeze(), hidden.words, base.shape());
        Ok(loss::cross_entropy(logits.squeeze_dim(0), words))
    }
}
