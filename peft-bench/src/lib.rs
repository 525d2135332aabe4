#![doc = include_str!("../../README.md")]

pub mod cli;
pub mod hermetic;
pub mod registry;
pub mod tasks;
