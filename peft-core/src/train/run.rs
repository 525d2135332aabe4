//! A run: its state, and one step of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::config::Order;
use super::micro::{Workers, add, cut, lengths};
use super::optim::Update;
use super::probe::labels;
use super::rewritten::{Rows, with_leaves};
use super::{Optim, Procedure, TrainConfig};
use crate::loss::targets;
use crate::random::{Noise, Random};
use crate::view::{Visit, visit};
use crate::{Base, Error, Example, Result, Trained, Tuner};

/// The state of a run between two steps. Everything else is a function of the settings and the step.
pub struct Run<T: Procedure> {
    /// What is trained.
    pub trained: Trained<T>,
    /// The base, which some procedures change.
    pub base: Base,
    /// The optimizer and its states.
    pub optim: Optim,
    /// Steps done.
    pub step: usize,
    config: TrainConfig,
    order: Option<Order>,
    pub(super) workers: Workers,
}

/// What a step tells.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// The step, counted from 1.
    pub step: usize,
    /// Of how many.
    pub total: usize,
    /// The mean loss of the batch, before the step.
    pub loss: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// The norm of all gradients, before clipping.
    pub grad_norm: f64,
    /// Real tokens in the batch.
    pub tokens: usize,
}

impl<T: Procedure> Run<T> {
    /// Before the first step.
    pub fn new(config: &TrainConfig, base: Base, trained: Trained<T>) -> Result<Self> {
        config.check()?;
        let base = match config.dropout {
            Some(p) => base.with_dropout(p),
            None => base,
        };
        let workers = Workers::new(config.threads)?;
        Ok(Run { trained, base, optim: Optim::of(config), step: 0, config: config.clone(), order: None, workers })
    }

    /// One optimizer step on the samples that the settings choose for it. The data must be the same in each.
    pub fn step(&mut self, data: &[Example]) -> Result<StepReport> {
        let (step, total) = (self.step, self.config.steps(data.len()));
        let batch = self.batch(data, step);
        let mut random = Random::new(self.config.seed, &format!("sample of step {step}"));
        let before = Trained { tuner: self.trained.tuner.clone().sample(&mut random), ..self.trained.clone() };
        let (loss, gradients) = self.gradients(&before, &batch)?;
        let (gradients, grad_norm) = self.clip(&before, gradients, step + 1)?;
        let learning_rate = self.config.rate(step, total);
        let mut trained = before.clone();
        let gradients = trained.tuner.gradients(gradients, step + 1);
        let of = |name: &str| match name.strip_prefix("tuner.") {
            Some(name) => Update { rate: before.tuner.rate(name, learning_rate), decays: before.tuner.decays(name) },
            None => Update { rate: learning_rate, decays: true },
        };
        let trained = self.optim.update(trained, gradients, of);
        let (tuner, base) = trained.tuner.after_step(self.base.clone(), &mut self.optim, &before.tuner, step + 1)?;
        self.trained = Trained { tuner, head: trained.head, copies: trained.copies };
        self.base = base;
        self.step += 1;
        let tokens = batch.iter().map(|e| e.ids.len()).sum();
        Ok(StepReport { step: step + 1, total, loss, learning_rate, grad_norm, tokens })
    }

