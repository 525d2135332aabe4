//! From a model, a method's configuration and labelled data to a checked result.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::check::{Before, judge};
use super::checkpoint::{Best, Store};
use super::predict::{Logits, Metrics, measure, metric_names, predict};
use super::run::{Run, StepReport};
use super::tuned::counts;
use super::{Checkpoints, Probe, Procedure, Slots, TrainConfig, Tuned};
use crate::data::{Dataset, Names};
use crate::files::check_new_directory;
use crate::io::Pretrained;
use crate::io::peft::{self, Labels};
use crate::view::{tensors, trainable, with_ids_from_names};
use crate::{AnyMethod, AnyTuner, Base, Error, Example, Head, Purpose, Result, TaskLabels, Trained, Tuner, Wanted};

/// Follows a run.
pub trait Observer {
    /// Before the first step, or with the number of steps done when a run is taken up; `notes` say what was skipped.
    fn start(&mut self, _done: usize, _notes: &[String]) -> Result<()> {
        Ok(())
    }

    /// After each step.
    fn step(&mut self, _report: &StepReport) -> Result<()> {
        Ok(())
    }

    /// Whether the run is to stop after this step, with its state saved where it has checkpoints: it then ends in
    /// [`Error::Stopped`].
    fn stops(&self) -> bool {
        false
    }

    /// When the state after a step is saved.
    fn saved(&mut self, _step: usize) {}

    /// When a step fails, but the state of the best evaluation is kept and is the result.
    fn stopped(&mut self, _why: &Error) -> Result<()> {
        Ok(())
    }

    /// After each evaluation, and after the last step, if there is data to evaluate on.
    fn evaluated(&mut self, _step: usize, _metrics: &Metrics) -> Result<()> {
        Ok(())
    }
}

impl Observer for () {}

/// Trains methods with one set of settings.
#[derive(Clone, Debug)]
pub struct Trainer {
    config: TrainConfig,
    checkpoints: Option<Checkpoints>,
    output: Option<PathBuf>,
    slots: Option<Arc<Slots>>,
}

/// What a run works on.
struct Work<'a> {
    data: &'a [Example],
    evaluation: Option<&'a [Example]>,
    names: Names<'a>,
    before: Before,
    store: Option<Store>,
}

/// What a run gives.
struct Finished<T: Tuner> {
    trained: Trained<T>,
    /// What the checks at its end found.
    fault: Option<Error>,
}

impl Trainer {
    /// With these settings.
    pub fn new(config: TrainConfig) -> Self {
        Trainer { config, checkpoints: None, output: None, slots: None }
    }

    /// With checkpoints from which a run can be taken up.
    pub fn with_checkpoints(self, checkpoints: Checkpoints) -> Self {
        Trainer { checkpoints: Some(checkpoints), ..self }
    }

    /// As one of several runs that share these slots, see [`at_once`](super::at_once).
    pub fn with_slots(self, slots: Arc<Slots>) -> Self {
        Trainer { slots: Some(slots), ..self }
    }

    /// For a result that [`Tuned::save`] is to write into this directory: before the first step it is an error if that will not be
    /// possible.
    pub fn with_output(self, dir: impl Into<PathBuf>) -> Self {
        Trainer { output: Some(dir.into()), ..self }
    }

