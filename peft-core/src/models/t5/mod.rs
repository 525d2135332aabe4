//! T5 (Raffel et al., 2020, arXiv:1910.10683): an encoder and a decoder, pre-norm, without biases, with positions relative in buckets
//! and attention scores that are not scaled. Version 1.1 has a gated GELU and a table of its own for logits.

mod shape;

use burn::tensor::{Int, Tensor, TensorData, activation};

pub use shape::T5;
pub(crate) use shape::{FAMILY, from_fields, named, places, to_config};

use super::{Beside, DECODER_WORDS, Frame, Hidden};
use crate::ops::attention::split;
use crate::transfer::send;
use crate::{Attention, Error, Mask, Part, Result, Sequence, Site, Stack};

/// Encoder and decoder.
pub(crate) fn forward(frame: &Frame<'_>, t5: &T5) -> Result<Hidden> {
    let words = frame.held_table(frame.weight(frame.base.shape.words()));
    let encoded = match frame.encoded() {
        Some(encoded) => encoded,
        None => {
            let hidden = frame.rows(frame.base.shape.words(), &words, frame.batch.ids.clone(), None);
            let x = Sequence { hidden, mask: frame.batch.mask(), prompt: 0, offset: 0, past: 0 };
            let x = stack(frame, t5, Stack::Encoder, x, &Beside::Nothing)?;
            let x = Sequence { hidden: frame.held(x.hidden), ..x };
            frame.keep_encoded(&x);
            x
        }
    };
    let ids = frame
        .batch
        .decoder
        .clone()
        .ok_or_else(|| Error::config("labels", "none", "a text to predict, as an encoder-decoder needs"))?;
    let hidden = frame.rows(DECODER_WORDS, &frame.decoder_words(&words), ids, None);
    let mask = Mask { causal: Some(0), ..Mask::default() };
    let x = Sequence { hidden, mask, prompt: 0, offset: 0, past: frame.past() };
    let x = frame.apart(|frame| stack(frame, t5, Stack::Decoder, x, &Beside::Encoded(Box::new(encoded))))?;
    Ok(Hidden { states: x.hidden, prompt: x.prompt, pooled: None, words: frame.vocabulary(words) })
}

/// Layers between dropouts, then the last normalization.
fn stack(frame: &Frame<'_>, t5: &T5, stack: Stack, x: Sequence, beside: &Beside) -> Result<Sequence> {
    let (shape, at) = (&*frame.base.shape, |part| Site { stack, layer: 0, part });
    let mut x = frame.hooks.embed(stack, x);
    let length = x.offset + x.past + x.hidden.dims()[1];
    if length > shape.positions {
        return Err(Error::TooLong { length, allowed: shape.positions });
    }
    x.hidden = frame.dropout(x.hidden, shape.dropout, at(Part::Words));
    if stack == Stack::Decoder {
        x = frame.follow(x);
    }
    x.mask.bias = Some(relative_positions(frame, t5, stack, &x));
    let layers = if stack == Stack::Encoder { shape.layers } else { t5.decoder_layers };
    for layer in 0..layers {
        x = frame.layer(Site { stack, layer, part: Part::Layer }, x, beside);
    }
    if stack == Stack::Decoder {
        frame.finish(&x);
    }
    let hidden = frame.norm(at(Part::NormFinal), x.hidden);
    Ok(Sequence { hidden: frame.dropout(hidden, shape.dropout, at(Part::NormFinal)), ..x })
}

/// What is added to the scores of every layer of a stack, `[1, heads, rows, columns]`. Columns begin with those of a prefix.
fn relative_positions(frame: &Frame<'_>, t5: &T5, stack: Stack, x: &Sequence) -> Tensor<4> {
    let site = Site { stack, layer: 0, part: Part::RelativePositions };
    let rows = x.hidden.dims()[1];
    let first = x.offset + x.past;
    let columns = first + rows;
    let bucket = |i: usize, j: usize| bucket(j as i64 - (first + i) as i64, t5, stack == Stack::Encoder) as i32;
    let buckets: Vec<i32> = (0..rows).flat_map(|i| (0..columns).map(move |j| bucket(i, j))).collect();
    let buckets = send::<2, Int>(TensorData::new(buckets, [rows, columns]), &frame.base.device);
    let bias = frame.rows(site, &frame.weight(site), buckets, None).permute([2, 0, 1]);
    // In the order of memory, once for all layers.
    bias.reshape([1, frame.base.shape.heads, rows, columns])
}

