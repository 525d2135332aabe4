//! Every method by name: how a program that learns the method from its user gets at the types.

use std::path::Path;

use peft_core::io::{adapterhub, peft};
use peft_core::{Error, Method, Result};

/// Something done with a method whose type is known only when the program runs.
pub trait WithMethod {
    /// What it gives.
    type Output;
    /// Does it.
    fn call<M: Method>(self) -> Result<Self::Output>;
}

/// What the registry says of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in commands.
    pub name: &'static str,
    /// Its `peft_type` in files.
    pub peft_type: &'static str,
    /// Its family, which is also the crate it is in.
    pub family: &'static str,
}

macro_rules! methods {
    ($($config:ty: $family:literal,)*) => {
        /// All of them.
        pub const METHODS: &[Entry] = &[$(
            Entry { name: <$config>::NAME, peft_type: <$config>::PEFT_TYPE, family: $family },
        )*];

        /// Calls `f` with the method of this name.
        pub fn by_name<F: WithMethod>(name: &str, f: F) -> Result<F::Output> {
            $(if name == <$config>::NAME { return f.call::<$config>(); })*
            Err(Error::config("method", name, one_of(|entry| entry.name)))
        }

        /// Calls `f` with the method of an adapter directory.
        pub fn by_peft_type<F: WithMethod>(adapter: &Path, f: F) -> Result<F::Output> {
            let peft_type = peft::peft_type(adapter)?;
            $(if peft_type == <$config>::PEFT_TYPE { return f.call::<$config>(); })*
            let known = one_of(|entry| entry.peft_type);
            Err(Error::file(adapter.join("adapter_config.json"), "peft_type", peft_type, known))
        }

        /// Calls `f` with the method of an adapter directory of AdapterHub.
        pub fn by_adapterhub<F: WithMethod>(adapter: &Path, f: F) -> Result<F::Output> {
            let kind = adapterhub::kind(adapter)?;
            $(if <$config>::adapterhub().is_some_and(|hub| hub.kind == kind) { return f.call::<$config>(); })*
            Err(Error::file(adapter.join("adapter_config.json"), "config", format!("{kind:?}"), "a method that is known here"))
        }
    };
}

methods! {
    peft_partial::FullConfig: "partial",
    peft_partial::LinearProbeConfig: "partial",
    peft_partial::BitFitConfig: "partial",
    peft_partial::ChildTuningConfig: "partial",
    peft_partial::DiffPruningConfig: "partial",
    peft_additive::SequentialConfig: "additive",
    peft_additive::ParallelConfig: "additive",
    peft_additive::AdapterDropConfig: "additive",
    peft_additive::CodaConfig: "additive",
    peft_additive::HyperformerConfig: "additive",
    peft_additive::PromptTuningConfig: "additive",
    peft_additive::PTuningConfig: "additive",
    peft_additive::PrefixTuningConfig: "additive",
    peft_additive::Ia3Config: "additive",
    peft_additive::LstConfig: "additive",
    peft_reparam::LoraConfig: "reparam",
    peft_reparam::AdaLoraConfig: "reparam",
    peft_reparam::IntrinsicSaidConfig: "reparam",
    peft_hybrid::MamConfig: "hybrid",
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
