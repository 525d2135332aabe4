//! METHODS.md: what the cards of the methods say, and the tests that stand behind it.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::backends::METHOD_CRATES;
use crate::card::{Card, Conformance, conformance, tests};
use crate::shell::root;

/// A method's card, its file, and its tests as METHODS.md lists them.
struct Entry {
    package: &'static str,
    file: String,
    card: Card,
    verified: Vec<String>,
}

/// `cargo xtask methods`.
pub fn write() -> Result<()> {
    fs::write(root().join("METHODS.md"), render()?).context("METHODS.md")
}

/// `cargo xtask methods --check`.
pub fn check() -> Result<()> {
    let written = fs::read_to_string(root().join("METHODS.md")).unwrap_or_default();
    if written == render()? { Ok(()) } else { bail!("METHODS.md is out of date: run `cargo xtask methods`") }
}

fn render() -> Result<String> {
    let mut entries = Vec::new();
    for package in METHOD_CRATES {
        for file in files(&root().join(package).join("src"))? {
            let relative = file.strip_prefix(root())?.display().to_string();
            let source = fs::read_to_string(&file)?;
            if let Some(card) = Card::parse(&source).context(relative.clone())? {
                let verified = verified(package, &source)?;
                entries.push(Entry { package, file: relative, card, verified });
            }
        }
    }
    Ok(page(&entries)?)
}

/// The Rust files below a folder, in the order of their paths.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The tests in the method's own file, and those in the crate's folder `tests` that name its configuration.
fn verified(package: &str, source: &str) -> Result<Vec<String>> {
    let config = source.split("impl Method for ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let mut verified: Vec<String> = conformance(source).iter().map(suite).collect();
    verified.extend(tests(source).into_iter().map(|(name, _)| format!("`{name}`")));
    let folder = root().join(package).join("tests");
    let others = if folder.exists() { files(&folder)? } else { vec![] };
    for path in others {
        let file = path.strip_prefix(root().join(package))?.display().to_string();
        let tests = tests(&fs::read_to_string(&path)?);
        let naming = tests.iter().filter(|(_, text)| config.is_some_and(|config| text.contains(config)));
        verified.extend(naming.map(|(name, _)| format!("`{name}` in {file}")));
    }
    Ok(verified)
}

fn suite(Conformance { config, skipped }: &Conformance) -> String {
    let reasons = skipped.iter().map(|(property, reason)| format!("{property} ({reason})"));
    let but =
        if skipped.is_empty() { "all".into() } else { format!("all but {}", reasons.collect::<Vec<_>>().join(", ")) };
    format!("conformance C1 to C10 of `{config}`: {but}")
}

fn page(entries: &[Entry]) -> Result<String, std::fmt::Error> {
    let mut page = String::from(
        "# Methods\n\n\
         Written by `cargo xtask methods` from the cards at the head of the methods' files. What verifies a method is every\n\
         test in its file, and every test in its crate's `tests` that names its configuration.\n\n\
         | method | family | crate | trains | merges | paper |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for Entry { package, card, .. } in entries {
        let anchor = card
            .name
            .to_lowercase()
            .replace(|c: char| !(c.is_alphanumeric() || " -_".contains(c)), "")
            .replace(' ', "-");
        let name = format!("[{}](#{anchor})", card.name);
        let cells = [name.as_str(), &card.family, package, &card.trains, &card.merges, &card.paper];
        let cells = cells.map(|cell| cell.trim_end_matches('.').replace('|', "\\|"));
        writeln!(page, "| {} |", cells.join(" | "))?;
    }
    let bare = METHOD_CRATES.iter().filter(|package| entries.iter().all(|entry| entry.package != **package));
    let bare: Vec<&str> = bare.copied().collect();
    if !bare.is_empty() {
        writeln!(page, "\nWithout a method yet: {}.", bare.join(", "))?;
    }
    for Entry { file, card, verified, .. } in entries {
        writeln!(
            page,
            "\n## {}\n\n[{file}]({file}). Reference: {}.\n",
            card.name,
            card.reference.trim_end_matches('.')
        )?;
        for line in card.formula.iter().filter(|line| !line.is_empty()) {
            writeln!(page, "    {line}")?;
        }
        writeln!(page, "\nIdentities:\n")?;
        for identity in &card.identities {
            writeln!(page, "- {identity}")?;
        }
        writeln!(page, "\nVerified by:\n")?;
        for test in verified {
            writeln!(page, "- {test}")?;
        }
        writeln!(page, "\nDiffers from the paper: {}", card.differs)?;
    }
    Ok(page)
}
