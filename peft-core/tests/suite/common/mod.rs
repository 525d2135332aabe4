//! Files of bad content, and the errors that they must end in.

use std::path::PathBuf;

use tempfile::TempDir;

/// A file of this content in a folder of its own.
pub fn written(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

/// The result is an error whose message has all these parts.
#[track_caller]
pub fn assert_error<T>(result: peft_core::Result<T>, parts: &[&str]) {
    let error = result.err().expect("an error").to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}
