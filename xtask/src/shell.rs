//! Running commands at the root of the workspace.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// The cargo that runs this chore, with arguments.
pub fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// How a command reads in messages.
pub fn text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| text(command))?;
    if status.success() { Ok(()) } else { bail!("`{}` failed: {status}", text(command)) }
}

/// What a command that must succeed writes to its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| text(command))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", text(command), output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Builds the program `peft` and says where it is. With the id of a model among its arguments it is the one that can fetch it.
pub fn program(args: &[&str]) -> Result<PathBuf> {
    built(if wants_hub(args) { &["--features", "peft-bench/hub"] } else { &[] }, "peft")
}

/// Builds a program of the workspace, with more arguments for cargo, and says where it is.
///
/// It is the one that the tests run, built beside the smallest of their programs: alone, cargo would give its dependencies other
/// features and compile them, burn among them, a second time.
pub fn built(more: &[&str], program: &str) -> Result<PathBuf> {
    let mut build = cargo(["build", "--package", "peft-bench", "--test", "families", "--bins"]);
    build.args(["--message-format", "json-render-diagnostics"]).args(more);
    let messages = output(&mut build)?;
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == program && message["profile"]["test"] == false;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    messages.lines().find_map(executable).with_context(|| format!("cargo built no program `{program}`"))
}

/// Whether the model that is named is neither here nor a shape.
fn wants_hub(args: &[&str]) -> bool {
    let after = args.windows(2).filter(|pair| pair[0] == "--model").map(|pair| pair[1]);
    let joined = args.iter().filter_map(|arg| arg.strip_prefix("--model="));
    after.chain(joined).any(|model| !model.starts_with("shape:") && !Path::new(model).exists())
}

/// Runs a command, handing over each line of its standard output; whether it succeeded.
pub fn lines(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| text(command))?;
    let stdout = child.stdout.take().expect("it was piped");
    for each in BufReader::new(stdout).lines() {
        line(&each?);
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use super::wants_hub;

    #[test]
    fn only_ids_want_a_hub() {
        for args in [&["--model", "roberta-base"][..], &["--quick", "--model=org/name"]] {
            assert!(wants_hub(args), "{args:?}");
        }
        for args in
            [&[][..], &["--rows", "LoRA"], &["--model", "shape:roberta-tiny"], &["--model", "/"], &["--model=."]]
        {
            assert!(!wants_hub(args), "{args:?}");
        }
    }
}
