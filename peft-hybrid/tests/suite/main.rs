//! The tests of hybrid methods, as one program: each program more is one more to link.

mod applied;
mod equivalences;
mod identities;
mod transfers;
