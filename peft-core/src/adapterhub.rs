//! What a method says of its form in AdapterHub's files; `io::adapterhub` reads and writes them.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{Error, Part, Result, Shape, Site, Sites, Stack};

/// What stands under `config` in AdapterHub's `adapter_config.json`.
pub type Fields = Map<String, Value>;

/// How AdapterHub's files have a method.
pub struct AdapterHub<M> {
    /// Which of AdapterHub's methods it is.
    pub kind: Kind,
    /// The fields of `config` that compute what this configuration does. An error names the setting that they cannot express.
    pub fields: fn(&M, &Shape) -> Result<Fields>,
    /// The configuration that computes what such fields do. Whoever calls it compares the fields of what it gives with these.
    pub config: fn(&Fields, &Shape) -> Result<M>,
    /// Fields that need not be those of the configuration: they say nothing of the computation, or `config` takes any of their
    /// values in.
    pub free: &'static [&'static str],
    /// What files call the tensor that records call by the first name, in an adapter of the second.
    pub key: fn(&M, &str, &str, &Shape) -> HubKey,
}

/// AdapterHub's methods, as far as they are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `BnConfig` after a sub-layer.
    Sequential,
    /// `BnConfig` beside a sub-layer.
    Parallel,
    /// `BnConfig` in any other form.
    Bottleneck,
    /// `BnConfig` whose maps are sums of Kronecker products.
    Compacter,
    /// `LoRAConfig` that adds.
    Lora,
    /// `LoRAConfig` that scales.
    Ia3,
    /// `PrefixTuningConfig`.
    Prefix,
    /// `AdapterFusionConfig`, which stands beside the adapters that it fuses.
    Fusion,
}

/// The name and layout of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubKey {
    /// Its name.
    pub name: String,
    /// How it lies there.
    pub layout: Layout,
}

/// How a file holds a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As we do.
    Same,
    /// A matrix as `[out, in]`.
    Transposed,
    /// A matrix row after row in one vector.
    Flat,
    /// A mask of zeros and ones, a bit for each.
    Bits,
}

impl HubKey {
    /// A tensor of this name in this layout.
    pub fn new(name: impl Into<String>, layout: Layout) -> Self {
        HubKey { name: name.into(), layout }
    }
}

impl Kind {
    /// The kind of the adapter with these fields.
    #[cfg(feature = "load")]
    pub(crate) fn of(fields: &Fields) -> Result<Self> {
        let word = |key: &str| fields.get(key).and_then(Value::as_str);
        let flag = |key: &str| fields.get(key).and_then(Value::as_bool);
        match (word("architecture"), word("composition_mode"), flag("is_parallel")) {
            (None, ..) if flag("phm_layer") == Some(true) => Ok(Kind::Compacter),
            (None, _, Some(parallel)) => Ok(match (is_plain(fields, parallel), parallel) {
                (true, true) => Kind::Parallel,
                (true, false) => Kind::Sequential,
                (false, _) => Kind::Bottleneck,
            }),
            (Some("lora"), Some("add"), _) => Ok(Kind::Lora),
            (Some("lora"), Some("scale"), _) => Ok(Kind::Ia3),
            (Some("prefix_tuning"), ..) => Ok(Kind::Prefix),
            (Some("lora"), ..) => Err(wrong(fields, "composition_mode", "add or scale")),
            (None, ..) => Err(wrong(fields, "is_parallel", "true or false, or another architecture")),
            _ => Err(wrong(fields, "architecture", "null (a bottleneck), lora or prefix_tuning")),
        }
    }
}

/// Whether a bottleneck is one of the package's usual ones, which have methods of their own.
#[cfg(feature = "load")]
fn is_plain(fields: &Fields, parallel: bool) -> bool {
    let is = |key: &str, value: Value| fields.get(key).is_none_or(|found| *found == value);
    let on = |key: &str| fields.get(key) == Some(&Value::Bool(true));
    let number = |key: &str| fields.get(key).is_some_and(Value::is_number);
    let off = ["ln_before", "ln_after", "use_gating", "cross_adapter"].into_iter().all(|key| is(key, json!(false)));
    let usual = is("original_ln_after", json!(true)) && is("residual_before_ln", json!(true));
    let places = match (on("original_ln_before"), on("mh_adapter"), on("output_adapter")) {
        (before, ..) if parallel => !before,
        (true, attention, output) => !attention && output,
        (false, _, output) => output,
    };
    let scaled = fields.get("scaling").and_then(Value::as_f64);
    let scaled = if parallel { scaled.is_some() } else { scaled == Some(1.0) };
    let dropped = fields.get("dropout").and_then(Value::as_f64).is_some_and(|p| p != 0.0);
    let bare = fields.get("inv_adapter").is_none_or(Value::is_null) && !dropped && number("reduction_factor");
    off && usual && places && scaled && bare
}

/// A field that is not what it should be.
pub fn wrong(fields: &Fields, key: &str, expected: &str) -> Error {
    Error::config(key, fields.get(key).map_or("nothing".into(), Value::to_string), expected)
}

