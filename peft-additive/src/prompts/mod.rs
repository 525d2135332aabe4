//! Soft prompt-based fine-tuning.

pub mod attempt;
pub mod mpt;
pub mod p_tuning;
pub mod prefix_tuning;
pub mod prompt_tuning;
pub mod spot;
pub mod teacher;
pub mod warp;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use peft_core::{Affine, Error, Hooks, Result, Sequence, Shape, Source, Stack, random::Random};
use serde_json::{Map, Value};

use prompt_tuning::PromptTuningConfig;

/// Rows in front of a sequence during one run.
struct Prompt {
    /// `[stacks * virtual tokens, hidden]`. Where there are two stacks, PEFT keeps rows for the decoder behind those for the encoder,
    /// and never uses them.
    rows: Tensor<2>,
    stacks: usize,
}

impl Hooks for Prompt {
    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        // A text that goes on has its prompt already.
        if x.past > 0 || self.stacks == 2 && stack == Stack::Decoder {
            return x;
        }
        let ([rows, hidden], [batch, _, _]) = (self.rows.dims(), x.hidden.dims());
        let n = rows / self.stacks;
        in_front(self.rows.clone().narrow(0, 0, n).unsqueeze::<3>().expand([batch, n, hidden]), x)
    }
}

/// Virtual tokens `[batch, virtual tokens, hidden]` in front of sequences.
fn in_front(rows: Tensor<3>, x: Sequence) -> Sequence {
    let n = rows.dims()[1];
    Sequence { hidden: Tensor::cat(vec![rows, x.hidden], 1), mask: x.mask.prepend(n), prompt: x.prompt + n, ..x }
}

/// The virtual tokens of a prompt from which a method starts, which must have this shape.
fn source_rows(source: &Source, expected: [usize; 2]) -> Result<Tensor<2>> {
    let rows = source.tuner::<PromptTuningConfig>()?.rows();
    let rows = if rows.is_autodiff() { rows.inner() } else { rows };
    if rows.dims() != expected {
        let found = format!("{}, of shape {:?}", source.name, rows.dims());
        return Err(Error::config("sources", found, format!("prompts of shape {expected:?}")));
    }
    Ok(rows)
}

/// What PEFT writes of the model beside the settings of a prompt: how many layers, heads and numbers in a row it is for.
fn derived(shape: &Shape, layers: usize, heads: usize, width: usize) -> Map<String, Value> {
    let fields = [
        ("token_dim", width),
        ("num_layers", layers),
        ("num_attention_heads", heads),
        ("num_transformer_submodules", shape.stacks().len()),
    ];
    fields.into_iter().map(|(key, value)| (key.to_string(), value.into())).collect()
}

/// The same for vectors as wide as the model.
fn derived_of_rows(shape: &Shape) -> Map<String, Value> {
    derived(shape, shape.layers, shape.heads, shape.hidden)
}

/// As torch starts a linear map (and, with the width of its state as `fan`, an LSTM): weight and bias uniform within
/// `1 / sqrt(fan)`.
pub(crate) fn torch_linear([rows, columns]: [usize; 2], fan: usize, seed: u64, name: &str, device: &Device) -> Affine {
    let bound = 1.0 / (fan as f64).sqrt();
    let random = |leaf| Random::new(seed, &format!("{name}.{leaf}"));
    Affine {
        weight: Param::from_tensor(random("weight").uniform_tensor([rows, columns], -bound, bound, device)),
        bias: Param::from_tensor(random("bias").uniform_tensor([columns], -bound, bound, device)),
    }
}

/// Virtual tokens take up positions of the model; at least one must be left.
fn check_length(num_virtual_tokens: usize, shape: &Shape) -> Result<()> {
    let most = shape.max_length() - 1;
    if (1..=most).contains(&num_virtual_tokens) {
        Ok(())
    } else {
        let expected = format!("1 to {most}: the model has {} positions, virtual tokens included", most + 1);
        Err(Error::config("num_virtual_tokens", num_virtual_tokens, expected))
    }
}
