//! `peft search`

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use peft_core::files::{check_new_directory, read_file, read_text, write_file};
use peft_core::io::Pretrained;
use peft_core::search::{Claim, Point, Proposal, Search as Strategic, Space, Strategy, Trial, Trials};
use peft_core::{Common, Error, Result, Shape};
use serde_json::{Map, Value, json};
use strsim::damerau_levenshtein;

use super::Command;
use super::options::{ModelArgs, print, tell};
use super::train::Train;
use super::yaml::{self, Config};
use crate::machine::digest;
use crate::registry::by_name;
use crate::signals;
use crate::tasks::Task;

/// Search among configurations of methods for those that are best on held-out data and train few numbers
#[derive(Debug, Args)]
#[command(after_help = "A space is a file as `peft train --config` takes, in which some settings are chosen:\n  \
    method: autopeft\n  learning_rate: 1e-3\n  choices: {serial: [0, 6, 24], parallel: [0, 24, 96], prefix: [0, 1, 10]}\n  \
    subsets: {layers: [0, 1, 2, 3]}\nor a list of such, each of another method.\n\nExamples:\n  \
    peft search --space space.yaml --model DIR --data train.tsv --eval dev.tsv --budget 30 --output out/search\n  \
    peft train --config out/search/best.yaml --output out/best")]
pub struct Search {
    /// What is chosen from
    #[arg(long, value_name = "FILE")]
    space: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Labelled examples to train on, as of `peft train`
    #[arg(long)]
    data: PathBuf,
    /// Labelled examples that configurations are judged by; a task brings its own
    #[arg(long, required_unless_present = "task", conflicts_with = "task")]
    eval: Option<PathBuf>,
    /// A task of GLUE: --data is then its directory, or GLUE's
    #[arg(long)]
    task: Option<String>,
    /// How many configurations are tried
    #[arg(long, default_value_t = 30)]
    budget: usize,
    /// random; bayes: a Gaussian process and the expected growth of the front (AutoPEFT); greedy: one choice after the other (S4); halving:
    /// many with little training, the best with more
    #[arg(long, default_value = "bayes")]
    strategy: Strategy,
    /// What configurations are judged by [default: the task's first metric, else loss]
    #[arg(long)]
    metric: Option<String>,
    /// Decides every random number, of the search and of its runs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The directory of the search: one that was stopped goes on, and several processes may work in one
    #[arg(long)]
    output: PathBuf,
}

/// What the space may not say, since the search does.
const OWN: [&str; 8] =
    ["model_name_or_path", "device", "data", "train_file", "validation_file", "task_name", "output_dir", "seed"];

/// Where a space has what is chosen.
const LISTS: [&str; 2] = ["choices", "subsets"];

/// What the directory of a search holds.
const TRIALS: &str = "trials";
const BEST: &str = "best.yaml";
const FRONT: &str = "front.json";

