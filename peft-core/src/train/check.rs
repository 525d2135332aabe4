//! What a run is checked for before its result is called one.

use std::collections::BTreeMap;

use crate::random::fingerprint;
use crate::view::{tensors, trained as trained_tensors};
use crate::{Base, Error, Procedure, Result, Trained, Tuner};

/// How things were before the first step.
pub(super) struct Before {
    tensors: BTreeMap<String, u64>,
    base: u64,
}

fn fingerprints<T: Tuner>(trained: &Trained<T>) -> BTreeMap<String, u64> {
    tensors(trained).into_iter().map(|(name, data)| (name, fingerprint("", data.as_bytes()))).collect()
}

impl Before {
    pub(super) fn of<T: Tuner>(trained: &Trained<T>, base: &Base) -> Self {
        Before { tensors: fingerprints(trained), base: base.fingerprint() }
    }

    /// A hash of it all.
    pub(super) fn identity(&self) -> String {
        format!("{:016x}", fingerprint(&self.base.to_string(), format!("{:?}", self.tensors).as_bytes()))
    }

    /// Every trainable tensor moved. `steps` are those with a learning rate above 0: there must be two, since a factor may wait
    /// for another to leave 0.
    pub(super) fn moved<T: Procedure>(&self, trained: &Trained<T>, steps: usize) -> Result<()> {
        // The table that makes logits over words is of no use to a head for classes.
        let vocabulary = |name: &str| trained.head.outputs().is_some() && name.ends_with(".vocabulary");
        let rests = |name: &str| name.strip_prefix("tuner.").is_some_and(|name| trained.tuner.may_rest(name));
        let unused = |name: &str| vocabulary(name) || rests(name);
        let moving: BTreeMap<_, _> = trained_tensors(trained).into_iter().filter(|(name, _)| !unused(name)).collect();
        let still = |(name, now): &(String, u64)| moving.contains_key(name) && self.tensors.get(name) == Some(now);
        let unmoved: Vec<String> = fingerprints(trained).into_iter().filter(still).map(|(name, _)| name).collect();
        if steps > 1 && !unmoved.is_empty() {
            let detail = format!("{} did not move in {steps} steps", unmoved.join(", "));
            return Err(Error::Check { what: "every trainable tensor moves", detail });
        }
        Ok(())
    }

    /// The frozen base has the bits that it had.
    pub(super) fn kept(&self, base: &Base) -> Result<()> {
        if base.fingerprint() != self.base {
            let detail = "a frozen tensor has other bits than before the run".to_string();
            return Err(Error::Check { what: "nothing frozen moves", detail });
        }
        Ok(())
    }
}
