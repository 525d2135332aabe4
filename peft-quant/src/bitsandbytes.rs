//! The tensors of a quantized linear map in a file that transformers wrote with bitsandbytes.
//!
//! | name | type, shape | when |
//! | --- | --- | --- |
//! | `M.weight` | U8 `[bytes, 1]`, or another type over the same bytes | four bits |
//! | `M.weight.absmax` | F32 `[blocks]`, with double quantization U8 | four bits |
//! | `M.weight.quant_map` | F32 `[16]` | four bits |
//! | `M.weight.nested_absmax` | F32 `[blocks / 256]` | double quantization |
//! | `M.weight.nested_quant_map` | F32 `[256]` | double quantization |
//! | `M.weight.quant_state.bitsandbytes__nf4`, or `__fp4` | U8, JSON | four bits |
//! | `M.weight` | I8 `[out, in]` | eight bits |
//! | `M.SCB` | F32 `[out]` | eight bits |
//! | `M.weight_format` | U8 `[]`, 0 for rows | eight bits; may be missing |

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use peft_core::{Error, Result};
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Blockwise, Codebook, Element, FourBit, Int8Rows, Map8, Scales};

/// A tensor as a safetensors file has it: little-endian, the last axis fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Its type.
    pub dtype: Dtype,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: Cow<'a, [u8]>,
}

/// Tensors by name.
pub type Tensors<'a> = BTreeMap<String, Tensor<'a>>;

impl safetensors::View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The weight of a linear map.
#[derive(Clone, Debug, PartialEq)]
pub enum Quantized {
    /// NF4 or FP4.
    FourBit {
        /// The weight.
        packed: FourBit,
        /// What it was before, and what it is decoded to: F32, F16 or BF16.
        dtype: Dtype,
    },
    /// LLM.int8().
    Int8(Int8Rows),
}

/// What the names of a four-bit weight's JSON begin with, behind the weight's.
const STATE: &str = ".quant_state.bitsandbytes__";

/// The JSON of a four-bit weight.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The maps whose weights are quantized, by the tensors that go with a weight.
pub fn modules<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let module = |name: &'a str| match name.split_once(STATE) {
        Some((weight, _)) => weight.strip_suffix(".weight"),
        None => name.strip_suffix(".SCB"),
    };
    names.into_iter().filter_map(module).collect()
}

/// Reads the weight of a linear map, if there is a quantized one: its weight, and what goes with it.
///
/// # Errors
/// If a tensor that goes with it is missing or has the wrong length, type or values, or the JSON is not one of a weight.
pub fn read(file: &Path, module: &str, tensors: &Tensors) -> Result<Option<Quantized>> {
    let weight = format!("{module}.weight");
    let reader = Reader { file, tensors };
    let states: Vec<&String> = with_prefix(tensors, &format!("{weight}{STATE}")).collect();
    match states[..] {
        [state] => reader.four_bit(&weight, state).map(Some),
        [] if tensors.contains_key(&format!("{module}.SCB")) => {
            reader.int8(module).map(|rows| Some(Quantized::Int8(rows)))
        }
        [] => Ok(None),
        [one, other, ..] => Err(Error::file(file, other, format!("a state beside {one}"), "one state of a weight")),
    }
}

fn with_prefix<'a>(tensors: &'a Tensors, prefix: &str) -> impl Iterator<Item = &'a String> {
    let names = tensors.range(prefix.to_owned()..).map(|(name, _)| name);
    names.take_while(move |name| name.starts_with(prefix))
}

struct Reader<'a> {
    file: &'a Path,
    tensors: &'a Tensors<'a>,
}

