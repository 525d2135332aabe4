//! Warnings: what stands in a file and does not enter the result, or enters it otherwise than it says.
//!
//! They go to the crate `log` under the target [`TARGET`], so that whoever uses this library decides where they appear. The program
//! `peft` writes each of them once to standard error.

use std::fmt::Display;
use std::path::Path;

/// The target of all warnings.
pub const TARGET: &str = "peft";

/// How many names a warning lists.
const LISTED: usize = 12;

/// Warns of something in a file: the key, tensor or line, and what becomes of it ("is 5: nothing uses it").
pub fn warn(path: impl AsRef<Path>, key: impl Display, what: impl Display) {
    log::warn!(target: TARGET, "{}: {key}: {what}", path.as_ref().display());
}

/// The first dozen of some names, and how many there are if that is not all.
pub fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let shown = names.iter().take(LISTED).map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
    if names.len() > LISTED { format!("{shown}, .. ({} in all)", names.len()) } else { shown }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::warnings;

    #[test]
    fn a_warning_names_file_and_key_and_lists_a_dozen_names() {
        let names: Vec<String> = (0..14).map(|i| format!("t{i}")).collect();
        let ((), told) = warnings(|| {
            warn("dir/config.json", "pad_token_id", "is -1: no padding");
            warn("a.safetensors", "tensors", format!("nothing uses {}", listed(&names)));
        });
        assert_eq!(told[0], "dir/config.json: pad_token_id: is -1: no padding");
        assert!(told[1].ends_with("nothing uses t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, .. (14 in all)"));
        assert_eq!(listed(&names[..12]), names[..12].join(", "));
    }
}
