//! The shape of a backbone: everything that can be said of it without its weights.

use std::path::Path;

use serde_json::{Value, json};

use crate::{Error, Result, Site, models};

/// A family of models that share one forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Devlin et al., 2019: positions from 0, token types, a pooler.
    Bert,
    /// Liu et al., 2019: positions from `pad + 1`, no pooler.
    Roberta,
}

/// What of a place: its matrix, or one of its vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// A matrix `[in, out]`, or an embedding table `[rows, hidden]`.
    Weight,
    /// The bias of a linear map or of a normalization, `[out]`.
    Bias,
    /// The gain of a normalization, `[hidden]`.
    Gain,
}

/// One tensor of a backbone.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Where it is used.
    pub site: Site,
    /// Which of the site's tensors it is.
    pub slot: Slot,
    /// Its shape here: `[in, out]` for a linear map, `[rows, hidden]` for a table, `[n]` for a vector.
    pub dims: Vec<usize>,
    /// Whether files hold it transposed, as `[out, in]`.
    pub transposed: bool,
    /// Its name in a Hugging Face checkpoint, without the model's prefix.
    pub name: String,
}

impl Place {
    /// The number of its elements.
    pub fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// Its shape in files.
    pub fn file_dims(&self) -> Vec<usize> {
        let mut dims = self.dims.clone();
        if self.transposed {
            dims.reverse();
        }
        dims
    }

    /// The module that holds it: its name without the last word.
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(module, _)| module)
    }
}

/// The shape of a backbone, with the settings of its forward.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The family.
    pub architecture: Architecture,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Rows of the word table.
    pub vocab: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Rows of the token type table.
    pub types: usize,
    /// Epsilon of the layer normalizations.
    pub eps: f64,
    /// Id of the padding token.
    pub pad: usize,
    /// Dropout probability on hidden states while training.
    pub dropout: f64,
    /// Dropout probability on attention weights while training.
    pub attention_dropout: f64,
    /// Dropout probability in a classification head while training.
    pub classifier_dropout: f64,
    /// Whether a linear map and tanh over the first position belong to the model.
    pub pooler: bool,
}

impl Shape {
    /// A published shape: `bert-base`, `bert-large`, `roberta-base`, `roberta-large`, `minilm-l6`, or `tiny` ones
    /// for tests: `bert-tiny`, `roberta-tiny`.
    pub fn named(name: &str) -> Result<Self> {
        let (architecture, layers, hidden, heads, intermediate, vocab, positions) = match name {
            "roberta-base" => (Architecture::Roberta, 12, 768, 12, 3072, 50265, 514),
            "roberta-large" => (Architecture::Roberta, 24, 1024, 16, 4096, 50265, 514),
            "bert-base" => (Architecture::Bert, 12, 768, 12, 3072, 30522, 512),
            "bert-large" => (Architecture::Bert, 24, 1024, 16, 4096, 30522, 512),
            "minilm-l6" => (Architecture::Bert, 6, 384, 12, 1536, 30522, 512),
            "roberta-tiny" => (Architecture::Roberta, 3, 24, 3, 40, 97, 40),
            "bert-tiny" => (Architecture::Bert, 2, 24, 3, 40, 97, 40),
            _ => {
                let names = "roberta-base, roberta-large, bert-base, bert-large, minilm-l6, roberta-tiny, bert-tiny";
                return Err(Error::config("shape", name, names));
            }
        };
        let roberta = architecture == Architecture::Roberta;
        Ok(Shape {
            architecture,
            layers,
            hidden,
            heads,
            intermediate,
            vocab,
            positions,
            types: if roberta { 1 } else { 2 },
            eps: if roberta { 1e-5 } else { 1e-12 },
            pad: usize::from(roberta),
            dropout: 0.1,
            attention_dropout: 0.1,
            classifier_dropout: 0.1,
            pooler: !roberta,
        })
    }

