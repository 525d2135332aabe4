//! The run as a method may look at it before the first step of a phase: the training data and the settings.

use std::borrow::Cow;
use std::sync::Arc;

use burn::module::Module;
use burn::optim::GradientsParams;

use super::TrainConfig;
use crate::answer::Answer;
use crate::loss::{IGNORED, targets};
use crate::random::Random;
use crate::transfer::{read, read_all};
use crate::{Base, Copies, Error, Example, Head, Label, Result, Trained, Tuner};

/// The training data, the loss that the head gives on it, and the settings of the run.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    head: &'a Head,
    examples: &'a [Example],
    run: Option<&'a TrainConfig>,
    phase: usize,
}

impl<'a> Probe<'a> {
    /// Of these examples.
    pub fn new(head: &'a Head, examples: &'a [Example]) -> Self {
        Probe { head, examples, run: None, phase: 0 }
    }

    /// Before a run with these settings.
    pub fn with_run(self, run: &'a TrainConfig) -> Self {
        Probe { run: Some(run), ..self }
    }

    /// Before a later phase, counted from 0.
    pub fn with_phase(self, phase: usize) -> Self {
        Probe { phase, ..self }
    }

    /// Which phase is to begin, counted from 0, see [`Procedure::phases`](super::Procedure::phases).
    pub fn phase(&self) -> usize {
        self.phase
    }

    /// The settings of the run, those that are usual if there is none.
    pub fn settings(&self) -> Cow<'a, TrainConfig> {
        self.run.map_or_else(|| Cow::Owned(TrainConfig::default()), Cow::Borrowed)
    }

    /// The places of this many training examples, or of all if there are no more, drawn by the run's seed.
    pub fn draw(&self, count: usize) -> Vec<usize> {
        let random = Random::new(self.settings().seed, "examples before the first step");
        let mut places = random.permutation(self.examples.len());
        places.truncate(count);
        places
    }

    /// How many steps the run takes, if there is one.
    pub fn steps(&self) -> Option<usize> {
        self.run.map(|run| run.steps(self.examples.len()))
    }

    /// What turns states into logits.
    pub fn head(&self) -> &'a Head {
        self.head
    }

    /// The training examples.
    pub fn examples(&self) -> &'a [Example] {
        self.examples
    }

    /// The same on other examples.
    pub fn with_examples(self, examples: &'a [Example]) -> Self {
        Probe { examples, ..self }
    }

    /// Training examples, by their places, labelled by the model itself: classes and words are drawn by their probabilities, each word
    /// after the true ones before it, a value from a normal distribution of variance 1/2 about the one that is predicted, whose
    /// negative log-likelihood is the squared error. The run's seed decides what is drawn.
    pub fn labelled_by_model<T: Tuner>(&self, tuner: &T, base: &Base, places: &[usize]) -> Result<Vec<Example>> {
        let trained = Trained { tuner: tuner.valid(), head: self.head.clone(), copies: Copies::default() };
        let ahead = self.head.ahead(base.shape());
        let draw = |place: usize| {
            let (example, seed) = (&self.examples[place], self.settings().seed);
            let mut random = Random::new(seed, &format!("label of example {place}"));
            let logits = trained.logits(base, &base.batch(&[example])?)?;
            let [_, rows, outputs] = logits.dims();
            let logits: Vec<f32> = read(logits).iter::<f32>().collect();
            let mut drawn = |row: usize| categorical(&logits[row * outputs..][..outputs], random.unit()) as i32;
            let mut each = |list: &[i32], ahead: usize| -> Arc<[i32]> {
                let counts = |(i, label): &(usize, &i32)| *i >= ahead && **label != IGNORED && i - ahead < rows;
                list.iter().enumerate().map(|it| if counts(&it) { drawn(it.0 - ahead) } else { *it.1 }).collect()
            };
            let label = match labels(&[example])?[0] {
                Label::Class(_) => Label::Class(drawn(0) as usize),
                Label::Words(words) => Label::Words(each(words, ahead)),
                Label::Tags(tags) => Label::Tags(each(tags, 0)),
                Label::Answer(answer) => {
                    let side = |side: usize| logits.chunks(2).map(|row| row[side]).collect::<Vec<f32>>();
                    let tokens = [0, 1].map(|i| categorical(&side(i), random.unit()));
                    Label::Answer(Answer { tokens, ..(**answer).clone() }.into())
                }
                Label::Value(_) => Label::Value(logits[0] + (random.normal() * 0.5f64.sqrt()) as f32),
            };
            Ok(Example { label: Some(label), ..example.clone() })
        };
        places.iter().map(|place| draw(*place)).collect()
    }

    /// The mean loss of a tuner on all examples, each run alone and without dropout.
    pub fn loss<T: Tuner>(&self, tuner: &T, base: &Base) -> Result<f64> {
        let trained = Trained { tuner: tuner.valid(), head: self.head.valid(), copies: Copies::default() };
        let (mut sum, mut count) = (0.0, 0);
        for example in self.examples {
            let labels = labels(&[example])?;
            count += targets(labels.iter().copied(), self.head.ahead(base.shape()));
            sum += f64::from(read_all(vec![trained.loss(base, &base.batch(&[example])?, &labels)?])[0]);
        }
        match count {
            0 => Err(Error::config("labels", "none that counts", "one in the data")),
            count => Ok(sum / count as f64),
        }
    }

    /// The gradients of a tuner's tensors: of the mean loss of some examples, by their places in the data, as one batch without
    /// dropout.
    pub fn gradients<T: Tuner>(&self, tuner: &T, base: &Base, places: &[usize]) -> Result<GradientsParams> {
        let batch: Vec<&Example> = places.iter().map(|i| &self.examples[*i]).collect();
        let labels = labels(&batch)?;
        let count = targets(labels.iter().copied(), self.head.ahead(base.shape()));
        if count == 0 {
            return Err(Error::config("labels", "none that counts", "one in each batch of the data"));
        }
        let trained = Trained { tuner: tuner.clone(), head: self.head.clone(), copies: Copies::default() };
        let loss = trained.loss(base, &base.batch(&batch)?, &labels)? / count as f32;
        Ok(GradientsParams::from_grads(loss.backward(), tuner))
    }
}

/// Which class a number from 0 to below 1 draws by the softmax of these logits.
fn categorical(logits: &[f32], unit: f64) -> usize {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
    let mut left = unit * weights.iter().sum::<f64>();
    let mut passed = |weight: &f64| {
        left -= weight;
        left >= 0.0
    };
    weights.iter().take_while(|weight| passed(weight)).count().min(logits.len() - 1)
}

/// The labels of training examples.
pub(super) fn labels<'a>(examples: &[&'a Example]) -> Result<Vec<&'a Label>> {
    let missing = || Error::config("label", "nothing", "a label for every training example");
    examples.iter().map(|e| e.label.as_ref().ok_or_else(missing)).collect()
}
