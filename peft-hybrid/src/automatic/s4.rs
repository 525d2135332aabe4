//! # S4                                     family: hybrid / automatic combination
//! layers in groups G1, .., G4, G1 nearest the input: G1 (A, L), G2 (A, P), G3 (A, P, B), G4 (P, B, L), sizes as a spindle's, N1 < N2 = N3 > N4
//! A: u' = u + act(z Wd + bd) Wu + bu, z = LN(u + x);  P: head = softmax(q [Pk; K]^T / sqrt(d_h)) [Pv; V];  B: b' for b;  L: W x + s B A x on q, v
//! Paper: Chen et al., 2023, arXiv:2301.01821, section 4.   Reference: amazon-science/peft-design-spaces, which has no groups
//! Oracle: paper: `s4_is_its_equations`
//! Trains: in each layer about the same, that of its group's A (2 d m + m + d), P (2 l d), B (all its biases) and L (r (d_in + d_out) per map).      Merges: groups of B and L alone.
//! Identities:
//! - groups are runs of layers that cover them all: `groups_of_layers_are_runs_that_cover_them`
//! - sizes are a spindle's: `sizes_are_those_of_a_spindle`
//! - each layer trains as many numbers as are given, up to the smallest unit of its parts: `layers_train_the_same_up_to_a_unit`
//! - one strategy in all groups is the plain method: `one_strategy_everywhere_is_the_plain_method`
//! - merged == unmerged, of groups of B and L: `C3`, `groups_of_biases_and_lora_merge`
//! - layers below the number of groups are refused: `what_cannot_be_is_refused`
//!
//! Differs from the paper: it gives sizes by their order only; here inner groups have twice the layers of outer ones. The numbers of a layer are shared in equal parts, then what is left goes to the parts with the largest units. Encoder and decoder have groups of their own, and of a T5 the prefix is the decoder's, as everywhere here. B adds biases where the model has none.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_additive::{PrefixTuningConfig, SequentialConfig};
use peft_core::random::Noise;
use peft_core::{
    Adapter, AnyMethod, AnyTuner, Base, Batch, Error, Hooks, Key, Many, Merge, Method, Part, Procedure, Result, Shape,
    Site, Sites, Slot, Stack, Weight,
};
use peft_partial::{BitFit, BitFitConfig};
use peft_reparam::{Lora, LoraConfig};
use serde::{Deserialize, Serialize};

use super::{key_among, side_by_side};

/// By what the layers of a group are tuned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Sequential adapters behind the feed-forward network.
    Adapter,
    /// A prefix of keys and values.
    Prefix,
    /// Biases.
    Bias,
    /// LoRA on queries and values.
    Lora,
}

/// The configuration of S4.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S4Config {
    /// By what the layers of each group are tuned, that nearest the input first.
    pub groups: Vec<Vec<Strategy>>,
    /// How many layers each group has; those of a spindle, if absent.
    pub sizes: Option<Vec<usize>>,
    /// The share of the model's numbers that is trained, each layer's as large as any other's; with 0 widths are the following.
    pub share: f64,
    /// Width m of the adapters' bottleneck.
    pub bottleneck: usize,
    /// Number l of virtual tokens of the prefix.
    pub num_virtual_tokens: usize,
    /// Rank r of LoRA.
    pub r: usize,
}

impl Default for S4Config {
    /// The paper's: half a percent of the model's numbers.
    fn default() -> Self {
        S4Config::new(48, 10, 8).with_share(0.005)
    }
}

impl S4Config {
    /// The paper's groups with adapters of this width, so many virtual tokens and LoRA of this rank.
    pub fn new(bottleneck: usize, num_virtual_tokens: usize, r: usize) -> Self {
        use Strategy::*;
        let groups =
            vec![vec![Adapter, Lora], vec![Adapter, Prefix], vec![Adapter, Prefix, Bias], vec![Prefix, Bias, Lora]];
        S4Config { groups, sizes: None, share: 0.0, bottleneck, num_virtual_tokens, r }
    }

    /// With these groups.
    pub fn with_groups(mut self, groups: impl IntoIterator<Item = Vec<Strategy>>) -> Self {
        self.groups = groups.into_iter().collect();
        self
    }

    /// With groups of these sizes.
    pub fn with_sizes(mut self, sizes: impl IntoIterator<Item = usize>) -> Self {
        self.sizes = Some(sizes.into_iter().collect());
        self
    }