    /// The samples that the settings choose for a step.
    fn batch<'a>(&mut self, data: &'a [Example], step: usize) -> Vec<&'a Example> {
        let samples = data.iter().map(|example| (example.ids.len(), example.task));
        let order = self.order.get_or_insert_with(|| Order::new(&self.config, samples));
        order.samples(step).into_iter().map(|i| &data[i]).collect()
    }

    /// The largest size of a number in each tensor's gradient on the batch of the last step; tensors that have no gradient are not
    /// among them.
    pub(super) fn last_gradients(&mut self, data: &[Example]) -> Result<BTreeMap<String, f64>> {
        struct Largest(GradientsParams, BTreeMap<String, f64>);
        impl Visit for Largest {
            fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
                let largest = |gradient: Tensor<D>| f64::from(gradient.abs().max().into_scalar::<f32>());
                self.1.extend(self.0.get::<D>(id).map(|gradient| (name.to_string(), largest(gradient))));
            }
        }
        let batch = self.batch(data, self.step.saturating_sub(1));
        let (_, gradients) = self.gradients(&self.trained, &batch)?;
        let mut largest = Largest(gradients, BTreeMap::new());
        visit(&self.trained, &mut largest);
        Ok(largest.1)
    }

    /// The mean loss of a batch and its gradients.
    pub(crate) fn gradients(&self, trained: &Trained<T>, batch: &[&Example]) -> Result<(f64, GradientsParams)> {
        let all = labels(batch)?;
        let count = targets(all, trained.head.ahead(self.base.shape()));
        if count == 0 {
            let what = "no label in the batch counts: every word of it is ignored".to_string();
            return Err(Error::Training { step: self.step + 1, what });
        }
        // Samples that are coupled stay together, in the batches of the accumulation.
        let pieces = match trained.tuner.couples_samples() {
            true => (0..batch.len()).collect::<Vec<_>>().chunks(self.config.batch_size).map(<[_]>::to_vec).collect(),
            false => cut(&lengths(batch), self.config.micro_rows),
        };
        let noise =
            |samples: Vec<u32>| Noise { seed: self.config.seed, step: self.step as u64, samples: samples.into() };
        let rewritten = trained.rewritten(&self.base, Some(Arc::new(noise(vec![]))))?;
        let work = |piece: usize| {
            let samples = &pieces[piece];
            let examples: Vec<&Example> = samples.iter().map(|i| batch[*i]).collect();
            let noise = noise(samples.iter().map(|i| *i as u32).collect());
            match &rewritten {
                Some((base, trained)) => of_piece(base, trained, (&examples, noise), count),
                None => of_piece(&self.base, trained, (&examples, noise), count),
            }
        };
        let (mut loss, mut sum, mut rows) = (0.0, GradientsParams::new(), Rows::default());
        self.workers.run(pieces.len(), work, |(value, gradients, more)| {
            loss += value;
            sum = add(trained, std::mem::take(&mut sum), gradients);
            rows.add(more);
        })?;
        if let Some(gradients) = rewritten.and_then(|(base, _)| rows.back(&base)) {
            sum = add(trained, sum, GradientsParams::from_grads(gradients, trained));
        }
        if let Some(penalty) = trained.tuner.penalty() {
            loss += f64::from(penalty.clone().into_scalar::<f32>());
            sum = add(trained, sum, GradientsParams::from_grads(penalty.backward(), trained));
        }
        if loss.is_finite() {
            Ok((loss, sum))
        } else {
            let what = format!("the loss is {loss}; lower the learning rate, or look for extreme values in the data");
            Err(Error::Training { step: self.step + 1, what })
        }
    }

    /// Scales gradients down to the largest allowed norm over all tensors.
    fn clip(&self, trained: &Trained<T>, gradients: GradientsParams, step: usize) -> Result<(GradientsParams, f64)> {
        let mut norm = Norm { gradients, squares: 0.0, wrong: None };
        visit(trained, &mut norm);
        if let Some(name) = norm.wrong {
            return Err(Error::Training { step, what: format!("the gradient of {name} is not finite") });
        }
        let length = norm.squares.sqrt();
        let factor = self.config.clip(length);
        if factor == 1.0 {
            return Ok((norm.gradients, length));
        }
        let mut scale = Scale { gradients: norm.gradients, factor };
        visit(trained, &mut scale);
        Ok((scale.gradients, length))
    }
}

/// The loss of a piece of a batch with `count` labels, and its gradients; those of the base's tensors apart.
fn of_piece<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    (examples, noise): (&[&Example], Noise),
    count: usize,
) -> Result<(f64, GradientsParams, Rows)> {
    // Leaves of its own: a graph that shares them with another thread's would wait for it.
    let (base, trained) = (with_leaves(base), trained.valid().train());
    let batch = base.batch(examples)?.with_noise(noise);
    let loss = trained.loss(&base, &batch, &labels(examples)?)? / count as f32;
    let value = f64::from(loss.clone().into_scalar::<f32>());
    let mut gradients = loss.backward();
    let rows = Rows::take(&base, &mut gradients);
    Ok((value, GradientsParams::from_grads(gradients, &trained), rows))
}

struct Norm {
    gradients: GradientsParams,
    squares: f64,
    wrong: Option<String>,
}

impl Visit for Norm {
    fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
        let Some(gradient) = self.gradients.get::<D>(id) else { return };
        let square = f64::from(gradient.powi_scalar(2).sum().into_scalar::<f32>());
        if !square.is_finite() {
            self.wrong.get_or_insert(name.to_string());
        }
        self.squares += square;
    }
}

struct Scale {
    gradients: GradientsParams,
    factor: f64,
}

impl Visit for Scale {
    fn tensor<const D: usize>(&mut self, _: &str, id: ParamId, _: Tensor<D>) {
        if let Some(gradient) = self.gradients.remove::<D>(id) {
            self.gradients.register(id, gradient * self.factor);
        }
    }
}
