//! Translations as line-aligned plain text, one file for each language: WMT16's English and Romanian, or others.

use std::path::Path;

use peft_core::files::read_text;
use peft_core::{Error, Result};

/// What T5 was trained to read before an English sentence (Raffel et al., 2020, appendix D).
pub const PREFIX: &str = "translate English to Romanian: ";
/// The endings of the two files: source, then target.
pub const LANGUAGES: [&str; 2] = ["en", "ro"];

/// The largest file that is read, in bytes.
const MAX_TEXT: u64 = 1 << 30;

/// A sentence and its translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What is translated.
    pub source: String,
    /// Its translation.
    pub target: String,
}

impl Pair {
    /// The source as T5 reads it.
    pub fn prompt(&self) -> String {
        format!("{PREFIX}{}", self.source)
    }
}

/// Reads `STEM.en` and `STEM.ro` of a directory, such as `newstest2016.en` and `newstest2016.ro`. Files of unequal length and
/// lines without text are errors.
pub fn read(directory: &Path, stem: &str) -> Result<Vec<Pair>> {
    let [source, target] = LANGUAGES.map(|language| directory.join(format!("{stem}.{language}")));
    read_files(&source, &target)
}

/// Reads two files whose lines are each other's translations.
pub fn read_files(source: &Path, target: &Path) -> Result<Vec<Pair>> {
    let texts = [read_text(source, MAX_TEXT)?, read_text(target, MAX_TEXT)?];
    let [sources, targets] = [lines(source, &texts[0])?, lines(target, &texts[1])?];
    let ends = |short: &Path, long: &Path, count: usize| {
        let expected = format!("a line for each of {}", long.display());
        Err(Error::file(short, format!("line {}", count + 1), "the end of the file", expected))
    };
    match (sources.len(), targets.len()) {
        (s, t) if s < t => ends(source, target, s),
        (s, t) if t < s => ends(target, source, t),
        _ => {
            let pair = |(source, target): (&str, &str)| Pair { source: source.to_string(), target: target.to_string() };
            Ok(sources.into_iter().zip(targets).map(pair).collect())
        }
    }
}

/// The lines of a text, at least one, none of them blank.
fn lines<'a>(path: &Path, text: &'a str) -> Result<Vec<&'a str>> {
    let lines: Vec<&str> = text.lines().collect();
    let blank = if lines.is_empty() { Some(0) } else { lines.iter().position(|line| line.trim().is_empty()) };
    match blank {
        Some(place) => Err(Error::file(path, format!("line {}", place + 1), "no text", "a sentence on every line")),
        None => Ok(lines),
    }
}

/// Romanian with its commas below: s and t with a cedilla, as older keyboards write them, are made those with a comma.
/// WMT16's test set has commas only, other sets have both, and BLEU takes them for different letters.
pub fn with_commas_below(text: &str) -> String {
    let letter = |c| match c {
        'ş' => 'ș',
        'Ş' => 'Ș',
        'ţ' => 'ț',
        'Ţ' => 'Ț',
        other => other,
    };
    text.chars().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read_bytes(en: &[u8], ro: &[u8]) -> Result<Vec<Pair>> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("dev.en"), en).unwrap();
        fs::write(folder.path().join("dev.ro"), ro).unwrap();
        read(folder.path(), "dev")
    }

    #[test]
    fn lines_are_pairs() {
        // A line separator of Unicode ends no line: in one language alone it would shift all that follows.
        let pairs =
            read_bytes("\u{feff}One.\r\nTwo\u{2028}halves.\n".as_bytes(), "Unu.\nDouă jumătăți.".as_bytes()).unwrap();
        let texts: Vec<_> = pairs.iter().map(|pair| (pair.source.as_str(), pair.target.as_str())).collect();
        assert_eq!(texts, [("One.", "Unu."), ("Two\u{2028}halves.", "Două jumătăți.")]);
        assert_eq!(pairs[0].prompt(), "translate English to Romanian: One.");
    }

    #[test]
    fn errors_name_file_and_line() {
        let cases: [(&[u8], &[u8], &str); 7] = [
            (b"a\nb\nc\n", b"x\n", "dev.ro: line 2: found the end of the file"),
            (b"a\n", b"x\ny\n", "dev.en: line 2: found the end of the file"),
            (b"a\n\nc\n", b"x\ny\nz\n", "dev.en: line 2: found no text"),
            (b"a\nb\n", b"x\n \t\n", "dev.ro: line 2: found no text"),
            (b"", b"", "dev.en: line 1: found no text"),
            (b"a\nb\n", b"x\n\xff\n", "dev.ro: line 2: found bytes that are no text, expected UTF-8"),
            (b"a\nb\n\xc4\n", b"x\ny\nz\n", "dev.en: line 3: found bytes that are no text, expected UTF-8"),
        ];
        for (en, ro, expected) in cases {
            let error = read_bytes(en, ro).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(read(Path::new("no such folder"), "dev").unwrap_err().to_string().contains("dev.en"));
    }

    #[test]
    fn cedillas_become_commas() {
        assert_eq!(with_commas_below("Şi ţară, Ţesut, aşa: în ță"), "Și țară, Țesut, așa: în ță");
    }
}
