//! Parameter-efficient fine-tuning from the command line.

use std::process::ExitCode;

use peft_bench::cli::Cli;

fn main() -> ExitCode {
    match Cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
