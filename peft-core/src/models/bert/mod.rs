//! BERT (Devlin et al., 2019, arXiv:1810.04805) and RoBERTa (Liu et al., 2019, arXiv:1907.11692): a post-LN encoder.

mod shape;

use burn::tensor::{Int, Tensor, activation};

pub(crate) use shape::{BERT, ROBERTA, from_fields, named, places, to_config};

use super::{Beside, Frame, Hidden};
use crate::ops::{attention::split, gelu};
use crate::{Attention, Error, Part, Result, Sequence, Site, Stack, Weight};

/// Embeddings, layers, and the pooler where there is one.
pub(crate) fn forward(frame: &Frame<'_>) -> Result<Hidden> {
    let words = frame.held_table(frame.weight(Site::encoder(0, Part::Words)));
    let mut x = embed(frame, words.clone())?;
    for layer in 0..frame.base.shape.layers {
        x = frame.layer(Site::encoder(layer, Part::Layer), x, &Beside::Nothing);
    }
    let pooled = frame.base.shape.pooler.then(|| {
        let first = x.hidden.clone().narrow(1, 0, 1);
        activation::tanh(frame.linear(Site::encoder(0, Part::Pooler), first)).squeeze_dim::<2>(1)
    });
    Ok(Hidden { states: x.hidden, prompt: x.prompt, pooled, words: frame.vocabulary(words) })
}

/// x = LN(word + position + type).
fn embed(frame: &Frame<'_>, words: Weight) -> Result<Sequence> {
    let (shape, batch) = (&*frame.base.shape, frame.batch);
    let [size, tokens] = batch.dims();
    let hidden = frame.rows(shape.words(), &words, batch.ids.clone(), None);
    let sequence = Sequence { hidden, mask: batch.mask(), prompt: 0, offset: 0, past: 0 };
    let x = frame.hooks.embed(Stack::Encoder, sequence);
    let length = x.offset + x.prompt + tokens;
    if length > shape.max_length() {
        return Err(Error::TooLong { length, allowed: shape.max_length() });
    }
    let rows = |part, ids| {
        let site = Site::encoder(0, part);
        frame.rows(site, &frame.weight(site), ids, None)
    };
    let hidden = x.hidden + rows(Part::Positions, position_ids(frame, x.prompt, x.offset));
    let type_ids = batch.types.clone().unwrap_or_else(|| Tensor::zeros([size, tokens], &frame.base.device));
    let type_ids = prepend(Tensor::zeros([size, x.prompt.max(1)], &frame.base.device), x.prompt, type_ids);
    let site = Site::encoder(0, Part::NormEmbedding);
    let hidden = frame.norm(site, hidden + rows(Part::Types, type_ids));
    Ok(Sequence { hidden: frame.dropout(hidden, shape.dropout, site), ..x })
}

/// Prompts first, then the tokens. RoBERTa counts only tokens that are not padding, which has the position before the first;
/// behind a prompt it counts all, since the reference then sees vectors instead of ids, and so it does without a padding token.
fn position_ids(frame: &Frame<'_>, prompt: usize, offset: usize) -> Tensor<2, Int> {
    let (shape, [size, tokens]) = (&*frame.base.shape, frame.batch.dims());
    let (first, offset) = (shape.first_position as i64, offset as i64);
    if first == 0 || prompt > 0 {
        let row =
            Tensor::<1, Int>::arange(first + offset..first + offset + (prompt + tokens) as i64, &frame.base.device);
        return row.unsqueeze::<2>().repeat_dim(0, size);
    }
    let real = frame.batch.ids.clone().not_equal_elem(shape.pad as i64).int();
    (real.clone().cumsum(1) + offset) * real + (first - 1)
}

/// The first `n` columns of `front` before `x`.
fn prepend(front: Tensor<2, Int>, n: usize, x: Tensor<2, Int>) -> Tensor<2, Int> {
    if n == 0 { x } else { Tensor::cat(vec![front.narrow(1, 0, n), x], 1) }
}

/// h = LN(x + Attention(x)); y = LN(h + FFN(h)).
pub(super) fn encoder_layer(frame: &Frame<'_>, layer: usize, x: Sequence) -> Sequence {
    let at = |part| Site::encoder(layer, part);
    let attention =
        frame.hooks.sublayer(frame, at(Part::SelfAttention), x.clone(), &|x| self_attention(frame, layer, x));
    let norm = |part, sum| frame.hooks.norm(at(part), sum, &|sum| frame.norm(at(part), sum));
    let hidden = norm(Part::NormAttention, x.hidden + attention);
    let x = Sequence { hidden, ..x };
    let output = frame.hooks.sublayer(frame, at(Part::FeedForward), x.clone(), &|x| feed_forward(frame, layer, x));
    Sequence { hidden: norm(Part::NormFeedForward, x.hidden + output), ..x }
}

fn self_attention(frame: &Frame<'_>, layer: usize, x: Sequence) -> Tensor<3> {
    let at = |part| Site::encoder(layer, part);
    let heads = frame.base.shape.heads;
    let project = |part| split(frame.linear(at(part), x.hidden.clone()), heads);
    let (query, key, value) = (project(Part::Query), project(Part::Key), project(Part::Value));
    let attention = Attention { input: x.hidden, query, key, value, mask: x.mask };
    let context = frame.attend(at(Part::SelfAttention), attention, true);
    let output = frame.linear(at(Part::Output), context);
    frame.dropout(output, frame.base.shape.dropout, at(Part::Output))
}

fn feed_forward(frame: &Frame<'_>, layer: usize, x: Sequence) -> Tensor<3> {
    let at = |part| Site::encoder(layer, part);
    let inner = gelu(frame.linear(at(Part::Up), x.hidden));
    let output = frame.linear(at(Part::Down), inner);
    frame.dropout(output, frame.base.shape.dropout, at(Part::Down))
}
