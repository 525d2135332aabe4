//! States of an optimizer that lie in a file, where they are more than memory is to hold: what bitsandbytes calls a paged optimizer.
//!
//! The file is one of the system's, beside the output, whose name is removed as soon as it is open: it is gone when the run is, however
//! that ends. A parameter's state is read when its step comes and written behind it. It is read by position and not mapped: a file that is
//! cut, or a disk that is full, is an error and no signal.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::optim::{Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Bytes, DType, Device, Shape, Tensor, TensorData};
use burn_pack::Scalar;

use crate::{Error, Result};

/// Where states lie for which memory has no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paging {
    /// The directory of the file.
    pub dir: PathBuf,
    /// Bytes of states that memory holds; further ones go to the file.
    pub above: u64,
}

impl Default for Paging {
    fn default() -> Self {
        Paging { dir: std::env::temp_dir(), above: 256 << 20 }
    }
}

/// What the states of an optimizer take, and what has gone wrong with them, since a rule's step cannot fail. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Pages(Arc<Mutex<Store>>);

#[derive(Debug, Default)]
struct Store {
    paging: Paging,
    file: Option<(File, PathBuf)>,
    end: u64,
    /// Parts of the file that are free, by where they begin and how long they are.
    free: Vec<(u64, u64)>,
    held: u64,
    fault: Option<Error>,
}

impl Pages {
    /// With no states yet.
    pub fn new(paging: Paging) -> Self {
        let pages = Pages::default();
        pages.store().paging = paging;
        pages
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what has gone wrong; the first counts, and the step of the run fails with it.
    pub fn fail(&self, error: Error) {
        self.store().fault.get_or_insert(error);
    }

    /// What has gone wrong since it was last asked.
    pub fn check(&self) -> Result<()> {
        self.store().fault.take().map_or(Ok(()), Err)
    }

    /// Bytes in memory and in the file.
    pub fn bytes(&self) -> [u64; 2] {
        let store = self.store();
        [store.held, store.end]
    }

    /// Room for so many bytes in memory, if there is.
    fn share(&self, bytes: u64) -> Option<Arc<Share>> {
        let mut store = self.store();
        (store.held + bytes <= store.paging.above).then(|| {
            store.held += bytes;
            Arc::new(Share { pages: self.clone(), bytes })
        })
    }
}

impl Store {
    fn at(
        &mut self,
        start: u64,
        io: impl FnOnce(&mut File) -> std::io::Result<()>,
        action: &'static str,
    ) -> Result<()> {
        if self.file.is_none() {
            self.file = Some(create(&self.paging.dir)?);
        }
        let (file, path) = self.file.as_mut().unwrap_or_else(|| unreachable!("it was made"));
        file.seek(SeekFrom::Start(start)).and_then(|_| io(file)).map_err(Error::io(action, path))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<u64> {
        let length = bytes.len() as u64;
        let fits = self.free.iter().position(|(_, free)| *free == length);
        let start = fits.map_or(self.end, |i| self.free.swap_remove(i).0);
        self.at(start, |file| file.write_all(bytes), "write states of the optimizer to")?;
        self.end = self.end.max(start + length);
        Ok(start)
    }
}

/// A file without a name, where the system can have such; elsewhere one that keeps its name.
fn create(dir: &Path) -> Result<(File, PathBuf)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("optimizer-{}-{number}.pages", std::process::id()));
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => {
                let _ = fs::remove_file(&path);
                return Ok((file, path));
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("create", &path)(error)),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some((file, path)) = self.file.take() {
            drop(file);
            // It is there only where an open file keeps its name.
            let _ = fs::remove_file(path);
        }
    }
}

/// So many bytes of the memory for states.
#[derive(Debug)]
struct Share {
    pages: Pages,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pages.store().held -= self.bytes;
    }
}

/// A part of the file, and what is in it.
#[derive(Debug)]
struct Page {
    pages: Pages,
    start: u64,
    length: u64,
    tensors: Vec<(String, DType, Shape, usize)>,
    scalars: Vec<(String, Scalar)>,
}

