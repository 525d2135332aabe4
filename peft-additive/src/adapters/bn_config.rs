//! The settings of bottleneck adapters of any variant, and their form in AdapterHub's files.

use std::collections::BTreeMap;

use peft_core::adapterhub::{Fields, HubKey, Layout, whole, wrong};
use peft_core::{Error, Part, Result, Shape, Site, split_name};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bottleneck::{Activation, check_dropout, check_width};
use super::hub::{HUB_ACTIVATIONS, hub_fields, hub_key, hub_width};
use super::invertible::{block_name, inner_width};

/// Beyond the width of every model.
const LARGEST_FACTOR: f64 = 1e6;

/// By how much the width of a model is divided for that of a bottleneck.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reduction {
    /// In all layers.
    All(f64),
    /// By the layer's number, a decoder's after its encoder's; of the others under `default`.
    Layers(BTreeMap<String, f64>),
}

/// What multiplies the output of a bottleneck.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scaling {
    /// A number.
    Number(f64),
    /// Trained numbers, which start at 1.
    Trained(TrainedScaling),
}

/// How many numbers scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainedScaling {
    /// One.
    Learned,
    /// One for each channel.
    Channel,
}

/// Where the residual connection around a bottleneck begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ResidualAt {
    /// Before the model's normalization, at the output of the sub-layer, or behind it.
    BeforeNorm(bool),
    /// Between the two.
    Named(ResidualName),
}

/// See [`ResidualAt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResidualName {
    /// Behind the sum with the sub-layer's input.
    PostAdd,
}

/// An invertible block behind the embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Invertible {
    /// Two additive couplings.
    Nice,
}

/// The configuration, in the names of AdapterHub's `BnConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BnConfig {
    /// At the self-attention.
    pub mh_adapter: bool,
    /// At the feed-forward network.
    pub output_adapter: bool,
    /// At the cross-attention of a decoder behind an encoder.
    pub cross_adapter: bool,
    /// The width of the model is divided by it.
    pub reduction_factor: Reduction,
    /// Between the maps.
    pub non_linearity: Activation,
    /// Whether an adapter reads the sum with the residual, behind the model's normalization if that is there.
    pub original_ln_before: bool,
    /// Whether the residual addition and the model's normalization follow.
    pub original_ln_after: bool,
    /// Whether a normalization of its own comes first.
    pub ln_before: bool,
    /// Whether a normalization of its own comes last.
    pub ln_after: bool,
    /// Whether it stands beside the sub-layer and reads its input.
    pub is_parallel: bool,
    /// What its output is multiplied by.
    pub scaling: Scaling,
    /// Whether a gate multiplies its output.
    pub use_gating: bool,
    /// Where its residual begins.
    pub residual_before_ln: ResidualAt,
    /// Whether its own last normalization comes behind its residual.
    pub adapter_residual_before_ln: bool,
    /// The block behind the embeddings.
    pub inv_adapter: Option<Invertible>,
    /// What divides the width inside that.
    pub inv_adapter_reduction_factor: Option<f64>,
    /// Layers without an adapter; a decoder's come after its encoder's.
    pub leave_out: Vec<usize>,
    /// Dropout probability of its output.
    pub dropout: f64,
}

impl Default for BnConfig {
    /// AdapterHub's `SeqBnConfig`.
    fn default() -> Self {
        BnConfig {
            mh_adapter: false,
            output_adapter: true,
            cross_adapter: false,
            reduction_factor: Reduction::All(16.0),
            non_linearity: Activation::Relu,
            original_ln_before: true,
            original_ln_after: true,
            ln_before: false,
            ln_after: false,
            is_parallel: false,
            scaling: Scaling::Number(1.0),
            use_gating: false,
            residual_before_ln: ResidualAt::BeforeNorm(true),
            adapter_residual_before_ln: false,
            inv_adapter: None,
            inv_adapter_reduction_factor: None,
            leave_out: vec![],
            dropout: 0.0,
        }
    }
}

