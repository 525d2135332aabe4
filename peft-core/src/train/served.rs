//! Many adapters over one base, each for examples of its own.

use std::collections::BTreeMap;

use burn::module::Module;

use super::micro::Workers;
use super::predict::{Logits, logits};
use crate::{AnyTuner, Base, Error, Example, Result, Trained};

/// Finished adapters by name, of any methods and with any heads, that answer together: each example is run by its own, all of them share
/// threads and, as clones of one base share their tensors, one base in memory. What a method computes of its tensors alone is computed
/// when it comes in.
///
/// ```no_run
/// # use peft_core::{Example, Method, Result, io::Pretrained};
/// # use peft_core::train::{Served, Tuned, Workers};
/// # fn serve<A: Method, B: Method>(requests: impl Iterator<Item = Vec<(String, Example)>>) -> Result<()> {
/// let model = Pretrained::open("roberta-base", &peft_core::device("flex")?)?;
/// let mut served = Served::default();
/// let films = Tuned::load::<A>("out/films".as_ref(), &model)?;
/// served.insert("films", &films.base, &films.trained)?;
/// let topics = Tuned::load::<B>("out/topics".as_ref(), &model)?;
/// served.insert("topics", &topics.base, &topics.trained)?;
/// let workers = Workers::new(2)?;
/// for examples in requests {
///     let rows: Vec<(&str, &Example)> = examples.iter().map(|(name, example)| (name.as_str(), example)).collect();
///     for logits in served.predict(&rows, &workers)? {
///         println!("{:?}", logits.values);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Served {
    adapters: BTreeMap<String, (Base, Trained<AnyTuner>)>,
}

impl Served {
    /// Adds an adapter on its base; one of this name makes room for it.
    pub fn insert(&mut self, name: &str, base: &Base, trained: &Trained<AnyTuner>) -> Result<()> {
        let trained = trained.valid();
        let trained = trained.view(base, None)?.unwrap_or(trained);
        self.adapters.insert(name.to_string(), (base.clone(), trained));
        Ok(())
    }

    /// Takes an adapter away; whether there was one of this name.
    pub fn remove(&mut self, name: &str) -> bool {
        self.adapters.remove(name).is_some()
    }

    /// The logits of each example, in order, by the adapter of this name: the bits that [`predict`](super::predict) gives with that
    /// adapter alone. A name that is not there is an error before anything is run.
    pub fn predict(&self, rows: &[(&str, &Example)], workers: &Workers) -> Result<Vec<Logits>> {
        let of = |(name, example): &(&str, &Example)| {
            let (base, trained) = self.adapters.get(*name).ok_or_else(|| {
                let names: Vec<&str> = self.adapters.keys().map(String::as_str).collect();
                Error::config("adapter", name, format!("one of {}", names.join(", ")))
            })?;
            trained.check_tasks(&[example.task])?;
            Ok((base, trained))
        };
        let adapters = rows.iter().map(of).collect::<Result<Vec<_>>>()?;
        let one = |i: usize| logits(adapters[i].0, adapters[i].1, rows[i].1, i);
        let mut all = Vec::with_capacity(rows.len());
        workers.run(rows.len(), one, |logits| all.push(logits))?;
        Ok(all)
    }
}
