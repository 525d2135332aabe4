//! The tests of unified methods, as one program: each program more is one more to link.

mod equivalences;
mod identities;
