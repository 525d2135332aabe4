//! A padded batch of token sequences on the backbone's device.

use std::sync::Arc;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::answer::Answer;
use crate::random::{Noise, fingerprint};
use crate::recompute::Tape;
use crate::transfer::send;
use crate::{Cache, Error, Mask, Result};

/// The label of an example.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// One of several classes.
    Class(usize),
    /// A number, for regression.
    Value(f32),
    /// The word at each token, or [`loss::IGNORED`](crate::loss::IGNORED) where none is to be predicted.
    Words(Arc<[i32]>),
    /// The class of each token, or [`loss::IGNORED`](crate::loss::IGNORED) where none is to be predicted.
    Tags(Arc<[i32]>),
    /// The part of the text that answers the question before it.
    Answer(Arc<Answer>),
}

impl Label {
    /// The number, if it is one.
    pub fn value(&self) -> Option<f32> {
        match self {
            Label::Value(value) => Some(*value),
            Label::Class(_) | Label::Words(_) | Label::Tags(_) | Label::Answer(_) => None,
        }
    }
}

/// One example, already tokenized.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Which of them are real; all, if absent.
    pub mask: Option<Vec<bool>>,
    /// Token type (segment) of each; all 0, if absent.
    pub types: Option<Vec<u32>>,
    /// What it is labelled with.
    pub label: Option<Label>,
    /// Which of several tasks it is of, for a method that tells them apart.
    pub task: usize,
}

impl Example {
    /// A hash of every bit of some examples, in their order.
    pub fn fingerprint(examples: &[Self]) -> u64 {
        let one = |example: &Self| {
            let Example { ids, mask, types, label, task } = example;
            let mut bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            bytes.extend(mask.iter().flatten().map(|real| u8::from(*real)));
            bytes.extend(types.iter().flatten().flat_map(|kind| kind.to_le_bytes()));
            let kind = match label {
                None => "no label",
                Some(Label::Class(class)) => {
                    bytes.extend(class.to_le_bytes());
                    "class"
                }
                Some(Label::Value(value)) => {
                    bytes.extend(value.to_le_bytes());
                    "value"
                }
                Some(Label::Words(words)) => {
                    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
                    "words"
                }
                Some(Label::Tags(tags)) => {
                    bytes.extend(tags.iter().flat_map(|tag| tag.to_le_bytes()));
                    "tags"
                }
                Some(Label::Answer(answer)) => {
                    bytes.extend(format!("{answer:?}").bytes());
                    "answer"
                }
            };
            let task = if *task == 0 { String::new() } else { format!(", task {task}") };
            let name = format!("{kind}, {} ids, {} {}{task}", ids.len(), mask.is_some(), types.is_some());
            fingerprint(&name, &bytes)
        };
        examples.iter().fold(0, |all, example| fingerprint(&format!("{all:x}"), &one(example).to_le_bytes()))
    }
}

/// A padded batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, `[batch, tokens]`.
    pub ids: Tensor<2, Int>,
    /// True where a token is padding, `[batch, tokens]`; absent if none is.
    pub padding: Option<Tensor<2, Bool>>,
    /// Token types, `[batch, tokens]`; absent if all are 0.
    pub types: Option<Tensor<2, Int>>,
    /// What a decoder behind an encoder sees, `[batch, tokens]`.
    pub decoder: Option<Tensor<2, Int>>,
    /// The task of each sequence.
    pub tasks: Vec<usize>,
    /// What is known of earlier rows while a text is generated.
    pub cache: Option<Cache>,
    /// The dropout of this forward; absent outside training.
    pub noise: Option<Arc<Noise>>,
    /// Where adapters' runs are noted whose layers are computed again in backward.
    pub tape: Option<Tape>,
}

