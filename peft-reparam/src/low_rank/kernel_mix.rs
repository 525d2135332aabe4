//! # Kernel-mix-lite (qv) and (qvo)         family: reparameterized / low-rank decomposition
//! Q^h = x W_q^h + x A_q^h B_q^h + c_q^h    A_q^h: [d, q], B_q^h: [q, p], for each head h of width p = d / H
//! V^h = x W_v^h + K^h A_v^h B_v^h + c_v^h  A_v^h: [p, v], B_v^h: [v, p], K^h the keys of the head, before any rotation
//! o = O W_o + sum_h O^h A_o^h B_o^h + c_o  A_o^h: [p, v], B_o^h: [v, d], O^h what the head's attention gives; of (qvo) only
//! all A ~ U(-1/sqrt(in), 1/sqrt(in)), all B = 0, c = 0, and c only where the model's map has a bias
//! Paper: Chen et al., 2022, arXiv:2205.03720, section 4.   Reference: ychen-stat-ml/kernel-adapters nlu/petl/petl_factory.py `LoRA`
//! Oracle: code ychen-stat-ml/kernel-adapters nlu/petl/petl_factory.py: `kernel_mix_equals_a_derivation_in_float64`
//! Trains: per attention H q (d + p) + 2 H v p, of (qvo) H v (p + d) more, and the biases.      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - logits, gradients and ten steps are those of the equations: `kernel_mix_equals_a_derivation_in_float64`
//! - on queries and outputs it is the LoRA of rank H r with A = [A^h], B = blockdiag(B^h), or both in turn: `heads_side_by_side_are_a_lora`
//! - values read the keys of their own attention: `values_read_the_keys_of_their_attention`
//! - a head's tensors change its own slice of queries and values alone: `a_head_changes_its_own_slice`
//!
//! Differs from the paper: neither the survey nor the code says what the lite form leaves out; here it is the factors that all heads share, the part that the code's settings can leave out. Those are a LoRA, so that Kernel-mix itself is this and a LoRA, as a pair. The published settings start all tensors at a small noise; here, as with the code's `He`, the model is unchanged. On a T5 the cross-attention is adapted too; with fewer heads of keys than of queries values have the former. A merge takes the keys of the model that the adapter was started on.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::{
    Adapter, Architecture, Base, Batch, Error, Hooks, Key, Merge, Method, Next, Part, Procedure, Result, Shape, Site,
    SiteMap, Slot, Weight, file_path,
    random::{Noise, Random},
    split_name,
};
use serde::{Deserialize, Serialize};

use super::pair::check_dropout;
use super::ranks::check_rank;

/// The configuration of Kernel-mix-lite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KernelMixConfig {
    /// Rank of each head's queries.
    pub q_rank: usize,
    /// Rank of each head's values, and of its part of the output.
    pub v_rank: usize,
    /// Whether the output projection is adapted too: (qvo).
    pub output: bool,
    /// Dropout probability on the inputs of all factors.
    pub lora_dropout: f64,
}

impl Default for KernelMixConfig {
    /// (qv) with the ranks of the published settings, 1 and 2.
    fn default() -> Self {
        KernelMixConfig { q_rank: 1, v_rank: 2, output: false, lora_dropout: 0.1 }
    }
}

impl KernelMixConfig {
    /// (qv) with these ranks, without dropout.
    pub fn new(q_rank: usize, v_rank: usize) -> Self {
        KernelMixConfig { q_rank, v_rank, lora_dropout: 0.0, ..Default::default() }
    }

    /// As (qvo).
    pub fn with_output(self) -> Self {
        KernelMixConfig { output: true, ..self }
    }

    /// With dropout of this probability on the inputs of all factors.
    pub fn with_dropout(self, p: f64) -> Self {
        KernelMixConfig { lora_dropout: p, ..self }
    }

