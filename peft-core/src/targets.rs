//! What every method has beside its own settings: modules that are trained whole, modules that are left out, and layers.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::site::{ALL_LINEAR, is_end};
use crate::{Error, Pattern, Result, Site, Sites};

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Few<T> {
    /// One.
    One(T),
    /// A list, which may be empty.
    Many(Vec<T>),
}

impl<T> Few<T> {
    /// All of them.
    pub fn all(&self) -> &[T] {
        match self {
            Few::One(value) => std::slice::from_ref(value),
            Few::Many(values) => values,
        }
    }
}

/// Settings that every method has beside its own, in the names of PEFT's `LoraConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Common {
    /// Modules that are trained whole, see [`Copies`](crate::Copies).
    pub modules_to_save: Option<Few<String>>,
    /// Of the modules that `target_modules` choose these are left out.
    pub exclude_modules: Option<Sites>,
    /// Of the modules that are chosen by the end of their path only those in these layers are taken.
    pub layers_to_transform: Option<Few<usize>>,
    /// The names of the lists of layers whose numbers count; of all, if there is none. A T5 has two lists, of one name.
    pub layers_pattern: Option<Few<String>>,
}

/// What a choice gives on a model.
pub(crate) struct Chosen {
    /// The modules, in the model's order.
    pub sites: Vec<Site>,
    /// Settings and values that meet nothing in the model.
    pub idle: Vec<(&'static str, String)>,
}

impl Common {
    /// Their names.
    pub const KEYS: [&str; 4] = ["modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"];

    /// In these layers only.
    pub fn within(layers: Range<usize>) -> Self {
        Common { layers_to_transform: Some(Few::Many(layers.collect())), ..Common::default() }
    }

    /// The layers, if nothing else narrows the choice.
    pub(crate) fn layers_alone(&self) -> Option<&[usize]> {
        (self.narrowing() == ["layers_to_transform"])
            .then(|| self.layers_to_transform.as_ref().map_or(&[][..], Few::all))
    }

    /// `modules_to_save`.
    pub fn saved(&self) -> &[String] {
        self.modules_to_save.as_ref().map_or(&[], Few::all)
    }

    /// The settings that leave modules out.
    pub(crate) fn narrowing(&self) -> Vec<&'static str> {
        let excludes = match &self.exclude_modules {
            Some(Sites::Parts(parts)) => !parts.is_empty(),
            Some(Sites::Names(names)) => !names.is_empty(),
            Some(Sites::Pattern(text)) => !text.is_empty(),
            None => false,
        };
        let layers = self.layers_to_transform.as_ref().is_some_and(|layers| !layers.all().is_empty());
        let pattern = self.layers_pattern.as_ref().is_some_and(|names| !names.all().is_empty());
        let set = [("exclude_modules", excludes), ("layers_to_transform", layers), ("layers_pattern", pattern)];
        set.into_iter().filter(|(_, set)| *set).map(|(key, _)| key).collect()
    }

    /// Those of the modules that `target_modules` choose that are not left out, in their order. What meets none of them is an error.
    pub fn among(&self, targets: &Sites, modules: &[(Site, String)]) -> Result<Vec<Site>> {
        // It names what would match.
        let all = targets.among(modules)?;
        let Chosen { sites, idle } = self.choose("target_modules", targets, modules)?;
        match idle.into_iter().next() {
            Some((setting, value)) => Err(Error::config(setting, value, "what is in this model")),
            None if sites.is_empty() => {
                let found = format!("all {} targets", all.len());
                Err(Error::config(self.narrowing().join(", "), found, "some that are left"))
            }
            None => Ok(sites),
        }
    }

    /// As PEFT chooses of the modules that a setting names: what meets nothing is told, and is no error.
    pub(crate) fn choose(&self, setting: &'static str, targets: &Sites, modules: &[(Site, String)]) -> Result<Chosen> {
        let layers = Layers::new(self.layers_to_transform.as_ref(), self.layers_pattern.as_ref())?;
        let layered = !layers.numbers.is_empty();
        if let (true, Sites::Pattern(pattern)) = (layered, targets) {
            let expected = "null where target_modules is one expression, as in PEFT";
            return Err(Error::config("layers_to_transform", format!("set beside {pattern:?}"), expected));
        }
        let excluded = self.exclude_modules.as_ref().map(|sites| Chooser::new("exclude_modules", sites)).transpose()?;
        let chooser = Chooser::new(setting, targets)?;
        let mut chosen = Chosen { sites: vec![], idle: vec![] };
        for (site, path) in modules {
            let out = excluded.as_ref().map_or(Ok(false), |excluded| excluded.takes(*site, path))?;
            let taken = !out && chooser.takes(*site, path)?;
            if taken && (!layered || chooser.whole(path) || layers.has(path)?) {
                chosen.sites.push(*site);
            }
        }
        for chooser in [Some(chooser), excluded].into_iter().flatten() {
            chosen.idle.extend(chooser.idle(modules)?.into_iter().map(|name| (chooser.setting, name)));
        }
        chosen.idle.extend(layers.idle(modules)?);
        Ok(chosen)
    }
}

