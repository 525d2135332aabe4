//! Logits of many examples, and what they are worth.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::TensorData;

use super::entities::entity_scores;
use super::metrics::{accuracy, f1, matthews, pearson, spearman};
use super::micro::Workers;
use crate::answer::{Answer, exact_and_f1};
use crate::data::Names;
use crate::loss::{IGNORED, log_sum_exp, targets};
use crate::transfer::{read, read_all};
use crate::{Base, Error, Example, Label, Purpose, Result, TaskLabels, Trained, Tuner};

/// The logits of one example.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Row after row.
    pub values: Vec<f32>,
    /// `[classes]` from a classifier of texts, `[tokens, classes]` or `[tokens, vocab]` from a head for tokens or words, `[tokens, hidden]`
    /// without a head.
    pub dims: Vec<usize>,
}

/// The largest difference of a logit, NaN if one is NaN.
pub fn farthest(some: &[Logits], others: &[Logits]) -> f32 {
    let both = some.iter().zip(others).flat_map(|(a, b)| a.values.iter().zip(&b.values));
    let differences = both.map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() });
    // A maximum of floating-point numbers passes over NaN.
    differences.fold(0.0, |most, one| if one > most || one.is_nan() { one } else { most })
}

/// The logits of each example, in order. Every example is run alone, so that its bits depend on nothing else.
pub fn predict<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    examples: &[Example],
    workers: &Workers,
) -> Result<Vec<Logits>> {
    let trained = trained.valid();
    if let Some(view) = trained.view(base, None)? {
        return predict(base, &view, examples, workers);
    }
    let one = |i: usize| logits(base, &trained, &examples[i], i);
    let mut all = Vec::with_capacity(examples.len());
    workers.run(examples.len(), one, |logits| all.push(logits))?;
    Ok(all)
}

/// The logits of example `i`, run alone.
pub(super) fn logits<T: Tuner>(base: &Base, trained: &Trained<T>, example: &Example, i: usize) -> Result<Logits> {
    let logits = trained.logits(base, &base.batch(&[example])?)?;
    let [_, rows, outputs] = logits.dims();
    let dims = if trained.head.is_of_texts() { vec![outputs] } else { vec![rows, outputs] };
    finite(i, read(logits), dims)
}

/// What was computed of example `i`.
fn finite(i: usize, data: TensorData, dims: Vec<usize>) -> Result<Logits> {
    let values: Vec<f32> = data.iter::<f32>().collect();
    if values.iter().all(|x| x.is_finite()) {
        return Ok(Logits { values, dims });
    }
    Err(Error::Check { what: "prediction", detail: format!("example {i} has logits or states that are not finite") })
}

/// What a model without a head gives of an example.
#[derive(Clone, Debug, PartialEq)]
pub struct TextStates {
    /// The states of its tokens, `[tokens, hidden]`.
    pub states: Logits,
    /// The pooler's output `[hidden]`, if the model has one.
    pub pooled: Option<Logits>,
}

/// The states of each example, in order, each run alone as by [`predict`].
pub fn encode<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    examples: &[Example],
    workers: &Workers,
) -> Result<Vec<TextStates>> {
    let trained = trained.valid();
    if let Some(view) = trained.view(base, None)? {
        return encode(base, &view, examples, workers);
    }
    let one = |i: usize| {
        let hidden = trained.run(base, &base.batch(&[&examples[i]])?)?;
        let states = hidden.tokens();
        let [_, rows, width] = states.dims();
        let pooled = hidden.pooled.map(|pooled| finite(i, read(pooled), vec![width])).transpose()?;
        Ok(TextStates { states: finite(i, read(states), vec![rows, width])?, pooled })
    };
    let mut all = Vec::with_capacity(examples.len());
    workers.run(examples.len(), one, |encoded| all.push(encoded))?;
    Ok(all)
}

