//! # PASTA                                  family: additive / others
//! h'_i = h_i + D(e_j) if token i is the j-th special one, j <= p; h'_i = h_i else     h: [n, d], what goes into a layer, its residual too; e: [p, d] of each layer, D dropout in training
//! Paper: Yang et al., 2022, arXiv:2210.04382, section 2.   Reference: luka-group/PASTA
//! Oracle: code luka-group/PASTA PASTA_modeling.py: `equals_the_derivation_of_pasta`
//! Trains: p d per layer.      Merges: no, it depends on the token.
//! Identities:
//! - h' is what the equation says, and ordinary tokens and padding stay as they are, to the bit: `only_special_tokens_get_a_vector`
//! - e = 0, or no special token, is the base: `without_special_tokens_it_is_the_base`
//! - a layer's e changes nothing before it: `vectors_act_from_their_layer_on`
//! - e of a LLaMA's first layer, all the same, is another embedding of the token: `a_first_layers_vector_is_an_embedding`
//! - D drops a channel of a token for a sample: `dropout_acts_on_the_added_vector`
//! - special tokens are counted on while a text is generated: `C11`
//! - it starts as the reference's: `each_form_starts_as_its_reference`
//!
//! Differs from the paper: special tokens are told by id, as in the reference, so that one inside a text is one too. Each sequence counts its own; the reference takes the number in the batch's first for all, and gives others the wrong vectors where theirs differs. It refuses more than p, which here get none. The paper's is BERT with `[CLS]` and `[SEP]`. RoBERTa (`<s>`, `</s>`), the encoder of T5 (`</s>`) and LLaMA (`<s>`) are an extension.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::{
    Adapter, Base, Batch, Error, Frame, Hooks, Key, Method, Next, Part, Procedure, Result, Sequence, Shape, Site,
    SiteMap, Stack, random::Random, split_name,
};
use serde::{Deserialize, Serialize};

use crate::layer_path;

/// The standard deviation of the start, as BERT's.
const STD: f64 = 0.02;

/// The configuration of PASTA.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PastaConfig {
    /// The ids of special tokens; if absent, those of the published models: 101 and 102 of a BERT, 0 and 2 of a RoBERTa, 1 of a T5 and
    /// of a LLaMA.
    pub special_tokens: Option<Vec<u32>>,
    /// How many special tokens of a sequence get a vector, p; if absent, as many as a pair of texts has: 3 of a BERT, 4 of a RoBERTa; 1
    /// of a T5 and of a LLaMA.
    pub num_special_tokens: Option<usize>,
}

impl PastaConfig {
    /// For a pair of texts.
    pub fn new() -> Self {
        Self::default()
    }

    /// With these ids as special tokens, this many of which get a vector.
    pub fn with_special_tokens(mut self, ids: impl IntoIterator<Item = u32>, count: usize) -> Self {
        (self.special_tokens, self.num_special_tokens) = (Some(ids.into_iter().collect()), Some(count));
        self
    }

    /// The layers with vectors, the ids of special tokens and p.
    fn plan(&self, shape: &Shape) -> Result<(Vec<Site>, Vec<u32>, usize)> {
        let (ids, count) = shape.architecture.family().special_tokens;
        let ids = self.special_tokens.clone().unwrap_or_else(|| ids.to_vec());
        if ids.is_empty() || ids.iter().any(|id| *id as usize >= shape.vocab) {
            let expected = format!("ids below {}, one at least", shape.vocab);
            return Err(Error::config("special_tokens", format!("{ids:?}"), expected));
        }
        let count = self.num_special_tokens.unwrap_or(count);
        if !(1..=shape.max_length()).contains(&count) {
            return Err(Error::config("num_special_tokens", count, format!("1 to {}", shape.max_length())));
        }
        let first = shape.stacks()[0].0;
        Ok((shape.sites(Part::Layer).into_iter().filter(|site| site.stack == first).collect(), ids, count))
    }
}

/// Vectors for special tokens.
#[derive(Module, Debug)]
pub struct Pasta {
    /// `[p, d]` each, at a layer.
    vectors: SiteMap<Param<Tensor<2>>>,
    /// The ids of special tokens.
    #[module(skip)]
    special: Vec<u32>,
}

impl Method for PastaConfig {
    const NAME: &'static str = "pasta";
    const PEFT_TYPE: &'static str = "PASTA";
    type Tuner = Pasta;

