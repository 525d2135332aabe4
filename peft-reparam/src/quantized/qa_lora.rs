//! # QA-LoRA                                family: reparameterized / quantized
//! h = W x + s B A p, s = alpha / r         p: [d_in / G], f times the sums of G inputs each; A: [d_in / G, r], B: [r, d_out] = 0
//! w_ij = a_lj (q_ij - z_lj)                q: integers of few bits, a and z: [d_in / G, d_out], l the group of input i
//! Paper: Xu et al., 2023, arXiv:2309.14717, section 3.   Reference: yuhuixu1993/qa-lora, huggingface/peft tuners/lora/variants.py
//! Oracle: package peft 0.21.2: `equals_the_reference`
//! Trains: r (d_in / G + d_out) per site.   Merges: yes, into zero points: z' = z - s f (A B) / a.
//! Identities:
//! - B = 0 is the quantized base: `it_starts_as_the_quantized_base`
//! - merged == unmerged: `C3`
//! - merging moves zero points alone: `merging_keeps_integers_and_scales`
//! - moving them back gives the zero points: `zero_points_are_moved_back`
//! - two adapters merge one after the other: `two_adapters_merge_additively`
//! - G = 1 is LoRA on the quantized base: `groups_of_one_are_a_lora`
//! - inputs that add up to 0 in each group pass it by: `inputs_that_cancel_add_nothing`
//! - the order of the inputs of a group does not matter: `inputs_of_a_group_may_change_places`
//! - on a model of GPTQ its integers are those below: `on_a_model_of_integers_it_keeps_those`
//! - the mean is the sum with A / G, and PEFT's with A in / G^2: `poolings_differ_by_a_factor_of_a`
//! - it is the LoRA whose A repeats its rows G times: `it_is_a_lora_with_repeated_rows`
//!
//! Differs from the paper: integers are the nearest between the least and the largest weight of a group; GPTQ's, which need data, are kept
//! on a model that has them. f is 1 as in the paper's algorithm; the authors' code takes the mean, 1 / G, and PEFT d_in / G^2: the setting
//! `pooling`. Table I of the survey groups the outputs. PEFT's is for GPTQ's layers alone, and does not merge.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Merge, Method, Next, Procedure, Result, Shape, Site, SiteMap, Sites,
    Weight,
    random::{Noise, Random},
    split_name,
};
use peft_quant::Grouped;
use serde::{Deserialize, Serialize};

use super::Instead;
use super::matrix::{Matrix, by_outputs, from_outputs};
use crate::low_rank::pair::{self, Pair, check_dropout, dropped};
use crate::low_rank::ranks::{check_alpha, check_rank};

/// What is read of a group of inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their sum: the paper.
    #[default]
    Sum,
    /// Their mean: the authors' code.
    Mean,
    /// Their mean times the number of groups: PEFT.
    Peft,
}

impl Pooling {
    /// What the sum of a group is multiplied by.
    fn factor(self, inputs: usize, group: usize) -> f64 {
        let group = group as f64;
        match self {
            Pooling::Sum => 1.0,
            Pooling::Mean => 1.0 / group,
            Pooling::Peft => inputs as f64 / (group * group),
        }
    }
}

/// The configuration of QA-LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QaLoraConfig {
    /// Rank.
    pub r: usize,
    /// The scale s is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout probability on the inputs, before they are pooled.
    pub lora_dropout: f64,
    /// Where.
    pub target_modules: Sites,
    /// Bits of an integer: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs G of a group, a divisor of those of each map.
    pub qalora_group_size: usize,
    /// What is read of a group.
    pub pooling: Pooling,
}

impl Default for QaLoraConfig {
    /// The authors' code: rank 64, alpha 16, four bits in groups of 32, on every linear map.
    fn default() -> Self {
        QaLoraConfig {
            r: 64,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: Sites::Pattern("all-linear".into()),
            bits: 4,
            qalora_group_size: 32,
            pooling: Pooling::Sum,
        }
    }
}

impl QaLoraConfig {
    /// Rank `r`, alpha 16, four bits in groups of 32, on every linear map.
    pub fn new(r: usize) -> Self {
        QaLoraConfig { r, ..Default::default() }
    }

    /// With this numerator of the scale.
    pub fn with_alpha(self, alpha: f64) -> Self {
        QaLoraConfig { lora_alpha: alpha, ..self }
    }

    /// On these linear maps.
    pub fn with_sites(self, sites: impl Into<Sites>) -> Self {
        QaLoraConfig { target_modules: sites.into(), ..self }
    }

