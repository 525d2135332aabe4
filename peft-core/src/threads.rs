//! Which threads a product runs on. A micro-batch runs on one thread, with the tensor library's parallelism off; where there are fewer of
//! them than threads, products are cut for all threads ([`spread`]). Elsewhere they run on the pool that they are called on.

use std::cell::RefCell;
use std::sync::Arc;

use rayon::ThreadPool;
#[cfg(feature = "flex")]
use rayon::prelude::*;

thread_local! {
    static ALL: RefCell<Option<Arc<ThreadPool>>> = const { RefCell::new(None) };
}

/// Does some work whose products run on this pool.
#[cfg(feature = "train")]
pub(crate) fn spread<T>(pool: Option<Arc<ThreadPool>>, work: impl FnOnce() -> T) -> T {
    let before = ALL.replace(pool);
    let result = work();
    ALL.set(before);
    result
}

/// Whether they are.
#[cfg(feature = "flex")]
pub(crate) fn are_spread() -> bool {
    ALL.with_borrow(Option::is_some)
}

/// Does some work of the tensor library with the parallelism that a product called here has.
#[cfg(feature = "flex")]
pub(crate) fn on_all<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match ALL.with_borrow(Clone::clone) {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// How many threads a product called here has.
#[cfg(feature = "flex")]
pub(crate) fn count() -> usize {
    ALL.with_borrow(|pool| pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads()))
}

/// Does each part on one of them.
#[cfg(feature = "flex")]
pub(crate) fn each<T: Send>(parts: Vec<T>, work: impl Fn(T) + Sync + Send) {
    match parts.len() < 2 || count() == 1 {
        true => parts.into_iter().for_each(work),
        false => on_all(|| parts.into_par_iter().for_each(work)),
    }
}
