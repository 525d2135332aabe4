//! Rows of word tables that are trained as a whole: `trainable_token_indices` of PEFT's LoRA.

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use indexmap::IndexMap;
use peft_core::transfer::send;
use peft_core::{Error, Part, Result, Shape, Site, Slot};
use serde::{Deserialize, Serialize};

/// Which rows are trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIndices {
    /// These of the word table, which on a tied model also makes logits.
    Words(Vec<usize>),
    /// These of tables, by the ends of their modules' paths.
    Tables(IndexMap<String, Vec<usize>>),
}

impl TokenIndices {
    /// The tables and their rows.
    pub(super) fn plan(&self, shape: &Shape) -> Result<Vec<(Site, Vec<usize>)>> {
        let wrong = |found: String, expected: String| Error::config("trainable_token_indices", found, expected);
        let rows = |site: Site, indices: &Vec<usize>| {
            if let Some(index) = indices.iter().find(|index| **index >= shape.vocab) {
                return Err(wrong(index.to_string(), format!("indices below {}, the model's vocabulary", shape.vocab)));
            }
            let mut seen = BTreeSet::new();
            match indices.iter().find(|index| !seen.insert(**index)) {
                Some(index) => Err(wrong(format!("{index} twice"), "each index once".into())),
                None => Ok((site, indices.clone())),
            }
        };
        let tables = match self {
            TokenIndices::Words(indices) => return Ok(vec![rows(shape.words(), indices)?]),
            TokenIndices::Tables(tables) => tables,
        };
        let words = |part| [Part::Words, Part::Vocabulary].contains(&part);
        let places: Vec<_> =
            shape.places().into_iter().filter(|p| p.slot == Slot::Weight && words(p.site.part)).collect();
        let mut plan: Vec<(Site, Vec<usize>)> = vec![];
        for (name, indices) in tables {
            let Some(place) = places.iter().find(|place| shape.file_name(place).ends_with(&format!("{name}.weight")))
            else {
                let known: Vec<&str> = places.iter().map(|place| place.module()).collect();
                return Err(wrong(name.clone(), format!("the name of a word table: {}", known.join(", "))));
            };
            if plan.iter().any(|(site, _)| *site == place.site) {
                return Err(wrong(name.clone(), "each table once".into()));
            }
            plan.push(rows(place.site, indices)?);
        }
        Ok(plan)
    }
}

/// Rows of a table in place of its own.
#[derive(Module, Debug)]
pub struct Rows {
    /// `[indices, hidden]`, in the order of the indices.
    pub rows: Param<Tensor<2>>,
    #[module(skip)]
    indices: Vec<usize>,
}

impl Rows {
    /// The rows as they are in the table.
    pub(super) fn of(table: Tensor<2>, indices: Vec<usize>) -> Self {
        let places = TensorData::from(indices.iter().map(|index| *index as i32).collect::<Vec<_>>().as_slice());
        let rows = table.clone().select(0, Tensor::<1, Int>::from_data(places, &table.device()));
        Rows { rows: Param::from_tensor(Tensor::from_inner(rows)), indices }
    }

    /// The table with these rows.
    pub(super) fn onto(&self, table: Tensor<2>) -> Tensor<2> {
        let (size, device) = (table.dims()[0], table.device());
        let mut places: Vec<i32> = (0..size as i32).collect();
        for (row, index) in self.indices.iter().enumerate() {
            places[*index] = (size + row) as i32;
        }
        let places = send::<1, Int>(places.as_slice(), &device);
        Tensor::cat(vec![table, self.rows.val()], 0).select(0, places)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::Method;
    use peft_core::testing::golden::Case;
    use peft_core::testing::{base, device, examples, randomized};

    use super::super::lora::LoraConfig;
    use super::*;

    fn config(tokens: TokenIndices) -> LoraConfig {
        LoraConfig { trainable_token_indices: Some(tokens), ..LoraConfig::new(3) }
    }

    /// Some that occur in the examples of every model.
    fn seen() -> TokenIndices {
        let examples = examples(&base("llama-tiny", &device()));
        let mut ids: Vec<usize> = examples[0].ids[..4].iter().map(|id| *id as usize).collect();
        ids.sort_unstable_by_key(|id| std::cmp::Reverse(*id));
        ids.dedup();
        TokenIndices::Words(ids)
    }

    peft_core::conformance!(config(seen()));

    #[test]
    fn tokens_equal_the_reference() {
        let cases = [
            ("tokens", "roberta-classify"),
            ("tokens-t5", "t5"),
            ("tokens-llama", "llama"),
            ("tokens-llama-pad", "llama"),
            ("tokens-llama-tied", "llama-llama3"),
        ];
        for (case, base) in cases {
            let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case), base);
            case.check_method::<LoraConfig>();
            case.check_merged::<LoraConfig>();
        }
    }

    #[test]
    fn other_rows_stay() {
        let base = base("llama-tiny", &device());
        let lora = randomized(&config(TokenIndices::Words(vec![7, 3])).init(&base, 0).unwrap(), 1);
        let words = base.shape().words();
        let rows = |base: &peft_core::Base| base.weight(words).dense().into_data().iter::<f32>().collect::<Vec<_>>();
        let (before, after, hidden) = (rows(&base), rows(&base.merged(&lora)), base.shape().hidden);
        for (i, (before, after)) in before.chunks(hidden).zip(after.chunks(hidden)).enumerate() {
            assert_eq!(before == after, ![7, 3].contains(&i), "row {i}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let tables = |tables: &[(&str, &[usize])]| {
            TokenIndices::Tables(tables.iter().map(|(name, rows)| (name.to_string(), rows.to_vec())).collect())
        };
        for (shape, tokens, told) in [
            ("llama-tiny", TokenIndices::Words(vec![1, 97]), "97"),
            ("llama-tiny", TokenIndices::Words(vec![1, 4, 1]), "1 twice"),
            ("llama-tiny", tables(&[("lm_head", &[97])]), "97"),
            ("llama-tiny", tables(&[("wte", &[1])]), "embed_tokens, lm_head"),
            ("llama-tiny", tables(&[("embed_tokens", &[1]), ("model.embed_tokens", &[2])]), "model.embed_tokens"),
            ("t5-tiny", tables(&[("lm_head", &[1])]), "shared"),
            ("bert-tiny", tables(&[("position_embeddings", &[1])]), "word_embeddings"),
        ] {
            let base = base(shape, &device());
            let message = config(tokens).init(&base, 0).unwrap_err().to_string();
            assert!(message.contains("trainable_token_indices") && message.contains(told), "{message}");
        }
    }
}
