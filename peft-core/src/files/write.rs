//! Outputs: refused before the work that fills them, and written all or nothing. Until a file or directory is complete it lies beside
//! its place under a name of its own, held by its process; what killed processes left is removed by the next.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// What this process is writing.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all unfinished files and directories of this process, which is about to end.
pub fn remove_unfinished() {
    for path in unfinished().iter() {
        // What cannot be removed is left for the next process.
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// What the names of unfinished files begin with. `.PROCESS-NUMBER.tmp` follows, as in those of burn.
const SCRATCH: &str = ".peft";
/// What the names of unfinished directories contain.
const PARTIAL: &str = ".partial-";
/// What the name of an earlier result ends with, where others have the number of a process.
const REPLACED: &str = "old";
/// The file by which a process has a directory.
pub(crate) const LOCK: &str = "lock";

/// Writes a file all or nothing: until it is complete, what stood at `path` before stays. A link is followed: what it leads to is
/// replaced.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_parts(path, |part| part(bytes))
}

/// [`write_file`] of bytes that are never there as a whole: `fill` hands on one part after the other.
pub fn write_parts(path: &Path, fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>) -> Result<()> {
    static CLEANED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let target = target(path)?;
    let dir = parent(&target);
    if CLEANED.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.to_path_buf()) {
        remove_scratch(dir, SCRATCH);
    }
    let failed = || Error::io("write", path);
    let (scratch, mut file) = Scratch::create(&target).map_err(failed())?;
    fill(&mut |part| file.write_all(part).map_err(failed()))?;
    file.sync_all().map_err(failed())?;
    if let Ok(kind) = target.metadata() {
        // What was private stays so.
        fs::set_permissions(&scratch.0, kind.permissions()).map_err(failed())?;
    }
    fs::rename(&scratch.0, &target).map_err(failed())?;
    // The name outlives a crash too, where the system can see to it.
    let _ = File::open(dir).and_then(|dir| dir.sync_all());
    Ok(())
}

/// Whether [`write_file`] will be able to write this file, asked before the work that makes its content.
pub fn check_file(path: &Path) -> Result<()> {
    Scratch::create(&target(path)?).map(drop).map_err(Error::io("write", path))
}

/// Where a file is written.
fn target(path: &Path) -> Result<PathBuf> {
    let wrong = |found: &str| Err(Error::file(path, "file type", found, "a regular file, or none yet"));
    let target = match path.symlink_metadata() {
        Ok(kind) if kind.is_symlink() => match path.canonicalize() {
            Ok(target) => target,
            Err(_) => return wrong("a link that leads nowhere"),
        },
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("write", path)(error)),
        _ => path.to_path_buf(),
    };
    match target.metadata() {
        Ok(kind) if kind.is_dir() => wrong("a directory"),
        Ok(kind) if !kind.is_file() => wrong("a special file"),
        _ if target.file_name().is_none() => wrong("no name of a file"),
        _ => Ok(target),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// An unfinished file. What is left of it goes with this.
struct Scratch(PathBuf);

impl Scratch {
    /// Beside the place that it is for.
    fn create(target: &Path) -> std::io::Result<(Self, File)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!("{SCRATCH}.{}-{number}.tmp", std::process::id()));
            match File::create_new(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                created => {
                    let file = created?;
                    // It tells processes apart where their numbers are not seen; the number does elsewhere.
                    let _ = file.try_lock();
                    unfinished().insert(path.clone());
                    return Ok((Scratch(path), file));
                }
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = fs::remove_file(&self.0);
        unfinished().remove(&self.0);
    }
}

