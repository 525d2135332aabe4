//! Tensors in the place of a base's own.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::{Adapter, Base, Batch, Hooks, Merge, Place, Procedure, Site, SiteMap, Slot, Weight, split_name};

/// Tensors in the place of a base's own: trained, or computed from what is. In a tuple it belongs to the inside: `(Lora, Replaced)`.
#[derive(Module, Debug)]
pub struct Replaced {
    /// Matrices `[in, out]` and tables `[rows, hidden]`.
    weights: SiteMap<Param<Tensor<2>>>,
    /// Of the normalizations, `[hidden]`.
    gains: SiteMap<Param<Tensor<1>>>,
    /// Of the linear maps and the normalizations, `[out]`.
    biases: SiteMap<Param<Tensor<1>>>,
}

impl Replaced {
    /// A tensor that is trained at each of these places.
    pub fn new(places: &[Place], weight: impl Fn(&Place) -> Tensor<2>, vector: impl Fn(&Place) -> Tensor<1>) -> Self {
        let at = |slot| places.iter().filter(move |place| place.slot == slot);
        let vectors = |slot| at(slot).map(|place| (place.site, Param::from_tensor(vector(place)))).collect();
        Replaced {
            weights: at(Slot::Weight).map(|place| (place.site, Param::from_tensor(weight(place)))).collect(),
            gains: vectors(Slot::Gain),
            biases: vectors(Slot::Bias),
        }
    }

    /// Each tensor of a base as hooks rewrite it, but for packed ones that they leave alone: a view, through which gradients flow.
    pub fn by(hooks: &dyn Hooks, base: &Base) -> Self {
        let places = base.shape().places();
        let at = |slot| places.iter().filter(move |place| place.slot == slot).map(|place| place.site);
        let weight = |site| match hooks.weight(site, base.weight(site).clone()) {
            Weight::Dense(w) => Some((site, view(w))),
            Weight::Packed(_) | Weight::Table(_) => None,
        };
        let vectors =
            |slot| at(slot).map(|site| (site, view(hooks.vector(site, slot, base.vector(site, slot))))).collect();
        Replaced {
            weights: at(Slot::Weight).filter_map(weight).collect(),
            gains: vectors(Slot::Gain),
            biases: vectors(Slot::Bias),
        }
    }

    /// The tensor that records call so, if there is one. `D` is its rank.
    pub fn get<const D: usize>(&self, name: &str) -> Option<Tensor<D>> {
        let (field, site, _) = split_name(name);
        let tensor = match field {
            "weights" => self.weights.get(site)?.val().into_bridge(),
            "gains" => self.gains.get(site)?.val().into_bridge(),
            _ => self.biases.get(site)?.val().into_bridge(),
        };
        Some(Tensor::from_bridge(tensor))
    }
}

fn view<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(burn::module::ParamId::new(), tensor)
}

impl Hooks for Replaced {
    fn weight(&self, site: Site, w: Weight) -> Weight {
        Merge::weight(self, site, &w).map_or(w, Weight::Dense)
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        Merge::vector(self, site, slot, &v).unwrap_or(v)
    }
}

impl Adapter for Replaced {
    fn open<R>(&self, _batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(self)
    }
}

impl Procedure for Replaced {}

impl Merge for Replaced {
    fn weight(&self, site: Site, _w: &Weight) -> Option<Tensor<2>> {
        self.weights.get(site).map(Param::val)
    }

    fn vector(&self, site: Site, slot: Slot, _v: &Tensor<1>) -> Option<Tensor<1>> {
        let vectors = if slot == Slot::Gain { &self.gains } else { &self.biases };
        vectors.get(site).map(Param::val)
    }
}
