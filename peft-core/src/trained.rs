//! A way to run the base with a head: what is trained and saved.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use crate::random::Noise;
use crate::{AnyTuner, Base, Batch, Copies, Head, Hidden, Label, Procedure, Readout, Result, Text, Tuner};

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

    /// The same function with what the method computes from its tensors computed, see [`Tuner::viewed`]; `None` if that is nothing.
    pub fn view(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<Trained<AnyTuner>>> {
        let base = self.copies.onto(base);
        let Some(mut tuner) = self.tuner.viewed(&base, noise)? else { return Ok(None) };
        while let Some(inner) = tuner.viewed(&base, noise)? {
            tuner = inner;
        }
        Ok(Some(Trained { tuner, head: self.head.clone(), copies: self.copies.clone() }))
    }

    /// Logits of a batch, see [`Head::logits`]. Those of classes that are texts are the texts' log-likelihoods; of values that are
    /// texts there is one, the likeliest.
    pub fn logits(&self, base: &Base, batch: &Batch) -> Result<Tensor<3>> {
        let base = self.copies.onto(base);
        let readout = Readout::new(&base, batch, &self.head);
        let Head::Verbalizer(verbalizer) = readout.head else { return self.tuner.logits(&readout) };
        let size = batch.dims()[0];
        let likelihood = |text: &Text| {
            let readout = readout.clone().answered(vec![text.words(); size])?;
            let losses = readout.word_losses(self.tuner.logits(&readout)?)?;
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

    /// The head's summed loss of a batch with its labels, by which results are judged.
    pub fn loss(&self, base: &Base, batch: &Batch, labels: &[&Label]) -> Result<Tensor<1>> {
        self.summed(base, batch, labels, |readout| readout.loss(self.tuner.logits(readout)?))
    }

    /// A loss of a batch; of sequences with different heads the sum over these, each a run of its own.
    fn summed(
        &self,
        base: &Base,
        batch: &Batch,
        labels: &[&Label],
        loss: impl Fn(&Readout<'_>) -> Result<Tensor<1>>,
    ) -> Result<Tensor<1>> {
        let base = self.copies.onto(base);
        let Some(groups) = self.head.groups(batch) else {
            return loss(&Readout::new(&base, batch, &self.head).with_labels(labels)?);
        };
        let of_task = |rows: &Vec<usize>| {
            let labels: Vec<&Label> = rows.iter().map(|row| labels[*row]).collect();
            loss(&Readout::new(&base, &batch.select(rows), &self.head).with_labels(&labels)?)
        };
        Ok(Tensor::cat(groups.iter().map(of_task).collect::<Result<_>>()?, 0).sum())
    }

    /// Refuses tasks that the method or the head does not have.
    pub fn check_tasks(&self, tasks: &[usize]) -> Result<()> {
        tasks.iter().try_for_each(|task| self.head.of_task(*task).map(drop))?;
        self.tuner.check_tasks(tasks)
    }
}

impl<T: Procedure> Trained<T> {
    /// The summed loss that is trained, see [`Procedure::loss`].
    pub fn objective(&self, base: &Base, batch: &Batch, labels: &[&Label]) -> Result<Tensor<1>> {
        self.summed(base, batch, labels, |readout| match self.tuner.loss(readout)? {
            Some(loss) => Ok(loss),
            None => self.tuner.head_loss(readout),
        })
    }
}
