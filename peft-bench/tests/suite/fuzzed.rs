//! The targets of `fuzz` on a bounded corpus: what cargo-fuzz found to take paths of its own.

#[path = "../../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

use targets::TARGETS;

/// The most seeds of a target, and the most bytes of one.
const MOST: (usize, u64) = (64, 8192);

#[test]
fn no_seed_makes_a_reader_panic() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(name);
        let seeds = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut seeds: Vec<_> = seeds.map(|seed| seed.unwrap().path()).collect();
        seeds.sort();
        assert!((1..=MOST.0).contains(&seeds.len()), "{name}: {} seeds", seeds.len());
        for seed in seeds {
            assert!(seed.metadata().unwrap().len() <= MOST.1, "{}", seed.display());
            println!("{}", seed.display());
            target(&fs::read(&seed).unwrap());
        }
    }
}
