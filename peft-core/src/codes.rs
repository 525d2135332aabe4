//! Packed matrices as products of few rows take them: as codes, which kernels decode in registers and multiply at once.

/// How the codes of some outputs lie, output by output. A weight is a code's value times the scale of its block, plus the block's minimum.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    /// What a code is.
    pub form: Form,
    /// All bytes, from the first block of the first output on.
    pub bytes: &'a [u8],
    /// Weights that share a scale: a multiple of 32 that divides the inputs.
    pub block: usize,
    /// Bytes of a block.
    pub stride: usize,
    /// Bytes of a block that stand in front of its codes.
    pub before: usize,
}

/// What a code is.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Four bits: which of 16 values. 16 bytes have 32 weights.
    Four {
        /// The values.
        values: &'static [f32; 16],
        /// Which weights are in the lower halves of 16 bytes.
        order: Order,
        /// What weights are rounded to.
        rounding: Rounding,
    },
    /// Eight bits: a signed integer, its own value.
    Eight,
}

/// Which of 32 weights are in the lower halves of 16 bytes; the others, in order too, are in the upper ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The first 16.
    Halves,
    /// The first, third, fifth and so on.
    LowerFirst,
    /// The second, fourth, sixth and so on.
    UpperFirst,
}

/// What weights are rounded to once they are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing narrower than f32.
    F32,
    /// The nearest f16.
    F16,
    /// The nearest bf16.
    Bf16,
}

/// The values 0 to 15: four bits that are integers.
pub static INTEGERS: [f32; 16] = {
    let mut values = [0.; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = i as f32;
        i += 1;
    }
    values
};
