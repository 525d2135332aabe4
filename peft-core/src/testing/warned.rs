use std::cell::RefCell;

use log::{LevelFilter, Log, Metadata, Record};

use crate::warning::TARGET;

thread_local! {
    static TOLD: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Collect;

impl Log for Collect {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == TARGET
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            TOLD.with_borrow_mut(|told| told.push(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// What `f` gives, and the warnings that it made on this thread, in order.
pub fn warnings<T>(f: impl FnOnce() -> T) -> (T, Vec<String>) {
    // A second call finds the logger set.
    let _ = log::set_logger(&Collect);
    log::set_max_level(LevelFilter::Warn);
    TOLD.take();
    (f(), TOLD.take())
}
