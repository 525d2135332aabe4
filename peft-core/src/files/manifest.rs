//! The hashes of a directory's files, in a file that other programs ignore.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Component, Path};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::write::{replaced, with_aside};
use super::{check_new_directory, open_regular, read_json, write_directory, write_file};
use crate::warning::warn;
use crate::{Error, Result};

/// The file with the hashes: an object of names and the SHA-256 of each.
pub const MANIFEST: &str = "manifest.json";

/// Makes a directory as [`write_directory`] does, with the hashes of all that `fill` writes.
pub(crate) fn write_sealed<T>(path: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    write_directory(path, |dir| {
        let value = fill(dir)?;
        seal(dir).map(|()| value)
    })
}

/// Writes the hashes of all files of a directory into it.
pub(crate) fn seal(dir: &Path) -> Result<()> {
    let hashes: BTreeMap<String, String> =
        names(dir)?.into_iter().map(|name| Ok((name.clone(), hash(&dir.join(&name))?))).collect::<Result<_>>()?;
    let text = serde_json::to_string_pretty(&hashes).unwrap_or_else(|error| unreachable!("plain data: {error}"));
    write_file(&dir.join(MANIFEST), text.as_bytes())
}

/// What a comparison with the hashes found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Files that are as they were written.
    pub files: Vec<String>,
    /// Files without a hash, which were added later.
    pub others: Vec<String>,
}

/// Compares the files of a directory with the hashes that were written with them. One that is missing or was changed is an error,
/// which names it.
pub fn verify(dir: &Path) -> Result<Verified> {
    let expected = hashes(dir)?;
    for (name, hash_then) in &expected {
        let file = dir.join(name);
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || !file.exists() {
            return Err(Error::file(dir, name, "no such file", format!("the file that {MANIFEST} lists")));
        }
        let now = hash(&file)?;
        if hash_then.as_str() != Some(now.as_str()) {
            let expected =
                format!("{}, as it was written: the file was changed", hash_then.as_str().unwrap_or_default());
            return Err(Error::file(file, "SHA-256", now, expected));
        }
    }
    let others = names(dir)?.into_iter().filter(|name| !expected.contains_key(name)).collect();
    Ok(Verified { files: expected.keys().cloned().collect(), others })
}

/// Warns if a file of a directory is no longer the one that was written with its hash. Where there is none, or the hashes are another
/// program's, there is nothing to say.
pub(crate) fn tell_changed(file: &Path) {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) else { return };
    let then = hashes(dir).ok().and_then(|hashes| hashes.get(name).cloned());
    if let (Some(then), Ok(now)) = (then, hash(file))
        && then.as_str() != Some(now.as_str())
    {
        warn(file, "SHA-256", format!("is not that of {MANIFEST}: the file was changed since it was saved"));
    }
}

