//! `peft completions` and `peft man`

use std::io::stdout;

use clap::builder::PossibleValuesParser;
use clap::{Arg, Args, Command, CommandFactory};
use clap_complete::Shell;
use peft_core::{Error, Result};

use super::Cli;
use super::options::print;
use crate::registry::METHODS;
use crate::tasks::TASKS;

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
        clap_complete::generate(self.shell, &mut with_names(Cli::command()), "peft", &mut script);
        print(String::from_utf8_lossy(&script).trim_end())
    }
}

/// With the names of methods and tasks as values to choose from. The program itself takes more: several names with `+` between them.
fn with_names(command: Command) -> Command {
    let methods: Vec<_> = METHODS.iter().map(|entry| entry.name).collect();
    let command = [("method", methods), ("task", TASKS.map(|task| task.name).to_vec())].into_iter().fold(
        command,
        |command, (id, names)| {
            let open = |arg: &Arg| arg.get_id() == id && arg.get_possible_values().is_empty();
            let is_open = command.get_arguments().any(open);
            match is_open {
                true => command.mut_arg(id, |arg| arg.value_parser(PossibleValuesParser::new(names))),
                false => command,
            }
        },
    );
    command.mut_subcommands(with_names)
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