    /// The adapted maps with their `[heads, in, rank, out]`.
    fn plan(&self, shape: &Shape) -> Result<Vec<(Site, [usize; 4])>> {
        check_rank("q_rank", self.q_rank)?;
        check_rank("v_rank", self.v_rank)?;
        if let Architecture::Plain(_) = shape.architecture {
            let expected =
                "a model of this library: kernel-mix is on heads, of which the weights of a module say nothing";
            return Err(Error::config("method", Self::NAME, expected));
        }
        check_dropout(self.lora_dropout)?;
        let (d, p) = (shape.hidden, shape.head_width);
        let dims = |site: Site| match site.part {
            Part::Query | Part::CrossQuery => Some([shape.heads, d, self.q_rank, p]),
            Part::Value | Part::CrossValue => Some([shape.kv_heads(), p, self.v_rank, p]),
            Part::Output | Part::CrossOutput if self.output => Some([shape.heads, p, self.v_rank, d]),
            _ => None,
        };
        Ok(shape.linears().into_iter().filter_map(|(site, _)| Some((site, dims(site)?))).collect())
    }
}

/// Factors for each head of some maps.
#[derive(Module, Debug)]
pub struct KernelMix {
    maps: SiteMap<Heads>,
    /// The model's own keys, for merging: the map of each adapted value.
    #[module(skip)]
    keys: BTreeMap<Site, (Weight, Option<Tensor<1>>)>,
    #[module(skip)]
    dropout: f64,
}

/// The factors of all heads of one map.
#[derive(Module, Debug)]
pub struct Heads {
    /// `[heads, in, r]`.
    pub a: Param<Tensor<3>>,
    /// `[heads, r, out]`.
    pub b: Param<Tensor<3>>,
    /// c, as long as the map's bias.
    pub bias: Option<Param<Tensor<1>>>,
}

/// `[rows, heads * width]` as `[heads, rows, width]`.
fn split(x: Tensor<2>, heads: usize) -> Tensor<3> {
    let [rows, all] = x.dims();
    x.reshape([rows, heads, all / heads]).swap_dims(0, 1)
}

/// `[heads, rows, width]` as `[rows, heads * width]`.
fn joined(x: Tensor<3>) -> Tensor<2> {
    let [heads, rows, width] = x.dims();
    x.swap_dims(0, 1).reshape([rows, heads * width])
}

impl Heads {
    /// What the factors make of the rows that a part of an attention gives them.
    fn forward(&self, part: Part, x: Tensor<2>) -> Tensor<2> {
        let (a, b) = (self.a.val(), self.b.val());
        let [heads, width, rank] = a.dims();
        let y = match part {
            // One input for all heads.
            Part::Query | Part::CrossQuery => {
                let a = a.swap_dims(0, 1).reshape([width, heads * rank]);
                joined(split(x.matmul(a), heads).matmul(b))
            }
            Part::Value | Part::CrossValue => joined(split(x, heads).matmul(a).matmul(b)),
            // One output of all heads.
            _ => {
                let out = b.dims()[2];
                joined(split(x, heads).matmul(a)).matmul(b.reshape([heads * rank, out]))
            }
        };
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }

    /// A^h B^h of each head, `[heads, in, out]`.
    fn products(&self) -> Tensor<3> {
        self.a.val().matmul(self.b.val())
    }
}

/// The keys of an attention and the values that read them.
const READ: [(Part, Part); 2] = [(Part::Key, Part::Value), (Part::CrossKey, Part::CrossValue)];

/// The value that reads this key.
fn value_of(key: Site) -> Option<Site> {
    READ.iter().find(|(part, _)| *part == key.part).map(|(_, part)| Site { part: *part, ..key })
}

/// The key that this value reads.
fn key_of(value: Site) -> Option<Site> {
    READ.iter().find(|(_, part)| *part == value.part).map(|(part, _)| Site { part: *part, ..value })
}

impl Method for KernelMixConfig {
    const NAME: &'static str = "kernel-mix-lite";
    const PEFT_TYPE: &'static str = "KERNEL_MIX_LITE";
    type Tuner = KernelMix;

