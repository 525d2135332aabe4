//! `peft eval`

use std::path::{Path, PathBuf};

use clap::Args;
use peft_core::data::{Dataset, Labelled};
use peft_core::io::Pretrained;
use peft_core::loss::log_sum_exp;
use peft_core::train::{
    Logits, Metrics, Probe, Tuned, Workers, argmax, evaluate, measure, metrics::calibration_error, predict,
};
use peft_core::{AnyTuner, Bare, Error, Example, Head, Label, Method, Purpose, Result, Source, Trained, Tuner};
use peft_reparam::{LaplaceLoraConfig, LoraConfig};
use serde_json::{Map, Value, json};

use super::options::{ColumnArgs, ModelArgs, print, tell, tell_classes, warn_of_broken_rows, workers};
use crate::machine::threads;
use crate::registry::load;
use crate::tasks::Task;

/// Parts of the range of confidences over which calibration is measured.
const BINS: usize = 15;

/// Measure a model or an adapter on labelled data; prints one JSON object
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft eval --model DIR --adapter out/lora --task mrpc --data GLUE\n  \
    peft eval --model DIR --adapter out/lora --data reviews.csv --text-column review --label-column stars\n  \
    peft eval --model DIR --adapter out/lora --data dev.csv --laplace train.csv")]
