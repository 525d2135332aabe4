//! The tensors of a quantized linear map in the files of GPTQ (AutoGPTQ, GPTQModel) and AWQ (AutoAWQ).
//!
//! | name | GPTQ: type, shape | AWQ: type, shape |
//! | --- | --- | --- |
//! | `M.qweight` | I32 `[in * bits / 32, out]` | I32 `[in, out / 8]` |
//! | `M.qzeros` | I32 `[groups, out * bits / 32]` | the same |
//! | `M.scales` | F16 `[groups, out]` | the same |
//! | `M.g_idx` | I32 `[in]`, the group of each input; may be missing | none |

use std::path::Path;

use half::f16;
use peft_core::load::Checkpoint;
use peft_core::{Error, Result};
use serde_json::Value;

use crate::{Grouped, Packing, Words};

/// How a model's matrices lie in words: what `quantization_config` says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    packing: Packing,
    bits: u32,
    /// Inputs of a group; none for all.
    group: Option<usize>,
}

/// What a module's tensors are called behind its name.
const PARTS: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

impl Format {
    /// What the field says, if it is of one of the two.
    ///
    /// # Errors
    /// If the file's words lie otherwise than is read here.
    pub(crate) fn new(config: &Value, path: &Path) -> Result<Option<Self>> {
        let refuse = |key: &str, expected: &str| {
            let found = config.get(key).unwrap_or(&Value::Null);
            Err(Error::file(path, format!("quantization_config.{key}"), found, expected))
        };
        let is_awq = match config.get("quant_method").and_then(Value::as_str) {
            Some("gptq") => false,
            Some("awq") => true,
            _ => return Ok(None),
        };
        let key = if is_awq { "version" } else { "checkpoint_format" };
        let key = if config.get(key).is_some_and(|value| !value.is_null()) { key } else { "format" };
        let named = config.get(key).and_then(Value::as_str).map(str::to_lowercase);
        let packing = match (is_awq, named.as_deref()) {
            (false, None | Some("gptq")) => Packing::Gptq,
            (false, Some("gptq_v2")) => Packing::GptqV2,
            (false, _) => return refuse(key, "gptq or gptq_v2"),
            (true, None | Some("gemm")) => Packing::Awq,
            (true, _) => return refuse(key, "gemm"),
        };
        if config.get("backend").and_then(Value::as_str) == Some("llm-awq") {
            return refuse("backend", "autoawq: words in the order of AutoAWQ's gemm");
        }
        if config.get("pack_dtype").is_some_and(|kind| !kind.is_null() && kind != "int32") {
            return refuse("pack_dtype", "int32");
        }
        let is_empty = |rules: &Value| rules.is_null() || rules.as_object().is_some_and(serde_json::Map::is_empty);
        if config.get("dynamic").is_some_and(|rules| !is_empty(rules)) {
            return refuse("dynamic", "none: the same bits and groups in all modules");
        }
        let bits = match (config.get("bits").and_then(Value::as_u64), packing) {
            (Some(4), Packing::Awq) => 4,
            (Some(bits @ (2 | 3 | 4 | 8)), Packing::Gptq | Packing::GptqV2) => bits as u32,
            (_, Packing::Awq) => return refuse("bits", "4, which is what AWQ packs"),
            _ => return refuse("bits", "2, 3, 4 or 8"),
        };
        let group = match config.get("group_size").unwrap_or(&Value::from(128)).as_i64() {
            Some(-1) => None,
            Some(group) if group > 0 => Some(group as usize),
            _ => return refuse("group_size", "a number of inputs, or -1 for all"),
        };
        Ok(Some(Format { packing, bits, group }))
    }

    /// The modules whose words a file has.
    pub(crate) fn modules(file: &Checkpoint) -> Vec<String> {
        file.names().filter_map(|name| name.strip_suffix(".qweight")).map(str::to_string).collect()
    }

    /// Takes the words of a module out of the file, if it has them.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong type, extents or values.
    pub(crate) fn take(self, file: &mut Checkpoint, module: &str) -> Result<Option<Grouped>> {
        let [qweight, qzeros, scales, g_idx] = PARTS.map(|part| format!("{module}.{part}"));
        let Some(&[rows, columns]) = file.shape(&qweight) else { return Ok(None) };
        let fields = 32 / self.bits as usize;
        // Three bits fill three words with 32 fields.
        let unpacked = |words: usize| match self.bits {
            3 => words / 3 * 32 + words % 3 * 32 / 3,
            _ => words.saturating_mul(fields),
        };
        let dims = match self.packing {
            Packing::Awq => [unpacked(columns), rows],
            Packing::Gptq | Packing::GptqV2 => [columns, unpacked(rows)],
        };
        let group = self.group.unwrap_or(dims[1]);
        let words = Words {
            qweight: numbers(file, &qweight, "I32", u32::from_le_bytes)?,
            qzeros: numbers(file, &qzeros, "I32", u32::from_le_bytes)?,
            scales: numbers(file, &scales, "F16", f16::from_le_bytes)?,
            g_idx: match file.entry(&g_idx) {
                Some(_) => Some(numbers(file, &g_idx, "I32", i32::from_le_bytes)?),
                None => None,
            },
        };
        let path = file.path_of(&qweight).to_path_buf();
        let packed = Grouped::from_words(dims, self.bits, group, self.packing, &words)
            .map_err(|error| error.of(module).in_file(&path))?;
        [qweight, qzeros, scales, g_idx].iter().for_each(|name| file.remove(name));
        Ok(Some(packed))
    }
}

/// The numbers of a tensor of a type.
fn numbers<T, const N: usize>(
    file: &Checkpoint,
    name: &str,
    dtype: &str,
    read: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>> {
    let refuse = |found: String| Err(Error::file(file.path_of(name), name, found, format!("numbers of type {dtype}")));
    match file.entry(name) {
        None => refuse("no tensor of this name".into()),
        Some(entry) if entry.dtype != dtype => refuse(format!("type {}", entry.dtype)),
        Some(_) => Ok(file.bytes(name)?.as_chunks().0.iter().map(|bytes| read(*bytes)).collect()),
    }
}
