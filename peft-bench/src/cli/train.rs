//! `peft train`

mod args;
mod data;
mod job;

use std::sync::Arc;

use peft_core::io::Pretrained;
use peft_core::train::Slots;
use peft_core::{AnyMethod, Error, Result};
use serde_json::Value;

pub use self::args::Train;
use self::job::Job;
use super::options::print;
use crate::registry::{by_name, by_peft_type};

impl Train {
    pub(super) fn run(self) -> Result<()> {
        self.check_outputs()?;
        self.run_on(&self.open()?, None)
    }

    /// Trains on its model, as one of several runs where there are slots.
    pub(super) fn run_on(&self, model: &Pretrained, slots: Option<&Arc<Slots>>) -> Result<()> {
        print(self.outcome_on(model, slots)?)
    }

    /// The same, and gives what is to be printed.
    pub(super) fn outcome_on(&self, model: &Pretrained, slots: Option<&Arc<Slots>>) -> Result<Value> {
        let method = match (&self.adapter[..], &self.method[..]) {
            ([dir], _) => by_peft_type(dir)?,
            ([], []) => return Err(Error::config("start", "nothing", "--adapter or --method")),
            ([], names) => by_name(&names.join("+"))?,
            (dirs, _) => AnyMethod::composed(dirs.iter().map(|dir| by_peft_type(dir)).collect::<Result<_>>()?),
        };
        Job { args: self, model, slots }.run(method)
    }
}