/// The hashes that were written with a directory's files.
fn hashes(dir: &Path) -> Result<serde_json::Map<String, Value>> {
    let path = dir.join(MANIFEST);
    if !path.exists() {
        return Err(Error::file(dir, MANIFEST, "no such file", "the hashes that are written with a result"));
    }
    let is_hash = |value: &Value| {
        value.as_str().is_some_and(|text| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    match read_json(&path)? {
        Value::Object(hashes) if hashes.values().all(is_hash) => Ok(hashes),
        _ => Err(Error::file(path, "content", "other things", "the SHA-256 of each file by its name")),
    }
}

/// Whether [`replace_directory`] will be able to make this directory: what is there is nothing, or a result with its hashes and nothing
/// that was put beside it.
pub fn check_replaceable(path: &Path) -> Result<()> {
    if path.is_symlink() || path.read_dir().map_or(true, |mut entries| entries.next().is_none()) {
        return check_new_directory(path);
    }
    let expected = |what: &str| format!("{what}, or a new directory: only an earlier result is replaced");
    let listed = match read_json(&path.join(MANIFEST)) {
        Ok(Value::Object(hashes)) => hashes,
        _ => {
            return Err(Error::file(
                path,
                MANIFEST,
                "no hashes of a result",
                expected("those that are written with one"),
            ));
        }
    };
    for name in names(path)? {
        if !listed.contains_key(&name) {
            return Err(Error::file(path, name, "what is no part of the result", expected("nothing beside its files")));
        }
    }
    Ok(())
}

/// Makes a directory by `make`, which makes it all or nothing under the path that it is given. A result that is there already stays until
/// the new one is complete.
pub fn replace_directory<T>(path: &Path, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let old = replaced(path)?;
    if old.exists() {
        // Of a process that was killed between the two renames, or behind them.
        match path.exists() {
            true => std::fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?,
            false => std::fs::rename(&old, path).map_err(Error::io("bring back", path))?,
        }
    }
    check_replaceable(path)?;
    let Some(name) = path.file_name().filter(|_| path.exists()) else { return make(path) };
    with_aside(path, |aside| {
        let new = aside.join(name);
        let made = make(&new)?;
        std::fs::rename(path, &old).map_err(Error::io("replace", path))?;
        if let Err(error) = std::fs::rename(&new, path) {
            std::fs::rename(&old, path).map_err(Error::io("bring back", path))?;
            return Err(Error::io("replace", path)(error));
        }
        std::fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
        Ok(made)
    })
}

/// The files of a directory but the one with the hashes, sorted; those of folders in it with their names in front.
fn names(dir: &Path) -> Result<Vec<String>> {
    fn add(dir: &Path, front: &str, all: &mut Vec<String>) -> std::io::Result<()> {
        for entry in dir.read_dir()? {
            let entry = entry?;
            let name = format!("{front}{}", entry.file_name().to_string_lossy());
            match entry.file_type()?.is_dir() {
                true => add(&entry.path(), &format!("{name}/"), all)?,
                false => all.push(name),
            }
        }
        Ok(())
    }
    let mut all = Vec::new();
    add(dir, "", &mut all).map_err(Error::io("read", dir))?;
    all.retain(|name| name != MANIFEST);
    all.sort();
    Ok(all)
}

/// The SHA-256 of a file.
fn hash(path: &Path) -> Result<String> {
    let (mut file, _) = open_regular(path)?;
    let (mut sum, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece).map_err(Error::io("read", path))? {
            0 => return Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => sum.update(&piece[..read]),
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::warnings;

    fn result(path: &Path, text: &str) -> Result<()> {
        write_sealed(path, |dir| {
            fs::create_dir(dir.join("folder")).unwrap();
            write_file(&dir.join("folder/file"), b"")?;
            write_file(&dir.join("weights"), text.as_bytes())
        })
    }

    #[test]
    fn every_bit_of_a_result_is_under_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("out");
        result(&dir, "weights").unwrap();
        let found = verify(&dir).unwrap();
        assert_eq!((found.files, found.others), (vec!["folder/file".to_string(), "weights".to_string()], vec![]));
        fs::write(dir.join("notes.txt"), "mine").unwrap();
        assert_eq!(verify(&dir).unwrap().others, ["notes.txt"]);
        let good = fs::read(dir.join("weights")).unwrap();
        for bit in 0..8 * good.len() {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(dir.join("weights"), bytes).unwrap();
            assert!(verify(&dir).unwrap_err().to_string().contains("weights: SHA-256"));
            let ((), told) = warnings(|| tell_changed(&dir.join("weights")));
            assert!(told.len() == 1 && told[0].contains("weights: SHA-256: is not that of manifest.json"), "{told:?}");
        }
        fs::write(dir.join("weights"), &good).unwrap();
        assert!(warnings(|| tell_changed(&dir.join("weights"))).1.is_empty());
        fs::remove_file(dir.join("weights")).unwrap();
        assert!(verify(&dir).unwrap_err().to_string().contains("weights: found no such file"));
        for wrong in ["{", "[]", r#"{"weights": 1}"#, r#"{"weights": "abc"}"#] {
            fs::write(dir.join(MANIFEST), wrong).unwrap();
            assert!(verify(&dir).unwrap_err().to_string().contains(MANIFEST), "{wrong}");
            fs::write(dir.join("weights"), "others").unwrap();
            assert!(warnings(|| tell_changed(&dir.join("weights"))).1.is_empty(), "{wrong}");
        }
        fs::remove_file(dir.join(MANIFEST)).unwrap();
        assert!(verify(&dir).unwrap_err().to_string().contains("manifest.json: found no such file"));
    }

    #[test]
    fn only_a_result_is_replaced_and_only_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("out");
        let read = || fs::read_to_string(dir.join("weights")).unwrap();
        replace_directory(&dir, |dir| result(dir, "first")).unwrap();
        // What is replaced stays until the new one is complete, whenever this process is killed.
        let second = |new: &Path| {
            let told = result(new, "second");
            assert_eq!(read(), "first");
            told
        };
        replace_directory(&dir, second).unwrap();
        assert_eq!(read(), "second");
        // As after a kill between the two renames: nobody removes the earlier result, and the next one finds it.
        fs::rename(&dir, replaced(&dir).unwrap()).unwrap();
        result(&dir, "other").unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let failed = replace_directory(&dir, |_| Err::<(), _>(Error::config("save", "no", "a disk")));
        assert!(failed.is_err() && read() == "second");
        // And behind them.
        result(&replaced(&dir).unwrap(), "first").unwrap();
        replace_directory(&dir, |dir| result(dir, "second")).unwrap();
        assert_eq!(read(), "second");
        let failed = replace_directory(&dir, |dir| Err::<(), _>(Error::config("save", dir.display(), "a disk")));
        assert!(failed.is_err() && read() == "second");
        fs::write(dir.join("notes.txt"), "mine").unwrap();
        let error = replace_directory(&dir, |dir| result(dir, "third")).unwrap_err().to_string();
        assert!(error.contains("notes.txt") && read() == "second", "{error}");
        fs::remove_file(dir.join("notes.txt")).unwrap();
        fs::remove_file(dir.join(MANIFEST)).unwrap();
        assert!(replace_directory(&dir, |dir| result(dir, "third")).is_err() && read() == "second");
        let left = folder.path().read_dir().unwrap().count();
        assert_eq!(left, 1, "something was left");
    }
}
