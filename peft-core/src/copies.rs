//! Trained copies of a base's own tensors beside any method: `modules_to_save` of Hugging Face PEFT.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::{Base, Error, Head, Part, Place, Result, Site, SiteMap, Slot, Weight};

/// Copies of tensors of a base, each in the place of its own. As transformers has its modules: a word table that several uses
/// share is a table for each of them, so that a copy for one leaves the others.
#[derive(Module, Debug)]
pub struct Copies {
    /// Matrices `[in, out]` and tables `[rows, hidden]`.
    weights: SiteMap<Param<Tensor<2>>>,
    /// Of the normalizations, `[hidden]`.
    gains: SiteMap<Param<Tensor<1>>>,
    /// Of the linear maps and the normalizations, `[out]`.
    biases: SiteMap<Param<Tensor<1>>>,
    #[module(skip)]
    modules: Vec<String>,
}

impl Default for Copies {
    /// None.
    fn default() -> Self {
        let none = || SiteMap::from_iter([]);
        Copies { weights: SiteMap::from_iter([]), gains: none(), biases: none(), modules: vec![] }
    }
}

impl Copies {
    /// Copies of all tensors of the modules whose paths, or the paths of modules around them, end in one of these names. A name
    /// without such a module is an error, but for those of heads, which are trained anyway.
    pub fn new(base: &Base, modules: &[String]) -> Result<Self> {
        let places = base.shape().uses();
        let (known, others): (Vec<String>, Vec<String>) =
            modules.iter().cloned().partition(|name| places.iter().any(|place| is_in(place.module(), name)));
        if let Some(name) = others.iter().find(|name| !Head::MODULES.contains(&name.as_str())) {
            let expected = format!("the end of a module's path, such as {}", some(&places));
            return Err(Error::config("modules_to_save", name, expected));
        }
        let chosen = places.into_iter().filter(|place| known.iter().any(|name| is_in(place.module(), name)));
        Ok(Self::at(base, chosen.collect(), &known))
    }

    /// Copies of those tensors of the modules of these names that `holds` says a file holds.
    #[cfg(feature = "load")]
    pub(crate) fn held(base: &Base, names: &[String], holds: impl Fn(&str) -> bool) -> Self {
        let named = |place: &Place| names.iter().any(|name| is_in(place.module(), name));
        let held = |place: &Place| named(place) && holds(&crate::slot_name(place.site, place.slot));
        let held: Vec<Place> = base.shape().uses().into_iter().filter(held).collect();
        let modules = names.iter().filter(|name| held.iter().any(|place| is_in(place.module(), name)));
        let modules: Vec<String> = modules.cloned().collect();
        Self::at(base, held, &modules)
    }

    fn at(base: &Base, places: Vec<Place>, modules: &[String]) -> Self {
        let base = untied(base, places.iter().map(|place| place.site));
        let at = |slot| places.iter().filter(move |place| place.slot == slot).map(|place| place.site);
        let vectors = |slot| {
            at(slot).map(|site| (site, Param::from_tensor(Tensor::from_inner(base.vector(site, slot))))).collect()
        };
        let weight = |site| (site, Param::from_tensor(Tensor::from_inner(base.weight(site).dense())));
        Copies {
            weights: at(Slot::Weight).map(weight).collect(),
            gains: vectors(Slot::Gain),
            biases: vectors(Slot::Bias),
            modules: modules.to_vec(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty() && self.gains.is_empty() && self.biases.is_empty()
    }

    /// The names that chose them.
    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// The base with the copies in place of its tensors.
    pub fn onto(&self, base: &Base) -> Base {
        let base = untied(base, self.weights.iter().map(|(site, _)| site));
        let weight = |base: Base, (site, w): (Site, &Param<Tensor<2>>)| base.with_weight(site, Weight::Dense(w.val()));
        let base = self.weights.iter().fold(base, weight);
        let vectors = |base, vectors: &SiteMap<Param<Tensor<1>>>, slot| {
            vectors.iter().fold(base, |base: Base, (site, v)| base.with_vector(site, slot, v.val()))
        };
        vectors(vectors(base, &self.gains, Slot::Gain), &self.biases, Slot::Bias)
    }

    /// What a checkpoint calls the tensor that records call `name`.
    #[cfg(feature = "load")]
    pub(crate) fn key(name: &str, shape: &crate::Shape) -> crate::Key {
        let place = shape.uses().into_iter().find(|place| crate::slot_name(place.site, place.slot) == name);
        let place = place.unwrap_or_else(|| panic!("{name} is not the name of a copy"));
        crate::Key { name: place.name, transposed: place.transposed }
    }
}

/// The base, with a table for each use of the word table if one of these sites is such a use.
fn untied(base: &Base, mut sites: impl Iterator<Item = Site>) -> Base {
    let base = base.clone();
    if sites.any(|site| matches!(site.part, Part::Words | Part::Vocabulary)) { base.untied() } else { base }
}

/// Whether a module's path, or that of one around it, ends so. As in PEFT the end need not begin behind a dot.
pub(crate) fn is_in(module: &str, name: &str) -> bool {
    let mut path = Some(module);
    while let Some(module) = path {
        if !name.is_empty() && module.ends_with(name) {
            return true;
        }
        path = module.rsplit_once('.').map(|(around, _)| around);
    }
    false
}

/// Some modules' names, one of each kind.
fn some(places: &[Place]) -> String {
    let mut names: Vec<&str> = vec![];
    for place in places {
        let name = place.module().rsplit('.').next().unwrap_or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}