impl Page {
    fn write(pages: &Pages, sink: StateSink) -> Result<Self> {
        let mut bytes = Vec::new();
        let tensors = sink.tensors.into_iter().map(|(name, data)| {
            let of = data.as_bytes();
            bytes.extend_from_slice(of);
            (name, data.dtype(), Shape::from(data.shape().to_vec()), of.len())
        });
        let tensors = tensors.collect();
        let start = pages.store().write(&bytes)?;
        Ok(Page { pages: pages.clone(), start, length: bytes.len() as u64, tensors, scalars: sink.scalars })
    }

    fn read(&self) -> Result<StateSink> {
        let mut bytes = vec![0; self.length as usize];
        let mut store = self.pages.store();
        store.at(self.start, |file| file.read_exact(&mut bytes), "read states of the optimizer from")?;
        let mut rest = &bytes[..];
        let tensors = self.tensors.iter().map(|(name, dtype, shape, length)| {
            let (of, behind) = rest.split_at(*length);
            rest = behind;
            (name.clone(), TensorData::from_bytes(Bytes::from_bytes_vec(of.to_vec()), shape.clone(), *dtype))
        });
        Ok(StateSink { tensors: tensors.collect(), scalars: self.scalars.clone() })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pages.store().free.push((self.start, self.length));
    }
}

/// A rule whose states are in memory as far as it has room for them, else in a file.
#[derive(Clone)]
pub struct Paged<O> {
    rule: O,
    pages: Pages,
}

impl<O: Optimizer> Paged<O> {
    /// With these pages.
    pub fn new(rule: O, pages: &Pages) -> Self {
        Paged { rule, pages: pages.clone() }
    }

    fn place<const D: usize>(&self, state: O::State<D>) -> Result<PagedState<O::State<D>>> {
        let mut sink = StateSink::default();
        state.state_flatten("", &mut sink);
        let bytes = sink.tensors.iter().map(|(_, data)| data.as_bytes().len() as u64).sum();
        if let Some(share) = self.pages.share(bytes) {
            return Ok(PagedState(Place::Held(state, Some(share))));
        }
        drop(state);
        Ok(PagedState(Place::Away(Arc::new(Page::write(&self.pages, sink)?))))
    }
}

/// A state, or where it is.
#[derive(Clone, Debug)]
pub struct PagedState<S>(Place<S>);

#[derive(Clone, Debug)]
enum Place<S> {
    Held(S, Option<Arc<Share>>),
    Away(Arc<Page>),
}

impl<S: RecordState> PagedState<S> {
    fn read(page: &Page, device: &Device) -> Result<S> {
        let sink = page.read()?;
        let mut source = StateSource::new(sink.scalars.into_iter().collect());
        sink.tensors.into_iter().for_each(|(name, data)| source.insert_tensor(name, data));
        Ok(S::state_unflatten("", &mut source, device).unwrap_or_else(|| unreachable!("it was written whole")))
    }
}

impl<S: RecordState + Clone> RecordState for PagedState<S> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        match &self.0 {
            Place::Held(state, _) => state.state_flatten(prefix, out),
            Place::Away(page) => match page.read() {
                Ok(sink) => {
                    sink.tensors.into_iter().for_each(|(name, data)| out.push_tensor(prefix, &name, data));
                    sink.scalars.into_iter().for_each(|(name, scalar)| out.push_scalar(prefix, &name, scalar));
                }
                Err(error) => page.pages.fail(error),
            },
        }
    }

    /// In memory; the next step places it.
    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        S::state_unflatten(prefix, src, device).map(|state| PagedState(Place::Held(state, None)))
    }
}

impl<O: Optimizer> Optimizer for Paged<O> {
    type State<const D: usize> = PagedState<O::State<D>>;

