//! One run of `peft train`, once its model is open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use peft_core::files::{MANIFEST, read_text, verify};
use peft_core::io::{Pretrained, peft};
use peft_core::train::{Metrics, Slots, Trainer, Tuned};
use peft_core::{AnyMethod, Copies, Error, Example, Result, Source};
use serde_json::{Map, Value, json};

use super::args::{SETTINGS, Train};
use super::data::{Reading, names, tell_head, tell_labels};
use crate::cli::options::tell;
use crate::cli::progress::Progress;
use crate::cli::{card, yaml};
use crate::machine::peak_bytes;
use crate::registry::{by_peft_type, load};
use crate::signals;

/// A finished adapter to start from, under the name of its directory.
fn source(dir: &Path, model: &Pretrained) -> Result<Source> {
    let (config, trained) = peft::load_as(&by_peft_type(dir)?, dir, model)?;
    let name = dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned());
    Ok(Source { name, config, trained })
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
        let (data, eval) =
            Reading { args, model, method: &method, head: adapter.as_ref().map(|it| &it.head) }.data()?;
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
        data.parts().iter().zip(names(&data)).for_each(|(part, name)| tell_labels(part, &name));
        let trainer = Trainer::new(config.clone()).with_checkpoints(args.checkpoints());
        let trainer = slots.map_or(trainer.clone(), |slots| trainer.with_slots(slots.clone()));
        let trained = match adapter {
            Some(trained) => trained,
            None => {
                if trainer.method_head(model, &method, &data)?.is_none() {
                    for (part, name) in data.parts().iter().zip(names(&data)) {
                        tell_head(model, trainer.own_head(model, part)?.as_ref(), part, &name)?;
                    }
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
