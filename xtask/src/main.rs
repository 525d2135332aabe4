//! The chores of the workspace.

mod backends;
mod card;
mod cli;
mod equivalences;
mod examples;
mod features;
mod interop;
mod methods;
mod package;
mod real;
mod shell;
mod test;

use std::process::Command;

use anyhow::{Result, bail};

const HELP: &str = "\
The chores of the workspace.

    cargo xtask test [ARGS]         every test; ARGS go to the test runner
    cargo xtask backends [NAMES]    the conformance suite on flex, wgpu, tch (flex if none is named)
    cargo xtask methods [--check]   writes METHODS.md from the cards of the methods, or checks that it is up to date
    cargo xtask cli [--check]       writes CLI.md from what the program says of its commands, or checks that it is up to date
    cargo xtask equivalences        which methods are the same as which others, and when, as the tests prove it
    cargo xtask features            each library crate with each of its features alone and with none
    cargo xtask package             whether each crate can be published, and that no library compiles a backend unasked
    cargo xtask examples [NAMES]    what the examples compile, how long they are, and whether they run
    cargo xtask reproduce [ARGS]    the survey's Tables III to VI and the table of all methods, trained from nothing or on real files
                                    (--help tells more)
    cargo xtask real [ARGS]         trains on a real model and real sentences, merges, and compares (--help tells more)
    cargo xtask interop             exchanges adapters and merged models with transformers and PEFT (python3)";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["test", rest @ ..] => test::run(rest),
        ["backends", names @ ..] => backends::run(names),
        ["methods"] => methods::write(),
        ["methods", "--check"] => methods::check(),
        ["cli"] => cli::write(),
        ["cli", "--check"] => cli::check(),
        ["equivalences"] => equivalences::print(),
        ["examples", names @ ..] => examples::run(names),
        ["features"] => features::run(),
        ["package"] => package::run(),
        ["reproduce", rest @ ..] => shell::run(Command::new(shell::program(rest)?).arg("reproduce").args(rest)),
        ["real", rest @ ..] => real::run(rest),
        ["interop"] => interop::run(),
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(())
        }
        other => bail!("no chore `{}`\n\n{HELP}", other.join(" ")),
    }
}
