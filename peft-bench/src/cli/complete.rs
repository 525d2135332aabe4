//! `peft completions` and `peft man`

use std::io::stdout;

use clap::{Args, Command, CommandFactory};
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
#[command(
    after_help = "Examples:\n  peft man > peft.1\n  peft man train > peft-train.1\n  peft man --markdown > CLI.md"
)]
pub struct Man {
    /// The command
    command: Option<String>,
    /// All commands as one page of Markdown
    #[arg(long, conflicts_with = "command")]
    markdown: bool,
}

impl Man {
    pub(super) fn run(self) -> Result<()> {
        let mut command = Cli::command();
        command.build();
        if self.markdown {
            return print(markdown(command).trim_end());
        }
        if let Some(name) = &self.command {
            let known = command.get_subcommands().map(|c| c.get_name()).collect::<Vec<_>>().join(", ");
            command = command.find_subcommand(name).cloned().ok_or_else(|| Error::config("command", name, known))?;
        }
        clap_mangen::Man::new(command).render(&mut stdout()).map_err(Error::io("write", "standard output"))
    }
}

/// What the commands share, then each with its own help.
fn markdown(mut program: Command) -> String {
    let mut page = include_str!("preface.md").to_string();
    for command in program.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let help = command.clone().term_width(100).render_long_help().to_string();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        page += &format!("\n## `peft {}`\n\n```text\n{}\n```\n", command.get_name(), lines.join("\n"));
    }
    page
}
