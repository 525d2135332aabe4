//! Table IV: T5 translates English to Romanian, or to a made-up language.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use peft_core::data::{Dataset, prompted};
use peft_core::files::{read_text, write_directory};
use peft_core::generate::{GenerateConfig, generate};
use peft_core::load::Tokenizer;
use peft_core::random::Random;
use peft_core::{Architecture, Base, Error, Example, Label, Result, Shape, T5, Trained, Tuner};
use serde_json::json;

use super::Plan;
use super::outcome::Scored;
use super::pretrain::{Recipe, place, tokenizer};
use super::report::{Column, Report};
use super::sequences::{Experiment, Score, Sizes, pretrain, some};
use super::survey::TABLE_IV;
use crate::hermetic;
use crate::tasks::bleu::{SIGNATURE, bleu};
use crate::tasks::parallel::{Pair, read, with_commas_below};

/// Beams, as in T5's own evaluation (Raffel et al., 2020, section 3.1).
const BEAMS: usize = 4;
/// Sentences that are translated at a time.
const BATCH: usize = 16;
/// The share of words that are left out of a text in pretraining, and the mean length of a gap.
const NOISE: (f64, f64) = (0.15, 2.0);

/// One in so many examples of the pretraining is a translation.
const MIXTURE: usize = 2;

/// The names of the parallel files: what is trained on, what is scored.
#[derive(Clone, Debug)]
pub struct Stems {
    /// `TRAIN.en` and `TRAIN.ro`.
    pub train: String,
    /// `TEST.en` and `TEST.ro`.
    pub test: String,
}

/// Runs what the plan says, goes on where it was interrupted, and writes REPORT.md and report.html.
pub fn run(plan: &Plan, sizes: &Sizes, stems: &Stems) -> Result<Report> {
    let source = plan.source(|made| prepare(made, plan))?;
    let (name, model, data) = (&source.name, &source.model, &source.data);
    if !model.base.shape().architecture.is_encoder_decoder() {
        return Err(Error::config("--model", name, "a T5, which Table IV is about"));
    }
    let tokenizer = model.tokenizer()?;
    let pairs = read(data, &stems.train)?;
    let shape = model.base.shape();
    let examples = pairs.iter().filter_map(|pair| translation(shape, &tokenizer, pair, sizes.max_length).transpose());
    let train = Dataset { examples: examples.collect::<Result<_>>()?, ..Dataset::default() };
    let mut test = read(data, &stems.test)?;
    test.truncate(sizes.limit);
    let cut = |pairs: &[Pair]| {
        pairs.iter().map(|pair| longer(&tokenizer, pair, sizes.max_length)).collect::<Result<Vec<_>>>()
    };
    let cut = [cut(&pairs)?, cut(&test)?].map(|cut| [0, 1].map(|side| cut.iter().filter(|cut| cut[side]).count()));
    let score = Translation::new(&tokenizer, test, sizes.max_length)?;
    let scored = json!([tokenizer.fingerprint(), score.sources, score.references, score.config]);
    let experiment = Experiment { plan, model, train: &train, score: &score, scored };
    let column = Column { name: "En-Ro".into(), metrics: vec!["BLEU".into()] };
    let title = "Table IV: parameter-efficient fine-tuning of T5 for translation";
    let mut report = experiment.blank(title, column, &TABLE_IV, [("T5-base", "t5-base"), ("T5-large", "t5-large")])?;
    report.notes.push(format!(
        "BLEU of {} sentences, {SIGNATURE}, by {BEAMS} beams; s and t with a comma below in all texts.",
        score.references.len()
    ));
    let [[sources, targets], [asked, references]] = cut;
    report.notes.push(format!(
        "Texts are cut off at {} tokens: of the {} pairs that are trained on {sources} sources and {targets} targets, of the sentences that \
         are scored {asked} sources; {references} references are longer than what may be written.",
        sizes.max_length,
        pairs.len()
    ));
    experiment.run(report)
}

/// Whether source and target have more tokens than this.
fn longer(tokenizer: &Tokenizer, pair: &Pair, max_length: usize) -> Result<[bool; 2]> {
    let longer = |text: &str| Ok::<_, Error>(tokenizer.encode(text, None, usize::MAX)?.ids.len() > max_length);
    Ok([longer(&pair.prompt())?, longer(&pair.target)?])
}

fn translation(shape: &Shape, tokenizer: &Tokenizer, pair: &Pair, max_length: usize) -> Result<Option<Example>> {
    prompted(shape, tokenizer, (&pair.prompt(), &pair.target), max_length)
}

/// Sentences to translate, and how they should be.
struct Translation<'a> {
    tokenizer: &'a Tokenizer,
    sources: Vec<Vec<u32>>,
    references: Vec<String>,
    config: GenerateConfig,
}

impl<'a> Translation<'a> {
    fn new(tokenizer: &'a Tokenizer, test: Vec<Pair>, max_length: usize) -> Result<Self> {
        // Those of like length come together.
        let encoded = test
            .into_iter()
            .map(|pair| Ok((tokenizer.encode(&pair.prompt(), None, max_length)?.ids, with_commas_below(&pair.target))));
        let mut encoded: Vec<(Vec<u32>, String)> = some(encoded.collect::<Result<_>>()?, "--limit")?;
        encoded.sort_by_key(|(source, _)| source.len());
        let (sources, references) = encoded.into_iter().unzip();
        Ok(Translation { tokenizer, sources, references, config: GenerateConfig::new(max_length).with_beams(BEAMS) })
    }
}

