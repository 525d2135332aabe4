//! The examples: programs of people who add a crate or two of ours. What they compile, how long they are, and whether they run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, output, root, run as run_command};

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
        let report = example(&folder.join(&name)).with_context(|| format!("examples/{name}"))?;
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

fn example(folder: &Path) -> Result<String> {
    // The workspace's versions and profiles, so that no dependency is resolved, fetched or compiled a second time.
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let crates = isolated(folder)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let cargo = |args: &[&str]| {
        let mut command = cargo(["--config", "../../Cargo.toml"].iter().chain(args));
        command.current_dir(folder).env("CARGO_TARGET_DIR", &target);
        command
    };
    let main = folder.join("src/main.rs");
    if !main.exists() {
        run_command(&mut cargo(&["test", "--quiet", "--lib"]))?;
        return Ok(format!("{crates} crates, tested"));
    }
    let lines = fs::read_to_string(&main)?.lines().count();
    if lines >= MAX_LINES {
        bail!("main.rs has {lines} lines, the limit is below {MAX_LINES}");
    }
    let out = target.join("examples-out").join(folder.file_name().unwrap_or_default());
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    run_command(cargo(&["run", "--quiet", "--", "shape:roberta-tiny"]).arg(&out))?;
    Ok(format!("{lines} lines, {crates} crates, ran"))
}

/// Fails if the example compiles what its author did not ask for: an unwanted crate, or a family that it does not name and
/// that no combination which it names is built on. Gives the number of crates.
fn isolated(folder: &Path) -> Result<usize> {
    let tree = |args: &[&str]| -> Result<BTreeSet<String>> {
        let tree = output(cargo(["tree", "--edges", "normal", "--prefix", "none"]).args(args).current_dir(folder))?;
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
