//! Setups of AdapterHub: `adapter_setup.json` and the adapters and fusions that it names, each in a directory of its own beside it. A fusion
//! alone, `adapter_fusion_config.json`, has its adapters beside its own directory.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Pretrained;
use super::adapterhub::{check_whole, config_of, kind, load_as, object, one_of, read};
use super::tensors::transpose;
use crate::adapterhub::{Fields, HubKey, Kind, Layout, field, wrong};
use crate::composition::Composition;
use crate::load::Checkpoint;
use crate::view::{trained, with_values};
use crate::{AnyMethod, Error, Result, Source, Trained};

/// What a directory holds in place of an adapter, if it is a setup or a fusion.
pub fn held(dir: &Path) -> Option<&'static str> {
    [SETUP, FUSION].into_iter().find(|name| dir.join(name).exists())
}

const SETUP: &str = "adapter_setup.json";
const FUSION: &str = "adapter_fusion_config.json";
const FUSION_WEIGHTS: [&str; 2] = ["model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin"];

/// Reads a setup, or a fusion, with the adapters in it; `by_kind` has the method of each kind. Weights of an average are divided by the
/// number of adapters once more, as the package does.
pub fn load_setup(
    dir: &Path,
    model: &Pretrained,
    by_kind: &dyn Fn(Kind) -> Result<AnyMethod>,
) -> Result<Composition<Source>> {
    let (named, folder) = named(dir)?;
    let mut one = |name: &String| {
        let dir = folder.join(name);
        let (config, trained, _) = load_as(&by_kind(kind(&dir)?)?, &dir, model)?;
        Ok(Source { name: dir.display().to_string(), config, trained })
    };
    let mut fuse = |sources: Vec<Source>| {
        let names: Vec<String> = sources.iter().map(|source| last(Path::new(&source.name))).collect();
        fusion(&fusion_folder(dir, &names), sources, model, by_kind(Kind::Fusion)?)
    };
    named.map(&mut one, &mut fuse)
}

/// All folders that [`load_setup`] reads.
pub fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let (named, folder) = named(dir)?;
    let mut fusions = vec![dir.to_path_buf()];
    let mut fuse = |names: Vec<String>| {
        fusions.push(fusion_folder(dir, &names));
        Ok(String::new())
    };
    named.map(&mut |name| Ok(name.clone()), &mut fuse)?;
    Ok(named.adapters().into_iter().map(|name| folder.join(name)).chain(fusions).collect())
}

/// What is composed, by its names, and the folder in which each has its own.
fn named(dir: &Path) -> Result<(Composition<String>, PathBuf)> {
    Ok(match dir.join(SETUP).exists() {
        true => (setup(&dir.join(SETUP))?, dir.to_path_buf()),
        false => (Composition::Fuse(fused(dir)?), dir.join("..")),
    })
}

/// Where the fusion of these adapters lies.
fn fusion_folder(dir: &Path, names: &[String]) -> PathBuf {
    if dir.join(SETUP).exists() { dir.join(names.join(",")) } else { dir.to_path_buf() }
}

