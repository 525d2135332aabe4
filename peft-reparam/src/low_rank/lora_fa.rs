//! # LoRA-FA                                family: reparameterized / low-rank decomposition
//! h = W x + s B A x, s = alpha / r         a setting of LoRA, freeze_a; A: [d_in, r] as it starts, B: [r, d_out] = 0
//! Paper: Zhang et al., 2023, arXiv:2308.03303, section 3.   Reference: huggingface/peft tuners/lora
//! Oracle: package peft 0.21.2: `lora_fa_equals_the_reference`
//! Trains: r d_out per site.      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - at the same A and B it is LoRA, and so is the gradient of B: `with_a_frozen_b_has_the_gradient_of_lora`
//! - A keeps its bits, and B moves: `a_frozen_a_keeps_its_bits`
//! - the updates of adapters with one A add up: `updates_with_one_a_add_up`
//! - from the start the first step is that of LoRA, whose A has no gradient there: `only_b_has_a_gradient_at_the_start`
//!
//! Differs from the paper: A starts as LoRA's does, and dropout on x is a setting, as it is there. B is trained by the optimizer's own rule, as in the paper's first version; PEFT's `create_lorafa_optimizer` first multiplies its gradient by the inverse of s^2 A^T A, as the second does. PEFT reads the files as LoRA's.

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;
    use peft_core::view::{tensors, with_values};
    use peft_core::{Method, Trained};

    use super::super::lora::LoraConfig;

    peft_core::conformance!(LoraConfig::new(3).with_alpha(5.0).with_frozen_a());

    #[test]
    fn lora_fa_equals_the_reference() {
        for (case, base) in [("lora-fa", "roberta-classify"), ("lora-fa-t5", "t5"), ("lora-fa-llama", "llama")] {
            let case = Case::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case), base);
            let (config, trained) = case.load::<LoraConfig>();
            let frozen = config.with_frozen_a();
            let tuner = with_values(frozen.init(&case.base, 0).unwrap(), &tensors(&trained.tuner)).unwrap();
            case.check_named(&frozen, Trained::new(tuner, trained.head).unwrap());
            case.check_merged::<LoraConfig>();
        }
    }
}
