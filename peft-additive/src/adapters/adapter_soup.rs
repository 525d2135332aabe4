//! # AdapterSoup                            family: additive / adapter-based
//! phi = (1/k) sum_{i in S} phi_i           phi_i: the tensors of N finished adapters; S: all of them, the k whose domains are the nearest, or those that a greedy search takes
//! nearest: cos(n, i) = mean of e_x . e_y over texts x of the new domain and y of domain i       e: the mean of a text's states behind the last layer of the frozen model (an encoder's, if there is one), of length 1
//! greedy: in the order of their losses alone, each one with which the loss of the mean does not rise
//! Paper: Chronopoulou et al., 2023, arXiv:2302.07027, sections 2 and 3; the greedy one is Wortsman et al., 2022, arXiv:2203.05482, recipe 1.   Reference: adapter-hub `average_adapter`
//! Oracle: package adapters 1.3.0: `equals_adapterhubs_average`
//! Trains: nothing, or with `train` the soup; it has 2 d m + m + d per sub-layer, as each adapter.      Merges: no, unless act = identity.
//! Identities:
//! - of one adapter, or of copies of one, it is that adapter, bit for bit: `a_soup_of_copies_is_the_copy`
//! - it is the mean of the tensors in any order, not of what the adapters give: `a_soup_is_the_mean_of_its_tensors`
//! - the nearest are those with the largest mean cosine, and k = N takes all: `the_nearest_domains_are_taken`
//! - a greedy soup is no worse than the best adapter alone: `a_greedy_soup_takes_what_helps`
//! - a run without `train` leaves it as it is chosen: `a_run_keeps_the_soup`
//!
//! Differs from the paper: texts are embedded by the model itself, in the paper by Sentence-BERT for the nearest, and the choice by clusters of a Gaussian mixture is not offered. Which domain a text is of is said by its task: i of adapter i, N of the new one, whose texts alone are trained on. The greedy search reads its losses on the examples of the run. The adapters are finished ones of any placement.

use std::collections::BTreeMap;

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::view::{Visit, tensors, visit, weighted_sum, with_values};
use peft_core::{
    Adapter, Base, Batch, Error, Example, Hooks, Key, Merge, Method, Procedure, Readout, Result, Shape, Source, Tuner,
    train::Probe,
};
use serde::{Deserialize, Serialize};

use super::sequential::{Sequential, SequentialConfig, alike};
use crate::others::tap::tapped;

/// Which adapters make the soup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SoupChoice {
    /// All.
    #[default]
    Uniform,
    /// Those of the nearest domains.
    Nearest,
    /// Those that lower the loss.
    Greedy,
}

/// The configuration of AdapterSoup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterSoupConfig {
    /// The settings of all adapters, which follow from these.
    pub adapter: SequentialConfig,
    /// Which make the soup.
    pub choice: SoupChoice,
    /// How many, of the nearest.
    pub top_k: usize,
    /// The most texts of each domain that are embedded.
    pub samples: usize,
    /// Whether the soup is trained on.
    pub train: bool,
}

impl Default for AdapterSoupConfig {
    /// The mean of all of the paper's adapters.
    fn default() -> Self {
        let adapter = SequentialConfig::pfeiffer(64);
        AdapterSoupConfig { adapter, choice: SoupChoice::Uniform, top_k: 5, samples: 100, train: false }
    }
}

impl AdapterSoupConfig {
    /// Of the adapters of the k nearest domains.
    pub fn nearest(top_k: usize) -> Self {
        AdapterSoupConfig { choice: SoupChoice::Nearest, top_k, ..Default::default() }
    }

    /// Of the adapters that lower the loss.
    pub fn greedy() -> Self {
        AdapterSoupConfig { choice: SoupChoice::Greedy, ..Default::default() }
    }

    /// With the soup trained on.
    pub fn with_training(self) -> Self {
        AdapterSoupConfig { train: true, ..self }
    }
}