    fn init(&self, base: &Base, seed: u64) -> Result<KernelMix> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let plan = self.plan(shape)?;
        let map = |(site, [heads, width, rank, out]): (Site, [usize; 4])| {
            let bound = 1.0 / (width as f64).sqrt();
            let random = Random::new(seed, &format!("kernel_mix.{site}.a"));
            let a = random.uniform_tensor([heads, width, rank], -bound, bound, &device);
            let zeros = |length| Param::from_tensor(Tensor::zeros([length], &device));
            let b = Param::from_tensor(Tensor::zeros([heads, rank, out], &device));
            (site, Heads { a: Param::from_tensor(a), b, bias: bias(shape, site).map(zeros) })
        };
        let keys = plan.iter().filter_map(|(site, _)| {
            let key = key_of(*site)?;
            let bias = bias(shape, key).map(|_| base.vector(key, Slot::Bias));
            Some((*site, (base.weight(key).clone(), bias)))
        });
        let keys = keys.collect();
        Ok(KernelMix { maps: plan.into_iter().map(map).collect(), keys, dropout: self.lora_dropout })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let count = |(site, [heads, width, rank, out]): (Site, [usize; 4])| {
            heads * rank * (width + out) + bias(shape, site).unwrap_or(0)
        };
        Ok(self.plan(shape)?.into_iter().map(count).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        Key::plain(format!("{}.kernel_{leaf}", file_path(shape, site)))
    }

    fn merge(tuner: &KernelMix) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

/// The length of a map's bias, if it has one.
fn bias(shape: &Shape, site: Site) -> Option<usize> {
    let bias = shape.places().into_iter().find(|place| place.site == site && place.slot == Slot::Bias);
    bias.map(|place| place.count())
}

/// Kernel-mix-lite during one run: with the run's dropout.
struct Opened<'a> {
    mix: &'a KernelMix,
    noise: Option<&'a Noise>,
    /// Keys that have been computed, by the values that will read them.
    keys: RefCell<BTreeMap<Site, Tensor<3>>>,
}

impl Hooks for Opened<'_> {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let y = next(x.clone());
        if let Some(value) = value_of(site) {
            self.keys.borrow_mut().insert(value, y.clone());
        }
        let Some(heads) = self.mix.maps.get(site) else { return y };
        let input = self.keys.borrow_mut().remove(&site).unwrap_or(x);
        let input = match self.noise {
            Some(noise) => noise.dropout(input, self.mix.dropout, &format!("kernel_mix.{site}")),
            None => input,
        };
        let ([batch, tokens, width], out) = (input.dims(), y.dims());
        y + heads.forward(site.part, input.reshape([batch * tokens, width])).reshape(out)
    }
}

impl Adapter for KernelMix {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened { mix: self, noise: batch.noise.as_deref(), keys: RefCell::default() })
    }
}

impl Merge for KernelMix {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let (products, w) = (self.maps.get(site)?.products(), w.dense());
        let update = match self.keys.get(&site) {
            Some((keys, _)) => joined(split(keys.dense(), products.dims()[0]).matmul(products)),
            None if matches!(site.part, Part::Query | Part::CrossQuery) => joined(products),
            None => products.flatten(0, 1),
        };
        Some(update.to_device(&w.device()) + w)
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        let heads = self.maps.get(site)?;
        let bias = heads.bias.as_ref().filter(|_| slot == Slot::Bias)?.val();
        let bias = match self.keys.get(&site) {
            Some((_, Some(keys))) => {
                let products = heads.products();
                let through = split(keys.clone().unsqueeze(), products.dims()[0]).matmul(products);
                bias + joined(through).squeeze_dim(0)
            }
            _ => bias,
        };
        Some(bias.to_device(&v.device()) + v.clone())
    }
}

impl Procedure for KernelMix {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;

    use super::*;

    mod qv {
        use super::*;
        peft_core::conformance!(KernelMixConfig::new(1, 2));
    }

    mod qvo {
        use super::*;
        peft_core::conformance!(KernelMixConfig::new(2, 1).with_output());
    }

    #[test]
    fn kernel_mix_equals_a_derivation_in_float64() {
        for (name, base) in
            [("kernel-mix-qv", "roberta-classify"), ("kernel-mix-qvo", "bert-classify"), ("kernel-mix-t5", "t5")]
        {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
            let case = Case::open(dir, base);
            case.check_method::<KernelMixConfig>();
        }
    }
}