impl Search {
    pub(super) fn run(self) -> Result<()> {
        self.check_output()?;
        let text = read_text(&self.space, 1 << 20)?;
        let value: Value = serde_saphyr::from_str(&text).map_err(|error| {
            let line = error.to_string().lines().next().unwrap_or_default().to_string();
            Error::file(&self.space, "content", line, "a YAML mapping of settings, or a list of such")
        })?;
        let space = Space::new(&value).map_err(|error| error.in_file(&self.space))?;
        if self.budget == 0 {
            return Err(Error::config("--budget", 0, "1 or more"));
        }
        let metric = match (&self.metric, &self.task) {
            (Some(metric), _) => metric.clone(),
            (None, Some(task)) => Task::named(task)?.metrics[0].to_string(),
            (None, None) => "loss".to_string(),
        };
        let shape = Pretrained::shape(&self.model.model)?;
        self.check(&space, &shape, &metric)?;
        let model = self.model.open()?;
        let identity = json!({
            "space": value, "model": format!("{:016x}", model.fingerprint()), "data": self.read()?, "metric": metric,
            "strategy": format!("{:?}", self.strategy), "seed": self.seed, "budget": self.budget,
        });
        let trials = Trials::open(&self.output.join(TRIALS), &identity)?;
        // Points that train nothing are all the same.
        let numbers = |point: &Point| numbers(&space.settings(point), &shape).ok().filter(|count| *count > 0);
        let search = Strategic {
            space: &space,
            strategy: self.strategy,
            budget: self.budget,
            seed: self.seed,
            numbers: &numbers,
        };
        let next = |all: &[Trial]| {
            let proposal = search.next(all)?;
            let numbers = numbers(&proposal.point).unwrap_or_default();
            Some((proposal, numbers))
        };
        tell(format_args!("{} points, {} to be tried; {metric} on held-out data", space.size(), self.budget));
        tell(format_args!("  trial  {metric:>10}     numbers  share  settings"));
        let kept = || {
            let dir = self.output.display();
            signals::will_say(format!("what is done lies in {dir}; the same command goes on from there"));
        };
        kept();
        while let Some(claim) = trials.claim(next)? {
            let number = claim.number();
            self.try_one(claim, &space, &model, &metric)?;
            kept();
            let all = trials.all()?;
            tell(line(&space, &all, number));
        }
        self.conclude(&space, &trials, &metric)
    }

    /// Refuses a directory that is neither new nor a search's, and to replace what is read.
    fn check_output(&self) -> Result<()> {
        let read = [Some(&self.space), Some(&self.data), self.eval.as_ref()];
        let inputs = self.model.inputs(&[]).with(read.into_iter().flatten());
        inputs.spare("--output", &self.output)?;
        for file in [BEST, FRONT] {
            inputs.spare("--output", &self.output.join(file))?;
        }
        inputs.spare_directory("--output", &self.output.join(TRIALS))?;
        // Another process may be making it.
        match check_new_directory(&self.output) {
            Err(_) if self.output.join(TRIALS).is_dir() => Ok(()),
            checked => checked,
        }
    }

    /// Refuses, before the first trial, a value that no trial could have.
    fn check(&self, space: &Space, shape: &Shape, metric: &str) -> Result<()> {
        let count = |point: &Point| numbers(&space.settings(point), shape);
        let mut first = 0;
        for (kind, choices) in space.choices().iter().enumerate() {
            let settings = space.settings(&Point { kind, places: vec![0; choices.len()] });
            if let Some(key) = OWN.into_iter().find(|key| settings.contains_key(*key)) {
                return Err(Error::file(&self.space, key, &settings[key], "an option of the search, not of its space"));
            }
            let near = |key: &str| LISTS.into_iter().find(|list| (1..3).contains(&damerau_levenshtein(key, list)));
            if let Some((key, list)) = settings.keys().find_map(|key| Some((key, near(key)?))) {
                let expected = format!("a setting that is known; the nearest is `{list}`");
                return Err(Error::file(&self.space, key, &settings[key], expected));
            }
            let points = choices.iter().product::<usize>();
            let some: Vec<Point> = (first..first + points.min(1000)).map(|number| space.point(number)).collect();
            // Beside what is possible, what is wrong with a value is its own fault.
            let possible = some.iter().find(|point| count(point).is_ok()).unwrap_or(&some[0]).clone();
            let with = |point: &Point, i: usize, value: usize| {
                let mut point = point.clone();
                point.places[i] = value;
                point
            };
            let values = choices.iter().enumerate().flat_map(|(i, count)| (0..*count).map(move |value| (i, value)));
            let each = values.map(|(i, value)| (with(&possible, i, value), Some((i, value))));
            for (point, place) in [(possible.clone(), None)].into_iter().chain(each) {
                let proposal = Proposal { point, effort: 1.0 };
                let (train, config) = self.training(space, &proposal, metric, &self.output)?;
                train.check_settings().map_err(|error| config.place(error))?;
                let beside =
                    |(i, value): (usize, usize)| some.iter().any(|point| count(&with(point, i, value)).is_ok());
                if let Err(error) = count(&proposal.point)
                    && !place.is_some_and(beside)
                {
                    return Err(error.in_file(&self.space));
                }
            }
            first += points;
        }
        Ok(())
    }