    /// With this share of the model's numbers.
    pub fn with_share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// The layers of each group, stack after stack.
    pub fn layers(&self, shape: &Shape) -> Result<Vec<Group<'_>>> {
        let mut groups = vec![];
        for (stack, layers) in shape.stacks() {
            if self.groups.is_empty() || self.groups.len() > layers {
                let found = format!("{} groups", self.groups.len());
                return Err(Error::config("groups", found, format!("1 to {layers}, the layers of the model")));
            }
            let sizes = self.sizes.clone().unwrap_or_else(|| spindle(layers, self.groups.len()));
            if sizes.len() != self.groups.len() || sizes.contains(&0) || sizes.iter().sum::<usize>() != layers {
                let expected = format!("a number above 0 for each of {} groups, {layers} in all", self.groups.len());
                return Err(Error::config("sizes", format!("{sizes:?}"), expected));
            }
            let mut first = 0;
            for (strategies, size) in self.groups.iter().zip(sizes) {
                let twice = (1..strategies.len()).find(|i| strategies[..*i].contains(&strategies[*i]));
                if strategies.is_empty() || twice.is_some() {
                    let expected = "adapter, prefix, bias and lora, once each, at least one of them for each group";
                    return Err(Error::config("groups", format!("{strategies:?}"), expected));
                }
                groups.push(Group { stack, layers: (first..first + size).collect(), strategies });
                first += size;
            }
        }
        Ok(groups)
    }

    /// The methods that it is made of.
    pub fn parts(&self, shape: &Shape) -> Result<Vec<AnyMethod>> {
        let layers: usize = shape.stacks().into_iter().map(|(_, layers)| layers).sum();
        if !(0.0..=1.0).contains(&self.share) {
            return Err(Error::config("share", self.share, "a number from 0 to 1"));
        }
        let budget = (self.share > 0.0).then(|| (self.share * shape.count() as f64) as usize / layers);
        let mut parts = vec![];
        for group in self.layers(shape)? {
            let known = group.strategies.iter().map(|strategy| Ok((*strategy, group.cost(*strategy, shape)?)));
            let costs: Vec<(Strategy, Cost)> = known.collect::<Result<_>>()?;
            // A T5's encoder has no prefix.
            let costs: Vec<_> = costs.into_iter().filter(|(_, cost)| cost.fixed + cost.unit > 0).collect();
            if costs.is_empty() {
                let found = format!("{:?} in the layers {:?} of the {:?}", group.strategies, group.layers, group.stack);
                return Err(Error::config("groups", found, "something that these layers can have"));
            }
            let widths = match budget {
                Some(budget) => fitted(budget, &costs.iter().map(|(_, cost)| *cost).collect::<Vec<_>>())?,
                None => costs.iter().map(|(strategy, _)| self.width(*strategy)).collect(),
            };
            for ((strategy, _), width) in costs.into_iter().zip(widths) {
                parts.push(group.method(strategy, width, shape)?);
            }
        }
        Ok(parts)
    }

    /// The width without a share.
    fn width(&self, strategy: Strategy) -> usize {
        match strategy {
            Strategy::Adapter => self.bottleneck,
            Strategy::Prefix => self.num_virtual_tokens,
            Strategy::Lora => self.r,
            Strategy::Bias => 0,
        }
    }
}

/// Sizes of so many groups of layers, inner ones of twice the layers of outer ones, as far as that goes.
fn spindle(layers: usize, groups: usize) -> Vec<usize> {
    let weight = |i: usize| if i == 0 || i + 1 == groups { 1.0 } else { 2.0 };
    let all: f64 = (0..groups).map(weight).sum();
    let quota: Vec<f64> = (0..groups).map(|i| weight(i) * layers as f64 / all).collect();
    let mut sizes: Vec<usize> = quota.iter().map(|quota| (quota.floor() as usize).max(1)).collect();
    for _ in sizes.iter().sum::<usize>()..layers {
        let short = |i: &usize| quota[*i] - sizes[*i] as f64;
        // Of equal ones that nearest the input.
        let next = (0..groups).rev().max_by(|a, b| short(a).total_cmp(&short(b))).unwrap_or_default();
        sizes[next] += 1;
    }
    sizes
}

/// What a strategy trains in one layer: `fixed + n unit` for a width n.
#[derive(Clone, Copy, Debug)]
struct Cost {
    fixed: usize,
    unit: usize,
}

