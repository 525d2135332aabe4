//! Finished adapters of one kind as one: averages, task arithmetic (Ilharco et al., 2023, arXiv:2212.04089), TIES (Yadav et al., 2023,
//! arXiv:2306.01708), DARE (Yu et al., 2024, arXiv:2311.03099) and magnitude pruning, as in `peft.utils.merge_utils`.
//!
//! What is added up is what a run has changed: of a tensor whose start does not depend on the seed (a trained bias of the model, a
//! vector of ones) the difference from that start, of all others the tensor.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::random::Random;
use crate::view::{self, shapes, sum_of, tensors};
use crate::{AnyMethod, AnyTuner, Base, Error, Head, Merge, Result, Shape, Site, Sites, Slot, Source, Weight};

/// How numbers of several adapters become one: pruned, their signs elected, weighted, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Combination {
    /// What is left of each adapter; everything, if absent.
    pub prune: Option<Prune>,
    /// Which sign counts; both, if absent. With one, a sum is divided by how many have it.
    pub elect: Option<Majority>,
}

/// Which numbers of a tensor are left, the others 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prune {
    /// This fraction of the numbers, the largest by size.
    Magnitude(f64),
    /// Each with this probability, divided by it; which, follows from the seed.
    Random(f64, u64),
}

/// By what the sign of a number is elected; of 0 it is positive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Majority {
    /// By the sum of the adapters' numbers.
    #[default]
    Total,
    /// By how many have it.
    Frequency,
}

impl Combination {
    /// The weighted sum, and nothing else.
    pub fn linear() -> Self {
        Combination::default()
    }

    /// Refuses a density that leaves nothing, or more than there is.
    pub fn check(&self) -> Result<()> {
        match self.prune {
            Some(Prune::Magnitude(density) | Prune::Random(density, _)) if !(density > 0.0 && density <= 1.0) => {
                Err(Error::config("density", density, "a number above 0, at most 1"))
            }
            _ => Ok(()),
        }
    }

    /// One list of numbers of as many as there are weights. Random masks are those of `name`.
    pub fn of(&self, name: &str, mut values: Vec<Vec<f64>>, weights: &[f64]) -> Vec<f64> {
        match self.prune {
            None => {}
            Some(Prune::Magnitude(density)) => values.iter_mut().for_each(|values| keep_largest(values, density)),
            Some(Prune::Random(density, seed)) => {
                for (i, values) in values.iter_mut().enumerate() {
                    let mut random = Random::new(seed, &format!("dare.{i}.{name}"));
                    values.iter_mut().for_each(|x| *x = if random.unit() < density { *x / density } else { 0.0 });
                }
            }
        }
        let Some(majority) = self.elect else { return sum_of(&values, weights) };
        let elected = |at: usize| {
            let vote = |values: &Vec<f64>| match majority {
                Majority::Total => values[at],
                Majority::Frequency if values[at] == 0.0 => 0.0,
                Majority::Frequency => values[at].signum(),
            };
            let sign = if values.iter().map(vote).sum::<f64>() >= 0.0 { 1.0 } else { -1.0 };
            let having = || values.iter().zip(weights).filter(|(values, _)| values[at] * sign > 0.0);
            having().map(|(values, weight)| weight * values[at]).sum::<f64>() / (having().count().max(1) as f64)
        };
        (0..values.first().map_or(0, Vec::len)).map(elected).collect()
    }

    /// Whether it is a mean, in which starts that all share cancel.
    fn is_mean(&self, weights: &[f64]) -> bool {
        *self == Combination::linear() && (weights.iter().sum::<f64>() - 1.0).abs() < 1e-9
    }
}

