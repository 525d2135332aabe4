//! What adapters have in common: two linear maps with a narrow space between them, and normalizations that are trained with them.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation};
use peft_core::ops::gelu;
use peft_core::{
    Affine, Base, Error, Frame, Key, Norm, Part, Place, Result, Shape, Site, SiteMap, Slot, file_path, place_key,
    random::Random, split_name,
};
use serde::{Deserialize, Serialize};

/// The non-linearity between the two maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Exact, by the error function.
    #[default]
    Gelu,
    /// Its approximation by tanh.
    GeluNew,
    /// The survey's, and AdapterHub's for `Placement::Pfeiffer`.
    Relu,
    /// AdapterHub's for `Placement::Houlsby`.
    Swish,
    /// None: the adapter is a linear map.
    Identity,
}

impl Activation {
    /// Of each number.
    pub fn apply(self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Activation::Gelu => gelu(x),
            Activation::GeluNew => activation::gelu_approximate(x),
            Activation::Relu => activation::relu(x),
            Activation::Swish => activation::silu(x),
            Activation::Identity => x,
        }
    }
}

/// The maps of one adapter.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// In front of the maps, where asked for; gain and bias `[d]`.
    pub(super) norm: Option<Norm>,
    /// Weight `[d, m]`, bias `[m]`.
    pub(super) down: Affine,
    /// Weight `[m, d]`, bias `[d]`.
    pub(super) up: Affine,
}

impl Bottleneck {
    /// These matrices `[d, m]` and `[m, d]` with biases of 0.
    pub(super) fn new(down: Tensor<2>, up: Tensor<2>) -> Self {
        let affine = |weight: Tensor<2>| {
            let bias = Tensor::zeros([weight.dims()[1]], &weight.device());
            Affine { weight: Param::from_tensor(weight), bias: Param::from_tensor(bias) }
        };
        Bottleneck { norm: None, down: affine(down), up: affine(up) }
    }

    /// As He et al. start: the first matrix uniform within `1 / sqrt(d)` (Kaiming), the second 0.
    pub(super) fn kaiming(d: usize, m: usize, random: Random, device: &Device) -> Self {
        let bound = 1.0 / (d as f64).sqrt();
        Bottleneck::new(random.uniform_tensor([d, m], -bound, bound, device), Tensor::zeros([m, d], device))
    }

    /// With a normalization in front, which changes no more than the mean and the spread yet.
    pub(super) fn with_norm(self) -> Self {
        let [d, _] = self.down.weight.dims();
        let device = self.down.weight.device();
        let [gain, bias] = [1.0, 0.0].map(|value| Param::from_tensor(Tensor::full([d], value, &device)));
        Bottleneck { norm: Some(Norm { gain, bias }), ..self }
    }

    /// x, normalized if there is a normalization in front.
    pub(super) fn read(&self, x: Tensor<3>, eps: f64) -> Tensor<3> {
        match &self.norm {
            Some(norm) => norm.forward(x, eps),
            None => x,
        }
    }

    /// act(x Wd + bd) Wu + bu.
    pub(super) fn forward(&self, x: Tensor<3>, act: Activation) -> Tensor<3> {
        self.forward_with(x, act, |inner| inner)
    }

    /// D(act(x Wd + bd)) Wu + bu, with the dropout D of a run.
    pub(super) fn forward_with(
        &self,
        x: Tensor<3>,
        act: Activation,
        dropout: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        self.up.forward(dropout(act.apply(self.down.forward(x))))
    }
}

/// Layer normalizations of the model, trained.
#[derive(Module, Debug)]
pub struct Norms {
    /// `[d]` each.
    gains: SiteMap<Param<Tensor<1>>>,
    /// `[d]` each.
    biases: SiteMap<Param<Tensor<1>>>,
}

impl Norms {
    /// Their gains and biases, if they are trained.
    pub fn places(shape: &Shape, train: bool) -> Vec<Place> {
        let norms = [
            Part::NormEmbedding,
            Part::NormAttention,
            Part::NormCrossAttention,
            Part::NormFeedForward,
            Part::NormFinal,
        ];
        shape.places().into_iter().filter(|place| train && norms.contains(&place.site.part)).collect()
    }