    fn init(&self, base: &Base, seed: u64) -> Result<Pasta> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let (layers, special, count) = self.plan(shape)?;
        let start = |site: Site| {
            let random = Random::new(seed, &format!("pasta.{site}"));
            (site, Param::from_tensor(random.normal_tensor([count, shape.hidden], STD, &device)))
        };
        Ok(Pasta { vectors: layers.into_iter().map(start).collect(), special })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let (layers, _, count) = self.plan(shape)?;
        Ok(layers.len() * count * shape.hidden)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, _) = split_name(name);
        Key::plain(layer_path(shape, site) + ".special_token_embedding.weight")
    }
}

/// The vectors, and 1 where a token of a batch is special, `[batch, tokens]`.
struct Marked<'a> {
    pasta: &'a Pasta,
    special: Tensor<2>,
}

impl Adapter for Pasta {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        let is = |id: &u32| batch.ids.clone().equal_elem(*id as i64);
        let special = self.special.iter().map(is).reduce(|a, b| a.bool_or(b));
        let special = special.map_or_else(|| Tensor::zeros(batch.dims(), &batch.ids.device()), |found| found.float());
        let special = match &batch.padding {
            Some(padding) => special.mask_fill(padding.clone(), 0.0),
            None => special,
        };
        f(&Marked { pasta: self, special })
    }
}

impl Hooks for Marked<'_> {
    fn layer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        let Some(vectors) = self.pasta.vectors.get(site) else { return next(x) };
        let [batch, rows, _] = x.hidden.dims();
        let special = match rows - self.special.dims()[1] {
            0 => self.special.clone(),
            prompt => {
                Tensor::cat(vec![Tensor::zeros([batch, prompt], &self.special.device()), self.special.clone()], 1)
            }
        };
        // Counted on from the rows before, if a text goes on.
        let so_far = match site.stack {
            Stack::Encoder => special.clone(),
            Stack::Decoder => {
                let rows = special.clone().unsqueeze_dims::<4>(&[1, 3]);
                frame.remember_own(vectors.id, rows.clone(), rows).0.reshape([batch as i32, -1])
            }
        };
        let before = so_far.dims()[1] - rows;
        let number = so_far.cumsum(1).narrow(1, before, rows) * special;
        let [count, _] = vectors.dims();
        let numbers = Tensor::<1, Int>::arange(1..count as i64 + 1, &number.device().without_autodiff()).float();
        let dims = [batch, rows, count];
        let chosen = number.unsqueeze_dim::<3>(2).expand(dims).equal(numbers.unsqueeze::<3>().expand(dims)).float();
        let added = frame.dropout(
            chosen.matmul(vectors.val().unsqueeze()),
            frame.shape().dropout,
            format_args!("pasta.{site}"),
        );
        next(Sequence { hidden: x.hidden.clone() + added, ..x })
    }
}

impl Procedure for Pasta {}

#[cfg(test)]
mod tests {
    use peft_core::testing::{base, device};

    use super::*;

    mod many {
        use super::*;
        peft_core::conformance!(
            PastaConfig::new().with_special_tokens((4..97).step_by(3), 2),
            skip(C1: "near identity only", C3: "it depends on the token")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_paper_says() {
        let count = |config: PastaConfig, name| config.count(&Shape::named(name).unwrap()).unwrap();
        // 0.029% of BERT-large, with four special tokens.
        assert_eq!(count(PastaConfig { num_special_tokens: Some(4), ..PastaConfig::new() }, "bert-large"), 98_304);
        assert_eq!(count(PastaConfig::new(), "bert-base"), 27_648);
        assert_eq!(count(PastaConfig::new(), "roberta-base"), 36_864);
        assert_eq!(count(PastaConfig::new(), "t5-base"), 12 * 768);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        let good = PastaConfig::new().with_special_tokens([2, 3], 2);
        for (config, words) in [
            (PastaConfig::new(), ["special_tokens", "[101, 102]", "below 97"]),
            (good.clone().with_special_tokens([], 2), ["special_tokens", "[]", "one at least"]),
            (good.clone().with_special_tokens([2], 0), ["num_special_tokens", "0", "1 to 40"]),
            (good.with_special_tokens([2], 41), ["num_special_tokens", "41", "1 to 40"]),
        ] {
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let message = message.to_string();
                assert!(words.iter().all(|word| message.contains(word)), "{message}");
            }
        }
    }
}
