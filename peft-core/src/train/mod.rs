//! Training: what a method does beside its forward ([`Procedure`]), the optimizer driver ([`Optim`]), and the loop.

mod importance;
mod optim;
mod pages;
mod probe;
mod procedure;

#[cfg(feature = "train")]
mod check;
#[cfg(feature = "train")]
mod checkpoint;
// What only the trainer asks of the settings is dead without it.
#[cfg_attr(not(feature = "train"), allow(dead_code))]
mod config;
#[cfg(feature = "train")]
mod entities;
#[cfg(feature = "train")]
pub mod metrics;
#[cfg(feature = "train")]
pub mod micro;
#[cfg(feature = "train")]
mod order;
#[cfg(feature = "train")]
mod predict;
#[cfg(feature = "train")]
mod run;
#[cfg(feature = "train")]
mod served;
#[cfg(feature = "train")]
mod slots;
#[cfg(feature = "train")]
mod trainer;
#[cfg(feature = "train")]
mod tuned;
#[cfg(feature = "train")]
mod views;

#[cfg(feature = "train")]
pub use checkpoint::Checkpoints;
pub use config::{Length, OtherRule, Rule, Schedule, TrainConfig, check_threads};
#[cfg(feature = "train")]
pub use entities::entity_scores;
pub use importance::largest;
#[cfg(feature = "train")]
pub use micro::Workers;
pub use optim::Optim;
pub(crate) use optim::Update;
pub use pages::{Paged, PagedState, Pages, Paging};
#[cfg(feature = "train")]
pub use predict::{Logits, Metrics, TextStates, argmax, encode, evaluate, farthest, measure, predict};
pub use probe::Probe;
pub use procedure::{Phase, Procedure};
#[cfg(feature = "train")]
pub use run::{Run, StepReport};
#[cfg(feature = "train")]
pub use served::Served;
#[cfg(feature = "train")]
pub use slots::{Slots, at_once};
#[cfg(feature = "train")]
pub use trainer::{Observer, Trainer};
#[cfg(feature = "train")]
pub use tuned::{Merged, Tuned};