fn last(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn setup(path: &Path) -> Result<Composition<String>> {
    let whole = object(path)?;
    let setup = whole.get("adapter_setup").cloned().unwrap_or_default();
    let composition = parsed(&setup).map_err(|error| error.in_file(path))?;
    composition.check().map_err(|error| error.in_file(path))?;
    Ok(composition)
}

/// A composition as the package's `to_dict` has it.
fn parsed(value: &Value) -> Result<Composition<String>> {
    let fields = value.as_object().cloned().unwrap_or_default();
    let kind: String = field(&fields, "type", "the name of a form")?;
    let children: Vec<Value> = field(&fields, "children", "a list")?;
    if kind == "single" {
        return match children.first().and_then(Value::as_str) {
            Some(name) if is_name(name) => Ok(Composition::One(name.to_string())),
            _ => Err(wrong(&fields, "children", "the name of an adapter, of a directory here")),
        };
    }
    let settings: Fields = fields.get("kwargs").and_then(Value::as_object).cloned().unwrap_or_default();
    let all = children.iter().map(parsed).collect::<Result<Vec<_>>>()?;
    let count = all.len();
    fn numbers<N: serde::de::DeserializeOwned>(settings: &Fields, key: &str, count: usize) -> Result<Vec<N>> {
        let expected = format!("a list of {count}");
        let numbers: Vec<N> = field(settings, key, &expected)?;
        if numbers.len() == count { Ok(numbers) } else { Err(wrong(settings, key, &expected)) }
    }
    Ok(match kind.as_str() {
        "Stack" => Composition::Stack(all),
        "Fuse" => Composition::Fuse(all),
        "Parallel" => Composition::Parallel(all),
        "Split" => Composition::Split(all.into_iter().zip(numbers(&settings, "splits", count)?).collect()),
        "BatchSplit" => {
            Composition::BatchSplit(all.into_iter().zip(numbers(&settings, "batch_sizes", count)?).collect())
        }
        "Average" => {
            let weights = numbers::<f64>(&settings, "weights", count)?;
            Composition::Average(all.into_iter().zip(weights.into_iter().map(|w| w / count as f64)).collect())
        }
        _ => return Err(wrong(&fields, "type", "Stack, Fuse, Split, BatchSplit, Parallel, Average or single")),
    })
}

/// Whether it names a directory, and no other place.
fn is_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}

/// The adapters of a fusion.
fn fused(dir: &Path) -> Result<Vec<Composition<String>>> {
    let path = dir.join(FUSION);
    if !path.exists() {
        return Err(Error::file(dir, "content", "neither", format!("{SETUP} (of a setup) or {FUSION} (of a fusion)")));
    }
    let whole = object(&path)?;
    let names: Vec<String> = match whole.get("adapter_names").or(whole.get("name")) {
        Some(Value::String(names)) => names.split(',').map(str::to_string).collect(),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(str::to_string).collect(),
        _ => vec![],
    };
    match !names.is_empty() && names.iter().all(|name| is_name(name)) {
        true => Ok(names.into_iter().map(Composition::One).collect()),
        false => {
            let expected = "names of adapters, of directories beside this one";
            Err(wrong(&whole, "adapter_names", expected).in_file(&path))
        }
    }
}

/// A fusion of finished adapters; the head is that of the last.
fn fusion(dir: &Path, sources: Vec<Source>, model: &Pretrained, method: AnyMethod) -> Result<Source> {
    let (path, base) = (dir.join(FUSION), &model.base);
    let whole = object(&path)?;
    let in_file = |error: Error| error.in_file(&path);
    let name = check_whole(&whole, base.shape()).map_err(in_file)?;
    let hub = method.adapterhub().unwrap_or_else(|| unreachable!("the method of a kind has its form"));
    let fields = config_of(&whole).map_err(in_file)?;
    let config = read(&hub, &fields, base.shape(), &path).map_err(in_file)?;
    let head = sources.last().map(|source| source.trained.head.clone());
    let config = config.from_sources(sources);
    let tuner = config.init(base, 0)?;
    let file: PathBuf = one_of(dir, FUSION_WEIGHTS)?;
    let file = Checkpoint::open_file(&file)?;
    let config = config.learned(&tuner, base.shape());
    let hub = config.adapterhub().unwrap_or_else(|| unreachable!("as before"));
    let (mut values, mut taken) = (std::collections::BTreeMap::new(), vec![]);
    for (tensor, dims) in trained(&tuner) {
        let HubKey { name, layout } = hub.key(&tensor, &name, base.shape());
        let turned: Vec<usize> = dims.iter().rev().copied().collect();
        let data = match layout {
            Layout::Transposed => transpose(file.read_f32(&name, &turned)?),
            _ => file.read_f32(&name, &dims)?,
        };
        values.insert(tensor, data);
        taken.push(name);
    }
    if let Some(left) = file.names().find(|name| !taken.iter().any(|taken| taken == name)) {
        return Err(Error::file(file.path_of(left), left, "a tensor", "none: the fusion's settings have no such"));
    }
    let head = head.unwrap_or_else(|| unreachable!("a fusion has adapters"));
    let trained = Trained::new(with_values(tuner, &values)?, head)?;
    Ok(Source { name: dir.display().to_string(), config, trained })
}