/// A choice of modules by their paths.
struct Chooser<'a> {
    setting: &'static str,
    sites: &'a Sites,
    pattern: Option<Pattern>,
}

impl<'a> Chooser<'a> {
    fn new(setting: &'static str, sites: &'a Sites) -> Result<Self> {
        let pattern = match sites {
            Sites::Pattern(text) if !text.eq_ignore_ascii_case(ALL_LINEAR) => Some(Pattern::whole(setting, text)?),
            _ => None,
        };
        Ok(Chooser { setting, sites, pattern })
    }

    fn takes(&self, site: Site, path: &str) -> Result<bool> {
        match (self.sites, &self.pattern) {
            (_, Some(pattern)) => pattern.matches(path),
            (Sites::Pattern(_), None) => Ok(!site.part.is_table()),
            (Sites::Parts(parts), _) => Ok(parts.iter().any(|part| part.selects(site.part))),
            (Sites::Names(names), _) => Ok(names.iter().any(|name| is_end(name, path))),
        }
    }

    /// Whether it names the whole path, which holds in any layer.
    fn whole(&self, path: &str) -> bool {
        matches!(self.sites, Sites::Names(names) if names.iter().any(|name| name == path))
    }

    /// What of it meets no module.
    fn idle(&self, modules: &[(Site, String)]) -> Result<Vec<String>> {
        let alone = |sites: Sites, text: &str| -> Result<Option<String>> {
            let chooser = Chooser::new(self.setting, &sites)?;
            for (site, path) in modules {
                if chooser.takes(*site, path)? {
                    return Ok(None);
                }
            }
            Ok(Some(text.to_string()))
        };
        let each = match self.sites {
            Sites::Parts(parts) => parts.iter().map(|part| alone(Sites::Parts(vec![*part]), part.name())).collect(),
            Sites::Names(names) => names.iter().map(|name| alone(Sites::Names(vec![name.clone()]), name)).collect(),
            Sites::Pattern(text) => alone(self.sites.clone(), text).map(|one| vec![one]),
        };
        each.map(|each: Vec<Option<String>>| each.into_iter().flatten().collect())
    }
}

/// The layers of which modules are taken.
struct Layers {
    numbers: Vec<usize>,
    patterns: Vec<(String, Pattern)>,
}

impl Layers {
    fn new(numbers: Option<&Few<usize>>, names: Option<&Few<String>>) -> Result<Self> {
        let numbers = numbers.map_or(vec![], |numbers| numbers.all().to_vec());
        let names: Vec<&String> =
            names.map_or(vec![], |names| names.all().iter().filter(|name| !name.is_empty()).collect());
        if numbers.is_empty() && !names.is_empty() {
            let expected = "layers_to_transform beside it";
            return Err(Error::config("layers_pattern", format!("{names:?} alone"), expected));
        }
        let named = |name: &String| Ok((name.clone(), Pattern::layers("layers_pattern", name)?));
        let mut patterns = names.into_iter().map(named).collect::<Result<Vec<_>>>()?;
        if patterns.is_empty() {
            patterns.push((String::new(), Pattern::first_number("layers_to_transform")?));
        }
        Ok(Layers { numbers, patterns })
    }

