//! Packing a model's directory into another, shard by shard.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use peft_core::files::{read_json, write_file};
use peft_core::io::write_model;
use peft_core::load::Checkpoint;
use peft_core::{Error, Head, Place, Result, Shape};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::bitsandbytes::{Tensor, Tensors, write};
use crate::load::dtype;
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
    /// each matrix has come to, which is also told as it goes. In memory are a packed shard, twice while it is written, and a matrix that is not.
    ///
    /// # Errors
    /// If a weight is not finite, or the directory cannot be written.
    pub fn write(&self, output: &Path, scheme: Scheme, mut told: impl FnMut(&Cost)) -> Result<Vec<Cost>> {
        let mut shards: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
        self.file.names().for_each(|name| shards.entry(self.file.path_of(name)).or_default().push(name));
        write_model(output, &self.dir, |dir| {
            let (mut costs, mut map, mut size) = (vec![], Map::new(), 0);
            for (i, names) in shards.values().enumerate() {
                let mut tensors = Tensors::new();
                for name in names {
                    tensors.append(&mut self.tensor(name, scheme, |cost| {
                        told(&cost);
                        costs.push(cost);
                    })?);
                }
                let file = match shards.len() {
                    1 => "model.safetensors".to_string(),
                    count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
                };
                size += tensors.values().map(|tensor| tensor.bytes.len()).sum::<usize>();
                map.extend(tensors.keys().map(|name| (name.clone(), json!(file))));
                let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
                let path = dir.join(&file);
                let bytes = safetensors::serialize(&tensors, Some(metadata))
                    .map_err(|error| Error::file(&path, "tensors", error, "tensors that can be written"))?;
                write_file(&path, &bytes)?;
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

    /// What stands for a tensor: what goes with a packed matrix, or its bytes as they are.
    fn tensor(&self, name: &str, scheme: Scheme, told: impl FnOnce(Cost)) -> Result<Tensors<'static>> {
        let entry = self.file.entry(name).unwrap_or_else(|| unreachable!("{name} is one of its names"));
        let (shape, was) = (entry.shape.clone(), dtype(&entry.dtype));
        if self.packed.iter().any(|packed| packed == name) {
            let [outputs, inputs] = shape[..] else {
                let found = format!("shape {shape:?}");
                return Err(Error::file(self.file.path_of(name), name, found, "a matrix"));
            };
            let module = name.trim_end_matches(".weight");
            let values: Vec<f32> = self.file.read_f32(name, &shape)?.try_into_vec().expect("weights are read as f32");
            let packed = scheme.pack(&values, [outputs, inputs], kept(was)).map_err(|error| error.of(module))?;
            told(Cost::of(module, &values, &packed));
            return Ok(write(module, &packed));
        }
        let tensor = match was {
            Some(dtype) => Tensor { dtype, shape, bytes: Cow::Owned(self.file.bytes(name)?) },
            None => {
                let values: Vec<f32> =
                    self.file.read_f32(name, &shape)?.try_into_vec().expect("weights are read as f32");
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Tensor { dtype: Dtype::F32, shape, bytes }
            }
        };
        Ok(Tensors::from([(name.to_string(), tensor)]))
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

fn report(scheme: Scheme, costs: &[Cost]) -> Value {
    let of = |Cost { module, dims, bytes, error }: &Cost| json!({"module": module, "shape": dims, "bytes": bytes, "error": error});
    json!({"scheme": scheme.to_string(), "matrices": costs.iter().map(of).collect::<Vec<_>>()})
}

/// The type to which a weight of four bits is decoded: its own, if that is a short one.
pub(crate) fn kept(was: Option<Dtype>) -> Dtype {
    was.filter(|dtype| [Dtype::F16, Dtype::BF16].contains(dtype)).unwrap_or(Dtype::F32)
}