/// Adapters that are one.
#[derive(Module, Debug)]
pub struct AdapterSoup {
    soup: Sequential,
    /// What it is to be chosen from, before the first step.
    adapters: Vec<Sequential>,
    /// How many domains the texts of the run are of beside the new one, if that is said.
    #[module(skip)]
    domains: Option<usize>,
    #[module(skip)]
    config: AdapterSoupConfig,
}

impl AdapterSoup {
    /// The adapter that the soup is.
    pub fn adapter(&self) -> &Sequential {
        &self.soup
    }

    /// The mean of these.
    fn mean(&self, chosen: &[usize]) -> Result<Sequential> {
        let chosen: Vec<Sequential> = chosen.iter().map(|i| self.adapters[*i].clone()).collect();
        let mean = weighted_sum(&chosen, &vec![1.0 / chosen.len() as f64; chosen.len()])?;
        // In the soup's tensors, which may be trained.
        with_values(self.soup.clone(), &tensors(&mean))
    }

    /// The adapters of the nearest domains, the nearest first.
    fn nearest(&self, base: &Base, data: &Probe<'_>) -> Result<Vec<usize>> {
        let domains = self.adapters.len();
        let order = data.draw(data.examples().len());
        let mean = |domain: usize| {
            let texts = order.iter().map(|i| &data.examples()[*i]).filter(|example| example.task == domain);
            let all = texts.take(self.config.samples).map(|text| embedding(base, text)).collect::<Result<Vec<_>>>()?;
            if all.is_empty() {
                let found = format!("no example of task {domain}");
                let expected = format!(
                    "texts of tasks 0 to {}, the adapters' domains, and of {domains}, the new one",
                    domains - 1
                );
                return Err(Error::config("data", found, expected));
            }
            let sum = |i: usize| all.iter().map(|one| one[i]).sum::<f64>() / all.len() as f64;
            Ok((0..all[0].len()).map(sum).collect::<Vec<f64>>())
        };
        // The mean of all cosines is the product of the means of what has length 1.
        let new = mean(domains)?;
        let cosine = |domain| Ok((domain, mean(domain)?.iter().zip(&new).map(|(a, b)| a * b).sum::<f64>()));
        let mut cosines = (0..domains).map(cosine).collect::<Result<Vec<_>>>()?;
        cosines.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(cosines.into_iter().map(|(domain, _)| domain).take(self.config.top_k).collect())
    }

    /// Those with which the loss of the mean does not rise, the best alone first.
    fn greedy(&self, base: &Base, data: &Probe<'_>) -> Result<Vec<usize>> {
        let loss = |chosen: &[usize]| data.loss(&self.mean(chosen)?, base);
        let alone = |i: usize| Ok((i, loss(&[i])?));
        let mut order = (0..self.adapters.len()).map(alone).collect::<Result<Vec<_>>>()?;
        order.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (mut chosen, mut least) = (vec![order[0].0], order[0].1);
        for (i, _) in &order[1..] {
            let tried = [&chosen[..], &[*i]].concat();
            let found = loss(&tried)?;
            if found <= least {
                (chosen, least) = (tried, found);
            }
        }
        Ok(chosen)
    }
}

/// The mean of a text's states behind the last layer of the frozen model, of length 1.
fn embedding(base: &Base, text: &Example) -> Result<Vec<f64>> {
    let batch = base.batch(&[text])?;
    let (_, tap) = tapped(base, &batch)?;
    let (stack, layers) = base.shape().stacks()[0];
    let layers_of = tap.layers.borrow();
    let last = layers_of.iter().find(|(site, _)| site.stack == stack && site.layer + 1 == layers);
    let states = last.map(|(_, states)| states.clone()).unwrap_or_else(|| unreachable!("every layer has run"));
    let real = match &batch.padding {
        Some(padding) => states.clone().mask_fill(padding.clone().unsqueeze_dim::<3>(2).expand(states.dims()), 0.0),
        None => states,
    };
    let sum: Vec<f64> = real.sum_dim(1).into_data().iter().collect();
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    Ok(sum.into_iter().map(|x| x / length).collect())
}