impl Score for Translation<'_> {
    fn score<T: Tuner>(&self, base: &Base, trained: &Trained<T>) -> Result<Scored> {
        let mut found = vec![];
        for sources in self.sources.chunks(BATCH) {
            for ids in generate(base, trained, sources, &self.config, |_, _| Ok(()))? {
                found.push(with_commas_below(self.tokenizer.decode(&ids)?.trim()));
            }
        }
        Ok((vec![bleu(&found, &self.references)?.score], vec![]))
    }
}

/// Writes the languages and a small T5 that has read them, unless they are there.
fn prepare(made: &Path, plan: &Plan) -> Result<(PathBuf, PathBuf)> {
    let data = place(made, "data", "");
    if !data.exists() {
        write_directory(&data, |data| hermetic::translation::write(data, 0))?;
    }
    let (vocab, tokenizer) = tokenizer(&data)?;
    let recipe = Recipe { steps: if plan.quick { 1500 } else { 3000 }, batch_size: 32, learning_rate: 2e-3 };
    let t5 = T5 { decoder_layers: 2, gated: false, buckets: 32, max_distance: 128, scaled: true, start: 0 };
    let shape = Shape {
        architecture: Architecture::T5(t5),
        layers: 2,
        hidden: 96,
        heads: 4,
        head_width: 24,
        intermediate: 256,
        vocab,
        ..Shape::named("t5-base")?
    }
    .with_dropout(0.0);
    let count = recipe.steps * recipe.batch_size;
    let decides = format!("{shape:?} {recipe:?}");
    let output = place(made, "model", &decides);
    if output.exists() {
        return Ok((output, data));
    }
    let texts = ["text.en", "text.ro"].map(|name| read_text(&data.join(name), 1 << 30));
    let [english, romanian] = texts;
    let (english, romanian) = (english?, romanian?);
    let lines = english.lines().zip(romanian.lines()).flat_map(|(a, b)| [a, b]);
    let lines: Vec<&str> = lines.collect();
    let mixture = read(&data, "mixture")?;
    let mut examples = vec![];
    for i in 0..count {
        examples.extend(match i % MIXTURE {
            0 => translation(&shape, &tokenizer, &mixture[i / MIXTURE % mixture.len()], 128)?,
            _ => {
                let ids = tokenizer.plain(lines[i / MIXTURE % lines.len()], usize::MAX)?;
                Some(denoised(&ids, &mut Random::new(i as u64, "gaps"), vocab, shape.stop[0]))
            }
        });
    }
    pretrain(plan, (shape, &recipe), &examples, (&data, &output))?;
    Ok((output, data))
}

/// A text with gaps, each a sentinel, and what belongs in them (Raffel et al., 2020, section 3.1.4).
fn denoised(ids: &[u32], random: &mut Random, vocab: usize, stop: usize) -> Example {
    let (share, length) = NOISE;
    let missing = ((ids.len() as f64 * share).round() as usize).max(1);
    let gaps = ((missing as f64 / length).round() as usize).max(1);
    let mut left_out = vec![false; ids.len()];
    for gap in 0..gaps {
        let size = missing / gaps + usize::from(gap < missing % gaps);
        let start = random.below(ids.len());
        left_out.iter_mut().skip(start).take(size).for_each(|out| *out = true);
    }
    let (mut source, mut target, mut sentinels) = (vec![], vec![], 0);
    for (i, id) in ids.iter().enumerate() {
        if !left_out[i] {
            source.push(*id);
            continue;
        }
        if i == 0 || !left_out[i - 1] {
            // The first sentinel has the last id.
            sentinels += 1;
            let sentinel = (vocab - sentinels) as u32;
            source.push(sentinel);
            target.push(sentinel as i32);
        }
        target.push(*id as i32);
    }
    source.push(stop as u32);
    target.extend([(vocab - sentinels - 1) as i32, stop as i32]);
    Example { ids: source, label: Some(Label::Words(Arc::from(target))), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gaps and what belongs in them make the text again.
    #[test]
    fn a_denoised_text_is_whole() {
        let ids: Vec<u32> = (10..30).collect();
        for seed in 0..50 {
            let example = denoised(&ids, &mut Random::new(seed, "gaps"), 100, 1);
            let Some(Label::Words(target)) = &example.label else { panic!("{example:?}") };
            assert_eq!((example.ids.last(), target.last()), (Some(&1), Some(&1)));
            let is_sentinel = |id: &u32| *id >= 90;
            let mut gaps: Vec<Vec<u32>> = vec![];
            for id in target[..target.len() - 1].iter().map(|id| *id as u32) {
                if is_sentinel(&id) {
                    assert_eq!(id as usize, 99 - gaps.len());
                    gaps.push(vec![]);
                } else {
                    gaps.last_mut().unwrap().push(id);
                }
            }
            assert!(gaps.pop().unwrap().is_empty() && !gaps.is_empty());
            let mut gaps = gaps.into_iter();
            let whole: Vec<u32> = example.ids[..example.ids.len() - 1]
                .iter()
                .flat_map(|id| if is_sentinel(id) { gaps.next().unwrap() } else { vec![*id] })
                .collect();
            assert_eq!(whole, ids);
        }
    }
}
