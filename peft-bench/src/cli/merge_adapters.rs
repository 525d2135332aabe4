//! `peft merge-adapters`

use std::path::{Path, PathBuf};

use burn::module::Module;
use clap::{Args, ValueEnum};
use peft_core::combine::{self, Combination, Majority, Prune};
use peft_core::data::Labelled;
use peft_core::files::{Inputs, read_json};
use peft_core::io::Pretrained;
use peft_core::io::peft::{self, Labels};
use peft_core::train::{Tuned, Workers, farthest, predict};
use peft_core::view::weighted_sum;
use peft_core::{AnyMethod, AnyTuner, Bare, Compute, Error, Example, Method, Result, Source, Trained};
use peft_reparam::LoraConfig;
use peft_reparam::low_rank::arithmetic::{self, Form};
use serde_json::Value;

use super::merge::random_probe;
use super::options::{ModelArgs, OutputArgs, print};
use crate::machine::threads;
use crate::registry::load;

/// Make one adapter of several of the same kind, sites and model
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft merge-adapters --method mean out/a out/b out/c --output out/mean\n  \
    peft merge-adapters --method ties --weights 1,0.7 --density 0.3 out/a out/b --output out/ties --head out/a\n  \
    peft merge-adapters --method linear --weights=-1 out/toxic --output out/negated\n\n\
    mean: of the tensors of any adapters. linear, ties, dare_linear, dare_ties, magnitude_prune: of any adapters the sum of what a run\n\
    changed, each with its weight, after pruning to the density and (ties) without what has not the sign of most; of LoRAs factor by\n\
    factor as PEFT's add_weighted_adapter. cat (LoRAs beside each other, of any ranks), svd and what ends in svd (their products, cut to a\n\
    rank): LoRAs alone. The products are what LoRAs compute by, and a mean of factors is no mean of products: how far the logits are\n\
    from those with the same arithmetic on the changes of the model's matrices is told of every kind that can be merged into them.")]
pub struct MergeAdapters {
    /// The directory of the adapters' model [default: the one that the first of them names]
    #[arg(long)]
    model: Option<String>,
    /// Where to compute: flex, cpu, wgpu, cuda:0, tch, as far as they are compiled in
    #[arg(long, default_value_t = peft_core::available().first().copied().unwrap_or("none").to_string())]
    device: String,
    /// How
    #[arg(long, value_name = "METHOD")]
    method: How,
    /// A weight for each adapter, commas between them; those of a mean are divided by their sum [default: 1 each]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', allow_hyphen_values = true)]
    weights: Vec<f64>,
    /// What is left of each tensor by ties, dare and magnitude_prune, from above 0 to 1
    #[arg(long)]
    density: Option<f64>,
    /// By what ties elects a sign: the sum of the numbers, or how many have it
    #[arg(long, value_name = "BY", default_value = "total")]
    majority_sign_method: Sign,
    /// The rank of svd's result [default: the largest of the adapters]
    #[arg(long)]
    svd_rank: Option<usize>,
    /// Decides which numbers dare leaves
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Whose head the result has, where the adapters' differ: one of the directories, or mean
    #[arg(long, value_name = "DIR")]
    head: Option<PathBuf>,
    /// Examples (JSONL with input_ids) on which logits are compared; without a file, 16 random sequences
    #[arg(long)]
    probe: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    /// The adapters' directories
    #[arg(required = true, value_name = "DIR")]
    adapters: Vec<PathBuf>,
}

/// PEFT's combination types, and the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum How {
    Mean,
    Linear,
    Ties,
    DareLinear,
    DareTies,
    MagnitudePrune,
    Cat,
    Svd,
    TiesSvd,
    DareLinearSvd,
    DareTiesSvd,
    MagnitudePruneSvd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sign {
    Total,
    Frequency,
}

impl How {
    fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_string())
    }

    /// What of it LoRAs alone can have.
    fn of_products(self) -> bool {
        self == How::Cat || self.name().ends_with("svd")
    }
}

