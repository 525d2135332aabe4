//! # (IA)^3                                 family: additive / others
//! y = (x W + b) * l, or in feed-forward modules y = (x * l) W + b        l: (d_out,) or (d_in,), = 1
//! Paper: Liu et al., 2022, arXiv:2205.05638, section 3.3.   Reference: huggingface/peft tuners/ia3
//! Oracle: package peft 0.21.2: `equals_the_reference`
//! Trains: d_out per site, d_in per feed-forward site.       Merges: yes.
//! Identities:
//! - one at init: `C1`
//! - merged == unmerged: `C3`
//! - two in a row == their product: `two_in_a_row_multiply`
//! - (c l_v, l_o / c) for the value's output and the attention output's input: `value_and_output_share_their_factors`
//! - l_k on the key == l_k on the query: `the_keys_factors_may_be_the_querys`
//! - an input's l is a LoRA of the rank of l - 1: `few_factors_are_a_low_rank_update`
//! - an output's l scales the bias too: `an_output_is_scaled_with_its_bias`
//!
//! Differs from the paper: on BERT and RoBERTa by default also on the input of the attention's output projection, as in PEFT, whose name `output.dense` matches both, and as the survey counts; `paper` gives the paper's sites. On T5 keys and values of self- and cross-attention and the input of the feed-forward network's last map (`k`, `v`, `wo`), on LLaMA `k_proj`, `v_proj` and the input of `down_proj`, as PEFT has them. Weight decay would pull l to 0, not to 1: leave it out.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::adapterhub::{AdapterHub, Fields, HubKey, Kind, Layout, lora_fields, lora_sites};
use peft_core::{
    Base, Error, Hooks, Key, Merge, Method, Next, Part, Procedure, Result, Shape, Site, SiteMap, Sites, Slot, Weight,
    adapter, file_path, split_name,
};
use serde::{Deserialize, Serialize};

/// The configuration of (IA)^3, in the names of PEFT's `IA3Config`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ia3Config {
    /// Where; if not set, PEFT's choice for the model: keys, values and the input of the feed-forward network's last map, on BERT
    /// and RoBERTa also that of the attention's output projection.
    pub target_modules: Option<Sites>,
    /// Those of them whose input is scaled, not their output; if not set, of PEFT's choice all but keys and values.
    pub feedforward_modules: Option<Sites>,
}

impl Ia3Config {
    /// PEFT's sites.
    pub fn new() -> Self {
        Self::default()
    }

    /// The paper's sites: key, value, and the inner activations of the feed-forward network.
    pub fn paper() -> Self {
        Self::default().with_sites(Part::Key | Part::Value | Part::Down, Part::Down)
    }

    /// On these linear maps, of which `feedforward` have their input scaled.
    pub fn with_sites(mut self, sites: impl Into<Sites>, feedforward: impl Into<Sites>) -> Self {
        (self.target_modules, self.feedforward_modules) = (Some(sites.into()), Some(feedforward.into()));
        self
    }

    /// The sites that are set, else PEFT's for the model.
    fn sites(&self, shape: &Shape) -> (Sites, Sites) {
        let [key, value, last] = shape.architecture.family().key_value_last;
        let names = |names: &[&str]| Sites::Names(names.iter().map(|name| name.to_string()).collect());
        let targets = self.target_modules.clone().unwrap_or_else(|| names(&[key, value, last]));
        (targets, self.feedforward_modules.clone().unwrap_or_else(|| names(&[last])))
    }

    /// The sites whose output is scaled, and those whose input is.
    fn plan(&self, shape: &Shape) -> Result<(Vec<Site>, Vec<Site>)> {
        let (targets, feedforward) = self.sites(shape);
        let targets = targets.resolve(shape)?;
        let mut inputs = match &feedforward {
            Sites::Parts(none) if none.is_empty() => vec![],
            sites => sites.resolve(shape)?,
        };
        // A pattern, or what is not set, is only looked up among the targets; names must be some of theirs. So it is in the reference.
        if matches!(feedforward, Sites::Pattern(_)) || self.feedforward_modules.is_none() {
            inputs.retain(|site| targets.contains(site));
        }
        if let Some(site) = inputs.iter().find(|site| !targets.contains(site)) {
            let path = shape.module_path(*site).unwrap_or_default();
            return Err(Error::config("feedforward_modules", path, "a subset of target_modules"));
        }
        Ok((targets.into_iter().filter(|site| !inputs.contains(site)).collect(), inputs))
    }
}

/// AdapterHub's `IA3Config`, a LoRA that scales.
impl Ia3Config {
    fn hub_fields(&self, shape: &Shape) -> Result<Fields> {
        let (outputs, inputs) = self.plan(shape)?;
        if let Some(site) = inputs.first() {
            let path = shape.module_path(*site).unwrap_or_default();
            let expected = "none: AdapterHub scales the outputs of linear maps only";
            return Err(Error::config("feedforward_modules", path, expected));
        }
        lora_fields("scale", [1.0, 1.0], 0.0, &outputs, shape)
    }

    fn of_hub(fields: &Fields, shape: &Shape) -> Result<Self> {
        Ok(Self::new().with_sites(lora_sites(fields, shape)?, Sites::Parts(vec![])))
    }
}

/// Factors of activations at some sites.
#[derive(Module, Debug)]
pub struct Ia3 {
    /// `[d_out, 1]` each.
    outputs: SiteMap<Param<Tensor<2>>>,
    /// `[1, d_in]` each.
    inputs: SiteMap<Param<Tensor<2>>>,
}

impl Method for Ia3Config {
    const NAME: &'static str = "ia3";
    const PEFT_TYPE: &'static str = "IA3";
    type Tuner = Ia3;