    /// Trains the method from its start. A fault that the checks at the end find is an error; [`train`](Self::train) gives the
    /// result beside it.
    pub fn fit<'a>(&self, model: &'a Pretrained, method: impl Into<AnyMethod>, data: &Dataset) -> Result<Tuned<'a>> {
        let method = method.into();
        let trained = self.start(model, &method, data)?;
        self.train(model, method, trained, data, None, &mut ())?.checked()
    }

    /// The method's start, with the head of [`Method::head`](crate::Method::head), else of [`own_head`](Self::own_head), else a fresh one;
    /// of several tasks each has the head that it would have alone.
    pub fn start<M: Clone + Into<AnyMethod>>(
        &self,
        model: &Pretrained,
        method: &M,
        data: &Dataset,
    ) -> Result<Trained<AnyTuner>> {
        let method = method.clone().into();
        method.checked_count(model.base.shape())?;
        let parts = data.parts();
        let heads = parts.iter().enumerate().map(|(task, part)| self.head(model, &method, (task, part)));
        let heads = heads.collect::<Result<Vec<_>>>()?;
        let head = match data.tasks.is_empty() {
            true => heads.into_iter().next().unwrap_or_else(|| unreachable!("data is one part or more")),
            false => Head::several(heads)?,
        };
        let tuner = method.init(&model.base.for_purpose(head.purpose()), self.config.seed)?;
        Trained::new(tuner, head)
    }

    /// The head with which a method starts on the data of a task.
    fn head(&self, model: &Pretrained, method: &AnyMethod, (task, data): (usize, &Dataset)) -> Result<Head> {
        let architecture = model.base.shape().architecture;
        let writes = architecture.writes_classes();
        let fresh = || match (data.purpose()?, data.outputs()?) {
            (Purpose::Tokens, _) if writes => {
                Err(Error::config("labels", "a class for each token", "a model with a head for them: not T5"))
            }
            (Purpose::Answers, _) if architecture.is_encoder() => Ok(Head::answers(&model.base, self.config.seed)),
            (Purpose::Answers, _) => {
                Err(Error::config("labels", "answers", "a model with a head for them: BERT or RoBERTa"))
            }
            (Purpose::Tokens, Some(classes)) => Ok(Head::tokens(&model.base, classes, self.config.seed)),
            (_, Some(_)) if writes => data.verbalizer(model).map(Head::Verbalizer),
            (_, Some(outputs)) => Ok(Head::classifier(&model.base, outputs, self.config.seed)),
            (_, None) => Err(Error::config("labels", "words", "classes or values: the model has no head for words")),
        };
        match self.method_head(model, method, data)? {
            Some(head) => head.of_task(task).cloned(),
            None => self.own_head(model, data)?.map_or_else(fresh, Ok),
        }
    }

    /// The head that the method begins with, see [`Method::head`](crate::Method::head).
    pub fn method_head(&self, model: &Pretrained, method: &AnyMethod, data: &Dataset) -> Result<Option<Head>> {
        let outputs = if data.purpose()? == Purpose::Texts { data.outputs()? } else { None };
        let wanted = Wanted { outputs, words: model.head_for(Purpose::Words) };
        method.head(&wanted, &model.base, self.config.seed)
    }

    /// The model's own head, if it is for what the data has: words, values, or the same classes (see [`Dataset::with_classes`]).
    pub fn own_head(&self, model: &Pretrained, data: &Dataset) -> Result<Option<Head>> {
        let (purpose, outputs) = (data.purpose()?, data.outputs()?);
        let named = outputs.is_none_or(|n| n == 1 && data.classes.is_empty() || model.class_names(n) == data.classes);
        Ok(model.head_for(purpose).filter(|head| named && head.outputs() == outputs).cloned())
    }

    /// Trains on from a given state, evaluating on other data. A run that came to its end gives a result, whatever the checks there
    /// find: see [`Tuned::fault`] and [`Tuned::checked`].
    pub fn train<'a, T: Procedure + 'static>(
        &self,
        model: &'a Pretrained,
        method: impl Into<AnyMethod>,
        trained: Trained<T>,
        data: &Dataset,
        evaluation: Option<&Dataset>,
        observer: &mut dyn Observer,
    ) -> Result<Tuned<'a>> {
        let (method, trained) = (method.into(), trained.erased());
        fits(&trained.head, data)?;
        let base = model.base.for_purpose(trained.head.purpose());
        peft::check_copies(&method, &trained, base.shape())?;
        if let Some(other) = evaluation.filter(|other| other.tasks != data.tasks) {
            let [found, expected] = [&other.tasks, &data.tasks].map(|tasks| TaskLabels::listed(tasks));
            return Err(Error::config(
                "tasks of the evaluation",
                found,
                format!("those of the training data, {expected}"),
            ));
        }
        let evaluation = evaluation.map(|data| data.examples.as_slice());
        let settings = match data.tasks.is_empty() {
            true => json!([method.name(), method.settings()]),
            false => json!([method.name(), method.settings(), data.tasks]),
        };
        let counts = counts(&trained);
        let data_of = (data.examples.as_slice(), evaluation, data.names());
        let Finished { trained, fault } = self.run_as(settings, &base, trained, data_of, observer)?;
        let labels = Labels::of(&model.name, &model.base, data.classes.clone());
        let labels = Labels { tasks: data.tasks.clone(), ..labels };
        Ok(Tuned { model, base, config: method, trained, labels, fault, counts, threads: self.config.threads })
    }

    /// The run itself: prepare, steps, finish, checks. Where these find a fault the checkpoints stay.
    pub fn run<T: Procedure>(
        &self,
        base: &Base,
        trained: Trained<T>,
        data: &[Example],
        evaluation: Option<&[Example]>,
        observer: &mut dyn Observer,
    ) -> Result<Trained<T>> {
        let data = (data, evaluation, Names::default());
        let Finished { trained, fault } = self.run_as(Value::Null, base, trained, data, observer)?;
        fault.map_or(Ok(trained), Err)
    }

    /// The same of a method with these settings, which tell its checkpoints from those of others.
    fn run_as<T: Procedure>(
        &self,
        method: Value,
        base: &Base,
        trained: Trained<T>,
        (data, evaluation, names): (&[Example], Option<&[Example]>, Names<'_>),
        observer: &mut dyn Observer,
    ) -> Result<Finished<T>> {
        if data.is_empty() || evaluation.is_some_and(<[_]>::is_empty) {
            return Err(Error::config("data", "no examples", "at least one"));
        }
        self.config.check()?;
        self.output.as_deref().map_or(Ok(()), check_new_directory)?;
        if trainable(&trained) == 0 {
            let expected = "something to train: a method with tensors of its own, or labels that need a head";
            return Err(Error::config("method", "nothing that is trained", expected));
        }
        self.check_metric(evaluation, names)?;
        let tasks: Vec<usize> = data.iter().chain(evaluation.into_iter().flatten()).map(|e| e.task).collect();
        trained.check_tasks(&tasks)?;
        if self.config.task_temperature.is_some() && data.iter().all(|example| example.task == data[0].task) {
            let expected =
                "more than one, by Dataset::several or a column task_id, or no temperature to draw them with";
            return Err(Error::config("task_temperature", "data of one task", expected));
        }
        let steps = self.config.steps(data.len());
        if (0..steps).all(|step| self.config.rate(step, steps) <= 0.0) {
            let found = format!("{}, or 0 by warm-up in each of {steps} steps", self.config.learning_rate);
            return Err(Error::config("learning_rate", found, "above 0 in some step"));
        }
        let before = Before::of(&trained);
        let identity = || self.identity(method, before.identity(base), data, evaluation);
        let store = |checkpoints| Store::open(checkpoints, identity());
        let store = self.checkpoints.as_ref().map(store).transpose()?;
        let mut work = Work { data, evaluation, names, before, store };
        let result = self.steps(&mut work, base, trained, observer);
        if let (Some(store), Err(error)) = (work.store, &result) {
            // To go on from there would end in the same fault.
            store.abandon(matches!(error, Error::Training { .. }));
        }
        result
    }

    /// What decides every bit of a run. The number of threads does not.
    fn identity(&self, method: Value, start: String, data: &[Example], evaluation: Option<&[Example]>) -> Value {
        let hash = |data: &[Example]| format!("{:016x}", Example::fingerprint(data));
        let settings = TrainConfig { threads: 1, ..self.config.clone() };
        json!({"settings": settings, "method": method, "start": start, "data": hash(data), "evaluation": evaluation.map(hash)})
    }

    fn steps<T: Procedure>(
        &self,
        work: &mut Work<'_>,
        base: &Base,
        trained: Trained<T>,
        observer: &mut dyn Observer,
    ) -> Result<Finished<T>> {
        let Work { data, evaluation, names, before, store } = work;
        let (config, total) = (&self.config, self.config.steps(data.len()));
        let Trained { tuner, head, copies } = trained;
        let tuner = tuner.prepare(base, Probe::new(&head, data).with_run(config))?;
        let mut run = Run::new(config, base.clone(), with_ids_from_names(Trained { tuner, head, copies })?)?;
        run.workers = run.workers.sharing(self.slots.clone());
        let (mut best, notes) = store.as_mut().map_or(Ok(Default::default()), |store| store.load(&mut run, data))?;
        observer.start(run.step, &notes)?;
        let every = config.eval_steps.unwrap_or(config.epoch(data.len()));
        let tired = |best: &Best| config.early_stopping_patience.is_some_and(|patience| best.stale >= patience);
        while run.step < total && !tired(&best) {
            let report = match run.step(data) {
                Err(why @ Error::Training { .. }) if config.load_best_model_at_end && best.found.is_some() => {
                    observer.stopped(&why)?;
                    break;
                }
                report => report?,
            };
            observer.step(&report)?;
            if let Some(examples) = evaluation.filter(|_| run.step % every == 0 || run.step == total) {
                let metrics = run.measure(examples, *names)?;
                observer.evaluated(run.step, &metrics)?;
                let moment = run.moment(run.step - 1, data)?;
                // What an earlier phase gives is not what the run is to give.
                if moment.phase + 1 == moment.phases {
                    self.compare(&mut best, &run, &metrics)?;
                }
            }
            let stops = observer.stops() && run.step < total;
            if let Some(store) = store.as_mut().filter(|store| stops || store.due(run.step)) {
                store.close(&run, &best)?;
                observer.saved(run.step);
            }
            if stops {
                return Err(Error::Stopped { step: run.step });
            }
        }
        if let Some(store) = store {
            store.close(&run, &best)?;
            observer.saved(run.step);
        }
        let mut done = run.step;
        if let Some((step, _)) = best.found.filter(|_| config.load_best_model_at_end) {
            run.trained = run.restored(step, data, &best.tensors)?;
            done = step;
        }
        // Of what the steps did, not of what is left after the finish, which may take some of it back.
        let unmoved = before.unmoved(&run.trained, run.moving_steps(done, data)?);
        let fault = judge(&mut run, data, unmoved)?;
        let Trained { tuner, head, copies } = run.trained;
        Ok(Finished { trained: Trained { tuner: tuner.finish(base)?, head, copies }, fault })
    }

    /// Whether the metric by which states are judged is one of the evaluation's.
    fn check_metric(&self, evaluation: Option<&[Example]>, names: Names<'_>) -> Result<()> {
        let name = &self.config.metric_for_best_model;
        let Some(examples) = evaluation.filter(|examples| examples.iter().any(|e| e.label.is_some())) else {
            return Ok(());
        };
        let known = metric_names(examples, names);
        match known.contains(name) {
            true => Ok(()),
            false => Err(Error::config("metric_for_best_model", name, known.join(", "))),
        }
    }

    /// Keeps the state of the run if it is the best so far.
    fn compare<T: Procedure>(&self, best: &mut Best, run: &Run<T>, metrics: &Metrics) -> Result<()> {
        if !self.config.load_best_model_at_end && self.config.early_stopping_patience.is_none() {
            return Ok(());
        }
        let name = &self.config.metric_for_best_model;
        let known = || metrics.0.iter().map(|(name, _)| &**name).collect::<Vec<_>>().join(", ");
        let value = metrics.get(name).ok_or_else(|| Error::config("metric_for_best_model", name, known()))?;
        let better = |old: f64| if name == "loss" || name.ends_with(".loss") { value < old } else { value > old };
        if best.found.is_none_or(|(_, old)| better(old)) {
            *best = Best { found: Some((run.step, value)), stale: 0, tensors: tensors(&run.trained) };
        } else {
            best.stale += 1;
        }
        Ok(())
    }
}

