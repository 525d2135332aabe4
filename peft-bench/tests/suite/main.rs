//! The tests of the program, as one program: each program more is one more to link.

mod adapterhub;
mod arithmetic;
mod cli;
mod equivalences;
mod finished;
mod fused;
mod fuzzed;
mod over;
mod packed;
mod plan;
mod recompute;
mod reproduce;
mod resume;
mod sizes;
mod transfers;
