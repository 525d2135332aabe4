//! Where a method is put: a [`Site`] names one place of a backbone, [`Sites`] selects places, [`SiteMap`] holds
//! one module for each.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display};
use std::{ops::BitOr, str::FromStr};

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::{Error, Pattern, Result, Shape};

/// A stack of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stack {
    /// The encoder of an encoder or of an encoder-decoder.
    Encoder,
    /// The decoder of a decoder or of an encoder-decoder.
    Decoder,
}

macro_rules! parts {
    ($($(#[$doc:meta])* $part:ident = $name:literal,)*) => {
        /// A part of a layer (or, for the last ones, of the whole stack: their layer is 0).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Part { $($(#[$doc])* $part,)* }

        impl Part {
            /// Its name in site names and configuration files.
            pub fn name(self) -> &'static str {
                match self { $(Part::$part => $name,)* }
            }
        }

        impl FromStr for Part {
            type Err = Error;
            fn from_str(name: &str) -> Result<Self> {
                match name {
                    $($name => Ok(Part::$part),)*
                    _ => Err(Error::config("part", name, [$($name),*].join(", "))),
                }
            }
        }
    };
}

parts! {
    /// The whole layer.
    Layer = "layer",
    /// The self-attention sub-layer, up to its residual addition.
    SelfAttention = "self_attention",
    /// The cross-attention sub-layer of a decoder, up to its residual addition.
    CrossAttention = "cross_attention",
    /// The feed-forward sub-layer, up to its residual addition.
    FeedForward = "feed_forward",
    /// The query projection; as a choice of sites also that of the cross-attention.
    Query = "query",
    /// The key projection; as a choice of sites also that of the cross-attention.
    Key = "key",
    /// The value projection; as a choice of sites also that of the cross-attention.
    Value = "value",
    /// The output projection of the attention; as a choice of sites also that of the cross-attention.
    Output = "output",
    /// The query projection of the cross-attention.
    CrossQuery = "cross_query",
    /// The key projection of the cross-attention.
    CrossKey = "cross_key",
    /// The value projection of the cross-attention.
    CrossValue = "cross_value",
    /// The output projection of the cross-attention.
    CrossOutput = "cross_output",
    /// The gate beside the first linear map of a gated feed-forward network.
    Gate = "gate",
    /// The first linear map of the feed-forward network.
    Up = "up",
    /// The last linear map of the feed-forward network.
    Down = "down",
    /// The normalization that belongs to the self-attention.
    NormAttention = "norm_attention",
    /// The normalization that belongs to the cross-attention.
    NormCrossAttention = "norm_cross_attention",
    /// The normalization that belongs to the feed-forward network.
    NormFeedForward = "norm_feed_forward",
    /// The normalization of the embeddings.
    NormEmbedding = "norm_embedding",
    /// The normalization behind the last layer.
    NormFinal = "norm_final",
    /// The word embedding table.
    Words = "words",
    /// The position embedding table.
    Positions = "positions",
    /// The table of relative position biases, a row for each bucket, a column for each head.
    RelativePositions = "relative_positions",
    /// The token type (segment) embedding table.
    Types = "types",
    /// The linear map over the first position (BERT's pooler).
    Pooler = "pooler",
    /// The table that makes logits over words, where it is not the word table.
    Vocabulary = "vocabulary",
}

impl Part {
    /// Whether it is a table, of rows that are looked up or of what makes logits over words.
    pub fn is_table(self) -> bool {
        matches!(self, Part::Words | Part::Positions | Part::RelativePositions | Part::Types | Part::Vocabulary)
    }

    /// Whether it is a part of a layer, not of what stands in front of the layers or behind them.
    pub fn is_in_layer(self) -> bool {
        !self.is_table() && !matches!(self, Part::NormEmbedding | Part::NormFinal | Part::Pooler)
    }

    /// Whether this choice of sites takes in a site with that part.
    pub(crate) fn selects(self, part: Part) -> bool {
        let crossed = matches!(
            (self, part),
            (Part::Query, Part::CrossQuery)
                | (Part::Key, Part::CrossKey)
                | (Part::Value, Part::CrossValue)
                | (Part::Output, Part::CrossOutput)
        );
        self == part || crossed
    }
}

/// A named place in a backbone. Its name is `encoder.3.query`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The stack.
    pub stack: Stack,
    /// The layer, counted from 0.
    pub layer: usize,
    /// The part of the layer.
    pub part: Part,
}

impl Site {
    /// A part of an encoder's layer.
    pub fn encoder(layer: usize, part: Part) -> Self {
        Site { stack: Stack::Encoder, layer, part }
    }

    /// A part of a decoder's layer.
    pub fn decoder(layer: usize, part: Part) -> Self {
        Site { stack: Stack::Decoder, layer, part }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stack = match self.stack {
            Stack::Encoder => "encoder",
            Stack::Decoder => "decoder",
        };
        write!(f, "{stack}.{}.{}", self.layer, self.part.name())
    }
}

