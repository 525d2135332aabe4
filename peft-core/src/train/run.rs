//! A run: its state, and one step of it.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};

use super::micro::{Workers, add, cut, lengths};
use super::optim::Update;
use super::order::Order;
use super::probe::labels;
use super::views::{back, with_leaves};
use super::{Optim, Phase, Probe, Procedure, TrainConfig};
use crate::loss::targets;
use crate::random::{Noise, Random};
use crate::recompute::Tape;
use crate::transfer::read_all;
use crate::view::{Visit, shapes, visit, with_ids_from_names, with_values};
use crate::{Base, Error, Example, Result, Trained};

/// The state of a run between two steps. Everything else is a function of the settings and the step.
pub struct Run<T: Procedure> {
    /// What is trained.
    pub trained: Trained<T>,
    /// The frozen base.
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
    /// The phase that the step is in, of a method that trains in several.
    pub phase: Option<&'static str>,
}

/// Where in a run of several phases a step is.
pub(super) struct Moment {
    /// Which phase, counted from 0.
    pub(super) phase: usize,
    /// How many there are.
    pub(super) phases: usize,
    /// Steps done of the phase.
    done: usize,
    of: Phase,
}

impl<T: Procedure> Run<T> {
    /// Before the first step.
    pub fn new(config: &TrainConfig, base: Base, trained: Trained<T>) -> Result<Self> {
        config.check()?;
        if config.gradient_checkpointing && trained.tuner.as_adapter().is_none() {
            let expected =
                "false: the method runs a network beside the base, of which nothing is kept for backward as it is";
            return Err(Error::config("gradient_checkpointing", true, expected));
        }
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
        let Moment { phase, phases, done, of: Phase { name, steps, rate } } = self.moment(step, data)?;
        if phase > 0 && done == 0 {
            let probe = Probe::new(&self.trained.head, data).with_run(&self.config).with_phase(phase);
            let tuner = self.trained.tuner.clone().prepare(&self.base, probe)?;
            self.trained = with_ids_from_names(Trained { tuner, ..self.trained.clone() })?;
            self.optim = Optim::of(&self.config);
        }
        let batch = self.batch(data, step);
        let mut random = Random::new(self.config.seed, &format!("sample of step {step}"));
        let before = Trained { tuner: self.trained.tuner.clone().sample(&mut random), ..self.trained.clone() };
        let (loss, gradients) = self.gradients(&before, &batch)?;
        let (gradients, grad_norm) = self.clip(&before, gradients, step + 1)?;
        let learning_rate = rate * self.config.rate(done, steps);
        let mut trained = before.clone();
        let gradients = trained.tuner.gradients(gradients, step + 1);
        let of = |name: &str| match name.strip_prefix("tuner.") {
            Some(name) => Update { rate: before.tuner.rate(name, learning_rate), decays: before.tuner.decays(name) },
            None => Update { rate: learning_rate, decays: true },
        };
        let trained = self.optim.update(trained, gradients, of);
        self.optim.check()?;
        let tuner = trained.tuner.after_step(&self.base, &mut self.optim, &before.tuner, step + 1)?;
        self.trained = with_ids_from_names(Trained { tuner, head: trained.head, copies: trained.copies })?;
        self.step += 1;
        let tokens = batch.iter().map(|e| e.ids.len()).sum();
        let phase = (phases > 1).then_some(name);
        Ok(StepReport { step: step + 1, total, loss, learning_rate, grad_norm, tokens, phase })
    }

    /// How many of the first `done` steps have a learning rate above 0.
    pub(super) fn moving_steps(&self, done: usize, data: &[Example]) -> Result<usize> {
        let moves = |step| {
            let Moment { done, of, .. } = self.moment(step, data)?;
            Ok(of.rate * self.config.rate(done, of.steps) > 0.0)
        };
        (0..done).map(moves).try_fold(0, |sum, moves: Result<bool>| Ok(sum + usize::from(moves?)))
    }

