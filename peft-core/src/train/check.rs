//! What a run is checked for before its result is called one.

use std::collections::BTreeMap;

use super::Run;
use crate::random::fingerprint;
use crate::view::{tensors, trained as trained_tensors};
use crate::warning::{TARGET, listed};
use crate::{Base, Error, Example, Procedure, Result, Trained, Tuner};

/// How things were before the first step.
pub(super) struct Before {
    tensors: BTreeMap<String, u64>,
}

fn fingerprints<T: Tuner>(trained: &Trained<T>) -> BTreeMap<String, u64> {
    tensors(trained).into_iter().map(|(name, data)| (name, fingerprint("", data.as_bytes()))).collect()
}

impl Before {
    pub(super) fn of<T: Tuner>(trained: &Trained<T>) -> Self {
        Before { tensors: fingerprints(trained) }
    }

    /// A hash of it all, and of the base.
    pub(super) fn identity(&self, base: &Base) -> String {
        let base = base.known_fingerprint().to_string();
        format!("{:016x}", fingerprint(&base, format!("{:?}", self.tensors).as_bytes()))
    }

    /// The trainable tensors that did not move though they should have. `steps` are those with a learning rate above 0: there must
    /// be two, since a factor may wait for another to leave 0.
    pub(super) fn unmoved<T: Procedure>(&self, trained: &Trained<T>, steps: usize) -> Vec<String> {
        // The table that makes logits over words is of no use to a head for classes.
        let vocabulary = |name: &str| trained.head.judges_classes() && name.ends_with(".vocabulary");
        let rests = |name: &str| name.strip_prefix("tuner.").is_some_and(|name| trained.tuner.may_rest(name));
        let unused = |name: &str| vocabulary(name) || rests(name);
        let moving: BTreeMap<_, _> = trained_tensors(trained).into_iter().filter(|(name, _)| !unused(name)).collect();
        let still = |(name, now): &(String, u64)| moving.contains_key(name) && self.tensors.get(name) == Some(now);
        let unmoved = fingerprints(trained).into_iter().filter(still).map(|(name, _)| name);
        if steps > 1 { unmoved.collect() } else { vec![] }
    }
}

/// What it means that these tensors did not move: a gradient of zero is the data's doing and is said (the attention of a decoder
/// whose texts have one word looks at one word, whatever its query is); anything else is a fault of the method.
pub(super) fn judge<T: Procedure>(run: &mut Run<T>, data: &[Example], unmoved: Vec<String>) -> Result<Option<Error>> {
    if unmoved.is_empty() {
        return Ok(None);
    }
    let gradients = run.last_gradients(data)?;
    let of = |name: &String| gradients.get(name).copied();
    // A task that is drawn seldom may be in no batch.
    let undrawn = |name: &String| run.trained.head.tasks().is_some() && name.starts_with("head.") && of(name).is_none();
    let (undrawn, unmoved): (Vec<_>, Vec<_>) = unmoved.into_iter().partition(undrawn);
    if !undrawn.is_empty() {
        log::warn!(target: TARGET, "{} did not move: the steps took no example of its task", listed(&undrawn));
    }
    let (idle, faulty): (Vec<_>, Vec<_>) = unmoved.into_iter().partition(|name| of(name) == Some(0.0));
    if !idle.is_empty() {
        log::warn!(target: TARGET, "{} did not move: the gradient is zero on this data", listed(&idle));
    }
    let why = |name: String| match of(&name) {
        None => format!("{name} has no gradient"),
        Some(largest) => format!("{name} did not move with a gradient of up to {largest:e}"),
    };
    let faults: Vec<String> = faulty.into_iter().map(why).collect();
    let detail = faults.join(", ");
    Ok((!faults.is_empty()).then_some(Error::Check { what: "every trainable tensor moves", detail }))
}
