//! Hashes of a backbone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Base;
use crate::random::fingerprint;
use crate::{Compute, Place, Site, Slot};

/// Those of a backbone's tensors that are known; of a tensor that is replaced there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Hashes(Arc<Mutex<BTreeMap<(Site, Slot), u64>>>);

impl Hashes {
    fn known(&self) -> BTreeMap<(Site, Slot), u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Without that of a tensor. Bases that share the others keep it.
    pub(super) fn without(&self, site: Site, slot: Slot) -> Self {
        let mut known = self.known();
        known.remove(&(site, slot));
        Hashes(Arc::new(Mutex::new(known)))
    }
}

impl Base {
    /// A hash of every bit of the base, of what its shape says beside them (heads, activation, positions, dropout ..), and of what its
    /// products are computed in.
    pub fn fingerprint(&self) -> u64 {
        self.beside_weights() ^ self.weights_fingerprint()
    }

    /// A hash of every bit of its tensors as files hold them, in f32, whatever type they had there. It stays the same from version to
    /// version of this library.
    pub fn weights_fingerprint(&self) -> u64 {
        self.shape.places().iter().fold(0, |all, place| all ^ self.of_tensor(place))
    }

    /// [`fingerprint`](Self::fingerprint), of which each tensor is read once, whatever bases share it: for who asks which base it is,
    /// not whether it has changed.
    pub fn known_fingerprint(&self) -> u64 {
        self.beside_weights() ^ self.known_weights_fingerprint()
    }

    /// [`weights_fingerprint`](Self::weights_fingerprint) likewise. Who asks meanwhile waits: runs that begin at once on one base would each
    /// hold a copy of its largest tensor.
    pub fn known_weights_fingerprint(&self) -> u64 {
        let mut known = self.hashes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = |place: Place| *known.entry((place.site, place.slot)).or_insert_with(|| self.of_tensor(&place));
        self.shape.places().into_iter().map(hash).fold(0, |all, hash| all ^ hash)
    }

    fn beside_weights(&self) -> u64 {
        let compute = match self.compute {
            Compute::F32 => 0,
            other => fingerprint("compute", other.to_string().as_bytes()),
        };
        compute ^ fingerprint("shape", format!("{:?}", self.shape).as_bytes())
    }

    fn of_tensor(&self, place: &Place) -> u64 {
        fingerprint(&place.name, self.tensor_data(place).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{base, device};
    use crate::{Part, Weight};

    #[test]
    fn what_is_replaced_is_read_again() {
        let base = base("roberta-tiny", &device());
        assert_eq!(base.known_fingerprint(), base.fingerprint());
        let (matrix, gain) = (Site::encoder(1, Part::Query), (Site::encoder(0, Part::NormAttention), Slot::Gain));
        let other = base.clone().with_weight(matrix, Weight::Dense(base.weight(matrix).dense() + 1.0));
        let another = base.clone().with_vector(gain.0, gain.1, base.vector(gain.0, gain.1) + 1.0);
        for changed in [&other, &another, &base.one_layer()] {
            assert_eq!(changed.known_fingerprint(), changed.fingerprint());
            assert_ne!(changed.known_weights_fingerprint(), base.known_weights_fingerprint());
        }
        assert_eq!(base.known_fingerprint(), base.fingerprint());
        let known = |base: &Base| base.hashes.known().len();
        assert_eq!(known(&base.clone()), base.shape().places().len());
        assert_eq!(known(&base.with_weight(matrix, other.weight(matrix).clone())) + 1, known(&other));
    }

    #[test]
    fn tables_that_were_one_do_not_share_what_is_known_of_them() {
        let base = base("t5-tiny", &device());
        let words = base.shape().words();
        let untied = base.clone().untied();
        assert_eq!(untied.known_fingerprint(), untied.fingerprint());
        let other = base.clone().with_weight(words, Weight::Dense(base.weight(words).dense() * 2.0)).untied();
        assert_eq!(other.known_fingerprint(), other.fingerprint());
    }
}