/// Removes unfinished files whose names begin so and whose processes are gone. What cannot be removed does no harm.
pub fn remove_scratch(dir: &Path, start: &str) {
    for entry in dir.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().filter(|name| name.starts_with(start)).and_then(owner);
        if owner.is_some_and(|owner| !lives(owner)) && held(&entry.path()).is_some() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The process that an unfinished file's name, `*.PROCESS-NUMBER.tmp`, is of.
fn owner(name: &str) -> Option<u32> {
    let (process, number) = name.strip_suffix(".tmp")?.rsplit_once('.')?.1.split_once('-')?;
    number.parse::<u64>().ok()?;
    process.parse().ok()
}

/// Whether there is such a process; no, where the system does not tell.
fn lives(process: u32) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

/// Whether [`write_directory`] will be able to make this directory, asked before the work that fills it.
pub fn check_new_directory(path: &Path) -> Result<()> {
    occupied(path)?;
    let failed = || Error::io("create", path);
    let there = path.ancestors().skip(1).find(|folder| folder.exists());
    let folder = there.filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let found = format!("{}, which is a file", folder.display());
        return Err(Error::file(path, "directory", found, "a directory in which it can be made"));
    }
    // Folders on the way have names of their own; the longest is the unfinished directory's.
    let longest = [aside(path)?.file_name().map(Path::new).unwrap_or(path).to_path_buf()];
    let missing =
        path.strip_prefix(folder).unwrap_or(path).parent().into_iter().flat_map(Path::iter).map(PathBuf::from);
    for name in longest.into_iter().chain(missing) {
        let probe = folder.join(name);
        if fs::symlink_metadata(&probe).is_err() {
            fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).map_err(failed())?;
        }
    }
    Ok(())
}

fn name(path: &Path) -> Result<&std::ffi::OsStr> {
    path.file_name().ok_or_else(|| Error::config("output", path.display(), "the name of a directory"))
}

/// Where a directory is filled.
fn aside(path: &Path) -> Result<PathBuf> {
    Ok(path.with_file_name(format!("{}{}", start(path)?, std::process::id())))
}

/// Where an earlier result lies while another takes its place.
#[cfg(feature = "load")]
pub(super) fn replaced(path: &Path) -> Result<PathBuf> {
    Ok(path.with_file_name(format!("{}{REPLACED}", start(path)?)))
}

/// What the names of a directory's unfinished siblings begin with.
fn start(path: &Path) -> Result<String> {
    Ok(format!(".{}{PARTIAL}", name(path)?.to_string_lossy()))
}

fn occupied(path: &Path) -> Result<()> {
    name(path)?;
    let found = match path.symlink_metadata() {
        Ok(kind) if kind.is_symlink() => "a link in its place",
        Ok(_) if path.read_dir().is_ok_and(|mut entries| entries.next().is_none()) => return Ok(()),
        Ok(_) => "something in its place",
        Err(_) => return Ok(()),
    };
    Err(Error::file(path, "directory", found, "a new or empty directory"))
}