/// The bucket of a key's position minus a query's: near ones have their own, farther ones share by logarithm. A decoder looks back only.
fn bucket(relative: i64, t5: &T5, both_ways: bool) -> usize {
    let (mut buckets, mut first, mut distance) = (t5.buckets, 0, (-relative).max(0) as usize);
    if both_ways {
        buckets /= 2;
        first = if relative > 0 { buckets } else { 0 };
        distance = relative.unsigned_abs() as usize;
    }
    let exact = buckets / 2;
    if distance < exact {
        return first + distance;
    }
    // In f32 as the reference, whose rounding decides at the edges of buckets.
    let ratio = (distance as f32 / exact as f32).ln() / (t5.max_distance as f64 / exact as f64).ln() as f32;
    first + (exact + (ratio * (buckets - exact) as f32) as usize).min(buckets - 1)
}

/// h = x + SelfAttention(N(x)); in the decoder h = h + CrossAttention(N(h)); y = h + FFN(N(h)).
pub(super) fn one_layer(frame: &Frame<'_>, t5: &T5, layer: Site, x: Sequence, encoded: Option<&Sequence>) -> Sequence {
    let at = |part| Site { part, ..layer };
    let mut x = frame.residual(at(Part::SelfAttention), x, &|x| self_attention(frame, layer, x));
    if let Some(encoded) = encoded {
        x = frame.residual(at(Part::CrossAttention), x, &|x| cross_attention(frame, layer, x, encoded));
    }
    frame.residual(at(Part::FeedForward), x, &|x| feed_forward(frame, t5, layer, x))
}

fn self_attention(frame: &Frame<'_>, layer: Site, x: Sequence) -> Tensor<3> {
    let at = |part| Site { part, ..layer };
    let input = frame.norm(at(Part::NormAttention), x.hidden);
    let project = |part| split(frame.linear(at(part), input.clone()), frame.base.shape.heads);
    let (query, mut key, mut value) = (project(Part::Query), project(Part::Key), project(Part::Value));
    if layer.stack == Stack::Decoder {
        (key, value) = frame.remember(at(Part::SelfAttention), key, value);
    }
    let attention = Attention { input, query, key, value, mask: x.mask };
    let context = frame.attend(at(Part::SelfAttention), attention, false);
    frame.dropout(frame.linear(at(Part::Output), context), frame.base.shape.dropout, at(Part::Output))
}

fn cross_attention(frame: &Frame<'_>, layer: Site, x: Sequence, encoded: &Sequence) -> Tensor<3> {
    let at = |part| Site { part, ..layer };
    let input = frame.norm(at(Part::NormCrossAttention), x.hidden);
    let project = |part, x| split(frame.linear(at(part), x), frame.base.shape.heads);
    let query = project(Part::CrossQuery, input.clone());
    let (key, value) = frame.remember_once(at(Part::CrossAttention), || {
        (project(Part::CrossKey, encoded.hidden.clone()), project(Part::CrossValue, encoded.hidden.clone()))
    });
    let mask = Mask { padding: encoded.mask.padding.clone(), ..Mask::default() };
    let context = frame.attend(at(Part::CrossAttention), Attention { input, query, key, value, mask }, false);
    frame.dropout(frame.linear(at(Part::CrossOutput), context), frame.base.shape.dropout, at(Part::CrossOutput))
}

/// ReLU(x Wu) Wd, or (GELU(x Wg) * x Wu) Wd.
fn feed_forward(frame: &Frame<'_>, t5: &T5, layer: Site, x: Sequence) -> Tensor<3> {
    let (at, dropout) = (|part| Site { part, ..layer }, frame.base.shape.dropout);
    let x = frame.norm(at(Part::NormFeedForward), x.hidden);
    let inner = match t5.gated {
        true => {
            let gate = activation::gelu_approximate(frame.linear(at(Part::Gate), x.clone()));
            gate * frame.linear(at(Part::Up), x)
        }
        false => activation::relu(frame.linear(at(Part::Up), x)),
    };
    let output = frame.linear(at(Part::Down), frame.dropout(inner, dropout, at(Part::Up)));
    frame.dropout(output, dropout, at(Part::Down))
}
