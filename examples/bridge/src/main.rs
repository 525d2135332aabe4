//! KronA on a Transformer of burn's own, which knows nothing of this library: trained, saved, loaded and merged. `cargo run`
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor};
use peft_core::{Applied, On, random::Random, train::Optim};
use peft_reparam::KronaConfig;

fn main() -> peft_core::Result<()> {
    let device = peft_core::device("flex")?.autodiff();
    let model: TransformerEncoder = TransformerEncoderConfig::new(16, 32, 2, 2).with_dropout(0.0).init(&device);
    // Any method that works on weights goes the same way.
    let config = KronaConfig::new().on(r"mha\.(query|value)")?;
    let mut applied = Applied::new(model.clone(), config, 0)?.start(50)?;
    println!("{} trainable elements", applied.trainable());
    let (input, target) = (random("input", &device), random("target", &device) * 0.1);
    let loss = |model: &TransformerEncoder| {
        let output = model.forward(TransformerEncoderInput::new(input.clone()));
        (output - target.clone()).powf_scalar(2.0).mean()
    };
    println!("before: loss {:.4}", loss(&applied.module()?).into_scalar::<f32>());
    let mut optim = Optim::new(AdamWConfig::new().build());
    for _ in 0..50 {
        let loss = loss(&applied.draw()?);
        applied = applied.step(loss, &mut optim, 1e-2)?;
    }
    let dir = std::env::temp_dir().join(format!("krona-{}", std::process::id()));
    applied.finish()?.save(&dir)?;
    let merged = Applied::<_, KronaConfig>::load(model, &dir)?.merge()?;
    println!("saved in {}, loaded and merged: loss {:.4}", dir.display(), loss(&merged).into_scalar::<f32>());
    Ok(())
}

fn random(name: &str, device: &Device) -> Tensor<3> {
    Random::new(0, name).normal_tensor([8, 6, 16], 1.0, device)
}
