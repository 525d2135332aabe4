//! What adapters have in common: two linear maps with a narrow space between them.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation};
use peft_core::{Affine, Error, Key, Norm, Part, Result, Shape, Site, file_path, random::Random};
use serde::{Deserialize, Serialize};

/// The non-linearity between the two maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The official code's.
    #[default]
    Gelu,
    /// The survey's, and AdapterHub's for `Placement::Pfeiffer`.
    Relu,
    /// AdapterHub's for `Placement::Houlsby`.
    Swish,
    /// None: the adapter is a linear map.
    Identity,
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

    /// act(x Wd + bd) Wu + bu.
    pub(super) fn forward(&self, x: Tensor<3>, act: Activation) -> Tensor<3> {
        let inner = self.down.forward(x);
        self.up.forward(match act {
            Activation::Gelu => activation::gelu(inner),
            Activation::Relu => activation::relu(inner),
            Activation::Swish => activation::silu(inner),
            Activation::Identity => inner,
        })
    }
}

/// The elements of two maps between widths d and m.
pub(super) fn count(d: usize, m: usize) -> usize {
    2 * d * m + m + d
}

/// Without an upper bound a file's number could ask for any amount of memory before its tensors are looked at.
pub(super) fn check_width(bottleneck: usize, shape: &Shape) -> Result<()> {
    let most = 16 * shape.hidden;
    if (1..=most).contains(&bottleneck) {
        return Ok(());
    }
    Err(Error::config("bottleneck", bottleneck, format!("1 to {most}, 16 times the model's width")))
}

/// The linear map at the end of a sub-layer.
pub(super) fn projection(site: Site) -> Site {
    Site { part: if site.part == Part::SelfAttention { Part::Output } else { Part::Down }, ..site }
}

/// What files call a tensor of the adapter at a sub-layer: in the module at its end, as the names of AdapterHub stand there.
pub(super) fn key(shape: &Shape, site: Site, leaf: &str) -> Key {
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
