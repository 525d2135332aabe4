//! `peft train` with several configurations: runs at once, over one model in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use peft_core::Result;
use peft_core::train::{Slots, at_once};

use super::options::tell;
use super::train::Train;
use super::yaml::Config;
use crate::machine;

/// Trains all of them, each with its own data, head, optimizer, schedule and result, with as many threads as the one that asks for the
/// most. Each ends with the bits that it has alone. One that fails leaves the others alone, and is told when they are done.
pub fn run(runs: Vec<(Train, Config)>) -> Result<()> {
    for (i, (train, config)) in runs.iter().enumerate() {
        for (other, _) in runs[..i].iter().chain(&runs[i + 1..]) {
            train.check_beside(other).map_err(|error| config.place(error))?;
        }
    }
    let (mut models, mut threads) = (BTreeMap::new(), 1);
    for (train, config) in &runs {
        train.check_outputs().map_err(|error| config.place(error))?;
        if let Entry::Vacant(model) = models.entry(train.place()) {
            model.insert(train.open().map_err(|error| config.place(error))?);
        }
        threads = threads.max(train.threads().unwrap_or_else(machine::threads));
    }
    let (slots, models) = (Arc::new(Slots::new(threads)?), &models);
    let one = |(train, config): &(Train, Config)| {
        train.run_on(&models[&train.place()], Some(&slots)).map_err(|error| config.place(error))
    };
    let one = &one;
    let results = at_once(runs.iter().map(|run| move || one(run)).collect());
    let mut errors = results.into_iter().filter_map(Result::err);
    let Some(first) = errors.next() else { return Ok(()) };
    errors.for_each(tell);
    Err(first)
}
