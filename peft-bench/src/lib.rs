#![doc = include_str!("../../README.md")]

pub mod cli;
pub mod hermetic;
pub mod machine;
pub mod registry;
pub mod reproduce;
pub mod signals;
pub mod tasks;
