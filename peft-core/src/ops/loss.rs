//! Task losses, summed over what is predicted: the trainer divides by the number of it in the whole batch.

use std::borrow::Borrow;
use std::sync::Arc;

use burn::tensor::{Bool, Float, Int, Tensor, TensorData, activation};

use crate::transfer::send;
use crate::{Error, Label, Result};

/// The word of a [`Label::Words`] that is not predicted, as in torch.
pub const IGNORED: i32 = -100;

/// How many predictions some labels ask for: one each, or one for each word or token that counts. The first `ahead` words are not
/// predicted, see [`Head::ahead`](crate::Head::ahead).
pub fn targets<'a>(labels: impl IntoIterator<Item = &'a Label>, ahead: usize) -> usize {
    let count = |label: &Label| match label {
        Label::Words(words) => words.iter().skip(ahead).filter(|word| **word != IGNORED).count(),
        Label::Tags(tags) => tags.iter().filter(|tag| **tag != IGNORED).count(),
        Label::Class(_) | Label::Value(_) | Label::Answer(_) => 1,
    };
    labels.into_iter().map(count).sum()
}

/// The summed loss of logits `[batch, 1, outputs]`: cross-entropy for classes, squared error for values (one output).
pub fn task_loss(logits: Tensor<3>, labels: &[&Label]) -> Result<Tensor<1>> {
    let [batch, _, outputs] = logits.dims();
    let device = logits.device();
    let wrong = |label: &Label, expected: String| Error::config("label", format!("{label:?}"), expected);
    match labels.first() {
        Some(Label::Class(_)) => {
            let class = |label: &&Label| match label {
                Label::Class(class) if *class < outputs => Ok(*class as i32),
                other => Err(wrong(other, format!("a class from 0 to {}", outputs - 1))),
            };
            let classes = labels.iter().map(class).collect::<Result<Vec<_>>>()?;
            Ok(cross_entropy(logits.reshape([batch, outputs]), classes).sum())
        }
        Some(Label::Value(_)) if outputs == 1 => {
            let value = |label: &&Label| match label {
                Label::Value(value) => Ok(*value),
                other => Err(wrong(other, "a number, as the first label of the batch".into())),
            };
            let values = labels.iter().map(value).collect::<Result<Vec<_>>>()?;
            let values = send::<2, Float>(TensorData::new(values, [batch, 1]), &device);
            Ok((logits.reshape([batch, 1]) - values).powi_scalar(2).sum())
        }
        Some(Label::Value(_)) => Err(Error::config("outputs", outputs, "1 for labels that are numbers")),
        Some(label @ (Label::Words(_) | Label::Tags(_) | Label::Answer(_))) => {
            Err(wrong(label, "a class or a value: this head gives one row of logits".into()))
        }
        None => Err(Error::config("labels", "none", "a label for each sequence")),
    }
}

/// The loss of logits `[batch, tokens, 2]`: of each sequence the mean cross-entropy of its answer's first and last token among all that are
/// no padding (`[batch, tokens]`; in transformers padding counts too), summed.
pub fn answer_loss(logits: Tensor<3>, padding: Option<&Tensor<2, Bool>>, labels: &[&Label]) -> Result<Tensor<1>> {
    let [batch, tokens, _] = logits.dims();
    let answer = |label: &&Label| match label {
        Label::Answer(answer) if answer.tokens.iter().all(|token| *token < tokens) => Ok(answer.tokens),
        other => Err(Error::config("label", format!("{other:?}"), format!("an answer within {tokens} tokens"))),
    };
    let answers = labels.iter().map(answer).collect::<Result<Vec<_>>>()?;
    let side = |side: usize| {
        let logits = logits.clone().narrow(2, side, 1).reshape([batch, tokens]);
        let logits =
            padding.iter().fold(logits, |logits, padding| logits.mask_fill((*padding).clone(), f32::MIN / 2.0));
        cross_entropy(logits, answers.iter().map(|tokens| tokens[side] as i32).collect()).sum()
    };
    Ok((side(0) + side(1)) * 0.5)
}

