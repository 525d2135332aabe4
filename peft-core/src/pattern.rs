//! Regular expressions as Python's `re` has them, look-around and backreferences included: PEFT's settings are matched with these.

use fancy_regex::{Regex, RegexBuilder};

use crate::{Error, Result};

/// The longest expression, in bytes.
const MAX_LENGTH: usize = 1 << 16;
/// The most steps back in one match: a pattern that takes more would keep a program busy for longer than anybody waits.
const MAX_STEPS: usize = 100_000;
/// The most memory that a compiled part takes, in bytes.
const MAX_SIZE: usize = 10 << 20;
/// The group of a layer's number.
const NUMBER: &str = "idx";

/// An expression that must match a whole module path, or its end.
#[derive(Clone, Debug)]
pub struct Pattern {
    setting: String,
    pattern: String,
    regex: Regex,
}

impl Pattern {
    /// One that matches a whole path, as `re.fullmatch` does. The setting that it stands in is named in errors.
    pub fn whole(setting: &str, pattern: &str) -> Result<Self> {
        Self::new(setting, pattern, &format!("^(?:{pattern})$"))
    }

    /// One that matches a whole path, or what stands behind a dot in it. Groups are numbered from 3, as in PEFT.
    pub fn end(setting: &str, pattern: &str) -> Result<Self> {
        Self::new(setting, pattern, &format!(r"^(.*\.)?({pattern})$"))
    }

    /// One that matches a module or what is in it, as PEFT looks for `modules_to_save`.
    #[cfg(feature = "load")]
    pub(crate) fn module(setting: &str, pattern: &str) -> Result<Self> {
        Self::new(setting, pattern, &format!(r"^(?:(^|.*\.){pattern}($|\..*))"))
    }

    /// One that finds the number behind the list of layers that has this name.
    pub(crate) fn layers(setting: &str, pattern: &str) -> Result<Self> {
        Self::new(setting, pattern, &format!(r"^(?:(?:^|.*?\.){pattern}\.(?P<{NUMBER}>\d+)\.)"))
    }

    /// One that finds the first number in a path.
    pub(crate) fn first_number(setting: &str) -> Result<Self> {
        Self::new(setting, "", &format!(r"^.*?\.[^.]*\.(?P<{NUMBER}>\d+)\."))
    }

    fn new(setting: &str, pattern: &str, expression: &str) -> Result<Self> {
        if pattern.len() > MAX_LENGTH {
            let found = format!("an expression of {} bytes", pattern.len());
            return Err(Error::config(setting, found, format!("at most {MAX_LENGTH} bytes")));
        }
        let mut builder = RegexBuilder::new(expression);
        builder
            .backtrack_limit(MAX_STEPS)
            .delegate_size_limit(MAX_SIZE)
            .delegate_dfa_size_limit(MAX_SIZE)
            .max_prog_size(MAX_SIZE);
        match builder.build() {
            Ok(regex) => Ok(Pattern { setting: setting.into(), pattern: pattern.into(), regex }),
            Err(error) => {
                // The lines before the last draw the expression.
                let reason = error.to_string().lines().last().unwrap_or_default().to_string();
                Err(Error::config(setting, pattern, format!("a regular expression ({reason})")))
            }
        }
    }

    /// Whether it matches. An expression that takes too many steps is an error.
    pub fn matches(&self, path: &str) -> Result<bool> {
        self.regex.is_match(path).map_err(|error| self.too_slow(path, error))
    }

    /// Whether it matches one of these. All are tried: an expression that is too slow for one of them is an error.
    pub fn matches_any(&self, paths: &[String]) -> Result<bool> {
        let matched = paths.iter().map(|path| self.matches(path)).collect::<Result<Vec<bool>>>()?;
        Ok(matched.contains(&true))
    }

    /// The number that it finds, if it matches.
    pub(crate) fn number(&self, path: &str) -> Result<Option<usize>> {
        let found = self.regex.captures(path).map_err(|error| self.too_slow(path, error))?;
        Ok(found.and_then(|found| found.name(NUMBER)?.as_str().parse().ok()))
    }

    fn too_slow(&self, path: &str, error: fancy_regex::Error) -> Error {
        let expected = format!("an expression that is matched in {MAX_STEPS} steps ({error} on {path})");
        Error::config(&self.setting, &self.pattern, expected)
    }

    /// The expression as it was given.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python's `re.fullmatch` says of each.
    #[test]
    fn a_whole_path_is_matched_as_python_does() {
        for (pattern, path, matched) in [
            (r".*\.(q|v)_proj", "model.layers.0.self_attn.q_proj", true),
            (r"(q|v)_proj", "model.layers.0.self_attn.q_proj", false),
            (r"^(?!.*(gate|lm_head)).*_proj$", "model.layers.0.mlp.up_proj", true),
            (r"^(?!.*(gate|lm_head)).*_proj$", "model.layers.0.mlp.gate_proj", false),
            (r".*(?<=mlp)\.\w+", "model.layers.0.mlp.up_proj", true),
            (r".*(?<!mlp)\.\w+_proj", "model.layers.0.mlp.up_proj", false),
            (r".*(?P<a>l)a(?P=a)*.*", "xlalll", true),
            (r"(a)b\1", "aba", true),
            (r"(a)b\1", "abb", false),
            (r"a|ab", "ab", true),
            (r"(?i)MODEL\.X", "model.x", true),
            (r"", "a", false),
        ] {
            assert_eq!(Pattern::whole("target_modules", pattern).unwrap().matches(path).unwrap(), matched, "{pattern}");
        }
        let end = |pattern: &str, path: &str| Pattern::end("rank_pattern", pattern).unwrap().matches(path).unwrap();
        assert!(end("q_proj", "a.q_proj") && end("q_proj", "q_proj") && end(r"layers\.[01]\..*", "m.layers.1.q"));
        assert!(!end("proj", "a.q_proj") && !end("q_proj", "a.q_proj.b"));
    }

    #[test]
    fn what_would_take_too_long_or_too_much_is_an_error() {
        let start = std::time::Instant::now();
        let slow = Pattern::whole("target_modules", r"(a|b|ab)*(?=c)c").unwrap();
        let message = slow.matches(&"ab".repeat(200)).unwrap_err().to_string();
        assert!(message.contains("target_modules") && message.contains("steps"), "{message}");
        for bad in ["(", "(?:(?:a{1000}){1000}){1000}(?=b)b", &"a".repeat(MAX_LENGTH + 1)] {
            let message = Pattern::whole("exclude_modules", bad).unwrap_err().to_string();
            assert!(message.contains("exclude_modules"), "{message}");
        }
        assert!(start.elapsed().as_secs() < 10);
    }
}
