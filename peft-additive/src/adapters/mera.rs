//! # MerA                                   family: additive / adapter-based
//! Wd = sum_n Wd_n P_n / N, bd = sum_n bd_n P_n / N, Wu = sum_n P_n^T Wu_n / N, bu = sum_n bu_n / N        of N finished adapters, Wd_n: [d, m]; P_n: [m, m], P_1 = I
//! P_n = argmin sum_ij P_ij |u_i - v_j|     over doubly stochastic P; u_i of adapter n, v_j of the first: the column of Wd and the number of bd of a unit, or its activations on texts
//! sum and average: P_n = I, with N in place of 1 for the sum
//! Paper: He et al., 2023, arXiv:2308.15982, section 3.   Reference: sidak/otfusion, for the transport
//! Oracle: paper: `equals_the_derivation_of_mera`
//! Trains: 2 d m + m + d per sub-layer, as one adapter.      Merges: no, unless act = identity.
//! Identities:
//! - of one adapter, or of copies of one, it is that adapter, but for the sum: `one_adapter_merges_to_itself`
//! - an adapter and one with its units in another order align to that adapter, their average does not: `units_in_another_order_align`
//! - transports have rows and columns that sum to 1: `transports_are_doubly_stochastic`
//! - the exact one costs least of all permutations: `the_exact_transport_costs_least`
//! - a sum is N averages, in its tensors and not in what it gives: `a_sum_is_n_averages`
//! - of two adapters either may be the first: `of_two_either_is_the_first`
//!
//! Differs from the paper: the first source is the one that others are aligned with. Distances are Euclidean, activations those behind the non-linearity, of each adapter alone in the model, on examples of the run. The transport is exact by default; with an entropy it blurs units. Normalizations that were trained, or stand in an adapter, are averaged. The few-shot training that follows is the run.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::view::{tensors, weighted_sum, with_values};
use peft_core::{
    Adapter, Added, Affine, Base, Batch, Delta, Error, Frame, Hooks, Key, Merge, Method, Next, Procedure, Result,
    Sequence, Shape, Site, Slot, Source, train::Probe,
};
use serde::{Deserialize, Serialize};

use super::bottleneck::Bottleneck;
use super::sequential::{Sequential, SequentialConfig, alike};
use super::transport::{Transport, transport};

/// How adapters become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Merging {
    /// The sum of their tensors.
    Sum,
    /// The average.
    Average,
    /// The average of units that are aligned by their weights.
    #[default]
    Weights,
    /// The same by their activations.
    Activations,
}

/// The configuration of MerA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeraConfig {
    /// The settings of all adapters, which follow from these.
    pub adapter: SequentialConfig,
    /// How they become one.
    pub strategy: Merging,
    /// How units are aligned.
    pub transport: Transport,
    /// The weight of the entropy in Sinkhorn's transport, in mean distances of units.
    pub regularization: f64,
    /// The most examples that activations are of.
    pub samples: usize,
}

impl Default for MeraConfig {
    /// Of AdapterHub's adapters, aligned by weights.
    fn default() -> Self {
        let adapter = SequentialConfig::pfeiffer(48);
        let (strategy, transport) = (Merging::Weights, Transport::Exact);
        MeraConfig { adapter, strategy, transport, regularization: 0.05, samples: 32 }
    }
}

impl MeraConfig {
    /// Merged in this way.
    pub fn new(strategy: Merging) -> Self {
        MeraConfig { strategy, ..Default::default() }
    }

    /// With Sinkhorn's transport, the entropy having this weight.
    pub fn with_sinkhorn(self, regularization: f64) -> Self {
        MeraConfig { transport: Transport::Sinkhorn, regularization, ..self }
    }

    fn check(&self) -> Result<()> {
        if !(self.regularization.is_finite() && self.regularization > 0.0) {
            return Err(Error::config("regularization", self.regularization, "a finite number above 0"));
        }
        match self.samples {
            0 => Err(Error::config("samples", 0, "at least one example")),
            _ => Ok(()),
        }
    }

