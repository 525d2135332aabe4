//! Everything that `cargo xtask reproduce` needs when it is given nothing, all from a seeded grammar: a corpus to pretrain on, a
//! tokenizer, and tasks in the layouts of the real ones. Here eight tasks of GLUE's kinds, in [`translation`] two languages
//! for a T5, in [`lore`] facts, instructions and questions for a LLaMA.

pub mod grammar;
pub mod lore;
mod subjects;
pub mod tasks;
#[cfg(test)]
mod tests;
pub mod translation;
pub mod vocabulary;
mod write;

pub use write::write;
