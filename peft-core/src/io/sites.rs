//! Where a finished adapter of PEFT was put. PEFT takes what its settings find and is silent on what they do not; our own settings are
//! strict. So the fields of a file become others that choose the same, and what finds nothing is said.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::fields::is_off;
use crate::site::is_end;
use crate::targets::Chosen;
use crate::{AnyMethod, Common, Error, Few, Part, Pattern, Result, Shape, Site, Sites};

/// Fields that do not enter the result, and why.
pub(super) type Notes = Vec<(String, String)>;

/// The modules that PEFT saves whole for its tasks, beside those that are listed.
const HEADS: [(&str, &[&str]); 3] =
    [("SEQ_CLS", &["classifier", "score"]), ("TOKEN_CLS", &["classifier", "score"]), ("QUESTION_ANS", &["qa_outputs"])];

/// The linear maps of heads for classes.
const HEAD_MODULES: [&str; 5] = ["classifier", "classifier.dense", "classifier.out_proj", "score", "qa_outputs"];

/// The fields of a file for this method, with those that say where the method is put as our own settings have them.
pub(super) fn settled(
    method: &AnyMethod,
    mut fields: Map<String, Value>,
    shape: &Shape,
    path: &Path,
    told: &mut Notes,
) -> Result<Map<String, Value>> {
    target_parameters(&mut fields, shape, path, told)?;
    let own = method.with_defaults().settings();
    let [_, narrowing @ ..] = Common::KEYS;
    let is_set = |key: &str| fields.get(key).is_some_and(|value| !is_off(value));
    if !own.contains_key("target_modules") || !is_set("target_modules") && !narrowing.iter().any(|key| is_set(key)) {
        return Ok(fields);
    }
    let in_file = |error: Error| error.in_file(path);
    let default = own.get("target_modules").cloned().unwrap_or(Value::Null);
    let modules = match sites(&fields, "target_modules", path)? {
        Some(modules) => modules,
        None => serde_json::from_value(default).unwrap_or(Sites::Names(vec![])),
    };
    let common = Common {
        modules_to_save: None,
        exclude_modules: sites(&fields, "exclude_modules", path)?,
        layers_to_transform: field(&fields, "layers_to_transform", path, "a layer's number, or a list of them")?,
        layers_pattern: field(&fields, "layers_pattern", path, "a name, or a list of them")?,
    };
    let saved = saved(&fields, path)?;
    // A model for something else has no head for words.
    let is_for_words = fields.get("task_type").and_then(Value::as_str).is_none_or(|task| task.ends_with("_LM"));
    let all = method.modules(shape);
    let mut choice = all.clone();
    choice.retain(|(site, _)| is_for_words || site.part != Part::Vocabulary);
    let Chosen { sites: chosen, idle } = common.choose("target_modules", &modules, &choice).map_err(in_file)?;
    let at = |site: &Site| path_of(&choice, site);
    let mut kept = vec![];
    for site in &chosen {
        if !matches(&saved, &at(site)).map_err(in_file)? {
            kept.push(*site);
        }
    }
    if fields.get("ensure_weight_tying") == Some(&Value::Bool(true)) {
        let is_table = |site: &Site| matches!(site.part, Part::Words | Part::Vocabulary);
        let mut meets = kept.iter().any(is_table);
        for (_, module) in shape.matrices().iter().filter(|(site, _)| is_table(site)) {
            // On the bare model no path has the prefix that a name may have.
            let table = module.rsplit('.').next().unwrap_or_default();
            meets |= matches(&saved, module).map_err(in_file)? || idle.iter().any(|(_, name)| is_end(table, name));
        }
        let untied = shape.architecture.is_decoder() && !shape.tied;
        if untied || !meets {
            fields.remove("ensure_weight_tying");
            told.push(("ensure_weight_tying".into(), "is true: no word table that is tied is adapted or saved".into()));
        }
    }
    for (setting, value) in idle {
        // A list of all linear maps also has those of the head, which is saved whole.
        let meant = HEAD_MODULES.iter().filter(|module| setting == "target_modules" && is_end(&value, module));
        let of_head = meant.map(|module| matches(&saved, module)).collect::<Result<Vec<bool>>>().map_err(in_file)?;
        if !of_head.contains(&true) {
            told.push((
                setting.into(),
                format!("{value:?} meets no module that {} adapts in this model", method.name()),
            ));
        }
    }
    // What chooses the same alone stays as it is.
    let same = |sites: &Sites, found: &[Site]| sites.among(&all).is_ok_and(|sites| sites == found);
    let narrowed = narrowing.map(|key| fields.remove(key)).iter().flatten().any(|value| !is_off(value));
    if kept.is_empty() {
        let error = modules.among(&choice).err();
        let all = || Error::config("target_modules", "modules that are all left out", "some that are adapted");
        return Err(in_file(error.unwrap_or_else(all)));
    }
    // Without the model's prefix they are the same on a bare model.
    let bare = method.modules(&Shape { prefix: "", ..shape.clone() });
    let exact = |sites: &[Site]| json!(sites.iter().map(|site| path_of(&bare, site)).collect::<Vec<_>>());
    if narrowed || !same(&modules, &kept) {
        fields.insert("target_modules".into(), exact(&kept));
    }
    if let Some(inputs) = sites(&fields, "feedforward_modules", path)? {
        let found = Common::default().choose("feedforward_modules", &inputs, &choice).map_err(in_file)?.sites;
        let found: Vec<Site> = found.into_iter().filter(|site| kept.contains(site)).collect();
        if !same(&inputs, &found) {
            fields.insert("feedforward_modules".into(), exact(&found));
        }
    }
    let paths: Vec<String> = kept.iter().map(at).collect();
    for setting in ["rank_pattern", "alpha_pattern"] {
        let Some(Value::Object(patterns)) = fields.get_mut(setting) else { continue };
        // AdaLoRA's name triplets, not paths.
        let mut idle = vec![];
        for key in patterns.iter().filter(|(_, value)| value.is_number()).map(|(key, _)| key) {
            let pattern = Pattern::end(setting, key).map_err(in_file)?;
            if !pattern.matches_any(&paths).map_err(in_file)? {
                idle.push(key.clone());
            }
        }
        for key in idle {
            told.push((setting.into(), format!("{key:?} meets no adapted module of this model")));
            patterns.shift_remove(&key);
        }
    }
    Ok(fields)
}

