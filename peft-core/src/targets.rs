//! Where a method is put by all that PEFT has for it: modules that are chosen, modules that are left out, and layers.

use serde::{Deserialize, Serialize};

use crate::site::{ALL_LINEAR, is_end};
use crate::{Error, Pattern, Result, Shape, Site, Sites};

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

/// A choice of linear maps in the settings of PEFT's `LoraConfig`.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// `target_modules`.
    pub modules: &'a Sites,
    /// `exclude_modules`: these are left out.
    pub exclude: Option<&'a Sites>,
    /// `layers_to_transform`: of the modules that are chosen by the end of their path only those in these layers.
    pub layers: Option<&'a Few<usize>>,
    /// `layers_pattern`: the names of the lists of layers whose numbers count; of all, if there is none. A T5 has two lists, of one name.
    pub layers_pattern: Option<&'a Few<String>>,
}

/// What a choice gives on a model.
pub(crate) struct Chosen {
    /// The linear maps, in the model's order.
    pub sites: Vec<Site>,
    /// Settings and values that meet nothing in the model.
    pub idle: Vec<(&'static str, String)>,
}

impl<'a> Targets<'a> {
    /// These modules, in all layers.
    pub fn new(modules: &'a Sites) -> Self {
        Targets { modules, exclude: None, layers: None, layers_pattern: None }
    }

    /// The chosen linear maps, in the model's order. What meets nothing in the model is an error.
    pub fn resolve(&self, shape: &Shape) -> Result<Vec<Site>> {
        // It names what would match.
        let targets = self.modules.resolve(shape)?;
        let Chosen { sites, idle } = self.choose(shape)?;
        match idle.into_iter().next() {
            Some((setting, value)) => Err(Error::config(setting, value, "what is in this model")),
            None if sites.is_empty() => {
                let found = format!("all {} targets", targets.len());
                Err(Error::config("exclude_modules, layers_to_transform", found, "some that are left"))
            }
            None => Ok(sites),
        }
    }

    /// As PEFT chooses: what meets nothing is told, and is no error.
    pub(crate) fn choose(&self, shape: &Shape) -> Result<Chosen> {
        let linears = shape.linears();
        let layers = Layers::new(self.layers, self.layers_pattern)?;
        let layered = !layers.numbers.is_empty();
        if let (true, Sites::Pattern(pattern)) = (layered, self.modules) {
            let expected = "null where target_modules is one expression, as in PEFT";
            return Err(Error::config("layers_to_transform", format!("set beside {pattern:?}"), expected));
        }
        let excluded = self.exclude.map(Chooser::new).transpose()?;
        let chooser = Chooser::new(self.modules)?;
        let mut chosen = Chosen { sites: vec![], idle: vec![] };
        for (site, path) in &linears {
            let out = excluded.as_ref().map_or(Ok(false), |excluded| excluded.takes(*site, path))?;
            let taken = !out && chooser.takes(*site, path)?;
            if taken && (!layered || chooser.whole(path) || layers.has(path)?) {
                chosen.sites.push(*site);
            }
        }
        chosen.idle.extend(chooser.idle(&linears)?.into_iter().map(|name| ("target_modules", name)));
        if let Some(excluded) = excluded {
            chosen.idle.extend(excluded.idle(&linears)?.into_iter().map(|name| ("exclude_modules", name)));
        }
        chosen.idle.extend(layers.idle(&linears)?);
        Ok(chosen)
    }
}

/// A choice of modules by their paths.
struct Chooser<'a> {
    sites: &'a Sites,
    pattern: Option<Pattern>,
}

impl<'a> Chooser<'a> {
    fn new(sites: &'a Sites) -> Result<Self> {
        let pattern = match sites {
            Sites::Pattern(text) if !text.eq_ignore_ascii_case(ALL_LINEAR) => {
                Some(Pattern::whole("site pattern", text)?)
            }
            _ => None,
        };
        Ok(Chooser { sites, pattern })
    }

    fn takes(&self, site: Site, path: &str) -> Result<bool> {
        match (self.sites, &self.pattern) {
            (_, Some(pattern)) => pattern.matches(path),
            (Sites::Pattern(_), None) => Ok(true),
            (Sites::Parts(parts), _) => Ok(parts.iter().any(|part| part.selects(site.part))),
            (Sites::Names(names), _) => Ok(names.iter().any(|name| is_end(name, path))),
        }
    }

    /// Whether it names the whole path, which holds in any layer.
    fn whole(&self, path: &str) -> bool {
        matches!(self.sites, Sites::Names(names) if names.iter().any(|name| name == path))
    }

