//! Task heads: what turns hidden states into logits. Always trained, counted apart from the method.

mod classes;
mod words;

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

pub use classes::{Classifier, Score, Tokens};
pub use words::{AtMask, LanguageModel, MaskedLm};

use crate::ops::{layer_norm, linear};
use crate::random::Random;
use crate::{Architecture, Base, Batch, Error, ForTexts, Hidden, Key, Purpose, Result, Shape, Verbalizer, Weight};

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

impl Norm {
    /// The layer normalization of x `[.., hidden]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, eps: f64) -> Tensor<D> {
        layer_norm(x, self.gain.val(), self.bias.val(), eps)
    }
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
    /// Sequence classification (or regression) from a masked word, whose state is the first: as WARP has it.
    AtMask(AtMask),
    /// A class for each token.
    Tokens(Tokens),
    /// For each token, whether the answer begins and whether it ends with it.
    Answers(Tokens),
    /// Prediction of masked words.
    MaskedLm(MaskedLm),
    /// Prediction of the words of a text with the model's own table; nothing of it is trained.
    LanguageModel(LanguageModel),
    /// Classes and values as texts that the model writes, as on T5; nothing of it is trained.
    Verbalizer(Verbalizer),
    /// None: the states are the result.
    States(States),
    /// One for each of several tasks, all for one purpose: a sequence has that of its task.
    Several(Vec<Head>),
}

/// Logits of several heads are no tensor.
pub(crate) fn mixed() -> Error {
    Error::config("batch", "sequences of several tasks", "one task, whose head gives the logits")
}

/// Nothing: states as they are.
#[derive(Module, Debug)]
pub struct States {}

impl Head {
    /// The modules that are heads in one of the families.
    pub const MODULES: [&str; 6] = ["classifier", "score", "lm_head", "cls", "qa_outputs", "tasks"];

    /// A fresh classification head with this many outputs (1: regression), on the base's device with autodiff. T5, which writes
    /// classes as texts ([`Verbalizer`]), gets the head for words.
    pub fn classifier(base: &Base, outputs: usize, seed: u64) -> Self {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        match shape.architecture.family().for_texts {
            ForTexts::Pooled => Head::Classifier(Classifier::init(base, outputs, seed, false)),
            ForTexts::TwoLayers => Head::Classifier(Classifier::init(base, outputs, seed, true)),
            ForTexts::Score => {
                let random = Random::new(seed, "score.weight");
                let weight = random.normal_tensor([shape.hidden, outputs], 0.02, &device);
                Head::Score(Score { weight: Param::from_tensor(weight) })
            }
            ForTexts::Written => Head::LanguageModel(LanguageModel {}),
        }
    }

    /// A fresh head of two layers for a BERT with this many outputs (1: regression), on the base's device with autodiff.
    pub fn two_layers(base: &Base, outputs: usize, seed: u64) -> Self {
        Head::TwoLayers(Classifier::init(base, outputs, seed, true))
    }

    /// A fresh head with this many classes for each token, on the base's device with autodiff.
    pub fn tokens(base: &Base, classes: usize, seed: u64) -> Self {
        let (hidden, device) = (base.shape().hidden, base.device().clone().autodiff());
        Head::Tokens(Tokens { out: Affine::init([hidden, classes], 0.02, Random::new(seed, "tokens.out"), &device) })
    }

    /// A fresh head for answers, on the base's device with autodiff.
    pub fn answers(base: &Base, seed: u64) -> Self {
        let (hidden, device) = (base.shape().hidden, base.device().clone().autodiff());
        Head::Answers(Tokens { out: Affine::init([hidden, 2], 0.02, Random::new(seed, "answers.out"), &device) })
    }

    /// A fresh masked-word head, tied to the word table, on the base's device with autodiff.
    pub fn masked_lm(base: &Base, seed: u64) -> Self {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let vector = |value: f64, n| Param::from_tensor(Tensor::full([n], value, &device));
        Head::MaskedLm(MaskedLm {
            dense: Affine::init([shape.hidden; 2], 0.02, Random::new(seed, "lm_head.dense"), &device),
            norm: Norm { gain: vector(1.0, shape.hidden), bias: vector(0.0, shape.hidden) },
            bias: vector(0.0, shape.vocab),
            decoder: None,
        })
    }

    /// A fresh head at a masked word with this many outputs, behind a transform that is to be filled, on the base's device with autodiff.
    #[cfg(feature = "load")]
    pub(crate) fn at_mask(base: &Base, outputs: usize, seed: u64) -> Self {
        let (hidden, device) = (base.shape().hidden, base.device().clone().autodiff());
        let out = Affine::init([hidden, outputs], 0.02, Random::new(seed, "at_mask.out"), &device);
        match Head::masked_lm(base, seed) {
            Head::MaskedLm(words) => Head::AtMask(AtMask::of(&words, out)),
            _ => unreachable!("a head for masked words is one"),
        }
    }

