//! What an adapter's file holds beside what was taken from it.

use super::tensors::Taker;
use crate::warning::{listed, warn};
use crate::{Base, Error, Head, Place, Result};

/// What the names of PEFT's methods' own tensors have behind the module's path.
const OWN: [&str; 3] = [".lora_", ".ia3_", ".lokr_"];

/// Refuses what PEFT would compute with; of the rest, warns.
pub(super) fn tell(taker: &Taker, base: &Base) -> Result<()> {
    let (shape, file) = (base.shape(), &taker.file);
    let places = shape.uses();
    let (mut empty, mut unused) = (vec![], vec![]);
    // In transformers' models of two stacks nothing reads the shared table: encoder, decoder and head have their own references to it.
    let shared = |name: &str| shape.architecture.is_encoder_decoder() && name.starts_with("base_model.model.shared.");
    for name in taker.left() {
        // PEFT itself writes copies of the head's biases under these names when all biases are trained.
        if name.contains(".original_module.") || name.contains(".modules_to_save.") || taker.is_twin(name) {
            continue;
        }
        if shared(name) {
            warn(file.path(), name, "has no effect, as in PEFT: encoder, decoder and head keep their tables");
            continue;
        }
        let refused = |found: &str, expected: String| Err(Error::file(file.path_of(name), name, found, expected));
        let without = file.shape(name).is_some_and(|dims| dims.contains(&0));
        let place = own(name, &places);
        if let Some((module, _)) = OWN.iter().find_map(|own| name.rsplit_once(own)) {
            // What has lost its last rank is a matrix without elements there.
            if !without {
                let expected = format!("none at {module}: target_modules choose no such module of this model");
                return refused("a tensor of the adapter that nothing uses", expected);
            }
        } else if without {
            empty.push(name);
        } else if let Some(place) = place {
            // PEFT puts it in the place of the model's own.
            let dims = place.file_dims();
            if file.read_f32(name, &dims)? != base.tensor_data(place) {
                return refused("other values than the model's", "none: only what the adapter trains is read".into());
            }
        } else if is_of_head(name) {
            return refused("a tensor that nothing uses", "none of a head for something else".into());
        } else {
            unused.push(name);
        }
    }
    if !empty.is_empty() {
        let why =
            "no elements, so nothing of them is read (ZeRO-3 of DeepSpeed saves them so, unless they are gathered)";
        warn(file.path(), "tensors", format!("{} have {why}", listed(&empty)));
    }
    if !unused.is_empty() {
        warn(file.path(), "tensors", format!("nothing here uses {}", listed(&unused)));
    }
    Ok(())
}

/// The tensor of the model that PEFT takes this name for.
fn own<'a>(name: &str, places: &'a [Place]) -> Option<&'a Place> {
    let name = name.strip_prefix("base_model.model.")?.replace(".base_layer.", ".");
    places.iter().find(|place| place.name == name)
}

/// Whether PEFT takes it for a part of a head.
fn is_of_head(name: &str) -> bool {
    let module = name.strip_prefix("base_model.model.").and_then(|name| name.split('.').next());
    module.is_some_and(|module| Head::MODULES.contains(&module))
}
