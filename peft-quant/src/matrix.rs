//! Packed matrices in a base.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Device;
use half::{bf16, f16};
use peft_core::codes::{Codes, Rounding};
#[cfg(feature = "load")]
use peft_core::load::Blocks;
use peft_core::{Error, Packed, Result};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::bitsandbytes::Quantized;
use crate::blocks::PIECE;
use crate::{Element, FourBit, Grouped, Int8Rows, Scales, Scheme};

/// A codec's matrix in a base. Codes lie as in files, `[out, in]`.
#[derive(Clone, Debug)]
pub struct Matrix<C> {
    codec: C,
    dims: [usize; 2],
    device: Device,
}

/// A codec of matrices.
pub trait Codec: Debug + Send + Sync + 'static {
    /// Its name.
    fn kind(&self) -> String;

    /// The extents, `[out, in]` of a matrix.
    fn dims(&self) -> Vec<usize>;

    /// Some columns of some rows, that is the weights that some outputs have for some inputs, decoded row by row into a slice of that
    /// length. Products ask for many small tiles, mostly of 64 by 256, from several threads.
    ///
    /// # Panics
    /// If there is no such tile, or the slice has another length.
    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]);

    /// Some rows as codes, with scale and minimum of each block, if they lie so ([`Packed::codes`]): products of few rows, as in
    /// generation, take these.
    fn codes(&self, _rows: Range<usize>, _scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        None
    }

    /// Some rows, decoded by all threads.
    ///
    /// # Panics
    /// If there are no such rows.
    fn rows(&self, rows: Range<usize>) -> Vec<f32> {
        let columns = self.dims()[1];
        let mut out = vec![0.; rows.len() * columns];
        let chunks = out.par_chunks_mut(columns).zip(rows.into_par_iter());
        chunks.for_each(|(out, row)| self.tile(row..row + 1, 0..columns, out));
        out
    }
}

impl<C: Codec> Matrix<C> {
    /// A codec on a base's device.
    ///
    /// # Errors
    /// If it is no matrix.
    pub fn packed(codec: C, device: &Device) -> Result<Arc<dyn Packed>> {
        let dims = codec.dims();
        let [outputs, inputs] = dims[..] else {
            return Err(Error::config("shape", format!("{dims:?}"), "that of a matrix"));
        };
        Ok(Arc::new(Matrix { codec, dims: [inputs, outputs], device: device.clone().inner() }))
    }
}

impl<C> Matrix<C> {
    /// What it is packed by.
    pub fn codec(&self) -> &C {
        &self.codec
    }
}

impl<C: Codec> Packed for Matrix<C> {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn kind(&self) -> String {
        self.codec.kind()
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn outputs(&self, outputs: Range<usize>) -> Vec<f32> {
        self.codec.rows(outputs)
    }

    fn tile(&self, outputs: Range<usize>, inputs: Range<usize>, out: &mut [f32]) {
        self.codec.tile(outputs, inputs, out);
    }

    fn codes(&self, outputs: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        self.codec.codes(outputs, scales)
    }
}

/// Shared with whoever changes parts of it.
impl<C: Codec> Codec for Arc<C> {
    fn kind(&self) -> String {
        (**self).kind()
    }

    fn dims(&self) -> Vec<usize> {
        (**self).dims()
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        (**self).tile(rows, columns, out);
    }

    fn codes(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        (**self).codes(rows, scales)
    }
}

/// Rounds numbers to another type.
fn round<E: Element>(numbers: &mut [f32]) {
    let mut rounded = E::zeros(numbers.len().min(PIECE));
    for numbers in numbers.chunks_mut(PIECE) {
        let rounded = &mut rounded[..numbers.len()];
        E::narrow(numbers, rounded);
        E::widen(rounded, numbers);
    }
}

impl Codec for FourBit {
    /// That of its [`Scheme`], with the size of a block that is none of 64.
    fn kind(&self) -> String {
        let double = matches!(self.scales(), Scales::Nested { .. });
        let scheme = Scheme::FourBit { codebook: self.codebook(), double };
        match self.block() {
            Scheme::BLOCK => scheme.to_string(),
            block => format!("{scheme} in blocks of {block}"),
        }
    }

    fn dims(&self) -> Vec<usize> {
        FourBit::dims(self).to_vec()
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        self.decode_tile(rows, columns, out);
    }

    fn codes(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        self.rounded_codes(Rounding::F32, rows, scales)
    }
}

impl Codec for Int8Rows {
    fn kind(&self) -> String {
        Scheme::Int8.to_string()
    }

    fn dims(&self) -> Vec<usize> {
        Int8Rows::dims(self).to_vec()
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        self.decode_tile(rows, columns, out);
    }

    fn codes(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        self.codes_of(rows, scales)
    }
}

/// Weights of four bits are rounded to the type that they had before.
impl Codec for Quantized {
    fn kind(&self) -> String {
        match self {
            Quantized::FourBit { packed, .. } => packed.kind(),
            Quantized::Int8(packed) => packed.kind(),
        }
    }

    fn dims(&self) -> Vec<usize> {
        match self {
            Quantized::FourBit { packed, .. } => Codec::dims(packed),
            Quantized::Int8(packed) => Codec::dims(packed),
        }
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        match self {
            Quantized::FourBit { packed, dtype } => {
                packed.decode_tile(rows, columns, out);
                match dtype {
                    Dtype::F16 => round::<f16>(out),
                    Dtype::BF16 => round::<bf16>(out),
                    _ => {}
                }
            }
            Quantized::Int8(packed) => packed.decode_tile(rows, columns, out),
        }
    }

    fn codes(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        match self {
            Quantized::FourBit { packed, dtype } => {
                let rounding = match dtype {
                    Dtype::F16 => Rounding::F16,
                    Dtype::BF16 => Rounding::Bf16,
                    _ => Rounding::F32,
                };
                packed.rounded_codes(rounding, rows, scales)
            }
            Quantized::Int8(packed) => packed.codes_of(rows, scales),
        }
    }
}

impl Codec for Grouped {
    fn kind(&self) -> String {
        let order = if self.groups().is_some() { ", ordered" } else { "" };
        format!("int{} in groups of {}{order}", self.bits(), self.group())
    }

    fn dims(&self) -> Vec<usize> {
        Grouped::dims(self).to_vec()
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        self.decode_tile(rows, columns, out);
    }

    fn codes(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        self.codes_of(rows, scales)
    }
}

/// In the types of GGUF.
#[cfg(feature = "load")]
impl Codec for Blocks {
    fn kind(&self) -> String {
        Blocks::kind(self).to_string()
    }

    fn dims(&self) -> Vec<usize> {
        Blocks::dims(self).to_vec()
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        self.decode_tile(rows, columns, out);
    }

    fn codes(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        Blocks::codes(self, rows, scales)
    }
}