    /// An adapter of these, each the units of its bottlenecks described by vectors.
    fn merged(&self, into: Sequential, adapters: &[Sequential], units: &[Units]) -> Result<Sequential> {
        let aligned = adapters.iter().zip(units).map(|(adapter, own)| self.aligned(adapter, own, &units[0]));
        let aligned = aligned.collect::<Result<Vec<_>>>()?;
        let n = adapters.len();
        let mut values = tensors(&weighted_sum(&aligned, &vec![1.0 / n as f64; n])?);
        if self.strategy == Merging::Sum {
            let sums = tensors(&weighted_sum(&aligned, &vec![1.0; n])?);
            values.extend(sums.into_iter().filter(|(name, _)| !name.contains("norm")));
        }
        with_values(into, &values)
    }

    /// An adapter with its units where those of the first are that they are most like.
    fn aligned(&self, adapter: &Sequential, own: &Units, first: &Units) -> Result<Sequential> {
        adapter.clone().with_each(|site, bottleneck| {
            let (Some(own), Some(first)) = (own.get(&site), first.get(&site)) else { return Ok(bottleneck) };
            let cost: Vec<Vec<f64>> = own.iter().map(|u| first.iter().map(|v| distance(u, v)).collect()).collect();
            let p = transport(self.transport, &cost, self.regularization)?;
            let shares: Vec<f32> = p.iter().flatten().map(|share| *share as f32).collect();
            let Bottleneck { norm, down, up } = bottleneck;
            let p = Tensor::<2>::from_data(TensorData::new(shares, [p.len(), p.len()]), &down.weight.device());
            let bias = down.bias.val().unsqueeze::<2>().matmul(p.clone()).squeeze_dim(0);
            let down = Affine { weight: leaf(down.weight.val().matmul(p.clone())), bias: leaf(bias) };
            let up = Affine { weight: leaf(p.transpose().matmul(up.weight.val())), bias: up.bias };
            Ok(Bottleneck { norm, down, up })
        })
    }
}

fn leaf<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(tensor.without_autodiff())
}

/// What describes each unit of the bottlenecks, by their sites; nothing, where units stay in their order.
type Units = BTreeMap<Site, Vec<Vec<f64>>>;

fn distance(u: &[f64], v: &[f64]) -> f64 {
    u.iter().zip(v).map(|(u, v)| (u - v).powi(2)).sum::<f64>().sqrt()
}

/// The columns of the first map, each with its bias.
fn weights(adapter: &Sequential) -> Units {
    let of = |(site, Bottleneck { down, .. }): (Site, &Bottleneck)| {
        let rows = Tensor::cat(vec![down.weight.val(), down.bias.val().unsqueeze()], 0);
        (site, columns(rows))
    };
    adapter.bottlenecks().map(of).collect()
}

/// The columns of a matrix.
fn columns(rows: Tensor<2>) -> Vec<Vec<f64>> {
    let [length, _] = rows.dims();
    let numbers: Vec<f64> = rows.transpose().into_data().iter().collect();
    numbers.chunks(length).map(<[f64]>::to_vec).collect()
}

/// An adapter at work, and the activations of its units, `[tokens, m]`.
struct Watched<'a> {
    adapter: &'a Sequential,
    seen: RefCell<BTreeMap<Site, Vec<Tensor<2>>>>,
}

impl Hooks for Watched<'_> {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let residual = x.hidden.clone();
        let output = next(x);
        let added = self.adapter.to_sublayer(frame, site, &residual, &output);
        let Some(Added { read, delta }) = added else { return output };
        let inner = self.adapter.inner(site, read).squeeze_dim::<2>(0);
        self.seen.borrow_mut().entry(site).or_default().push(inner);
        output + delta
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        Hooks::vector(self.adapter, site, slot, v)
    }
}

/// The activations of an adapter's units on all tokens of some examples, each run alone.
fn activations(adapter: &Sequential, base: &Base, data: &Probe<'_>, places: &[usize]) -> Result<Units> {
    let watched = Watched { adapter: &adapter.valid(), seen: RefCell::default() };
    for place in places {
        base.forward(&base.batch(&[&data.examples()[*place]])?, &watched)?;
    }
    Ok(watched.seen.into_inner().into_iter().map(|(site, seen)| (site, columns(Tensor::cat(seen, 0)))).collect())
}

/// An adapter made of several.
#[derive(Module, Debug)]
pub struct Mera {
    merged: Sequential,
    /// What is still to be aligned by activations, before the first step.
    adapters: Vec<Sequential>,
    #[module(skip)]
    config: MeraConfig,
}

