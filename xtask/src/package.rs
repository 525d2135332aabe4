//! Whether each crate can be published: its package holds what its sources include, and it compiles no backend unless it is asked to.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::backends::METHOD_CRATES;
use crate::methods::files;
use crate::shell::{cargo, output, root, run as run_command};

/// What brings a backend in.
const BACKENDS: [&str; 8] =
    ["burn-flex", "burn-cpu", "burn-cuda", "burn-ndarray", "burn-rocm", "burn-tch", "burn-wgpu", "cubecl-runtime"];

/// `cargo xtask package`.
pub fn run() -> Result<()> {
    let libraries: Vec<&str> = ["peft-core", "peft-quant"].into_iter().chain(METHOD_CRATES).collect();
    for name in &libraries {
        if let Some(backend) = backend(&output(&mut tree(name, &[]))?) {
            bail!("{name} without features compiles the backend {backend}");
        }
        // The names above are still those of burn's crates.
        if backend(&output(&mut tree(name, &["--features", "flex"]))?) != Some("burn-flex") {
            bail!("{name} with the feature flex compiles no burn-flex");
        }
    }
    let all: Vec<&str> = libraries.into_iter().chain(["peft-bench"]).collect();
    for name in &all {
        described(name)?;
    }
    let select = all.iter().flat_map(|name| ["--package", name]);
    // What they compile to is tested where it is built: here no second build of everything.
    run_command(&mut cargo(["package", "--quiet", "--no-verify", "--allow-dirty"].into_iter().chain(select)))?;
    println!("{} crates can be packaged, and no library compiles a backend unasked", all.len());
    Ok(())
}

/// The dependencies of a crate as one who adds it compiles them.
fn tree(name: &str, args: &[&str]) -> Command {
    cargo(["tree", "--edges", "normal", "--prefix", "none", "--package", name].iter().chain(args))
}

/// The backend among the crates of a tree.
fn backend(tree: &str) -> Option<&'static str> {
    let mut names = tree.lines().filter_map(|line| line.split(' ').next());
    names.find_map(|name| BACKENDS.into_iter().find(|backend| *backend == name))
}

/// Fails if a crate's page would lack its documentation, or a file that its documentation or code includes is outside of it.
fn described(name: &str) -> Result<()> {
    let (folder, readme) = (root().join(name), "#![doc = include_str!(\"../README.md\")]");
    let library = fs::read_to_string(folder.join("src/lib.rs"))?;
    if !library.starts_with(readme) {
        bail!("{name}/src/lib.rs: its first line must be {readme}");
    }
    let text = fs::read_to_string(folder.join("README.md")).with_context(|| format!("{name}/README.md"))?;
    for part in [&format!("# {name}\n"), "\n```rust", "\n## Features\n"] {
        if !text.contains(part) {
            bail!("{name}/README.md: `{}` is missing", part.trim());
        }
    }
    for path in files(&folder.join("src"))? {
        let source = fs::read_to_string(&path)?;
        // What only the documentation's tests include is not compiled by one who adds the crate.
        let compiled = source.replace("#[cfg(doctest)]\n#[doc = include_str!", "");
        for macro_name in ["include_str!(\"", "include_bytes!(\""] {
            for after in compiled.split(macro_name).skip(1) {
                let included = after.split('"').next().unwrap_or_default();
                let file = path.parent().context("a source file is in a folder")?.join(included);
                let real = file.canonicalize().with_context(|| format!("{}: {included}", path.display()))?;
                if !real.starts_with(folder.canonicalize()?) {
                    bail!("{}: {included} is outside of the package", path.display());
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_backend_is_found_by_the_whole_name_of_its_crate() {
    assert_eq!(backend("peft-core v0.1.0 (/x)\nburn v0.22.1\nburn-flex v0.22.1\n"), Some("burn-flex"));
    assert_eq!(backend("burn-flexible v1.0.0\nburn-tensor v0.22.1\n"), None);
}
