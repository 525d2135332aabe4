//! Parameter-efficient fine-tuning from the command line.

use std::process::ExitCode;

use clap::Parser;
use peft_bench::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
