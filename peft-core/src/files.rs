//! Whole files: read under a size limit, written all or nothing.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use burn_pack::AtomicFile;
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The largest JSON file that is read, in bytes.
pub const MAX_JSON: u64 = 64 << 20;

/// Opens a regular file and tells its size. Anything else, such as a pipe, could block or never end.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let kind = path.metadata().map_err(Error::io("read", path))?;
    if !kind.is_file() {
        let found = if kind.is_dir() { "a directory" } else { "a special file" };
        return Err(Error::file(path, "file type", found, "a regular file"));
    }
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    if kind.len() <= MAX_POINTER {
        refuse_pointer(path, &mut file)?;
    }
    Ok((file, kind.len()))
}

/// A pointer of Git LFS has at most so many bytes.
const MAX_POINTER: u64 = 1024;

/// Refuses the few lines that a checkout without Git LFS has in place of a large file.
fn refuse_pointer(path: &Path, file: &mut File) -> Result<()> {
    const FIRST: &[u8] = b"version https://git-lfs";
    let mut start = Vec::new();
    let read = file.take(FIRST.len() as u64).read_to_end(&mut start).and_then(|_| file.rewind());
    read.map_err(Error::io("read", path))?;
    if start == FIRST {
        let expected = "the file itself: `git lfs pull` in the repository that it is from brings it";
        return Err(Error::file(path, "content", "a pointer of Git LFS to the file", expected));
    }
    Ok(())
}

/// Reads a file of at most `limit` bytes.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let too_large =
        |size: u64| Error::file(path, "file size", format!("{size} bytes"), format!("at most {limit} bytes"));
    let (file, size) = open_regular(path)?;
    if size > limit {
        return Err(too_large(size));
    }
    // The file may have grown since it was measured.
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// What stands behind the byte order mark that editors and spreadsheets put first.
fn without_mark(bytes: Vec<u8>) -> Vec<u8> {
    bytes.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(bytes)
}

/// Reads a text of at most `limit` bytes, without a byte order mark; the error names the line that is no UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(without_mark(read_file(path, limit)?)).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        Error::file(path, format!("line {line}"), "bytes that are no text", "UTF-8")
    })
}

/// Reads a JSON file of at most [`MAX_JSON`] bytes; the error names the line and column. A key that stands twice in one
/// object is an error.
pub fn read_json(path: &Path) -> Result<Value> {
    parse_json::<Distinct>(path, "valid JSON").map(|Distinct(value)| value)
}

/// The largest file of JSON lines that is read, in bytes.
const MAX_LINES: u64 = 1 << 30;

/// Reads a file of at most 1 GiB with a JSON value on every line that is not blank: each with the number of its line, from 1.
/// A key that stands twice in one object is an error.
pub fn read_jsonl(path: &Path) -> Result<Vec<(usize, Value)>> {
    let text = read_text(path, MAX_LINES)?;
    let value = |(line, text): (usize, &str)| match serde_json::from_str(text) {
        Ok(Distinct(value)) => Ok((line, value)),
        Err(error) => Err(Error::file(path, format!("line {line}"), error, "a JSON value on a line of its own")),
    };
    let lines = (1..).zip(text.lines());
    lines.filter(|(_, text)| !text.trim().is_empty()).map(value).collect()
}

/// A JSON value whose objects have each key once; of equal keys `serde_json` would take the last in silence.
pub(crate) struct Distinct(pub(crate) Value);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Distinct;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Distinct, E> {
                Ok(Distinct(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Distinct, E> {
                Ok(Distinct(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Distinct, A::Error> {
                let mut list = Vec::new();
                while let Some(Distinct(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(Distinct(Value::Array(list)))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Distinct, A::Error> {
                let mut map = Map::new();
                while let Some((key, Distinct(value))) = entries.next_entry::<String, _>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format!("the key {key:?} stands twice")));
                    }
                    map.insert(key, value);
                }
                Ok(Distinct(Value::Object(map)))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Like [`read_json`], into a type of its own.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<T> {
    serde_json::from_slice(&without_mark(read_file(path, MAX_JSON)?)).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        Error::file(path, place, error, expected)
    })
}

/// Writes a file all or nothing: until it is complete, what stood at `path` before stays.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if path.metadata().is_ok_and(|kind| !kind.is_file()) {
        return Err(Error::file(path, "file type", "a directory or a special file", "a regular file, or none yet"));
    }
    let refused = |error: burn_pack::Error| Error::io("write", path)(std::io::Error::other(error.to_string()));
    let (scratch, mut file) = AtomicFile::create(path).map_err(refused)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", path))?;
    drop(file);
    scratch.commit().map_err(refused)
}

/// Whether [`write_directory`] will be able to make this directory, asked before the work that fills it.
pub fn check_new_directory(path: &Path) -> Result<()> {
    name(path)?;
    occupied(path)?;
    let folder = path.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let probe = folder.join(format!(".probe-{}", std::process::id()));
    std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).map_err(Error::io("create", path))
}

/// Whether a file can be made here and nothing is in its place, asked before the work that fills it.
pub fn check_new_file(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(Error::file(path, "file", "something in its place", "a new file"));
    }
    check_new_directory(path)
}

