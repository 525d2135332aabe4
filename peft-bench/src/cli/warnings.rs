//! Warnings of the library on standard error, each once.

use std::collections::BTreeSet;
use std::sync::Mutex;

use log::{LevelFilter, Log, Metadata, Record};
use peft_core::warning::TARGET;

use super::options::tell;

struct Terminal(Mutex<BTreeSet<String>>);

impl Log for Terminal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == TARGET
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let mut said = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.enabled(record.metadata()) && said.insert(text.clone()) {
            tell(format_args!("warning: {text}"));
        }
    }

    fn flush(&self) {}
}

/// From here on warnings are printed.
pub fn print() {
    static TERMINAL: Terminal = Terminal(Mutex::new(BTreeSet::new()));
    // In a program that has a logger of its own it stays.
    if log::set_logger(&TERMINAL).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