impl Mera {
    /// The adapter that they are.
    pub fn adapter(&self) -> &Sequential {
        &self.merged
    }
}

impl Method for MeraConfig {
    const NAME: &'static str = "mera";
    const PEFT_TYPE: &'static str = "MERA";
    type Tuner = Mera;

    fn init(&self, base: &Base, seed: u64) -> Result<Mera> {
        self.init_from(base, seed, &[])
    }

    fn init_from(&self, base: &Base, _seed: u64, sources: &[Source]) -> Result<Mera> {
        self.check()?;
        let (adapter, adapters) = alike(sources)?;
        let config = MeraConfig { adapter, ..self.clone() };
        let adapters: Vec<Sequential> = adapters.into_iter().map(Module::no_grad).collect();
        let units: Vec<Units> = match self.strategy {
            Merging::Weights => adapters.iter().map(weights).collect(),
            // Those that are aligned by activations start as their average.
            Merging::Sum | Merging::Average | Merging::Activations => vec![Units::new(); adapters.len()],
        };
        let merged = config.merged(config.adapter.init(base, 0)?, &adapters, &units)?;
        let adapters = if self.strategy == Merging::Activations { adapters } else { vec![] };
        Ok(Mera { merged, adapters, config })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.adapter.count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        self.adapter.key(name.trim_start_matches("merged."), shape)
    }

    fn learned(&self, tuner: &Mera, _shape: &Shape) -> Self {
        tuner.config.clone()
    }

    fn to_saved(tuner: Mera) -> Mera {
        Mera { adapters: vec![], ..tuner }
    }

    fn for_loading(&self, base: &Base) -> Result<Mera> {
        self.check()?;
        Ok(Mera { merged: self.adapter.init(base, 0)?, adapters: vec![], config: self.clone() })
    }

    fn merge(tuner: &Mera) -> Option<&dyn Merge> {
        SequentialConfig::merge(&tuner.merged)
    }
}

impl Adapter for Mera {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.merged.open(batch, f)
    }
}

impl Procedure for Mera {
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        if self.adapters.is_empty() {
            return Ok(self);
        }
        let places = data.draw(self.config.samples);
        let units = self.adapters.iter().map(|adapter| activations(adapter, base, &data, &places));
        let merged = self.config.merged(self.merged, &self.adapters, &units.collect::<Result<Vec<_>>>()?)?;
        Ok(Mera { merged, adapters: vec![], ..self })
    }

    /// They were aligned before the first step.
    fn resumed(self, _base: &Base, _phase: usize, _shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        Ok(Mera { adapters: vec![], ..self })
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
        Source { name: format!("task {seed}"), config: config.into(), trained }
    }

    fn sources(base: &Base) -> Vec<Source> {
        (1..4).map(|seed| source(SequentialConfig::pfeiffer(5), base, seed)).collect()
    }

    fn small(strategy: Merging) -> MeraConfig {
        MeraConfig { adapter: SequentialConfig::pfeiffer(5), ..MeraConfig::new(strategy) }
    }

    mod by_weights {
        use super::*;
        peft_core::conformance!(
            small(Merging::Weights).with_sinkhorn(0.1),
            from(sources),
            skip(C1: "it starts from its adapters", C3: "the non-linearity stands before the residual")
        );
    }

    mod by_activations {
        use super::*;
        peft_core::conformance!(
            small(Merging::Activations),
            from(sources),
            skip(C1: "it starts from its adapters", C3: "the non-linearity stands before the residual")
        );
    }

    #[test]
    fn is_as_large_as_one_adapter() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(MeraConfig::default().count(&shape).unwrap(), 894_528);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        let of = |config: MeraConfig, sources: &[Source]| config.init_from(&base, 0, sources).unwrap_err().to_string();
        let (all, other) = (sources(&base), source(SequentialConfig::pfeiffer(6), &base, 9));
        let none = MeraConfig { samples: 0, ..MeraConfig::default() };
        for (message, words) in [
            (of(MeraConfig::default(), &[]), ["sources: none", "at least one adapter"]),
            (of(MeraConfig::default(), &[all[0].clone(), other]), ["task 9", "the same settings as task 1"]),
            (of(MeraConfig::default().with_sinkhorn(0.0), &all), ["regularization: 0", "above 0"]),
            (of(none, &all), ["samples: 0", "at least one example"]),
        ] {
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
