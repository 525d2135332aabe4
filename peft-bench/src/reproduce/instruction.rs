//! Tables V and VI: LLaMA is trained on Alpaca's instructions and answers MMLU's questions after five solved ones.

use std::path::{Path, PathBuf};

use peft_core::data::{Dataset, prompted, room};
use peft_core::files::{read_text, write_directory};
use peft_core::generate::next_logits;
use peft_core::load::Tokenizer;
use peft_core::loss::IGNORED;
use peft_core::train::Workers;
use peft_core::{Architecture, Base, Error, Example, Label, Llama, Result, Scaling, Shape, Trained, Tuner};
use serde_json::json;

use super::Plan;
use super::outcome::Scored;
use super::pretrain::{Recipe, place, tokenizer};
use super::report::{Column, Report};
use super::sequences::{Experiment, Score, Sizes, pretrain};
use super::survey::{TABLE_V, TABLE_VI};
use crate::hermetic;
use crate::tasks::alpaca::{self, Record};
use crate::tasks::mmlu::{self, LETTERS, Scores, Split, Subject};

/// Runs what the plan says (of Table V if `learning_rates`, else of Table VI), goes on where it was interrupted, and writes
/// REPORT.md and report.html. The directory of the data has Alpaca's records, `alpaca` or `alpaca_data` with `.json` or `.jsonl`,
/// and MMLU's questions in `mmlu`.
pub fn run(plan: &Plan, sizes: &Sizes, learning_rates: bool) -> Result<Report> {
    let source = plan.source(|made| prepare(made, plan))?;
    let (name, model, data) = (&source.name, &source.model, &source.data);
    if !model.base.shape().architecture.is_decoder() {
        return Err(Error::config("--model", name, "a LLaMA, which Tables V and VI are about"));
    }
    let tokenizer = model.tokenizer()?;
    let stop = model.base.shape().stop.first().map(|id| *id as u32);
    let path = records(data)?;
    let records = alpaca::read(&path)?;
    let example = |record: &Record| match &*record.output {
        "" => Ok(None),
        answer => prompted(model.base.shape(), &tokenizer, (&record.prompt(), answer), sizes.max_length),
    };
    let examples = records.iter().map(example).collect::<Result<Vec<_>>>()?;
    let cut = examples.iter().flatten().filter(|example| example.ids.last() != stop.as_ref()).count();
    let train = Dataset { examples: examples.into_iter().flatten().collect(), ..Dataset::default() };
    if train.examples.is_empty() {
        let expected = format!("an instruction of at most {} tokens with an answer", room(sizes.max_length));
        return Err(Error::file(path, "records", "none that can be trained on", expected));
    }
    let questions = data.join("mmlu");
    let score = Questions {
        tokenizer: &tokenizer,
        letters: letters(&tokenizer)?,
        shots: mmlu::read(&questions, Split::Dev)?,
        subjects: mmlu::first(mmlu::read(&questions, Split::Test)?, sizes.limit),
        threads: plan.threads,
    };
    let count: usize = score.subjects.iter().map(|subject| subject.questions.len()).sum();
    let asked = |subjects: &[Subject]| -> Vec<_> {
        let asked = |subject: &Subject| subject.questions.iter().map(|q| (q.ask(), q.answer)).collect::<Vec<_>>();
        subjects.iter().map(|subject| json!([subject.name, asked(subject)])).collect()
    };
    let scored = json!([tokenizer.fingerprint(), asked(&score.shots), asked(&score.subjects)]);
    let experiment = Experiment { plan, model, train: &train, score: &score, scored };
    let column = Column { name: "MMLU".into(), metrics: vec!["macro".into(), "micro".into()] };
    let shapes = [("LLaMA-7B", "llama-7b"), ("LLaMA-13B", "llama-13b")];
    let (title, printed) = match learning_rates {
        true => ("Table V: full fine-tuning of LLaMA at three learning rates", &TABLE_V[..]),
        false => ("Table VI: parameter-efficient fine-tuning of LLaMA", &TABLE_VI[..]),
    };
    let mut report = experiment.blank(title, column, printed, shapes)?;
    report.notes.push(format!(
        "Of {} records {} are trained on, the others have no answer or an instruction of more than {} tokens; {cut} answers are \
         cut off at {} tokens in all.",
        records.len(),
        train.examples.len(),
        room(sizes.max_length),
        sizes.max_length
    ));
    let shortened = score.shortened(&model.base)?;
    if shortened > 0 {
        report
            .notes
            .push(format!("{shortened} questions have fewer solved ones before them: more do not fit the model."));
    }
    report.notes.push(format!(
        "MMLU: {count} questions of {} subjects, after five solved ones, by the largest of the four letters' logits. macro: the mean \
         of the subjects' accuracies; micro: the accuracy over all questions.",
        score.subjects.len(),
    ));
    report.notes.push(
        "The survey follows QLoRA's script, which keeps the rate constant after a warm-up of 3 %, clips gradients at 0.3 and takes the \
         state that answers MMLU's questions for development best; here are a linear schedule, clipping at 1 and the last state."
            .into(),
    );
    experiment.run(report)
}

/// The file of Alpaca's records in a directory.
fn records(data: &Path) -> Result<PathBuf> {
    let names = ["alpaca_data.json", "alpaca_data.jsonl", "alpaca.json", "alpaca.jsonl"];
    let found = names.into_iter().map(|name| data.join(name)).find(|path| path.exists());
    found.ok_or_else(|| Error::file(data, "records", "none", format!("one of {}", names.join(", "))))
}

