//! The examples: programs of people who add a crate or two of ours. What they compile, how long they are, and whether they run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::shell::{built, cargo, output, root, run as run_command};

/// What only the program `peft` and the tests need: command lines, tokenizers, hub clients, test tools.
const UNWANTED: [&str; 9] =
    ["clap", "indicatif", "tokenizers", "onig", "hf-hub", "ureq", "rustls", "proptest", "criterion"];

/// The families that stand alone.
const LEAVES: [&str; 3] = ["peft-additive", "peft-partial", "peft-reparam"];

/// The families that are built on those.
const COMBINATIONS: [&str; 2] = ["peft-hybrid", "peft-unified"];

/// A `main.rs` stays below this many lines.
const MAX_LINES: usize = 40;

/// `cargo xtask examples [NAMES]`.
pub fn run(names: &[&str]) -> Result<()> {
    let folder = root().join("examples");
    let names = if names.is_empty() { folders(&folder)? } else { names.iter().map(|name| name.to_string()).collect() };
    for name in names {
        let start = Instant::now();
        let report = example(&name, &folder.join(&name)).with_context(|| format!("examples/{name}"))?;
        println!("{name}: {report}, {:.1} s", start.elapsed().as_secs_f32());
    }
    Ok(())
}

fn folders(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn example(name: &str, folder: &Path) -> Result<String> {
    let package = format!("{}-example", name.replace('_', "-"));
    let crates = isolated(&package)?;
    let main = folder.join("src/main.rs");
    if !main.exists() {
        return Ok(format!("{crates} crates, a library, whose tests are among those of the workspace"));
    }
    let lines = fs::read_to_string(&main)?.lines().count();
    if lines >= MAX_LINES {
        bail!("main.rs has {lines} lines, the limit is below {MAX_LINES}");
    }
    let out = root().join("target/examples-out").join(name);
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    let program = built(&["--package", &package], &package)?;
    run_command(Command::new(program).current_dir(folder).arg("shape:roberta-tiny").arg(out))?;
    Ok(format!("{lines} lines, {crates} crates, ran"))
}

/// Fails if the example compiles what its author did not ask for: an unwanted crate, or a family that it does not name and
/// that no combination which it names is built on. Gives the number of crates.
fn isolated(package: &str) -> Result<usize> {
    let tree = |args: &[&str]| -> Result<BTreeSet<String>> {
        let tree = output(cargo(["tree", "--edges", "normal", "--prefix", "none", "--package", package]).args(args))?;
        Ok(tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_string).collect())
    };
    let (asked, compiled) = (tree(&["--depth", "1"])?, tree(&[])?);
    let mut allowed: Vec<&str> = vec!["peft-core", "peft-quant"];
    if COMBINATIONS.iter().any(|name| asked.contains(*name)) {
        allowed.extend(LEAVES);
    }
    let family = |name: &str| name.starts_with("peft-") && !allowed.contains(&name);
    let extra = |name: &&String| UNWANTED.contains(&name.as_str()) || family(name) && !asked.contains(*name);
    match compiled.iter().find(extra) {
        Some(name) => bail!("it compiles {name}, see `cargo tree --invert {name}`"),
        None => Ok(compiled.len()),
    }
}
