//! Parameter-efficient fine-tuning from the command line.

use std::process::ExitCode;

use peft_bench::cli::Cli;
use peft_bench::{child, signals};
use peft_core::Error;

fn main() -> ExitCode {
    child::watch();
    signals::watch();
    match (Cli::run(std::env::args_os()), signals::end()) {
        (Ok(()), _) => ExitCode::SUCCESS,
        (Err(Error::Stopped { .. }), Some((line, status))) => {
            eprintln!("{}", peft_core::shown(line));
            ExitCode::from(status)
        }
        (Err(error), _) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