/// Widths, 1 at least, that come to as much of a budget as they can: equal parts first, then what is left for the largest units. What
/// has no unit has no width.
fn fitted(budget: usize, costs: &[Cost]) -> Result<Vec<usize>> {
    let least: usize = costs.iter().map(|cost| cost.fixed + cost.unit).sum();
    let too_few = || {
        let expected = format!("enough for {least} in each layer: a larger share, or fewer strategies in a group");
        Error::config("share", format!("{budget} numbers in each layer"), expected)
    };
    let mut left = budget.checked_sub(least).ok_or_else(too_few)?;
    let parts = costs.iter().filter(|cost| cost.unit > 0).count().max(1);
    let equal = left / parts;
    let more = |cost: &Cost, numbers: usize| numbers.checked_div(cost.unit).unwrap_or(0);
    let mut widths: Vec<usize> = costs.iter().map(|cost| usize::from(cost.unit > 0) + more(cost, equal)).collect();
    left -= costs.iter().map(|cost| more(cost, equal) * cost.unit).sum::<usize>();
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(costs[*i].unit));
    for i in order {
        let more = more(&costs[i], left);
        widths[i] += more;
        left -= more * costs[i].unit;
    }
    Ok(widths)
}

/// Layers of one stack that are tuned alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group<'a> {
    /// The stack.
    pub stack: Stack,
    /// The layers, by their places in it.
    pub layers: Vec<usize>,
    /// By what.
    pub strategies: &'a [Strategy],
}

impl Group<'_> {
    fn has(&self, site: Site) -> bool {
        site.part.is_in_layer() && site.stack == self.stack && self.layers.contains(&site.layer)
    }

    /// A strategy of this width in the layers of the group.
    fn method(&self, strategy: Strategy, width: usize, shape: &Shape) -> Result<AnyMethod> {
        let out = shape.sites(Part::Layer).into_iter().filter(|site| !self.has(*site));
        let out = out.map(|site| shape.layer_number(site));
        Ok(match strategy {
            Strategy::Adapter => SequentialConfig::pfeiffer(width).with_leave_out(out).into(),
            Strategy::Prefix => PrefixTuningConfig::new(width).with_shift_positions(false).with_leave_out(out).into(),
            Strategy::Bias => {
                let biases = BitFitConfig::new().with_added().with_leave_out(out);
                let mut parts: Vec<Part> = shape
                    .places()
                    .into_iter()
                    .filter_map(|place| {
                        let biased = place.slot == Slot::Bias || place.slot == Slot::Weight && place.transposed;
                        (self.has(place.site) && biased).then_some(place.site.part)
                    })
                    .collect();
                parts.sort_unstable();
                parts.dedup();
                biases.with_parts(parts).into()
            }
            Strategy::Lora => {
                let chosen = (Part::Query | Part::Value).resolve(shape)?;
                let paths = shape.linears().into_iter().filter(|(site, _)| chosen.contains(site) && self.has(*site));
                let paths = paths.map(|(_, path)| path).collect();
                LoraConfig::new(width).with_sites(Sites::Names(paths)).with_alpha(width as f64).into()
            }
        })
    }

    /// What a strategy trains in one of the layers.
    fn cost(&self, strategy: Strategy, shape: &Shape) -> Result<Cost> {
        let count = |width| Ok(self.method(strategy, width, shape)?.count(shape)? / self.layers.len());
        let [one, two] = [count(1)?, count(2)?];
        Ok(Cost { fixed: 2 * one - two, unit: two - one })
    }
}

/// Plain methods, each in the layers of a group.
#[derive(Module, Debug)]
pub struct S4 {
    methods: Many,
}

impl Method for S4Config {
    const NAME: &'static str = "s4";
    const PEFT_TYPE: &'static str = "S4";
    type Tuner = S4;

    fn init(&self, base: &Base, seed: u64) -> Result<S4> {
        Ok(S4 { methods: side_by_side(self.parts(base.shape())?, base, seed)? })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        AnyMethod::composed(self.parts(shape)?).count(shape)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        key_among(self.parts(shape), name.trim_start_matches("methods."), shape)
    }

    fn merge(tuner: &S4) -> Option<&dyn Merge> {
        tuner.weights().map(|_| tuner as &dyn Merge)
    }
}

impl S4 {
    /// The methods' weight-space forms, if all have one.
    fn weights(&self) -> Option<Vec<&dyn Merge>> {
        fn form(tuner: &AnyTuner) -> Option<&dyn Merge> {
            match (tuner.downcast_ref::<Lora>(), tuner.downcast_ref::<BitFit>()) {
                (Some(lora), _) => LoraConfig::merge(lora),
                (_, Some(biases)) => BitFitConfig::merge(biases),
                _ => None,
            }
        }
        self.methods.parts().into_iter().map(|(_, tuner)| form(tuner)).collect()
    }
}