    /// Where in the run a step is, counted from 0.
    pub(super) fn moment(&self, step: usize, data: &[Example]) -> Result<Moment> {
        let total = self.config.steps(data.len());
        let phases = self.trained.tuner.phases(total);
        let sum: usize = phases.iter().map(|phase| phase.steps).sum();
        if sum != total || phases.iter().any(|phase| phase.steps == 0) {
            let steps = phases.iter().map(|phase| format!("{} of {}", phase.steps, phase.name)).collect::<Vec<_>>();
            let expected = format!("{total} in all, at least one of each");
            return Err(Error::config("steps", steps.join(", "), expected));
        }
        let count = phases.len();
        let mut done = step;
        for (phase, of) in phases.into_iter().enumerate() {
            if done < of.steps || phase + 1 == count {
                return Ok(Moment { phase, phases: count, done, of });
            }
            done -= of.steps;
        }
        unreachable!("the steps of the phases are those of the run")
    }

    /// With the tensors that the run had after this step, all of them and no others.
    pub(super) fn restored(
        &self,
        step: usize,
        data: &[Example],
        tensors: &BTreeMap<String, TensorData>,
    ) -> Result<Trained<T>> {
        let phase = self.moment(step.saturating_sub(1), data)?.phase;
        let of = |(name, data): (&String, &TensorData)| {
            Some((name.strip_prefix("tuner.")?.to_string(), data.shape().to_vec()))
        };
        let tuner = self.trained.tuner.clone().resumed(&self.base, phase, &tensors.iter().filter_map(of).collect())?;
        let trained = with_ids_from_names(Trained { tuner, ..self.trained.clone() })?;
        let known: BTreeSet<String> = shapes(&trained).into_iter().map(|(name, _)| name).collect();
        let other = known.iter().find(|name| !tensors.contains_key(*name));
        match other.or_else(|| tensors.keys().find(|name| !known.contains(*name))) {
            None => with_values(trained, tensors),
            Some(name) if known.contains(name) => Err(Error::config(name, "no such tensor", "one: the method has it")),
            Some(name) => Err(Error::config(name, "a tensor", "none: the method has no such tensor")),
        }
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
        struct Largest(GradientsParams, Vec<String>, Vec<Tensor<1>>);
        impl Visit for Largest {
            fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
                let Some(gradient) = self.0.get::<D>(id) else { return };
                self.1.push(name.to_string());
                self.2.push(gradient.abs().max());
            }
        }
        let batch = self.batch(data, self.step.saturating_sub(1));
        let (_, gradients) = self.gradients(&self.trained, &batch)?;
        let mut largest = Largest(gradients, vec![], vec![]);
        visit(&self.trained, &mut largest);
        Ok(largest.1.into_iter().zip(read_all(largest.2).into_iter().map(f64::from)).collect())
    }

    /// The mean loss of a batch and its gradients.
    pub fn gradients(&self, trained: &Trained<T>, batch: &[&Example]) -> Result<(f64, GradientsParams)> {
        let all = labels(batch)?;
        let count = targets(all, trained.head.ahead(self.base.shape()));
        if count == 0 {
            let what = "no label in the batch counts: every word of it is ignored".to_string();
            return Err(Error::Training { step: self.step + 1, what });
        }
        let of_task = |places: &Vec<usize>| {
            let lengths = lengths(&places.iter().map(|i| batch[*i]).collect::<Vec<_>>());
            let at = |piece: Vec<usize>| piece.into_iter().map(|i| places[i]).collect::<Vec<_>>();
            cut(&lengths, self.config.micro_rows).into_iter().map(at).collect::<Vec<_>>()
        };
        // Samples that are coupled stay together, in the batches of the accumulation.
        let pieces: Vec<Vec<usize>> = match trained.tuner.couples_samples() {
            true => (0..batch.len()).collect::<Vec<_>>().chunks(self.config.batch_size).map(<[_]>::to_vec).collect(),
            // What has a head of its own is no piece of another task.
            false => trained.head.by_task(batch.iter().map(|example| example.task)).iter().flat_map(of_task).collect(),
        };
        let noise = |samples: Vec<u32>| Noise {
            seed: self.config.seed,
            step: self.step as u64,
            samples: samples.into_iter().collect(),
        };
        let view = trained.view(&self.base, Some(&noise(vec![])))?;
        let work = |piece: usize| {
            let samples = &pieces[piece];
            let examples: Vec<&Example> = samples.iter().map(|i| batch[*i]).collect();
            let noise = noise(samples.iter().map(|i| *i as u32).collect());
            match &view {
                Some(view) => self.of_piece(view, (&examples, noise), count),
                None => self.of_piece(trained, (&examples, noise), count),
            }
        };
        let (mut losses, mut sum) = (vec![], GradientsParams::new());
        self.workers.run(pieces.len(), work, |(loss, gradients)| {
            losses.push(loss);
            let so_far = std::mem::take(&mut sum);
            sum = match &view {
                Some(view) => add(view, so_far, gradients),
                None => add(trained, so_far, gradients),
            };
        })?;
        if let Some(gradients) = view.and_then(|view| back(&view.tuner, trained, &mut sum)) {
            sum = add(trained, sum, GradientsParams::from_grads(gradients, trained));
        }
        if let Some(penalty) = trained.tuner.penalty() {
            losses.push(penalty.clone().inner());
            sum = add(trained, sum, GradientsParams::from_grads(penalty.backward(), trained));
        }
        let loss = read_all(losses).into_iter().map(f64::from).sum::<f64>();
        if loss.is_finite() {
            Ok((loss, sum))
        } else {
            let what = format!("the loss is {loss}; lower the learning rate, or look for extreme values in the data");
            Err(Error::Training { step: self.step + 1, what })
        }
    }

    /// The loss of a piece of a batch with `count` labels, and its gradients.
    fn of_piece<U: Procedure>(
        &self,
        trained: &Trained<U>,
        (examples, noise): (&[&Example], Noise),
        count: usize,
    ) -> Result<(Tensor<1>, GradientsParams)> {
        // Leaves of its own: a graph that shares them with another thread's would wait for it.
        let trained = with_leaves(trained);
        let tape = self.config.gradient_checkpointing.then(Tape::default);
        let batch = self.base.batch(examples)?.with_noise(noise).with_tape(tape.clone());
        let loss = trained.objective(&self.base, &batch, &labels(examples)?)? / count as f32;
        let value = loss.clone().inner();
        let gradients = match tape {
            Some(tape) => tape.backward(loss, &trained),
            None => GradientsParams::from_grads(loss.backward(), &trained),
        };
        Ok((value, gradients))
    }

    /// Scales gradients down to the largest allowed norm over all tensors.
    fn clip(&self, trained: &Trained<T>, gradients: GradientsParams, step: usize) -> Result<(GradientsParams, f64)> {
        let mut norm = Norm { gradients, names: vec![], squares: vec![] };
        visit(trained, &mut norm);
        let squares: Vec<f64> = read_all(norm.squares).into_iter().map(f64::from).collect();
        if let Some((_, name)) = squares.iter().zip(&norm.names).find(|(square, _)| !square.is_finite()) {
            return Err(Error::Training { step, what: format!("the gradient of {name} is not finite") });
        }
        let length = squares.iter().sum::<f64>().sqrt();
        let factor = self.config.clip(length);
        if factor == 1.0 {
            return Ok((norm.gradients, length));
        }
        let mut scale = Scale { gradients: norm.gradients, factor };
        visit(trained, &mut scale);
        Ok((scale.gradients, length))
    }
}

/// The sum of the squares of each gradient, on its device.
struct Norm {
    gradients: GradientsParams,
    names: Vec<String>,
    squares: Vec<Tensor<1>>,
}

impl Visit for Norm {
    fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
        let Some(gradient) = self.gradients.get::<D>(id) else { return };
        self.names.push(name.to_string());
        self.squares.push(gradient.powi_scalar(2).sum());
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