    fn init(&self, base: &Base, _seed: u64) -> Result<Ia3> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let ones = |dims: [usize; 2]| Param::from_tensor(Tensor::ones(dims, &device));
        let (outputs, inputs) = self.plan(shape)?;
        let output = |site| (site, ones([shape.linear_dims(site)[1], 1]));
        let input = |site| (site, ones([1, shape.linear_dims(site)[0]]));
        Ok(Ia3 { outputs: outputs.into_iter().map(output).collect(), inputs: inputs.into_iter().map(input).collect() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let (outputs, inputs) = self.plan(shape)?;
        let widths = |sites: Vec<Site>, end: usize| sites.into_iter().map(move |site| shape.linear_dims(site)[end]);
        Ok(widths(outputs, 1).chain(widths(inputs, 0)).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, _) = split_name(name);
        Key::plain(format!("{}.ia3_l", file_path(shape, site)))
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        let (targets, feedforward) = self.sites(shape);
        Ok(Ia3Config {
            target_modules: Some(targets.by_name(shape)?),
            feedforward_modules: Some(feedforward.by_name(shape)?),
        })
    }

    fn adapterhub() -> Option<AdapterHub<Self>> {
        let key = |_: &Self, name: &str, adapter: &str, shape: &Shape| {
            let path = shape.module_path(split_name(name).1).unwrap_or_default();
            HubKey::new(format!("{path}.loras.{adapter}.lora_B"), Layout::Same)
        };
        let free = &["init_weights", "init_weights_seed", "attn_matrices"];
        Some(AdapterHub { kind: Kind::Ia3, fields: Self::hub_fields, config: Self::of_hub, free, key })
    }

    fn merge(tuner: &Ia3) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

impl Hooks for Ia3 {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        match (self.inputs.get(site), self.outputs.get(site)) {
            (Some(l), _) => next(x * l.val().unsqueeze()),
            (_, Some(l)) => next(x) * l.val().transpose().unsqueeze(),
            _ => next(x),
        }
    }
}

adapter!(Ia3);

impl Merge for Ia3 {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let w = w.dense();
        let l = match (self.inputs.get(site), self.outputs.get(site)) {
            (None, None) => return None,
            (Some(l), _) | (_, Some(l)) => l.val().transpose().to_device(&w.device()),
        };
        // [d_in, 1] scales rows, [1, d_out] columns.
        Some(w * l)
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        let l = self.outputs.get(site).filter(|_| slot == Slot::Bias)?;
        Some(v.clone() * l.val().squeeze_dim::<1>(1).to_device(&v.device()))
    }
}

impl Procedure for Ia3 {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::{base, device, fixtures::SHAPES, golden::Case};
    use peft_core::{Head, Shape};

    use super::*;

    mod peft {
        use super::*;
        peft_core::conformance!(Ia3Config::new());
    }

    mod paper {
        use super::*;
        peft_core::conformance!(Ia3Config::paper());
    }

    mod every_output {
        use super::*;
        peft_core::conformance!(Ia3Config::new().with_sites(Sites::Pattern("all-linear".into()), Sites::Parts(vec![])));
    }

    #[test]
    fn equals_the_reference() {
        for (case, base) in [
            ("ia3", "roberta-classify"),
            ("ia3-bert", "bert-classify"),
            ("ia3-t5", "t5"),
            ("ia3-llama", "llama"),
            ("ia3-saved", "t5"),
        ] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
            Case::open(dir, base).check_method::<Ia3Config>();
        }
    }

    #[test]
    fn has_as_many_parameters_as_the_survey_says() {
        for (shape, total, paper) in [("roberta-base", 656_642, 55_296), ("roberta-large", 1_223_682, 147_456)] {
            let shape = Shape::named(shape).unwrap();
            assert_eq!(Ia3Config::new().count(&shape).unwrap() + Head::count(&shape, 2), total);
            assert_eq!(Ia3Config::paper().count(&shape).unwrap(), paper);
        }
    }

    /// A pattern of inputs, and the usual choice of them, may take in more than the targets: only targets count.
    #[test]
    fn a_wide_choice_of_inputs_is_looked_up_among_the_targets() {
        let everything = || Some(Sites::Pattern(".*".into()));
        for shape in SHAPES.map(|name| Shape::named(name).unwrap()) {
            for (targets, wide, inputs) in [
                (Part::Key | Part::Down, everything(), vec![Part::Key, Part::Down]),
                (Part::Key | Part::Down, None, vec![Part::Down]),
                (Part::Key.into(), everything(), vec![Part::Key]),
                (Part::Key.into(), None, vec![]),
            ] {
                let wide = Ia3Config { target_modules: Some(targets.clone()), feedforward_modules: wide };
                let exact = Ia3Config::new().with_sites(targets, Sites::Parts(inputs));
                assert_eq!(wide.plan(&shape).unwrap(), exact.plan(&shape).unwrap(), "{wide:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("roberta-tiny", &device());
        let names = |name: &str| Sites::Names(vec![name.into()]);
        for (config, words) in [
            (
                Ia3Config::new().with_sites(Part::Key | Part::Value, Part::Up),
                ["feedforward_modules", "layer.0.intermediate.dense", "a subset of target_modules"],
            ),
            (Ia3Config::new().with_sites(names("k_proj"), Sites::Parts(vec![])), ["k_proj", "matches nothing", "key"]),
            (Ia3Config::new().with_sites(Part::Key, names("wo")), ["wo", "matches nothing", "key"]),
            (Ia3Config::new().with_sites(Sites::Parts(vec![]), Part::Key), ["\"\"", "matches nothing", "key"]),
        ] {
            let message = config.init(&base, 0).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