impl MergeAdapters {
    pub(super) fn run(self) -> Result<()> {
        let how = self.combination()?;
        let (first, adapters) = (&self.adapters[0], &self.adapters);
        let model = match &self.model {
            Some(model) => model.clone(),
            None => named_model(first)?,
        };
        let inputs = Inputs::new().with_models(adapters.iter().map(PathBuf::as_path).chain([Path::new(&model)]));
        self.output.check(&inputs.with(&self.probe))?;
        let weights = self.weights()?;
        let model = ModelArgs { model, device: self.device.clone(), base: None, compute: Compute::F32 }.open()?;
        check_same_base(adapters, &model)?;
        let tuned = adapters.iter().map(|dir| load(std::slice::from_ref(dir), &model)).collect::<Result<Vec<_>>>()?;
        let (sources, head) = self.with_one_head(&tuned)?;
        let classes = &tuned[head.unwrap_or(0)].labels.classes;
        let other = tuned.iter().position(|other| other.labels.classes != *classes);
        if let (None, Some(i)) = (head, other) {
            let expected = format!("{}, as in {}", classes.join(", "), first.display());
            let found = tuned[i].labels.classes.join(", ");
            return Err(Error::config(format!("{}: classes", adapters[i].display()), found, expected));
        }
        let labels = Labels::of(&model.name, &model.base, classes.clone());
        let base = &tuned[0].base;
        let lora = sources.iter().all(|source| source.config.downcast_ref::<LoraConfig>().is_some());
        let (config, tuner): (AnyMethod, AnyTuner) = match self.form() {
            Some(form) if lora => {
                let (config, lora) = arithmetic::combined(&sources, &weights, &how, form, base)?;
                (config.into(), AnyTuner::new(lora))
            }
            Some(_) if self.method.of_products() => {
                let name = sources.iter().map(|source| source.config.name()).find(|name| *name != LoraConfig::NAME);
                let expected =
                    "mean, linear, ties, dare_linear, dare_ties or magnitude_prune, for adapters other than LoRA";
                return Err(Error::config(
                    "--method",
                    format!("{} of {}", self.method.name(), name.unwrap_or("")),
                    expected,
                ));
            }
            _ => (sources[0].config.clone(), combine::combined(&sources, &weights, &how, base)?),
        };
        let trained =
            Trained::new(tuner, sources[0].trained.head.clone())?.with_copies(sources[0].trained.copies.clone())?;
        let examples = self.examples(&tuned[0])?;
        let told = match difference(&tuned, (&config, &trained), &weights, &how, &examples)? {
            Some(difference) => {
                format!("largest logit difference to the same of the changed matrices {difference:e}")
            }
            None => {
                format!("{} has no weight-space form: there are no changes of matrices to compare with", config.name())
            }
        };
        self.output.make(|dir| peft::save(dir, &config, &trained, base.shape(), &labels, &[]))?;
        print(format_args!("{}: {} of {}; {told}", self.output.output.display(), self.method.name(), tuned.len()))
    }
}

/// The model that an adapter names.
fn named_model(adapter: &Path) -> Result<String> {
    let name = base_name(adapter)?;
    match Path::new(&name).exists() || name.starts_with("shape:") {
        true => Ok(name),
        false => {
            let expected = format!("--model with the model of the adapters: {} names {name:?}", adapter.display());
            Err(Error::config("--model", "nothing", expected))
        }
    }
}

fn base_name(adapter: &Path) -> Result<String> {
    // What is no adapter of PEFT's is told so.
    peft::peft_type(adapter)?;
    let config = read_json(&adapter.join("adapter_config.json"))?;
    let told = config.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default();
    let Labels { base, .. } = peft::labels(adapter)?;
    Ok(if base.is_empty() { told.to_string() } else { base })
}

/// Refuses adapters of another model: by the fingerprint of its tensors, and, where there is none, by the name of the first's.
fn check_same_base(adapters: &[PathBuf], model: &Pretrained) -> Result<()> {
    let now = format!("{:016x}", model.base.weights_fingerprint());
    for dir in adapters {
        match peft::labels(dir)?.fingerprint {
            Some(then) if then != now => {
                let expected = format!("{now}, of the model {}", model.name);
                return Err(Error::file(dir.join("labels.json"), "fingerprint", then, expected));
            }
            Some(_) => {}
            None => {
                let [name, first] = [base_name(dir)?, base_name(&adapters[0])?];
                if !name.is_empty() && !first.is_empty() && name != first {
                    let expected = format!("{first}, as in {}", adapters[0].display());
                    return Err(Error::file(
                        dir.join("adapter_config.json"),
                        "base_model_name_or_path",
                        name,
                        expected,
                    ));
                }
            }
        }
    }
    Ok(())
}

