//! Methods and tuners whose type is known only when the program runs: trainer, files, prediction and commands are compiled once, for
//! these, and a method adds its own code and nothing else.

mod composed;
mod many;
mod method;
mod over;
mod ranks;
mod tuner;

pub use many::Many;
pub use method::{AnyMethod, HubForm};
pub use over::Over;
pub use tuner::AnyTuner;