/// Refuses a head that is not for the labels of the data, or heads that are not for those of its tasks.
fn fits(head: &Head, data: &Dataset) -> Result<()> {
    if let Some(tasks) = head.tasks().filter(|tasks| *tasks != data.tasks.len()) {
        let found = if data.tasks.is_empty() { "data without tasks".into() } else { TaskLabels::listed(&data.tasks) };
        return Err(Error::config("tasks", found, format!("{tasks}, as there are heads")));
    }
    let told = |head: (bool, Option<usize>)| match head {
        (true, Some(outputs)) => format!("a head with {outputs} outputs"),
        (_, Some(classes)) => format!("a head for tokens with {classes} classes"),
        (_, None) => "a head for words".to_string(),
    };
    for (i, part) in data.parts().iter().enumerate() {
        let head = head.of_task(i)?;
        let found = (head.is_of_texts(), head.outputs());
        let wanted = (part.purpose()? == Purpose::Texts, part.outputs()?);
        if found != wanted {
            let of_task = data.tasks.get(i).map_or_else(String::new, |task| format!(" of task {}", task.name));
            let expected = format!("{}, as the labels of the data", told(wanted));
            return Err(Error::config(format!("head{of_task}"), told(found), expected));
        }
    }
    Ok(())
}

impl<T: Procedure> Run<T> {
    /// Logits of examples with what is trained so far.
    pub fn predict(&self, examples: &[Example]) -> Result<Vec<Logits>> {
        predict(&self.base, &self.trained, examples, &self.workers)
    }

