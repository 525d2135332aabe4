//! The shape of a backbone: everything that can be said of it without its weights.

use std::path::Path;

use serde_json::Value;

use crate::models::family;
use crate::models::fields::Fields;
use crate::{Architecture, Error, Part, Purpose, Result, Site, Stack};

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
    /// Number of layers; the encoder's, where there are an encoder and a decoder.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Rows of the word table.
    pub vocab: usize,
    /// Number of positions: the rows of the table, where there is one.
    pub positions: usize,
    /// Rows of the token type table; 0 without one.
    pub types: usize,
    /// Epsilon of the normalizations.
    pub eps: f64,
    /// Id of the padding token, or what stands in its place in a model that has none.
    pub pad: usize,
    /// The position of a sequence's first token: 0, but RoBERTa's positions begin behind the id of its padding token.
    pub first_position: usize,
    /// Ids that end a generated text.
    pub stop: Vec<usize>,
    /// Dropout probability on hidden states while training.
    pub dropout: f64,
    /// Dropout probability on attention weights while training.
    pub attention_dropout: f64,
    /// Dropout probability in a classification head while training.
    pub classifier_dropout: f64,
    /// Whether a linear map and tanh over the first position belong to the model.
    pub pooler: bool,
    /// Whether logits over words are made with the word table, not with a table of their own.
    pub tied: bool,
    /// What the names of its tensors begin with in files.
    pub prefix: &'static str,
}

impl Shape {
    /// A published shape, such as `roberta-base`, or a tiny one for tests, such as `bert-tiny`; [`NAMES`](Self::NAMES) has all.
    pub fn named(name: &str) -> Result<Self> {
        family::named(name).ok_or_else(|| Error::config("shape", name, Self::NAMES.join(", ")))
    }

    /// The names of the published shapes.
    pub const NAMES: [&str; 16] = [
        "roberta-base",
        "roberta-large",
        "bert-base",
        "bert-large",
        "minilm-l6",
        "t5-base",
        "t5-large",
        "t5-v1_1-base",
        "llama-7b",
        "llama-13b",
        "tinyllama-1.1b",
        "smollm2-135m",
        "roberta-tiny",
        "bert-tiny",
        "t5-tiny",
        "llama-tiny",
    ];

    /// Reads a Hugging Face `config.json`, refusing what this library does not compute.
    pub fn from_config(config: &Value, path: &Path) -> Result<Self> {
        let fields = Fields { config, path };
        fields.check_common()?;
        let shape = family::from_fields(&fields)?;
        fields.ids("bos_token_id", shape.vocab)?;
        Ok(shape)
    }

    /// A Hugging Face `config.json` of this shape; [`from_config`](Self::from_config) reads it back.
    pub fn to_config(&self) -> Value {
        family::to_config(self)
    }

    /// The same shape with another dropout probability everywhere.
    pub fn with_dropout(mut self, p: f64) -> Self {
        (self.dropout, self.attention_dropout, self.classifier_dropout) = (p, p, p);
        self
    }

    /// The same shape as a model for this purpose has it: without a pooler where its head does not read it, and, where there is no
    /// head to tell its tensors from, without a prefix before their names.
    pub fn for_purpose(mut self, purpose: Purpose) -> Self {
        self.pooler &= matches!(purpose, Purpose::Texts | Purpose::States);
        self.prefix = if purpose == Purpose::States { "" } else { self.architecture.family().prefix };
        self
    }

    /// A place's name in a checkpoint. The table of a head for words stands outside of the model that it is put on.
    pub fn file_name(&self, place: &Place) -> String {
        let prefix = if place.site.part == Part::Vocabulary { "" } else { self.prefix };
        format!("{prefix}{}", place.name)
    }

