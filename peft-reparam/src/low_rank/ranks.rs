//! Ranks and alphas that differ from map to map: `rank_pattern` and `alpha_pattern` of PEFT.

use indexmap::IndexMap;
use peft_core::{Error, Pattern, Result};

/// The largest rank.
const MAX_RANK: usize = 65_536;

/// The values of a setting, each for the modules whose path ends in a match of its key.
pub(crate) struct Patterns<T>(Vec<(Pattern, T)>);

impl<T: Copy> Patterns<T> {
    /// Patterns as PEFT matches them, `^(.*\.)?(key)$` on the module path. One that matches none of these paths is an error.
    pub(crate) fn new(setting: &str, map: &IndexMap<String, T>, paths: &[String]) -> Result<Self> {
        let compile = |(key, value): (&String, &T)| {
            let pattern = Pattern::end(setting, key)?;
            if pattern.matches_any(paths)? {
                return Ok((pattern, *value));
            }
            let some = paths[..paths.len().min(6)].join(", ");
            Err(Error::config(setting, key, format!("a match of the end of an adapted module's path, such as {some}")))
        };
        map.iter().map(compile).collect::<Result<_>>().map(Patterns)
    }

    /// The value of the first key that matches a path. What cannot be matched was an error in [`new`](Self::new).
    pub(crate) fn first(&self, path: &str) -> Option<T> {
        self.0.iter().find(|(pattern, _)| pattern.matches(path).unwrap_or(false)).map(|(_, value)| *value)
    }
}

/// Refuses a rank of the setting `key` that cannot be. More than the rank of a map adds nothing, but the reference allows it.
pub(crate) fn check_rank(key: &str, rank: usize) -> Result<()> {
    match (1..=MAX_RANK).contains(&rank) {
        true => Ok(()),
        false => Err(Error::config(key, rank, format!("1 to {MAX_RANK}"))),
    }
}

/// Refuses a numerator of a scale with which nothing would ever move, or that is no number.
pub(crate) fn check_alpha(key: &str, alpha: f64) -> Result<()> {
    match alpha.is_finite() && alpha != 0.0 {
        true => Ok(()),
        false => Err(Error::config(key, alpha, "a finite number other than 0")),
    }
}
