//! Every method by name.

use std::path::Path;

use peft_core::adapterhub::Kind;
use peft_core::io::{Pretrained, adapterhub, peft};
use peft_core::train::Tuned;
use peft_core::{AnyMethod, Error, Method, Result, Shape};

/// What the registry says of a method.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name in commands.
    pub name: &'static str,
    /// Its `peft_type` in files.
    pub peft_type: &'static str,
    /// Its family, which is also the crate it is in.
    pub family: &'static str,
    /// The method with its default settings.
    pub method: fn() -> AnyMethod,
}

/// The method of this name, or those of several names with `+` between them, at once.
pub fn by_name(name: &str) -> Result<AnyMethod> {
    if name.contains('+') {
        return name.split('+').map(by_name).collect::<Result<_>>().map(AnyMethod::composed);
    }
    let expected =
        || format!("{}, or {}- before one", one_of(|entry| entry.name), OVER.map(|(name, _)| name).join("- or "));
    plain(name).or_else(|| over(name)).ok_or_else(|| Error::config("method", name, expected()))
}

/// The method of an adapter directory.
pub fn by_peft_type(adapter: &Path) -> Result<AnyMethod> {
    let of_type = |peft_type: &String| {
        let found = METHODS.iter().find(|entry| entry.peft_type == *peft_type);
        let unknown = || {
            Error::file(adapter.join("adapter_config.json"), "peft_type", peft_type, one_of(|entry| entry.peft_type))
        };
        found.map(|entry| (entry.method)()).or_else(|| over_type(peft_type)).ok_or_else(unknown)
    };
    let peft_type = peft::peft_type(adapter)?;
    if peft_type == AnyMethod::COMPOSED {
        return peft::part_types(adapter)?.iter().map(of_type).collect::<Result<_>>().map(AnyMethod::composed);
    }
    of_type(&peft_type)
}

/// The method of an adapter directory of AdapterHub.
pub fn by_adapterhub(adapter: &Path) -> Result<AnyMethod> {
    by_kind(adapterhub::kind(adapter)?)
}

/// The method of a kind of AdapterHub's.
pub fn by_kind(kind: Kind) -> Result<AnyMethod> {
    let mut methods = METHODS.iter().map(|entry| (entry.method)());
    let found = methods.find(|method| method.adapterhub().is_some_and(|hub| hub.kind == kind));
    found.ok_or_else(|| Error::config("config", format!("{kind:?}"), "a method that is known here"))
}

/// Adapter directories on their model, at once if there are several: the first is the outermost, and its head counts.
pub fn load<'a>(adapters: &[impl AsRef<Path>], model: &'a Pretrained) -> Result<Tuned<'a>> {
    let one = |dir: &Path| Tuned::load_as(&by_peft_type(dir)?, dir, model);
    Tuned::composed(adapters.iter().map(|dir| one(dir.as_ref())).collect::<Result<_>>()?)
}

/// The most tokens of a sequence on a model of this shape with such adapters at once.
pub fn room(adapters: &[impl AsRef<Path>], shape: &Shape) -> Result<usize> {
    let one = |dir: &Path| peft::config(&by_peft_type(dir)?, dir, shape);
    let mut all = adapters.iter().map(|dir| one(dir.as_ref())).collect::<Result<Vec<_>>>()?;
    Ok(match all.len() {
        0 => shape.max_length(),
        1 => all.remove(0).room(shape),
        _ => AnyMethod::composed(all).room(shape),
    })
}

macro_rules! methods {
    ($($config:ty: $family:literal,)*; $(over $procedure:ty, $inner:ty: $name:literal $peft_type:literal $of:literal,)*) => {
        /// All of them.
        pub const METHODS: &[Entry] = &[
            $(Entry { name: <$config>::NAME, peft_type: <$config>::PEFT_TYPE, family: $family, method: AnyMethod::of::<$config> },)*
            $(Entry {
                name: $name,
                peft_type: $peft_type,
                family: $of,
                method: || AnyMethod::usual_over::<$procedure>(AnyMethod::of::<$inner>()),
            },)*
        ];
    };
}

