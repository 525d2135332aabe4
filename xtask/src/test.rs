//! Every test: those of the documentation, then all others with cargo-nextest where it is installed, else with `cargo test`.

use std::process::Stdio;

use anyhow::{Result, bail};

use crate::shell::{cargo, lines};

/// What libtest counted, summed over its programs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Counts {
    /// Adds the line that closes a program, `test result: ok. 3 passed; 0 failed; 1 ignored; ..`; other lines count nothing.
    pub fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        let number = |word: &str| {
            let before = counts.split(word).next().unwrap_or_default().trim_end();
            before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        self.passed += number("passed;");
        self.failed += number("failed;");
        self.skipped += number("ignored;");
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// `cargo xtask test [ARGS]`. With arguments the tests of the documentation are left out: the runners differ in options.
pub fn run(args: &[&str]) -> Result<()> {
    let nextest = cargo(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success();
    let documentation = if args.is_empty() { counted(&["test", "--doc"], &[])? } else { true };
    let others = if nextest {
        cargo(["nextest", "run", "--no-fail-fast"]).args(args).status()?.success()
    } else {
        counted(&["test", "--tests", "--no-fail-fast"], args)?
    };
    if documentation && others { Ok(()) } else { bail!("tests failed") }
}

/// Runs tests and closes with the sum of their counts.
fn counted(command: &[&str], args: &[&str]) -> Result<bool> {
    let mut counts = Counts::default();
    let succeeded = lines(cargo(command).args(args), |line| {
        counts.add(line);
        println!("{line}");
    })?;
    println!("\n{counts}");
    Ok(succeeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed() {
        let mut counts = Counts::default();
        counts.add("running 3 tests");
        counts.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s");
        counts.add("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s");
        assert_eq!(counts, Counts { passed: 14, failed: 3, skipped: 1 });
    }
}
