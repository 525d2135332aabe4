//! Where the bytes of a tensor are, and how they are read: by position, so that a file that is cut or changed meanwhile is an
//! error. A map of it would end the program with a signal.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::files::open_regular;
use crate::{Error, Result};

/// So many bytes are read at a time where nothing needs them all at once.
const PIECE: usize = 1 << 20;

/// An open file whose parts are read when they are asked for.
pub(super) struct Opened {
    path: Arc<Path>,
    size: usize,
    modified: Option<SystemTime>,
    file: Mutex<File>,
}

impl Opened {
    /// Opens a file of at least so many bytes.
    pub(super) fn open(path: &Path, least: usize, expected: &str) -> Result<Self> {
        let (file, size) = open_regular(path)?;
        if size < least as u64 {
            return Err(Error::file(path, "file size", format!("{size} bytes"), expected));
        }
        let modified = modified(&file);
        let size = usize::try_from(size)
            .map_err(|_| Error::file(path, "file size", format!("{size} bytes"), "a size that memory could hold"))?;
        Ok(Opened { path: path.into(), size, modified, file: Mutex::new(file) })
    }

    pub(super) fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// Its size in bytes when it was opened.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The bytes of a range that lies within its size.
    pub(super) fn read(&self, range: Range<usize>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        self.read_into(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// The same in pieces, each of whole units of so many bytes.
    fn pieces(&self, range: Range<usize>, unit: usize, mut take: impl FnMut(&[u8])) -> Result<()> {
        let size = PIECE / unit * unit;
        let mut piece = vec![0; range.len().min(size)];
        range.clone().step_by(size).try_for_each(|start| {
            let piece = &mut piece[..(range.end - start).min(size)];
            self.read_into(piece, start)?;
            take(piece);
            Ok(())
        })
    }

    fn read_into(&self, bytes: &mut [u8], start: usize) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(start as u64)).and_then(|_| file.read_exact(bytes));
        let changed =
            || Error::file(&self.path, "content", "a file that was changed while it was read", "one that stays");
        match read {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(changed()),
            Err(error) => Err(Error::io("read", &self.path)(error)),
            Ok(()) if modified(&file) != self.modified => Err(changed()),
            Ok(()) => Ok(()),
        }
    }
}

fn modified(file: &File) -> Option<SystemTime> {
    file.metadata().and_then(|kind| kind.modified()).ok()
}

/// Where a tensor's bytes are.
pub(super) enum Source {
    File(Arc<Opened>, Range<usize>),
    /// The same, with the rows of each of so many heads in the order of GGUF, in which the two halves alternate.
    Interleaved(Arc<Opened>, Range<usize>, usize),
    Torch(pytorch_reader::Tensor),
    /// In memory.
    Memory(Vec<u8>),
}

impl Source {
    /// Hands on all bytes, in pieces of whole units where that is possible.
    pub(super) fn pieces(
        &self,
        unit: usize,
        mut take: impl FnMut(&[u8]),
        whole: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        match self {
            Source::File(file, range) => file.pieces(range.clone(), unit, take),
            Source::Interleaved(..) | Source::Torch(_) | Source::Memory(_) => {
                take(&whole()?);
                Ok(())
            }
        }
    }
}

/// Rows of heads from (first of the first half, first of the second half, second of the first half ..) to (first half,
/// second half).
pub(super) fn halves(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (row, head) = (bytes.len() / rows, rows / heads);
    let from = |to: usize| {
        let (start, place) = (to - to % head, to % head);
        start + 2 * (place % (head / 2)) + place / (head / 2)
    };
    (0..rows).map(|to| &bytes[from(to) * row..][..row]).collect::<Vec<_>>().concat()
}
