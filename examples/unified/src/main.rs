//! SparseAdapter: adapters of which half is pruned before training. `cargo run -- MODEL_DIR OUTPUT_DIR`
use peft_additive::SequentialConfig;
use peft_core::{
    data::Labelled,
    io::Pretrained,
    train::{TrainConfig, Trainer},
};
use peft_unified::{Scorer, SparseConfig};
use std::{env::args, path::PathBuf};

fn main() -> peft_core::Result<()> {
    let model = args().nth(1).unwrap_or("shape:roberta-tiny".into()); // random weights, for a first try
    let output = PathBuf::from(args().nth(2).unwrap_or("out".into()));
    let model = Pretrained::open(&model, &peft_core::device("flex")?)?; // frozen, shared, never copied
    let (train, test) = Labelled::open("../tokens.jsonl".as_ref())?.read()?.split(0.25, 0);
    let (train, test) = (train.prepare(&model, 128)?, test.prepare(&model, 128)?);
    let sparse = SparseConfig::large(SequentialConfig::houlsby(4), 0.5, Scorer::Magnitude); // twice as wide, as many numbers
    let tuned = Trainer::new(TrainConfig::new(1e-2).with_epochs(8).with_batch_size(8)).fit(&model, sparse, &train)?;
    println!("{:?} trainable elements (method, head): {}", tuned.trainable(), tuned.evaluate(&test)?);
    tuned.save(output.join("adapter")) // zeros where nothing is left, and the mask as bits
}
