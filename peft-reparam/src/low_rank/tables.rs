//! LoRA on tables: `embed_tokens`, `word_embeddings`, `lm_head` and the like among its `target_modules`.
//!
//! A lookup is the linear map of a one-hot row, so that A `[rows, r]` is looked up in its turn: h = W[i] + s A[i] B, without dropout. A
//! starts at 0 and B at random, so that a row of A moves only where its token occurs. A lookup's factors leave the other uses of a tied
//! table alone; in a merged model each use has its own. What makes logits over words (`lm_head`) lies turned.
//!
//! Differs from PEFT: merging leaves the other uses of a tied table alone too, where PEFT adds to the one tensor that they share.

use burn::tensor::Tensor;
use peft_core::random::Random;
use peft_core::{Part, Shape, Site, Slot};

/// Whether a site's matrix is a table that is looked up.
pub(super) fn is_looked_up(site: Site) -> bool {
    site.part.is_table() && site.part != Part::Vocabulary
}

/// Input and output width of the map at a site, a lookup's input being a one-hot row.
pub(super) fn dims(shape: &Shape, site: Site) -> [usize; 2] {
    let places = shape.uses();
    let place = places.iter().find(|place| place.site == site && place.slot == Slot::Weight);
    let dims = &place.unwrap_or_else(|| panic!("{site} has no matrix")).dims;
    if site.part == Part::Vocabulary { [dims[1], dims[0]] } else { [dims[0], dims[1]] }
}

/// A site's matrix as the map `[in, out]`, and back.
pub(super) fn turned(site: Site, w: Tensor<2>) -> Tensor<2> {
    if site.part == Part::Vocabulary { w.transpose() } else { w }
}

/// B `[r, width]` of a lookup at the start: normal of standard deviation 1.
pub(super) fn fresh(site: Site, dims: [usize; 2], seed: u64, device: &burn::tensor::Device) -> Tensor<2> {
    Random::new(seed, &format!("lora.{site}.b")).normal_tensor(dims, 1.0, device)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::{Case, model};
    use peft_core::testing::{base, device, randomized};
    use peft_core::train::Probe;
    use peft_core::{Base, Head, LanguageModel, Method, Part, Procedure, Site};

    use super::super::lora::LoraConfig;
    use super::super::tokens::TokenIndices;

    peft_core::conformance!(LoraConfig::new(3).with_alpha(5.0).with_sites(Part::Words | Part::Query));

    #[test]
    fn tables_equal_the_reference() {
        let cases = [
            ("tables", "roberta-classify"),
            ("tables-bert", "bert-classify"),
            ("tables-t5", "t5"),
            ("tables-llama", "llama"),
            ("tables-llama-pad", "llama"),
            ("tables-dora-llama", "llama"),
            ("tables-llama-tied", "llama-llama3"),
        ];
        for (case, base) in cases {
            let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case), base);
            case.check_method::<LoraConfig>();
            case.check_merged::<LoraConfig>();
        }
    }

    /// On a tied model the factors of a lookup leave what makes logits, and those of the latter leave the lookup.
    #[test]
    fn other_uses_of_a_table_stay() {
        for name in ["t5", "llama-llama3"] {
            let base = model(name).base;
            let looked_up = base.shape().words();
            let makes_logits = Site::decoder(0, Part::Vocabulary);
            for (part, moved, stays) in
                [(Part::Words, looked_up, makes_logits), (Part::Vocabulary, makes_logits, looked_up)]
            {
                let config = LoraConfig::new(3).with_sites(part);
                let merged = base.merged(&randomized(&config.init(&base, 0).unwrap(), 1));
                let table = |base: &Base, site| base.weight(site).dense().into_data();
                assert_eq!(table(&merged, stays), table(&base, stays), "{name}: {part:?}");
                assert_ne!(table(&merged, moved), table(&base, moved), "{name}: {part:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("llama-tiny", &device());
        let both = LoraConfig { trainable_token_indices: Some(TokenIndices::Words(vec![1])), ..LoraConfig::new(3) };
        let message = both.with_sites(Part::Words).init(&base, 0).unwrap_err().to_string();
        assert!(message.contains("trainable_token_indices: model.embed_tokens"), "{message}");
        let dropped = LoraConfig::new(3).with_dropout(0.1).with_sites(Part::Vocabulary).init(&base, 0).unwrap();
        let head = Head::LanguageModel(LanguageModel {});
        let message = dropped.prepare(&base, Probe::new(&head, &[])).unwrap_err().to_string();
        assert!(message.contains("lora_dropout: 0.1") && message.contains("lm_head"), "{message}");
    }
}
