//! # P-tuning                               family: additive / soft prompt-based
//! x' = [f(E); E(x)]                        E: [l, d]; f: an MLP, or a bidirectional LSTM and an MLP
//! Paper: Liu et al., 2021, arXiv:2103.10385, section 3.   Reference: huggingface/peft tuners/p_tuning
//! Oracle: package peft 0.21.2: `equals_the_reference`, `saved_prompts_equal_the_reference`
//! Trains: E and f, see `count`.            Merges: no, the prompt lengthens the sequence.
//! Identities:
//! - it is prompt tuning with f(E): `it_is_prompt_tuning_with_what_it_computes`
//! - with f an LSTM, row i depends on the rows on both sides: `rows_depend_on_all_with_an_lstm_and_on_themselves_with_an_mlp`
//!
//! Differs from the paper: the prompt stands in front of the text as in PEFT, whatever the template; the MLP of PEFT has three linear maps; on T5 there are 2 l rows as in PEFT, of which the encoder gets the first l and the others only have a say through an LSTM. Files hold f(E) only, as PEFT's do, so that a loaded prompt has no f. Dropout between the layers of the LSTM is not offered.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use peft_core::{
    Adapter, Affine, AnyTuner, Base, Batch, Error, Hooks, Key, Method, Procedure, Result, Shape,
    random::{Noise, Random},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Prompt, check_length, derived_of_rows, torch_linear};

/// What the virtual tokens are computed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Reparameterization {
    /// Three linear maps with ReLU between them.
    #[default]
    Mlp,
    /// A bidirectional LSTM, then two linear maps with ReLU between them.
    Lstm,
}

/// The configuration of P-tuning, in the names of PEFT's `PromptEncoderConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PTuningConfig {
    /// Number of virtual tokens.
    pub num_virtual_tokens: usize,
    /// What they are computed by.
    pub encoder_reparameterization_type: Reparameterization,
    /// Width inside of it, of an LSTM in each direction; the model's, if absent.
    pub encoder_hidden_size: Option<usize>,
    /// Layers of the LSTM.
    pub encoder_num_layers: usize,
    /// Dropout between the layers of the LSTM: 0.
    pub encoder_dropout: f64,
}

impl Default for PTuningConfig {
    /// 20 virtual tokens from an MLP.
    fn default() -> Self {
        PTuningConfig {
            num_virtual_tokens: 20,
            encoder_reparameterization_type: Reparameterization::Mlp,
            encoder_hidden_size: None,
            encoder_num_layers: 2,
            encoder_dropout: 0.0,
        }
    }
}

impl PTuningConfig {
    /// This many virtual tokens from an MLP.
    pub fn new(num_virtual_tokens: usize) -> Self {
        PTuningConfig { num_virtual_tokens, ..Default::default() }
    }

    /// Computed by this.
    pub fn with_encoder(mut self, kind: Reparameterization) -> Self {
        self.encoder_reparameterization_type = kind;
        self
    }

    /// With this width inside.
    pub fn with_hidden_size(mut self, width: usize) -> Self {
        self.encoder_hidden_size = Some(width);
        self
    }

    /// Checks the settings; gives the number of rows and the width inside.
    fn plan(&self, shape: &Shape) -> Result<(usize, usize)> {
        check_length(self.num_virtual_tokens, shape)?;
        let (width, most) = (self.encoder_hidden_size.unwrap_or(shape.hidden), 16 * shape.hidden);
        if !(1..=most).contains(&width) {
            return Err(Error::config("encoder_hidden_size", width, format!("1 to {most}, or null for the model's")));
        }
        if !(1..=16).contains(&self.encoder_num_layers) {
            return Err(Error::config("encoder_num_layers", self.encoder_num_layers, "1 to 16"));
        }
        // PEFT's dropout, which is 0 by default, is a generator's; a loaded prompt has no LSTM any more.
        if self.encoder_dropout != 0.0 {
            return Err(Error::config("encoder_dropout", self.encoder_dropout, "0"));
        }
        Ok((shape.stacks().len() * self.num_virtual_tokens, width))
    }
}

/// Virtual tokens in front of every sequence, computed from an embedding.
#[derive(Module, Debug)]
pub struct PTuning {
    /// `[stacks * virtual tokens, hidden]`.
    embedding: Param<Tensor<2>>,
    lstm: Option<Lstm>,
    /// None once the prompt is computed for good.
    maps: Option<Vec<Affine>>,
    #[module(skip)]
    stacks: usize,
}