    /// Metrics of what is trained so far, on examples whose classes and tasks have these names.
    pub fn measure(&self, examples: &[Example], names: Names<'_>) -> Result<Metrics> {
        measure(&self.base, &self.trained, (examples, names), &self.workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bare;
    use crate::testing::{base, device};

    /// Which step is the best so far, and how many evaluations since were no better.
    #[test]
    fn only_a_better_value_is_kept() {
        let base = base("roberta-tiny", &device());
        for (metric, values) in [("loss", [3.0, 2.0, 2.0, 4.0, 1.0]), ("accuracy", [0.1, 0.2, 0.2, 0.0, 0.3])] {
            let metric_for_best_model = metric.to_string();
            let config = TrainConfig { metric_for_best_model, load_best_model_at_end: true, ..Default::default() };
            let trained = Trained::new(Bare {}, Head::classifier(&base, 2, 3)).unwrap();
            let mut run = Run::new(&config, base.clone(), trained).unwrap();
            let (trainer, mut best) = (Trainer::new(config), Best::default());
            for (value, expected) in values.into_iter().zip([(1, 0), (2, 0), (2, 1), (2, 2), (5, 0)]) {
                run.step += 1;
                trainer.compare(&mut best, &run, &Metrics(vec![(metric.into(), value)])).unwrap();
                assert_eq!((best.found.unwrap().0, best.stale), expected, "{metric}, step {}", run.step);
            }
        }
    }
}
