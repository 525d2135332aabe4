//! Processes of this program that do a part of its work, so that what they hold in memory is theirs alone. They end when it does.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use peft_core::{Error, Result};

/// Set in such a process.
const CHILD: &str = "PEFT_CHILD";

/// In such a process: ends it as soon as nobody holds the other end of its standard input.
pub fn watch() {
    if std::env::var_os(CHILD).is_some() {
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(1);
        });
    }
}

/// This program with arguments, run to its end: what of its output and errors is piped, and how it ended.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>, stdout: Stdio, stderr: Stdio) -> Result<Output> {
    let program = std::env::current_exe().map_err(Error::io("find", "the program"))?;
    let mut command = Command::new(program);
    command.args(args).env(CHILD, "1").stdin(Stdio::piped()).stdout(stdout).stderr(stderr);
    let mut process = command.spawn().map_err(Error::io("start", "a process of this program"))?;
    // While this end is open the process goes on.
    let _open = process.stdin.take();
    process.wait_with_output().map_err(Error::io("wait for", "a process of this program"))
}