impl BnConfig {
    /// MAD-X: AdapterHub's `SeqBnInvConfig`.
    pub fn mad_x() -> Self {
        BnConfig { inv_adapter: Some(Invertible::Nice), inv_adapter_reduction_factor: Some(2.0), ..Default::default() }
    }

    /// The places and their widths; refuses settings that cannot be.
    pub(super) fn plan(&self, shape: &Shape) -> Result<Vec<(Site, usize)>> {
        check_dropout(self.dropout)?;
        if let Scaling::Number(scaling) = self.scaling
            && (!scaling.is_finite() || scaling == 0.0)
        {
            return Err(Error::config("scaling", scaling, "a finite number other than 0, learned or channel"));
        }
        let post_add = self.residual_before_ln == ResidualAt::Named(ResidualName::PostAdd);
        if post_add && (self.is_parallel || !self.original_ln_before || shape.pre_norm()) {
            let expected = "true or false, where original_ln_before is off or nothing is normalized behind sub-layers";
            return Err(Error::config("residual_before_ln", "post_add", expected));
        }
        match (self.inv_adapter, self.inv_adapter_reduction_factor) {
            (None, Some(factor)) => {
                return Err(Error::config("inv_adapter_reduction_factor", factor, "none without inv_adapter"));
            }
            (Some(_), factor) => drop(inner_width(shape, factor)?),
            (None, None) => {}
        }
        let places = [
            (self.mh_adapter, Part::SelfAttention),
            (self.cross_adapter, Part::CrossAttention),
            (self.output_adapter, Part::FeedForward),
        ];
        let sites = places.into_iter().filter(|(on, _)| *on).flat_map(|(_, part)| shape.sites(part)).collect();
        let sites = shape.leaving_out(sites, &self.leave_out)?;
        let width = |site: Site| {
            let width = hub_width(shape.hidden as f64, self.factor(shape.layer_number(site))?);
            check_width(width, shape).map(|()| (site, width))
        };
        sites.into_iter().map(width).collect()
    }

    /// The factor of a layer.
    fn factor(&self, layer: usize) -> Result<f64> {
        let factor = match &self.reduction_factor {
            Reduction::All(factor) => Some(*factor),
            Reduction::Layers(factors) => factors.get(&layer.to_string()).or(factors.get("default")).copied(),
        };
        let expected = format!("a number above 0, at most {LARGEST_FACTOR}, for layer {layer} or as default");
        match factor.filter(|factor| *factor > 0.0 && *factor <= LARGEST_FACTOR) {
            Some(factor) => Ok(factor),
            None => Err(Error::config("reduction_factor", json!(self.reduction_factor), expected)),
        }
    }

    /// The numbers beside the maps of one adapter.
    pub(super) fn beside(&self, d: usize) -> usize {
        let norms = usize::from(self.ln_before) + usize::from(self.ln_after);
        let scales = match self.scaling {
            Scaling::Number(_) => 0,
            Scaling::Trained(TrainedScaling::Learned) => 1,
            Scaling::Trained(TrainedScaling::Channel) => d,
        };
        2 * d * norms + scales + if self.use_gating { d + 1 } else { 0 }
    }
}

/// AdapterHub's `BnConfig`.
impl BnConfig {
    pub(super) fn hub_fields(&self, shape: &Shape) -> Result<Fields> {
        self.plan(shape)?;
        let factor = match &self.reduction_factor {
            Reduction::All(factor) => whole(*factor),
            Reduction::Layers(factors) => {
                factors.iter().map(|(layer, factor)| (layer.clone(), whole(*factor))).collect()
            }
        };
        let own = [
            ("reduction_factor", factor),
            ("original_ln_before", json!(self.original_ln_before)),
            ("original_ln_after", json!(self.original_ln_after)),
            ("ln_before", json!(self.ln_before)),
            ("ln_after", json!(self.ln_after)),
            ("is_parallel", json!(self.is_parallel)),
            ("scaling", json!(self.scaling)),
            ("use_gating", json!(self.use_gating)),
            ("residual_before_ln", json!(self.residual_before_ln)),
            ("adapter_residual_before_ln", json!(self.adapter_residual_before_ln)),
            ("inv_adapter", json!(self.inv_adapter)),
            ("inv_adapter_reduction_factor", self.inv_adapter_reduction_factor.map_or(Value::Null, whole)),
            ("cross_adapter", json!(self.cross_adapter)),
            ("leave_out", json!(self.leave_out)),
            ("dropout", json!(self.dropout)),
            ("init_weights", json!("bert")),
        ];
        Ok(hub_fields(shape, 1, self.non_linearity, [self.mh_adapter, self.output_adapter], own))
    }