impl Adapter for S4 {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.methods.open(batch, f)
    }

    fn view(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Adapter::view(&self.methods, base, noise)
    }
}

/// No two of its methods change the same tensor.
impl Merge for S4 {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        self.weights()?.into_iter().find_map(|method| method.weight(site, w))
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        self.weights()?.into_iter().find_map(|method| method.vector(site, slot, v))
    }
}

impl Procedure for S4 {
    fn parts(&self) -> Vec<(String, &AnyTuner)> {
        self.methods.parts().into_iter().map(|(prefix, part)| (format!("methods.{prefix}"), part)).collect()
    }

    fn parts_mut(&mut self) -> Vec<&mut AnyTuner> {
        self.methods.parts_mut()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;
    use peft_core::testing::{base, device};
    use peft_core::{Head, Trained};

    use super::Strategy::*;
    use super::*;

    mod all_strategies {
        use super::*;
        peft_core::conformance!(
            S4Config::new(5, 4, 3).with_groups([vec![Adapter, Prefix, Lora], vec![Prefix, Bias, Lora]]),
            skip(C1: "the prefix takes its share of every softmax", C3: "adapters and prefixes are no weights")
        );
    }

    mod of_a_share {
        use super::*;
        peft_core::conformance!(
            S4Config::default().with_groups([vec![Bias, Adapter], vec![Lora, Bias]]).with_share(0.1),
            skip(C1: "adapters start near identity only", C3: "adapters are no weights")
        );
    }

    mod weights_alone {
        use super::*;
        peft_core::conformance!(S4Config::new(1, 1, 3).with_groups([vec![Lora], vec![Lora]]));
    }

    #[test]
    fn counts_are_those_of_the_parts() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(S4Config::new(48, 10, 8).count(&shape).unwrap(), 1_048_032);
        // Half a percent is 51 689 numbers in each of twelve layers.
        let count = S4Config::default().count(&shape).unwrap();
        assert!(count <= 12 * 51_689 && count > 12 * (51_689 - 1_537), "{count}");
    }

    /// Of three groups of one layer: adapter and LoRA, adapter and prefix, prefix and biases and LoRA.
    #[test]
    fn s4_is_its_equations() {
        let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/s4"), "roberta-classify");
        let groups = [vec![Adapter, Lora], vec![Adapter, Prefix], vec![Prefix, Bias, Lora]];
        let config = S4Config::new(5, 4, 3).with_groups(groups).with_sizes([1, 1, 1]);
        let start = Trained::new(config.init(&case.base, 0).unwrap(), Head::classifier(&case.base, 3, 0)).unwrap();
        case.check_from_start(start);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let base = base("roberta-tiny", &device());
        let two = || S4Config::new(5, 4, 3).with_groups([vec![Lora], vec![Adapter]]);
        for (config, words) in [
            (S4Config::default(), ["groups", "4 groups", "1 to 3"]),
            (two().with_groups([]), ["groups", "0 groups", "1 to 3"]),
            (two().with_groups([vec![]]), ["groups", "[]", "at least one"]),
            (two().with_groups([vec![Lora, Bias, Lora]]), ["groups", "Lora, Bias, Lora", "once each"]),
            (two().with_sizes([1, 1]), ["sizes", "[1, 1]", "3 in all"]),
            (two().with_sizes([0, 3]), ["sizes", "[0, 3]", "above 0"]),
            (two().with_sizes([3]), ["sizes", "[3]", "each of 2 groups"]),
            (two().with_share(1.5), ["share", "1.5", "from 0 to 1"]),
            (two().with_share(0.001), ["share", "numbers in each layer", "larger share"]),
            (S4Config::new(0, 4, 3).with_groups([vec![Adapter]]), ["bottleneck", "0", "1 to 384"]),
        ] {
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let message = message.to_string();
                assert!(words.iter().all(|word| message.contains(word)), "{message}");
            }
        }
        let t5 = Shape::named("t5-tiny").unwrap();
        let message = S4Config::new(5, 4, 3).with_groups([vec![Prefix]]).count(&t5).unwrap_err().to_string();
        assert!(message.contains("groups") && message.contains("can have"), "{message}");
    }
}