methods! {
    peft_partial::FullConfig: "partial",
    peft_partial::LinearProbeConfig: "partial",
    peft_partial::BitFitConfig: "partial",
    peft_partial::ChildTuningConfig: "partial",
    peft_partial::DiffPruningConfig: "partial",
    peft_partial::FishMaskConfig: "partial",
    peft_partial::LtSftConfig: "partial",
    peft_partial::UBitFitConfig: "partial",
    peft_partial::SBitFitConfig: "partial",
    peft_partial::SamConfig: "partial",
    peft_partial::ThresholdMaskConfig: "partial",
    peft_additive::SequentialConfig: "additive",
    peft_additive::ParallelConfig: "additive",
    peft_additive::BnConfig: "additive",
    peft_additive::ResidualConfig: "additive",
    peft_additive::TinyAttnConfig: "additive",
    peft_additive::AdapterDropConfig: "additive",
    peft_additive::AdapterFusionConfig: "additive",
    peft_additive::MeraConfig: "additive",
    peft_additive::AdapterSoupConfig: "additive",
    peft_additive::CodaConfig: "additive",
    peft_additive::HyperformerConfig: "additive",
    peft_additive::PromptTuningConfig: "additive",
    peft_additive::WarpConfig: "additive",
    peft_additive::PTuningConfig: "additive",
    peft_additive::SpotConfig: "additive",
    peft_additive::AttemptConfig: "additive",
    peft_additive::MptConfig: "additive",
    peft_additive::PrefixTuningConfig: "additive",
    peft_additive::Ia3Config: "additive",
    peft_additive::LstConfig: "additive",
    peft_additive::HadamardConfig: "additive",
    peft_additive::PastaConfig: "additive",
    peft_additive::AttentionFusionConfig: "additive",
    peft_reparam::LoraConfig: "reparam",
    peft_reparam::AdaLoraConfig: "reparam",
    peft_reparam::IncreLoraConfig: "reparam",
    peft_reparam::DeltaLoraConfig: "reparam",
    peft_reparam::IntrinsicSaidConfig: "reparam",
    peft_reparam::KronaConfig: "reparam",
    peft_reparam::KronaBConfig: "reparam",
    peft_reparam::DyLoraConfig: "reparam",
    peft_reparam::KernelMixConfig: "reparam",
    peft_reparam::MoeLoraConfig: "reparam",
    peft_reparam::LoraHubConfig: "reparam",
    peft_reparam::LaplaceLoraConfig: "reparam",
    peft_reparam::LoraPruneConfig: "reparam",
    peft_reparam::LoftQConfig: "reparam",
    peft_reparam::QaLoraConfig: "reparam",
    peft_reparam::QLoraConfig: "reparam",
    peft_hybrid::MamConfig: "hybrid",
    peft_hybrid::PrunedMamConfig: "hybrid",
    peft_hybrid::CompacterConfig: "hybrid",
    peft_hybrid::UniPeltConfig: "hybrid",
    peft_hybrid::S4Config: "hybrid",
    peft_hybrid::AutoPeftConfig: "hybrid",
    peft_hybrid::S3DeltaConfig: "hybrid",
    ;
    over peft_unified::Mixing, peft_additive::SequentialConfig: "adamix-adapter" "ADAMIX_ADAPTER" "unified",
    over peft_unified::Mixing, peft_reparam::LoraConfig: "adamix-lora" "ADAMIX_LORA" "unified",
    over peft_unified::Sharing, peft_additive::SequentialConfig: "propetl-adapter" "PROPETL_ADAPTER" "unified",
    over peft_unified::Sharing, peft_additive::PrefixTuningConfig: "propetl-prefix" "PROPETL_PREFIX" "unified",
    over peft_unified::Sharing, peft_reparam::LoraConfig: "propetl-lora" "PROPETL_LORA" "unified",
    over peft_unified::Pruning, peft_additive::SequentialConfig: "sparse-adapter" "SPARSE_ADAPTER" "unified",
    over peft_unified::Pruning, peft_reparam::LoraConfig: "sparse-lora" "SPARSE_LORA" "unified",
}

/// A procedure over a method.
type Over = fn(AnyMethod) -> AnyMethod;

/// What goes over any method, by what stands before the method's name. Over those that the papers have it on it is among the others.
pub const OVER: [(&str, Over); 3] = [
    ("adamix", AnyMethod::usual_over::<peft_unified::Mixing>),
    ("propetl", AnyMethod::usual_over::<peft_unified::Sharing>),
    ("sparse", AnyMethod::usual_over::<peft_unified::Pruning>),
];

/// A procedure over the method of this name.
fn over(name: &str) -> Option<AnyMethod> {
    let of = |(procedure, over): &(&str, Over)| Some(over(plain(name.strip_prefix(procedure)?.strip_prefix('-')?)?));
    OVER.iter().find_map(of)
}

/// The same of a `peft_type`.
fn over_type(peft_type: &str) -> Option<AnyMethod> {
    let all = METHODS.iter().flat_map(|entry| OVER.map(|(procedure, _)| format!("{procedure}-{}", entry.name)));
    all.filter(|name| name.replace('-', "_").to_uppercase() == peft_type).find_map(|name| over(&name))
}

/// The method of this name among those that stand there.
fn plain(name: &str) -> Option<AnyMethod> {
    METHODS.iter().find(|entry| entry.name == name).map(|entry| (entry.method)())
}

fn one_of(name: impl Fn(&Entry) -> &'static str) -> String {
    format!("one of {}", METHODS.iter().map(name).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_types_are_unique() {
        for (i, a) in METHODS.iter().enumerate() {
            for b in &METHODS[i + 1..] {
                assert!(a.name != b.name && a.peft_type != b.peft_type, "{a:?} {b:?}");
            }
            let method = (a.method)();
            assert_eq!((method.name(), method.peft_type()), (a.name, a.peft_type));
        }
    }
}
