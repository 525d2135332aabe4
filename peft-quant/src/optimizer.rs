//! [`AdamW8`] as a rule of a run: `optim: adamw_bnb_8bit` (transformers' other name for it is `adamw_8bit`) and `paged_adamw_8bit`.

use burn::optim::{Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor, TensorData};
use burn_pack::Scalar;
use peft_core::Result;
use peft_core::train::{Optim, OtherRule, Paged, Pages, Rule, TrainConfig};

use crate::adamw::{AdamW8, Moments8};
use crate::blockwise::Blockwise;
use crate::map8::{Map8, Search};

/// AdamW with moments of eight bits a number, as bitsandbytes; those of tensors with fewer than 4096 elements are in f32.
pub const ADAMW_8BIT: Rule = Rule::Other(OtherRule {
    name: "adamw_bnb_8bit",
    build: |config, decay, pages| Optim::new(rule(config, decay, pages)),
});

/// The same with states in a file as far as memory is to hold no more of them.
pub const PAGED_ADAMW_8BIT: Rule = Rule::Other(OtherRule {
    name: "paged_adamw_8bit",
    build: |config, decay, pages| Optim::new(Paged::new(rule(config, decay, pages), pages)),
});

fn rule(config: &TrainConfig, weight_decay: f64, pages: &Pages) -> EightBit {
    let rule = AdamW8 {
        beta1: config.adam_beta1,
        beta2: config.adam_beta2,
        epsilon: config.adam_epsilon,
        weight_decay,
        search: Search::Nearest,
    };
    EightBit { rule, pages: pages.clone() }
}

#[derive(Clone)]
struct EightBit {
    rule: AdamW8,
    /// What goes wrong in a step is noted there.
    pages: Pages,
}

#[derive(Clone)]
struct State {
    step: u32,
    moments: Moments,
}

#[derive(Clone)]
enum Moments {
    Eight(Moments8),
    Full { first: Vec<f32>, second: Vec<f32> },
}

impl Moments {
    fn zeros(elements: usize) -> Result<Self> {
        match elements < Moments8::LEAST_ELEMENTS {
            true => Ok(Moments::Full { first: vec![0.; elements], second: vec![0.; elements] }),
            false => Moments8::zeros(elements).map(Moments::Eight),
        }
    }
}

impl EightBit {
    fn stepped(&self, rate: f64, gradients: &[f32], values: &mut [f32], state: Option<State>) -> Result<State> {
        let mut state = match state {
            Some(state) => state,
            None => State { step: 0, moments: Moments::zeros(values.len())? },
        };
        state.step += 1;
        match &mut state.moments {
            Moments::Eight(moments) => self.rule.step(moments, state.step, rate, gradients, values)?,
            Moments::Full { first, second } => {
                self.rule.step_in_f32([first, second], state.step, rate, gradients, values)?;
            }
        }
        Ok(state)
    }
}

impl Optimizer for EightBit {
    type State<const D: usize> = State;

    fn step<const D: usize>(
        &self,
        rate: f64,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<State>,
    ) -> (Tensor<D>, Option<State>) {
        let (device, shape) = (tensor.device(), tensor.shape());
        let gradients: Vec<f32> = gradient.into_data().iter().collect();
        let mut values: Vec<f32> = tensor.clone().into_data().iter().collect();
        match self.stepped(rate, &gradients, &mut values, state) {
            Ok(state) => (Tensor::from_data(TensorData::new(values, shape), &device), Some(state)),
            Err(error) => {
                self.pages.fail(error);
                (tensor, None)
            }
        }
    }

    fn to_device<const D: usize>(state: State, _: &Device) -> State {
        state
    }
}