impl FromStr for Site {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        let wrong = || Error::config("site", name, "STACK.LAYER.PART, such as encoder.0.query");
        let mut words = name.splitn(3, '.');
        let stack = match words.next() {
            Some("encoder") => Stack::Encoder,
            Some("decoder") => Stack::Decoder,
            _ => return Err(wrong()),
        };
        let layer = words.next().and_then(|l| l.parse().ok()).ok_or_else(wrong)?;
        let part = words.next().ok_or_else(wrong)?.parse()?;
        Ok(Site { stack, layer, part })
    }
}

/// Which linear maps a method is put on, in the forms of Hugging Face PEFT's `target_modules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Sites {
    /// These parts, in every layer: `Query | Value`.
    Parts(Vec<Part>),
    /// Every module whose path is one of these names or ends in `.` and one of them.
    Names(Vec<String>),
    /// Every module whose whole path matches this regular expression; `all-linear` is every linear map.
    Pattern(String),
}

impl Sites {
    /// The selected linear maps of a model, in the model's order. A name or pattern that matches nothing is an error.
    pub fn resolve(&self, shape: &Shape) -> Result<Vec<Site>> {
        self.among(&shape.linears())
    }

    /// The selected ones of these modules, in their order. A name or pattern that matches none is an error.
    pub fn among(&self, modules: &[(Site, String)]) -> Result<Vec<Site>> {
        let no_site = |pattern: &str| Error::NoSite {
            pattern: pattern.to_string(),
            allowed: modules.iter().take(7).map(|(_, path)| path.as_str()).collect::<Vec<_>>().join(", ") + ", ..",
        };
        let select = |pattern: &str, test: &dyn Fn(&Site, &str) -> Result<bool>| {
            let tested = modules.iter().map(|(site, path)| Ok(test(site, path)?.then_some(*site)));
            let found: Vec<Site> = tested.filter_map(Result::transpose).collect::<Result<_>>()?;
            if found.is_empty() { Err(no_site(pattern)) } else { Ok(found) }
        };
        let union = |found: Vec<Vec<Site>>| {
            modules.iter().map(|(s, _)| *s).filter(|s| found.iter().any(|f| f.contains(s))).collect()
        };
        match self {
            Sites::Parts(parts) if parts.is_empty() => Err(no_site("")),
            Sites::Parts(parts) => parts
                .iter()
                .map(|part| select(part.name(), &|site, _| Ok(part.selects(site.part))))
                .collect::<Result<Vec<_>>>()
                .map(union),
            Sites::Names(names) if names.is_empty() => Err(no_site("")),
            Sites::Names(names) => names
                .iter()
                .map(|name| select(name, &|_, path| Ok(is_end(name, path))))
                .collect::<Result<Vec<_>>>()
                .map(union),
            Sites::Pattern(pattern) if pattern.eq_ignore_ascii_case(ALL_LINEAR) => {
                select(pattern, &|site, _| Ok(!site.part.is_table()))
            }
            Sites::Pattern(text) => {
                let pattern = Pattern::whole("target_modules", text)?;
                select(text, &|_, path| pattern.matches(path))
            }
        }
    }

    /// The same sites by module names, in the form that PEFT reads: the shortest ends of their paths that match nothing else.
    pub fn by_name(&self, shape: &Shape) -> Result<Sites> {
        self.named_among(&shape.linears())
    }

    /// The same of these modules.
    pub fn named_among(&self, modules: &[(Site, String)]) -> Result<Sites> {
        let Sites::Parts(parts) = self else { return Ok(self.clone()) };
        let mut names = Vec::new();
        for part in parts {
            let own: Vec<&str> =
                modules.iter().filter(|(s, _)| part.selects(s.part)).map(|(_, p)| p.as_str()).collect();
            let first = own
                .first()
                .ok_or_else(|| Error::config("site", part.name(), "a part that has such modules in this model"))?;
            let words: Vec<&str> = first.split('.').collect();
            let ends = (1..=words.len()).map(|n| words[words.len() - n..].join("."));
            let exact = |name: &String| {
                let matched = Sites::Names(vec![name.clone()]).among(modules).unwrap_or_default();
                matched.len() == own.len() && matched.iter().all(|site| part.selects(site.part))
            };
            match ends.into_iter().find(exact) {
                Some(name) => names.push(name),
                None => names.extend(own.into_iter().map(str::to_string)),
            }
        }
        Ok(Sites::Names(names))
    }
}

/// The name that stands for every linear map, in any case.
pub(crate) const ALL_LINEAR: &str = "all-linear";

