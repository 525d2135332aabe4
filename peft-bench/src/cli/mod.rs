//! The commands of `peft`, one file each.

mod bench;
mod card;
mod complete;
mod convert;
mod eval;
#[cfg(feature = "tensorboard")]
mod events;
mod forward;
mod generate;
mod hints;
mod inspect;
mod merge;
mod merge_adapters;
mod methods;
mod optimizer;
mod options;
mod out;
mod params;
mod plan;
mod predict;
mod progress;
mod quantize;
mod reproduce;
mod search;
mod speed;
mod together;
mod train;
mod warnings;
mod yaml;

use std::ffi::OsString;

use clap::{Parser, Subcommand};
use peft_core::Result;

/// Parameter-efficient fine-tuning: train a small adapter on a frozen model, use it, merge it.
#[derive(Debug, Parser)]
#[command(name = "peft", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the methods and their settings
    Methods(methods::Methods),
    /// Count trainable and total parameters, and say where they sit
    Params(params::Params),
    /// Train a method on labelled sentences
    Train(Box<train::Train>),
    /// Search among configurations of methods for those that are best on held-out data and train few numbers
    Search(Box<search::Search>),
    /// Measure a model or an adapter on labelled data
    Eval(eval::Eval),
    /// Label texts with a trained adapter
    Predict(predict::Predict),
    /// Write the logits of examples given as token ids
    Forward(forward::Forward),
    /// Let a model that predicts words write
    Generate(generate::Generate),
    /// Fold an adapter into its model
    Merge(merge::Merge),
    /// Make one adapter of several: averages, task arithmetic, TIES, DARE, concatenation, SVD
    MergeAdapters(merge_adapters::MergeAdapters),
    /// Pack a model's linear maps to few bits
    Quantize(quantize::Quantize),
    /// Convert an adapter between the formats of Hugging Face PEFT, AdapterHub and burn
    Convert(convert::Convert),
    /// Say what a model or adapter directory holds
    Inspect(inspect::Inspect),
    /// Measure speed and memory
    Bench(bench::Bench),
    /// Say what a training step takes in memory, and whether this machine has it
    Plan(plan::Plan),
    /// Train the rows of the survey's Tables III to VII and set them beside its figures, or all methods on one small model
    Reproduce(reproduce::Reproduce),
    /// Print a completion script for a shell
    Completions(complete::Completions),
    /// Print the manual page
    Man(complete::Man),
}

impl Cli {
    /// Runs the command of a program's arguments.
    pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<()> {
        Self::dispatch(args).map_err(hints::hinted)
    }

    fn dispatch(args: impl IntoIterator<Item = OsString>) -> Result<()> {
        warnings::print();
        let mut calls = yaml::apart(args.into_iter().collect());
        if calls.len() > 1 {
            let parse = |args| {
                let (args, Some(mut config)) = yaml::expand(args)? else { unreachable!("each call has a file") };
                match config.parse(args)?.command {
                    Command::Train(train) => Ok((*train, config)),
                    _ => unreachable!("only a training has several files"),
                }
            };
            return together::run(calls.into_iter().map(parse).collect::<Result<_>>()?);
        }
        let (args, config) = yaml::expand(calls.remove(0))?;
        match config {
            None => Cli::try_parse_from(args).unwrap_or_else(|error| error.exit()).command.run(),
            Some(mut config) => {
                let cli = config.parse(args)?;
                cli.command.run().map_err(|error| config.place(error))
            }
        }
    }
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Command::Methods(command) => command.run(),
            Command::Params(command) => command.run(),
            Command::Train(command) => command.run(),
            Command::Search(command) => command.run(),
            Command::Eval(command) => command.run(),
            Command::Predict(command) => command.run(),
            Command::Forward(command) => command.run(),
            Command::Generate(command) => command.run(),
            Command::Merge(command) => command.run(),
            Command::MergeAdapters(command) => command.run(),
            Command::Quantize(command) => command.run(),
            Command::Convert(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Bench(command) => command.run(),
            Command::Plan(command) => command.run(),
            Command::Reproduce(command) => command.run(),
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        }
    }
}