    /// Refuses ids that are no rows of the word table.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.vocab) {
            None => Ok(()),
            Some(id) => {
                Err(Error::config("input_ids", id, format!("ids below {}, the model's vocabulary", self.vocab)))
            }
        }
    }

    /// The longest sequence, in tokens, prompts included: dynamic scaling of rotary positions is for longer ones than those of the
    /// pretraining.
    pub fn max_length(&self) -> usize {
        match self.dynamic() {
            Some(factor) => (self.positions as f64 * factor) as usize,
            None => self.positions - self.first_position,
        }
    }

    /// The factor by which rotary positions are scaled as a sequence grows, if they are.
    pub(crate) fn dynamic(&self) -> Option<f64> {
        self.architecture.dynamic()
    }

    /// The stacks in the order of the forward, each with its number of layers.
    pub fn stacks(&self) -> Vec<(Stack, usize)> {
        let layers = std::iter::once(self.layers).chain(self.architecture.decoder_layers());
        self.architecture.family().stacks.iter().copied().zip(layers).collect()
    }

    /// The shape with the first layer of each stack alone.
    pub fn one_layer(self) -> Self {
        self.with_layers(1)
    }

    /// The shape with so many layers in each stack.
    pub fn with_layers(mut self, layers: usize) -> Self {
        (self.layers, self.architecture) = (layers, self.architecture.with_layers(layers));
        self
    }

    /// A part in every layer that has it, in the order of the forward. Only decoders behind an encoder have cross-attention.
    pub fn sites(&self, part: Part) -> Vec<Site> {
        let stacks = self.stacks();
        let crossed = |stack| stacks.len() == 2 && stack == Stack::Decoder;
        let has = |stack| part != Part::CrossAttention || crossed(stack);
        let layers = |(stack, layers)| (0..layers).map(move |layer| Site { stack, layer, part });
        stacks.iter().copied().filter(|(stack, _)| has(*stack)).flat_map(layers).collect()
    }

    /// The number of a site's layer among those of all stacks, as AdapterHub counts: a decoder's come after its encoder's.
    pub fn layer_number(&self, site: Site) -> usize {
        let before = self.stacks().into_iter().take_while(|(stack, _)| *stack != site.stack);
        before.map(|(_, layers)| layers).sum::<usize>() + site.layer
    }

    /// Those of some sites that are in none of these layers, by their [numbers](Self::layer_number): the setting `leave_out`. What is in
    /// no layer stays.
    pub fn leaving_out(&self, sites: Vec<Site>, leave_out: &[usize]) -> Result<Vec<Site>> {
        let layers: usize = self.stacks().into_iter().map(|(_, layers)| layers).sum();
        if let Some(wrong) = leave_out.iter().find(|layer| **layer >= layers) {
            return Err(Error::config("leave_out", wrong, format!("numbers below {layers}, the model's layers")));
        }
        let out = |site: &Site| site.part.is_in_layer() && leave_out.contains(&self.layer_number(*site));
        Ok(sites.into_iter().filter(|site| !out(site)).collect())
    }

    /// The word table.
    pub fn words(&self) -> Site {
        Site { stack: self.stacks()[0].0, layer: 0, part: Part::Words }
    }

    /// Number of heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.architecture.kv_heads().unwrap_or(self.heads)
    }

    /// Whether normalizations stand before their sub-layers, which the residual stream passes by, not after.
    pub fn pre_norm(&self) -> bool {
        self.architecture.family().pre_norm
    }

    /// Every tensor of the backbone, in the order of its forward.
    pub fn places(&self) -> Vec<Place> {
        family::places(self)
    }

    /// Every tensor with the model's prefix in its name, each use of the word table apart, as transformers has its modules.
    pub fn uses(&self) -> Vec<Place> {
        let mut uses: Vec<Place> =
            self.places().into_iter().map(|place| Place { name: self.file_name(&place), ..place }).collect();
        // Only a burn module that is not of this library may have none.
        let Some(words) = uses.iter().position(|place| place.site == self.words()) else { return uses };
        let table = |site, name: &str| Place { site, name: name.into(), ..uses[words].clone() };
        let vocabulary = table(Site::decoder(0, Part::Vocabulary), "lm_head.weight");
        if self.architecture.is_encoder_decoder() {
            let stacks = [Site::encoder(0, Part::Words), Site::decoder(0, Part::Words)];
            let names = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
            let tables: Vec<Place> = stacks.into_iter().zip(names).map(|(site, name)| table(site, name)).collect();
            uses.splice(words..=words, tables);
        }
        if self.pre_norm() && self.tied {
            uses.push(vocabulary);
        }
        uses
    }

    /// Every module with a matrix or a table, by its path with the model's prefix: the linear maps, and each use of a table.
    pub fn matrices(&self) -> Vec<(Site, String)> {
        let matrices = self.uses().into_iter().filter(|place| place.slot == Slot::Weight);
        matrices.map(|place| (place.site, place.module().to_string())).collect()
    }

    /// The linear maps, BERT's pooler included, and their module paths (with the model's prefix), in the order of the forward.
    pub fn linears(&self) -> Vec<(Site, String)> {
        let path = |place: Place| (place.site, format!("{}{}", self.prefix, place.module()));
        self.places().into_iter().filter(|place| place.transposed).map(path).collect()
    }

    /// The module path of a site, with the model's prefix.
    pub fn module_path(&self, site: Site) -> Option<String> {
        let place = self.places().into_iter().find(|place| place.site == site)?;
        Some(Place { name: self.file_name(&place), ..place }.module().to_string())
    }

    /// Input and output width of a linear map.
    ///
    /// # Panics
    /// On a site that is not a linear map of the model.
    pub fn linear_dims(&self, site: Site) -> [usize; 2] {
        let place = self.places().into_iter().find(|place| place.site == site && place.transposed);
        let dims = place.unwrap_or_else(|| panic!("{site} is not a linear map")).dims;
        [dims[0], dims[1]]
    }

    /// The number of the backbone's parameters.
    pub fn count(&self) -> usize {
        self.places().iter().map(Place::count).sum()
    }
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
            // The survey's, which are those of transformers.
            ("t5-base", 222_903_552),
            ("t5-large", 737_668_096),
            ("llama-7b", 6_738_415_616),
            ("llama-13b", 13_015_864_320),
            ("tinyllama-1.1b", 1_100_048_384),
            ("smollm2-135m", 134_515_008),
        ] {
            assert_eq!(Shape::named(name).unwrap().count(), count, "{name}");
        }
    }

    #[test]
    fn layers_are_left_out_by_their_numbers_among_all() {
        let shape = Shape::named("t5-tiny").unwrap();
        let [(_, encoder), (_, decoder)] = shape.stacks()[..] else { panic!("two stacks") };
        let all = shape.sites(Part::FeedForward);
        assert_eq!(
            all.iter().map(|site| shape.layer_number(*site)).collect::<Vec<_>>(),
            (0..encoder + decoder).collect::<Vec<_>>()
        );
        let left = shape.leaving_out([all.clone(), shape.sites(Part::NormFinal)].concat(), &[0, encoder + 1]).unwrap();
        let gone = [Site::encoder(0, Part::FeedForward), Site::decoder(1, Part::FeedForward)];
        assert!(gone.iter().all(|site| all.contains(site) && !left.contains(site)));
        assert_eq!(left.len(), 2 * all.len() - 2);
        let message = shape.leaving_out(all, &[encoder + decoder]).unwrap_err().to_string();
        assert!(
            message.contains("leave_out") && message.contains(&format!("below {}", encoder + decoder)),
            "{message}"
        );
    }

    #[test]
    fn a_config_is_read_back() {
        for name in Shape::NAMES {
            let shape = Shape::named(name).unwrap();
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
            ("pad_token_id", json!([1])),
            ("pad_token_id", json!("0")),
            ("bos_token_id", json!(1.5)),
            ("eos_token_id", json!([5, "97"])),
            ("layer_norm_eps", json!("small")),
            ("hidden_dropout_prob", json!(1.5)),
            ("hidden_act", json!("relu")),
            ("position_embedding_type", json!("relative_key")),
            ("model_type", json!("gpt2")),
            ("is_decoder", json!(true)),
            ("is_decoder", json!("yes")),
            ("pruned_heads", json!({"0": [1]})),
            ("problem_type", json!("multi_label_classification")),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            let message = Shape::from_config(&bad, Path::new("dir/config.json")).unwrap_err().to_string();
            assert!(message.contains("dir/config.json") && message.contains(key), "{key}: {message}");
        }
    }
}