impl MergeAdapters {
    /// What is done to numbers.
    fn combination(&self) -> Result<Combination> {
        let (name, density) = (self.method.name(), self.density.unwrap_or(1.0));
        let (magnitude, random) = (name.starts_with("magnitude") || name.starts_with("ties"), name.starts_with("dare"));
        let ties = name.contains("ties");
        let prunes = magnitude || random;
        if prunes != self.density.is_some() {
            let expected = match prunes {
                true => "a number above 0, at most 1: what is left of each tensor",
                false => "ties, dare_linear, dare_ties or magnitude_prune, or these of svd: no other prunes",
            };
            let found = self.density.map_or("nothing".to_string(), |density| format!("{density} with {name}"));
            return Err(Error::config("--density", found, expected));
        }
        if self.svd_rank.is_some() && !name.ends_with("svd") {
            return Err(Error::config("--svd-rank", format!("a rank with {name}"), "a method that ends in svd"));
        }
        let majority = match self.majority_sign_method {
            Sign::Total => Majority::Total,
            Sign::Frequency => Majority::Frequency,
        };
        let prune = if random { Prune::Random(density, self.seed) } else { Prune::Magnitude(density) };
        let how = Combination { prune: prunes.then_some(prune), elect: ties.then_some(majority) };
        how.check()?;
        Ok(how)
    }

    /// What of LoRAs it acts on; nothing in particular, of a mean.
    fn form(&self) -> Option<Form> {
        match self.method {
            How::Mean => None,
            How::Cat => Some(Form::Concatenated),
            method if method.of_products() => Some(Form::Products(self.svd_rank)),
            _ => Some(Form::Factors),
        }
    }

    fn weights(&self) -> Result<Vec<f64>> {
        let given = if self.weights.is_empty() { vec![1.0; self.adapters.len()] } else { self.weights.clone() };
        combine::check_weights(&given, self.adapters.len())?;
        if self.method != How::Mean {
            return Ok(given);
        }
        let sum: f64 = given.iter().sum();
        match sum.abs() > 1e-9 {
            true => Ok(given.into_iter().map(|weight| weight / sum).collect()),
            false => Err(Error::config("--weights", sum, "weights with a sum other than 0, for a mean")),
        }
    }

    /// The adapters, with one head where one is chosen, and the number of the adapter whose head that is.
    fn with_one_head(&self, tuned: &[Tuned<'_>]) -> Result<(Vec<Source>, Option<usize>)> {
        let own = |(dir, one): (&PathBuf, &Tuned<'_>)| Source {
            name: dir.display().to_string(),
            config: one.config.clone(),
            trained: one.trained.clone(),
        };
        let mut sources: Vec<Source> = self.adapters.iter().zip(tuned).map(own).collect();
        let Some(chosen) = &self.head else { return Ok((sources, None)) };
        let place = self.adapters.iter().position(|dir| dir == chosen);
        let head = match place {
            Some(i) => sources[i].trained.head.clone(),
            None if chosen.as_os_str() == "mean" => {
                let heads: Vec<_> = sources.iter().map(|source| source.trained.head.clone()).collect();
                weighted_sum(&heads, &vec![1.0 / heads.len() as f64; heads.len()]).map_err(|error| {
                    Error::config("--head", "mean", format!("heads with tensors of the same shapes ({error})"))
                })?
            }
            None => {
                let expected = "mean, or one of the adapters' directories";
                return Err(Error::config("--head", chosen.display(), expected));
            }
        };
        sources.iter_mut().for_each(|source| source.trained.head = head.clone());
        Ok((sources, place))
    }

    fn examples(&self, first: &Tuned<'_>) -> Result<Vec<Example>> {
        let shape = first.base.shape();
        let room = first.config.room(shape);
        match &self.probe {
            Some(path) => Labelled::open(path)?.without_label().read()?.examples(shape, room),
            None => Ok(random_probe(shape.vocab, room.min(32))),
        }
    }
}

/// How far the logits of the result are from those of the model with the same arithmetic on what the adapters change in its tensors;
/// nothing, where an adapter cannot be folded into them.
fn difference(
    tuned: &[Tuned<'_>],
    (config, trained): (&AnyMethod, &Trained<AnyTuner>),
    weights: &[f64],
    how: &Combination,
    examples: &[Example],
) -> Result<Option<f32>> {
    let base = trained.copies.valid().onto(&tuned[0].base);
    let merged: Option<Vec<_>> =
        tuned.iter().map(|one| one.config.merged(&one.trained.tuner.clone().valid(), &base)).collect();
    let Some(merged) = merged.filter(|_| config.merged(&trained.tuner.clone().valid(), &base).is_some()) else {
        return Ok(None);
    };
    let workers = Workers::new(threads())?;
    let changed = combine::changed(&base, &merged, weights, how);
    let bare = Trained::new(Bare {}, trained.head.clone())?;
    let found = predict(&tuned[0].base, trained, examples, &workers)?;
    Ok(Some(farthest(&found, &predict(&changed, &bare, examples, &workers)?)))
}