/// Takes a directory for this process, as long as the file that is returned lives.
pub fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
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
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let partial = path.file_name().is_some_and(|name| is_partial(&name.to_string_lossy()));
        if partial && path.is_dir() {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Whether an unfinished directory has this name.
#[cfg(feature = "train")]
pub(crate) fn is_partial(name: &str) -> bool {
    name.starts_with('.') && name.contains(PARTIAL)
}

/// A file or directory that no other process holds, as long as the handle lives; none where the system cannot tell.
fn held(path: &Path) -> Option<File> {
    File::open(path).ok().filter(|file| file.try_lock().is_ok())
}

/// Removes siblings of a directory whose names start so and which no process holds. What cannot be removed does no harm.
fn remove_left(path: &Path, start: &str) {
    for sibling in parent(path).read_dir().into_iter().flatten().flatten() {
        let name = sibling.file_name();
        let left = name.to_string_lossy().strip_prefix(start).is_some_and(|end| end != REPLACED);
        if left && held(&sibling.path()).is_some() {
            let _ = fs::remove_dir_all(sibling.path());
        }
    }
}

/// Makes a directory all or nothing: `fill` writes into a sibling, which takes the name when it is complete. A directory that
/// already holds something is left alone, with an error. A sibling that a process left which was killed is removed.
pub fn write_directory<T>(path: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    occupied(path)?;
    with_aside(path, |aside| {
        let value = fill(aside)?;
        fs::rename(aside, path).map(|()| value).map_err(Error::io("create", path))
    })
}

/// Gives a new sibling of a directory, of which in the end nothing is left under its own name.
pub(super) fn with_aside<T>(path: &Path, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    remove_left(path, &start(path)?);
    let aside = aside(path)?;
    unfinished().insert(aside.clone());
    let created = fs::create_dir_all(&aside).map_err(Error::io("create", path));
    let _held = held(&aside);
    let written = created.and_then(|()| write(&aside));
    // The first error is the one to report; what cannot be removed is named as partial.
    let _ = fs::remove_dir_all(&aside);
    unfinished().remove(&aside);
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = folder.read_dir().unwrap().map(name).collect();
        names.sort();
        names
    }

    #[cfg(unix)]
    #[test]
    fn what_a_killed_process_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let sibling = |name: &str| folder.path().join(name);
        for name in [".out.partial-1", ".out.partial-2", ".output.partial-1"] {
            fs::create_dir(sibling(name)).unwrap();
        }
        let writing = held(&sibling(".out.partial-2")).unwrap();
        write_directory(&sibling("out"), |dir| write_file(&dir.join("file"), b"")).unwrap();
        assert_eq!(names(folder.path()), [".out.partial-2", ".output.partial-1", "out"]);
        drop(writing);
    }

    /// Numbers of processes that there cannot be, and our own.
    #[cfg(target_os = "linux")]
    #[test]
    fn unfinished_files_of_dead_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let own = format!(".peft.{}-900000.tmp", std::process::id());
        for name in [".peft.4294967295-0.tmp", &own, "x.losses.4294967295-7.tmp", ".peft.tmp", ".peft.4294967295-a.tmp"]
        {
            fs::write(folder.path().join(name), "").unwrap();
        }
        write_file(&folder.path().join("file"), b"").unwrap();
        let mut left = [".peft.4294967295-a.tmp", &own, ".peft.tmp", "file", "x.losses.4294967295-7.tmp"];
        left.sort();
        assert_eq!(names(folder.path()), left);
        remove_scratch(folder.path(), "");
        assert_eq!(names(folder.path()), left[..4]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_modes_are_kept() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("there")).unwrap();
        fs::write(path("there/file"), "old").unwrap();
        fs::set_permissions(path("there/file"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink("there/file", path("link")).unwrap();
        write_file(&path("link"), b"new").unwrap();
        assert_eq!(fs::read(path("there/file")).unwrap(), b"new");
        assert!(path("link").is_symlink());
        assert_eq!(path("there/file").metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(&path("there")), ["file"]);
    }

    /// What can only fail at the end is told at the beginning, and the same things fail at the end.
    #[cfg(unix)]
    #[test]
    fn outputs_that_cannot_be_are_told_before_the_work() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "text").unwrap();
        fs::create_dir(path("empty")).unwrap();
        fs::create_dir(path("full")).unwrap();
        fs::write(path("full/file"), "text").unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        symlink("empty", path("link")).unwrap();
        symlink("link-b", path("link-a")).unwrap();
        symlink("link-a", path("link-b")).unwrap();
        let before = names(folder.path());
        let long = |length: usize| "n".repeat(length);
        for name in [
            "empty",
            "link",
            "dangling",
            "link-a",
            "none/file",
            "file/file",
            &long(256),
            "/dev/null",
            "/proc/none",
            "/",
        ] {
            assert!(check_file(&path(name)).is_err(), "{name}");
            assert!(write_file(&path(name), b"").is_err(), "{name}");
        }
        for name in [
            "file",
            "full",
            "link",
            "dangling",
            "link-a",
            "file/out",
            "full/file/out",
            &long(246),
            &long(256),
            "/proc/none",
            "/",
        ] {
            assert!(check_new_directory(&path(name)).is_err(), "{name}");
            assert!(write_directory(&path(name), |_| Ok(())).is_err(), "{name}");
        }
        assert!(check_new_directory(&path(&format!("new/{}/out", long(256)))).is_err());
        for name in ["file", "new", &long(255)] {
            check_file(&path(name)).unwrap();
        }
        for name in ["empty", "new", "new/folder/out", &long(230)] {
            check_new_directory(&path(name)).unwrap();
        }
        assert_eq!(names(folder.path()), before, "something was left");
        write_file(&path(&long(255)), b"text").unwrap();
        write_directory(&path(&long(230)), |_| Ok(())).unwrap();
    }
}
