//! Everything that `cargo xtask reproduce` needs when it is given nothing: a corpus to pretrain on, a tokenizer, and eight
//! tasks in GLUE's own layout, all from a seeded grammar.

pub mod grammar;
pub mod tasks;
#[cfg(test)]
mod tests;
mod write;

pub use write::write;