    /// One for each of several tasks. Of a language model, which trains nothing of it, one serves all.
    ///
    /// # Errors
    /// If there is none, or they are for different purposes.
    pub fn several(mut heads: Vec<Head>) -> Result<Self> {
        let kind = |head: &Head| (head.purpose(), head.is_of_texts());
        let Some(first) = heads.first() else { return Err(Error::config("tasks", "none", "at least one")) };
        if let Some(i) = heads.iter().position(|head| kind(head) != kind(first)) {
            let found = format!("{:?} in task 0, {:?} in task {i}", first.purpose(), heads[i].purpose());
            return Err(Error::config("tasks", found, "tasks whose labels are of one kind"));
        }
        match heads.iter().all(|head| matches!(head, Head::LanguageModel(_))) {
            true => Ok(heads.remove(0)),
            false => Ok(Head::Several(heads)),
        }
    }

    /// That of a task, or the one that serves all.
    pub fn of_task(&self, task: usize) -> Result<&Head> {
        let Head::Several(heads) = self else { return Ok(self) };
        let expected = || format!("a number below {}: there is a head for each of so many tasks", heads.len());
        heads.get(task).ok_or_else(|| Error::config("task", task, expected()))
    }

    /// That of a batch, whose sequences are of one task if there are several heads.
    pub(crate) fn of_batch(&self, batch: &Batch) -> Result<&Head> {
        match self.groups(batch) {
            None => self.of_task(batch.tasks.first().copied().unwrap_or(0)),
            Some(_) => Err(mixed()),
        }
    }

    /// The sequences of each task in a batch, if they have different heads.
    pub(crate) fn groups(&self, batch: &Batch) -> Option<Vec<Vec<usize>>> {
        let groups = self.by_task(batch.tasks.iter().copied());
        (groups.len() > 1).then_some(groups)
    }

    /// The places of what has the same head.
    pub(crate) fn by_task(&self, tasks: impl Iterator<Item = usize>) -> Vec<Vec<usize>> {
        let mut groups = BTreeMap::<usize, Vec<usize>>::new();
        let several = matches!(self, Head::Several(_));
        tasks.enumerate().for_each(|(i, task)| groups.entry(if several { task } else { 0 }).or_default().push(i));
        groups.into_values().collect()
    }

    /// How many tasks it has heads for, if for several.
    pub fn tasks(&self) -> Option<usize> {
        if let Head::Several(heads) = self { Some(heads.len()) } else { None }
    }

    /// What a model with this head is used for.
    pub fn purpose(&self) -> Purpose {
        match self {
            Head::Several(heads) => heads[0].purpose(),
            Head::Classifier(_) | Head::TwoLayers(_) | Head::Score(_) | Head::AtMask(_) => Purpose::Texts,
            Head::Tokens(_) => Purpose::Tokens,
            Head::Answers(_) => Purpose::Answers,
            Head::MaskedLm(_) | Head::LanguageModel(_) | Head::Verbalizer(_) => Purpose::Words,
            Head::States(_) => Purpose::States,
        }
    }

    /// Whether a text has one row of logits, not one for each of its tokens.
    pub fn is_of_texts(&self) -> bool {
        match self {
            Head::Several(heads) => heads[0].is_of_texts(),
            head => head.purpose() == Purpose::Texts || matches!(head, Head::Verbalizer(_)),
        }
    }

    /// The number of outputs of a classification head; of several heads each has its own.
    pub fn outputs(&self) -> Option<usize> {
        match self {
            Head::Classifier(head) | Head::TwoLayers(head) => Some(head.out.bias.lazy_shape().num_elements()),
            Head::Score(head) => Some(head.weight.lazy_shape()[1]),
            Head::AtMask(head) => Some(head.out.bias.lazy_shape().num_elements()),
            Head::Tokens(head) => Some(head.out.bias.lazy_shape().num_elements()),
            Head::Verbalizer(head) => Some(head.outputs()),
            Head::Answers(_) | Head::MaskedLm(_) | Head::LanguageModel(_) | Head::States(_) | Head::Several(_) => None,
        }
    }

    /// Whether its logits are of classes or values, not of words.
    #[cfg(feature = "train")]
    pub(crate) fn judges_classes(&self) -> bool {
        self.of_task(0).is_ok_and(|head| head.outputs().is_some())
    }