    /// The layer of a module: the number behind the first of the names that is there.
    fn of(&self, path: &str) -> Result<Option<usize>> {
        for (_, pattern) in &self.patterns {
            if let Some(number) = pattern.number(path)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn has(&self, path: &str) -> Result<bool> {
        Ok(self.of(path)?.is_some_and(|layer| self.numbers.contains(&layer)))
    }

    /// Numbers and names that no module has.
    fn idle(&self, modules: &[(Site, String)]) -> Result<Vec<(&'static str, String)>> {
        if self.numbers.is_empty() {
            return Ok(vec![]);
        }
        let layers = modules.iter().map(|(_, path)| self.of(path)).collect::<Result<Vec<_>>>()?;
        let numbers = self.numbers.iter().filter(|number| !layers.contains(&Some(**number)));
        let mut idle: Vec<_> = numbers.map(|number| ("layers_to_transform", number.to_string())).collect();
        for (name, pattern) in &self.patterns {
            let met = modules.iter().map(|(_, path)| pattern.number(path)).collect::<Result<Vec<_>>>()?;
            if met.iter().all(Option::is_none) {
                idle.push(("layers_pattern", name.clone()));
            }
        }
        Ok(idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Part::{Down, Query, Value};
    use crate::Shape;

    fn names(names: &[&str]) -> Sites {
        Sites::Names(names.iter().map(|name| name.to_string()).collect())
    }

    fn paths(common: Common, targets: &Sites, shape: &Shape) -> Vec<String> {
        common.among(targets, &shape.linears()).unwrap().into_iter().map(|site| site.to_string()).collect()
    }

    fn layers(layers: Few<usize>) -> Common {
        Common { layers_to_transform: Some(layers), ..Common::default() }
    }

    fn without(sites: impl Into<Sites>) -> Common {
        Common { exclude_modules: Some(sites.into()), ..Common::default() }
    }

    fn in_lists(names: &[&str], common: Common) -> Common {
        let names = names.iter().map(|name| name.to_string()).collect();
        Common { layers_pattern: Some(Few::Many(names)), ..common }
    }

    /// Expected values as PEFT 0.21.2 has them on these models.
    #[test]
    fn modules_are_left_out_and_layers_picked() {
        let [llama, t5, bert] = ["llama-tiny", "t5-tiny", "bert-tiny"].map(|name| Shape::named(name).unwrap());
        let (q, qv) = (names(&["q_proj"]), names(&["q_proj", "v_proj"]));
        let one = |n| layers(Few::Many(vec![n]));
        assert_eq!(paths(one(1), &q, &llama), ["decoder.1.query"]);
        assert_eq!(paths(layers(Few::One(2)), &q, &llama), ["decoder.2.query"]);
        assert_eq!(paths(layers(Few::Many(vec![])), &q, &llama).len(), 3);
        let message = in_lists(&["h", "layers"], one(1)).among(&q, &llama.linears()).unwrap_err();
        assert!(message.to_string().contains("layers_pattern: h"), "{message}");
        // A whole path holds in any layer.
        let both = names(&["q_proj", "model.layers.0.self_attn.v_proj"]);
        assert_eq!(paths(one(2), &both, &llama), ["decoder.0.value", "decoder.2.query"]);
        // On T5 the first number is the block of either stack.
        let t5_q = names(&["SelfAttention.q"]);
        assert_eq!(paths(one(1), &t5_q, &t5), ["encoder.1.query", "decoder.1.query"]);
        let found = paths(in_lists(&["layer"], one(0)), &t5_q, &t5);
        assert_eq!(found.len(), 5, "the sub-layer's number, which is 0 of all self-attentions");
        let out = names(&["layers.1.self_attn.q_proj", "v_proj"]);
        assert_eq!(paths(without(out), &qv, &llama), ["decoder.0.query", "decoder.2.query"]);
        let expression = Sites::Pattern(r".*layers\.[01]\..*".into());
        assert_eq!(paths(without(expression.clone()), &qv, &llama), ["decoder.2.query", "decoder.2.value"]);
        let (parts, down) = (Query | Value, Sites::from(Down));
        let narrowed = Common { exclude_modules: Some(Sites::from(Value)), ..one(1) };
        assert_eq!(paths(narrowed, &parts, &bert), ["encoder.1.query"]);
        for (common, targets, words) in [
            (without(parts.clone()), &parts, ["exclude_modules", "all 4 targets"]),
            (without(qv), &parts, ["exclude_modules", "q_proj"]),
            (one(9), &down, ["layers_to_transform", "9"]),
            (in_lists(&["layer"], Common::default()), &down, ["layers_pattern", "layers_to_transform"]),
            (one(1), &expression, ["layers_to_transform", "target_modules"]),
        ] {
            let shape = if targets == &expression { &llama } else { &bert };
            let message = common.among(targets, &shape.linears()).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
        }
    }
}
