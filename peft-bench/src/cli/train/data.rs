//! What `peft train` reads: the data of a run, or of each of several tasks.

use std::path::Path;

use peft_core::data::{Dataset, Labelled};
use peft_core::io::{Pretrained, peft};
use peft_core::loss::IGNORED;
use peft_core::{AnyMethod, Error, Head, Label, Result, TaskLabels};

use super::Train;
use crate::cli::options::{TaskFile, tell, tell_classes, warn_of_broken_rows};
use crate::tasks::Task;

/// What decides how data is read.
pub(super) struct Reading<'a> {
    pub args: &'a Train,
    pub model: &'a Pretrained,
    pub method: &'a AnyMethod,
    /// The head that is trained on, if there is an adapter.
    pub head: Option<&'a Head>,
}

/// The rows to train on and those to evaluate on.
type Rows = (Labelled, Option<Labelled>);

impl Reading<'_> {
    /// The data in the model's tokens, with room for a method's virtual tokens, and with its classes in the order of the head that may be
    /// trained on: of the adapter, if there is one.
    pub fn data(&self) -> Result<(Dataset, Option<Dataset>)> {
        let args = self.args;
        if let Some(path) = &args.data {
            if let Some(labels) = self.labels()?.filter(|labels| !labels.tasks.is_empty()) {
                let expected = format!("--task-data NAME=FILE: the adapter has heads for {}", listed(&labels.tasks));
                return Err(Error::config("--data", path.display(), expected));
            }
            let task = args.task.as_deref().map(Task::named).transpose()?;
            let rows = match &task {
                Some(task) => task.read(path).map(|(train, dev)| (train, Some(dev)))?,
                None => self.rows(path, args.eval.as_deref())?,
            };
            return self.prepared((path, rows, task.as_ref()), 0);
        }
        let (mut all, mut evals) = (vec![], vec![]);
        for (i, file) in self.files()?.into_iter().enumerate() {
            let TaskFile { name, path } = file;
            let eval = args.task_eval.iter().find(|other| other.name == *name).map(|other| other.path.as_path());
            let glue = path.is_dir().then(|| glue(file)).transpose()?;
            let rows = match (&glue, eval) {
                (Some(_), Some(eval)) => {
                    let expected = format!("none for {name}: {} brings its own", path.display());
                    return Err(Error::config("--task-eval", eval.display(), expected));
                }
                (Some(task), None) => task.read(path).map(|(train, dev)| (train, Some(dev)))?,
                (None, eval) => self.rows(path, eval)?,
            };
            let (train, eval) = self.prepared((path, rows, glue.as_ref()), i)?;
            all.push((name.clone(), train));
            evals.extend(eval.map(|eval| (name.clone(), eval)));
        }
        if let Some((name, _)) = all.iter().find(|(name, _)| !evals.is_empty() && !evals.iter().any(|it| it.0 == *name))
        {
            return Err(Error::config("--task-eval", format!("nothing for {name}"), "data for each task, or for none"));
        }
        let eval = (!evals.is_empty()).then(|| Dataset::several(evals)).transpose()?;
        Ok((Dataset::several(all)?, eval))
    }

    /// The files of the tasks, in the order of the heads that there are.
    fn files(&self) -> Result<Vec<&TaskFile>> {
        let args = self.args;
        let all = &args.task_data;
        TaskFile::check("--task-data", all)?;
        TaskFile::check("--task-eval", &args.task_eval)?;
        let names = all.iter().map(|task| task.name.as_str()).collect::<Vec<_>>();
        if let Some(other) = args.task_eval.iter().find(|task| !names.contains(&task.name.as_str())) {
            return Err(Error::config(
                "--task-eval",
                &other.name,
                format!("a task of --task-data: {}", names.join(", ")),
            ));
        }
        let Some(labels) = self.labels()? else { return Ok(all.iter().collect()) };
        let of_head = |task: &TaskLabels| all.iter().find(|file| file.name == task.name);
        let files: Vec<&TaskFile> = labels.tasks.iter().filter_map(of_head).collect();
        match files.len() == labels.tasks.len() && files.len() == all.len() {
            true => Ok(files),
            false => {
                let heads = match labels.tasks.is_empty() {
                    true => "none: the adapter has one head for all; --data".to_string(),
                    false => format!("each of the tasks that the adapter has heads for: {}", listed(&labels.tasks)),
                };
                Err(Error::config("--task-data", names.join(", "), heads))
            }
        }
    }

    /// What the adapter that is trained on says of its head.
    fn labels(&self) -> Result<Option<peft::Labels>> {
        match (self.args.adapter.first(), self.head) {
            (Some(dir), Some(head)) => Ok(Some(self.model.name_classes(peft::labels(dir)?, head))),
            _ => Ok(None),
        }
    }

    fn rows(&self, path: &Path, eval: Option<&Path>) -> Result<Rows> {
        let open = |path: &Path| Ok::<_, Error>(self.args.columns.of(Labelled::open(path)?));
        let train = open(path)?.read()?;
        tell(format_args!("columns of {}: {}", path.display(), train.columns().join(", ")));
        let eval = eval.map(|path| open(path)?.like(&train).read()).transpose()?;
        Ok((train, eval))
    }

    /// Rows as data of a task.
    fn prepared(
        &self,
        (path, rows, glue): (&Path, Rows, Option<&Task>),
        task: usize,
    ) -> Result<(Dataset, Option<Dataset>)> {
        let Reading { args, model, method, .. } = self;
        let (train, eval) = rows;
        [Some(&train), eval.as_ref()].into_iter().flatten().for_each(warn_of_broken_rows);
        let prepare = |data: Labelled| data.prepare(model, args.max_length.min(method.room(model.base.shape())));
        let (data, eval) = (prepare(train)?, eval.map(prepare).transpose()?);
        let classes = match self.labels()? {
            Some(labels) => labels.of_task(task).to_vec(),
            None => model.head_for(data.purpose()?).and_then(Head::outputs).map_or(vec![], |n| model.class_names(n)),
        };
        if let Some(task) = glue {
            task.check_order(&classes)?;
        }
        if !data.classes.is_empty() {
            tell_classes(&data.classes, &classes);
        }
        let renumbered = |data: &Dataset| data.clone().with_classes(&classes);
        match (renumbered(&data), eval.as_ref().map(renumbered)) {
            (Some(data), None) => Ok((data, None)),
            (Some(data), Some(Some(eval))) => Ok((data, Some(eval))),
            _ if !args.adapter.is_empty() && !classes.is_empty() => {
                let expected = format!("classes of the adapter: {classes:?}");
                Err(Error::file(path, "classes", format!("{:?}", data.classes), expected))
            }
            _ => Ok((data, eval)),
        }
    }
}

