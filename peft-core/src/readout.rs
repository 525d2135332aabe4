//! What is read of a run of the base: logits, and a loss of them. A tuner may run the base several times for either.

use std::borrow::Cow;
use std::fmt::{self, Debug};

use burn::tensor::{Int, Tensor, TensorData};

use crate::head::mixed;
use crate::ops::word_loss::word_losses;
use crate::transfer::send;
use crate::{AnyAdapter, Base, Batch, Error, Head, Hidden, Label, Purpose, Result, Tuner, Weight, loss};

/// A batch on a base with a head, and its labels where a loss is asked for.
#[derive(Clone)]
pub struct Readout<'a> {
    /// The base, with all copies of its tensors that are trained.
    pub base: &'a Base,
    /// What is run.
    pub batch: Cow<'a, Batch>,
    /// What turns states into logits: that of the batch's task.
    pub head: &'a Head,
    /// One for each sequence, or none.
    pub labels: Vec<Label>,
    /// How an adapter runs, if it is one of several, see [`run`](Self::run).
    pub around: Option<&'a Around<'a>>,
}

/// How an adapter runs a batch among those that it is composed with.
pub type Around<'a> = dyn Fn(&dyn AnyAdapter, &Batch) -> Result<Hidden> + 'a;

impl Debug for Readout<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Readout { base: _, batch, head, labels, around: _ } = self;
        f.debug_struct("Readout")
            .field("batch", batch)
            .field("head", head)
            .field("labels", labels)
            .finish_non_exhaustive()
    }
}

impl<'a> Readout<'a> {
    /// Of a batch without labels.
    pub fn new(base: &'a Base, batch: &'a Batch, head: &'a Head) -> Self {
        // Of a batch of several tasks with heads of their own, logits are an error.
        Readout {
            base,
            batch: Cow::Borrowed(batch),
            head: head.of_batch(batch).unwrap_or(head),
            labels: vec![],
            around: None,
        }
    }

    /// With labels. Classes and values that are texts become these texts, and what the decoder sees of them.
    pub fn with_labels(self, labels: &[&Label]) -> Result<Self> {
        let Head::Verbalizer(head) = self.head else {
            return Ok(Readout { labels: labels.iter().map(|label| (*label).clone()).collect(), ..self });
        };
        self.answered(labels.iter().map(|label| head.words(label)).collect::<Result<_>>()?)
    }

    /// Final hidden states of the batch by a tuner: by an adapter that is composed with others, among these.
    pub fn run(&self, tuner: &impl Tuner) -> Result<Hidden> {
        match tuner.as_adapter() {
            Some(adapter) => self.run_adapter(adapter, &self.batch),
            None => tuner.run(self.base, &self.batch),
        }
    }

    pub(crate) fn run_adapter(&self, adapter: &dyn AnyAdapter, batch: &Batch) -> Result<Hidden> {
        match self.around {
            Some(around) => around(adapter, batch),
            None => adapter.states(self.base, batch),
        }
    }

