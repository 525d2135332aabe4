//! Integers of 2, 3, 4 or 8 bits with a scale and a zero point for each group of inputs, as GPTQ and AWQ store them.
//!
//! `w = scale (q - zero)`, a group being `group` consecutive inputs of one output. Frantar et al., "GPTQ", 2023. Encoding rounds to the
//! nearest between the least and the largest weight of the group, 0 included; what GPTQ or AWQ chose by their data is read as it is.
//!
//! Codes lie output by output, as one little-endian stream of bits each. A file's words go down its inputs, so its matrix of words is
//! this one's transposed; [`Words`] has that form.

use std::ops::Range;

use half::f16;
use peft_core::codes::{Codes, Form, INTEGERS, Order, Rounding};
use peft_core::{Error, Result};
use rayon::prelude::*;

use crate::Element;
use crate::blocks::{self, PIECE};
use crate::wide::{Width, wide};
use crate::words::{self, Packing, Words};

/// A matrix of integers with scales and zero points.
#[derive(Clone, Debug, PartialEq)]
pub struct Grouped {
    bits: u32,
    dims: [usize; 2],
    group: usize,
    codes: Vec<u32>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    groups: Option<Vec<u32>>,
}

impl Grouped {
    /// Encodes a matrix `[out, in]`. A symmetric one has the middle code for 0 in every group (in GPTQ's own code
    /// half of the range is then cut off where no weight of a group is negative).
    ///
    /// # Errors
    /// If the bits are not 2, 3, 4 or 8, the inputs are not a multiple of the group and of what a word holds, the number of values is
    /// not that of the extents, or a value is not finite.
    pub fn encode<E: Element>(
        values: &[E],
        dims: [usize; 2],
        bits: u32,
        group: usize,
        symmetric: bool,
    ) -> Result<Self> {
        let (row_words, row_groups) = check(dims, bits, group)?;
        let [rows, columns] = dims;
        blocks::expect_len("weights", values.len(), rows * columns, &format!("of the shape {dims:?}"))?;
        let mut codes = vec![0; rows * row_words];
        let (mut scales, mut zeros) = (vec![0.; rows * row_groups], vec![0.; rows * row_groups]);
        let (width, levels) = (Width::best(), ((1u32 << bits) - 1) as f32);
        let parts = codes
            .par_chunks_mut(row_words)
            .zip(scales.par_chunks_mut(row_groups))
            .zip(zeros.par_chunks_mut(row_groups));
        parts.zip(values.par_chunks(columns)).enumerate().try_for_each(
            |(row, (((codes, scales), zeros), values))| {
                let (mut x, mut row_codes) = (vec![0.; columns], vec![0; columns]);
                E::widen(values, &mut x);
                if let Some(index) = x.iter().position(|x| !x.is_finite()) {
                    return Err(blocks::not_finite("weights", row * columns + index, x[index]));
                }
                for (i, (x, codes)) in x.chunks(group).zip(row_codes.chunks_mut(group)).enumerate() {
                    let [least, largest] = range(width, x);
                    (scales[i], zeros[i]) = scale_and_zero(least, largest, levels, symmetric);
                    if !scales[i].is_normal() {
                        let key = format!("weights, row {row}, group {i}");
                        let found = format!("values from {least:e} to {largest:e}");
                        return Err(Error::config(key, found, format!("a range that f32 cuts into {levels} steps")));
                    }
                    encode_group(width, x, scales[i], zeros[i], levels, codes);
                }
                words::pack(width, bits, &row_codes, codes);
                Ok(())
            },
        )?;
        Ok(Grouped { bits, dims, group, codes, scales, zeros, groups: None })
    }

