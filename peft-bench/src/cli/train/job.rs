//! One run of `peft train`, once its model is open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use peft_core::data::{Dataset, Labelled};
use peft_core::files::{MANIFEST, read_text, verify};
use peft_core::io::{Pretrained, peft};
use peft_core::loss::IGNORED;
use peft_core::train::{Metrics, Slots, Trainer, Tuned};
use peft_core::{AnyMethod, Copies, Error, Example, Head, Label, Result, Source};
use serde_json::{Map, Value, json};

use super::args::{SETTINGS, Train};
use crate::cli::options::{tell, tell_classes};
use crate::cli::progress::Progress;
use crate::cli::{card, yaml};
use crate::machine::peak_bytes;
use crate::registry::{by_peft_type, load};
use crate::signals;
use crate::tasks::Task;

/// A finished adapter to start from, under the name of its directory.
fn source(dir: &Path, model: &Pretrained) -> Result<Source> {
    let (config, trained) = peft::load_as(&by_peft_type(dir)?, dir, model)?;
    let name = dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned());
    Ok(Source { name, config, trained })
}

/// Says whether the model's own head is trained on, or a new one.
fn tell_head(model: &Pretrained, own: Option<&Head>, data: &Dataset) -> Result<()> {
    let Some(found) = model.head_for(data.purpose()?).filter(|head| head.outputs().is_some()) else { return Ok(()) };
    let names = |outputs: Option<usize>| match model.class_names(outputs.unwrap_or(0)) {
        names if names.is_empty() => "a value".to_string(),
        names => names.join(", "),
    };
    match own {
        Some(head) => tell(format_args!("the model's own head is trained on, for {}", names(head.outputs()))),
        None => tell(format_args!("a new head is trained: that of the model is for {}", names(found.outputs()))),
    }
    Ok(())
}

/// Refuses a finished run whose settings are not those that are asked for, which it names.
fn same_settings(path: &Path, found: &str, asked: &str) -> Result<()> {
    fn settings(text: &str) -> BTreeMap<&str, &str> {
        let first = text.lines().next().and_then(|line| line.strip_prefix("# model ")?.split_once(", data "));
        let told = first.into_iter().flat_map(|(model, data)| [("the model", model), ("the data", data)]);
        told.chain(text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(": ")))
            .collect()
    }
    let (found, asked) = (settings(found), settings(asked));
    let other = |key: &&&str| found.get(**key) != asked.get(**key);
    let keys: BTreeSet<&str> = found.keys().chain(asked.keys()).filter(other).copied().collect();
    if keys.is_empty() {
        return Ok(());
    }
    let told = |settings: &BTreeMap<&str, &str>| {
        let one = |key: &&str| format!("{key} {}", settings.get(key).unwrap_or(&"not set"));
        keys.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let expected =
        format!("{}, as this call says; a finished run is not gone on with: take another --output", told(&asked));
    Err(Error::file(path, "settings of the finished run", told(&found), expected))
}

/// One run on a model that is open.
pub(super) struct Job<'a> {
    pub(super) args: &'a Train,
    pub(super) model: &'a Pretrained,
    pub(super) slots: Option<&'a Arc<Slots>>,
}