    /// A hash of the data's files.
    fn read(&self) -> Result<String> {
        let mut parts = vec![];
        for path in [Some(&self.data), self.eval.as_ref()].into_iter().flatten() {
            match path.is_dir() {
                // A task's directory goes by its name.
                true => parts.push(path.display().to_string().into_bytes()),
                false => parts.push(read_file(path, 1 << 30)?),
            }
        }
        Ok(digest(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }

    /// A file of settings for `peft train`.
    fn settings(&self, space: &Space, proposal: &Proposal, metric: &str) -> Map<String, Value> {
        let path = |path: &Path| json!(path.display().to_string());
        let mut all = Map::from_iter([
            ("model_name_or_path".to_string(), json!(self.model.model)),
            ("device".to_string(), json!(self.model.device)),
            ("compute".to_string(), json!(self.model.compute.to_string())),
            ("data".to_string(), path(&self.data)),
            ("seed".to_string(), json!(self.seed)),
            ("metric_for_best_model".to_string(), json!(metric)),
        ]);
        all.extend(self.model.base.map(|scheme| ("base".to_string(), json!(scheme.to_string()))));
        all.extend(self.eval.as_ref().map(|eval| ("validation_file".to_string(), path(eval))));
        all.extend(self.task.as_ref().map(|task| ("task_name".to_string(), json!(task))));
        all.extend(space.settings(&proposal.point));
        if proposal.effort < 1.0 {
            let steps = all.get("max_steps").and_then(Value::as_f64).filter(|steps| *steps > 0.0);
            match steps {
                Some(steps) => all.insert("max_steps".into(), json!((steps * proposal.effort).ceil() as usize)),
                None => {
                    let epochs = all.get("num_train_epochs").and_then(Value::as_f64).unwrap_or(3.0);
                    all.insert("num_train_epochs".into(), json!(epochs * proposal.effort))
                }
            };
        }
        all
    }

    /// `peft train` of a proposal, its settings in the words of the space's file.
    fn training(&self, space: &Space, proposal: &Proposal, metric: &str, output: &Path) -> Result<(Train, Config)> {
        let args = ["peft", "train", "--resume", "--output"].map(OsString::from).into_iter().chain([output.into()]);
        let settings = self.settings(space, proposal, metric);
        let (args, mut config) = yaml::expand_with(args.collect(), self.space.clone(), &settings)?;
        match config.parse(args)?.command {
            Command::Train(train) => Ok((*train, config)),
            _ => unreachable!("it is a training"),
        }
    }

    /// Trains what was proposed and keeps its score. A run that fails has none.
    fn try_one(&self, claim: Claim, space: &Space, model: &Pretrained, metric: &str) -> Result<()> {
        let (file, output) = (claim.path().with_extension("yaml"), claim.path());
        write_file(&file, written(&self.settings(space, claim.proposal(), metric)).as_bytes())?;
        if output.exists() {
            // Of a process that was killed before it could keep the score.
            fs::remove_dir_all(&output).map_err(Error::io("remove", &output))?;
        }
        let (train, config) = self.training(space, claim.proposal(), metric, &output)?;
        let run = || {
            train.check_outputs()?;
            train.outcome_on(model, None)
        };
        let (score, more) = match run().map_err(|error| config.place(error)) {
            Ok(outcome) => {
                let value = outcome["metrics"][metric].as_f64().ok_or_else(|| {
                    let known = outcome["metrics"].as_object().into_iter().flat_map(Map::keys).cloned();
                    Error::config("--metric", metric, known.collect::<Vec<_>>().join(", "))
                })?;
                (Some(if metric == "loss" { -value } else { value }), outcome)
            }
            Err(error @ (Error::Training { .. } | Error::Check { .. })) => (None, json!({"error": error.to_string()})),
            Err(error) => return Err(error),
        };
        claim.finish(score, more.as_object().cloned().unwrap_or_default())
    }

    /// Says and writes what is best, and the front.
    fn conclude(&self, space: &Space, trials: &Trials, metric: &str) -> Result<()> {
        let all = trials.all()?;
        let shown = |i: usize| {
            let Trial { proposal, score, numbers } = &all[i];
            let score = score.map(|score| if metric == "loss" { -score } else { score });
            json!({"trial": i, metric: score, "numbers": numbers, "settings": space.settings(&proposal.point)})
        };
        let running: Vec<usize> = (0..all.len()).filter(|i| trials.runs(*i)).collect();
        let whole = (0..all.len()).filter(|i| all[*i].proposal.effort == 1.0 && all[*i].score.is_some());
        // Of equal ones that with the fewest numbers.
        let best = whole.max_by(|a, b| {
            let (a, b) = (&all[*a], &all[*b]);
            a.score.partial_cmp(&b.score).unwrap_or(std::cmp::Ordering::Equal).then(b.numbers.cmp(&a.numbers))
        });
        let Some(best) = best else {
            let found = format!("{} trials, of which none has a score", all.len());
            return Err(Error::config("--budget", found, "one that is trained to its end"));
        };
        let file = self.output.join(BEST);
        write_file(&file, written(&self.settings(space, &all[best].proposal, metric)).as_bytes())?;
        let front: Vec<Value> = Strategic::front(&all).into_iter().map(shown).collect();
        tell("on the front:");
        Strategic::front(&all).into_iter().for_each(|i| tell(line(space, &all, i)));
        let result = json!({
            "output": self.output.display().to_string(), "config": file.display().to_string(), "best": shown(best),
            "front": front, "hypervolume": Strategic::hypervolume(&all), "trials": all.len(), "running": running,
        });
        write_file(&self.output.join(FRONT), result.to_string().as_bytes())?;
        print(result)
    }
}

/// How many numbers the method of some settings trains.
fn numbers(settings: &Map<String, Value>, shape: &Shape) -> Result<usize> {
    let name = settings.get("method").and_then(Value::as_str);
    let name =
        name.ok_or_else(|| Error::config("method", settings.get("method").unwrap_or(&Value::Null), "a method"))?;
    let method = by_name(name)?;
    let known = method.settings();
    let own =
        settings.iter().filter(|(key, _)| known.contains_key(*key)).map(|(key, value)| (key.clone(), value.clone()));
    let method = method.with_settings(own.collect());
    let method = method.map_err(|(key, found)| Error::config(key, found, "a value of the setting"))?;
    let common = settings.iter().filter(|(key, _)| Common::KEYS.contains(&key.as_str()));
    let common: Map<String, Value> = common.map(|(key, value)| (key.clone(), value.clone())).collect();
    let common: Common = serde_json::from_value(Value::Object(common.clone()))
        .map_err(|error| Error::config(Common::KEYS.join(", "), json!(common), error.to_string()))?;
    method.narrowed(&common, shape)?.checked_count(shape)
}

/// Settings as YAML.
fn written(settings: &Map<String, Value>) -> String {
    settings.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
}

/// A line of the table: what is on the front has a star.
fn line(space: &Space, all: &[Trial], number: usize) -> String {
    let Trial { proposal, score, numbers } = &all[number];
    let star = if Strategic::front(all).contains(&number) { "*" } else { " " };
    let score = score.map_or_else(|| "failed".to_string(), |score| format!("{:.4}", score.abs()));
    let settings = space.settings(&proposal.point);
    let settings: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{star} {number:5}  {score:>10}  {numbers:10}  {:5.2}  {}", proposal.effort, settings.join(" "))
}
