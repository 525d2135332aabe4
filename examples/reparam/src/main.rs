//! LoRA on a frozen RoBERTa: train, evaluate, save, merge. `cargo run -- MODEL_DIR OUTPUT_DIR`
use peft_core::{
    Part,
    data::Labelled,
    io::Pretrained,
    train::{TrainConfig, Trainer},
};
use peft_reparam::LoraConfig;
use std::{env::args, path::PathBuf};

fn main() -> peft_core::Result<()> {
    let model = args().nth(1).unwrap_or("shape:roberta-tiny".into()); // random weights, for a first try
    let output = PathBuf::from(args().nth(2).unwrap_or("out".into()));
    let model = Pretrained::open(&model, &peft_core::device("flex")?)?; // frozen, shared, never copied
    let (train, test) = Labelled::open("../tokens.jsonl".as_ref())?.read()?.split(0.25, 0);
    let (train, test) = (train.prepare(&model, 128)?, test.prepare(&model, 128)?);
    let lora = LoraConfig::new(4).with_alpha(8.0).with_sites(Part::Query | Part::Value);
    let tuned = Trainer::new(TrainConfig::new(1e-2).with_epochs(8).with_batch_size(8)).fit(&model, lora, &train)?;
    println!("{:?} trainable elements (method, head): {}", tuned.trainable(), tuned.evaluate(&test)?);
    tuned.save(output.join("adapter"))?; // Hugging Face PEFT's layout
    let merged = tuned.merge(&test.examples, 1e-3)?; // an error if merging changes the logits by more
    println!("merged, with logits that differ by at most {:e}", merged.difference);
    merged.save(output.join("merged")) // loads in transformers
}