    /// By how many tokens a head for words predicts ahead of the token whose state it reads. An encoder predicts the token itself,
    /// and what the decoder behind an encoder sees is behind its labels already.
    pub fn ahead(&self, shape: &Shape) -> usize {
        usize::from(matches!(self, Head::LanguageModel(_)) && shape.architecture.is_decoder())
    }

    /// Number of elements of a classification head with this many outputs for a text.
    pub fn count(shape: &Shape, outputs: usize) -> usize {
        let out = shape.hidden * outputs;
        match shape.architecture.family().for_texts {
            ForTexts::Pooled => out + outputs,
            ForTexts::TwoLayers => shape.hidden * shape.hidden + shape.hidden + out + outputs,
            ForTexts::Score => out,
            ForTexts::Written => 0,
        }
    }

    /// Logits: `[batch, 1, classes]` from a classifier, `[batch, tokens, classes]`, `[batch, tokens, 2]` or `[batch, tokens, vocab]` from a head for
    /// tokens, answers or words (of a decoder's tokens, where there are an encoder and a decoder); without a head the states `[batch, tokens, hidden]`.
    /// Logits of classes that are texts take a run for each text: [`Trained::logits`](crate::Trained::logits).
    pub fn logits(&self, hidden: Hidden, shape: &Shape, batch: &Batch) -> Result<Tensor<3>> {
        match self {
            Head::Classifier(head) | Head::TwoLayers(head) => head.logits(hidden, shape, batch),
            Head::Score(head) => Ok(head.logits(hidden, batch)),
            Head::AtMask(head) => Ok(head.logits(hidden, shape)),
            Head::Tokens(head) => Ok(head.logits(hidden.tokens(), shape, batch)),
            // transformers drops nothing before it.
            Head::Answers(head) => Ok(head.out.forward(hidden.tokens())),
            Head::States(_) => Ok(hidden.tokens()),
            Head::MaskedLm(_) | Head::LanguageModel(_) | Head::Verbalizer(_) => {
                Ok(self.words(hidden.tokens(), hidden.words, shape))
            }
            Head::Several(_) => self.of_batch(batch)?.logits(hidden, shape, batch),
        }
    }

    /// Logits over words `[batch, tokens, vocab]` of states `[batch, tokens, hidden]`.
    ///
    /// # Panics
    /// On a head that is not for words.
    pub(crate) fn words(&self, states: Tensor<3>, words: Weight, shape: &Shape) -> Tensor<3> {
        match self {
            Head::MaskedLm(head) => head.logits(states, words, shape),
            Head::LanguageModel(_) | Head::Verbalizer(_) => words.by_rows(Head::scaled(states, shape)),
            Head::Several(heads) => heads[0].words(states, words, shape),
            _ => panic!("only a head for words has logits over words"),
        }
    }

    /// States as a head that holds nothing multiplies them with the table.
    pub(crate) fn scaled<const D: usize>(states: Tensor<D>, shape: &Shape) -> Tensor<D> {
        match shape.architecture.scales_states() {
            true => states * (shape.hidden as f64).powf(-0.5),
            false => states,
        }
    }

    /// What a Hugging Face checkpoint calls the tensor that records call `name`. Of two layers on a BERT, which has none there, these
    /// are RoBERTa's names, so that nothing takes them for a BERT's head.
    pub fn key(name: &str, architecture: Architecture) -> Key {
        if let Some((task, name)) = name.strip_prefix("Several.").and_then(|name| name.split_once('.')) {
            let Key { name, transposed } = Head::key(name, architecture);
            return Key { name: format!("tasks.{task}.{name}"), transposed };
        }
        let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
        let word = if matches!(leaf, "gain" | "decoder") { "weight" } else { leaf };
        let module = if leaf == "decoder" { name } else { module };
        let path = architecture.family().head(module).unwrap_or(match module {
            "Score" => "score",
            "AtMask.dense" => "verbalizer.dense",
            "AtMask.norm" => "verbalizer.layer_norm",
            "AtMask.out" => "verbalizer.out",
            "Tokens.out" | "Classifier.out" => "classifier",
            "Answers.out" => "qa_outputs",
            "Classifier.dense" | "TwoLayers.dense" => "classifier.dense",
            "TwoLayers.out" => "classifier.out_proj",
            "MaskedLm.decoder" => "cls.predictions.decoder",
            "MaskedLm.dense" => "cls.predictions.transform.dense",
            "MaskedLm.norm" => "cls.predictions.transform.LayerNorm",
            "MaskedLm" => "cls.predictions",
            _ => unreachable!("a head has no tensor {name}"),
        });
        Key { name: format!("{path}.{word}"), transposed: leaf == "weight" }
    }
}
