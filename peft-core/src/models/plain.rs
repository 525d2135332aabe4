//! A burn module that is none of the families: its tensors by site, without a forward, which the module has itself.

use std::sync::{LazyLock, Mutex};

use super::family::{Family, ForTexts, Hub};
use crate::{Architecture, Error, Part, Place, Result, Shape, Site, Stack};

pub(super) static FAMILY: Family = Family {
    name: "Module",
    prefix: "",
    stacks: &[Stack::Encoder],
    pre_norm: false,
    scales_scores: true,
    rotary: false,
    heads_make_hidden: true,
    for_texts: ForTexts::Written,
    heads: &[],
    aliases: &[],
    may_be_tied: |_, _| false,
    kept_in_f32: &[],
    published: "F32",
    gguf: false,
    special_tokens: (&[], 0),
    mask_word: None,
    key_value_last: ["key", "value", "down"],
    hub: Hub {
        feed_forward: [Part::Up, Part::Down],
        linears: "",
        classes: [None, None],
        adapter: |_, path| path.to_string(),
    },
};

/// Shapes are compared and copied freely, so that a form of modules is kept once for the program's life.
static FORMS: LazyLock<Mutex<Vec<&'static [Place]>>> = LazyLock::new(Mutex::default);

/// The shape of a module with these tensors.
pub(crate) fn shape(places: Vec<Place>) -> Shape {
    let mut forms = FORMS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known = forms.iter().copied().find(|form| **form == places[..]);
    let form = known.unwrap_or_else(|| {
        let form: &'static [Place] = Box::leak(places.into_boxed_slice());
        forms.push(form);
        form
    });
    let widest = form.iter().flat_map(|place| place.dims.iter().copied()).max().unwrap_or(1);
    Shape {
        architecture: Architecture::Plain(form),
        layers: form.iter().map(|place| place.site.layer + 1).max().unwrap_or(0),
        hidden: widest,
        heads: 1,
        head_width: widest,
        intermediate: widest,
        vocab: 1,
        positions: 1,
        types: 0,
        eps: 1e-5,
        pad: 0,
        first_position: 0,
        stop: vec![],
        dropout: 0.0,
        attention_dropout: 0.0,
        classifier_dropout: 0.0,
        pooler: false,
        tied: false,
        prefix: "",
    }
}

/// The part that a module is by its name; any other map is one of a feed-forward network.
pub(crate) fn part(module: &str) -> Part {
    match module.rsplit('.').next().unwrap_or_default() {
        "query" => Part::Query,
        "key" => Part::Key,
        "value" => Part::Value,
        "output" => Part::Output,
        "linear_outer" | "down" => Part::Down,
        _ => Part::Up,
    }
}

/// The site behind those that are taken.
pub(crate) fn next(places: &[Place], part: Part) -> Site {
    let last = places.iter().filter(|place| place.site.part == part).map(|place| place.site.layer).max();
    Site::encoder(last.map_or(0, |layer| layer + 1), part)
}

/// What stands where a forward of the backbone would.
pub(super) fn no_forward<T>() -> Result<T> {
    Err(Error::config("base", "a burn module", "a model of this library: only the module itself knows its forward"))
}