    /// With integers of so many bits, in groups of so many inputs.
    pub fn with_groups(self, bits: u32, group: usize) -> Self {
        QaLoraConfig { bits, qalora_group_size: group, ..self }
    }

    /// With another pooling.
    pub fn with_pooling(self, pooling: Pooling) -> Self {
        QaLoraConfig { pooling, ..self }
    }

    /// Each adapted map, how many groups its inputs make, and its outputs.
    fn plan(&self, shape: &Shape) -> Result<Vec<(Site, [usize; 2])>> {
        check_rank("r", self.r)?;
        check_alpha("lora_alpha", self.lora_alpha)?;
        check_dropout(self.lora_dropout)?;
        let planned = |site| {
            let [inputs, outputs] = shape.linear_dims(site);
            let group = self.qalora_group_size;
            if group == 0 || !inputs.is_multiple_of(group) {
                let path = shape.module_path(site).unwrap_or_default();
                let expected = format!("a divisor of {inputs}, the inputs of {path}");
                return Err(Error::config("qalora_group_size", group, expected));
            }
            Ok((site, [inputs / group, outputs]))
        };
        self.target_modules.resolve(shape)?.into_iter().map(planned).collect()
    }

    /// One with these factors on the quantized base.
    fn on(&self, base: &Base, factors: SiteMap<Pooled>) -> Result<QaLora> {
        let (shape, device) = (base.shape(), base.device());
        let (mut codes, mut instead) = (BTreeMap::new(), vec![]);
        for (site, _) in factors.iter() {
            let of = |error: Error| error.of(&shape.module_path(site).unwrap_or_default());
            let packed = match own(base.weight(site)) {
                Some(own) => self.checked(own.clone()).map_err(of)?,
                None => Arc::new(self.quantized(Matrix::of(base.weight(site))).map_err(of)?),
            };
            instead.push((site, Weight::Packed(peft_quant::Matrix::packed(packed.clone(), device)?)));
            codes.insert(site, packed);
        }
        Ok(QaLora { factors, codes: codes.into(), instead: instead.into_iter().collect(), dropout: self.lora_dropout })
    }

    fn quantized(&self, w: Matrix) -> Result<Grouped> {
        let [inputs, outputs] = w.dims;
        Grouped::encode(&w.values, [outputs, inputs], self.bits, self.qalora_group_size, false)
    }

    /// The integers that a model of GPTQ or AWQ has, which are not quantized again.
    fn checked(&self, own: Arc<Grouped>) -> Result<Arc<Grouped>> {
        if own.groups().is_some() {
            let expected = "consecutive inputs in each group: what the adapter adds to a group is one number";
            return Err(Error::config("desc_act", "inputs in another order", expected));
        }
        if own.bits() != self.bits {
            return Err(Error::config("bits", self.bits, format!("{}, as in the model", own.bits())));
        }
        if own.group() != self.qalora_group_size {
            let expected = format!("{}, as in the model", own.group());
            return Err(Error::config("qalora_group_size", self.qalora_group_size, expected));
        }
        Ok(own)
    }
}

/// The integers of a matrix that has some.
fn own(w: &Weight) -> Option<&Arc<Grouped>> {
    let Weight::Packed(w) = w else { return None };
    let w: &dyn Any = &**w;
    w.downcast_ref::<peft_quant::Matrix<Arc<Grouped>>>().map(peft_quant::Matrix::codec)
}

/// A packed matrix as a tensor `[in, out]`.
fn dense(packed: &Grouped, device: &Device) -> Tensor<2> {
    let [outputs, inputs] = packed.dims();
    from_outputs(&packed.decode::<f32>(), [inputs, outputs], device)
}

/// Low-rank factors of pooled inputs at some sites, and the quantized matrices that they stand beside.
#[derive(Module, Debug)]
pub struct QaLora {
    factors: SiteMap<Pooled>,
    #[module(skip)]
    codes: Arc<BTreeMap<Site, Arc<Grouped>>>,
    #[module(skip)]
    instead: Instead,
    #[module(skip)]
    dropout: f64,
}

/// The factors at one site.
#[derive(Module, Debug)]
pub struct Pooled {
    /// A, `[d_in / G, r]`.
    pub a: Param<Tensor<2>>,
    /// B, `[r, d_out]`.
    pub b: Param<Tensor<2>>,
    /// s f.
    #[module(skip)]
    scale: f64,
}

impl Pooled {
    fn pair(&self) -> Pair {
        Pair { a: self.a.val(), b: self.b.val(), scale: self.scale }
    }
}