impl Job<'_> {
    /// The data in the model's tokens, with room for a method's virtual tokens, and with its classes in the order of the head
    /// that may be trained on: of the adapter, if there is one.
    fn data(&self, method: &AnyMethod, head: Option<&Head>) -> Result<(Dataset, Option<Dataset>)> {
        let Job { args, model, .. } = self;
        let prepare = |data: Labelled| data.prepare(model, args.max_length.min(method.room(model.base.shape())));
        let (data, eval) = args.read()?;
        let (data, eval) = (prepare(data)?, eval.map(prepare).transpose()?);
        let classes = match (args.adapter.first(), head) {
            (Some(dir), Some(head)) => model.name_classes(peft::labels(dir)?, head).classes,
            _ => model.head_for(data.purpose()?).and_then(Head::outputs).map_or(vec![], |n| model.class_names(n)),
        };
        if let Some(task) = &args.task {
            Task::named(task)?.check_order(&classes)?;
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
                Err(Error::file(&args.data, "classes", format!("{:?}", data.classes), expected))
            }
            _ => Ok((data, eval)),
        }
    }

    pub(super) fn run(self, method: AnyMethod) -> Result<Value> {
        let Job { args, model, slots } = self;
        let of_set = |error: Error| error.of_option("--set");
        let (common, settings) = peft::split_common(&args.set).map_err(of_set)?;
        let (method, adapter) = match &args.adapter[..] {
            dirs @ [_, ..] if !args.method.is_empty() && args.method.join("+") != method.name() => {
                let found = args.method.join("+");
                let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
                let expected = format!("{}, the method of {}", method.name(), dirs.join(" and "));
                return Err(Error::config("--method", found, expected));
            }
            dirs @ [_, ..] => {
                let Tuned { config, trained, .. } = load(dirs, model)?;
                (config, Some(trained))
            }
            [] => {
                let sources = args.source.iter().map(|dir| source(dir, model)).collect::<Result<Vec<_>>>()?;
                let method =
                    peft::with_words(&method, &settings).map_err(of_set)?.narrowed(&common, model.base.shape())?;
                (method.from_sources(sources), None)
            }
        };
        // An impossible configuration is told before anything is read for it.
        method.checked_count(model.base.shape())?;
        let (data, eval) = self.data(&method, adapter.as_ref().map(|trained| &trained.head))?;
        let config = args.config(data.examples.len())?;
        let steps = config.steps(data.examples.len());
        // What is not a setting decides a run as well: a finished one is told apart from one on another model or other data.
        let hashes =
            [Some(&data), eval.as_ref()].into_iter().flatten().map(|data| Example::fingerprint(&data.examples));
        let hashes = hashes.map(|hash| format!("{hash:016x}")).collect::<Vec<_>>().join(", ");
        let settings = yaml::effective(args, &method, common.saved(), &config)?;
        let settings = format!("# model {:016x}, data {hashes}\n{settings}", model.fingerprint());
        let output = args.output.output.as_path();
        if args.is_done() {
            let path = output.join(SETTINGS);
            same_settings(&path, &read_text(&path, 1 << 20)?, &settings)?;
            // Results had no hashes once.
            if output.join(MANIFEST).exists() {
                verify(output)?;
            }
            args.checkpoints().remove()?;
            return Ok(json!({"output": output.display().to_string(), "method": method.name(), "done": "before"}));
        }
        if args.resume && !args.checkpoints().dir.exists() {
            tell(format_args!("no checkpoints in {}: from the start", args.checkpoints().dir.display()));
        }
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
            tell(format_args!("classes of the training data: {}", told.collect::<Vec<_>>().join(", ")));
        }
        let cut = |example: &&Example| match &example.label {
            Some(Label::Answer(answer)) => answer.tokens == [0, 0] && !answer.right.is_empty(),
            _ => false,
        };
        let cut = data.examples.iter().filter(cut).count();
        if cut > 0 {
            tell(format_args!(
                "{cut} of {} answers are in no token that is left of their texts, and are learnt as none: see --max-length",
                data.examples.len()
            ));
        }
        let values: Vec<f32> = data.examples.iter().filter_map(|example| example.label.as_ref()?.value()).collect();
        if let Some(least) = values.iter().copied().reduce(f32::min) {
            let most = values.iter().copied().fold(least, f32::max);
            tell(format_args!("labels of the training data: values from {least} to {most}, so this is a regression"));
        }
        let trainer = Trainer::new(config.clone()).with_checkpoints(args.checkpoints());
        let trainer = slots.map_or(trainer.clone(), |slots| trainer.with_slots(slots.clone()));
        let trained = match adapter {
            Some(trained) => trained,
            None => {
                if trainer.method_head(model, &method, &data)?.is_none() {
                    tell_head(model, trainer.own_head(model, &data)?.as_ref(), &data)?;
                }
                let trained = trainer.start(model, &method, &data)?;
                let base = model.base.for_purpose(trained.head.purpose());
                trained.with_copies(Copies::new(&base, common.saved())?)?
            }
        };
        let again = if args.resume { "the same command" } else { "the same command with --resume" };
        let mut progress = Progress::new(steps, args.log.as_deref(), args.checkpoints().dir, again);
        if slots.is_some() {
            progress.hide();
        }
        #[cfg(feature = "tensorboard")]
        progress.write_events(args.tensorboard.as_deref());
        let started = std::time::Instant::now();
        let mut tuned =
            signals::by_steps(|| trainer.train(model, method, trained, &data, eval.as_ref(), &mut progress))?;
        // Of what is saved: neither the best state nor what a method makes of the last one need be what was evaluated last.
        let metrics = eval.as_ref().map_or(Ok(Metrics::default()), |eval| tuned.evaluate(eval))?;
        let metrics: Map<String, Value> =
            metrics.0.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        let (method, head) = tuned.trainable();
        let (steps, speed) = (progress.steps(), progress.tokens_per_second());
        drop(progress);
        let card = card::write(&tuned, &config, &metrics, args.task.as_deref());
        if let Some(fault) = tuned.fault.take() {
            // Without its settings it is no finished run.
            args.output.make(|dir| tuned.save_with(dir, &[("README.md", card)]))?;
            let [result, state] = [output, &args.checkpoints().dir].map(|path| path.display().to_string());
            tell(format_args!(
                "the result, which is not to be trusted, is in {result}, the state of the last step in {state}"
            ));
            return Err(fault);
        }
        args.output.make(|dir| tuned.save_with(dir, &[(SETTINGS, settings), ("README.md", card)]))?;
        args.checkpoints().remove()?;
        Ok(json!({
            "output": output.display().to_string(), "method": tuned.config.name(), "steps": steps,
            "trainable": {"method": method, "head": head}, "seconds": started.elapsed().as_secs_f64(),
            "tokens_per_second": speed, "peak_bytes": peak_bytes(), "metrics": metrics,
        }))
    }
}
