//! `peft eval`

use std::path::{Path, PathBuf};

use clap::Args;
use peft_core::data::{Dataset, Labelled};
use peft_core::io::Pretrained;
use peft_core::loss::log_sum_exp;
use peft_core::train::{
    Logits, Metrics, Probe, Tuned, Workers, argmax, evaluate, measure, metrics::calibration_error, predict,
};
use peft_core::{
    AnyTuner, Bare, Error, Example, Head, Label, Method, Purpose, Result, Source, TaskLabels, Trained, Tuner,
};
use peft_reparam::{LaplaceLoraConfig, LoraConfig};
use serde_json::{Map, Value, json};

use super::options::{
    ColumnArgs, ModelArgs, Setup, TaskArg, TaskFile, print, tell, tell_classes, warn_of_broken_rows, workers,
};
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
    /// A directory of AdapterHub's with a composition of adapters (adapter_setup.json) or a fusion, in place of an adapter
    #[arg(long, value_name = "DIR", conflicts_with_all = ["adapter", "laplace", "for_task", "task_data"])]
    setup: Option<PathBuf>,
    /// A task of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte; measured on its development set, with its metrics
    #[arg(long)]
    task: Option<String>,
    /// Labelled examples: .tsv, .csv, .jsonl, .conll or .txt; with --task its directory, or GLUE's
    #[arg(long, required_unless_present = "task_data")]
    data: Option<PathBuf>,
    /// The same of one of the adapter's tasks, for an adapter of several; a directory is that of the task of GLUE of this name, or GLUE's
    #[arg(long, value_name = "NAME=FILE", requires = "adapter", conflicts_with_all = ["data", "task", "laplace", "for_task"])]
    task_data: Vec<TaskFile>,
    /// Find the posterior of a LoRA by its training data, and measure with it too (Laplace-LoRA); prints accuracy, mean negative
    /// log-likelihood and expected calibration error of classes before and after
    #[arg(long, value_name = "DATA", requires = "adapter", conflicts_with = "task")]
    laplace: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Tokens to which texts are cut
    #[arg(long, default_value_t = 128)]
    max_length: usize,
    #[command(flatten)]
    for_task: TaskArg,
    /// Threads [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl Eval {
    pub(super) fn run(self) -> Result<()> {
        let task = self.task.as_deref().map(Task::named).transpose()?;
        let model = self.model.open()?;
        if let (Some(training), Some(data)) = (&self.laplace, &self.data) {
            return print(self.laplace(&load(&self.adapter, &model)?, &model, [data, training])?);
        }
        let path = self.data.as_deref().unwrap_or(Path::new(""));
        let (examples, metrics) = match (&self.adapter[..], &self.setup) {
            ([_, ..], _) => self.measure(load(&self.adapter, &model)?, &model, task.as_ref())?,
            ([], setup) => {
                let Setup { base, trained, classes, room } = match setup {
                    Some(dir) => Setup::open(dir, &model)?,
                    None => {
                        let trained = Trained::new(Bare {}, model.own_head()?)?.erased();
                        let base = model.base.for_purpose(trained.head.purpose());
                        Setup { room: base.shape().max_length(), base, trained, classes: vec![] }
                    }
                };
                let data = self.read((path, task.as_ref()), &model, &trained.head, &classes, room)?;
                let data_of = (data.examples.as_slice(), data.names());
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
    fn measure(&self, tuned: Tuned<'_>, model: &Pretrained, glue: Option<&Task>) -> Result<(usize, Metrics)> {
        let room = tuned.config.room(model.base.shape());
        let (tuned, data) = match &self.data {
            Some(path) => {
                let task = self.for_task.among(&tuned)?;
                let tuned = if let Some(task) = task { tuned.of_task(task)? } else { tuned };
                let mut data = self.read((path, glue), model, &tuned.trained.head, &tuned.labels.classes, room)?;
                data.examples.iter_mut().for_each(|example| example.task = task.unwrap_or(example.task));
                let several = tuned.trained.tuner.check_tasks(&[usize::MAX]).is_err();
                if several && task.is_none() && data.examples.iter().all(|example| example.task == 0) {
                    tell(
                        "all examples are taken for task 0 of the adapter's: there is no other in a column task_id, nor --for-task",
                    );
                }
                (tuned, data)
            }
            None => {
                let data = self.tasks(&tuned, model, room)?;
                (tuned, data)
            }
        };
        let workers = self.workers(&data)?;
        tuned.trained.check_tasks(&data.examples.iter().map(|example| example.task).collect::<Vec<_>>())?;
        let data_of = (data.examples.as_slice(), data.names());
        Ok((data.examples.len(), measure(&tuned.base, &tuned.trained, data_of, &workers)?))
    }

    /// The data of some of an adapter's tasks.
    fn tasks(&self, tuned: &Tuned<'_>, model: &Pretrained, room: usize) -> Result<Dataset> {
        TaskFile::check("--task-data", &self.task_data)?;
        let tasks = &tuned.labels.tasks;
        let mut all = Dataset { tasks: tasks.clone(), ..Dataset::default() };
        for TaskFile { name, path } in &self.task_data {
            let task = tasks.iter().position(|task| task.name == *name).ok_or_else(|| match tasks.is_empty() {
                true => Error::config("--task-data", name, "none: the adapter's tasks have no names; --data"),
                false => Error::config("--task-data", name, TaskLabels::listed(tasks)),
            })?;
            let glue = path.is_dir().then(|| Task::named(name)).transpose()?;
            let head = tuned.trained.head.of_task(task)?;
            let data = self.read((path, glue.as_ref()), model, head, tuned.labels.of_task(task), room)?;
            all.examples.extend(data.examples.into_iter().map(|example| Example { task, ..example }));
        }
        Ok(all)
    }

    /// What a LoRA and its posterior are worth.
    fn laplace(&self, tuned: &Tuned<'_>, model: &Pretrained, [data, training]: [&PathBuf; 2]) -> Result<Value> {
        let Some(lora) = tuned.config.downcast_ref::<LoraConfig>() else {
            return Err(Error::config("--laplace", tuned.config.name(), "an adapter of lora"));
        };
        let (trained, base, room) = (&tuned.trained, &tuned.base, tuned.config.room(model.base.shape()));
        let read = |path: &Path| self.read((path, None), model, &trained.head, &tuned.labels.classes, room);
        let (data, training) = (read(data)?, read(training)?);
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
    fn read(
        &self,
        (path, glue): (&Path, Option<&Task>),
        model: &Pretrained,
        head: &Head,
        classes: &[String],
        room: usize,
    ) -> Result<Dataset> {
        if let (Head::States(_), _) | (Head::Tokens(_), Some(_)) = (head, glue) {
            let (found, expected) = match head {
                Head::States(_) => ("none", "one for the labels: FEATURE_EXTRACTION has none"),
                _ => ("one for tokens", "one for texts, as --task needs"),
            };
            return Err(Error::config("head", found, expected));
        }
        let Some(outputs) = head.outputs() else {
            if let Some(task) = glue {
                return Err(Error::config("--task", task.name, "none: the head is for words or answers"));
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
        let rows = match glue {
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