/// A bidirectional LSTM: for each layer a cell from the first row to the last and one back.
#[derive(Module, Debug)]
pub struct Lstm {
    /// Forward and backward in turn.
    cells: Vec<Cell>,
}

/// Input, forget, candidate and output, in this order along the columns.
#[derive(Module, Debug)]
pub struct Cell {
    /// Weight `[in, 4 width]`, bias `[4 width]`.
    input: Affine,
    /// Weight `[width, 4 width]`, bias `[4 width]`.
    state: Affine,
}

impl Cell {
    /// The outputs of all rows, `[rows, width]`, in the order of the rows.
    fn forward(&self, x: Tensor<2>, backward: bool) -> Tensor<2> {
        let ([rows, _], [width, _]) = (x.dims(), self.state.weight.dims());
        let inputs = self.input.forward(x);
        let (mut hidden, mut memory) = (Tensor::zeros([1, width], &inputs.device()), None::<Tensor<2>>);
        let mut outputs = vec![];
        for step in 0..rows {
            let row = if backward { rows - 1 - step } else { step };
            let gates = inputs.clone().narrow(0, row, 1) + self.state.forward(hidden);
            let gate = |i: usize| gates.clone().narrow(1, i * width, width);
            let new = activation::sigmoid(gate(0)) * activation::tanh(gate(2));
            let kept = memory.map(|memory| activation::sigmoid(gate(1)) * memory);
            let now = kept.map_or(new.clone(), |kept| kept + new);
            hidden = activation::sigmoid(gate(3)) * activation::tanh(now.clone());
            memory = Some(now);
            outputs.push(hidden.clone());
        }
        if backward {
            outputs.reverse();
        }
        Tensor::cat(outputs, 0)
    }
}

impl PTuning {
    /// f(E), `[stacks * virtual tokens, hidden]`.
    fn rows(&self) -> Tensor<2> {
        let mut x = self.embedding.val();
        for pair in self.lstm.iter().flat_map(|lstm| lstm.cells.chunks(2)) {
            x = Tensor::cat(vec![pair[0].forward(x.clone(), false), pair[1].forward(x, true)], 1);
        }
        for (i, map) in self.maps.iter().flatten().enumerate() {
            x = map.forward(if i == 0 { x } else { activation::relu(x) });
        }
        x
    }
}

impl Method for PTuningConfig {
    const NAME: &'static str = "p-tuning";
    const PEFT_TYPE: &'static str = "P_TUNING";
    const HEAD_PREFIX: &'static str = "base_model.";
    type Tuner = PTuning;

    fn init(&self, base: &Base, seed: u64) -> Result<PTuning> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let (rows, width) = self.plan(shape)?;
        let embedding = Random::new(seed, "p_tuning.embedding").normal_tensor([rows, shape.hidden], 1.0, &device);
        let linear =
            |dims, bound: usize, name: String| torch_linear(dims, bound, seed, &format!("p_tuning.{name}"), &device);
        let lstm = (self.encoder_reparameterization_type == Reparameterization::Lstm).then(|| {
            let cell = |i: usize| {
                let inside = if i < 2 { shape.hidden } else { 2 * width };
                Cell {
                    input: linear([inside, 4 * width], width, format!("lstm.{i}.input")),
                    state: linear([width, 4 * width], width, format!("lstm.{i}.state")),
                }
            };
            Lstm { cells: (0..2 * self.encoder_num_layers).map(cell).collect() }
        });
        let widths = match lstm {
            Some(_) => vec![2 * width, 2 * width, shape.hidden],
            None => vec![shape.hidden, width, width, shape.hidden],
        };
        let map = |(i, dims): (usize, &[usize])| linear([dims[0], dims[1]], dims[0], format!("maps.{i}"));
        let maps = Some(widths.windows(2).enumerate().map(map).collect());
        Ok(PTuning { embedding: Param::from_tensor(embedding), lstm, maps, stacks: shape.stacks().len() })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let ((rows, h), d) = (self.plan(shape)?, shape.hidden);
        Ok(rows * d
            + match self.encoder_reparameterization_type {
                Reparameterization::Mlp => (d + 1) * h + (h + 1) * h + (h + 1) * d,
                Reparameterization::Lstm => {
                    let layer = |inside: usize| 2 * 4 * h * (inside + h + 2);
                    layer(d) + (self.encoder_num_layers - 1) * layer(2 * h) + (2 * h + 1) * 2 * h + (2 * h + 1) * d
                }
            })
    }

    /// Files hold the computed prompt only.
    fn key(&self, _name: &str, _shape: &Shape) -> Key {
        Key::plain("prompt_embeddings")
    }

    fn virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        derived_of_rows(shape)
    }

    fn to_saved(tuner: PTuning) -> PTuning {
        let rows = Param::initialized(tuner.embedding.id, tuner.rows());
        PTuning { embedding: rows, lstm: None, maps: None, ..tuner }
    }

    fn for_loading(&self, base: &Base) -> Result<PTuning> {
        // What dropped out while it was trained is there no more.
        let (rows, _) = PTuningConfig { encoder_dropout: 0.0, ..self.clone() }.plan(base.shape())?;
        let device = base.device().clone().autodiff();
        let embedding = Param::from_tensor(Tensor::zeros([rows, base.shape().hidden], &device));
        Ok(PTuning { embedding, lstm: None, maps: None, stacks: base.shape().stacks().len() })
    }
}

