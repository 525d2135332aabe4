//! Logits of many examples, and what they are worth.

use std::fmt;

use burn::module::Module;

use super::metrics::{accuracy, f1, matthews, pearson, spearman};
use super::micro::Workers;
use crate::loss::targets;
use crate::{Base, Error, Example, Label, Result, Trained, Tuner};

/// The logits of one example.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Row after row.
    pub values: Vec<f32>,
    /// `[classes]` from a classifier, `[tokens, vocab]` from a head for words.
    pub dims: Vec<usize>,
}

/// The logits of each example, in order. Every example is run alone, so that its bits depend on nothing else.
pub fn predict<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    examples: &[Example],
    workers: &Workers,
) -> Result<Vec<Logits>> {
    let trained = trained.valid();
    if let Some((base, trained)) = trained.rewritten(base, None)? {
        return predict(&base, &trained, examples, workers);
    }
    let one = |i: usize| {
        let logits = trained.logits(base, &base.batch(&[&examples[i]])?)?;
        let [_, rows, outputs] = logits.dims();
        let dims = if trained.head.outputs().is_some() { vec![outputs] } else { vec![rows, outputs] };
        let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
        match values.iter().all(|x| x.is_finite()) {
            true => Ok(Logits { values, dims }),
            false => {
                Err(Error::Check { what: "prediction", detail: format!("example {i} has logits that are not finite") })
            }
        }
    };
    let mut all = Vec::with_capacity(examples.len());
    workers.run(examples.len(), one, |logits| all.push(logits))?;
    Ok(all)
}

/// Metrics of a labelled set, by name: `accuracy`, `f1` and `matthews` for classes (the last two for two classes only),
/// `pearson` and `spearman` for values; and the mean `loss`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub Vec<(&'static str, f64)>);

impl Metrics {
    /// A metric by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name} {value:.4}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// Metrics of what is trained on labelled examples: those of [`evaluate`], or for words the mean `loss` of a word.
pub fn measure<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    examples: &[Example],
    workers: &Workers,
) -> Result<Metrics> {
    if trained.head.outputs().is_some() {
        return evaluate(&predict(base, trained, examples, workers)?, examples);
    }
    let trained = trained.valid();
    if let Some((base, trained)) = trained.rewritten(base, None)? {
        return measure(&base, &trained, examples, workers);
    }
    let labels = labels(examples)?;
    let count = targets(labels.iter().copied(), trained.head.ahead(base.shape()));
    if count == 0 {
        return Err(Error::config("labels", "no word that counts", "at least one"));
    }
    let one = |i: usize| {
        let loss = trained.loss(base, &base.batch(&[&examples[i]])?, &[labels[i]])?;
        Ok(f64::from(loss.into_scalar::<f32>()))
    };
    let mut sum = 0.0;
    workers.run(examples.len(), one, |loss| sum += loss)?;
    Ok(Metrics(vec![("loss", sum / count as f64)]))
}

fn labels(examples: &[Example]) -> Result<Vec<&Label>> {
    let missing = || Error::config("label", "nothing", "a label for every example that is evaluated");
    examples.iter().map(|e| e.label.as_ref().ok_or_else(missing)).collect()
}

/// Compares logits with the labels of their examples.
pub fn evaluate(logits: &[Logits], examples: &[Example]) -> Result<Metrics> {
    let labels = labels(examples)?;
    let class = |l: &&Label| match l {
        Label::Class(class) => Some(*class),
        Label::Value(_) | Label::Words(_) => None,
    };
    if let Some(gold) = labels.iter().map(class).collect::<Option<Vec<usize>>>() {
        let found: Vec<usize> = logits.iter().map(|l| argmax(&l.values)).collect();
        let losses = logits.iter().zip(&gold).map(|(l, gold)| cross_entropy(&l.values, *gold));
        let mut metrics = vec![("accuracy", accuracy(&found, &gold))];
        if logits.iter().all(|l| l.dims == [2]) {
            metrics.extend([("f1", f1(&found, &gold)), ("matthews", matthews(&found, &gold))]);
        }
        metrics.push(("loss", mean(losses, gold.len())));
        return Ok(Metrics(metrics));
    }
    let value = |l: &&Label| match l {
        Label::Value(value) => Ok(f64::from(*value)),
        other => Err(Error::config("label", format!("{other:?}"), "only classes or only values")),
    };
    let gold = labels.iter().map(value).collect::<Result<Vec<f64>>>()?;
    let found: Vec<f64> = logits.iter().map(|l| f64::from(l.values[0])).collect();
    let losses = found.iter().zip(&gold).map(|(x, y)| (x - y).powi(2));
    Ok(Metrics(vec![
        ("pearson", pearson(&found, &gold)),
        ("spearman", spearman(&found, &gold)),
        ("loss", mean(losses, gold.len())),
    ]))
}

/// The index of the largest number, the first of equal ones.
pub fn argmax(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// The logarithm of the sum of e^x, which a logit exceeds by the logarithm of its probability.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits[argmax(logits)]);
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    largest + sum.ln()
}

fn cross_entropy(logits: &[f32], gold: usize) -> f64 {
    logits.get(gold).map_or(f64::INFINITY, |x| log_sum_exp(logits) - f64::from(*x))
}

fn mean(values: impl Iterator<Item = f64>, n: usize) -> f64 {
    values.sum::<f64>() / n as f64
}