/// Metrics of a labelled set, by name: `accuracy`, `f1` and `matthews` for classes (the last two for two classes only),
/// `pearson` and `spearman` for values; for classes of tokens their `accuracy`, and `precision`, `recall` and `f1` of entities; for
/// answers `exact_match` and `f1` of their words; and the mean `loss`. Of several tasks each has its own, `TASK.accuracy` and so on, beside
/// the mean of the tasks' `loss` and, as `average`, of the first metric of each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub Vec<(Cow<'static, str>, f64)>);

/// The names of the metrics of a task, in its labels' words.
fn known<'a>(examples: impl Iterator<Item = &'a Example> + Clone) -> &'static [&'static str] {
    let two = |example: &Example| !matches!(example.label, Some(Label::Class(class)) if class > 1);
    match examples.clone().next().and_then(|example| example.label.as_ref()) {
        Some(Label::Class(_)) if examples.clone().all(two) => &["accuracy", "f1", "matthews", "loss"],
        Some(Label::Class(_)) => &["accuracy", "loss"],
        Some(Label::Value(_)) => &["pearson", "spearman", "loss"],
        Some(Label::Tags(_)) => &["accuracy", "precision", "recall", "f1", "loss"],
        Some(Label::Answer(_)) => &["exact_match", "f1", "loss"],
        Some(Label::Words(_)) | None => &["loss"],
    }
}

/// The names of all metrics that [`measure`] gives of labelled examples.
pub(super) fn metric_names(examples: &[Example], names: Names<'_>) -> Vec<String> {
    let own = |i: usize| known(examples.iter().filter(move |example| example.task == i));
    let of_task = |(i, task): (usize, &TaskLabels)| {
        own(i).iter().map(|metric| format!("{}.{metric}", task.name)).collect::<Vec<_>>()
    };
    match names.tasks {
        [] => known(examples.iter()).iter().map(|name| name.to_string()).collect(),
        tasks => ["average", "loss"]
            .map(String::from)
            .into_iter()
            .chain(tasks.iter().enumerate().flat_map(of_task))
            .collect(),
    }
}