impl Adapter for PTuning {
    fn open<R>(&self, _batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Prompt { rows: self.rows(), stacks: self.stacks })
    }

    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(self.maps.is_some().then(|| AnyTuner::new(PTuningConfig::to_saved(self.clone()))))
    }
}

impl Procedure for PTuning {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use peft_core::load::Checkpoint;
    use peft_core::testing::tolerances::SAME_FUNCTION;
    use peft_core::testing::{assert_close, base, batch, device, fixtures::SHAPES, golden::Case, randomized};
    use peft_core::view::{tensors, with_values};
    use peft_core::{Head, Trained, Tuner};
    use proptest::prelude::*;

    use super::*;
    use crate::PromptTuningConfig;

    mod mlp {
        use super::*;
        peft_core::conformance!(
            PTuningConfig::new(5).with_hidden_size(7),
            skip(C1: "the virtual tokens are seen by all others", C3: "the sequence becomes longer")
        );
    }

    mod lstm {
        use super::*;
        peft_core::conformance!(
            PTuningConfig::new(5).with_hidden_size(7).with_encoder(Reparameterization::Lstm),
            skip(C1: "the virtual tokens are seen by all others", C3: "the sequence becomes longer")
        );
    }

    #[test]
    fn saved_prompts_equal_the_reference() {
        for (case, base) in [("p-tuning-t5", "t5"), ("p-tuning-llama", "llama")] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
            Case::open(dir, base).check_logits::<PTuningConfig>();
        }
    }

    /// What the reference calls the tensor that records call `name`.
    fn reference_name(name: &str) -> Key {
        let path: Vec<&str> = name.split('.').collect();
        match path[..] {
            ["embedding"] => Key::plain("embedding.weight"),
            ["maps", map, leaf] => {
                let name = format!("mlp_head.{}.{leaf}", 2 * map.parse::<usize>().unwrap());
                Key { name, transposed: leaf == "weight" }
            }
            ["lstm", "cells", cell, kind, leaf] => {
                let cell: usize = cell.parse().unwrap();
                let kind = if kind == "input" { "ih" } else { "hh" };
                let back = if cell % 2 == 1 { "_reverse" } else { "" };
                Key { name: format!("lstm_head.{leaf}_{kind}_l{}{back}", cell / 2), transposed: leaf == "weight" }
            }
            _ => unreachable!("{name}"),
        }
    }

    /// Logits, gradients and ten steps, with what the rows are computed by.
    #[test]
    fn equals_the_reference() {
        for name in ["p-tuning-mlp", "p-tuning-lstm"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
            let case = Case::open(dir.clone(), "roberta-classify");
            let (config, loaded) = case.load::<PTuningConfig>();
            let file = Checkpoint::open_file(&dir.join("encoder.safetensors")).unwrap();
            let fresh = Trained::new(config.init(&case.base, 0).unwrap(), loaded.head).unwrap();
            let mut values = BTreeMap::new();
            for name in tensors(&fresh).into_keys() {
                let Some(own) = name.strip_prefix("tuner.") else { continue };
                let Key { name: stored, transposed } = reference_name(own);
                let data = file.read_f32(&stored, file.shape(&stored).unwrap()).unwrap();
                let matrix = || Tensor::<2>::from_data(data.clone(), case.base.device()).transpose().into_data();
                values.insert(name, if transposed { matrix() } else { data });
            }
            case.check(with_values(fresh, &values).unwrap(), |name| match name.strip_prefix("head.") {
                Some(head) => {
                    let Key { name, transposed } = Head::key(head, case.base.shape().architecture);
                    Key { name: format!("base_model.{name}"), transposed }
                }
                None => reference_name(&name["tuner.".len()..]),
            });
        }
    }

    fn both() -> [PTuningConfig; 2] {
        [Reparameterization::Mlp, Reparameterization::Lstm]
            .map(|kind| PTuningConfig::new(5).with_hidden_size(7).with_encoder(kind))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn it_is_prompt_tuning_with_what_it_computes(seed: u64) {
            for (config, name) in both().into_iter().flat_map(|c| SHAPES.map(move |name| (c.clone(), name))) {
                let base = base(name, &device());
                let own = randomized(&config.init(&base, 0).unwrap(), seed).valid();
                let rows = [("prompt_embeddings".to_string(), own.rows().into_data())].into();
                let prompt = PromptTuningConfig::new(5).init(&base, 0).unwrap();
                let prompt = with_values(prompt, &rows).unwrap().valid();
                let run = |tuner: &dyn Fn() -> Tensor<3>| tuner().into_data();
                let found = run(&|| own.run(&base, &batch(&base)).unwrap().states);
                prop_assert_eq!(found, run(&|| prompt.run(&base, &batch(&base)).unwrap().states));
            }
        }

        #[test]
        fn rows_depend_on_all_with_an_lstm_and_on_themselves_with_an_mlp(seed: u64, moved in 0..5usize) {
            let base = base("roberta-tiny", &device());
            for config in both() {
                let own = randomized(&config.init(&base, 0).unwrap(), seed).valid();
                let mut values = tensors(&own);
                let before: Vec<f32> = own.rows().into_data().iter::<f32>().collect();
                let mut embedding: Vec<f32> = values["embedding"].iter::<f32>().collect();
                // The whole row, far: some unit behind a ReLU is sure to be open.
                embedding[moved * 24..(moved + 1) * 24].iter_mut().for_each(|x| *x = 3.0 - *x);
                values.insert("embedding".into(), burn::tensor::TensorData::new(embedding, [5, 24]));
                let after: Vec<f32> = with_values(own, &values).unwrap().rows().into_data().iter::<f32>().collect();
                for row in 0..5 {
                    let same = before[row * 24..(row + 1) * 24] == after[row * 24..(row + 1) * 24];
                    let lstm = config.encoder_reparameterization_type == Reparameterization::Lstm;
                    prop_assert_eq!(same, !lstm && row != moved, "row {} after row {}", row, moved);
                }
            }
        }
    }

    /// A first row has no state and no memory before it.
    #[test]
    fn a_cell_is_its_equations() {
        let base = base("roberta-tiny", &device());
        let config = PTuningConfig::new(1).with_hidden_size(3).with_encoder(Reparameterization::Lstm);
        let own = randomized(&config.init(&base, 0).unwrap(), 4).valid();
        let cell = &own.lstm.as_ref().unwrap().cells[1];
        let x = own.embedding.val();
        let gates = cell.input.forward(x.clone()) + cell.state.bias.val().unsqueeze();
        let gate = |i: usize| gates.clone().narrow(1, 3 * i, 3);
        let memory = activation::sigmoid(gate(0)) * activation::tanh(gate(2));
        let expected = activation::sigmoid(gate(3)) * activation::tanh(memory);
        assert_close(cell.forward(x, true), expected, SAME_FUNCTION, "a cell");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        for (config, words) in [
            (PTuningConfig::new(0), ["num_virtual_tokens", "0", "1 to 39"]),
            (PTuningConfig::new(3).with_hidden_size(0), ["encoder_hidden_size", "0", "1 to 384"]),
            (PTuningConfig { encoder_num_layers: 0, ..Default::default() }, ["encoder_num_layers", "0", "1 to 16"]),
            (PTuningConfig { encoder_dropout: 0.1, ..Default::default() }, ["encoder_dropout", "0.1", "0"]),
        ] {
            let message = config.init(&base, 0).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