impl Reader<'_> {
    fn tensor(&self, name: &str) -> Result<&Tensor<'_>> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::file(self.file, name, "no tensor", "what goes with a quantized weight"))
    }

    fn refuse(&self, name: &str, found: impl ToString, expected: &str) -> Error {
        Error::file(self.file, name, found, expected)
    }

    /// Says of which tensor's codec an error is.
    fn of<T>(&self, weight: &str, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.of(weight).in_file(self.file))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        match tensor.dtype {
            Dtype::F32 => Ok(numbers(&tensor.bytes, f32::from_le_bytes)),
            Dtype::F16 => Ok(numbers(&tensor.bytes, |bytes| f16::from_le_bytes(bytes).to_f32())),
            Dtype::BF16 => Ok(numbers(&tensor.bytes, |bytes| bf16::from_le_bytes(bytes).to_f32())),
            other => Err(self.refuse(name, format!("type {other}"), "F32, F16 or BF16")),
        }
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> Result<&[u8]> {
        let tensor = self.tensor(name)?;
        if tensor.dtype != dtype {
            return Err(self.refuse(name, format!("type {}", tensor.dtype), &dtype.to_string()));
        }
        Ok(&tensor.bytes)
    }

    fn four_bit(&self, weight: &str, name: &str) -> Result<Quantized> {
        let state: State = serde_json::from_slice(self.bytes(name, Dtype::U8)?)
            .map_err(|error| self.refuse(name, error, "JSON with quant_type, blocksize, dtype and shape"))?;
        for (key, value) in &state.rest {
            peft_core::warning::warn(self.file, name, format!("{key} is {value}: nothing uses it"));
        }
        let codebook = self.of(name, Codebook::named(&state.quant_type))?;
        if !name.ends_with(&format!("{STATE}{}", state.quant_type)) {
            return Err(self.refuse(name, format!("quant_type {}", state.quant_type), "the type that the name says"));
        }
        let dtype = match &state.dtype[..] {
            "float32" => Dtype::F32,
            "float16" => Dtype::F16,
            "bfloat16" => Dtype::BF16,
            other => return Err(self.refuse(name, format!("dtype {other}"), "float32, float16 or bfloat16")),
        };
        self.check_codebook(&format!("{weight}.quant_map"), codebook)?;
        let scales = self.scales(weight, name, &state)?;
        // Whatever its type, the bytes are codes.
        let bytes = self.tensor(weight)?.bytes.to_vec();
        let packed = FourBit::from_parts(codebook, state.blocksize, state.shape, bytes, scales);
        Ok(Quantized::FourBit { packed: self.of(weight, packed)?, dtype })
    }

    /// bitsandbytes decodes with its own values whatever the file says; a file that says others was not meant to be decoded so.
    fn check_codebook(&self, name: &str, codebook: Codebook) -> Result<()> {
        let (found, expected) = (self.floats(name)?, codebook.values());
        self.of(name, crate::blocks::expect_len("its values", found.len(), 16, "a value for each code of four bits"))?;
        match (0..16).find(|i| found[*i].is_nan() || (found[*i] - expected[*i]).abs() > f32::EPSILON) {
            None => Ok(()),
            Some(i) => {
                let expected = format!("{}, as in {}", expected[i], codebook.name());
                Err(self.refuse(&format!("{name}, element {i}"), found[i], &expected))
            }
        }
    }

    fn scales(&self, weight: &str, name: &str, state: &State) -> Result<Scales> {
        let [absmax, nested_absmax, map] =
            ["absmax", "nested_absmax", "nested_quant_map"].map(|part| format!("{weight}.{part}"));
        let (block, offset) = match (state.nested_blocksize, state.nested_offset) {
            (None, None) if !self.tensors.contains_key(&nested_absmax) => {
                return self.floats(&absmax).map(Scales::Plain);
            }
            (Some(block), Some(offset)) => (block, offset as f32),
            _ => return Err(self.refuse(name, "one without the other", "nested_blocksize and nested_offset")),
        };
        if let Some(dtype) = state.nested_dtype.as_ref().filter(|dtype| *dtype != "float32") {
            return Err(self.refuse(name, format!("nested_dtype {dtype}"), "float32"));
        }
        let map = self.of(weight, Map8::from_values("nested_quant_map", &self.floats(&map)?))?;
        let codes = self.bytes(&absmax, Dtype::U8)?.to_vec();
        let keys = ["absmax", "nested_absmax", "nested_blocksize"];
        let over = Blockwise::from_parts(map, block, codes, self.floats(&nested_absmax)?, keys);
        Ok(Scales::Nested { over: self.of(weight, over)?, offset })
    }

    fn int8(&self, module: &str) -> Result<Int8Rows> {
        let [weight, scales, format] = ["weight", "SCB", "weight_format"].map(|part| format!("{module}.{part}"));
        if self.tensors.contains_key(&format) && self.bytes(&format, Dtype::U8)? != [0] {
            return Err(self.refuse(
                &format,
                format!("{:?}", self.bytes(&format, Dtype::U8)?),
                "0, weights row by row",
            ));
        }
        let codes = self.bytes(&weight, Dtype::I8)?.iter().map(|byte| byte.cast_signed()).collect();
        let shape = &self.tensor(&weight)?.shape;
        let [rows, columns] = shape[..] else {
            return Err(self.refuse(&weight, format!("shape {shape:?}"), "a matrix"));
        };
        self.of(module, Int8Rows::from_parts([rows, columns], codes, self.floats(&scales)?))
    }
}

