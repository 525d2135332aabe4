//! # L-LoRA                                 family: reparameterized / low-rank decomposition
//! h = W x + s [B0 A0 + B0 (A - A0) + (B - B0) A0] x         LoRA's tangent at its start (A0, B0), map by map
//! h = W x + s B A0 x                                        as B0 = 0: a setting of LoRA, freeze_a with a_seed, which all tasks share
//! Paper: Tang et al., 2023, arXiv:2310.04742, section 4.   Reference: tanganke/peta
//! Oracle: paper: `it_is_the_tangent_of_lora`
//! Trains: r d_out per site.      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - it is LoRA and its first derivative at the start: `it_is_the_tangent_of_lora`
//! - LoRA is that and s (B - B0) (A - A0) x: `lora_has_a_second_order_beside_it`
//! - two tasks have one A, whatever their seeds, and so their sum is one adapter: `tasks_share_a`, `updates_with_one_a_add_up`
//!
//! Differs from the paper: its equation is of the whole model, its code, as here, of each linear map by itself. There A is among the trained tensors too, although with B0 = 0 nothing depends on it: its gradient is 0. So it is left out, which halves the numbers and makes it LoRA-FA. Adapters that start from another one, with B0 other than 0, are not here.

#[cfg(test)]
mod tests {
    use super::super::lora::LoraConfig;

    peft_core::conformance!(LoraConfig::new(3).with_alpha(5.0).with_shared_a(42));
}
