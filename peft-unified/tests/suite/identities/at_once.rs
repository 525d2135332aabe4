//! Several runs at once over one base.

use std::sync::Arc;

use peft_additive::{Ia3Config, PrefixTuningConfig, SequentialConfig};
use peft_core::testing::{base, device, examples};
use peft_core::train::{Slots, TrainConfig, Trainer, at_once};
use peft_core::view::tensors;
use peft_core::{AnyMethod, Example, Head, Trained};
use peft_reparam::LoraConfig;

/// Each of four methods, on data of its own, with settings of its own, has the bits that it has alone.
#[test]
fn each_run_has_the_bits_that_it_has_alone() {
    let base = base("roberta-tiny", &device());
    let methods: [AnyMethod; 4] = [
        LoraConfig::new(3).into(),
        PrefixTuningConfig::new(4).with_projection(7).into(),
        SequentialConfig::houlsby(5).into(),
        Ia3Config::default().into(),
    ];
    let run = |i: usize, slots: Option<&Arc<Slots>>| {
        let data: Vec<Example> = examples(&base).into_iter().cycle().skip(i).take(9 + i).collect();
        let config = TrainConfig {
            micro_rows: 12,
            threads: 2,
            dropout: Some(0.1),
            seed: i as u64,
            ..TrainConfig::new(1e-2).with_batch_size(4 + i).with_steps(5 + i)
        };
        let trainer = Trainer::new(config);
        let trainer = slots.map_or(trainer.clone(), |slots| trainer.with_slots(slots.clone()));
        let trained = Trained::new(methods[i].init(&base, 7).unwrap(), Head::classifier(&base, 2, i as u64)).unwrap();
        tensors(&trainer.run(&base, trained, &data, None, &mut ()).unwrap())
    };
    let alone: Vec<_> = (0..4).map(|i| run(i, None)).collect();
    for threads in [1, 3] {
        let slots = Arc::new(Slots::new(threads).unwrap());
        let (run, slots) = (&run, &slots);
        assert!(at_once((0..4).map(|i| move || run(i, Some(slots))).collect()) == alone, "{threads} slots");
    }
}