    pub(super) fn of_hub(fields: &Fields, _: &Shape) -> Result<Self> {
        if fields.get("inv_adapter").and_then(Value::as_str) == Some("glow") {
            return Err(wrong(fields, "inv_adapter", "null or nice: the package itself fails with glow"));
        }
        let known = json!(BnConfig::default());
        let mut settings = Fields::new();
        for (name, _) in known.as_object().into_iter().flatten() {
            let Some(mut value) = fields.get(name).cloned() else { continue };
            if name == "non_linearity" {
                let ours = HUB_ACTIVATIONS.iter().find(|(_, theirs)| value.as_str() == Some(theirs));
                let names = || HUB_ACTIVATIONS.map(|(_, name)| name).join(", ");
                let ours = ours.ok_or_else(|| wrong(fields, name, &format!("one of {}", names())))?;
                value = json!(ours.0);
            }
            let alone = Fields::from_iter([(name.clone(), value.clone())]);
            if serde_json::from_value::<BnConfig>(Value::Object(alone)).is_err() {
                let expected = format!("a value like {}", known[name]);
                return Err(wrong(fields, name, &expected));
            }
            settings.insert(name.clone(), value);
        }
        // A factor of a block that is not there says nothing.
        if fields.get("inv_adapter").is_none_or(Value::is_null) {
            settings.insert("inv_adapter_reduction_factor".into(), Value::Null);
            settings.insert("inv_adapter".into(), Value::Null);
        }
        serde_json::from_value(Value::Object(settings))
            .map_err(|error| Error::config("config", error, "the fields of a BnConfig"))
    }

    pub(super) fn hub_key(&self, name: &str, adapter: &str, shape: &Shape) -> HubKey {
        if let Some(name) = name.strip_prefix("block.") {
            let front = shape.architecture.family().prefix;
            let stack = if shape.architecture.is_encoder_decoder() { "encoder." } else { "" };
            let [map, place, leaf] = block_name(name);
            let layout = if leaf == "weight" { Layout::Transposed } else { Layout::Same };
            return HubKey::new(format!("{front}{stack}invertible_adapters.{adapter}.{map}.{place}.{leaf}"), layout);
        }
        let (_, site, leaf) = split_name(name);
        match leaf.strip_prefix("maps.") {
            Some(leaf) if leaf.starts_with("norm.") => {
                let HubKey { name, .. } = hub_key(shape, site, "up.weight", adapter);
                let leaf = if leaf == "norm.gain" { "weight" } else { "bias" };
                HubKey::new(name.replace("adapter_up.weight", &format!("adapter_norm_before.{leaf}")), Layout::Same)
            }
            // The normalization counts as the first module of those in front.
            Some(leaf) if self.ln_before => {
                let HubKey { name, layout } = hub_key(shape, site, leaf, adapter);
                HubKey::new(name.replace("adapter_down.0.", "adapter_down.1."), layout)
            }
            Some(leaf) => hub_key(shape, site, leaf, adapter),
            None => {
                let HubKey { name, .. } = hub_key(shape, site, "up.weight", adapter);
                let leaf = match leaf {
                    "after.gain" => "adapter_norm_after.weight",
                    "after.bias" => "adapter_norm_after.bias",
                    leaf => leaf,
                };
                let layout = if leaf == "gate.weight" { Layout::Transposed } else { Layout::Same };
                HubKey::new(name.replace("adapter_up.weight", leaf), layout)
            }
        }
    }
}
