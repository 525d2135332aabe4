//! Putting methods to the test: the conformance suite, equivalences, and the models and batches they run on. Public, so
//! that a method of one's own can be put through the same.

pub mod conformance;
pub mod equivalence;
pub mod fixtures;
pub mod golden;
pub mod recorded;
pub mod tolerances;
mod views;
mod warned;

#[cfg(feature = "flex")]
pub use crate::fused::composed;
pub use equivalence::{assert_close, difference, states};
pub use fixtures::{base, batch, device, examples, randomized, randomized_by};
pub use views::a_view_is_as_by_hooks;
pub use warned::warnings;
