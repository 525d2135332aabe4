//! Procedures over the adapters of any method.

use std::any::Any;
use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::method::Erased;
use super::{AnyMethod, AnyTuner};
use crate::adapterhub::{Fields, HubKey, Kind};
use crate::method::checked;
use crate::{Base, Error, Head, Key, Result, Shape, Site, Source, Start, Wanted};

/// A procedure over the adapters of any method, as plain data: its settings, and what it changes of the method. All else is that method's.
/// Its tuner names the method's as its part, see [`Procedure::parts`](crate::Procedure::parts).
pub trait Over: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What its name begins with; the method's follows.
    const NAME: &'static str;

    /// The procedure and the method where nothing else is said.
    fn usual(inner: AnyMethod) -> (Self, AnyMethod);

    /// See [`Method::init`](crate::Method::init).
    fn init(&self, inner: &AnyMethod, base: &Base, seed: u64) -> Result<AnyTuner>;

    /// See [`Method::count`](crate::Method::count).
    fn count(&self, inner: &AnyMethod, shape: &Shape) -> Result<usize>;

    /// See [`Method::key`](crate::Method::key).
    fn key(&self, inner: &AnyMethod, name: &str, shape: &Shape) -> Key;

    /// See [`Method::is_mask`](crate::Method::is_mask).
    fn is_mask(name: &str) -> bool;

    /// See [`Method::to_saved`](crate::Method::to_saved).
    fn to_saved(&self, inner: &AnyMethod, tuner: AnyTuner) -> AnyTuner;

    /// See [`Method::for_loading`](crate::Method::for_loading).
    fn for_loading(&self, inner: &AnyMethod, base: &Base) -> Result<AnyTuner>;

    /// See [`Method::loaded`](crate::Method::loaded).
    fn loaded(&self, inner: &AnyMethod, tuner: AnyTuner, base: &Base) -> Result<AnyTuner>;

    /// The method's own tuner that computes the same, on all layers.
    fn plain(tuner: &AnyTuner) -> AnyTuner;
}

/// A procedure over a method.
#[derive(Clone, Debug)]
pub(super) struct Whole<O> {
    own: O,
    inner: AnyMethod,
    name: String,
    peft_type: String,
}

impl<O: Over> Whole<O> {
    pub(super) fn of(own: O, inner: AnyMethod) -> Self {
        let name = format!("{}-{}", O::NAME, inner.name());
        let peft_type = name.replace(['-', '+'], "_").to_uppercase();
        Whole { own, inner, name, peft_type }
    }

    fn with_inner(&self, inner: AnyMethod) -> AnyMethod {
        AnyMethod::erased(Whole::of(self.own.clone(), inner))
    }

    fn usual(&self) -> Self {
        let (own, inner) = O::usual(self.inner.with_defaults());
        Whole::of(own, inner)
    }

    fn own_settings_of(own: &O) -> Map<String, Value> {
        match serde_json::to_value(own) {
            Ok(Value::Object(settings)) => settings,
            other => unreachable!("settings are an object of plain values: {other:?}"),
        }
    }
}

