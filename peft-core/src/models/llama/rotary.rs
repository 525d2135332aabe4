//! Angles of rotary positions: position times frequency.

use std::f64::consts::TAU;

use burn::tensor::{Float, Int, Tensor, TensorData};

use super::{Llama, Scaling};
use crate::ops::turned;
use crate::transfer::{read, send};
use crate::{Sequence, Shape};

/// Cosines and sines of a sequence's rows, `[batch or 1, 1, rows, width / 2]`.
#[derive(Clone)]
pub(crate) struct Rotary {
    cosine: Tensor<4>,
    sine: Tensor<4>,
}

impl Rotary {
    /// Those of the last rows of a sequence, of which each has the position of the number of real rows before it.
    pub fn new(shape: &Shape, llama: &Llama, x: &Sequence) -> Self {
        let (rows, device) = (x.hidden.dims()[1], x.hidden.device().inner());
        let all = x.past + rows;
        let positions: Tensor<2, Int> = match &x.mask.padding {
            None => Tensor::<1, Int>::arange((x.past + x.offset) as i64..(all + x.offset) as i64, &device).unsqueeze(),
            Some(padding) => {
                let counted = padding.clone().bool_not().int().cumsum(1) + (x.offset as i64 - 1);
                counted.clamp_min(0).narrow(1, x.past, rows)
            }
        };
        // Each row by its own length, so that it does not depend on its neighbours.
        let lengths = match &x.mask.padding {
            Some(padding) if shape.dynamic().is_some() => {
                let real = read(padding.clone().bool_not().int().sum_dim(1));
                real.iter::<i64>().map(|real| real as usize + x.offset).collect()
            }
            _ => vec![all + x.offset],
        };
        let half = shape.head_width / 2;
        let of_rows = lengths.iter().flat_map(|length| frequencies(shape, llama, *length)).collect::<Vec<_>>();
        let frequencies = send::<3, Float>(TensorData::new(of_rows, [lengths.len(), 1, half]), &device);
        let angles = positions.float().unsqueeze_dim::<3>(2) * frequencies;
        let angles = angles.unsqueeze_dim::<4>(1);
        Rotary { cosine: angles.clone().cos(), sine: angles.sin() }
    }

    /// Turns queries or keys `[batch, heads, rows, width]`.
    pub fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        turned(x, self.cosine.clone(), self.sine.clone())
    }
}

/// Radians a position for each pair of channels, in a sequence of this length; in f32 as the reference computes them.
fn frequencies(shape: &Shape, llama: &Llama, length: usize) -> Vec<f32> {
    let width = shape.head_width as f64;
    let base = match llama.scaling {
        Scaling::Dynamic { factor } if length > shape.positions => {
            let stretch = factor * length as f64 / shape.positions as f64 - (factor - 1.0);
            llama.theta * stretch.powf(width / (width - 2.0))
        }
        _ => llama.theta,
    };
    let scaled = |pair: usize| {
        let frequency = base.powf(-2.0 * pair as f64 / width);
        match llama.scaling {
            Scaling::None | Scaling::Dynamic { .. } => frequency,
            Scaling::Linear { factor } => frequency / factor,
            Scaling::Llama3 { factor, low, high, original } => {
                let turns = original as f64 * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    };
    (0..shape.head_width / 2).map(|pair| scaled(pair) as f32).collect()
}
