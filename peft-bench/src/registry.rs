//! Every method by name.

use std::path::Path;

use peft_core::adapterhub::Kind;
use peft_core::io::{Pretrained, adapterhub, peft};
use peft_core::train::Tuned;
use peft_core::{AnyMethod, Error, Method, Result};

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
    let found = METHODS.iter().find(|entry| entry.name == name);
    found.map(|entry| (entry.method)()).ok_or_else(|| Error::config("method", name, one_of(|entry| entry.name)))
}

/// The method of an adapter directory.
pub fn by_peft_type(adapter: &Path) -> Result<AnyMethod> {
    let of_type = |peft_type: &String| {
        let found = METHODS.iter().find(|entry| entry.peft_type == *peft_type);
        let unknown = || {
            Error::file(adapter.join("adapter_config.json"), "peft_type", peft_type, one_of(|entry| entry.peft_type))
        };
        found.map(|entry| (entry.method)()).ok_or_else(unknown)
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

/// An adapter directory on its model.
pub fn load<'a>(adapter: &Path, model: &'a Pretrained) -> Result<Tuned<'a>> {
    Tuned::load_as(&by_peft_type(adapter)?, adapter, model)
}

macro_rules! methods {
    ($($config:ty: $family:literal,)*) => {
        /// All of them.
        pub const METHODS: &[Entry] = &[$(
            Entry { name: <$config>::NAME, peft_type: <$config>::PEFT_TYPE, family: $family, method: AnyMethod::of::<$config> },
        )*];
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
    peft_unified::AdaMixConfig<peft_additive::SequentialConfig>: "unified",
    peft_unified::AdaMixConfig<peft_reparam::LoraConfig>: "unified",
    peft_unified::ProPetlConfig<peft_additive::SequentialConfig>: "unified",
    peft_unified::ProPetlConfig<peft_additive::PrefixTuningConfig>: "unified",
    peft_unified::ProPetlConfig<peft_reparam::LoraConfig>: "unified",
    peft_unified::SparseConfig<peft_additive::SequentialConfig>: "unified",
    peft_unified::SparseConfig<peft_reparam::LoraConfig>: "unified",
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
        }
    }
}
