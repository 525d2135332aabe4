//! A search among configurations: a [`Space`] of settings, a [`Search`] that proposes the next point of it, and [`Trials`], a
//! directory of what was tried, which outlives the program and which several programs may share.
//!
//! A point has a score, the more the better, and the numbers that it trains, the fewer the better; the second is known in closed form
//! before anything is run. What no other point beats in both is the [front](front::front).

pub mod front;
pub mod gp;
mod space;
mod strategy;
mod trials;

pub use space::{Point, Space};
pub use strategy::{Proposal, Search, Strategy, Trial};
pub use trials::{Claim, Trials};
