//! A method whose type is known only when the program runs.

use std::any::Any;
use std::fmt::{self, Debug};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::AnyTuner;
use super::composed::Composed;
use super::over::{Over, Whole};
use crate::adapterhub::{AdapterHub, Fields, HubKey, Kind};
use crate::view::on_device;
use crate::{Base, Common, Error, Head, Key, Method, Part, Result, Shape, Site, Sites, Source, Start, Trained, Wanted};

/// A configuration of any method, with the adapters that it starts from.
#[derive(Clone)]
pub struct AnyMethod {
    method: Arc<dyn Erased>,
    sources: Arc<[Source]>,
}

/// The form of a method in AdapterHub's files, see [`AdapterHub`].
pub struct HubForm<'a> {
    /// Which of AdapterHub's methods it is.
    pub kind: Kind,
    /// Fields that need not be those of the configuration.
    pub free: &'static [&'static str],
    method: &'a dyn Erased,
}

impl HubForm<'_> {
    /// The fields of `config` that compute what this configuration does.
    pub fn fields(&self, shape: &Shape) -> Result<Fields> {
        self.method.hub_fields(shape)
    }

    /// The configuration that computes what such fields do.
    pub fn config(&self, fields: &Fields, shape: &Shape) -> Result<AnyMethod> {
        self.method.hub_config(fields, shape)
    }

    /// What files call the tensor that records call `name`, in an adapter called `adapter`.
    pub fn key(&self, name: &str, adapter: &str, shape: &Shape) -> HubKey {
        self.method.hub_key(name, adapter, shape)
    }
}

macro_rules! forwarded {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        impl AnyMethod {
            $($(#[$doc])* pub fn $name(&self, $($arg: $type),*) -> $result {
                self.method.$name($($arg),*)
            })*
        }
    };
}

forwarded! {
    /// [`Method::NAME`]; of several methods at once, their names with `+` between.
    name() -> &str;
    /// Of several methods at once, these.
    parts() -> &[AnyMethod];
    /// [`Method::PEFT_TYPE`].
    peft_type() -> &str;
    /// [`Method::ADDS`].
    adds() -> bool;
    /// [`Method::OWN_SETTINGS`].
    own_settings() -> &'static [&'static str];
    /// [`Method::STATED`].
    stated() -> &'static [(&'static str, &'static str)];
    /// [`Method::HEAD_PREFIX`].
    head_prefix() -> &'static str;
    /// Its settings by name.
    settings() -> Map<String, Value>;
    /// The method with its default settings but for these. The error is the key and what is wrong.
    with_settings(settings: Map<String, Value>) -> Result<AnyMethod, (String, String)>;
    /// See [`Method::count`].
    count(shape: &Shape) -> Result<usize>;
    /// See [`Method::head_count`].
    head_count(shape: &Shape, outputs: usize) -> usize;
    /// See [`Method::modules`].
    modules(shape: &Shape) -> Vec<(Site, String)>;
    /// See [`Method::checked_count`].
    checked_count(shape: &Shape) -> Result<usize>;
    /// See [`Method::virtual_tokens`].
    virtual_tokens() -> usize;
    /// See [`Method::room`].
    room(shape: &Shape) -> usize;
    /// See [`Method::key`].
    key(name: &str, shape: &Shape) -> Key;
    /// See [`Method::is_mask`].
    is_mask(name: &str) -> bool;
    /// See [`Method::for_files`].
    for_files(shape: &Shape) -> Result<AnyMethod>;
    /// See [`Method::derived`].
    derived(shape: &Shape) -> Map<String, Value>;
    /// See [`Method::learned`].
    learned(tuner: &AnyTuner, shape: &Shape) -> AnyMethod;
    /// See [`Method::to_saved`].
    to_saved(tuner: AnyTuner) -> AnyTuner;
    /// See [`Method::for_loading`].
    for_loading(base: &Base) -> Result<AnyTuner>;
    /// See [`Method::loaded`].
    loaded(tuner: AnyTuner, base: &Base) -> Result<AnyTuner>;
    /// See [`Method::started`].
    started(start: Start) -> AnyMethod;
    /// See [`Method::taken_out`].
    taken_out(tuner: AnyTuner, start: Start, base: &Base) -> Result<AnyTuner>;
    /// The method with its default settings.
    with_defaults() -> AnyMethod;
    /// A base with the tuner folded in, if the method has a weight-space form: see [`Method::merge`].
    merged(tuner: &AnyTuner, base: &Base) -> Option<Base>;
}

impl AnyMethod {
    /// Forgets the type.
    pub fn new<M: Method>(method: M) -> Self {
        AnyMethod::erased(method)
    }

    /// The `peft_type` of several methods at once.
    pub const COMPOSED: &'static str = "COMPOSED";