    /// The same for one of several adapters, which runs so.
    pub(crate) fn among<'b>(&'b self, around: &'b Around<'b>) -> Readout<'b> {
        Readout { around: Some(around), ..self.clone() }
    }

    /// Of the sequences at these places of the batch.
    pub fn select(&self, sequences: &[usize]) -> Self {
        let labels = match self.labels.is_empty() {
            true => vec![],
            false => sequences.iter().map(|i| self.labels[*i].clone()).collect(),
        };
        let batch = self.batch.select(sequences);
        let head = self.head.of_batch(&batch).unwrap_or(self.head);
        Readout { batch: Cow::Owned(batch), labels, head, ..self.clone() }
    }

    /// The same batch with these texts as answers.
    pub(crate) fn answered(self, labels: Vec<Label>) -> Result<Self> {
        let batch = Cow::Owned(self.base.answering(self.batch.into_owned(), labels.iter().map(Some))?);
        Ok(Readout { batch, labels, ..self })
    }

    /// Logits of states: those of [`Head::logits`]; with labels, of a head for words, only of the rows that predict a word that
    /// counts, `[1, words, vocab]`.
    pub fn logits(&self, hidden: Hidden) -> Result<Tensor<3>> {
        if self.labels.is_empty() || self.head.purpose() != Purpose::Words {
            return self.head.logits(hidden, self.base.shape(), &self.batch);
        }
        let states = hidden.tokens();
        let (mut rows, _) = self.words(states.dims()[1])?;
        if rows.is_empty() {
            // A product needs a row; the loss leaves it out.
            rows.push(0);
        }
        Ok(self.head.words(self.rows(states, rows).unsqueeze(), hidden.words, self.base.shape()))
    }

    /// The summed loss of states. A head for words whose table is not trained computes it by some rows at a time.
    pub fn loss_of(&self, hidden: Hidden) -> Result<Tensor<1>> {
        let whole = match self.head {
            Head::LanguageModel(_) | Head::Verbalizer(_) => {
                matches!(&hidden.words, Weight::Dense(w) if w.is_autodiff())
            }
            _ => true,
        };
        let (rows, words) = match whole {
            true => (vec![], vec![]),
            false => self.words(hidden.tokens().dims()[1])?,
        };
        if words.is_empty() {
            return self.loss(self.logits(hidden)?);
        }
        let states = Head::scaled(self.rows(hidden.tokens(), rows), self.base.shape());
        Ok(word_losses(states, &hidden.words, &words).sum())
    }

    /// Those of the states `[batch, tokens, hidden]` at these rows.
    fn rows(&self, states: Tensor<3>, rows: Vec<i32>) -> Tensor<2> {
        let ([size, tokens, width], count) = (states.dims(), rows.len());
        let rows = send::<1, Int>(TensorData::new(rows, [count]), self.base.device());
        states.reshape([size * tokens, width]).select(0, rows)
    }

    /// The summed loss of such logits.
    pub fn loss(&self, logits: Tensor<3>) -> Result<Tensor<1>> {
        let labels: Vec<&Label> = self.labels.iter().collect();
        match self.head {
            Head::Classifier(_) | Head::TwoLayers(_) | Head::Score(_) | Head::AtMask(_) => {
                loss::task_loss(logits, &labels)
            }
            Head::Tokens(_) => loss::token_loss(logits, &labels),
            Head::Answers(_) => loss::answer_loss(logits, self.batch.padding.as_ref(), &labels),
            Head::MaskedLm(_) | Head::LanguageModel(_) | Head::Verbalizer(_) => Ok(self.word_losses(logits)?.sum()),
            Head::Several(_) => Err(mixed()),
            Head::States(_) => {
                let expected = "a head for the labels: states alone are not trained on any";
                Err(Error::config("head", "none", expected))
            }
        }
    }

    /// Those of such logits that the loss judges, a row for each class, value, word or token that counts,
    /// `[predictions, outputs]`; `None` if nothing does.
    pub fn predictions(&self, logits: Tensor<3>) -> Result<Option<Tensor<2>>> {
        let [size, tokens, outputs] = logits.dims();
        let all = logits.reshape([size * tokens, outputs]);
        let rows = match self.head.purpose() {
            Purpose::Tokens => loss::tags(&self.labels, tokens, outputs)?.0,
            Purpose::Words if self.words(self.word_tokens())?.1.is_empty() => vec![],
            _ => return Ok(Some(all)),
        };
        let count = rows.len();
        let rows = || send::<1, Int>(TensorData::new(rows, [count]), self.base.device());
        Ok((count > 0).then(|| all.select(0, rows())))
    }

    /// Of how many words logits are computed.
    fn word_tokens(&self) -> usize {
        self.batch.decoder.as_ref().unwrap_or(&self.batch.ids).dims()[1]
    }

    /// The loss of each word that counts; a zero if none does.
    pub(crate) fn word_losses(&self, logits: Tensor<3>) -> Result<Tensor<1>> {
        let (_, words) = self.words(self.word_tokens())?;
        let logits = logits.squeeze_dim(0);
        Ok(match words.is_empty() {
            true => loss::cross_entropy(logits, vec![0]) * 0.0,
            false => loss::cross_entropy(logits, words),
        })
    }

    /// The rows, of `tokens` for each sequence, that predict a word that counts, and these words.
    fn words(&self, tokens: usize) -> Result<(Vec<i32>, Vec<i32>)> {
        let shape = self.base.shape();
        loss::words(&self.labels, tokens, shape.vocab, self.head.ahead(shape))
    }
}
