//! # AdapterDrop                            family: additive / adapter-based
//! u' = u + act(z Wd + bd) Wu + bu in the layers n, .., L - 1; u' = u in the layers 0, .., n - 1     Wd, Wu, z as in Pfeiffer's sequential adapter
//! Paper: Rueckle et al., 2021, arXiv:2010.11918, section 3.   Reference: adapter-hub `SeqBnConfig` with `leave_out`, and `ForwardContext` without adapters in some layers
//! Oracle: code adapter-hub/adapters src/adapters/methods/modeling.py: `equals_the_derivation_of_adapter_drop`, `a_robust_run_is_that_of_the_derivation`
//! Trains: (L - n) (2 d m + m + d); of a robust one L (2 d m + m + d).      Merges: no, the non-linearity is in front of the residual.
//! Identities:
//! - the base at init with `zero_up`: `C1`
//! - n = 0 is Pfeiffer's adapter: `without_dropping_it_is_the_adapter_of_all_layers`
//! - its adapters have in the dropped layers zeros in the second map: `a_dropped_adapter_is_one_of_zeros`
//! - the states of the layers below n are the base's, for any task: `states_below_are_those_of_the_base`
//! - below n nothing is differentiated: `nothing_below_is_differentiated`
//! - a robust one with n layers dropped is a specialised one with its upper adapters: `a_robust_one_holds_every_specialised_one`
//! - a robust one draws each n alike while it trains, and is left with its own: `each_number_of_layers_is_drawn_alike`
//! - an adapter that is left out of a step is neither moved nor decayed by it: `a_robust_run_is_that_of_the_derivation`
//! - it starts as AdapterHub's: `each_form_starts_as_its_reference`
//!
//! Differs from the paper: of an encoder-decoder the lowest n layers of both stacks are without adapters, and since the decoder sees the encoder, only the encoder's are not differentiated. A robust one draws n from 0 to L - 1, as in the paper; AdapterHub's notebook never leaves out L - 1 layers. Pruning of AdapterFusion is not part of it.

use burn::module::Module;
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Method, Procedure, Result, Shape, Within, random::Random, split_name,
    train::Optim,
};
use serde::{Deserialize, Serialize};

use super::bottleneck::Activation;
use super::sequential::{Init, SequentialConfig};

/// The configuration of AdapterDrop: that of Pfeiffer's adapters, and how many layers have none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterDropConfig {
    /// How many of the lowest layers have no adapter.
    pub drop: usize,
    /// Whether all layers have one, and each training step drops those of a random number of the lowest: the adapter is then used
    /// with any `drop`.
    pub robust: bool,
    /// Width m of the bottleneck.
    pub bottleneck: usize,
    /// Between the maps.
    pub activation: Activation,
    /// The start.
    pub init: Init,
    /// Standard deviation of the start.
    pub init_std: f64,
}

impl Default for AdapterDropConfig {
    /// The paper's: 5 layers without adapters of width 48 (AdapterHub's for a model of width 768), for this number.
    fn default() -> Self {
        AdapterDropConfig::new(5)
    }
}

impl AdapterDropConfig {
    /// With the lowest layers, this many, without adapters.
    pub fn new(drop: usize) -> Self {
        let SequentialConfig { bottleneck, activation, init, init_std, .. } = SequentialConfig::pfeiffer(48);
        AdapterDropConfig { drop, robust: false, bottleneck, activation, init, init_std }
    }

    /// Trained for any number of layers without adapters.
    pub fn robust(mut self) -> Self {
        self.robust = true;
        self
    }

    /// With a bottleneck of this width.
    pub fn with_bottleneck(mut self, width: usize) -> Self {
        self.bottleneck = width;
        self
    }

    /// From this start.
    pub fn with_init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// The adapters, if no layer were without.
    fn adapters(&self) -> SequentialConfig {
        SequentialConfig::pfeiffer(self.bottleneck)
            .with_activation(self.activation)
            .with_init(self.init)
            .with_init_std(self.init_std)
    }

