//! Burn's own quantized tensors, where they hold what a codec does: integers of 2, 4 or 8 bits around 0, with a scale for each block. They
//! have neither zero points nor tables, and a block's side is at most 255, so that they hold symmetric [`Grouped`] matrices alone.

use burn::tensor::quantization::{
    QuantMode, QuantScheme, QuantStore, QuantValue, QuantizedBytes, ScaleDtype, quantized_data_len,
};
use burn::tensor::{DType, TensorData};
use peft_core::{Error, Result};

use crate::wide::Width;
use crate::{Grouped, words};

impl Grouped {
    /// The matrix `[out, in]` as a quantized tensor of burn, of the same values to the bit. Put to a device, it is decoded by burn.
    ///
    /// # Errors
    /// If burn does not hold it: integers of three bits, zero points that are not the middle code, groups of more than 255 inputs or of inputs
    /// that are not consecutive.
    pub fn to_burn(&self) -> Result<TensorData> {
        let (bits, [outputs, inputs]) = (self.bits(), self.dims());
        let value = match bits {
            2 => QuantValue::Q2F,
            4 => QuantValue::Q4F,
            8 => QuantValue::Q8F,
            _ => return Err(Error::config("bits", bits, "2, 4 or 8, which burn holds")),
        };
        let middle = 1u8 << (bits - 1);
        if let Some(zero) = self.zeros().iter().find(|zero| **zero != f32::from(middle)) {
            return Err(Error::config("zero point", zero, format!("{middle}: burn's are symmetric")));
        }
        if self.groups().is_some() {
            return Err(Error::config("g_idx", "groups of inputs that are not consecutive", "consecutive ones"));
        }
        let Ok(group) = u8::try_from(self.group()) else {
            return Err(Error::config("group_size", self.group(), "at most 255, the longest block of burn's"));
        };
        let mut codes = vec![0; outputs * inputs];
        words::unpack(Width::best(), bits, self.codes(), &mut codes);
        let values: Vec<i8> = codes.into_iter().map(|code| code.wrapping_sub(middle) as i8).collect();
        let scheme = QuantScheme::default()
            .with_value(value)
            .with_store(QuantStore::Native)
            .per_block([1, group], ScaleDtype::F32);
        Ok(TensorData::quantized(values, [outputs, inputs], scheme, self.scales(), None))
    }

    /// A quantized matrix `[out, in]` of burn's, of the same values to the bit where it has one scale over each number.
    ///
    /// # Errors
    /// If it is no quantized matrix of integers, its blocks are not of inputs alone, or its extents are none of whole words.
    pub fn from_burn(data: &TensorData) -> Result<Self> {
        let refuse = |key: &str, found: String, expected: &str| Err(Error::config(key, found, expected));
        let DType::QFloat(scheme) = data.dtype() else {
            return refuse("type", format!("{:?}", data.dtype()), "a quantized type of burn");
        };
        let [outputs, inputs] = data.shape()[..] else {
            return refuse("shape", format!("{:?}", &data.shape()[..]), "that of a matrix");
        };
        let bits = match scheme.value {
            QuantValue::Q2F | QuantValue::Q2S => 2,
            QuantValue::Q4F | QuantValue::Q4S => 4,
            QuantValue::Q8F | QuantValue::Q8S => 8,
            other => return refuse("value", format!("{other:?}"), "integers"),
        };
        if scheme.mode != QuantMode::Symmetric {
            return refuse("mode", format!("{:?}", scheme.mode), "Symmetric");
        }
        if !matches!(scheme.store, QuantStore::Native | QuantStore::PackedU32(0)) {
            return refuse("store", format!("{:?}", scheme.store), "Native, or PackedU32 along the inputs");
        }
        let group = match scheme.block_size().map(|block| block.to_dim_vec(2)) {
            None => inputs,
            Some(block) if block[0] == 1 => block[1].into(),
            Some(block) => return refuse("block", format!("{block:?}"), "one of inputs alone: [1, inputs]"),
        };
        if outputs == 0 || group == 0 || !inputs.is_multiple_of(group) {
            return refuse("block", format!("{group} inputs"), &format!("a divisor of the {inputs} inputs"));
        }
        let (found, expected) = (data.as_bytes().len(), quantized_data_len(&scheme, data.shape()));
        if found != expected {
            return refuse("bytes", found.to_string(), &expected.to_string());
        }
        let (shape, bytes) = (data.shape().clone(), data.bytes().clone());
        let (values, scales) = QuantizedBytes { bytes, scheme, shape }.into_vec_i8();
        let middle = 1i16 << (bits - 1);
        if let Some(value) = values.iter().find(|value| !(-middle..middle).contains(&i16::from(**value))) {
            return refuse("value", value.to_string(), &format!("one from {} to {}", -middle, middle - 1));
        }
        let codes: Vec<u8> = values.into_iter().map(|value| (i16::from(value) + middle) as u8).collect();
        let global = scales.global.unwrap_or(1.);
        let scales: Vec<f32> = scales.block.into_iter().map(|scale| scale * global).collect();
        let per_row = inputs / group * outputs;
        let scales = if scheme.block_size().is_none() { vec![scales[0]; per_row] } else { scales };
        Self::from_codes([outputs, inputs], bits, group, &codes, scales, vec![f32::from(middle); per_row])
    }
}
