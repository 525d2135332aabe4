//! The packing of a base's linear maps.

use peft_core::{Base, Part, Place, Result, Shape, Weight};
use safetensors::Dtype;
use serde_json::Value;

use crate::bitsandbytes::Quantized;
use crate::{FourBit, Int8Rows, Matrix, Scheme};

impl Scheme {
    /// Packs a matrix `[out, in]`, which had numbers of this type before.
    ///
    /// # Errors
    /// If a number is not finite, or one that f16 does not hold is to have eight bits.
    pub fn pack(self, values: &[f32], dims: [usize; 2], dtype: Dtype) -> Result<Quantized> {
        match self {
            Scheme::FourBit { codebook, double } => {
                let packed = FourBit::encode(values, &dims, codebook, Self::BLOCK)?;
                let packed = if double { packed.with_nested_scales()? } else { packed };
                Ok(Quantized::FourBit { packed, dtype })
            }
            Scheme::Int8 => Int8Rows::encode(values, dims).map(Quantized::Int8),
        }
    }
}

/// What packing has done to a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// The module's path.
    pub module: String,
    /// `[out, in]`.
    pub dims: [usize; 2],
    /// The bytes that it takes now.
    pub bytes: usize,
    /// The norm of what the weights are off by, relative to their own.
    pub error: f64,
}

impl Cost {
    /// Compares a packed matrix with the values that were packed.
    pub fn of(module: &str, values: &[f32], packed: &Quantized) -> Self {
        let (dims, bytes) = match packed {
            Quantized::FourBit { packed, .. } => ([packed.dims()[0], packed.dims()[1]], packed.size()),
            Quantized::Int8(packed) => (packed.dims(), packed.size()),
        };
        let (mut off, mut norm) = (0., 0.);
        // A few rows at a time, so that the decoded matrix is never there as a whole.
        let rows = (1usize << 20).div_ceil(dims[1]);
        for first in (0..dims[0]).step_by(rows) {
            let decoded = crate::matrix::Codec::rows(packed, first..(first + rows).min(dims[0]));
            for (x, y) in values[first * dims[1]..].iter().zip(decoded) {
                off += (f64::from(*x) - f64::from(y)).powi(2);
                norm += f64::from(*x).powi(2);
            }
        }
        let error = if norm > 0. { (off / norm).sqrt() } else { 0. };
        Cost { module: module.to_string(), dims, bytes, error }
    }
}

/// Whether the matrix at a place is packed: all linear maps' but those that transformers keeps in f32, T5's second of a feed-forward block.
pub fn is_packed(shape: &Shape, place: &Place) -> bool {
    place.transposed && !shape.architecture.family().kept_in_f32.contains(&place.site.part)
}

/// Whether a tensor of numbers of this type is a table of words, which keeps its sixteen bits where linear maps are packed.
pub(crate) fn is_halved(place: &Place, dtype: Dtype) -> bool {
    matches!(place.site.part, Part::Words | Part::Vocabulary) && [Dtype::F16, Dtype::BF16].contains(&dtype)
}

/// The bytes that the tensor of a place takes, packed so, in a model as it is published.
pub fn bytes(shape: &Shape, place: &Place, scheme: Option<Scheme>) -> u64 {
    let count = place.count() as u64;
    let published = dtype(shape.architecture.family().published).unwrap_or(Dtype::F32);
    match scheme {
        Some(_) if is_halved(place, published) => 2 * count,
        Some(Scheme::FourBit { double, .. }) if is_packed(shape, place) => {
            let blocks = count.div_ceil(Scheme::BLOCK as u64);
            count / 2 + if double { blocks + 4 * blocks.div_ceil(256) } else { 4 * blocks }
        }
        Some(Scheme::Int8) if is_packed(shape, place) => count + 4 * place.dims[1] as u64,
        _ => 4 * count,
    }
}

/// A base whose linear maps are packed. Tables, normalizations and biases stay as they are, and so does what is packed already: this is also
/// how a merged base, whose merged maps are dense, is packed again.
///
/// # Errors
/// If a weight is not finite, or one that f16 does not hold is to have eight bits.
pub fn quantized(base: &Base, scheme: Scheme) -> Result<Base> {
    let (mut packed, shape) = (base.clone(), base.shape());
    for place in shape.places().iter().filter(|place| is_packed(shape, place)) {
        if let Weight::Packed(_) = base.weight(place.site) {
            continue;
        }
        let values: Vec<f32> = base.tensor_data(place).iter::<f32>().collect();
        let matrix = scheme
            .pack(&values, [place.dims[1], place.dims[0]], Dtype::F32)
            .map_err(|error| error.of(&shape.module_path(place.site).unwrap_or_default()))?;
        packed = packed.with_weight(place.site, Weight::Packed(Matrix::packed(matrix, base.device())?));
    }
    Ok(packed)
}

/// A type by its name in safetensors.
pub(crate) fn dtype(name: &str) -> Option<Dtype> {
    serde_json::from_value(Value::String(name.to_string())).ok()
}
