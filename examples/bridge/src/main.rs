//! LoRA on a Transformer of burn's own, which knows nothing of this library. `cargo run`
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use peft_core::{random::Random, train::Optim, view::trainable};
use peft_reparam::bridge::{LoraForm, Reparameterize};

fn main() -> peft_core::Result<()> {
    let device = peft_core::device("flex")?.autodiff();
    let model: TransformerEncoder = TransformerEncoderConfig::new(16, 32, 2, 2).with_dropout(0.0).init(&device);
    // Frozen but for the factors. `KronForm` and `SaidForm` go the same way.
    let form = LoraForm::new(4, 8.0)?;
    let mut model = Reparameterize::new(form, r"mha\.(query|value)\.weight", 0)?.apply(model)?;
    println!("{} trainable elements", trainable(&model));
    let (input, target) = (random("input", &device), random("target", &device) * 0.1);
    let mut optim = Optim::new(AdamWConfig::new().build());
    for step in 0..=50 {
        let output = model.forward(TransformerEncoderInput::new(input.clone()));
        let loss = (output - target.clone()).powf_scalar(2.0).mean();
        if step % 25 == 0 {
            println!("step {step}: loss {:.4}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optim.step(model, gradients, |_| 1e-2);
    }
    Ok(())
}

fn random(name: &str, device: &Device) -> Tensor<3> {
    Random::new(0, name).normal_tensor([8, 6, 16], 1.0, device)
}