impl<O: Over> Erased for Whole<O> {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn peft_type(&self) -> &str {
        &self.peft_type
    }
    fn parts(&self) -> &[AnyMethod] {
        &[]
    }
    fn adds(&self) -> bool {
        self.inner.adds()
    }
    fn own_settings(&self) -> &'static [&'static str] {
        &[]
    }
    fn stated(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
    fn head_prefix(&self) -> &'static str {
        self.inner.head_prefix()
    }
    /// Those of both, side by side.
    fn settings(&self) -> Map<String, Value> {
        Self::own_settings_of(&self.own).into_iter().chain(self.inner.settings()).collect()
    }
    /// What is missing is as usual; what neither has is for the method to refuse.
    fn with_settings(&self, settings: Map<String, Value>) -> Result<AnyMethod, (String, String)> {
        let usual = self.usual();
        let (mut own, mut inner) = (Self::own_settings_of(&usual.own), usual.inner.settings());
        for (key, value) in settings {
            if !own.contains_key(&key) {
                inner.insert(key, value);
                continue;
            }
            let before = own.insert(key.clone(), value.clone());
            if let Err(error) = serde_json::from_value::<O>(Value::Object(own.clone())) {
                own.extend(before.map(|before| (key.clone(), before)));
                return Err((key, format!("{value} ({error})")));
            }
        }
        let own: O =
            serde_json::from_value(Value::Object(own)).map_err(|error| ("content".into(), error.to_string()))?;
        Ok(AnyMethod::erased(Whole::of(own, usual.inner.with_settings(inner)?)))
    }
    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<AnyTuner> {
        self.own.init(&self.inner.clone().from_sources(sources), base, seed)
    }
    fn count(&self, shape: &Shape) -> Result<usize> {
        self.own.count(&self.inner, shape)
    }
    fn head(&self, wanted: &Wanted<'_>, base: &Base, seed: u64, sources: &[Source]) -> Result<Option<Head>> {
        self.inner.as_erased().head(wanted, base, seed, sources)
    }
    fn head_count(&self, shape: &Shape, outputs: usize) -> usize {
        self.inner.head_count(shape, outputs)
    }
    fn modules(&self, shape: &Shape) -> Vec<(Site, String)> {
        self.inner.modules(shape)
    }
    fn checked_count(&self, shape: &Shape) -> Result<usize> {
        checked(&self.name, self.count(shape)?, shape)
    }
    fn virtual_tokens(&self) -> usize {
        self.inner.virtual_tokens()
    }
    fn room(&self, shape: &Shape) -> usize {
        self.inner.room(shape)
    }
    fn key(&self, name: &str, shape: &Shape) -> Key {
        self.own.key(&self.inner, name, shape)
    }
    fn is_mask(&self, name: &str) -> bool {
        O::is_mask(name)
    }
    fn for_files(&self, shape: &Shape) -> Result<AnyMethod> {
        Ok(self.with_inner(self.inner.for_files(shape)?))
    }
    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        self.inner.derived(shape)
    }
    fn learned(&self, tuner: &AnyTuner, shape: &Shape) -> AnyMethod {
        self.with_inner(self.inner.learned(&O::plain(tuner), shape))
    }
    fn to_saved(&self, tuner: AnyTuner) -> AnyTuner {
        self.own.to_saved(&self.inner, tuner)
    }
    fn for_loading(&self, base: &Base) -> Result<AnyTuner> {
        self.own.for_loading(&self.inner, base)
    }
    fn loaded(&self, tuner: AnyTuner, base: &Base) -> Result<AnyTuner> {
        self.own.loaded(&self.inner, tuner, base)
    }
    fn started(&self, _start: Start) -> AnyMethod {
        self.with_inner(self.inner.clone())
    }
    fn taken_out(&self, _tuner: AnyTuner, start: Start, _base: &Base) -> Result<AnyTuner> {
        let found = format!("{start:?}");
        Err(Error::config("init_lora_weights", found, format!("no start in the base: not over {}", O::NAME)))
    }
    fn with_defaults(&self) -> AnyMethod {
        AnyMethod::erased(self.usual())
    }
    fn merged(&self, tuner: &AnyTuner, base: &Base) -> Option<Base> {
        self.inner.merged(&O::plain(tuner), base)
    }
    fn hub(&self) -> Option<(Kind, &'static [&'static str])> {
        None
    }
    fn hub_fields(&self, _shape: &Shape) -> Result<Fields> {
        unreachable!("it has no form in AdapterHub's files")
    }
    fn hub_config(&self, _fields: &Fields, _shape: &Shape) -> Result<AnyMethod> {
        unreachable!("it has no form in AdapterHub's files")
    }
    fn hub_key(&self, _name: &str, _adapter: &str, _shape: &Shape) -> HubKey {
        unreachable!("it has no form in AdapterHub's files")
    }
}