/// A field that must be there; `expected` says what is allowed.
pub fn field<T: DeserializeOwned>(fields: &Fields, key: &str, expected: &str) -> Result<T> {
    let value = fields.get(key).cloned().and_then(|value| serde_json::from_value(value).ok());
    value.ok_or_else(|| wrong(fields, key, expected))
}

/// The attention's linear maps that AdapterHub names, by its letters.
const ATTENTION: [(Part, &str); 3] = [(Part::Query, "q"), (Part::Key, "k"), (Part::Value, "v")];

/// The feed-forward network's, by the fields that choose them.
fn feed_forward(shape: &Shape) -> [(Part, &'static str); 2] {
    let [intermediate, output] = shape.architecture.family().hub.feed_forward;
    [(intermediate, "intermediate_lora"), (output, "output_lora")]
}

/// A layer's number in `leave_out`, which goes on from the encoder to the decoder.
fn layer(shape: &Shape, site: Site) -> usize {
    let before = if site.stack == Stack::Decoder && shape.stacks().len() == 2 { shape.layers } else { 0 };
    before + site.layer
}

/// The fields of AdapterHub's `LoRAConfig` without gates, in which (IA)^3 is a kind of LoRA, on these linear maps. Every layer must
/// have the same ones, or none; of a decoder both attentions.
pub fn lora_fields(mode: &str, [r, alpha]: [f64; 2], dropout: f64, sites: &[Site], shape: &Shape) -> Result<Fields> {
    let feed_forward = feed_forward(shape);
    let known = || ATTENTION.iter().chain(&feed_forward).map(|(part, _)| *part);
    let linears = shape.linears();
    let layers: usize = shape.stacks().iter().map(|(_, layers)| layers).sum();
    let (chosen, left): (Vec<usize>, Vec<usize>) =
        (0..layers).partition(|own| sites.iter().any(|site| layer(shape, *site) == *own));
    // What the fields that have this site put beside it.
    let together = |site: Site| {
        let part = known().find(|part| part.selects(site.part))?;
        let all = linears.iter().map(|(other, _)| *other).filter(move |other| part.selects(other.part));
        Some(all.filter(|other| chosen.contains(&layer(shape, *other))).collect::<Vec<_>>())
    };
    let odd =
        sites.iter().find(|site| together(**site).is_none_or(|all| !all.iter().all(|other| sites.contains(other))));
    if let Some(site) = odd {
        let path = shape.module_path(*site).unwrap_or_default();
        let names = shape.architecture.family().hub.linears;
        let expected = format!("what AdapterHub has: {names}, the same in every layer that has any");
        return Err(Error::config("target_modules", path, expected));
    }
    let on = |part: Part| sites.iter().any(|site| part.selects(site.part));
    let letters: Vec<&str> = ATTENTION.iter().filter(|(part, _)| on(*part)).map(|(_, letter)| *letter).collect();
    let init = if mode == "scale" { "ia3" } else { "lora" };
    let mut fields = Fields::from_iter([
        ("selfattn_lora".to_string(), json!(!letters.is_empty())),
        ("attn_matrices".to_string(), json!(letters)),
    ]);
    fields.extend(feed_forward.map(|(part, key)| (key.to_string(), json!(on(part)))));
    let Value::Object(rest) = json!({
        "architecture": "lora", "composition_mode": mode, "r": whole(r), "alpha": whole(alpha), "dropout": dropout, "leave_out": left,
        "init_weights": init, "init_weights_seed": null, "use_gating": false, "use_dora": false, "vera_d": null, "vera_b": null,
        "dtype": null,
    }) else {
        unreachable!("an object")
    };
    fields.extend(rest);
    Ok(fields)
}

/// The linear maps of such fields.
pub fn lora_sites(fields: &Fields, shape: &Shape) -> Result<Sites> {
    let flag = |key: &str| field::<bool>(fields, key, "true or false");
    let expected = "a list of q, k and v";
    let letters: Vec<String> = field(fields, "attn_matrices", expected)?;
    if letters.iter().any(|letter| !ATTENTION.iter().any(|(_, known)| known == letter)) {
        return Err(wrong(fields, "attn_matrices", expected));
    }
    let left: Vec<usize> = field(fields, "leave_out", "a list of layers")?;
    let mut parts = vec![];
    if flag("selfattn_lora")? {
        parts.extend(ATTENTION.iter().filter(|(_, letter)| letters.iter().any(|l| l == letter)).map(|(part, _)| *part));
    }
    for (part, key) in feed_forward(shape) {
        parts.extend(flag(key)?.then_some(part));
    }
    if left.is_empty() {
        return Ok(Sites::Parts(parts));
    }
    let kept = |site: &Site| parts.iter().any(|part| part.selects(site.part)) && !left.contains(&layer(shape, *site));
    Ok(Sites::Names(shape.linears().into_iter().filter(|(site, _)| kept(site)).map(|(_, path)| path).collect()))
}

/// A number as Python writes it that was given a whole one.
pub fn whole(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}
