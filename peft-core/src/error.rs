//! What can go wrong, with the values that were found and the values that are allowed.

use std::fmt::{self, Display, Write};
use std::path::{Path, PathBuf};

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A text as a terminal can show it: characters that it would obey, which names in files may have, as `\u001b`.
pub fn shown(text: impl Display) -> String {
    escaped(text, |_| false)
}

/// The same of a text of several lines, which keeps these and its tabs.
pub fn shown_lines(text: impl Display) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

fn lines(errors: &[Error]) -> String {
    errors.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
}

fn escaped(text: impl Display, keeps: impl Fn(char) -> bool) -> String {
    // Beside the control characters those that turn the direction of writing.
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut safe = String::new();
    for c in text.to_string().chars() {
        match obeyed(c) && !keeps(c) {
            true => write!(safe, "\\u{:04x}", u32::from(c)).unwrap_or_else(|_| unreachable!("memory takes it")),
            false => safe.push(c),
        }
    }
    safe
}

/// An error of this workspace. Its message names the file, key or site, the value found and what is allowed. `Debug` gives the same
/// message, so that a `main` that returns an error prints what a person reads.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("{}", shown(format_args!("cannot {action} {}: {source}", path.display())))]
    Io {
        /// What was attempted, as a verb: "read", "write", "create".
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file was read, but its content is not what it should be.
    #[error("{}", shown(format_args!("{}: {key}: found {found}, expected {expected}", path.display())))]
    File {
        /// The file.
        path: PathBuf,
        /// The key, tensor name, line or place in it.
        key: String,
        /// What stands there.
        found: String,
        /// What is allowed there.
        expected: String,
    },
    /// A setting has a value that cannot be.
    #[error("{}", shown(format_args!("{key}: {found} is not allowed, expected {expected}")))]
    Config {
        /// The setting.
        key: String,
        /// Its value.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// A pattern of sites matches nothing in the model.
    #[error("target_modules: {pattern:?} matches nothing in this model; its modules are {}", shown(allowed))]
    NoSite {
        /// The pattern.
        pattern: String,
        /// Names that would match.
        allowed: String,
    },
    /// A sequence does not fit the model's positions.
    #[error("a sequence of {length} positions (tokens, prompts and prefixes together) exceeds the model's {allowed}")]
    TooLong {
        /// Positions asked for.
        length: usize,
        /// Positions the model has.
        allowed: usize,
    },
    /// Training met a value from which it cannot go on.
    #[error("step {step}: {}", shown(what))]
    Training {
        /// The optimizer step, counted from 1.
        step: usize,
        /// What happened.
        what: String,
    },
    /// A run was asked to stop, by `Observer::stops`.
    #[error("stopped after step {step}")]
    Stopped {
        /// The last step that was done, counted from 1.
        step: usize,
    },
    /// Several things are wrong with one input: all of them, each on a line.
    #[error("{}", lines(.0))]
    Several(Vec<Error>),
    /// A check at the end of a run, of a merge or of a save failed: the result is not to be trusted.
    #[error("check failed: {what}: {}", shown(detail))]
    Check {
        /// What was checked.
        what: &'static str,
        /// What was found, with names and numbers.
        detail: String,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// The operating system refused; for `map_err`. The action is a verb: "read", "write", "create".
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// A file's content is not what it should be.
    pub fn file(
        path: impl AsRef<Path>,
        key: impl Into<String>,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Error::File {
            path: path.as_ref().to_path_buf(),
            key: key.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// The same, said of the file that the setting stands in.
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            Error::Config { key, found, expected } => Error::file(path, key, found, expected),
            Error::NoSite { pattern, allowed } => {
                Error::file(path, "target_modules", format!("{pattern:?}"), format!("a match among {allowed}"))
            }
            other => other,
        }
    }

    /// The same, said of the option by which a program takes the setting.
    pub fn of_option(self, option: &str) -> Self {
        match self {
            Error::Config { key, found, expected } => Error::config(format!("{option} {key}"), found, expected),
            other => other,
        }
    }

    /// The same, said of a tensor or a module by its name.
    pub fn of(self, name: &str) -> Self {
        match self {
            Error::Config { key, found, expected } => Error::config(format!("{name}: {key}"), found, expected),
            other => other,
        }
    }

    /// A setting has a value that cannot be.
    pub fn config(key: impl Into<String>, found: impl ToString, expected: impl Into<String>) -> Self {
        Error::Config { key: key.into(), found: found.to_string(), expected: expected.into() }
    }

    /// Nothing if there are none, the only one, or all together.
    pub fn all(mut errors: Vec<Error>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_in_every_error() {
        let bad = "\u{1b}[31m\r\n\u{9b}2J\u{202e}x\u{7f}";
        let text = bad.to_string();
        for error in [
            Error::io("read", bad)(std::io::Error::other(bad)),
            Error::file(bad, bad, bad, bad),
            Error::config(bad, bad, bad),
            Error::NoSite { pattern: text.clone(), allowed: text.clone() },
            Error::Training { step: 1, what: text.clone() },
            Error::Check { what: "a check", detail: text },
        ] {
            let told = error.to_string();
            assert_eq!(shown(&told), told);
            assert!(told.contains("\\u001b[31m\\u000d\\u000a\\u009b2J\\u202ex\\u007f"), "{told}");
        }
        assert_eq!(shown_lines("a\tb\n\u{1b}"), "a\tb\n\\u001b");
    }
}
