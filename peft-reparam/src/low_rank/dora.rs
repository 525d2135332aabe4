//! # DoRA                                   family: reparameterized / low-rank decomposition
//! h = m V x / |V|, V = W + s B A           a setting of LoRA, use_dora; m: [d_out] = |W| at the start, |V|: [d_out], over the inputs of each output
//! Paper: Liu et al., 2024, arXiv:2402.09353, eq. 5.   Reference: huggingface/peft tuners/lora/dora.py
//! Oracle: package peft 0.21.2: `dora_equals_the_reference`
//! Trains: d_out per site beside LoRA's r (d_in + d_out).      Merges: yes.
//! Identities:
//! - zero at init: `C1`
//! - merged == unmerged: `C3`
//! - computing the matrices once a step is the same as by hooks: `a_view_is_as_by_hooks`
//! - an output's weights have the length m: `magnitudes_are_the_lengths`
//! - with m = |V| it is LoRA: `with_the_lengths_as_magnitudes_it_is_lora`
//! - |V| is a constant, so that the gradient of V is m / |V| times that of W: `the_norm_has_no_gradient`
//! - dropout acts on all but W x and the bias: `dropout_leaves_the_frozen_product`
//!
//! Differs from the paper: |V| is taken over the inputs of each output, as in the authors' code; the paper's text says columns. |V| is a constant, as in its section 4.3. The paper has no dropout; this is PEFT's. An output whose V is 0 gives 0, where PEFT divides by 0.

use burn::tensor::Tensor;

/// The length of each output's weights, `[out]`, of a matrix `[in, out]`.
pub(super) fn lengths(v: Tensor<2>) -> Tensor<1> {
    v.powi_scalar(2).sum_dim(0).sqrt().squeeze_dim(0)
}

/// What each output is multiplied by, `[1, out]`: m / |V|, the length a constant.
pub(super) fn scale(m: Tensor<1>, v: &Tensor<2>) -> Tensor<2> {
    let lengths = lengths(v.clone().without_autodiff());
    let zero = lengths.clone().equal_elem(0.0);
    (m / lengths.mask_fill(zero, 1.0)).unsqueeze()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;

    use super::super::lora::LoraConfig;

    peft_core::conformance!(LoraConfig::new(3).with_alpha(5.0).with_dora());

    #[test]
    fn dora_equals_the_reference() {
        for (case, base) in
            [("dora", "roberta-classify"), ("dora-bert", "bert-classify"), ("dora-t5", "t5"), ("dora-llama", "llama")]
        {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
            let case = Case::open(dir, base);
            case.check_method::<LoraConfig>();
            case.check_merged::<LoraConfig>();
        }
    }

    #[test]
    fn a_view_is_as_by_hooks() {
        peft_core::testing::a_view_is_as_by_hooks(&LoraConfig::new(3).with_alpha(5.0).with_dora());
    }
}
