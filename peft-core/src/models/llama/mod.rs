//! LLaMA (Touvron et al., 2023, arXiv:2302.13971): a pre-norm decoder with rotary positions, gated feed-forward networks and, from
//! version 2 on, fewer heads of keys and values than of queries.

mod rotary;
mod shape;

use burn::tensor::Tensor;

pub(crate) use rotary::Rotary;
pub(crate) use shape::{FAMILY, from_fields, named, places, to_config};
pub use shape::{Llama, Scaling};

use super::{Beside, Frame, Hidden};
use crate::ops::{attention::split, gated};
use crate::{Attention, Error, Mask, Part, Result, Sequence, Site, Stack};

/// Embeddings, layers, the last normalization.
pub(crate) fn forward(frame: &Frame<'_>, llama: &Llama) -> Result<Hidden> {
    let shape = &*frame.base.shape;
    let words = frame.held_table(frame.weight(shape.words()));
    let hidden = frame.rows(shape.words(), &words, frame.batch.ids.clone(), llama.padding);
    let mask = Mask { causal: Some(0), ..frame.batch.mask() };
    let x = Sequence { hidden, mask, prompt: 0, offset: 0, past: frame.past() };
    let x = frame.hooks.embed(Stack::Decoder, x);
    let (length, allowed) = (x.offset + x.past + x.hidden.dims()[1], shape.max_length());
    if length > allowed {
        return Err(Error::TooLong { length, allowed });
    }
    let mut x = frame.follow(x);
    let rotary = Beside::Rotary(Box::new(Rotary::new(shape, llama, &x)));
    for layer in 0..shape.layers {
        x = frame.layer(Site::decoder(layer, Part::Layer), x, &rotary);
    }
    frame.finish(&x);
    let states = frame.norm(Site::decoder(0, Part::NormFinal), x.hidden);
    Ok(Hidden { states, prompt: x.prompt, pooled: None, words: frame.vocabulary(words) })
}

/// h = x + Attention(N(x)); y = h + FFN(N(h)).
pub(super) fn decoder_layer(frame: &Frame<'_>, rotary: &Rotary, layer: usize, x: Sequence) -> Sequence {
    let at = |part| Site::decoder(layer, part);
    let attention = |x| self_attention(frame, rotary, layer, x);
    let x = frame.residual(at(Part::SelfAttention), x, &attention);
    frame.residual(at(Part::FeedForward), x, &|x| feed_forward(frame, layer, x))
}

fn self_attention(frame: &Frame<'_>, rotary: &Rotary, layer: usize, x: Sequence) -> Tensor<3> {
    let (at, shape) = (|part| Site::decoder(layer, part), &*frame.base.shape);
    let input = frame.norm(at(Part::NormAttention), x.hidden);
    let project = |part, heads| split(frame.linear(at(part), input.clone()), heads);
    let query = rotary.turn(project(Part::Query, shape.heads));
    let key = rotary.turn(project(Part::Key, shape.kv_heads()));
    let (key, value) = frame.remember(at(Part::SelfAttention), key, project(Part::Value, shape.kv_heads()));
    let attention = Attention { input, query, key, value, mask: x.mask };
    let context = frame.attend(at(Part::SelfAttention), attention, true);
    frame.linear(at(Part::Output), context)
}

/// (SiLU(x Wg) * x Wu) Wd.
fn feed_forward(frame: &Frame<'_>, layer: usize, x: Sequence) -> Tensor<3> {
    let at = |part| Site::decoder(layer, part);
    let x = frame.norm(at(Part::NormFeedForward), x.hidden);
    let gate = frame.linear(at(Part::Gate), x.clone());
    frame.linear(at(Part::Down), gated(gate, frame.linear(at(Part::Up), x)))
}