/// The summed cross-entropy of logits `[batch, tokens, classes]` at the tokens that have a class.
pub fn token_loss(logits: Tensor<3>, labels: &[&Label]) -> Result<Tensor<1>> {
    let [batch, tokens, classes] = logits.dims();
    let (rows, found) = tags(labels, tokens, classes)?;
    if rows.is_empty() {
        return Ok(logits.sum() * 0.0);
    }
    let rows = send::<1, Int>(TensorData::new(rows, [found.len()]), &logits.device());
    Ok(cross_entropy(logits.reshape([batch * tokens, classes]).select(0, rows), found).sum())
}

/// The rows, of `tokens` for each sequence, that have a class, and these classes.
pub(crate) fn tags(labels: &[impl Borrow<Label>], tokens: usize, classes: usize) -> Result<(Vec<i32>, Vec<i32>)> {
    let tags = |label: &Label| if let Label::Tags(tags) = label { Some(tags.clone()) } else { None };
    targets_of(labels, tags, ("classes of tokens", classes), tokens, 0)
}

/// The rows, of `tokens` for each sequence, at which words are predicted, `ahead` of their places, and these words.
pub(crate) fn words(
    labels: &[impl Borrow<Label>],
    tokens: usize,
    vocab: usize,
    ahead: usize,
) -> Result<(Vec<i32>, Vec<i32>)> {
    let words = |label: &Label| if let Label::Words(words) = label { Some(words.clone()) } else { None };
    targets_of(labels, words, ("words", vocab), tokens, ahead)
}

/// The rows at which something below a limit is predicted, and what it is; `list` takes it from a label.
fn targets_of(
    labels: &[impl Borrow<Label>],
    list: impl Fn(&Label) -> Option<Arc<[i32]>>,
    (what, limit): (&str, usize),
    tokens: usize,
    ahead: usize,
) -> Result<(Vec<i32>, Vec<i32>)> {
    let (mut rows, mut found) = (Vec::new(), Vec::new());
    for (i, label) in labels.iter().enumerate() {
        let label = label.borrow();
        let list = list(label).filter(|list| list.len() <= tokens).ok_or_else(|| {
            Error::config("label", format!("{label:?}"), format!("{what} of at most {tokens} tokens"))
        })?;
        for (token, target) in list.iter().enumerate().skip(ahead).filter(|(_, target)| **target != IGNORED) {
            if !(0..limit as i32).contains(target) {
                return Err(Error::config("label", target, format!("{what} below {limit}, or {IGNORED} for none")));
            }
            rows.push((i * tokens + token - ahead) as i32);
            found.push(*target);
        }
    }
    Ok((rows, found))
}

/// -log softmax(logits) of the given class of each row.
pub(crate) fn cross_entropy(logits: Tensor<2>, classes: Vec<i32>) -> Tensor<1> {
    let rows = classes.len();
    let classes = send::<2, Int>(TensorData::new(classes, [rows, 1]), &logits.device());
    activation::log_softmax(logits, 1).gather(1, classes).reshape([rows]).neg()
}

/// (KL(p || q) + KL(q || p)) / 2 of the rows of logits `[predictions, outputs]`, summed, each with its first argument held fixed.
pub fn divergence(p: Tensor<2>, q: Tensor<2>) -> Tensor<1> {
    (kl(p.clone(), q.clone()) + kl(q, p)) * 0.5
}

/// KL(p || q) of the rows of logits `[predictions, outputs]`, summed, with p held fixed.
pub fn kl(p: Tensor<2>, q: Tensor<2>) -> Tensor<1> {
    let [p, q] = [p.detach(), q].map(|logits| activation::log_softmax(logits, 1));
    (p.clone().exp() * (p - q)).sum()
}

/// The logarithm of the sum of e^x, which a logit exceeds by the logarithm of its probability.
pub fn log_sum_exp<T: Copy + Into<f64>>(terms: &[T]) -> f64 {
    let terms = terms.iter().map(|x| (*x).into());
    let largest = terms.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + terms.map(|x| (x - largest).exp()).sum::<f64>().ln()
}