    /// Several methods at once, the first the outermost: each with its own settings and steps, in files under its number.
    pub fn composed(parts: Vec<AnyMethod>) -> Self {
        Composed::of(parts)
    }

    /// A procedure over the adapters of a method.
    pub fn over(procedure: impl Over, method: impl Into<AnyMethod>) -> Self {
        AnyMethod::erased(Whole::of(procedure, method.into()))
    }

    /// The same with the settings that both have where nothing else is said, see [`Over::usual`].
    pub fn usual_over<O: Over>(method: AnyMethod) -> Self {
        let (procedure, method) = O::usual(method);
        AnyMethod::over(procedure, method)
    }

    pub(super) fn as_erased(&self) -> &dyn Erased {
        &*self.method
    }

    pub(super) fn erased(method: impl Erased + 'static) -> Self {
        AnyMethod { method: Arc::new(method), sources: Arc::new([]) }
    }

    /// A method with its default settings.
    pub fn of<M: Method>() -> Self {
        AnyMethod::new(M::default())
    }

    /// The same method, which starts from these adapters.
    pub fn from_sources(self, sources: impl Into<Arc<[Source]>>) -> Self {
        AnyMethod { sources: sources.into(), ..self }
    }

    /// See [`Method::init_from`]. Sources may be on another device than the base.
    pub fn init(&self, base: &Base, seed: u64) -> Result<AnyTuner> {
        self.method.init_from(base, seed, &self.sources_at(base))
    }

    /// The sources, on the base's device.
    fn sources_at(&self, base: &Base) -> Vec<Source> {
        let at = |source: &Source| {
            let trained = on_device(source.trained.clone(), base.device());
            Source { trained, ..source.clone() }
        };
        self.sources.iter().map(at).collect()
    }

    /// See [`Method::head`].
    pub fn head(&self, wanted: &Wanted<'_>, base: &Base, seed: u64) -> Result<Option<Head>> {
        self.method.head(wanted, base, seed, &self.sources_at(base))
    }

    /// The configuration, if it is of this type.
    pub fn downcast_ref<M: Method>(&self) -> Option<&M> {
        self.method.as_any().downcast_ref()
    }

    /// The configuration and the tuner of a method of this type.
    ///
    /// # Panics
    /// If they are of another.
    pub fn typed<M: Method>(&self, trained: Trained<AnyTuner>) -> (M, Trained<M::Tuner>) {
        let config = self.downcast_ref::<M>().unwrap_or_else(|| panic!("{} is asked for, not {self:?}", M::NAME));
        let Trained { tuner, head, copies } = trained;
        (config.clone(), Trained { tuner: taken::<M>(tuner), head, copies })
    }

    /// The method on what these settings leave of its `target_modules` on a model of this shape, which it then has as paths, or of its
    /// layers; of several methods at once, each.
    pub fn narrowed(&self, common: &Common, shape: &Shape) -> Result<AnyMethod> {
        let Some(key) = common.narrowing().into_iter().next() else { return Ok(self.clone()) };
        if !self.parts().is_empty() {
            let parts = self.parts().iter().map(|part| part.narrowed(common, shape));
            return Ok(AnyMethod::composed(parts.collect::<Result<_>>()?));
        }
        if let (Some(layers), Some(own)) = (common.layers_alone(), self.settings().get("leave_out")) {
            return self.leaving_out(layers, own, shape);
        }
        let mut settings = self.settings();
        let chosen = |settings: &Map<String, Value>, key: &str| -> Option<Sites> {
            settings.get(key).and_then(|sites| serde_json::from_value(sites.clone()).ok())
        };
        // A choice that follows from the model stands in what files hold.
        let targets = match chosen(&settings, "target_modules") {
            None if settings.contains_key("target_modules") => {
                chosen(&self.for_files(shape)?.settings(), "target_modules")
            }
            targets => targets,
        };
        let none = || {
            let expected = format!("none: {} has no setting for the modules or layers that it is in", self.name());
            Error::config(key, "a choice of modules", expected)
        };
        let sites = common.among(&targets.ok_or_else(none)?, &self.modules(shape))?;
        // Without the model's prefix they are the same on a bare model.
        let paths = self.modules(&Shape { prefix: "", ..shape.clone() });
        let paths = |sites: &[Site]| {
            let paths = paths.iter().filter(|(site, _)| sites.contains(site)).map(|(_, path)| path);
            json!(paths.collect::<Vec<_>>())
        };
        settings.insert("target_modules".into(), paths(&sites));
        if let Some(inputs) = chosen(&settings, "feedforward_modules") {
            let inputs = inputs.among(&self.modules(shape))?;
            let left: Vec<Site> = inputs.into_iter().filter(|site| sites.contains(site)).collect();
            settings.insert("feedforward_modules".into(), paths(&left));
        }
        self.with_settings(settings).map_err(|(key, found)| Error::config(key, found, "a setting of the method"))
    }

