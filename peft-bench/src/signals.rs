//! SIGINT and SIGTERM, and SIGXFSZ, which makes a write beyond the limit of a file's size the error that it is. A run with steps stops after the one that it is at, with its state saved; all else, and such a run if its step takes
//! long or the signal comes again, stops at once. One line says what is saved and how to go on.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The signal that came; 0 before.
static CAUGHT: AtomicI32 = AtomicI32::new(0);
/// How many ask after each step.
static BY_STEPS: AtomicUsize = AtomicUsize::new(0);
static LINE: Mutex<String> = Mutex::new(String::new());

/// How long a step may take until it is not waited for.
#[cfg(unix)]
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What is said when a signal ends the program from here on.
pub fn will_say(line: impl Into<String>) {
    *LINE.lock().unwrap_or_else(PoisonError::into_inner) = line.into();
}

/// Whether a signal came.
pub fn caught() -> bool {
    CAUGHT.load(Ordering::SeqCst) != 0
}

/// The line, and the status to end with, if a signal came.
pub fn end() -> Option<(String, u8)> {
    let signal = CAUGHT.load(Ordering::SeqCst);
    let line = LINE.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (signal != 0).then(|| (format!("interrupted: {line}"), 128 + signal as u8))
}

/// Runs what asks [`caught`] after each step. What is at its end when a signal comes is not kept from it.
pub fn by_steps<T>(run: impl FnOnce() -> T) -> T {
    BY_STEPS.fetch_add(1, Ordering::SeqCst);
    let result = run();
    BY_STEPS.fetch_sub(1, Ordering::SeqCst);
    result
}

/// Watches for signals, in a thread of its own. Elsewhere than on Unix they do what the system lets them do.
pub fn watch() {
    will_say("nothing was saved; the same command begins anew");
    #[cfg(unix)]
    unix::watch();
}

#[cfg(unix)]
mod unix {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::flag;
    use signal_hook::iterator::Signals;
    use signal_hook::low_level::exit;

    use super::*;

    pub fn watch() {
        // The write then fails, which is told; by itself the signal would end the program without a word.
        let _ = flag::register(libc::SIGXFSZ, Arc::new(AtomicBool::new(false)));
        // Where signals cannot be had they do what they do by themselves.
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
        thread::spawn(move || {
            for signal in signals.forever() {
                let first = CAUGHT.swap(signal, Ordering::SeqCst) == 0;
                if !(first && BY_STEPS.load(Ordering::SeqCst) > 0) {
                    end_now();
                }
                thread::spawn(|| {
                    thread::sleep(PATIENCE);
                    if BY_STEPS.load(Ordering::SeqCst) > 0 {
                        end_now();
                    }
                });
            }
        });
    }

    fn end_now() {
        peft_core::files::remove_unfinished();
        if let Some((line, status)) = end() {
            eprintln!("{}", peft_core::shown(line));
            exit(status.into());
        }
    }
}