    /// What of it meets no module.
    fn idle(&self, linears: &[(Site, String)]) -> Result<Vec<String>> {
        let alone = |sites: Sites, text: &str| -> Result<Option<String>> {
            let chooser = Chooser::new(&sites)?;
            for (site, path) in linears {
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
    fn idle(&self, linears: &[(Site, String)]) -> Result<Vec<(&'static str, String)>> {
        if self.numbers.is_empty() {
            return Ok(vec![]);
        }
        let layers = linears.iter().map(|(_, path)| self.of(path)).collect::<Result<Vec<_>>>()?;
        let numbers = self.numbers.iter().filter(|number| !layers.contains(&Some(**number)));
        let mut idle: Vec<_> = numbers.map(|number| ("layers_to_transform", number.to_string())).collect();
        for (name, pattern) in &self.patterns {
            let met = linears.iter().map(|(_, path)| pattern.number(path)).collect::<Result<Vec<_>>>()?;
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

    fn names(names: &[&str]) -> Sites {
        Sites::Names(names.iter().map(|name| name.to_string()).collect())
    }

    fn paths(targets: Targets<'_>, shape: &Shape) -> Vec<String> {
        targets.resolve(shape).unwrap().into_iter().map(|site| site.to_string()).collect()
    }

    /// Expected values as PEFT 0.21.2 has them on these models.
    #[test]
    fn modules_are_left_out_and_layers_picked() {
        let [llama, t5, bert] = ["llama-tiny", "t5-tiny", "bert-tiny"].map(|name| Shape::named(name).unwrap());
        let (q, qv) = (names(&["q_proj"]), names(&["q_proj", "v_proj"]));
        let one = |n| Few::Many(vec![n]);
        let with = |layers: Few<usize>| paths(Targets { layers: Some(&layers), ..Targets::new(&q) }, &llama);
        assert_eq!(with(one(1)), ["decoder.1.query"]);
        assert_eq!(with(Few::One(2)), ["decoder.2.query"]);
        assert_eq!(with(Few::Many(vec![])).len(), 3);
        let pattern = Few::Many(vec!["h".to_string(), "layers".to_string()]);
        let targets = Targets { layers: Some(&one(1)), layers_pattern: Some(&pattern), ..Targets::new(&q) };
        let message = targets.resolve(&llama).unwrap_err();
        assert!(message.to_string().contains("layers_pattern: h"), "{message}");
        // A whole path holds in any layer.
        let both = names(&["q_proj", "model.layers.0.self_attn.v_proj"]);
        let targets = Targets { layers: Some(&one(2)), ..Targets::new(&both) };
        assert_eq!(paths(targets, &llama), ["decoder.0.value", "decoder.2.query"]);
        // On T5 the first number is the block of either stack.
        let t5_q = names(&["SelfAttention.q"]);
        let targets = Targets { layers: Some(&one(1)), ..Targets::new(&t5_q) };
        assert_eq!(paths(targets, &t5), ["encoder.1.query", "decoder.1.query"]);
        let block = Few::One("layer".to_string());
        let targets = Targets { layers: Some(&one(0)), layers_pattern: Some(&block), ..Targets::new(&t5_q) };
        assert_eq!(paths(targets, &t5).len(), 5, "the sub-layer's number, which is 0 of all self-attentions");
        let out = names(&["layers.1.self_attn.q_proj", "v_proj"]);
        let targets = Targets { exclude: Some(&out), ..Targets::new(&qv) };
        assert_eq!(paths(targets, &llama), ["decoder.0.query", "decoder.2.query"]);
        let expression = Sites::Pattern(r".*layers\.[01]\..*".into());
        let targets = Targets { exclude: Some(&expression), ..Targets::new(&qv) };
        assert_eq!(paths(targets, &llama), ["decoder.2.query", "decoder.2.value"]);
        let parts = Query | Value;
        let down = Sites::from(Down);
        let targets = Targets { exclude: Some(&Sites::from(Value)), layers: Some(&one(1)), ..Targets::new(&parts) };
        assert_eq!(paths(targets, &bert), ["encoder.1.query"]);
        for (targets, words) in [
            (Targets { exclude: Some(&parts), ..Targets::new(&parts) }, ["exclude_modules", "all 4 targets"]),
            (Targets { exclude: Some(&qv), ..Targets::new(&parts) }, ["exclude_modules", "q_proj"]),
            (Targets { layers: Some(&one(9)), ..Targets::new(&down) }, ["layers_to_transform", "9"]),
            (
                Targets { layers_pattern: Some(&block), ..Targets::new(&down) },
                ["layers_pattern", "layers_to_transform"],
            ),
            (Targets { layers: Some(&one(1)), ..Targets::new(&expression) }, ["layers_to_transform", "target_modules"]),
        ] {
            let shape = if targets.modules == &expression { &llama } else { &bert };
            let message = targets.resolve(shape).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
        }
    }
}