impl Method for AdapterSoupConfig {
    const NAME: &'static str = "adapter-soup";
    const PEFT_TYPE: &'static str = "ADAPTER_SOUP";
    type Tuner = AdapterSoup;

    fn init(&self, base: &Base, seed: u64) -> Result<AdapterSoup> {
        self.init_from(base, seed, &[])
    }

    fn init_from(&self, base: &Base, _seed: u64, sources: &[Source]) -> Result<AdapterSoup> {
        let (adapter, adapters) = alike(sources)?;
        if self.choice == SoupChoice::Nearest && !(1..=adapters.len()).contains(&self.top_k) {
            return Err(Error::config("top_k", self.top_k, format!("1 to {}, the adapters", adapters.len())));
        }
        if self.samples == 0 {
            return Err(Error::config("samples", 0, "at least one text of each domain"));
        }
        let config = AdapterSoupConfig { adapter, ..self.clone() };
        let adapters: Vec<Sequential> = adapters.into_iter().map(Module::no_grad).collect();
        let all: Vec<usize> = (0..adapters.len()).collect();
        let domains = (config.choice == SoupChoice::Nearest).then_some(adapters.len());
        let start = AdapterSoup { soup: config.adapter.init(base, 0)?, adapters, domains, config };
        let soup = start.mean(&all)?;
        let adapters = if start.config.choice == SoupChoice::Uniform { vec![] } else { start.adapters };
        Ok(AdapterSoup { soup, adapters, ..start })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.adapter.count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        self.adapter.key(name.trim_start_matches("soup."), shape)
    }

    fn learned(&self, tuner: &AdapterSoup, _shape: &Shape) -> Self {
        tuner.config.clone()
    }

    fn to_saved(tuner: AdapterSoup) -> AdapterSoup {
        AdapterSoup { adapters: vec![], ..tuner }
    }

    fn for_loading(&self, base: &Base) -> Result<AdapterSoup> {
        let soup = self.adapter.init(base, 0)?;
        Ok(AdapterSoup { soup, adapters: vec![], domains: None, config: self.clone() })
    }

    fn merge(tuner: &AdapterSoup) -> Option<&dyn Merge> {
        SequentialConfig::merge(&tuner.soup)
    }
}

impl Adapter for AdapterSoup {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.soup.open(batch, f)
    }

    fn tasks(&self) -> Option<usize> {
        self.domains.map(|domains| domains + 1)
    }
}

impl Procedure for AdapterSoup {
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let chosen = match self.config.choice {
            SoupChoice::Uniform => return Ok(self),
            SoupChoice::Nearest => self.nearest(base, &data)?,
            SoupChoice::Greedy => self.greedy(base, &data)?,
        };
        Ok(AdapterSoup { soup: self.mean(&chosen)?, adapters: vec![], ..self })
    }

    /// The choice was made before the first step.
    fn resumed(self, _base: &Base, _phase: usize, _shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        Ok(AdapterSoup { adapters: vec![], ..self })
    }

    /// Of the texts of the new domain.
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        let Some(domains) = self.domains else { return Ok(None) };
        let tasks = &readout.batch.tasks;
        let of = |readout: &Readout<'_>| self.head_loss(readout);
        match &(0..tasks.len()).filter(|i| tasks[*i] == domains).collect::<Vec<_>>()[..] {
            [] => Ok(Some(of(readout)? * 0.0)),
            new => of(&readout.select(new)).map(Some),
        }
    }

    fn gradients(&mut self, gradients: GradientsParams, _step: usize) -> GradientsParams {
        struct Without(GradientsParams);
        impl Visit for Without {
            fn tensor<const D: usize>(&mut self, _: &str, id: ParamId, _: Tensor<D>) {
                self.0.remove::<D>(id);
            }
        }
        let mut without = Without(gradients);
        if !self.config.train {
            visit(&self.soup, &mut without);
        }
        without.0
    }

    fn may_rest(&self, _name: &str) -> bool {
        !self.config.train
    }
}