/// Leaves so much of the numbers, of equal ones the first.
fn keep_largest(values: &mut [f64], density: f64) {
    if density >= 1.0 {
        return;
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
    for at in &order[(density * values.len() as f64) as usize..] {
        values[*at] = 0.0;
    }
}

/// Weights that fit so many adapters.
pub fn check_weights(weights: &[f64], adapters: usize) -> Result<()> {
    if let Some(wrong) = weights.iter().find(|weight| !weight.is_finite()) {
        return Err(Error::config("weights", wrong, "finite numbers"));
    }
    match weights.len() == adapters && adapters > 0 {
        true => Ok(()),
        false => Err(Error::config("weights", weights.len(), format!("one for each adapter, {adapters}"))),
    }
}

/// Settings that say nothing of what a finished adapter computes.
const FREE: [&str; 5] = ["dropout", "lora_dropout", "init", "init_std", "a_seed"];

/// Refuses sources of different kinds, settings (but for those that are `free`), sites, heads or copies of the base's tensors, by the
/// name of the first that differs from the first of all.
pub fn check_alike(sources: &[Source], shape: &Shape, free: &[&str]) -> Result<()> {
    let Some((first, others)) = sources.split_first() else {
        return Err(Error::config("sources", "none", "at least one adapter"));
    };
    let settings = first.config.settings();
    for other in others {
        let wrong = |key: &str, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
            Error::config(format!("{}: {key}", other.name), found, format!("{expected}, as in {}", first.name))
        };
        if other.config.name() != first.config.name() {
            return Err(wrong("method", &other.config.name(), &first.config.name()));
        }
        let theirs = other.config.settings();
        let keys: BTreeSet<&String> = settings.keys().chain(theirs.keys()).collect();
        for key in keys.into_iter().filter(|key| !FREE.contains(&key.as_str()) && !free.contains(&key.as_str())) {
            let [ours, theirs] = [&settings, &theirs].map(|settings| settings.get(key).cloned().unwrap_or_default());
            if ours != theirs && !same_sites(key, [&ours, &theirs], &first.config, shape) {
                return Err(wrong(key, &theirs, &ours));
            }
        }
        check_head(other, first)?;
        if tensors(&other.trained.copies) != tensors(&first.trained.copies) {
            let [theirs, ours] = [(other, "its own"), (first, "the same")].map(|(source, whose)| {
                match source.trained.copies.modules() {
                    [] => "none".to_string(),
                    modules => format!("{} with {whose} numbers", modules.join(", ")),
                }
            });
            return Err(wrong("modules_to_save", &theirs, &ours));
        }
    }
    Ok(())
}

/// Refuses a head that is not the first's, number by number: no arithmetic of adapters says what becomes of two.
fn check_head(other: &Source, first: &Source) -> Result<()> {
    let [found, expected] = [other, first].map(|source| &source.trained.head);
    let wrong = |found: String, expected: String| {
        let expected = format!("{expected}, as in {} (or the choice of one of the heads)", first.name);
        Err(Error::config(format!("{}: head", other.name), found, expected))
    };
    let kind = |head: &Head| format!("{:?}", head.purpose());
    if kind(found) != kind(expected) || shapes(found) != shapes(expected) {
        let told = |head: &Head| format!("{} with {:?}", kind(head), shapes(head));
        return wrong(told(found), told(expected));
    }
    let (theirs, ours) = (tensors(found), tensors(expected));
    match theirs.iter().find(|(name, data)| ours[*name] != **data) {
        Some((name, _)) => wrong(format!("other numbers in {name}"), "the same numbers".into()),
        None => Ok(()),
    }
}

/// Whether two settings are choices of the same modules.
fn same_sites(key: &str, both: [&Value; 2], method: &AnyMethod, shape: &Shape) -> bool {
    let modules = method.modules(shape);
    let sites = |value: &Value| serde_json::from_value::<Sites>(value.clone()).ok()?.among(&modules).ok();
    let [ours, theirs] = both.map(sites);
    matches!(key, "target_modules" | "feedforward_modules") && ours.is_some() && ours == theirs
}