impl RecordState for State {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_scalar(prefix, "step", Scalar::UInt(self.step.into()));
        let list = |values: &[f32]| TensorData::new(values.to_vec(), [values.len()]);
        let mut moment = |name: &str, moment: &Blockwise| {
            let codes = TensorData::new(moment.codes().to_vec(), [moment.len()]);
            out.push_tensor(prefix, &format!("{name}.codes"), codes);
            out.push_tensor(prefix, &format!("{name}.absmax"), list(moment.absmax()));
        };
        match &self.moments {
            Moments::Eight(moments) => {
                moment("first", moments.first());
                moment("second", moments.second());
            }
            Moments::Full { first, second } => {
                out.push_tensor(prefix, "first", list(first));
                out.push_tensor(prefix, "second", list(second));
            }
        }
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, _: &Device) -> Option<Self> {
        let Some(Scalar::UInt(step)) = src.take_scalar(prefix, "step") else { return None };
        let list = |data: TensorData| data.try_into_vec::<f32>().ok();
        let moments = match src.take_tensor(prefix, "first") {
            Some(first) => {
                Moments::Full { first: list(first)?, second: src.take_tensor(prefix, "second").and_then(list)? }
            }
            None => {
                let mut moment = |name: &str, map| {
                    let codes = src.take_tensor(prefix, &format!("{name}.codes"))?.try_into_vec::<u8>().ok()?;
                    let absmax = src.take_tensor(prefix, &format!("{name}.absmax")).and_then(list)?;
                    Blockwise::from_parts(map, Moments8::BLOCK, codes, absmax, ["codes", "absmax", "blocksize"]).ok()
                };
                Moments::Eight(
                    Moments8::from_parts(moment("first", Map8::signed())?, moment("second", Map8::unsigned())?).ok()?,
                )
            }
        };
        Some(State { step: step.try_into().ok()?, moments })
    }
}

#[cfg(test)]
mod tests {
    use peft_core::random::Random;
    use peft_core::train::Paging;

    use super::*;

    /// Tensors of both kinds: steps are AdamW8's, and go on from a saved state with the same bits, in memory and in a file.
    #[test]
    fn steps_go_on_from_saved_states() {
        let device = peft_core::device("flex").unwrap();
        let pages = Pages::new(Paging { above: 0, ..Paging::default() });
        let config = TrainConfig { adam_beta2: 0.99, ..TrainConfig::default() };
        let rule = rule(&config, 0.1, &pages);
        let paged = Paged::new(rule.clone(), &pages);
        for dims in [[50, 81], [50, 82]] {
            let draw = |i: u64| Random::new(i, "values").normal_tensor::<2>(dims, 1.0, &device);
            let (mut x, mut y, mut z) = (draw(0), draw(0), draw(0).into_data().iter().collect::<Vec<f32>>());
            let (mut state, mut away, mut direct) = (None, None, Moments::zeros(dims[0] * dims[1]).unwrap());
            assert_eq!(matches!(direct, Moments::Eight(_)), dims[1] == 82);
            for step in 1..=4 {
                (x, _) = rule.step(1e-2, x, draw(step), state);
                (y, away) = paged.step(1e-2, y, draw(step), away);
                let mut sink = StateSink::default();
                away.as_ref().unwrap().state_flatten("w", &mut sink);
                let mut source = StateSource::new(sink.scalars.into_iter().collect());
                sink.tensors.into_iter().for_each(|(name, data)| source.insert_tensor(name, data));
                state = State::state_unflatten("w", &mut source, &device);
                let gradients: Vec<f32> = draw(step).into_data().iter().collect();
                match &mut direct {
                    Moments::Eight(moments) => rule.rule.step(moments, step as u32, 1e-2, &gradients, &mut z).unwrap(),
                    Moments::Full { first, second } => {
                        rule.rule.step_in_f32([first, second], step as u32, 1e-2, &gradients, &mut z).unwrap();
                    }
                }
            }
            pages.check().unwrap();
            let x = x.into_data();
            assert_eq!(x, y.into_data());
            assert_eq!(x.iter::<f32>().collect::<Vec<_>>(), z);
        }
    }

    #[test]
    fn a_gradient_whose_square_is_not_finite_is_an_error() {
        let (device, pages) = (peft_core::device("flex").unwrap(), Pages::default());
        let x = Tensor::<1>::ones([3], &device);
        rule(&TrainConfig::default(), 0.0, &pages).step(0.1, x, Tensor::full([3], 1e30, &device), None);
        let error = pages.check().unwrap_err().to_string();
        assert!(error.contains("gradients, element 0"), "{error}");
    }
}