    /// The layers of the deepest stack; refuses to drop the adapters of all.
    fn layers(&self, shape: &Shape) -> Result<usize> {
        let all = shape.stacks().into_iter().map(|(_, layers)| layers);
        let (most, layers) = (all.clone().min().unwrap_or(0).saturating_sub(1), all.max().unwrap_or(0));
        if self.drop <= most {
            return Ok(layers);
        }
        Err(Error::config("drop", self.drop, format!("0 to {most}: at least one layer keeps its adapter")))
    }
}

/// Adapters in upper layers.
#[derive(Module, Debug)]
pub struct AdapterDrop {
    adapters: Within,
    /// Without adapters outside of training.
    #[module(skip)]
    drop: usize,
    #[module(skip)]
    layers: usize,
    #[module(skip)]
    robust: bool,
}

impl AdapterDrop {
    /// The same adapters with this many of the lowest layers left out.
    pub fn dropping(self, drop: usize) -> Self {
        AdapterDrop { adapters: self.adapters.with_layers(drop..self.layers), ..self }
    }
}

impl Method for AdapterDropConfig {
    const NAME: &'static str = "adapter-drop";
    const PEFT_TYPE: &'static str = "ADAPTER_DROP";
    type Tuner = AdapterDrop;

    fn init(&self, base: &Base, seed: u64) -> Result<AdapterDrop> {
        let layers = self.layers(base.shape())?;
        let held = if self.robust { 0..layers } else { self.drop..layers };
        let adapters = self.adapters().init(base, seed)?.only(held);
        let adapters = Within::new(adapters, self.drop..layers);
        Ok(AdapterDrop { adapters, drop: self.drop, layers, robust: self.robust })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.layers(shape)?;
        let layers: usize = shape.stacks().into_iter().map(|(_, layers)| layers).sum();
        let dropped = if self.robust { 0 } else { self.drop * shape.stacks().len() };
        Ok(self.adapters().count(shape)? / layers * (layers - dropped))
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        self.adapters().key(name.trim_start_matches("adapters.inner."), shape)
    }
}

impl Adapter for AdapterDrop {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.adapters.open(batch, f)
    }
}

impl Procedure for AdapterDrop {
    fn sample(self, random: &mut Random) -> Self {
        if !self.robust {
            return self;
        }
        let drop = random.below(self.layers);
        self.dropping(drop)
    }

    /// In a short run a lower layer may be left out of every step.
    fn may_rest(&self, name: &str) -> bool {
        let (_, site, _) = split_name(name.trim_start_matches("adapters.inner."));
        self.robust && site.layer + 1 < self.layers
    }

    fn after_step(self, _base: &Base, _optim: &mut Optim, _before: &Self, _step: usize) -> Result<Self> {
        let drop = self.drop;
        Ok(self.dropping(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    mod specialised {
        use super::*;
        peft_core::conformance!(
            AdapterDropConfig::new(1).with_bottleneck(5).with_init(Init::ZeroUp),
            skip(C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    mod robust {
        use super::*;
        peft_core::conformance!(
            AdapterDropConfig::new(0).robust().with_bottleneck(5).with_init(Init::ZeroUp),
            skip(C3: "the non-linearity stands between the output projection and the residual")
        );
    }

    #[test]
    fn has_as_many_parameters_as_its_upper_layers() {
        let [base, t5] = ["roberta-base", "t5-base"].map(|name| Shape::named(name).unwrap());
        let count = |config: AdapterDropConfig| config.count(&base).unwrap();
        assert_eq!([0, 5, 11].map(|drop| count(AdapterDropConfig::new(drop))), [894_528, 521_808, 74_544]);
        assert_eq!(count(AdapterDropConfig::new(5).robust()), 894_528);
        assert_eq!(AdapterDropConfig::new(5).count(&t5).unwrap(), 14 * 74_544);
    }

    #[test]
    fn a_model_without_any_adapter_is_refused() {
        for (shape, most) in [("roberta-base", 11), ("t5-tiny", 1)] {
            let config = AdapterDropConfig::new(most + 1);
            let base = Base::hollow(Shape::named(shape).unwrap(), &peft_core::testing::device());
            for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let message = message.to_string();
                let expected = format!("drop: {} is not allowed, expected 0 to {most}", most + 1);
                assert!(message.contains(&expected), "{message}");
            }
            assert!(AdapterDropConfig::new(most).init(&base, 0).is_ok());
        }
    }
}