    fn step<const D: usize>(
        &self,
        rate: f64,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let (before, share) = match state {
            None => (None, None),
            Some(PagedState(Place::Held(state, share))) => (Some(state), share),
            Some(PagedState(Place::Away(page))) => match PagedState::read(&page, &tensor.device()) {
                Ok(state) => (Some(state), None),
                Err(error) => {
                    self.pages.fail(error);
                    return (tensor, Some(PagedState(Place::Away(page))));
                }
            },
        };
        let (tensor, state) = self.rule.step(rate, tensor, gradient, before);
        let placed = state.map(|state| match share {
            Some(share) => Ok(PagedState(Place::Held(state, Some(share)))),
            None => self.place(state),
        });
        match placed.transpose() {
            Ok(state) => (tensor, state),
            Err(error) => {
                self.pages.fail(error);
                (tensor, None)
            }
        }
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        PagedState(match state.0 {
            Place::Held(state, share) => Place::Held(O::to_device(state, device), share),
            away => away,
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::optim::AdamWConfig;

    use super::*;
    use crate::random::Random;
    use crate::testing::device;

    fn rule(pages: &Pages) -> Paged<burn::optim::AdamW> {
        Paged::new(AdamWConfig::new().build(), pages)
    }

    fn draw(number: usize, rows: usize) -> Tensor<2> {
        Random::new(number as u64, "pages").normal_tensor([rows, 3], 1.0, &device())
    }

    /// Bits are those of states in memory, and the file is gone as soon as it is there.
    #[test]
    fn states_in_a_file_are_those_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let run = |above| {
            let pages = Pages::new(Paging { dir: dir.path().into(), above });
            let rule = rule(&pages);
            let mut all: Vec<_> = [5, 7, 5].into_iter().map(|rows| (draw(0, rows), None)).collect();
            for step in 1..=4 {
                all = all
                    .into_iter()
                    .map(|(x, state)| {
                        let gradient = draw(step, x.dims()[0]);
                        rule.step(0.1, x, gradient, state)
                    })
                    .collect();
            }
            pages.check().unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
            let mut sink = StateSink::default();
            all.iter().for_each(|(_, state)| state.as_ref().unwrap().state_flatten("x", &mut sink));
            let values: Vec<_> = all.iter().map(|(x, _)| x.clone().into_data()).collect();
            (values, sink.tensors, pages.bytes())
        };
        let held = run(1 << 20);
        assert_eq!(held.2, [17 * 3 * 8, 0]);
        for (above, bytes) in [(0, [0, 17 * 3 * 8]), (200, [5 * 3 * 8, 12 * 3 * 8])] {
            let away = run(above);
            assert!(away.0 == held.0 && away.1 == held.1, "{above}");
            // A part that is free is written again.
            assert_eq!(away.2, bytes, "{above}");
        }
    }

    #[test]
    fn a_file_that_is_cut_and_a_full_disk_are_errors() {
        let pages = Pages::new(Paging { dir: std::env::temp_dir(), above: 0 });
        let rule = rule(&pages);
        let (x, state) = rule.step(0.1, draw(1, 5), draw(2, 5), None);
        pages.check().unwrap();
        pages.store().file.as_ref().unwrap().0.set_len(50).unwrap();
        let (y, state) = rule.step(0.1, x.clone(), draw(3, 5), state);
        let error = pages.check().unwrap_err().to_string();
        assert!(error.contains("cannot read states of the optimizer from") && error.contains(".pages"), "{error}");
        assert_eq!(y.into_data(), x.clone().into_data());
        state.unwrap().state_flatten("x", &mut StateSink::default());
        assert!(pages.check().is_err());
        #[cfg(target_os = "linux")]
        {
            let full = File::options().read(true).write(true).open("/dev/full").unwrap();
            pages.store().file = Some((full, "states".into()));
            rule.step(0.1, x, draw(4, 5), None);
            let error = pages.check().unwrap_err().to_string();
            assert!(error.contains("cannot write states of the optimizer to states: No space left"), "{error}");
        }
        let lost = Pages::new(Paging { dir: "/nowhere/at/all".into(), above: 0 });
        Paged::new(AdamWConfig::new().build(), &lost).step(0.1, draw(5, 5), draw(6, 5), None);
        let error = lost.check().unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all") && error.contains("cannot create"), "{error}");
    }
}