    /// From the words of a file.
    ///
    /// # Errors
    /// If the bits are not 2, 3, 4 or 8 (4 for AWQ), extents do not divide, a part has not the length that follows from them, a scale is not
    /// finite, or `g_idx` names a group that there is not.
    pub fn from_words(dims: [usize; 2], bits: u32, group: usize, packing: Packing, words: &Words) -> Result<Self> {
        let (_, row_groups) = check(dims, bits, group)?;
        packing.check(dims, bits)?;
        let [rows, columns] = dims;
        let count = |part: &str| format!("of {part} of {bits} bits, {dims:?} in groups of {group}");
        let expected = words::count(rows * columns, bits);
        blocks::expect_len("qweight", words.qweight.len(), expected, &count("codes"))?;
        let expected = words::count(rows * row_groups, bits);
        blocks::expect_len("qzeros", words.qzeros.len(), expected, &count("zero points"))?;
        blocks::expect_len("scales", words.scales.len(), rows * row_groups, &count("codes"))?;
        let scales: Vec<f32> = words::transposed(&words.scales, rows).iter().map(|scale| scale.to_f32()).collect();
        blocks::expect_finite("scales", &scales)?;
        let (codes, zeros) = packing.unpack(dims, bits, row_groups, words);
        let groups = match &words.g_idx {
            None => None,
            Some(groups) => checked_groups(groups, columns, group)?,
        };
        Ok(Grouped { bits, dims, group, codes, scales, zeros, groups })
    }

    /// From codes output by output, one a byte, and what goes with them.
    pub(crate) fn from_codes(
        dims: [usize; 2],
        bits: u32,
        group: usize,
        codes: &[u8],
        scales: Vec<f32>,
        zeros: Vec<f32>,
    ) -> Result<Self> {
        check(dims, bits, group)?;
        blocks::expect_finite("scales", &scales)?;
        let mut packed = vec![0; words::count(codes.len(), bits)];
        words::pack(Width::best(), bits, codes, &mut packed);
        Ok(Grouped { bits, dims, group, codes: packed, scales, zeros, groups: None })
    }

    /// The words of a file; scales are rounded to f16.
    ///
    /// # Errors
    /// If the packing does not hold the bits, the extents or a zero point, or f16 does not hold a scale.
    pub fn to_words(&self, packing: Packing) -> Result<Words> {
        packing.check(self.dims, self.bits)?;
        packing.pack(self)
    }