    /// Those at these places, as the model has them.
    pub fn new(base: &Base, places: &[Place]) -> Self {
        let of = |slot: Slot| {
            let start = |site| Param::from_tensor(Tensor::from_inner(base.vector(site, slot)));
            places.iter().filter(|place| place.slot == slot).map(|place| (place.site, start(place.site))).collect()
        };
        Norms { gains: of(Slot::Gain), biases: of(Slot::Bias) }
    }

    /// As trained, where one is.
    pub fn get(&self, site: Site, slot: Slot) -> Option<Tensor<1>> {
        let trained = if slot == Slot::Gain { &self.gains } else { &self.biases };
        trained.get(site).map(Param::val)
    }

    /// What files call the tensor that records call `name`: as the model's.
    pub fn key(name: &str, shape: &Shape) -> Key {
        let (field, site, _) = split_name(name);
        let slot = if field == "gains" { Slot::Gain } else { Slot::Bias };
        let places = Norms::places(shape, true);
        let place = places.iter().find(|place| place.site == site && place.slot == slot);
        place_key(shape, place.expect("the trained normalizations are places of the model"))
    }
}

/// The elements of two maps between widths d and m.
pub(super) fn count(d: usize, m: usize) -> usize {
    2 * d * m + m + d
}

/// A probability of 1 would leave nothing.
pub(super) fn check_dropout(p: f64) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(Error::config("dropout", p, "a number from 0 to below 1"))
}

/// Without an upper bound a file's number could ask for any amount of memory before its tensors are looked at.
pub fn check_width(bottleneck: usize, shape: &Shape) -> Result<()> {
    let most = 16 * shape.hidden;
    if (1..=most).contains(&bottleneck) {
        return Ok(());
    }
    Err(Error::config("bottleneck", bottleneck, format!("1 to {most}, 16 times the model's width")))
}

/// The chosen sub-layers of a model, of the setting `sublayers`: self-attention, the feed-forward network, or both.
pub fn sublayers(chosen: &[Part], shape: &Shape) -> Result<Vec<Site>> {
    let allowed = [Part::SelfAttention, Part::FeedForward];
    let wrong = chosen.iter().find(|part| !allowed.contains(part)).map(|part| part.name());
    if let Some(name) = wrong.or(chosen.is_empty().then_some("none")) {
        return Err(Error::config("sublayers", name, allowed.map(Part::name).join(", ")));
    }
    Ok(allowed.into_iter().filter(|part| chosen.contains(part)).flat_map(|part| shape.sites(part)).collect())
}

/// The linear map at the end of a sub-layer.
pub fn projection(site: Site) -> Site {
    let part = match site.part {
        Part::SelfAttention => Part::Output,
        Part::CrossAttention => Part::CrossOutput,
        _ => Part::Down,
    };
    Site { part, ..site }
}

/// The sum of a sub-layer's output with its residual, behind the normalization that the model has there, if it has one.
pub fn normalized_sum(frame: &Frame<'_>, site: Site, output: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
    let (sum, attention) = (output + residual, site.part == Part::SelfAttention);
    match frame.shape().pre_norm() {
        true => sum,
        false => {
            frame.norm(Site { part: if attention { Part::NormAttention } else { Part::NormFeedForward }, ..site }, sum)
        }
    }
}

/// What files call a tensor of the adapter at a sub-layer: in the module at its end, as the names of AdapterHub stand there.
pub fn key(shape: &Shape, site: Site, leaf: &str) -> Key {
    let path = file_path(shape, projection(site));
    let path = path.trim_end_matches(".dense");
    match leaf {
        "down.weight" => Key::transposed(format!("{path}.adapter_down.weight")),
        "up.weight" => Key::transposed(format!("{path}.adapter_up.weight")),
        "norm.gain" => Key::plain(format!("{path}.adapter_norm_before.weight")),
        "norm.bias" => Key::plain(format!("{path}.adapter_norm_before.bias")),
        _ => Key::plain(format!("{path}.adapter_{leaf}")),
    }
}
