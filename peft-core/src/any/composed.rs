//! Several methods at once, as a method.

use std::any::Any;

use serde_json::{Map, Value, json};

use super::method::Erased;
use super::{AnyMethod, AnyTuner, Many};
use crate::adapterhub::{Fields, HubKey, Kind};
use crate::{Base, Error, Head, Key, Result, Shape, Site, Source, Start, Wanted};

/// Several methods at once, the first the outermost. Each has its own settings and steps; files hold each one's tensors under its number.
#[derive(Clone, Debug)]
pub(super) struct Composed {
    name: String,
    parts: Vec<AnyMethod>,
}

impl Composed {
    /// Parts that are several methods themselves stand beside the others.
    pub(super) fn of(parts: Vec<AnyMethod>) -> AnyMethod {
        let each = |part: AnyMethod| if part.parts().is_empty() { vec![part] } else { part.parts().to_vec() };
        let parts: Vec<AnyMethod> = parts.into_iter().flat_map(each).collect();
        let name = parts.iter().map(AnyMethod::name).collect::<Vec<_>>().join("+");
        AnyMethod::erased(Composed { name, parts })
    }

    /// A part and the name there of the tensor of this name.
    fn part<'a>(&self, name: &'a str) -> (usize, &'a str) {
        let found = name.strip_prefix("parts.").and_then(|name| name.split_once('.'));
        let (part, name) = found.unwrap_or_else(|| panic!("{name} is not the name of a part's tensor"));
        (part.parse().unwrap_or_else(|_| panic!("{part} is not the number of a part")), name)
    }

    fn tuners<'a>(&self, tuner: &'a AnyTuner) -> Vec<&'a AnyTuner> {
        let many = tuner.downcast_ref::<Many>().unwrap_or_else(|| panic!("a composition is asked for, not {tuner:?}"));
        many.tuners().collect()
    }

    fn many(&self, part: impl Fn(usize, &AnyMethod) -> Result<AnyTuner>) -> Result<AnyTuner> {
        let parts = self.parts.iter().enumerate().map(|(i, method)| part(i, method)).collect::<Result<_>>()?;
        Many::new(parts).map(AnyTuner::new)
    }
}