/// Finished adapters of any one kind as one, tensor by tensor; what goes along untrained must be the same in all. The sources are
/// named in errors: one of another kind, with other settings or sites, tensors of other shapes, another head.
pub fn combined(sources: &[Source], weights: &[f64], how: &Combination, base: &Base) -> Result<AnyTuner> {
    how.check()?;
    check_weights(weights, sources.len())?;
    check_alike(sources, base.shape(), &[])?;
    let (first, tuners): (_, Vec<AnyTuner>) =
        (&sources[0], sources.iter().map(|source| source.trained.tuner.clone()).collect());
    let (form, kept) = (shapes(&tuners[0]), untrained(first));
    for source in &sources[1..] {
        let named = |name: &str| format!("{}: tensor {name}", source.name);
        let theirs = shapes(&source.trained.tuner);
        if let Some((ours, other)) = form.iter().zip(&theirs).find(|(ours, other)| ours != other) {
            let expected = format!("{} {:?}, as in {}", ours.0, ours.1, first.name);
            return Err(Error::config(named(&other.0), format!("{:?}", other.1), expected));
        }
        if form.len() != theirs.len() {
            let expected = format!("{} tensors, as in {}", form.len(), first.name);
            return Err(Error::config(&source.name, format!("{} tensors", theirs.len()), expected));
        }
        let theirs = tensors(&source.trained.tuner);
        if let Some((name, _)) = kept.iter().find(|(name, data)| theirs[*name] != **data) {
            let expected = format!("those of {}: it goes along untrained, and has no mean", first.name);
            return Err(Error::config(named(name), "other numbers", expected));
        }
    }
    let starts = if how.is_mean(weights) { BTreeMap::new() } else { starts(&first.config, base)? };
    view::combined(&tuners, |name, mut values| {
        if kept.contains_key(name) {
            return values.swap_remove(0);
        }
        let Some(start) = starts.get(name) else { return how.of(name, values, weights) };
        values.iter_mut().for_each(|values| values.iter_mut().zip(start).for_each(|(x, start)| *x -= start));
        how.of(name, values, weights).iter().zip(start).map(|(x, start)| x + start).collect()
    })
}

/// The tensors that are masks, indices, or not trained.
fn untrained(source: &Source) -> BTreeMap<String, TensorData> {
    let trained = view::trained(&source.trained.tuner);
    let goes_along = |name: &String| !trained.contains_key(name) || source.config.is_mask(name);
    tensors(&source.trained.tuner).into_iter().filter(|(name, _)| goes_along(name)).collect()
}

/// Where the tensors start whose start is the same for every seed.
fn starts(config: &AnyMethod, base: &Base) -> Result<BTreeMap<String, Vec<f64>>> {
    let start = |seed| config.init(base, seed).map(|tuner| tensors(&tuner));
    let (one, other) = (start(0)?, start(1)?);
    let same = |(name, data): &(String, TensorData)| other.get(name) == Some(data);
    Ok(one.into_iter().filter(same).map(|(name, data)| (name, data.iter().collect())).collect())
}

/// The base with the combination of what several adapters, each folded into a base of its own, change in its tensors: what arithmetic
/// on the adapters' own tensors is worth is how near it comes to this.
pub fn changed(base: &Base, merged: &[Base], weights: &[f64], how: &Combination) -> Base {
    base.merged(&Changes { base, merged, weights, how })
}

struct Changes<'a> {
    base: &'a Base,
    merged: &'a [Base],
    weights: &'a [f64],
    how: &'a Combination,
}

impl Changes<'_> {
    /// What a tensor becomes; `None` where no adapter changes it.
    fn of<const D: usize>(&self, name: &str, old: Tensor<D>, new: Vec<Tensor<D>>) -> Option<Tensor<D>> {
        let numbers = |tensor: &Tensor<D>| tensor.to_data().iter::<f64>().collect::<Vec<f64>>();
        let start = numbers(&old);
        let mut values: Vec<Vec<f64>> = new.iter().map(numbers).collect();
        if values.iter().all(|values| *values == start) {
            return None;
        }
        values.iter_mut().for_each(|values| values.iter_mut().zip(&start).for_each(|(x, start)| *x -= start));
        let sum = self.how.of(name, values, self.weights).into_iter().zip(start);
        let sum: Vec<f32> = sum.map(|(x, start)| (x + start) as f32).collect();
        Some(Tensor::from_data(TensorData::new(sum, old.dims()), &old.device()))
    }
}

impl Merge for Changes<'_> {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let new = self.merged.iter().map(|base| base.weight(site).dense());
        self.of(&site.to_string(), w.dense(), new.collect())
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        let new = self.merged.iter().map(|base| base.vector(site, slot));
        self.of(&crate::slot_name(site, slot), v.clone(), new.collect())
    }

    fn unties(&self) -> bool {
        let tensors = self.base.tensors().count();
        self.merged.iter().any(|merged| merged.tensors().count() != tensors)
    }
}