impl Batch {
    /// Pads examples on the right with the id `pad` to the longest of them.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>, pad: usize, device: &Device) -> Result<Self> {
        let examples: Vec<&Example> = examples.into_iter().collect();
        let longest = examples.iter().map(|e| e.ids.len()).max().unwrap_or(0);
        // An empty batch is refused here: the tensor library would read out of bounds on it.
        if longest == 0 || examples.iter().any(|e| e.ids.is_empty()) {
            return Err(Error::config("batch", "an empty sequence or no sequence", "at least one token in each"));
        }
        let size = [examples.len(), longest];
        let padded = |row: &dyn Fn(&Example) -> Vec<i32>, filler: i32| {
            let mut all = Vec::with_capacity(size[0] * longest);
            for (i, example) in examples.iter().enumerate() {
                all.extend(row(example));
                all.resize((i + 1) * longest, filler);
            }
            all
        };
        let ids = padded(&|e| e.ids.iter().map(|id| *id as i32).collect(), pad as i32);
        let types =
            padded(&|e| e.types.as_ref().map_or(vec![0; e.ids.len()], |t| t.iter().map(|t| *t as i32).collect()), 0);
        let real =
            padded(&|e| e.mask.as_ref().map_or(vec![1; e.ids.len()], |m| m.iter().map(|m| i32::from(*m)).collect()), 0);
        let tensor = |values: Vec<i32>| send::<2, Int>(TensorData::new(values, size), device);
        Ok(Batch {
            ids: tensor(ids),
            padding: real.contains(&0).then(|| tensor(real).equal_elem(0)),
            types: types.iter().any(|t| *t != 0).then(|| tensor(types)),
            decoder: None,
            tasks: examples.iter().map(|example| example.task).collect(),
            cache: None,
            noise: None,
            tape: None,
        })
    }

    /// Some of its sequences, padded as here. Of a text that is being generated there is no part.
    pub fn rows(&self, rows: &[usize]) -> Self {
        let device = self.ids.device();
        let places = rows.iter().map(|row| *row as i32).collect::<Vec<_>>();
        let places = send::<1, Int>(TensorData::new(places, [rows.len()]), &device);
        let of = |x: &Tensor<2, Int>| x.clone().select(0, places.clone());
        let noise = |noise: &Arc<Noise>| {
            let samples = rows.iter().map(|row| noise.samples[*row]).collect();
            Arc::new(Noise { samples, ..(**noise).clone() })
        };
        Batch {
            ids: of(&self.ids),
            padding: self.padding.clone().map(|padding| padding.select(0, places.clone())),
            types: self.types.as_ref().map(of),
            decoder: self.decoder.as_ref().map(of),
            tasks: rows.iter().map(|row| self.tasks[*row]).collect(),
            cache: None,
            noise: self.noise.as_ref().map(noise),
            tape: self.tape.clone(),
        }
    }

    /// The same batch with what a decoder sees, one list of ids for each sequence. Behind the end of a list stands its first id:
    /// no row before sees it.
    pub fn with_decoder(self, lists: &[Vec<u32>], device: &Device) -> Result<Self> {
        let size = [lists.len(), lists.iter().map(Vec::len).max().unwrap_or(0)];
        if size[1] == 0 || lists.iter().any(Vec::is_empty) {
            return Err(Error::config("decoder", "an empty list of ids", "at least one for each sequence"));
        }
        let filled = lists
            .iter()
            .flat_map(|list| list.iter().chain(std::iter::repeat(&list[0])).take(size[1]).map(|id| *id as i32));
        let decoder = send(TensorData::new(filled.collect::<Vec<_>>(), size), device);
        Ok(Batch { decoder: Some(decoder), ..self })
    }

    /// Pads lists of ids in front to the longest of them, so that all end together and can go on. They are of task 0.
    pub fn padded_in_front(lists: &[Vec<u32>], pad: usize, device: &Device) -> Result<Self> {
        let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
        let padded = |list: &Vec<u32>| {
            let front = longest - list.len();
            let mask = (0..longest).map(|i| i >= front).collect();
            Example { ids: [vec![pad as u32; front], list.clone()].concat(), mask: Some(mask), ..Default::default() }
        };
        Batch::new(&lists.iter().map(padded).collect::<Vec<_>>(), pad, device)
    }

    /// The same batch with dropout.
    pub fn with_noise(self, noise: Noise) -> Self {
        Batch { noise: Some(Arc::new(noise)), ..self }
    }

    /// The same batch whose forwards are noted on this tape, if there is one.
    #[cfg(feature = "train")]
    pub(crate) fn with_tape(self, tape: Option<Tape>) -> Self {
        Batch { tape, ..self }
    }

    /// The sequences at these places of the batch, in this order, none of them a text that goes on.
    pub fn select(&self, sequences: &[usize]) -> Self {
        let index: Vec<i32> = sequences.iter().map(|i| *i as i32).collect();
        let index = send::<1, Int>(index.as_slice(), &self.ids.device());
        let rows = |x: &Tensor<2, Int>| x.clone().select(0, index.clone());
        let noise = |noise: &Arc<Noise>| {
            let samples = sequences.iter().map(|i| noise.samples[*i]).collect();
            Arc::new(Noise { samples, ..(**noise).clone() })
        };
        Batch {
            ids: rows(&self.ids),
            padding: self.padding.as_ref().map(|padding| rows(&padding.clone().int()).equal_elem(1)),
            types: self.types.as_ref().map(rows),
            decoder: self.decoder.as_ref().map(rows),
            tasks: sequences.iter().map(|i| self.tasks[*i]).collect(),
            cache: None,
            noise: self.noise.as_ref().map(noise),
            tape: self.tape.clone(),
        }
    }

    /// Number of sequences and length of the longest.
    pub fn dims(&self) -> [usize; 2] {
        self.ids.dims()
    }

    /// Who sees whom.
    pub fn mask(&self) -> Mask {
        Mask { padding: self.padding.clone(), ..Mask::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_tells_orders_apart_however_far() {
        let examples: Vec<Example> = (0..130).map(|i| Example { ids: vec![i], ..Default::default() }).collect();
        let swapped = |i: usize, j: usize| {
            let mut examples = examples.clone();
            examples.swap(i, j);
            Example::fingerprint(&examples)
        };
        let found = [swapped(0, 0), swapped(0, 1), swapped(0, 63), swapped(0, 64), swapped(1, 129)];
        assert!((0..found.len()).all(|i| (0..i).all(|j| found[i] != found[j])), "{found:?}");
        // Each twice is not nothing.
        assert_ne!(Example::fingerprint(&[examples.clone(), examples.clone()].concat()), 0);
    }

    #[test]
    fn a_hash_tells_tasks_apart() {
        let of = |tasks: [usize; 2]| {
            let examples = tasks.map(|task| Example { ids: vec![5, 7], task, ..Default::default() });
            Example::fingerprint(&examples)
        };
        let found = [[0, 0], [0, 1], [1, 0], [1, 1], [2, 1]].map(of);
        assert!((0..5).all(|i| (0..i).all(|j| found[i] != found[j])), "{found:?}");
    }
}
