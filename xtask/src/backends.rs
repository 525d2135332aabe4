//! The conformance suite on other backends, compared with flex.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, lines, output};
use crate::test::Counts;

/// The crates with methods.
pub const METHOD_CRATES: [&str; 5] = ["peft-additive", "peft-partial", "peft-reparam", "peft-hybrid", "peft-unified"];

/// What a backend's run found.
#[derive(Default)]
struct Findings {
    counts: Counts,
    difference: f32,
    failures: Vec<String>,
}

impl Findings {
    fn add(&mut self, line: &str) {
        self.counts.add(line);
        if let Some(number) = line.strip_prefix("largest difference to flex: ") {
            self.difference = self.difference.max(number.parse().unwrap_or(f32::INFINITY));
        }
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_string());
        }
    }
}

/// `cargo xtask backends [flex] [wgpu] [tch]`.
pub fn run(names: &[&str]) -> Result<()> {
    let names = if names.is_empty() { &["flex"] } else { names };
    let mut failed = false;
    let mut table = format!("{:8}{:>8}{:>8}  largest difference to flex\n", "backend", "passed", "failed");
    for backend in names {
        let mut findings = Findings::default();
        let succeeded = lines(&mut command(backend)?, |line| {
            findings.add(line);
            println!("{line}");
        })?;
        let Findings { counts, difference, failures } = findings;
        if counts.passed + counts.failed == 0 {
            bail!("no test of the conformance suite ran on {backend}");
        }
        failed |= !succeeded;
        table += &format!("{backend:8}{:>8}{:>8}  {difference:e}\n", counts.passed, counts.failed);
        for failure in failures {
            table += &format!("    {failure}\n");
        }
    }
    println!("\n{table}");
    if failed { bail!("the backends do not all conform") } else { Ok(()) }
}

/// One process a crate, so that kernels are compiled once for all tests; flex is compiled in beside each backend. Only those programs
/// are built that hold the suite: the methods' own tests, and LoRA's variants.
fn command(backend: &str) -> Result<Command> {
    let mut command = cargo(["test", "--lib", "--test", "lora_config", "--no-fail-fast"]);
    for name in METHOD_CRATES {
        command.args(["--package", name, "--features", &format!("{name}/{backend}")]);
    }
    command.args(["conformance::", "--", "--show-output"]).env("PEFT_DEVICE", backend);
    match backend {
        "flex" | "wgpu" => {}
        "tch" => libtorch(&mut command)?,
        other => bail!("no backend `{other}`: flex, wgpu or tch"),
    }
    Ok(command)
}

/// Lets programs find libtorch where they run: that in `LIBTORCH`, else that of the torch that python3 imports.
fn libtorch(command: &mut Command) -> Result<()> {
    let libraries = match std::env::var_os("LIBTORCH") {
        Some(libtorch) => PathBuf::from(libtorch).join("lib"),
        None => {
            command.env("LIBTORCH_USE_PYTORCH", "1");
            let print = "import pathlib, torch; print(pathlib.Path(torch.__file__).parent / 'lib')";
            let found = output(Command::new("python3").args(["-c", print]))
                .context("tch needs LIBTORCH, or torch in python3")?;
            PathBuf::from(found.trim())
        }
    };
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let all = std::iter::once(libraries).chain(std::env::split_paths(&others));
    command.env("LD_LIBRARY_PATH", std::env::join_paths(all)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_difference_and_the_failures_are_found() {
        let mut findings = Findings::default();
        for line in [
            "largest difference to flex: 1e-6",
            "largest difference to flex: 2.5e-5",
            "test lora::tests::conformance::c3 ... ok",
            "test lora::tests::conformance::c9 ... FAILED",
            "test result: FAILED. 9 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.1s",
        ] {
            findings.add(line);
        }
        assert_eq!(findings.difference, 2.5e-5);
        assert_eq!(findings.failures, ["lora::tests::conformance::c9"]);
        assert_eq!(findings.counts, Counts { passed: 9, failed: 1, skipped: 0 });
        findings.add("largest difference to flex: inf");
        assert_eq!(findings.difference, f32::INFINITY);
    }
}
