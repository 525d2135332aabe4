//! `peft completions` and `peft man`

use std::io::stdout;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use peft_core::{Error, Result};

use super::Cli;
use super::options::print;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  peft completions bash > ~/.local/share/bash-completion/completions/peft")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "peft", &mut script);
        print(String::from_utf8_lossy(&script).trim_end())
    }
}

/// Print the manual page, of the program or of one command
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft man > peft.1\n  peft man train > peft-train.1")]
pub struct Man {
    /// The command
    command: Option<String>,
}

impl Man {
    pub(super) fn run(self) -> Result<()> {
        let mut command = Cli::command();
        command.build();
        if let Some(name) = &self.command {
            let known = command.get_subcommands().map(|c| c.get_name()).collect::<Vec<_>>().join(", ");
            command = command.find_subcommand(name).cloned().ok_or_else(|| Error::config("command", name, known))?;
        }
        clap_mangen::Man::new(command).render(&mut stdout()).map_err(Error::io("write", "standard output"))
    }
}
