//! Packing a model's directory into another, shard by shard.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use peft_core::files::{read_json, write_file, write_parts};
use peft_core::io::write_model;
use peft_core::load::{Checkpoint, Entry};
use peft_core::{Error, Head, Place, Result, Shape};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use crate::bitsandbytes::{Tensor, Tensors, write};
use crate::load::kept;
use crate::packing::dtype;
use crate::{Codebook, Cost, Scheme, is_packed};

/// The file that says what each matrix has come to.
const REPORT: &str = "quantization.json";

/// What packing a model's directory is to do.
pub struct Plan {
    dir: PathBuf,
    config: Value,
    file: Checkpoint,
    /// The names of matrices that are packed.
    packed: Vec<String>,
    /// The modules that stay as they are though transformers would pack them.
    left: Vec<String>,
}

impl Plan {
    /// Reads what the directory says.
    ///
    /// # Errors
    /// If it is no model's, or one that is quantized.
    pub fn new(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let config: Value = read_json(&path)?;
        if let Some(found) = config.get("quantization_config").filter(|found| !found.is_null()) {
            return Err(Error::file(&path, "quantization_config", found, "none: a model that is not quantized"));
        }
        let shape = Shape::from_config(&config, &path)?;
        let file = Checkpoint::open_model(dir)?;
        let linears: Vec<Place> = shape.places().into_iter().filter(|place| place.transposed).collect();
        let is = |name: &str, place: &Place| name == place.name || name.ends_with(&format!(".{}", place.name));
        let (mut packed, mut left) = (vec![], Head::MODULES.map(str::to_string).to_vec());
        for name in file.names() {
            let Some(place) = linears.iter().find(|place| is(name, place)) else { continue };
            match is_packed(&shape, place) {
                true => packed.push(name.to_string()),
                false => left.push(name.trim_end_matches(".weight").to_string()),
            }
        }
        if packed.is_empty() {
            let expected = format!("linear maps such as {}", linears[0].name);
            return Err(Error::file(file.path(), "tensors", "no linear maps of the model", expected));
        }
        Ok(Plan { dir: dir.to_path_buf(), config, file, packed, left })
    }

    /// How many matrices are packed.
    pub fn count(&self) -> usize {
        self.packed.len()
    }

