//! A way to run the base with a head: what is trained and saved.

use std::borrow::Borrow;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};

use crate::random::Noise;
use crate::{AnyTuner, Bare, Base, Batch, Copies, Error, Head, Hidden, Label, Procedure, Result, Text, Tuner, loss};

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

    /// The same of a type that is known only when the program runs.
    pub fn erased(self) -> Trained<AnyTuner>
    where
        T: Procedure + 'static,
    {
        Trained { tuner: AnyTuner::new(self.tuner), head: self.head, copies: self.copies }
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
            Head::Tokens(_) => loss::token_loss(self.logits(base, batch)?, labels),
            Head::States(_) => {
                let expected = "a head for the labels: states alone are not trained on any";
                Err(Error::config("head", "none", expected))
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
