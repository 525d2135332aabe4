//! CLI.md: what the program's commands say of themselves.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{output, program, root};

/// `cargo xtask cli`.
pub fn write() -> Result<()> {
    fs::write(root().join("CLI.md"), page()?).context("CLI.md")
}

/// `cargo xtask cli --check`.
pub fn check() -> Result<()> {
    let written = fs::read_to_string(root().join("CLI.md")).unwrap_or_default();
    if written == page()? { Ok(()) } else { bail!("CLI.md is out of date: run `cargo xtask cli`") }
}

fn page() -> Result<String> {
    output(Command::new(program(&[])?).args(["man", "--markdown"]))
}
