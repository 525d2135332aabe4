//! The small RoBERTa of Table III, pretrained on the generated corpus with masked words (Liu et al., 2019, section 3.1).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::Module;
use peft_core::files::{read_text, write_directory};
use peft_core::loss::IGNORED;
use peft_core::random::{Noise, Random};
use peft_core::train::TrainConfig;
use peft_core::{Adapter, Batch, Example, Head, Hooks, Label, Procedure, Result, Sequence, Shape, Stack};

use super::Plan;
use super::pretrain::{Recipe, place, pretrain, start, tokenizer};
use crate::hermetic;

/// The longest sequence, in tokens.
const POSITIONS: usize = 96;
/// At how many positions a sequence may begin in pretraining.
const BEGINNINGS: usize = 11;
/// Ids of the special tokens that the generated tokenizer begins with.
const SPECIAL: usize = 5;
const MASK: u32 = 4;

/// Writes corpus, tasks and the pretrained model into `made`, unless they are there; gives the model and the tasks.
pub(super) fn prepare(made: &Path, plan: &Plan) -> Result<(PathBuf, PathBuf)> {
    let data = place(made, "data", "");
    if !data.exists() {
        write_directory(&data, |data| hermetic::write(data, 0))?;
    }
    let glue = data.join("glue");
    let recipe = Recipe { steps: if plan.quick { 4000 } else { 18_000 }, batch_size: 32, learning_rate: 1e-3 };
    let (vocab, tokenizer) = tokenizer(&data)?;
    let shape = Shape {
        layers: 3,
        hidden: 96,
        heads: 4,
        head_width: 24,
        intermediate: 192,
        vocab,
        positions: POSITIONS + 2,
        ..Shape::named("roberta-base")?
    }
    .with_dropout(0.0);
    let decides = format!("{shape:?} {recipe:?}");
    let output = place(made, "model", &decides);
    if output.exists() {
        return Ok((output, glue));
    }
    let corpus = read_text(&data.join("corpus.txt"), 1 << 30)?;
    // Every sequence that is trained on has a mask of its own.
    let mut examples = Vec::new();
    for (i, text) in corpus.lines().cycle().take(recipe.steps * recipe.batch_size).enumerate() {
        let (a, b) = text.split_once('\t').map_or((text, None), |(a, b)| (a, Some(b)));
        examples.push(masked(tokenizer.encode(a, b, POSITIONS - BEGINNINGS + 1)?.ids, i, shape.vocab));
    }
    // Maps keep the size of what they map; 0.02 is made for widths far above.
    let std = (shape.hidden as f64).powf(-0.5);
    let base = start(shape, &plan.device, |_| std)?;
    let head = Head::masked_lm(&base, 0);
    let config = TrainConfig { group_by_length: true, ..recipe.config(plan.threads) };
    pretrain((base, head, Anywhere {}), config, &examples, (&data, &output))?;
    Ok((output, glue))
}

/// Begins each piece of a batch at another position. RoBERTa is pretrained on sentences packed to 512 tokens, which hence stand
/// anywhere. Here a sequence is a line, and a model that saw lines at the first position only is lost where a prefix or a prompt
/// moves them, if only by one.
#[derive(Module, Debug)]
struct Anywhere {}

struct Begin(usize);

impl Hooks for Begin {
    fn embed(&self, _stack: Stack, x: Sequence) -> Sequence {
        Sequence { offset: x.offset + self.0, ..x }
    }
}

impl Adapter for Anywhere {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        let begin =
            |noise: &Noise| Random::new(noise.step, &format!("position of {}", noise.samples[0])).below(BEGINNINGS);
        f(&Begin(batch.noise.as_deref().map_or(0, begin)))
    }
}

impl Procedure for Anywhere {}

/// BERT's masking: of the words that are chosen 8 in 10 are masked, one is another word and one stays. Fewer are chosen than
/// BERT's 15 %, since these sentences are short; and always the last, which in a line of two texts says how they are related.
fn masked(ids: Vec<u32>, line: usize, vocab: usize) -> Example {
    let mut random = Random::new(line as u64, "masked words");
    let last = ids.iter().rposition(|id| *id as usize >= SPECIAL);
    let (mut input, mut labels) = (ids.clone(), vec![IGNORED; ids.len()]);
    for place in (0..ids.len()).filter(|i| ids[*i] as usize >= SPECIAL) {
        if Some(place) != last && random.unit() >= 0.06 {
            continue;
        }
        labels[place] = ids[place] as i32;
        match random.below(10) {
            0 => {}
            1 => input[place] = (SPECIAL + random.below(vocab - SPECIAL)) as u32,
            _ => input[place] = MASK,
        }
    }
    Example { ids: input, label: Some(Label::Words(Arc::from(labels))), ..Default::default() }
}