/// The tensors of a linear map's weight, as transformers writes them.
pub fn write(module: &str, weight: &Quantized) -> Tensors<'static> {
    let mut tensors = Tensors::new();
    let mut insert = |part: &str, dtype, shape: Vec<usize>, bytes: Vec<u8>| {
        tensors.insert(format!("{module}.{part}"), Tensor { dtype, shape, bytes: Cow::Owned(bytes) });
    };
    match weight {
        Quantized::Int8(rows) => {
            let codes = rows.codes().iter().map(|code| code.cast_unsigned()).collect();
            insert("weight", Dtype::I8, rows.dims().to_vec(), codes);
            insert("SCB", Dtype::F32, vec![rows.scales().len()], floats(rows.scales()));
            insert("weight_format", Dtype::U8, vec![], vec![0]);
        }
        Quantized::FourBit { packed, dtype } => {
            insert("weight", Dtype::U8, vec![packed.bytes().len(), 1], packed.bytes().to_vec());
            insert("weight.quant_map", Dtype::F32, vec![16], floats(&packed.codebook().values()));
            match packed.scales() {
                Scales::Plain(scales) => insert("weight.absmax", Dtype::F32, vec![scales.len()], floats(scales)),
                Scales::Nested { over, .. } => {
                    insert("weight.absmax", Dtype::U8, vec![over.len()], over.codes().to_vec());
                    insert("weight.nested_absmax", Dtype::F32, vec![over.absmax().len()], floats(over.absmax()));
                    insert("weight.nested_quant_map", Dtype::F32, vec![256], floats(over.map().values()));
                }
            }
            let state = json(packed, *dtype).into_bytes();
            let name = packed.codebook().name();
            insert(&format!("weight{STATE}{name}"), Dtype::U8, vec![state.len()], state);
        }
    }
    tensors
}

/// The JSON, to the byte as Python's `json` writes it.
fn json(packed: &FourBit, dtype: Dtype) -> String {
    let name = match dtype {
        Dtype::F16 => f16::NAME,
        Dtype::BF16 => bf16::NAME,
        _ => f32::NAME,
    };
    let (book, block, dims) = (packed.codebook().name(), packed.block(), packed.dims());
    let start = format!(r#"{{"quant_type": "{book}", "blocksize": {block}, "dtype": "{name}", "shape": {dims:?}"#);
    match packed.scales() {
        Scales::Plain(_) => start + "}",
        Scales::Nested { over, offset } => {
            let (block, offset) = (over.block(), python_float((*offset).into()));
            format!(r#"{start}, "nested_blocksize": {block}, "nested_dtype": "float32", "nested_offset": {offset}}}"#)
        }
    }
}

/// A number as Python writes it: with an exponent of at least two digits below 1e-4 and from 1e16 on.
fn python_float(x: f64) -> String {
    if x == 0. || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |exponent| ("-", exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn numbers<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| read(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::python_float;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (x, text) in [
            (0.05209827423095703, "0.05209827423095703"),
            (0., "0.0"),
            (-2., "-2.0"),
            (1e-4, "0.0001"),
            (9.999999747378752e-5, "9.999999747378752e-05"),
            (1.5e-45, "1.5e-45"),
            (3.5e-112, "3.5e-112"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.25e17, "-1.25e+17"),
        ] {
            assert_eq!(python_float(x), text);
        }
    }
}