impl QaLora {
    /// The quantized matrix at a site with the adapter in its zero points; none where nothing is adapted.
    ///
    /// # Errors
    /// If a zero point would not be finite.
    pub fn merged(&self, site: Site) -> Result<Option<Grouped>> {
        let (Some(factors), Some(packed)) = (self.factors.get(site), self.codes.get(&site)) else { return Ok(None) };
        let update = by_outputs(factors.pair().update());
        let moved = packed.zeros().iter().zip(packed.scales()).zip(update).map(|((zero, a), update)| zero - update / a);
        Grouped::clone(packed).with_zeros(moved.collect()).map(Some)
    }
}

impl Method for QaLoraConfig {
    const NAME: &'static str = "qa-lora";
    const PEFT_TYPE: &'static str = "QA_LORA";
    type Tuner = QaLora;

    fn init(&self, base: &Base, seed: u64) -> Result<QaLora> {
        let device = base.device().clone().autodiff();
        let factors = self.plan(base.shape())?.into_iter().map(|(site, [groups, outputs])| {
            let a = pair::start([groups, self.r], Random::new(seed, &format!("lora.{site}.a")), &device);
            let b = Tensor::zeros([self.r, outputs], &device);
            let factor = self.pooling.factor(groups * self.qalora_group_size, self.qalora_group_size);
            let scale = self.lora_alpha / self.r as f64 * factor;
            (site, Pooled { a: Param::from_tensor(a), b: Param::from_tensor(b), scale })
        });
        self.on(base, factors.collect())
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.plan(shape)?.into_iter().map(|(_, [groups, outputs])| self.r * (groups + outputs)).sum())
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (_, site, leaf) = split_name(name);
        Key::transposed(pair::file_name(shape, site, &format!("{}.weight", leaf.to_uppercase())))
    }

    fn for_files(&self, shape: &Shape) -> Result<Self> {
        Ok(QaLoraConfig { target_modules: self.target_modules.by_name(shape)?, ..self.clone() })
    }

    fn merge(tuner: &QaLora) -> Option<&dyn Merge> {
        Some(tuner)
    }
}

/// QA-LoRA during one run: with the run's dropout.
struct Opened<'a> {
    of: &'a QaLora,
    noise: Option<&'a Noise>,
}

impl Hooks for Opened<'_> {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let Some(factors) = self.of.factors.get(site) else { return next(x) };
        let [batch, tokens, inputs] = x.dims();
        let groups = factors.a.dims()[0];
        let read = dropped(x.clone(), self.noise, self.of.dropout, site);
        let pooled = read.reshape([batch, tokens, groups, inputs / groups]).sum_dim(3).squeeze_dim(3);
        next(x) + factors.pair().forward(pooled)
    }

    fn weight(&self, site: Site, w: Weight) -> Weight {
        self.of.instead.weight(site, w)
    }
}

impl Adapter for QaLora {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened { of: self, noise: batch.noise.as_deref() })
    }
}

/// A matrix whose zero points would not be finite is left as it is.
impl Merge for QaLora {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        let merged = self.merged(site).ok().flatten()?;
        Some(dense(&merged, &w.dense().device()))
    }
}

impl Procedure for QaLora {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::TensorData;
    use peft_core::testing::{difference, golden::Case};
    use peft_core::{Part, Trained};

    use super::*;

    peft_core::conformance!(
        QaLoraConfig::new(3).with_alpha(2.0).with_groups(4, 8).with_sites(Part::Query | Part::Value),
        skip(C1: "it starts at the quantized base")
    );

    mod of_eight_bits {
        use super::*;
        peft_core::conformance!(
            QaLoraConfig::new(2).with_alpha(1.0).with_groups(8, 4).with_pooling(Pooling::Peft).with_sites(Part::Query | Part::Down),
            skip(C1: "it starts at the quantized base")
        );
    }

    #[test]
    fn equals_the_reference() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        for (case, base) in [("qa-lora", "roberta-classify"), ("qa-lora-bert", "bert-classify"), ("qa-lora-t5", "t5")] {
            let case = Case::open(folder.join(case), base);
            case.check_method::<QaLoraConfig>();
            let (_, Trained { tuner, .. }) = case.load::<QaLoraConfig>();
            for (site, _) in tuner.factors.iter() {
                let path = case.base.shape().module_path(site).unwrap();
                let Some(Weight::Packed(w)) = tuner.instead.get(site) else { panic!("{path} is dense") };
                let [inputs, outputs] = w.dims();
                let found = TensorData::new(w.outputs(0..outputs), [outputs, inputs]);
                assert_eq!(difference(&found, &case.expected(&format!("base.base_model.model.{path}"))), 0.0, "{path}");
            }
        }
    }
}