fn name(path: &Path) -> Result<&std::ffi::OsStr> {
    path.file_name().ok_or_else(|| Error::config("output", path.display(), "the name of a directory"))
}

fn occupied(path: &Path) -> Result<()> {
    let free = match path.read_dir() {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => path.symlink_metadata().is_err(),
    };
    if free {
        Ok(())
    } else {
        Err(Error::file(path, "directory", "something in its place", "a new or empty directory"))
    }
}

/// Takes a directory for this process, as long as the file that is returned lives.
pub fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let lock = File::create(&path).map_err(Error::io("create", &path))?;
    hold(&lock, dir).map(|()| lock)
}

/// Takes what lies at `path` for this process, as long as the file lives.
pub fn hold(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            Err(Error::file(path, "lock", "another run that writes here", "one run for each output"))
        }
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
    }
}

/// Removes what processes that were killed have left half-written in a directory, which must be locked.
#[cfg(feature = "train")]
pub(crate) fn remove_partial(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let partial = path.file_name().is_some_and(|name| name.to_string_lossy().contains(PARTIAL));
        if partial && path.is_dir() {
            std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// What the names of half-written directories contain.
const PARTIAL: &str = ".partial-";

/// A directory that no other process holds, as long as the handle lives; none where the system cannot tell.
fn held(dir: &Path) -> Option<File> {
    File::open(dir).ok().filter(|dir| dir.try_lock().is_ok())
}

/// Removes siblings of a directory whose names start so and which no process holds. What cannot be removed does no harm.
fn remove_left(path: &Path, start: &str) {
    let siblings =
        path.parent().and_then(|parent| if parent == Path::new("") { Path::new(".") } else { parent }.read_dir().ok());
    for sibling in siblings.into_iter().flatten().flatten() {
        if sibling.file_name().to_string_lossy().starts_with(start) && held(&sibling.path()).is_some() {
            let _ = std::fs::remove_dir_all(sibling.path());
        }
    }
}

/// Makes a directory all or nothing: `fill` writes into a sibling, which takes the name when it is complete. A directory that
/// already holds something is left alone, with an error. A sibling that a process left which was killed is removed.
pub fn write_directory<T>(path: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    occupied(path)?;
    let start = format!(".{}{PARTIAL}", name(path)?.to_string_lossy());
    remove_left(path, &start);
    let aside = path.with_file_name(format!("{start}{}", std::process::id()));
    let created = std::fs::create_dir_all(&aside).map_err(Error::io("create", path));
    let _held = held(&aside);
    let written = created
        .and_then(|()| fill(&aside))
        .and_then(|value| std::fs::rename(&aside, path).map(|()| value).map_err(Error::io("create", path)));
    if written.is_err() {
        // The first error is the one to report; what cannot be removed is named as partial.
        let _ = std::fs::remove_dir_all(&aside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn what_a_killed_process_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let sibling = |name: &str| folder.path().join(name);
        for name in [".out.partial-1", ".out.partial-2", ".output.partial-1"] {
            std::fs::create_dir(sibling(name)).unwrap();
        }
        let writing = held(&sibling(".out.partial-2")).unwrap();
        write_directory(&sibling("out"), |dir| write_file(&dir.join("file"), b"")).unwrap();
        let mut left: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".out.partial-2", ".output.partial-1", "out"]);
        drop(writing);
    }
}