impl Erased for Composed {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn peft_type(&self) -> &str {
        AnyMethod::COMPOSED
    }
    fn parts(&self) -> &[AnyMethod] {
        &self.parts
    }
    fn adds(&self) -> bool {
        self.parts.iter().all(AnyMethod::adds)
    }
    fn own_settings(&self) -> &'static [&'static str] {
        &[]
    }
    fn stated(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
    fn head_prefix(&self) -> &'static str {
        "base_model.model."
    }
    fn settings(&self) -> Map<String, Value> {
        let part = |part: &AnyMethod| {
            let kind = [("peft_type".to_string(), json!(part.peft_type()))];
            Value::Object(kind.into_iter().chain(part.settings()).collect())
        };
        Map::from_iter([("parts".to_string(), self.parts.iter().map(part).collect())])
    }
    /// Settings of all parts, each with its `peft_type`.
    fn with_settings(&self, mut settings: Map<String, Value>) -> Result<AnyMethod, (String, String)> {
        let wrong = |found: String| ("parts".to_string(), found);
        let Some(parts) = settings.remove("parts") else { return Ok(Composed::of(self.parts.clone())) };
        let Value::Array(given) = &parts else { return Err(wrong(parts.to_string())) };
        if given.len() != self.parts.len() {
            return Err(wrong(format!("{} parts, where {} are composed", given.len(), self.parts.len())));
        }
        let one = |(part, given): (&AnyMethod, &Value)| match given {
            Value::Object(fields) if fields.get("peft_type") == Some(&json!(part.peft_type())) => {
                let mut fields = fields.clone();
                fields.remove("peft_type");
                part.with_settings(fields).map_err(|(key, found)| wrong(format!("{key} of {}: {found}", part.name())))
            }
            other => Err(wrong(format!("{other}, where {} is composed", part.peft_type()))),
        };
        self.parts.iter().zip(given).map(one).collect::<Result<_, _>>().map(Composed::of)
    }
    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<AnyTuner> {
        match sources {
            // Two of a kind with one seed would start, and stay, the same.
            [] => self.many(|i, part| part.init(base, seed.wrapping_add(i as u64))),
            [source, ..] => {
                Err(Error::config("sources", &source.name, "none: several methods start from the base alone"))
            }
        }
    }
    fn count(&self, shape: &Shape) -> Result<usize> {
        self.parts.iter().map(|part| part.count(shape)).sum()
    }
    /// The first of its parts that has one decides.
    fn head(&self, wanted: &Wanted<'_>, base: &Base, seed: u64, _sources: &[Source]) -> Result<Option<Head>> {
        let mut heads = self.parts.iter().map(|part| part.head(wanted, base, seed));
        heads.find_map(Result::transpose).transpose()
    }
    fn head_count(&self, shape: &Shape, outputs: usize) -> usize {
        let usual = Head::count(shape, outputs);
        self.parts.iter().map(|part| part.head_count(shape, outputs)).find(|count| *count != usual).unwrap_or(usual)
    }
    /// Its parts have their own.
    fn modules(&self, _shape: &Shape) -> Vec<(Site, String)> {
        vec![]
    }
    fn checked_count(&self, shape: &Shape) -> Result<usize> {
        self.parts.iter().map(|part| part.checked_count(shape)).sum()
    }
    fn virtual_tokens(&self) -> usize {
        self.parts.iter().map(AnyMethod::virtual_tokens).sum()
    }
    fn room(&self, shape: &Shape) -> usize {
        let all = self.virtual_tokens();
        let room = |part: &AnyMethod| part.room(shape).saturating_sub(all - part.virtual_tokens());
        self.parts.iter().map(room).min().unwrap_or_default()
    }
    fn key(&self, name: &str, shape: &Shape) -> Key {
        let (part, name) = self.part(name);
        let Key { name, transposed } = self.parts[part].key(name, shape);
        Key { name: format!("parts.{part}.{name}"), transposed }
    }
    fn is_mask(&self, name: &str) -> bool {
        let (part, name) = self.part(name);
        self.parts[part].is_mask(name)
    }
    fn for_files(&self, shape: &Shape) -> Result<AnyMethod> {
        self.parts.iter().map(|part| part.for_files(shape)).collect::<Result<_>>().map(Composed::of)
    }
    fn derived(&self, _shape: &Shape) -> Map<String, Value> {
        Map::new()
    }
    fn learned(&self, tuner: &AnyTuner, shape: &Shape) -> AnyMethod {
        let learned = self.parts.iter().zip(self.tuners(tuner)).map(|(part, tuner)| part.learned(tuner, shape));
        Composed::of(learned.collect())
    }
    fn to_saved(&self, tuner: AnyTuner) -> AnyTuner {
        let saved = self.parts.iter().zip(self.tuners(&tuner)).map(|(part, tuner)| part.to_saved(tuner.clone()));
        let saved = Many::new(saved.collect()).unwrap_or_else(|_| unreachable!("what is saved of an adapter is one"));
        AnyTuner::new(saved)
    }
    fn for_loading(&self, base: &Base) -> Result<AnyTuner> {
        self.many(|_, part| part.for_loading(base))
    }
    fn loaded(&self, tuner: AnyTuner, base: &Base) -> Result<AnyTuner> {
        let parts = self.parts.iter().zip(self.tuners(&tuner)).map(|(part, tuner)| part.loaded(tuner.clone(), base));
        Many::new(parts.collect::<Result<_>>()?).map(AnyTuner::new)
    }
    fn started(&self, _start: Start) -> AnyMethod {
        Composed::of(self.parts.clone())
    }
    fn taken_out(&self, tuner: AnyTuner, _start: Start, _base: &Base) -> Result<AnyTuner> {
        Ok(tuner)
    }
    fn with_defaults(&self) -> AnyMethod {
        Composed::of(self.parts.iter().map(AnyMethod::with_defaults).collect())
    }
    /// The innermost first, each into the base as the others leave it.
    fn merged(&self, tuner: &AnyTuner, base: &Base) -> Option<Base> {
        let parts = self.parts.iter().zip(self.tuners(tuner)).rev();
        parts.into_iter().try_fold(base.clone(), |base, (part, tuner)| part.merged(tuner, &base))
    }
    fn hub(&self) -> Option<(Kind, &'static [&'static str])> {
        None
    }
    fn hub_fields(&self, _shape: &Shape) -> Result<Fields> {
        unreachable!("a composition has no form in AdapterHub's files")
    }
    fn hub_config(&self, _fields: &Fields, _shape: &Shape) -> Result<AnyMethod> {
        unreachable!("a composition has no form in AdapterHub's files")
    }
    fn hub_key(&self, _name: &str, _adapter: &str, _shape: &Shape) -> HubKey {
        unreachable!("a composition has no form in AdapterHub's files")
    }
}
