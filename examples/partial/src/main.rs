//! BitFit beside the two baselines of every table: the head alone, and every weight. `cargo run -- MODEL_DIR OUTPUT_DIR`
use peft_core::{
    Method, Result,
    data::{Dataset, Labelled},
    io::Pretrained,
    train::{TrainConfig, Trainer, Tuned},
};
use peft_partial::{BitFitConfig, FullConfig, LinearProbeConfig};
use std::{env::args, path::PathBuf};

fn main() -> Result<()> {
    let model = args().nth(1).unwrap_or("shape:roberta-tiny".into()); // random weights, for a first try
    let output = PathBuf::from(args().nth(2).unwrap_or("out".into()));
    let model = Pretrained::open(&model, &peft_core::device("flex")?)?; // frozen, shared, never copied
    let (train, test) = Labelled::open("../tokens.jsonl".as_ref())?.read()?.split(0.25, 0);
    let data = (train.prepare(&model, 128)?, test.prepare(&model, 128)?);
    compare(&model, LinearProbeConfig::default(), &data)?;
    compare(&model, FullConfig::default(), &data)?;
    let tuned = compare(&model, BitFitConfig::new(), &data)?;
    tuned.save(output.join("adapter"))?;
    tuned.merge(&data.1.examples, 1e-3)?.save(output.join("merged"))
}

fn compare<'a>(model: &'a Pretrained, method: impl Method, data: &(Dataset, Dataset)) -> Result<Tuned<'a>> {
    let tuned = Trainer::new(TrainConfig::new(3e-3).with_epochs(8).with_batch_size(8)).fit(model, method, &data.0)?;
    println!("{}: {:?} trainable elements: {}", tuned.config.name(), tuned.trainable(), tuned.evaluate(&data.1)?);
    Ok(tuned)
}
