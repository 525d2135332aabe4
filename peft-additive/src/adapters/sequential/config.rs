//! The settings of sequential adapters, and their form in AdapterHub's files.

use peft_core::adapterhub::{Fields, field};
use peft_core::{Error, Part, Result, Shape, Site};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::adapters::bottleneck::{Activation, check_dropout, check_width};
use crate::adapters::hub::{LAYERS, hub_fields, hub_settings};

/// Where in a layer the adapters are, and what they read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// After attention and after the feed-forward network, each on the sub-layer's own output.
    #[default]
    Houlsby,
    /// After the feed-forward network only, on its normalized sum with the residual.
    Pfeiffer,
    /// After the feed-forward network only, on its own output.
    FeedForward,
}

/// What the adapters start from; biases start at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Both matrices normal with standard deviation `init_std`, cut off at twice that.
    #[default]
    NearIdentity,
    /// The same, not cut off.
    Normal,
    /// As `NearIdentity`, but the second matrix 0: the model is unchanged, to the bit.
    ZeroUp,
}

/// The configuration of sequential adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SequentialConfig {
    /// Width m of the bottleneck.
    pub bottleneck: usize,
    /// Where.
    pub placement: Placement,
    /// Between the maps.
    pub activation: Activation,
    /// The start.
    pub init: Init,
    /// Standard deviation of the start.
    pub init_std: f64,
    /// Dropout probability behind the activation.
    pub dropout: f64,
    /// Whether all layer normalizations of the model are trained too.
    pub train_layernorm: bool,
    /// Sub-layers whose adapter begins with a layer normalization of its own, with the model's epsilon.
    pub inner_norm: Vec<Part>,
    /// Layers without an adapter, by their numbers; a decoder's come after its encoder's.
    pub leave_out: Vec<usize>,
}

impl Default for SequentialConfig {
    /// The paper's: width 64.
    fn default() -> Self {
        SequentialConfig {
            bottleneck: 64,
            placement: Placement::Houlsby,
            activation: Activation::Gelu,
            init: Init::NearIdentity,
            init_std: 1e-3,
            dropout: 0.0,
            train_layernorm: true,
            inner_norm: vec![],
            leave_out: vec![],
        }
    }
}

impl SequentialConfig {
    /// The paper's form with a bottleneck of this width.
    pub fn houlsby(bottleneck: usize) -> Self {
        SequentialConfig { bottleneck, ..Default::default() }
    }

    /// AdapterHub's `seq_bn` form with a bottleneck of this width: one adapter a layer, the normalizations frozen, and a start near
    /// that of BERT.
    pub fn pfeiffer(bottleneck: usize) -> Self {
        SequentialConfig { placement: Placement::Pfeiffer, ..Self::like_bert(bottleneck) }
    }

    /// The form that fits the survey's parameter counts, the MAM code's Houlsby adapter: width 200, a normalization inside the adapter
    /// after attention, and RoBERTa's dropout.
    pub fn survey() -> Self {
        SequentialConfig { inner_norm: vec![Part::SelfAttention], dropout: 0.1, ..Self::like_bert(200) }
    }

    /// What AdapterHub and the MAM code share: both matrices start as BERT's, and only adapters are trained.
    fn like_bert(bottleneck: usize) -> Self {
        let (activation, init) = (Activation::Relu, Init::Normal);
        SequentialConfig { bottleneck, activation, init, init_std: 0.02, train_layernorm: false, ..Default::default() }
    }

    /// With a bottleneck of this width.
    pub fn with_bottleneck(mut self, width: usize) -> Self {
        self.bottleneck = width;
        self
    }

    /// In these places.
    pub fn with_placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// With this non-linearity.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// From this start.
    pub fn with_init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// From numbers of this standard deviation.
    pub fn with_init_std(mut self, std: f64) -> Self {
        self.init_std = std;
        self
    }

    /// With dropout of this probability behind the activation.
    pub fn with_dropout(mut self, p: f64) -> Self {
        self.dropout = p;
        self
    }

    /// With the model's layer normalizations trained too, or frozen.
    pub fn with_train_layernorm(mut self, train: bool) -> Self {
        self.train_layernorm = train;
        self
    }

    /// With a layer normalization in front of the adapters of these sub-layers.
    pub fn with_inner_norm(mut self, sublayers: impl IntoIterator<Item = Part>) -> Self {
        self.inner_norm = sublayers.into_iter().collect();
        self
    }

    /// Without adapters in these layers.
    pub fn with_leave_out(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.leave_out = layers.into_iter().collect();
        self
    }

    /// How many numbers the first maps of all adapters have, and how many the second, biases included.
    pub fn sizes(&self, shape: &Shape) -> Result<[usize; 2]> {
        let (d, m, adapters) = (shape.hidden, self.bottleneck, self.plan(shape)?.len());
        Ok([adapters * (d * m + m), adapters * (m * d + d)])
    }

    /// The sub-layers with an adapter; refuses settings that cannot be.
    pub(in crate::adapters) fn plan(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_width(self.bottleneck, shape)?;
        check_dropout(self.dropout)?;
        // From 0 no matrix would ever move: the gradient of each is a product with the other.
        if !(self.init_std > 0.0 && self.init_std <= 1.0) {
            return Err(Error::config("init_std", self.init_std, "a number above 0, at most 1"));
        }
        let parts: &[Part] = match self.placement {
            Placement::Houlsby => &[Part::SelfAttention, Part::FeedForward],
            Placement::Pfeiffer | Placement::FeedForward => &[Part::FeedForward],
        };
        if let Some(part) = self.inner_norm.iter().find(|part| !parts.contains(part)) {
            let allowed: Vec<&str> = parts.iter().map(|part| part.name()).collect();
            return Err(Error::config("inner_norm", part.name(), allowed.join(", ")));
        }
        shape.leaving_out(parts.iter().flat_map(|part| shape.sites(*part)).collect(), &self.leave_out)
    }
}

/// AdapterHub's `DoubleSeqBnConfig` and `SeqBnConfig`.
impl SequentialConfig {
    pub(super) fn hub_fields(&self, shape: &Shape) -> Result<Fields> {
        if self.train_layernorm {
            let expected = "false: AdapterHub's files hold no normalization of the model";
            return Err(Error::config("train_layernorm", true, expected));
        }
        if let Some(part) = self.inner_norm.first() {
            let expected = "none: AdapterHub's has an epsilon of its own";
            return Err(Error::config("inner_norm", part.name(), expected));
        }
        let pfeiffer = self.placement == Placement::Pfeiffer;
        let own = [
            ("original_ln_before", json!(pfeiffer)),
            ("is_parallel", json!(false)),
            ("scaling", json!(1.0)),
            ("init_weights", json!("bert")),
            ("leave_out", json!(self.leave_out)),
        ];
        let attention = self.placement == Placement::Houlsby;
        Ok(hub_fields(shape, self.bottleneck, self.activation, [attention, true], own))
    }

    pub(super) fn of_hub(fields: &Fields, shape: &Shape) -> Result<Self> {
        let (bottleneck, activation) = hub_settings(fields, shape)?;
        let on = |key: &str| field::<bool>(fields, key, "true or false");
        let config = match (on("original_ln_before")?, on("mh_adapter")?) {
            (true, _) => Self::pfeiffer(bottleneck),
            (false, true) => Self::houlsby(bottleneck),
            (false, false) => Self::pfeiffer(bottleneck).with_placement(Placement::FeedForward),
        };
        let leave_out: Vec<usize> = field(fields, "leave_out", LAYERS)?;
        Ok(config.with_activation(activation).with_train_layernorm(false).with_leave_out(leave_out))
    }
}
