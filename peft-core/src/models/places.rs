//! The tensors of a backbone, built in the groups in which models have them.

use crate::{Place, Site, Slot};

/// A table `[rows, hidden]`, which files hold as it is.
pub(crate) fn table(site: Site, rows: usize, hidden: usize, name: impl Into<String>) -> Vec<Place> {
    vec![Place { site, slot: Slot::Weight, dims: vec![rows, hidden], transposed: false, name: name.into() }]
}

/// A linear map `[in, out]`, which files hold transposed, and its bias if it has one.
pub(crate) fn linear(site: Site, dims: [usize; 2], module: impl AsRef<str>, bias: bool) -> Vec<Place> {
    let module = module.as_ref();
    let name = format!("{module}.weight");
    let mut places = vec![Place { site, slot: Slot::Weight, dims: dims.to_vec(), transposed: true, name }];
    if bias {
        places.push(vector(site, Slot::Bias, dims[1], format!("{module}.bias")));
    }
    places
}

/// The gain of a normalization, and its bias if it has one.
pub(crate) fn norm(site: Site, hidden: usize, module: impl AsRef<str>, bias: bool) -> Vec<Place> {
    let module = module.as_ref();
    let mut places = vec![vector(site, Slot::Gain, hidden, format!("{module}.weight"))];
    if bias {
        places.push(vector(site, Slot::Bias, hidden, format!("{module}.bias")));
    }
    places
}

fn vector(site: Site, slot: Slot, length: usize, name: String) -> Place {
    Place { site, slot, dims: vec![length], transposed: false, name }
}