pub struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter directory, or several at once, the first outermost, whose head counts; without one the model's own head is used
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// A task of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte; measured on its development set, with its metrics
    #[arg(long)]
    task: Option<String>,
    /// Labelled examples: .tsv, .csv, .jsonl, .conll or .txt; with --task its directory, or GLUE's
    #[arg(long)]
    data: PathBuf,
    /// Find the posterior of a LoRA by its training data, and measure with it too (Laplace-LoRA); prints accuracy, mean negative
    /// log-likelihood and expected calibration error of classes before and after
    #[arg(long, value_name = "DATA", requires = "adapter", conflicts_with = "task")]
    laplace: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Tokens to which texts are cut
    #[arg(long, default_value_t = 128)]
    max_length: usize,
    /// The task of all examples, counted from 0, for an adapter of several [default: that in the column task_id]
    #[arg(long, value_name = "NUMBER")]
    task_index: Option<usize>,
    /// Threads [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl Eval {
    pub(super) fn run(self) -> Result<()> {
        let task = self.task.as_deref().map(Task::named).transpose()?;
        let model = self.model.open()?;
        if let Some(data) = &self.laplace {
            return print(self.laplace(&load(&self.adapter, &model)?, &model, data)?);
        }
        let (examples, metrics) = match &self.adapter[..] {
            [_, ..] => self.measure(&load(&self.adapter, &model)?, &model)?,
            [] => {
                let trained = Trained::new(Bare {}, model.own_head()?)?;
                let base = model.base.for_purpose(trained.head.purpose());
                let data = self.read(&self.data, &model, &trained.head, &[], model.base.shape().max_length())?;
                let data_of = (data.examples.as_slice(), data.classes.as_slice());
                (data.examples.len(), measure(&base, &trained, data_of, &self.workers(&data)?)?)
            }
        };
        let wanted = |name: &str| name == "loss" || task.is_none_or(|task| task.metrics.contains(&name));
        let mut object = Map::new();
        object.extend(self.task.iter().map(|task| ("task".to_string(), json!(task))));
        object.insert("examples".into(), json!(examples));
        object.extend(metrics.0.iter().filter(|(name, _)| wanted(name)).map(|(name, x)| (name.to_string(), json!(x))));
        print(Value::Object(object))
    }

    /// The number of examples, and the metrics of an adapter on them.
    fn measure(&self, tuned: &Tuned<'_>, model: &Pretrained) -> Result<(usize, Metrics)> {
        let room = tuned.config.room(model.base.shape());
        let mut data = self.read(&self.data, model, &tuned.trained.head, &tuned.labels.classes, room)?;
        if let Some(task) = self.task_index {
            data.examples.iter_mut().for_each(|example| example.task = task);
        }
        let several = tuned.trained.tuner.check_tasks(&[usize::MAX]).is_err();
        if several && self.task_index.is_none() && data.examples.iter().all(|example| example.task == 0) {
            tell(
                "all examples are taken for task 0 of the adapter's: there is no other in a column task_id, nor --task-index",
            );
        }
        let workers = self.workers(&data)?;
        let data_of = (data.examples.as_slice(), data.classes.as_slice());
        Ok((data.examples.len(), measure(&tuned.base, &tuned.trained, data_of, &workers)?))
    }

    /// What a LoRA and its posterior are worth.
    fn laplace(&self, tuned: &Tuned<'_>, model: &Pretrained, training: &Path) -> Result<Value> {
        let Some(lora) = tuned.config.downcast_ref::<LoraConfig>() else {
            return Err(Error::config("--laplace", tuned.config.name(), "an adapter of lora"));
        };
        let (trained, base, room) = (&tuned.trained, &tuned.base, tuned.config.room(model.base.shape()));
        let read = |path: &Path| self.read(path, model, &trained.head, &tuned.labels.classes, room);
        let (data, training) = (read(&self.data)?, read(training)?);
        let classes = |example: &Example| match example.label {
            Some(Label::Class(class)) => Ok(class),
            _ => Err(Error::config("--laplace", "other labels", "classes of texts")),
        };
        let gold = data.examples.iter().map(classes).collect::<Result<Vec<usize>>>()?;
        let config = LaplaceLoraConfig::of(lora)?;
        let name = tuned.labels.base.clone();
        let source = Source { name, config: tuned.config.clone(), trained: trained.clone() };
        let posterior = config.init_from(base, 0, &[source])?;
        let posterior = posterior.fitted(base, Probe::new(&trained.head, &training.examples))?;
        let variance = posterior.variance();
        let posterior = Trained { tuner: AnyTuner::new(posterior), ..trained.clone() };
        let (workers, labels) = (self.workers(&data)?, &data.classes);
        let worth = |trained: &Trained<AnyTuner>| {
            let logits = predict(base, trained, &data.examples, &workers)?;
            let metrics = evaluate(&logits, &data.examples, labels)?;
            let found: Vec<usize> = logits.iter().map(|logits| argmax(&logits.values)).collect();
            let confidence = |(logits, class): (&Logits, &usize)| {
                (f64::from(logits.values[*class]) - log_sum_exp(&logits.values)).exp()
            };
            let confidences: Vec<f64> = logits.iter().zip(&found).map(confidence).collect();
            let right: Vec<bool> = found.iter().zip(&gold).map(|(found, gold)| found == gold).collect();
            let ece = calibration_error(&confidences, &right, BINS);
            Ok::<_, Error>(json!({"accuracy": metrics.get("accuracy"), "nll": metrics.get("loss"), "ece": ece}))
        };
        Ok(
            json!({"examples": gold.len(), "variance": variance, "before": worth(trained)?, "after": worth(&posterior)?}),
        )
    }

    fn workers(&self, data: &Dataset) -> Result<Workers> {
        workers(self.threads.map_or_else(threads, usize::from), data.examples.len())
    }

    /// The data, its labels numbered as the head's outputs are; `classes` are the names that an adapter brings.
    fn read(&self, path: &Path, model: &Pretrained, head: &Head, classes: &[String], room: usize) -> Result<Dataset> {
        if let (Head::States(_), _) | (Head::Tokens(_), Some(_)) = (head, &self.task) {
            let (found, expected) = match head {
                Head::States(_) => ("none", "one for the labels: FEATURE_EXTRACTION has none"),
                _ => ("one for tokens", "one for texts, as --task needs"),
            };
            return Err(Error::config("head", found, expected));
        }
        let Some(outputs) = head.outputs() else {
            if let Some(task) = &self.task {
                return Err(Error::config("--task", task, "none: the head is for words or answers"));
            }
            let rows = self.columns.of(Labelled::open(path)?).read()?;
            let data = rows.prepare(model, self.max_length.min(room))?;
            if let Head::Answers(_) = head {
                return match data.purpose()? {
                    Purpose::Answers => Ok(data),
                    _ => Err(Error::config("--model", "a head for answers", "a head for the data's labels")),
                };
            }
            return match data.examples.iter().all(|example| matches!(example.label, Some(Label::Words(_)))) {
                true => Ok(data),
                false => Err(Error::config("--model", "a head for words", "a head for the data's classes or values")),
            };
        };
        let numbers: Vec<String> = (0..outputs).map(|class| class.to_string()).collect();
        let named = [classes.to_vec(), model.class_names(outputs)].into_iter().find(|names| names.len() == outputs);
        let names = named.unwrap_or_else(|| numbers.clone());
        let rows = match self.task.as_deref().map(Task::named).transpose()? {
            Some(task) if task.outputs() != outputs => {
                let found = format!("{}, which needs a head with {} outputs", task.name, task.outputs());
                return Err(Error::config("--task", found, format!("a task for a head with {outputs}")));
            }
            Some(task) => {
                tell_classes(task.classes, &names);
                task.read_dev(path, &names)?
            }
            None => {
                let open = || Ok::<_, Error>(self.columns.of(Labelled::open(path)?));
                match outputs {
                    1 => open()?.values().read()?,
                    // A file may write the numbers of the classes instead of their names.
                    _ => open()?
                        .classes(&names)
                        .read()
                        .or_else(|error| open()?.classes(&numbers).read().map_err(|_| error))
                        .inspect(|rows| tell_classes(rows.classes(), &names))?,
                }
            }
        };
        warn_of_broken_rows(&rows);
        let data = rows.prepare(model, self.max_length.min(room))?;
        let of_tokens = data.purpose()? == Purpose::Tokens;
        match (of_tokens, head) {
            (true, Head::Tokens(_)) => Ok(data),
            (false, head) if head.is_of_texts() => Ok(data),
            (true, _) => {
                Err(Error::config("labels", "a tag for each token", "a class or value for each text, as the head"))
            }
            (false, _) => {
                Err(Error::config("labels", "one for each text", "a tag for each token, as the head (TOKEN_CLS)"))
            }
        }
    }
}