    /// Writes the packed model as transformers writes it with bitsandbytes, with one shard for each of the model's, and a report of what
    /// each matrix has come to, which is also told as it goes. In memory are the packed matrices of a shard, and a tensor that is not packed.
    ///
    /// # Errors
    /// If a weight is not finite, or the directory cannot be written.
    pub fn write(&self, output: &Path, scheme: Scheme, mut told: impl FnMut(&Cost)) -> Result<Vec<Cost>> {
        let mut shards: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
        self.file.names().for_each(|name| shards.entry(self.file.path_of(name)).or_default().push(name));
        write_model(output, &self.dir, |dir| {
            let (mut costs, mut map, mut size) = (vec![], Map::new(), 0);
            for (i, names) in shards.values().enumerate() {
                let mut parts = BTreeMap::new();
                for name in names {
                    match self.packed.iter().any(|packed| packed == name) {
                        true => {
                            let (cost, tensors) = self.pack(name, scheme)?;
                            told(&cost);
                            costs.push(cost);
                            parts.extend(tensors.into_iter().map(|(name, tensor)| (name, Part::Packed(tensor))));
                        }
                        false => drop(parts.insert((*name).to_string(), Part::Left(self.entry(name)))),
                    }
                }
                let file = match shards.len() {
                    1 => "model.safetensors".to_string(),
                    count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
                };
                map.extend(parts.keys().map(|name| (name.clone(), json!(file))));
                size += self.write_shard(&dir.join(&file), parts)?;
            }
            if shards.len() > 1 {
                let index = json!({"metadata": {"total_size": size}, "weight_map": map});
                write_file(&dir.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())?;
            }
            let mut config = self.config.clone();
            config["quantization_config"] = self.settings(scheme);
            write_file(&dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
            write_file(&dir.join(REPORT), format!("{:#}\n", report(scheme, &costs)).as_bytes())?;
            Ok(costs)
        })
    }

    fn entry(&self, name: &str) -> &Entry {
        self.file.entry(name).unwrap_or_else(|| unreachable!("{name} is one of its names"))
    }

    /// A matrix as it is packed, and what that has done to it.
    fn pack(&self, name: &str, scheme: Scheme) -> Result<(Cost, Tensors<'static>)> {
        let Entry { shape, dtype: was } = self.entry(name);
        let [outputs, inputs] = shape[..] else {
            return Err(Error::file(self.file.path_of(name), name, format!("shape {shape:?}"), "a matrix"));
        };
        let module = name.trim_end_matches(".weight");
        let values: Vec<f32> = self.file.read_f32(name, shape)?.try_into_vec().expect("weights are read as f32");
        let packed = scheme.pack(&values, [outputs, inputs], kept(dtype(was))).map_err(|error| error.of(module))?;
        Ok((Cost::of(module, &values, &packed), write(module, &packed)))
    }

    /// Writes a shard in the order of the crate safetensors, and gives the bytes of its tensors.
    fn write_shard(&self, path: &Path, parts: BTreeMap<String, Part<'_>>) -> Result<usize> {
        let mut parts: Vec<_> = parts.into_iter().map(|(name, part)| (part.info(), name, part)).collect();
        parts.sort_by(|(a, a_name, _), (b, b_name, _)| b.dtype.cmp(&a.dtype).then(a_name.cmp(b_name)));
        let mut size = 0;
        for (info, ..) in &mut parts {
            let bits = info.shape.iter().product::<usize>() * info.dtype.bitsize();
            info.data_offsets = (size, size + bits / 8);
            size += bits / 8;
        }
        let infos = parts.iter().map(|(info, name, _)| (name.clone(), info.clone())).collect();
        let format = HashMap::from([("format".to_string(), "pt".to_string())]);
        let wrong =
            |error: &dyn ToString| Error::file(path, "tensors", error.to_string(), "tensors that can be written");
        let metadata = Metadata::new(Some(format), infos).map_err(|error| wrong(&error))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|error| wrong(&error))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        write_parts(path, |write| {
            write(&(header.len() as u64).to_le_bytes())?;
            write(&header)?;
            parts.iter().try_for_each(|(info, name, part)| match part {
                Part::Packed(tensor) => write(&tensor.bytes),
                Part::Left(entry) if dtype(&entry.dtype).is_none() => {
                    let values = self.file.read_f32(name, &info.shape)?;
                    write(&values.iter::<f32>().flat_map(f32::to_le_bytes).collect::<Vec<_>>())
                }
                Part::Left(_) => write(&self.file.bytes(name)?),
            })
        })?;
        Ok(size)
    }

    /// `quantization_config` as transformers writes it.
    fn settings(&self, scheme: Scheme) -> Value {
        let (codebook, double) = match scheme {
            Scheme::FourBit { codebook, double } => (codebook, double),
            Scheme::Int8 => (Codebook::Fp4, false),
        };
        let four = scheme != Scheme::Int8;
        json!({
            "_load_in_4bit": four,
            "_load_in_8bit": !four,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": codebook.name(),
            "bnb_4bit_use_double_quant": double,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": self.left,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": four,
            "load_in_8bit": !four,
            "quant_method": "bitsandbytes",
        })
    }
}

/// What stands in a shard.
enum Part<'a> {
    /// Of a packed matrix.
    Packed(Tensor<'static>),
    /// As the model's file has it, from which it is read when it is written; what safetensors has no type for becomes f32.
    Left(&'a Entry),
}

impl Part<'_> {
    /// Its type and extents, without a place yet.
    fn info(&self) -> TensorInfo {
        let (dtype, shape) = match self {
            Part::Packed(Tensor { dtype, shape, .. }) => (*dtype, shape.clone()),
            Part::Left(entry) => (dtype(&entry.dtype).unwrap_or(Dtype::F32), entry.shape.clone()),
        };
        TensorInfo { dtype, shape, data_offsets: (0, 0) }
    }
}

fn report(scheme: Scheme, costs: &[Cost]) -> Value {
    let of = |Cost { module, dims, bytes, error }: &Cost| json!({"module": module, "shape": dims, "bytes": bytes, "error": error});
    json!({"scheme": scheme.to_string(), "matrices": costs.iter().map(of).collect::<Vec<_>>()})
}
