//! The tests of the core, as one program: each program more is one more to link.

mod answers;
mod chat;
mod common;
mod data;
mod generation_settings;
mod gguf;
mod hostile_gguf;
mod hostile_tokenizers;
mod hostile_weights;
mod models;
mod names;
mod sequences;
mod tagged;
mod tokenizer_folders;
mod verbalizer;
