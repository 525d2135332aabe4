//! Each library crate as a user may depend on it: with none of its features, with each alone, and its documentation.

use anyhow::{Context, Result, bail};

use crate::backends::METHOD_CRATES;
use crate::shell::{cargo, text};

/// Features of peft-core. Other backends than flex need a device, or a library that is not everywhere; `hub` is `load` with a client
/// that takes minutes to compile.
const CORE: [&str; 7] = ["", "load", "train", "tokenize", "chat", "testing", "flex"];

/// `cargo xtask features`.
pub fn run() -> Result<()> {
    let families = METHOD_CRATES.iter().copied().chain(["peft-quant"]).map(|name| (name, ""));
    let mut failed = false;
    for (package, features) in CORE.map(|features| ("peft-core", features)).into_iter().chain(families) {
        println!("{package} with {}", if features.is_empty() { "no feature" } else { features });
        for command in [&["check"][..], &["doc", "--no-deps"]] {
            let select = ["--quiet", "--package", package, "--no-default-features", "--features", features];
            let mut command = cargo(command.iter().chain(&select));
            // Cargo has no switch that makes warnings of these crates alone errors.
            let said = command.output().with_context(|| text(&command))?.stderr;
            failed |= !said.is_empty();
            eprint!("{}", String::from_utf8_lossy(&said));
        }
    }
    if failed { bail!("not every selection of features compiles without a warning") } else { Ok(()) }
}
