//! What each step of each method transfers between program and device: as much for a deep model as for a flat one.

use peft_bench::registry::{Entry, METHODS};
use peft_core::io::peft::with_words;
use peft_core::testing::{device, examples};
use peft_core::train::{TrainConfig, Trainer};
use peft_core::transfer::{Transfers, counted};
use peft_core::{Base, Head, Result, Shape, Trained};

use super::over::{settings, sources};

/// Whose steps transfer more for more layers, and what it is.
const GROW: [(&str, &str); 3] = [
    ("adalora", "triplets of all maps are ranked together, on the host, where ranks are allocated"),
    ("increlora", "ages decide the learning rate of each tensor, which is the host's"),
    (
        "intrinsic-said",
        "the fixed maps of the few numbers to each matrix are drawn on the host, and too large to be kept",
    ),
];

/// Of one step more, on two texts.
fn of_a_step(entry: &Entry, base: &Base) -> Result<Transfers> {
    let method = with_words(&(entry.method)(), &settings(entry.name))?.from_sources(sources(entry.name, base));
    let data: Vec<_> = examples(base).into_iter().cycle().take(4).collect();
    let of = |steps: usize| {
        let trained = Trained::new(method.init(base, 1)?, Head::classifier(base, 2, 3))?;
        let config = TrainConfig { threads: 1, ..TrainConfig::new(1e-3).with_batch_size(2).with_steps(steps) };
        let (run, transfers) = counted(|| Trainer::new(config).run(base, trained, &data, None, &mut ()));
        run.map(|_| transfers)
    };
    // By then no unit is dead, after whose gradients the check at the end would ask once more.
    Ok(of(8)? - of(7)?)
}

#[test]
fn steps_transfer_nothing_for_layers() {
    let shape = Shape::named("roberta-tiny").unwrap().with_dropout(0.1);
    let [flat, deep] = [shape.clone().one_layer(), shape].map(|shape| Base::random(shape, 1, &device()));
    let mut faults = vec![];
    for entry in METHODS {
        let why = GROW.iter().find(|(name, _)| *name == entry.name);
        match (of_a_step(entry, &flat), of_a_step(entry, &deep)) {
            (Ok(one), Ok(two)) if (one == two) == why.is_none() => {}
            (Ok(one), Ok(two)) => faults.push(format!("{}: {one:?} and {two:?}", entry.name)),
            (Err(error), _) | (_, Err(error)) => faults.push(format!("{}: {error}", entry.name)),
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