/// The token of each letter behind "Answer:".
fn letters(tokenizer: &Tokenizer) -> Result<[usize; 4]> {
    let mut tokens = [0; 4];
    for (token, letter) in tokens.iter_mut().zip(LETTERS) {
        let ids = tokenizer.plain(&format!("Answer: {letter}"), usize::MAX)?;
        *token = ids.last().copied().unwrap_or_default() as usize;
    }
    let distinct: std::collections::BTreeSet<usize> = tokens.into_iter().collect();
    match distinct.len() {
        4 => Ok(tokens),
        _ => Err(Error::config("tokenizer", format!("{tokens:?} for A, B, C and D"), "a token of its own for each")),
    }
}

/// Questions, and the solved ones before them.
struct Questions<'a> {
    tokenizer: &'a Tokenizer,
    letters: [usize; 4],
    shots: Vec<Subject>,
    subjects: Vec<Subject>,
    threads: usize,
}

impl Questions<'_> {
    /// How many questions do not fit the model with all the solved ones before them.
    fn shortened(&self, base: &Base) -> Result<usize> {
        let none = |prompts: &[String]| Ok(vec![[0.0; 4]; prompts.len()]);
        let scores = Scores::of(&self.subjects, &self.shots, |prompt| self.fits(prompt, base), none)?;
        Ok(scores.0.iter().map(|score| score.shortened).sum())
    }

    fn fits(&self, prompt: &str, base: &Base) -> bool {
        let encoded = self.tokenizer.encode(prompt, None, usize::MAX);
        encoded.is_ok_and(|encoded| encoded.ids.len() <= base.shape().max_length())
    }
}

impl Score for Questions<'_> {
    fn score<T: Tuner>(&self, base: &Base, trained: &Trained<T>) -> Result<Scored> {
        let encode = |prompt: &str| Ok::<_, Error>(self.tokenizer.encode(prompt, None, usize::MAX)?.ids);
        let trained = burn::module::Module::valid(trained);
        let workers = Workers::new(self.threads)?;
        let answer = |prompts: &[String]| {
            let prompts = prompts.iter().map(|prompt| encode(prompt)).collect::<Result<Vec<_>>>()?;
            // Each thread takes a part of a subject's questions, which begin with the same solved ones.
            let parts: Vec<&[Vec<u32>]> = prompts.chunks(prompts.len().div_ceil(self.threads)).collect();
            let mut all = vec![];
            let work = |part: usize| next_logits(base, &trained, parts[part]);
            workers.run(parts.len(), work, |logits: Vec<Vec<f32>>| all.extend(logits))?;
            Ok(all.iter().map(|logits| self.letters.map(|letter| logits[letter])).collect())
        };
        let scores = Scores::of(&self.subjects, &self.shots, |prompt| self.fits(prompt, base), answer)?;
        Ok([scores.macro_average(), scores.micro_average()]
            .map(|(score, error)| (100.0 * score, 100.0 * error))
            .into_iter()
            .unzip())
    }
}

/// Writes the made-up subjects and a small LLaMA that has read of them, unless they are there.
fn prepare(made: &Path, plan: &Plan) -> Result<(PathBuf, PathBuf)> {
    let data = place(made, "data", "");
    if !data.exists() {
        write_directory(&data, |data| hermetic::lore::write(data, 0))?;
    }
    let (vocab, tokenizer) = tokenizer(&data)?;
    // It reads in one step and is drilled in the next: see `line`.
    let recipe = Recipe { steps: if plan.quick { 800 } else { 5000 }, batch_size: 32, learning_rate: 2e-3 };
    let shape = Shape {
        architecture: Architecture::Llama(Llama {
            kv_heads: 2,
            theta: 10_000.0,
            scaling: Scaling::None,
            attention_bias: false,
            mlp_bias: false,
            padding: Some(0),
        }),
        layers: 4,
        hidden: 128,
        heads: 4,
        head_width: 32,
        intermediate: 256,
        vocab,
        positions: 512,
        ..Shape::named("llama-7b")?
    };
    let decides = format!("{shape:?} {recipe:?}");
    let output = place(made, "model", &decides);
    if output.exists() {
        return Ok((output, data));
    }
    let corpus = read_text(&data.join("corpus.txt"), 1 << 30)?;
    let lines: Vec<&str> = corpus.lines().collect();
    let asked: Vec<&str> = lines.iter().copied().filter(|line| line.contains('\t')).collect();
    let examples = (0..recipe.steps * recipe.batch_size).map(|i| {
        let (step, place) = (i / recipe.batch_size, i % recipe.batch_size);
        let (drill, place) = (step % 2 == 1, step / 2 * recipe.batch_size + place);
        let from = if drill { &asked } else { &lines };
        line(&tokenizer, from[place % from.len()], shape.stop[0] as u32, drill)
    });
    let examples = examples.collect::<Result<Vec<_>>>()?;
    pretrain(plan, (shape, &recipe), &examples, (&data, &output))?;
    Ok((output, data))
}

/// A line of the corpus. In a drill only the words behind tabs are to be predicted: among all the words of a text the letter of a
/// choice would not be noticed.
fn line(tokenizer: &Tokenizer, text: &str, stop: u32, drill: bool) -> Result<Example> {
    let mut parts = text.split('\t');
    let mut ids = tokenizer.encode(parts.next().unwrap_or_default(), None, usize::MAX)?.ids;
    let mut answers = vec![];
    for part in parts {
        answers.push(ids.len());
        ids.extend(tokenizer.plain(part, usize::MAX)?);
    }
    ids.push(stop);
    let label = |(place, id): (usize, &u32)| if !drill || answers.contains(&place) { *id as i32 } else { IGNORED };
    let labels = ids.iter().enumerate().map(label).collect();
    Ok(Example { ids, label: Some(Label::Words(labels)), ..Default::default() })
}
