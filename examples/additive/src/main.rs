//! (IA)3, and then soft prompts, on one frozen RoBERTa. `cargo run -- MODEL_DIR OUTPUT_DIR`
use peft_additive::{Ia3Config, PromptTuningConfig};
use peft_core::{
    data::Labelled,
    io::Pretrained,
    train::{TrainConfig, Trainer},
};
use std::{env::args, path::PathBuf};

fn main() -> peft_core::Result<()> {
    let model = args().nth(1).unwrap_or("shape:roberta-tiny".into()); // random weights, for a first try
    let output = PathBuf::from(args().nth(2).unwrap_or("out".into()));
    let model = Pretrained::open(&model, &peft_core::device("flex")?)?; // frozen, shared, never copied
    let (train, test) = Labelled::open("../tokens.jsonl".as_ref())?.read()?.split(0.25, 0);
    let (train, test) = (train.prepare(&model, 128)?, test.prepare(&model, 128)?);
    let trainer = Trainer::new(TrainConfig::new(1e-2).with_epochs(8).with_batch_size(8));
    let scaled = trainer.fit(&model, Ia3Config::default(), &train)?;
    println!("(IA)3: {:?} trainable elements: {}", scaled.trainable(), scaled.evaluate(&test)?);
    scaled.merge(&test.examples, 1e-3)?.save(output.join("merged"))?; // scales fold into the weights
    let prompted = trainer.fit(&model, PromptTuningConfig::new(4), &train)?;
    println!("prompts: {:?} trainable elements: {}", prompted.trainable(), prompted.evaluate(&test)?);
    prompted.save(output.join("adapter")) // prompts do not merge: they lengthen the sequence
}