fn listed(tasks: &[TaskLabels]) -> String {
    tasks.iter().map(|task| task.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The task of GLUE whose directory stands for its data.
fn glue(TaskFile { name, path }: &TaskFile) -> Result<Task> {
    Task::named(name).map_err(|error| match error {
        Error::Config { expected, .. } => {
            let found = format!("{name}={}, a directory", path.display());
            Error::config("--task-data", found, format!("a file, or a directory for a task of GLUE: {expected}"))
        }
        error => error,
    })
}

/// What is put in front of what is told of each task.
pub(super) fn names(data: &Dataset) -> Vec<String> {
    match data.tasks.is_empty() {
        true => vec![String::new()],
        false => data.tasks.iter().map(|task| format!("{}: ", task.name)).collect(),
    }
}

/// Says whether the model's own head is trained on, or a new one.
pub(super) fn tell_head(model: &Pretrained, own: Option<&Head>, data: &Dataset, of: &str) -> Result<()> {
    let Some(found) = model.head_for(data.purpose()?).filter(|head| head.outputs().is_some()) else { return Ok(()) };
    let names = |outputs: Option<usize>| match model.class_names(outputs.unwrap_or(0)) {
        names if names.is_empty() => "a value".to_string(),
        names => names.join(", "),
    };
    match own {
        Some(head) => tell(format_args!("{of}the model's own head is trained on, for {}", names(head.outputs()))),
        None => tell(format_args!("{of}a new head is trained: that of the model is for {}", names(found.outputs()))),
    }
    Ok(())
}

/// Says what the labels of the training data are.
pub(super) fn tell_labels(data: &Dataset, of: &str) {
    if !data.classes.is_empty() {
        let mut counts = vec![0; data.classes.len()];
        for label in data.examples.iter().filter_map(|example| example.label.as_ref()) {
            match label {
                Label::Class(class) => counts[*class] += 1,
                Label::Tags(tags) => {
                    tags.iter().filter(|tag| **tag != IGNORED).for_each(|tag| counts[*tag as usize] += 1)
                }
                Label::Value(_) | Label::Words(_) | Label::Answer(_) => {}
            }
        }
        let told = data.classes.iter().zip(counts).map(|(name, count)| format!("{name} {count}"));
        tell(format_args!("{of}classes of the training data: {}", told.collect::<Vec<_>>().join(", ")));
    }
    let cut = data.examples.iter().filter(|example| match &example.label {
        Some(Label::Answer(answer)) => answer.tokens == [0, 0] && !answer.right.is_empty(),
        _ => false,
    });
    let cut = cut.count();
    if cut > 0 {
        tell(format_args!(
            "{of}{cut} of {} answers are in no token that is left of their texts, and are learnt as none: see --max-length",
            data.examples.len()
        ));
    }
    let values: Vec<f32> = data.examples.iter().filter_map(|example| example.label.as_ref()?.value()).collect();
    if let Some(least) = values.iter().copied().reduce(f32::min) {
        let most = values.iter().copied().fold(least, f32::max);
        tell(format_args!("{of}labels of the training data: values from {least} to {most}, so this is a regression"));
    }
}
