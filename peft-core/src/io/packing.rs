//! Models whose linear maps are packed, in their files or as they are read.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, TensorData};
use serde_json::Value;

use crate::load::Checkpoint;
use crate::models::fields::Fields;
use crate::{Packed, Place, Result, Shape, Stored};

/// How the matrices of a model's linear maps come and are held.
pub trait Packing {
    /// Takes from a model's configuration how its tensors are stored.
    ///
    /// # Errors
    /// One that names the field `quantization_config`, if that is a way that this does not read.
    fn configure(&mut self, config: &Value, path: &Path) -> Result<()>;

    /// The modules whose matrices the checkpoint has packed.
    fn modules(&self, file: &Checkpoint) -> Vec<String>;

    /// The packed matrix of a module, taken out of the checkpoint with all that goes with it; none, if it is not packed there.
    ///
    /// # Errors
    /// If its tensors are not those of a packed matrix.
    fn take(&self, file: &mut Checkpoint, module: &str, device: &Device) -> Result<Option<Arc<dyn Packed>>>;

    /// A tensor that came dense, as files hold it (`[out, in]` for a linear map), with the type of its numbers in the file (as safetensors
    /// spells it).
    ///
    /// # Errors
    /// If its numbers cannot be packed.
    fn hold(&self, shape: &Shape, place: &Place, dtype: &str, data: TensorData, device: &Device) -> Result<Stored>;
}

/// All matrices are dense, and stay so.
pub(super) struct Dense;

impl Packing for Dense {
    fn configure(&mut self, config: &Value, path: &Path) -> Result<()> {
        Fields { config, path }.off("quantization_config", "none: weights that are not quantized")
    }

    fn modules(&self, _file: &Checkpoint) -> Vec<String> {
        vec![]
    }

    fn take(&self, _file: &mut Checkpoint, _module: &str, _device: &Device) -> Result<Option<Arc<dyn Packed>>> {
        Ok(None)
    }

    fn hold(&self, _: &Shape, _: &Place, _dtype: &str, data: TensorData, _device: &Device) -> Result<Stored> {
        Ok(Stored::Data(data))
    }
}
