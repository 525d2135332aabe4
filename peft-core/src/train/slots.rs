//! Several runs at once, over one base in memory.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::config::check_threads;
use crate::{Error, Result};

/// Room for so many pieces at a time, of whichever run, each in a thread of its slot: runs that share slots hold the activations of no more
/// pieces than one run would, nor does the allocator keep memory for more threads. Which run's piece comes next changes no bit of any.
#[derive(Debug)]
pub struct Slots {
    free: Mutex<Vec<ThreadPool>>,
    freed: Condvar,
}

impl Slots {
    /// This many.
    pub fn new(count: usize) -> Result<Self> {
        Ok(Slots { free: Mutex::new(pools(count)?), freed: Condvar::new() })
    }

    /// Does this once there is room.
    pub(super) fn hold<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        struct Held<'a>(&'a Slots, Option<ThreadPool>);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                self.0.free.lock().unwrap_or_else(PoisonError::into_inner).extend(self.1.take());
                self.0.freed.notify_one();
            }
        }
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| free.is_empty()).unwrap_or_else(PoisonError::into_inner);
        let held = Held(self, free.pop());
        drop(free);
        match &held.1 {
            Some(pool) => pool.install(work),
            None => unreachable!("it has waited for one"),
        }
    }
}

/// Does all of these at once, each in a thread of its own, and gives what they give in their order. What they compute in pieces shares
/// the slots of [`Trainer::with_slots`](super::Trainer::with_slots).
///
/// ```no_run
/// # use peft_core::{AnyMethod, Result, data::Dataset, io::Pretrained};
/// # use peft_core::train::{Slots, TrainConfig, Trainer, Tuned, at_once};
/// # fn both<'a>(model: &'a Pretrained, methods: [AnyMethod; 2], data: &[Dataset; 2]) -> Result<Vec<Result<Tuned<'a>>>> {
/// let slots = std::sync::Arc::new(Slots::new(2)?);
/// let trainer = Trainer::new(TrainConfig::default()).with_slots(slots);
/// let trainer = &trainer;
/// let runs = methods.into_iter().zip(data).map(|(method, data)| move || trainer.fit(model, method, data));
/// Ok(at_once(runs.collect()))
/// # }
/// ```
pub fn at_once<T: Send>(runs: Vec<impl FnOnce() -> T + Send>) -> Vec<T> {
    thread::scope(|scope| {
        let running: Vec<_> = runs.into_iter().map(|run| scope.spawn(run)).collect();
        let result =
            |run: thread::ScopedJoinHandle<'_, T>| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        running.into_iter().map(result).collect()
    })
}

/// This many pools of one thread each.
pub(super) fn pools(threads: usize) -> Result<Vec<ThreadPool>> {
    check_threads("threads", threads)?;
    let pool = |_| ThreadPoolBuilder::new().num_threads(1).stack_size(16 << 20).build();
    let pools = (0..threads).map(pool).collect::<Result<_, _>>();
    pools.map_err(|e| Error::config("threads", threads, format!("threads that the system grants ({e})")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[test]
    fn no_more_than_the_slots_are_held() {
        for count in [1, 3] {
            let (slots, held, most) = (Slots::new(count).unwrap(), AtomicUsize::new(0), AtomicUsize::new(0));
            let run = || {
                for _ in 0..20 {
                    slots.hold(|| {
                        most.fetch_max(held.fetch_add(1, SeqCst) + 1, SeqCst);
                        thread::yield_now();
                        held.fetch_sub(1, SeqCst);
                    });
                }
            };
            at_once(vec![run; 8]);
            assert!(most.load(SeqCst) <= count && held.load(SeqCst) == 0);
        }
        assert!(Slots::new(0).unwrap_err().to_string().contains("threads: 0"));
    }

    #[test]
    fn a_panic_leaves_the_slot() {
        let slots = Slots::new(1).unwrap();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| slots.hold(|| panic!("a piece"))));
        assert!(caught.is_err());
        assert_eq!(slots.hold(|| 5), 5);
    }
}