/// The path of one of these modules.
fn path_of(modules: &[(Site, String)], site: &Site) -> String {
    modules.iter().find(|(other, _)| other == site).map_or(String::new(), |(_, path)| path.clone())
}

/// What is saved whole, which PEFT never adapts too.
pub(super) fn saved(fields: &Map<String, Value>, path: &Path) -> Result<Vec<Pattern>> {
    let listed: Option<Few<String>> = field(fields, "modules_to_save", path, "a list of names of modules")?;
    let listed = listed.iter().flat_map(|listed| listed.all()).map(String::as_str);
    let task = fields.get("task_type").and_then(Value::as_str);
    let heads = HEADS.iter().filter(|(name, _)| task == Some(name)).flat_map(|(_, heads)| heads.iter().copied());
    let module = |name: &str| Pattern::module("modules_to_save", name).map_err(|error| error.in_file(path));
    listed.chain(heads).map(module).collect()
}

/// Whether one of these matches a path.
pub(super) fn matches(patterns: &[Pattern], path: &str) -> Result<bool> {
    Ok(patterns.iter().map(|pattern| pattern.matches(path)).collect::<Result<Vec<bool>>>()?.contains(&true))
}

/// Parameters that are adapted by their names: one that the model has would be another form of LoRA.
fn target_parameters(fields: &mut Map<String, Value>, shape: &Shape, path: &Path, told: &mut Notes) -> Result<()> {
    let names: Option<Few<String>> = field(fields, "target_parameters", path, "a list of names of parameters")?;
    let held: Vec<String> = shape.places().iter().map(|place| shape.file_name(place)).collect();
    for name in names.iter().flat_map(|names| names.all()) {
        if held.iter().any(|held| is_end(name, held)) {
            let expected = "null: LoRA on parameters by their names is not computed here, only on modules";
            return Err(Error::file(path, "target_parameters", format!("{name:?}"), expected));
        }
        told.push(("target_parameters".into(), format!("{name:?} meets no parameter of this model")));
    }
    fields.remove("target_parameters");
    Ok(())
}

/// A field that names modules: a list of the ends of their paths, or one expression.
fn sites(fields: &Map<String, Value>, key: &str, path: &Path) -> Result<Option<Sites>> {
    let named: Option<Few<String>> = field(fields, key, path, "a list of names of modules, or an expression")?;
    Ok(named.map(|named| match named {
        Few::One(pattern) => Sites::Pattern(pattern),
        Few::Many(names) => Sites::Names(names),
    }))
}

/// A field that is not null nor empty.
fn field<T: serde::de::DeserializeOwned>(
    fields: &Map<String, Value>,
    key: &str,
    path: &Path,
    expected: &str,
) -> Result<Option<T>> {
    match fields.get(key).filter(|value| !is_off(value)) {
        None => Ok(None),
        Some(value) => {
            serde_json::from_value(value.clone()).map(Some).map_err(|_| Error::file(path, key, value, expected))
        }
    }
}