    /// Reads a Hugging Face `config.json`, refusing what this library does not compute.
    pub fn from_config(config: &Value, path: &Path) -> Result<Self> {
        let number = |key: &str, default: Option<usize>, allowed: std::ops::RangeInclusive<usize>| match config.get(key)
        {
            None | Some(Value::Null) if default.is_some() => Ok(default.unwrap_or_default()),
            value => {
                value.and_then(Value::as_u64).map(|n| n as usize).filter(|n| allowed.contains(n)).ok_or_else(|| {
                    let expected = format!("an integer from {} to {}", allowed.start(), allowed.end());
                    Error::file(path, key, show(value), expected)
                })
            }
        };
        let real = |key: &str, default: f64, allowed: std::ops::Range<f64>| match config.get(key) {
            None | Some(Value::Null) => Ok(default),
            value => value.and_then(Value::as_f64).filter(|x| allowed.contains(x)).ok_or_else(|| {
                Error::file(path, key, show(value), format!("a number from {} to below {}", allowed.start, allowed.end))
            }),
        };
        let only = |key: &str, default: &str, expected: &str| match config.get(key) {
            None | Some(Value::Null) if default == expected => Ok(()),
            Some(Value::String(s)) if s == expected => Ok(()),
            value => Err(Error::file(path, key, show(value), expected)),
        };
        let (architecture, pad) = match config.get("model_type").and_then(Value::as_str) {
            Some("bert") => (Architecture::Bert, 0),
            Some("roberta") => (Architecture::Roberta, 1),
            _ => {
                return Err(Error::file(path, "model_type", show(config.get("model_type")), "\"bert\" or \"roberta\""));
            }
        };
        only("hidden_act", "gelu", "gelu")?;
        only("position_embedding_type", "absolute", "absolute")?;
        for (key, expected) in [
            ("is_decoder", "false: an encoder"),
            ("add_cross_attention", "false: an encoder"),
            ("pruned_heads", "none: all heads are there"),
            ("quantization_config", "none: weights that are not quantized"),
        ] {
            match config.get(key) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                Some(Value::Object(map)) if map.is_empty() => {}
                value => return Err(Error::file(path, key, show(value), expected)),
            }
        }
        match config.get("problem_type").map(|kind| (kind, kind.as_str())) {
            None | Some((Value::Null, _) | (_, Some("single_label_classification" | "regression"))) => {}
            Some((kind, _)) => {
                return Err(Error::file(path, "problem_type", kind, "single_label_classification or regression"));
            }
        }
        let hidden = number("hidden_size", None, 1..=65_536)?;
        let heads = number("num_attention_heads", None, 1..=1_024)?;
        if hidden % heads != 0 {
            return Err(Error::file(path, "num_attention_heads", heads, format!("a divisor of hidden_size {hidden}")));
        }
        let vocab = number("vocab_size", None, 1..=4_000_000)?;
        let pad = number("pad_token_id", Some(pad), 0..=vocab - 1)?;
        let least_positions = if architecture == Architecture::Roberta { pad + 2 } else { 1 };
        let dropout = real("hidden_dropout_prob", 0.1, 0.0..1.0)?;
        Ok(Shape {
            architecture,
            layers: number("num_hidden_layers", None, 1..=1_000)?,
            hidden,
            heads,
            intermediate: number("intermediate_size", None, 1..=262_144)?,
            vocab,
            positions: number("max_position_embeddings", None, least_positions..=1_000_000)?,
            types: number("type_vocab_size", Some(2), 1..=1_000)?,
            eps: real("layer_norm_eps", 1e-12, 0.0..1.0)?,
            pad,
            dropout,
            attention_dropout: real("attention_probs_dropout_prob", 0.1, 0.0..1.0)?,
            classifier_dropout: real("classifier_dropout", dropout, 0.0..1.0)?,
            pooler: architecture == Architecture::Bert,
        })
    }

    /// A Hugging Face `config.json` of this shape; [`from_config`](Self::from_config) reads it back.
    pub fn to_config(&self) -> Value {
        let roberta = self.architecture == Architecture::Roberta;
        json!({
            "model_type": if roberta { "roberta" } else { "bert" },
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "hidden_act": "gelu",
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "type_vocab_size": self.types,
            "layer_norm_eps": self.eps,
            "pad_token_id": self.pad,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "classifier_dropout": self.classifier_dropout,
        })
    }

    /// The same shape with another dropout probability everywhere.
    pub fn with_dropout(mut self, p: f64) -> Self {
        (self.dropout, self.attention_dropout, self.classifier_dropout) = (p, p, p);
        self
    }

    /// The prefix of the model's names in a checkpoint.
    pub fn prefix(&self) -> &'static str {
        match self.architecture {
            Architecture::Bert => "bert.",
            Architecture::Roberta => "roberta.",
        }
    }

    /// The longest sequence, in tokens, prompts included.
    pub fn max_length(&self) -> usize {
        self.positions - self.first_position()
    }

    /// The position of a sequence's first token.
    pub(crate) fn first_position(&self) -> usize {
        match self.architecture {
            Architecture::Bert => 0,
            Architecture::Roberta => self.pad + 1,
        }
    }

    /// Every tensor of the backbone, in the order of its forward.
    pub fn places(&self) -> Vec<Place> {
        models::bert::places(self)
    }

    /// The linear maps, BERT's pooler included, and their module paths (with the model's prefix), in the order of the forward.
    pub fn linears(&self) -> Vec<(Site, String)> {
        let path = |place: Place| (place.site, format!("{}{}", self.prefix(), place.module()));
        self.places().into_iter().filter(|place| place.transposed).map(path).collect()
    }

    /// The module path of a site, with the model's prefix.
    pub fn module_path(&self, site: Site) -> Option<String> {
        self.places().iter().find(|p| p.site == site).map(|p| format!("{}{}", self.prefix(), p.module()))
    }

    /// Input and output width of a linear map.
    ///
    /// # Panics
    /// On a site that is not a linear map of the layers.
    pub fn linear_dims(&self, site: Site) -> [usize; 2] {
        use crate::Part::*;
        match site.part {
            Query | Key | Value | Output | Pooler => [self.hidden, self.hidden],
            Up => [self.hidden, self.intermediate],
            Down => [self.intermediate, self.hidden],
            _ => panic!("{site} is not a linear map"),
        }
    }

    /// The number of the backbone's parameters.
    pub fn count(&self) -> usize {
        self.places().iter().map(Place::count).sum()
    }
}

