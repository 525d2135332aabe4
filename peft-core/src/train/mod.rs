//! Training: what a method does beside its forward ([`Procedure`]), the optimizer driver ([`Optim`]), and the loop.

mod optim;
mod procedure;

pub use optim::Optim;
pub use procedure::Procedure;