    /// The same with other zero points, which need not be integers: QA-LoRA's merge.
    ///
    /// # Errors
    /// If there is not one for each group of each output, or one is not finite.
    pub fn with_zeros(self, zeros: Vec<f32>) -> Result<Self> {
        blocks::expect_len("zeros", zeros.len(), self.zeros.len(), "one for each group of each output")?;
        blocks::expect_finite("zeros", &zeros)?;
        Ok(Grouped { zeros, ..self })
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// Inputs for each scale.
    pub fn group(&self) -> usize {
        self.group
    }

    /// The codes, output by output, the code of input i at bits `i * bits ..` of the output's stream of little-endian words.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// `[out, in / group]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// `[out, in / group]`.
    pub fn zeros(&self) -> &[f32] {
        &self.zeros
    }

    /// The group of each input where a group is not consecutive inputs: GPTQ's `desc_act`.
    pub fn groups(&self) -> Option<&[u32]> {
        self.groups.as_deref()
    }

    /// The bytes that it takes.
    pub fn size(&self) -> usize {
        4 * (self.codes.len() + self.scales.len() + self.zeros.len() + self.groups.as_ref().map_or(0, Vec::len))
    }

    /// All weights.
    pub fn decode<E: Element>(&self) -> Vec<E> {
        let mut out = E::zeros(self.dims[0] * self.dims[1]);
        self.decode_from(0, &mut out);
        out
    }

    /// Some rows, that is outputs, into a slice of that length.
    ///
    /// # Errors
    /// If there are no such rows, or the slice has another length.
    pub fn decode_rows<E: Element>(&self, rows: Range<usize>, out: &mut [E]) -> Result<()> {
        blocks::expect_rows(&self.dims, &rows, out.len())?;
        self.decode_from(rows.start, out);
        Ok(())
    }

    fn decode_from<E: Element>(&self, first: usize, out: &mut [E]) {
        let columns = self.dims[1];
        out.par_chunks_mut(columns).enumerate().for_each(|(row, out)| {
            for (i, out) in out.chunks_mut(PIECE).enumerate() {
                E::fill(out, |out| self.decode_run(first + row, i * PIECE, out));
            }
        });
    }

    /// Some columns of some rows, on this thread.
    pub(crate) fn decode_tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(columns.len())) {
            for (i, out) in out.chunks_mut(PIECE).enumerate() {
                self.decode_run(row, columns.start + i * PIECE, out);
            }
        }
    }

    /// Some rows as codes, if they have four bits and groups are consecutive inputs, a multiple of 32 of them.
    pub(crate) fn codes_of(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        if self.bits != 4 || !self.group.is_multiple_of(32) || self.groups.is_some() || cfg!(target_endian = "big") {
            return None;
        }
        let (row_words, row_groups) = (self.dims[1] / 8, self.dims[1] / self.group);
        let groups = rows.start * row_groups..rows.end * row_groups;
        scales.clear();
        let pairs = self.scales[groups.clone()].iter().zip(&self.zeros[groups]);
        scales.extend(pairs.map(|(scale, zero)| [*scale, -zero * scale]));
        Some(Codes {
            form: Form::Four { values: &INTEGERS, order: Order::LowerFirst, rounding: Rounding::F32 },
            bytes: bytemuck::cast_slice(&self.codes[rows.start * row_words..rows.end * row_words]),
            block: self.group,
            stride: self.group / 2,
            before: 0,
        })
    }

    /// At most [`PIECE`] weights of a row from a column on.
    fn decode_run(&self, row: usize, first: usize, out: &mut [f32]) {
        let (width, row_groups) = (Width::best(), self.dims[1] / self.group);
        let (scales, zeros) = (&self.scales[row * row_groups..], &self.zeros[row * row_groups..]);
        let row_words = self.codes.len() / self.dims[0];
        let row_codes = &self.codes[row * row_words..][..row_words];
        // Whole words of any number of bits begin at every 32nd code.
        let (start, mut codes) = (first / 32 * 32, [0; PIECE + 32]);
        let end = (first - start + out.len()).next_multiple_of(32);
        words::unpack(width, self.bits, &row_codes[words::count(start, self.bits)..], &mut codes[..end]);
        let codes = &codes[first - start..];
        match &self.groups {
            None => {
                let (mut codes, mut out, mut column) = (codes, out, first);
                while !out.is_empty() {
                    let group = column / self.group;
                    let here = ((group + 1) * self.group - column).min(out.len());
                    let (now, later) = out.split_at_mut(here);
                    decode_group(width, &codes[..here], scales[group], zeros[group], now);
                    (codes, out, column) = (&codes[here..], later, column + here);
                }
            }
            Some(groups) => {
                for ((out, code), group) in out.iter_mut().zip(codes).zip(&groups[first..]) {
                    *out = scales[*group as usize] * (f32::from(*code) - zeros[*group as usize]);
                }
            }
        }
    }
}

/// Refuses bits and extents that cannot be, and gives the words and the groups of an output.
fn check(dims: [usize; 2], bits: u32, group: usize) -> Result<(usize, usize)> {
    if ![2, 3, 4, 8].contains(&bits) {
        return Err(Error::config("bits", bits, "2, 3, 4 or 8"));
    }
    blocks::elements(&dims)?;
    if group == 0 || !dims[1].is_multiple_of(group) {
        return Err(Error::config("group_size", group, format!("a divisor of the {} inputs", dims[1])));
    }
    words::expect_whole("inputs", dims[1], bits)?;
    Ok((words::count(dims[1], bits), dims[1] / group))
}

/// The groups of inputs, if they are not the consecutive ones.
fn checked_groups(groups: &[i32], columns: usize, group: usize) -> Result<Option<Vec<u32>>> {
    blocks::expect_len("g_idx", groups.len(), columns, "one for each input")?;
    let count = columns / group;
    let checked = groups.iter().enumerate().map(|(i, found)| match u32::try_from(*found) {
        Ok(found) if (found as usize) < count => Ok(found),
        _ => Err(Error::config(format!("g_idx, element {i}"), found, format!("a group below {count}"))),
    });
    let checked: Vec<u32> = checked.collect::<Result<_>>()?;
    let consecutive = checked.iter().enumerate().all(|(i, found)| *found as usize == i / group);
    Ok((!consecutive).then_some(checked))
}

