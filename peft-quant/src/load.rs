//! Models whose linear maps are packed in their files, as bitsandbytes, GPTQ, AWQ and llama.cpp have them, or as they are read.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, TensorData};
use half::{bf16, f16};
use peft_core::io::{Packing, Pretrained};
use peft_core::load::Checkpoint;
use peft_core::{Error, Packed, Place, Result, Shape, Stored};
use safetensors::Dtype;
use serde_json::Value;

use crate::bitsandbytes::{self, Tensor, Tensors};
use crate::gptq::Format;
use crate::halves::Halves;
use crate::packing::{dtype, is_halved};
use crate::{Matrix, Scheme, is_packed};

/// Opens a model as [`Pretrained::open`] does, or one whose files are packed: by bitsandbytes, GPTQ or AWQ, or in blocks of GGUF. What is
/// packed in the files stays so. With a scheme, linear maps are packed as they are read, of GGUF anew, so that one dense matrix at a
/// time is in memory.
///
/// A weight of bitsandbytes' four bits is decoded to the type that it had before, as there. With eight bits it is that of LLM.int8(), but
/// inputs are not rounded, as they are there.
///
/// # Errors
/// If the model is quantized in another way, or is to be packed though it is.
pub fn open(name: &str, device: &Device, scheme: Option<Scheme>) -> Result<Pretrained> {
    Pretrained::open_packed(name, device, &mut Reader { scheme, words: None })
}

/// A model of this shape with random weights, packed as they are drawn.
///
/// # Errors
/// If the device cannot hold it.
pub fn random(shape: Shape, device: &Device, scheme: Option<Scheme>) -> Result<Pretrained> {
    Pretrained::random_packed(shape, device, &Reader { scheme, words: None })
}

struct Reader {
    scheme: Option<Scheme>,
    /// How GPTQ's or AWQ's words lie, if the model has such.
    words: Option<Format>,
}

impl Packing for Reader {
    fn configure(&mut self, config: &Value, path: &Path) -> Result<()> {
        let Some(found) = config.get("quantization_config").filter(|found| !found.is_null()) else { return Ok(()) };
        self.words = Format::new(found, path)?;
        let method = found.get("quant_method");
        if self.words.is_none() && method.and_then(Value::as_str) != Some("bitsandbytes") {
            let method = method.unwrap_or(&Value::Null);
            return Err(Error::file(path, "quantization_config.quant_method", method, "bitsandbytes, gptq or awq"));
        }
        match self.scheme {
            None => Ok(()),
            Some(scheme) => {
                let expected = format!("none: a model that is not quantized, to be packed as {scheme}");
                Err(Error::file(path, "quantization_config", found, expected))
            }
        }
    }

    fn modules(&self, file: &Checkpoint) -> Vec<String> {
        match self.words {
            Some(_) => Format::modules(file),
            None => bitsandbytes::modules(file.names()).into_iter().map(str::to_string).collect(),
        }
    }

    fn take(&self, file: &mut Checkpoint, module: &str, device: &Device) -> Result<Option<Arc<dyn Packed>>> {
        if let Some(format) = self.words {
            let packed = format.take(file, module)?;
            return packed.map(|packed| Matrix::packed(Arc::new(packed), device)).transpose();
        }
        let weight = format!("{module}.weight");
        if self.scheme.is_none()
            && let Some(blocks) = file.read_blocks(&weight)?
        {
            file.remove(&weight);
            return Matrix::packed(blocks, device).map(Some);
        }
        let scales = [format!("{module}.SCB"), format!("{module}.weight_format")];
        let parts = format!("{weight}.");
        let goes_with = |name: &str| name.starts_with(&parts) || scales.iter().any(|part| part == name);
        let mut names: Vec<String> = file.names().filter(|name| goes_with(name)).map(str::to_string).collect();
        if names.is_empty() {
            return Ok(None);
        }
        names.push(weight);
        let mut tensors = Tensors::new();
        for name in &names {
            if let Some(entry) = file.entry(name) {
                let (dtype, shape) = (dtype(&entry.dtype), entry.shape.clone());
                let dtype = dtype.ok_or_else(|| {
                    Error::file(file.path_of(name), name, format!("type {}", entry.dtype), "a type of safetensors")
                })?;
                let bytes = file.bytes(name)?.into();
                tensors.insert(name.clone(), Tensor { dtype, shape, bytes });
            }
        }
        let Some(packed) = bitsandbytes::read(file.path_of(&names[0]), module, &tensors)? else { return Ok(None) };
        names.iter().for_each(|name| file.remove(name));
        Matrix::packed(packed, device).map(Some).map_err(|error| error.of(module))
    }

    fn hold(&self, shape: &Shape, place: &Place, dtype: &str, data: TensorData, device: &Device) -> Result<Stored> {
        let Some(scheme) = self.scheme else { return Ok(data.into()) };
        let kept = kept(self::dtype(dtype));
        let halved = is_halved(place, kept);
        if !halved && !is_packed(shape, place) {
            return Ok(data.into());
        }
        let dims = [data.shape()[0], data.shape()[1]];
        let values = data.try_into_vec::<f32>().expect("weights are read as f32");
        let packed = match (halved, kept) {
            (true, Dtype::F16) => Matrix::packed(Halves::<f16>::new(&values, dims), device),
            (true, _) => Matrix::packed(Halves::<bf16>::new(&values, dims), device),
            (false, _) => {
                let packed = scheme.pack(&values, dims, kept).map_err(|error| error.of(place.module()))?;
                Matrix::packed(packed, device)
            }
        };
        packed.map(Stored::Packed)
    }
}

/// The type to which a weight of four bits is decoded: its own, if that is a short one.
pub(crate) fn kept(was: Option<Dtype>) -> Dtype {
    was.filter(|dtype| [Dtype::F16, Dtype::BF16].contains(dtype)).unwrap_or(Dtype::F32)
}
