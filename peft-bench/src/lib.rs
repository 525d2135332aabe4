//! The program `peft`: its commands, its registry of methods, and the tasks it knows.

pub mod cli;
pub mod registry;
pub mod tasks;