impl Metrics {
    fn of(named: impl IntoIterator<Item = (&'static str, f64)>) -> Self {
        Metrics(named.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }

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

/// Metrics of what is trained on labelled examples, whose classes and tasks have these names: those of [`evaluate`], or for words the mean
/// `loss` of a word.
pub fn measure<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    (examples, names): (&[Example], Names<'_>),
    workers: &Workers,
) -> Result<Metrics> {
    let trained = trained.valid();
    if let Some(view) = trained.view(base, None)? {
        return measure(base, &view, (examples, names), workers);
    }
    if !names.tasks.is_empty() {
        return measure_tasks(base, &trained, (examples, names.tasks), workers);
    }
    let judged = matches!(trained.head.purpose(), Purpose::Tokens | Purpose::Answers) || trained.head.is_of_texts();
    if judged {
        return evaluate(&predict(base, &trained, examples, workers)?, examples, names.classes);
    }
    let labels = labels(examples)?;
    let count = targets(labels.iter().copied(), trained.head.ahead(base.shape()));
    if count == 0 {
        return Err(Error::config("labels", "no word that counts", "at least one"));
    }
    let one = |i: usize| {
        let loss = trained.loss(base, &base.batch(&[&examples[i]])?, &[labels[i]])?;
        Ok(f64::from(read_all(vec![loss])[0]))
    };
    let mut sum = 0.0;
    workers.run(examples.len(), one, |loss| sum += loss)?;
    Ok(Metrics(vec![("loss".into(), sum / count as f64)]))
}

/// The same of several tasks; one without examples has no metrics.
fn measure_tasks<T: Tuner>(
    base: &Base,
    trained: &Trained<T>,
    (examples, tasks): (&[Example], &[TaskLabels]),
    workers: &Workers,
) -> Result<Metrics> {
    let (mut all, mut firsts, mut losses) = (vec![], vec![], vec![]);
    for (i, task) in tasks.iter().enumerate() {
        let own: Vec<Example> = examples.iter().filter(|example| example.task == i).cloned().collect();
        if own.is_empty() {
            continue;
        }
        let names = Names { classes: &task.classes, tasks: &[] };
        let Metrics(metrics) = measure(base, trained, (&own, names), workers)?;
        firsts.extend(metrics.first().filter(|(name, _)| name != "loss").map(|(_, value)| *value));
        losses.extend(metrics.iter().filter(|(name, _)| name == "loss").map(|(_, value)| *value));
        all.extend(metrics.into_iter().map(|(name, value)| (format!("{}.{name}", task.name).into(), value)));
    }
    let average = |values: &[f64]| mean(values.iter().copied(), values.len());
    let first = (!firsts.is_empty()).then(|| ("average".into(), average(&firsts)));
    let loss = (!losses.is_empty()).then(|| ("loss".into(), average(&losses)));
    Ok(Metrics(first.into_iter().chain(loss).chain(all).collect()))
}

fn labels(examples: &[Example]) -> Result<Vec<&Label>> {
    let missing = || Error::config("label", "nothing", "a label for every example that is evaluated");
    examples.iter().map(|e| e.label.as_ref().ok_or_else(missing)).collect()
}

/// Compares logits with the labels of their examples, whose classes have these names. Only entities ask for names.
pub fn evaluate(logits: &[Logits], examples: &[Example], classes: &[String]) -> Result<Metrics> {
    let labels = labels(examples)?;
    let tags = |l: &&Label| if let Label::Tags(tags) = l { Some(tags.clone()) } else { None };
    if let Some(gold) = labels.iter().map(tags).collect::<Option<Vec<_>>>() {
        return evaluate_tags(logits, &gold, classes);
    }
    let answer = |l: &&Label| if let Label::Answer(answer) = l { Some(answer.clone()) } else { None };
    if let Some(answers) = labels.iter().map(answer).collect::<Option<Vec<_>>>() {
        return Ok(evaluate_answers(logits, &answers));
    }
    let class = |l: &&Label| match l {
        Label::Class(class) => Some(*class),
        Label::Value(_) | Label::Words(_) | Label::Tags(_) | Label::Answer(_) => None,
    };
    if let Some(gold) = labels.iter().map(class).collect::<Option<Vec<usize>>>() {
        let found: Vec<usize> = logits.iter().map(|l| argmax(&l.values)).collect();
        let losses = logits.iter().zip(&gold).map(|(l, gold)| cross_entropy(&l.values, *gold));
        let mut metrics = vec![("accuracy", accuracy(&found, &gold))];
        if logits.iter().all(|l| l.dims == [2]) {
            metrics.extend([("f1", f1(&found, &gold)), ("matthews", matthews(&found, &gold))]);
        }
        metrics.push(("loss", mean(losses, gold.len())));
        return Ok(Metrics::of(metrics));
    }
    let value = |l: &&Label| match l {
        Label::Value(value) => Ok(f64::from(*value)),
        other => Err(Error::config("label", format!("{other:?}"), "only classes or only values")),
    };
    let gold = labels.iter().map(value).collect::<Result<Vec<f64>>>()?;
    let found: Vec<f64> = logits.iter().map(|l| f64::from(l.values[0])).collect();
    let losses = found.iter().zip(&gold).map(|(x, y)| (x - y).powi(2));
    Ok(Metrics::of([
        ("pearson", pearson(&found, &gold)),
        ("spearman", spearman(&found, &gold)),
        ("loss", mean(losses, gold.len())),
    ]))
}

/// The same of classes of tokens. Tokens that are ignored are none, as in transformers' run_ner.py.
fn evaluate_tags(logits: &[Logits], gold: &[Arc<[i32]>], classes: &[String]) -> Result<Metrics> {
    let (mut texts, mut losses) = (vec![], vec![]);
    for (logits, gold) in logits.iter().zip(gold) {
        let outputs = logits.dims.last().copied().unwrap_or(1);
        let rows = logits.values.chunks(outputs).zip(gold.iter()).filter(|(_, tag)| **tag != IGNORED);
        let mut pairs = vec![];
        for (row, tag) in rows {
            let tag = usize::try_from(*tag).ok().filter(|tag| *tag < outputs).ok_or_else(|| {
                Error::config("label", tag, format!("classes from 0 to {}, or {IGNORED} for none", outputs - 1))
            })?;
            losses.push(cross_entropy(row, tag));
            pairs.push((argmax(row), tag));
        }
        texts.push(pairs);
    }
    if losses.is_empty() {
        return Err(Error::config("labels", "no token that counts", "at least one"));
    }
    let (found, right): (Vec<usize>, Vec<usize>) = texts.iter().flatten().copied().unzip();
    let mut metrics = vec![];
    if found.iter().chain(&right).all(|tag| *tag < classes.len()) {
        let names = |of: fn(&(usize, usize)) -> usize| -> Vec<Vec<&str>> {
            texts.iter().map(|pairs| pairs.iter().map(|pair| classes[of(pair)].as_str()).collect()).collect()
        };
        let [precision, recall, f1] = entity_scores(&names(|pair| pair.0), &names(|pair| pair.1));
        metrics.extend([("precision", precision), ("recall", recall), ("f1", f1)]);
    }
    let count = losses.len();
    metrics.extend([("accuracy", accuracy(&found, &right)), ("loss", mean(losses.into_iter(), count))]);
    Ok(Metrics::of(metrics))
}

/// The same of answers. A text may lack one where that holds for some of them.
fn evaluate_answers(logits: &[Logits], answers: &[Arc<Answer>]) -> Metrics {
    let lacking = answers.iter().any(|answer| answer.right.is_empty());
    let (mut scores, mut losses) = (vec![], vec![]);
    for (logits, answer) in logits.iter().zip(answers) {
        scores.push(exact_and_f1(answer.given(&logits.values, lacking), &answer.right));
        let side = |side: usize| logits.values.chunks(2).map(|row| row[side]).collect::<Vec<_>>();
        losses.push((0..2).map(|i| cross_entropy(&side(i), answer.tokens[i])).sum::<f64>() / 2.0);
    }
    let count = scores.len();
    Metrics::of([
        ("exact_match", mean(scores.iter().map(|score| score[0]), count)),
        ("f1", mean(scores.iter().map(|score| score[1]), count)),
        ("loss", mean(losses.into_iter(), count)),
    ])
}

/// The index of the largest number, the first of equal ones.
pub fn argmax(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

fn cross_entropy(logits: &[f32], gold: usize) -> f64 {
    logits.get(gold).map_or(f64::INFINITY, |x| log_sum_exp(logits) - f64::from(*x))
}

fn mean(values: impl Iterator<Item = f64>, n: usize) -> f64 {
    values.sum::<f64>() / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_as_far_as_can_be() {
        let logits = |values: [f32; 3]| [Logits { values: values.to_vec(), dims: vec![3] }];
        let own = logits([1.0, -2.0, 3.0]);
        for (other, expected) in
            [([1.0, -2.0, 3.0], 0.0), ([1.5, -5.0, 3.0], 3.0), ([1.0, f32::INFINITY, 2.0], f32::INFINITY)]
        {
            assert_eq!(farthest(&own, &logits(other)), expected);
        }
        for place in 0..3 {
            let mut values = [9.0, -7.0, f32::INFINITY];
            values[place] = f32::NAN;
            assert!(farthest(&own, &logits(values)).is_nan() && farthest(&logits(values), &own).is_nan());
        }
        assert_eq!(farthest(&logits([f32::INFINITY; 3]), &logits([f32::INFINITY; 3])), 0.0);
    }
}