/// The step of codes from 0 to `levels`, and the code of 0. Nothing but zeros has the range [-1, 1].
fn scale_and_zero(least: f32, largest: f32, levels: f32, symmetric: bool) -> (f32, f32) {
    let (mut low, mut high) = (least.min(0.), largest.max(0.));
    if symmetric {
        high = high.max(-low);
        low = -high;
    }
    if low == 0. && high == 0. {
        (low, high) = (-1., 1.);
    }
    let scale = (high - low) / levels;
    (scale, if symmetric { (levels + 1.) / 2. } else { (low / scale).round_ties_even().abs() })
}

wide! {
    fn range(x: &[f32]) -> [f32; 2] {
        let (mut least, mut largest) = (f32::INFINITY, f32::NEG_INFINITY);
        for x in x {
            least = if *x < least { *x } else { least };
            largest = if *x > largest { *x } else { largest };
        }
        [least, largest]
    }
}

wide! {
    fn encode_group(x: &[f32], scale: f32, zero: f32, levels: f32, codes: &mut [u8]) {
        for (x, code) in x.iter().zip(codes) {
            *code = ((*x / scale).round_ties_even() + zero).clamp(0., levels) as u8;
        }
    }
}

wide! {
    fn decode_group(codes: &[u8], scale: f32, zero: f32, out: &mut [f32]) {
        for (code, out) in codes.iter().zip(out) {
            *out = scale * (f32::from(*code) - zero);
        }
    }
}

impl Packing {
    /// The words of a matrix that it can hold.
    fn pack(self, from: &Grouped) -> Result<Words> {
        let ([rows, columns], bits) = (from.dims(), from.bits());
        let packed = |mut codes: Vec<u8>| {
            if self == Packing::Awq {
                codes.chunks_exact_mut(8).for_each(|fields| {
                    let found: [u8; 8] = std::array::from_fn(|field| fields[field]);
                    words::AWQ.iter().zip(fields).for_each(|(output, field)| *field = found[*output]);
                });
            }
            let mut words = vec![0; words::count(codes.len(), bits)];
            words::pack(Width::best(), bits, &codes, &mut words);
            words
        };
        let qweight = if self == Packing::Awq {
            let mut codes = vec![0; rows * columns];
            words::unpack(Width::best(), bits, from.codes(), &mut codes);
            packed(words::transposed(&codes, columns))
        } else {
            words::transposed(from.codes(), from.codes().len() / rows)
        };
        let groups = columns / from.group();
        let place = |i: usize| format!("of output {}, group {}", i / groups, i % groups);
        let least = if self == Packing::Gptq { 1. } else { 0. };
        let largest = least + ((1u32 << bits) - 1) as f32;
        let zero = |(i, zero): (usize, &f32)| {
            if zero.fract() == 0. && (least..=largest).contains(zero) {
                return Ok((zero - least) as u8);
            }
            Err(Error::config(
                format!("zero point {}", place(i)),
                zero,
                format!("an integer from {least} to {largest}"),
            ))
        };
        let zeros: Vec<u8> = from.zeros().iter().enumerate().map(zero).collect::<Result<_>>()?;
        let scale = |(i, scale): (usize, &f32)| match f16::from_f32(*scale) {
            half if half.is_finite() => Ok(half),
            _ => Err(Error::config(format!("scale {}", place(i)), scale, "a number that f16 holds, at most 65504")),
        };
        let scales: Vec<f16> = from.scales().iter().enumerate().map(scale).collect::<Result<_>>()?;
        let group_of = |input: usize| from.groups().map_or((input / from.group()) as i32, |of| of[input].cast_signed());
        if self == Packing::Awq && from.groups().is_some() {
            return Err(Error::config(
                "g_idx",
                "groups of inputs that are not consecutive",
                "consecutive ones, which is what AWQ has",
            ));
        }
        Ok(Words {
            qweight,
            qzeros: packed(words::transposed(&zeros, groups)),
            scales: words::transposed(&scales, groups),
            g_idx: (self != Packing::Awq).then(|| (0..columns).map(group_of).collect()),
        })
    }
}
