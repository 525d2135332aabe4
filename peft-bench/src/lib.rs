#![doc = include_str!("../README.md")]

pub mod child;
pub mod cli;
pub mod hermetic;
pub mod machine;
pub mod registry;
pub mod reproduce;
pub mod signals;
pub mod tasks;

/// The code of the workspace's README, compiled. That file is not part of this crate's package.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
