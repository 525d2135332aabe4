//! Two families at once. peft-hybrid has no method yet; a tuple of adapters already composes: soft prompts around LoRA.
use peft_additive::PromptTuningConfig;
use peft_core::{Head, Method, Trained, data::Labelled, io::Pretrained};
use peft_core::train::{TrainConfig, Trainer, Workers, evaluate, predict};
use peft_reparam::LoraConfig;

fn main() -> peft_core::Result<()> {
    let model = std::env::args().nth(1).unwrap_or("shape:roberta-tiny".into()); // random weights, for a first try
    let model = Pretrained::open(&model, &peft_core::device("flex")?)?; // frozen, shared, never copied
    let (train, test) = Labelled::open("../tokens.jsonl".as_ref())?.read()?.split(0.25, 0);
    let (train, test) = (train.prepare(&model, 128)?.examples, test.prepare(&model, 128)?.examples);
    let prompts = PromptTuningConfig::new(4).init(&model.base, 0)?;
    let lora = LoraConfig::new(4).init(&model.base, 0)?;
    let both = Trained::new((prompts, lora), Head::classifier(&model.base, 2, 0))?; // the first is the outer one
    let trainer = Trainer::new(TrainConfig::new(1e-2).with_steps(48).with_batch_size(8));
    let (both, base) = trainer.run(&model.base, both, &train, None, &mut ())?;
    println!("{}", evaluate(&predict(&base, &both, &test, &Workers::new(2)?)?, &test)?);
    Ok(())
}