#[cfg(test)]
mod tests {
    use peft_core::testing::{base, device, randomized};
    use peft_core::{AnyTuner, Head, Trained};

    use super::*;

    fn source(config: SequentialConfig, base: &Base, seed: u64) -> Source {
        let tuner = AnyTuner::new(randomized(&config.init(base, seed).unwrap(), seed));
        let trained = Trained::new(tuner, Head::classifier(base, 2, 3)).unwrap();
        Source { name: format!("domain {seed}"), config: config.into(), trained }
    }

    fn sources(base: &Base) -> Vec<Source> {
        (1..4).map(|seed| source(SequentialConfig::pfeiffer(5), base, seed)).collect()
    }

    fn small(config: AdapterSoupConfig) -> AdapterSoupConfig {
        AdapterSoupConfig { adapter: SequentialConfig::pfeiffer(5), ..config }
    }

    mod uniform {
        use super::*;
        peft_core::conformance!(
            small(AdapterSoupConfig::default()).with_training(),
            from(sources),
            skip(C1: "it starts as the mean of its adapters", C3: "the non-linearity stands before the residual")
        );
    }

    mod greedy {
        use super::*;
        peft_core::conformance!(
            small(AdapterSoupConfig::greedy()),
            from(sources),
            skip(C1: "it starts as the mean of its adapters", C3: "the non-linearity stands before the residual")
        );
    }

    mod nearest {
        use super::*;

        /// The suite's sequences are of two tasks: of one domain and of the new one.
        fn one(base: &Base) -> Vec<Source> {
            vec![source(SequentialConfig::pfeiffer(5), base, 1)]
        }

        peft_core::conformance!(
            small(AdapterSoupConfig::nearest(1)),
            from(one),
            skip(C1: "it starts as the mean of its adapters", C3: "the non-linearity stands before the residual")
        );
    }

    #[test]
    fn is_as_large_as_one_adapter() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(AdapterSoupConfig::default().count(&shape).unwrap(), 1_189_632);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        let of = |config: AdapterSoupConfig, sources: &[Source]| {
            config.init_from(&base, 0, sources).unwrap_err().to_string()
        };
        let (all, other) = (sources(&base), source(SequentialConfig::pfeiffer(6), &base, 9));
        let prompt = crate::PromptTuningConfig::new(4);
        let tuner = AnyTuner::new(prompt.init(&base, 0).unwrap());
        let trained = Trained::new(tuner, Head::classifier(&base, 2, 3)).unwrap();
        let prompt = Source { name: "elsewhere".into(), config: prompt.into(), trained };
        let none = AdapterSoupConfig { samples: 0, ..AdapterSoupConfig::default() };
        for (message, words) in [
            (of(AdapterSoupConfig::default(), &[]), ["sources: none", "at least one adapter"]),
            (of(AdapterSoupConfig::greedy(), &[all[0].clone(), other]), ["domain 9", "the same settings as domain 1"]),
            (of(AdapterSoupConfig::default(), &[prompt]), ["elsewhere, of prompt", "adapters of adapter"]),
            (of(AdapterSoupConfig::nearest(4), &all), ["top_k: 4", "1 to 3"]),
            (of(none, &all), ["samples: 0", "at least one text"]),
        ] {
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        let one = small(AdapterSoupConfig::nearest(1)).init_from(&base, 0, &all).unwrap();
        let head = Head::classifier(&base, 2, 3);
        let examples = peft_core::testing::examples(&base);
        let message = one.prepare(&base, Probe::new(&head, &examples)).unwrap_err().to_string();
        assert!(message.contains("no example of task 3") && message.contains("of 3, the new one"), "{message}");
    }
}
