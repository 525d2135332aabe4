//! Micro-batches: a batch is cut by a rule that knows only the batch and the settings; each thread runs all of forward and
//! backward on one piece, on leaves of its own, and the gradients are summed in the order of the pieces. Hence the same bits
//! at any number of threads, and saved tensors for a few pieces only. Where there are fewer pieces than threads, the products with frozen
//! matrices, whose bits are the same at any number of threads too, are cut for all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::slots::{Slots, pools};
use crate::threads::spread;
use crate::transfer::{self, Transfers, counted};
use crate::view::{Visit, visit};
use crate::{Error, Example, Label, Result};

/// Cuts samples, given by their lengths, into pieces of at most `rows` rows (padding included; a longer sample is a piece of
/// its own). Samples of like length come together.
pub fn cut(lengths: &[usize], rows: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lengths[*i]));
    let mut pieces: Vec<Vec<usize>> = Vec::new();
    for sample in order {
        match pieces.last_mut() {
            // The first sample of a piece is its longest.
            Some(piece) if (piece.len() + 1) * lengths[piece[0]] <= rows => piece.push(sample),
            _ => pieces.push(vec![sample]),
        }
    }
    pieces
}

/// The lengths of examples: of the text or, if that is longer, of the one that is to be written.
pub fn lengths(examples: &[&Example]) -> Vec<usize> {
    let written = |label: &Option<Label>| match label {
        Some(Label::Words(words)) => words.len(),
        _ => 0,
    };
    examples.iter().map(|e| e.ids.len().max(written(&e.label))).collect()
}

/// Threads that each run whole pieces. The tensor library's own parallelism is off inside them: a pool of one thread each.
pub struct Workers {
    pools: Vec<ThreadPool>,
    all: OnceLock<Option<Arc<ThreadPool>>>,
    slots: Option<Arc<Slots>>,
    tell: Box<dyn Fn() + Send + Sync>,
}

impl Workers {
    /// This many.
    pub fn new(threads: usize) -> Result<Self> {
        Ok(Workers { pools: pools(threads)?, all: OnceLock::new(), slots: None, tell: Box::new(|| ()) })
    }

    /// Computes a piece only while it holds one of these slots.
    pub(super) fn sharing(self, slots: Option<Arc<Slots>>) -> Self {
        Workers { slots, ..self }
    }

    /// Calls `tell` after each piece.
    pub fn telling(self, tell: impl Fn() + Send + Sync + 'static) -> Self {
        Workers { tell: Box::new(tell), ..self }
    }

    /// A pool for the products of so many pieces, if they leave threads without work; who shares slots has no more than those.
    fn spare(&self, pieces: usize) -> Option<Arc<ThreadPool>> {
        let threads = self.pools.len();
        let all = || ThreadPoolBuilder::new().num_threads(threads).build().ok().map(Arc::new);
        if pieces < threads && self.slots.is_none() { self.all.get_or_init(all).clone() } else { None }
    }

    /// Runs `work` on each of `count` pieces and hands the results to `collect` in the order of the pieces. The first error,
    /// in that order, is returned.
    pub fn run<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize) -> Result<T> + Sync,
        collect: impl FnMut(T) + Send,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let ordered = Mutex::new(Ordered { expected: 0, waiting: BTreeMap::new(), collect, error: None });
        let all = Mutex::new(Transfers::default());
        let spare = self.spare(count);
        let pieces = || {
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= count {
                    break;
                }
                let result = match &self.slots {
                    Some(slots) => slots.hold(|| work(piece)),
                    None => work(piece),
                };
                (self.tell)();
                let mut ordered = ordered.lock().unwrap_or_else(PoisonError::into_inner);
                ordered.add(piece, result);
                if ordered.error.is_some() {
                    break;
                }
            }
        };
        let job = || {
            // Not in one statement, whose lock would be held for all pieces.
            let own = counted(pieces).1;
            *all.lock().unwrap_or_else(PoisonError::into_inner) += own;
        };
        std::thread::scope(|scope| {
            for pool in self.pools.iter().take(count) {
                scope.spawn(|| pool.install(|| spread(spare.clone(), job)));
            }
        });
        transfer::add(all.into_inner().unwrap_or_else(PoisonError::into_inner));
        let ordered = ordered.into_inner().unwrap_or_else(PoisonError::into_inner);
        ordered.error.map_or(Ok(()), Err)
    }
}

struct Ordered<T, F> {
    expected: usize,
    waiting: BTreeMap<usize, Result<T>>,
    collect: F,
    error: Option<Error>,
}

impl<T, F: FnMut(T)> Ordered<T, F> {
    fn add(&mut self, piece: usize, result: Result<T>) {
        self.waiting.insert(piece, result);
        while let Some(result) = self.waiting.remove(&self.expected) {
            self.expected += 1;
            match result {
                Ok(value) if self.error.is_none() => (self.collect)(value),
                Ok(_) => {}
                Err(error) => {
                    self.error.get_or_insert(error);
                }
            }
        }
    }
}

/// Adds the gradients of `more` to those of `sum`, for the parameters of `module`.
pub fn add<M: Module>(module: &M, sum: GradientsParams, more: GradientsParams) -> GradientsParams {
    struct Add(GradientsParams, GradientsParams);
    impl Visit for Add {
        fn tensor<const D: usize>(&mut self, _: &str, id: ParamId, _: Tensor<D>) {
            let total = match (self.0.remove::<D>(id), self.1.remove::<D>(id)) {
                (Some(a), Some(b)) => a + b,
                (Some(a), None) | (None, Some(a)) => a,
                (None, None) => return,
            };
            self.0.register(id, total);
        }
    }
    let mut add = Add(sum, more);
    visit(module, &mut add);
    add.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_written_counts_too() {
        let label = Some(Label::Words([7; 40].into()));
        let example = |ids: usize| Example { ids: vec![5; ids], label: label.clone(), ..Default::default() };
        assert_eq!(lengths(&[&example(3), &example(50)]), [40, 50]);
    }

    #[test]
    fn pieces_keep_every_sample_and_the_bound() {
        let lengths = [9, 5, 12, 7, 3, 40, 12, 1];
        // Two of 12 fill a piece; 40 is one of its own.
        assert_eq!(cut(&lengths, 24), [vec![5], vec![2, 6], vec![0, 3], vec![1, 4, 7]]);
    }

    #[test]
    fn results_come_in_order_and_the_first_error_counts() {
        let workers = Workers::new(3).unwrap();
        let mut order = vec![];
        workers.run(20, Ok, |i| order.push(i)).unwrap();
        assert_eq!(order, (0..20).collect::<Vec<_>>());
        // Piece 4, whose error must not count, ends before piece 3 or just behind it.
        let both = std::sync::Barrier::new(2);
        let fail = |i| {
            if i == 3 || i == 4 {
                both.wait();
            }
            if i >= 3 { Err(Error::config("piece", i, "another")) } else { Ok(i) }
        };
        let error = workers.run(20, fail, |_| {}).unwrap_err().to_string();
        assert!(error.contains("piece: 3 "), "{error}");
    }
}
