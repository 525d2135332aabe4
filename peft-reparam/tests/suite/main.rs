//! The tests of reparameterized methods, as one program: each program more is one more to link.

mod arithmetic;
mod checkpoints;
mod composition;
mod equivalences;
mod heads;
mod identities;
mod lora_identities;
mod packed;
mod seams;
mod training;