fn show(value: Option<&Value>) -> String {
    value.map_or("nothing".into(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn published_counts() {
        // Counted with transformers: RobertaModel and BertModel (the latter with its pooler).
        for (name, count) in [
            ("roberta-base", 124_055_040),
            ("roberta-large", 354_310_144),
            ("bert-base", 109_482_240),
            ("bert-large", 335_141_888),
            ("minilm-l6", 22_713_216),
        ] {
            assert_eq!(Shape::named(name).unwrap().count(), count, "{name}");
        }
    }

    #[test]
    fn a_config_is_read_back() {
        for name in ["roberta-base", "minilm-l6"] {
            let shape = Shape { attention_dropout: 0.2, ..Shape::named(name).unwrap() };
            assert_eq!(Shape::from_config(&shape.to_config(), Path::new("config.json")).unwrap(), shape);
        }
    }

    #[test]
    fn absurd_configs_are_refused_by_key() {
        let good = json!({"model_type": "bert", "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2,
            "intermediate_size": 40, "vocab_size": 97, "max_position_embeddings": 40});
        assert!(Shape::from_config(&good, Path::new("config.json")).is_ok());
        for (key, value) in [
            ("hidden_size", json!(-1)),
            ("hidden_size", json!(25)),
            ("hidden_size", json!("24")),
            ("num_hidden_layers", json!(4_000_000_000u64)),
            ("num_attention_heads", json!(0)),
            ("vocab_size", Value::Null),
            ("pad_token_id", json!(97)),
            ("layer_norm_eps", json!("small")),
            ("hidden_dropout_prob", json!(1.5)),
            ("hidden_act", json!("relu")),
            ("position_embedding_type", json!("relative_key")),
            ("model_type", json!("gpt2")),
            ("is_decoder", json!(true)),
            ("is_decoder", json!("yes")),
            ("pruned_heads", json!({"0": [1]})),
            ("quantization_config", json!({"bits": 4})),
            ("problem_type", json!("multi_label_classification")),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            let message = Shape::from_config(&bad, Path::new("dir/config.json")).unwrap_err().to_string();
            let named = message.contains(key) || key == "hidden_size" && message.contains("hidden_size");
            assert!(message.contains("dir/config.json") && named, "{key}: {message}");
        }
    }
}