/// Whether a module is meant by a name: that of its path or of the path's end.
pub(crate) fn is_end(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

impl From<Part> for Sites {
    fn from(part: Part) -> Self {
        Sites::Parts(vec![part])
    }
}

impl BitOr for Part {
    type Output = Sites;
    fn bitor(self, other: Part) -> Sites {
        Sites::Parts(vec![self, other])
    }
}

impl BitOr<Part> for Sites {
    type Output = Sites;
    /// # Panics
    /// On sites that are names or a pattern.
    fn bitor(self, part: Part) -> Sites {
        match self {
            Sites::Parts(mut parts) => {
                parts.push(part);
                Sites::Parts(parts)
            }
            other => panic!("{other:?} | {part:?}: only parts can be joined"),
        }
    }
}

/// One module for each of some keys. In records its tensors are called `<key>.<name>`.
#[derive(Clone, Debug)]
pub struct ModuleMap<K, M>(BTreeMap<K, M>);

/// One module for each of some sites. In records its tensors are called `encoder.0.query.<name>`.
pub type SiteMap<M> = ModuleMap<Site, M>;

impl<M> SiteMap<M> {
    /// The module at a site.
    pub fn get(&self, site: Site) -> Option<&M> {
        self.0.get(&site)
    }

    /// The sites and their modules.
    pub fn iter(&self) -> impl Iterator<Item = (Site, &M)> {
        self.0.iter().map(|(site, module)| (*site, module))
    }
}

impl<M> ModuleMap<String, M> {
    /// The module of a name.
    pub fn named(&self, name: &str) -> Option<&M> {
        self.0.get(name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl<K: Ord, M> ModuleMap<K, M> {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn map_values(self, f: impl FnMut((K, M)) -> (K, M)) -> Self {
        ModuleMap(self.0.into_iter().map(f).collect())
    }
}

impl<K: Ord, M> FromIterator<(K, M)> for ModuleMap<K, M> {
    fn from_iter<I: IntoIterator<Item = (K, M)>>(iter: I) -> Self {
        ModuleMap(iter.into_iter().collect())
    }
}

impl<K, M> Module for ModuleMap<K, M>
where
    K: Ord + Clone + Display + Debug + Send,
    M: Module,
{
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.0.values().fold(devices, |devices, module| module.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        self.map_values(|(key, module)| (key, module.fork(device)))
    }

    fn to_device(self, device: &Device) -> Self {
        self.map_values(|(key, module)| (key, module.to_device(device)))
    }

    fn train(self) -> Self {
        self.map_values(|(key, module)| (key, module.train()))
    }

    fn valid(&self) -> Self {
        ModuleMap(self.0.iter().map(|(key, module)| (key.clone(), module.valid())).collect())
    }

    fn materialize(self) -> Self {
        self.map_values(|(key, module)| (key, module.materialize()))
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        for (key, module) in &self.0 {
            let name = key.to_string();
            visitor.enter_module(&name, "Key");
            module.visit(visitor);
            visitor.exit_module(&name, "Key");
        }
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        self.map_values(|(key, module)| {
            let name = key.to_string();
            mapper.enter_module(&name, "Key");
            let module = module.map(mapper);
            mapper.exit_module(&name, "Key");
            (key, module)
        })
    }
}

impl<K, M> ModuleDisplayDefault for ModuleMap<K, M>
where
    K: Ord + Clone + Display + Debug + Send,
    M: ModuleDisplay,
{
    fn content(&self, content: Content) -> Option<Content> {
        self.0.iter().fold(content, |content, (key, module)| content.add(&key.to_string(), module)).optional()
    }
}

impl<K, M> ModuleDisplay for ModuleMap<K, M>
where
    K: Ord + Clone + Display + Debug + Send,
    M: ModuleDisplay,
{
}

#[cfg(test)]
mod tests {
    use super::*;
    use Part::*;

    #[test]
    fn names_are_read_back() {
        for (site, path) in Shape::named("roberta-base").unwrap().linears() {
            assert_eq!(site.to_string().parse::<Site>().unwrap(), site, "{path}");
        }
        assert!("encoder.query".parse::<Site>().is_err());
    }

    #[test]
    fn the_three_forms_agree() {
        let shape = Shape::named("roberta-base").unwrap();
        let parts = (Query | Value).resolve(&shape).unwrap();
        assert_eq!(parts.len(), 24);
        let names = Sites::Names(vec!["value".into(), "query".into()]);
        assert_eq!(names.resolve(&shape).unwrap(), parts);
        let pattern = Sites::Pattern(r".*\.self\.(query|value)".into());
        assert_eq!(pattern.resolve(&shape).unwrap(), parts);
        assert_eq!(Sites::Pattern("all-linear".into()).resolve(&shape).unwrap().len(), 72);
        // Hugging Face's default for (IA)^3 matches attention.output.dense too.
        assert_eq!(Sites::Names(vec!["output.dense".into()]).resolve(&shape).unwrap().len(), 24);
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_an_error() {
        let shape = Shape::named("roberta-base").unwrap();
        for sites in [
            Sites::Names(vec!["query".into(), "q_proj".into()]),
            Sites::Pattern("query".into()),
            Sites::Names(vec![]),
            Sites::Pattern("(".into()),
        ] {
            let message = sites.resolve(&shape).unwrap_err().to_string();
            assert!(message.contains("matches nothing") || message.contains("regular expression"), "{message}");
        }
    }
}
