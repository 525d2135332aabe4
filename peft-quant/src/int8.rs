//! LLM.int8(): eight bits a weight, a scale for each row. Dettmers et al., "LLM.int8()", 2022.
//!
//! A row's scale is its largest magnitude, and a code is the weight times 127 times the reciprocal of that (torch divides a number by a
//! tensor so), rounded to the nearest, ties to even. Numbers are rounded to f16 first, as in bitsandbytes: what f16 does not hold
//! cannot be encoded.

use std::ops::Range;

use half::f16;
use peft_core::codes::{Codes, Form};
use peft_core::{Error, Result};
use rayon::prelude::*;

use crate::Element;
use crate::blocks::{self, PIECE};
use crate::wide::{Width, wide};

/// A matrix of eight bits a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Rows {
    dims: [usize; 2],
    codes: Vec<i8>,
    scales: Vec<f32>,
}

/// The reciprocal of 127, as bitsandbytes has it.
const BY: f32 = 1. / 127.;

impl Int8Rows {
    /// Encodes a matrix `[out, in]`.
    ///
    /// # Errors
    /// If the extents do not give the number of values, or f16 does not hold one of them.
    pub fn encode<E: Element>(values: &[E], dims: [usize; 2]) -> Result<Self> {
        Ok(Self::encode_without_outliers(values, dims, 0.)?.0)
    }

    /// Encodes inputs `[rows, in]` but for the columns that hold a magnitude of the threshold or more, and names those columns. Their
    /// codes are 0, and outliers do not enter a row's scale. 0 is no threshold.
    ///
    /// # Errors
    /// If the extents do not give the number of values, f16 does not hold one of them, or the threshold is negative or not a number.
    pub fn encode_without_outliers<E: Element>(
        values: &[E],
        dims: [usize; 2],
        threshold: f32,
    ) -> Result<(Self, Vec<usize>)> {
        if threshold.is_nan() || threshold < 0. {
            return Err(Error::config("llm_int8_threshold", threshold, "0, for none, or more"));
        }
        let count = blocks::elements(&dims)?;
        blocks::expect_len("weights", values.len(), count, &format!("of the shape {dims:?}"))?;
        let (columns, width) = (dims[1], Width::best());
        let (mut codes, mut scales) = (vec![0; count], vec![0.; dims[0]]);
        let rows = values.par_chunks(columns).zip(codes.par_chunks_mut(columns)).zip(scales.par_iter_mut()).enumerate();
        let found = rows.map(|(row, ((values, codes), scale))| {
            let mut x = vec![0.; columns];
            E::widen(values, &mut x);
            round_to_half(&mut x);
            let Some(largest) = blocks::absmax(width, &x) else {
                let index = x.iter().position(|x| !x.is_finite()).unwrap_or_default();
                E::widen(values, &mut x);
                return Err((row * columns + index, x[index]));
            };
            let mut outliers = vec![];
            *scale = largest;
            if threshold > 0. && largest >= threshold {
                outliers = (0..columns).filter(|column| x[*column].abs() >= threshold).collect();
                outliers.iter().for_each(|column| x[*column] = 0.);
                *scale = x.iter().fold(0., |largest, x| x.abs().max(largest));
            }
            encode_row(width, &x, 127. * (1. / *scale), codes);
            Ok(outliers)
        });
        let found: Vec<_> = found.collect();
        let mut outliers = vec![];
        for row in found {
            let expected = "a finite number that f16 holds, at most 65504";
            outliers.extend(
                row.map_err(|(index, value)| Error::config(format!("weights, element {index}"), value, expected))?,
            );
        }
        outliers.sort_unstable();
        outliers.dedup();
        if !outliers.is_empty() {
            codes.par_chunks_mut(columns).for_each(|codes| outliers.iter().for_each(|column| codes[*column] = 0));
        }
        Ok((Int8Rows { dims, codes, scales }, outliers))
    }

    /// From its parts, as a file has them.
    ///
    /// # Errors
    /// If there is not one code a weight or one scale a row, or a scale is not finite.
    pub fn from_parts(dims: [usize; 2], codes: Vec<i8>, scales: Vec<f32>) -> Result<Self> {
        let count = blocks::elements(&dims)?;
        blocks::expect_len("weight", codes.len(), count, &format!("of the shape {dims:?}"))?;
        blocks::expect_len("SCB", scales.len(), dims[0], "one for each row")?;
        blocks::expect_finite("SCB", &scales)?;
        Ok(Int8Rows { dims, codes, scales })
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// One for each weight, row by row.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The largest magnitude of each row.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The bytes that codes and scales take.
    pub fn size(&self) -> usize {
        self.codes.len() + 4 * self.scales.len()
    }

    /// All weights.
    pub fn decode<E: Element>(&self) -> Vec<E> {
        let mut out = E::zeros(self.codes.len());
        self.decode_from(0, &mut out);
        out
    }

    /// Some rows, into a slice of that length.
    ///
    /// # Errors
    /// If there are no such rows, or the slice has another length.
    pub fn decode_rows<E: Element>(&self, rows: Range<usize>, out: &mut [E]) -> Result<()> {
        blocks::expect_rows(&self.dims, &rows, out.len())?;
        self.decode_from(rows.start, out);
        Ok(())
    }

    /// Some columns of some rows, on this thread.
    pub(crate) fn decode_tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        let width = Width::best();
        for (row, out) in rows.zip(out.chunks_exact_mut(columns.len())) {
            decode_row(width, &self.codes[row * self.dims[1]..][columns.clone()], self.scales[row], out);
        }
    }

    /// Some rows as codes, each a block, if a row is a multiple of 32 weights.
    pub(crate) fn codes_of(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        let columns = self.dims[1];
        if !columns.is_multiple_of(32) {
            return None;
        }
        scales.clear();
        scales.extend(self.scales[rows.clone()].iter().map(|scale| [scale * BY, 0.]));
        let bytes = bytemuck::cast_slice(&self.codes[rows.start * columns..rows.end * columns]);
        Some(Codes { form: Form::Eight, bytes, block: columns, stride: columns, before: 0 })
    }

    fn decode_from<E: Element>(&self, row: usize, out: &mut [E]) {
        let (columns, width) = (self.dims[1], Width::best());
        let codes = self.codes[row * columns..].par_chunks(columns);
        out.par_chunks_mut(columns).zip(codes).zip(&self.scales[row..]).for_each(|((out, codes), scale)| {
            for (out, codes) in out.chunks_mut(PIECE).zip(codes.chunks(PIECE)) {
                E::fill(out, |out| decode_row(width, codes, *scale, out));
            }
        });
    }
}

fn round_to_half(x: &mut [f32]) {
    let mut half = vec![f16::ZERO; x.len()];
    f16::narrow(x, &mut half);
    f16::widen(&half, x);
}

wide! {
    /// A row of zeros, whose scale has no reciprocal, has codes 0.
    fn encode_row(x: &[f32], by: f32, codes: &mut [i8]) {
        for (x, code) in x.iter().zip(codes) {
            *code = (*x * by).round_ties_even() as i8;
        }
    }
}

wide! {
    fn decode_row(codes: &[i8], scale: f32, out: &mut [f32]) {
        for (code, out) in codes.iter().zip(out) {
            *out = f32::from(*code) * scale * BY;
        }
    }
}
