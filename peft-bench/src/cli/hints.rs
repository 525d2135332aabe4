//! What the library advises, as options and commands of this program.

use peft_core::Error;

/// Advice of the library, and how it is followed here.
const HINTS: [(&str, &str); 4] = [
    ("to which this can be converted", "by `peft convert --to hf`"),
    ("resume from it", "with --resume"),
    ("an adapter with one", "by --adapter"),
    ("a method with a weight-space form", "see `peft methods`"),
];

/// The same error with the options and commands that it asks for.
pub(super) fn hinted(error: Error) -> Error {
    let with = |expected: String| {
        HINTS.iter().fold(expected, |text, (advice, here)| text.replace(advice, &format!("{advice} ({here})")))
    };
    match error {
        Error::File { path, key, found, expected } => Error::file(path, key, found, with(expected)),
        Error::Config { key, found, expected } => Error::config(key, found, with(expected)),
        Error::Several(errors) => Error::Several(errors.into_iter().map(hinted).collect()),
        other => other,
    }
}
