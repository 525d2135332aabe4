//! The tests of the program, as one program: each program more is one more to link.

mod adapterhub;
mod cli;
mod equivalences;
mod finished;
mod packed;
mod recompute;
mod reproduce;
mod resume;
mod sizes;