    /// The method in these layers of each stack only, without those that it leaves out anyway.
    fn leaving_out(&self, layers: &[usize], own: &Value, shape: &Shape) -> Result<AnyMethod> {
        let stacks = shape.stacks();
        let most = stacks.iter().map(|(_, count)| *count).max().unwrap_or_default();
        if let Some(wrong) = layers.iter().find(|layer| **layer >= most) {
            let expected = format!("numbers below {most}, the model's layers");
            return Err(Error::config("layers_to_transform", wrong, expected));
        }
        let sites = stacks
            .into_iter()
            .flat_map(|(stack, count)| (0..count).map(move |layer| Site { stack, layer, part: Part::Query }));
        let out = sites.map(|site| (site.layer, json!(shape.layer_number(site)))).filter(|(layer, number)| {
            !layers.contains(layer) || own.as_array().is_some_and(|own| own.contains(number))
        });
        let mut settings = self.settings();
        settings.insert("leave_out".into(), out.map(|(_, number)| number).collect());
        self.with_settings(settings).map_err(|(key, found)| Error::config(key, found, "a setting of the method"))
    }

    /// See [`Method::adapterhub`].
    pub fn adapterhub(&self) -> Option<HubForm<'_>> {
        let (kind, free) = self.method.hub()?;
        Some(HubForm { kind, free, method: &*self.method })
    }
}

impl<M: Method> From<M> for AnyMethod {
    fn from(method: M) -> Self {
        AnyMethod::new(method)
    }
}

impl Debug for AnyMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.method.fmt(f)
    }
}

impl PartialEq for AnyMethod {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.settings() == other.settings()
    }
}

/// [`Method`] without its types.
pub(super) trait Erased: Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn name(&self) -> &str;
    fn parts(&self) -> &[AnyMethod];
    fn peft_type(&self) -> &str;
    fn adds(&self) -> bool;
    fn own_settings(&self) -> &'static [&'static str];
    fn stated(&self) -> &'static [(&'static str, &'static str)];
    fn head_prefix(&self) -> &'static str;
    fn settings(&self) -> Map<String, Value>;
    fn with_settings(&self, settings: Map<String, Value>) -> Result<AnyMethod, (String, String)>;
    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<AnyTuner>;
    fn count(&self, shape: &Shape) -> Result<usize>;
    fn head(&self, wanted: &Wanted<'_>, base: &Base, seed: u64, sources: &[Source]) -> Result<Option<Head>>;
    fn head_count(&self, shape: &Shape, outputs: usize) -> usize;
    fn modules(&self, shape: &Shape) -> Vec<(Site, String)>;
    fn checked_count(&self, shape: &Shape) -> Result<usize>;
    fn virtual_tokens(&self) -> usize;
    fn room(&self, shape: &Shape) -> usize;
    fn key(&self, name: &str, shape: &Shape) -> Key;
    fn is_mask(&self, name: &str) -> bool;
    fn for_files(&self, shape: &Shape) -> Result<AnyMethod>;
    fn derived(&self, shape: &Shape) -> Map<String, Value>;
    fn learned(&self, tuner: &AnyTuner, shape: &Shape) -> AnyMethod;
    fn to_saved(&self, tuner: AnyTuner) -> AnyTuner;
    fn for_loading(&self, base: &Base) -> Result<AnyTuner>;
    fn loaded(&self, tuner: AnyTuner, base: &Base) -> Result<AnyTuner>;
    fn started(&self, start: Start) -> AnyMethod;
    fn taken_out(&self, tuner: AnyTuner, start: Start, base: &Base) -> Result<AnyTuner>;
    fn with_defaults(&self) -> AnyMethod;
    fn merged(&self, tuner: &AnyTuner, base: &Base) -> Option<Base>;
    fn hub(&self) -> Option<(Kind, &'static [&'static str])>;
    fn hub_fields(&self, shape: &Shape) -> Result<Fields>;
    fn hub_config(&self, fields: &Fields, shape: &Shape) -> Result<AnyMethod>;
    fn hub_key(&self, name: &str, adapter: &str, shape: &Shape) -> HubKey;
}

/// The tuner of this method.
fn own<M: Method>(tuner: &AnyTuner) -> &M::Tuner {
    tuner.downcast_ref().unwrap_or_else(|| panic!("a tuner of {} is asked for, not {tuner:?}", M::NAME))
}

fn taken<M: Method>(tuner: AnyTuner) -> M::Tuner {
    tuner.downcast().unwrap_or_else(|| panic!("a tuner of {} is asked for", M::NAME))
}

fn form<M: Method>() -> AdapterHub<M> {
    M::adapterhub().unwrap_or_else(|| unreachable!("a `HubForm` is made of a method that has one"))
}

impl<M: Method> Erased for M {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn name(&self) -> &str {
        M::NAME
    }
    fn parts(&self) -> &[AnyMethod] {
        &[]
    }
    fn peft_type(&self) -> &str {
        M::PEFT_TYPE
    }
    fn adds(&self) -> bool {
        M::ADDS
    }
    fn own_settings(&self) -> &'static [&'static str] {
        M::OWN_SETTINGS
    }
    fn stated(&self) -> &'static [(&'static str, &'static str)] {
        M::STATED
    }
    fn head_prefix(&self) -> &'static str {
        M::HEAD_PREFIX
    }
    fn settings(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(settings)) => settings,
            other => unreachable!("a configuration is an object of plain values: {other:?}"),
        }
    }
    fn with_settings(&self, settings: Map<String, Value>) -> Result<AnyMethod, (String, String)> {
        for (key, value) in &settings {
            let alone = Map::from_iter([(key.clone(), value.clone())]);
            if let Err(error) = serde_json::from_value::<M>(Value::Object(alone)) {
                return Err((key.clone(), format!("{value} ({error})")));
            }
        }
        let whole = serde_json::from_value::<M>(Value::Object(settings));
        whole.map(AnyMethod::new).map_err(|error| ("content".into(), error.to_string()))
    }
    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<AnyTuner> {
        Method::init_from(self, base, seed, sources).map(AnyTuner::new)
    }
    fn count(&self, shape: &Shape) -> Result<usize> {
        Method::count(self, shape)
    }
    fn head(&self, wanted: &Wanted<'_>, base: &Base, seed: u64, sources: &[Source]) -> Result<Option<Head>> {
        Method::head(self, wanted, base, seed, sources)
    }
    fn head_count(&self, shape: &Shape, outputs: usize) -> usize {
        Method::head_count(self, shape, outputs)
    }
    fn modules(&self, shape: &Shape) -> Vec<(Site, String)> {
        M::modules(shape)
    }
    fn checked_count(&self, shape: &Shape) -> Result<usize> {
        Method::checked_count(self, shape)
    }
    fn virtual_tokens(&self) -> usize {
        Method::virtual_tokens(self)
    }
    fn room(&self, shape: &Shape) -> usize {
        Method::room(self, shape)
    }
    fn key(&self, name: &str, shape: &Shape) -> Key {
        Method::key(self, name, shape)
    }
    fn is_mask(&self, name: &str) -> bool {
        Method::is_mask(self, name)
    }
    fn for_files(&self, shape: &Shape) -> Result<AnyMethod> {
        Method::for_files(self, shape).map(AnyMethod::new)
    }
    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        Method::derived(self, shape)
    }
    fn learned(&self, tuner: &AnyTuner, shape: &Shape) -> AnyMethod {
        AnyMethod::new(Method::learned(self, own::<M>(tuner), shape))
    }
    fn to_saved(&self, tuner: AnyTuner) -> AnyTuner {
        AnyTuner::new(M::to_saved(taken::<M>(tuner)))
    }
    fn for_loading(&self, base: &Base) -> Result<AnyTuner> {
        Method::for_loading(self, base).map(AnyTuner::new)
    }
    fn loaded(&self, tuner: AnyTuner, base: &Base) -> Result<AnyTuner> {
        Method::loaded(self, taken::<M>(tuner), base).map(AnyTuner::new)
    }
    fn started(&self, start: Start) -> AnyMethod {
        AnyMethod::new(Method::started(self, start))
    }
    fn taken_out(&self, tuner: AnyTuner, start: Start, base: &Base) -> Result<AnyTuner> {
        Method::taken_out(self, taken::<M>(tuner), start, base).map(AnyTuner::new)
    }
    fn with_defaults(&self) -> AnyMethod {
        AnyMethod::of::<M>()
    }
    fn merged(&self, tuner: &AnyTuner, base: &Base) -> Option<Base> {
        M::merge(own::<M>(tuner)).map(|merge| base.merged(merge))
    }
    fn hub(&self) -> Option<(Kind, &'static [&'static str])> {
        M::adapterhub().map(|form| (form.kind, form.free))
    }
    fn hub_fields(&self, shape: &Shape) -> Result<Fields> {
        (form::<M>().fields)(self, shape)
    }
    fn hub_config(&self, fields: &Fields, shape: &Shape) -> Result<AnyMethod> {
        (form::<M>().config)(fields, shape).map(AnyMethod::new)
    }
    fn hub_key(&self, name: &str, adapter: &str, shape: &Shape) -> HubKey {
        (form::<M>().key)(self, name, adapter, shape)
    }
}
