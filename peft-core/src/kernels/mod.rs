//! Products with frozen matrices on the CPU, by kernels that are chosen when the program runs.
//!
//! A matrix need not be in memory as numbers: a product asks for tiles of it ([`Tiles`]), which a codec decodes into a buffer in the
//! cache. Whoever adds a codec writes `tile`, and no product.
//!
//! `unsafe` is where a function is called that needs a processor's feature, here, and where `avx2` and `avx512` load and store. The
//! portable kernels are the oracle of the others. Bits are a function of kernel and sizes, never of the number of threads: an output is
//! summed by one thread, over the same pieces of its depth in the same order.

pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod codes;
mod portable;
mod product;
pub(crate) mod rows;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod turned;

use std::ops::Range;
use std::sync::OnceLock;

pub(crate) use product::product;
pub(crate) use turned::{FEWEST, product_turned};

use crate::Compute;
use crate::codes::Codes;

/// Columns of a panel.
const WIDTH: usize = 64;

/// Rows of which a kernel computes a panel's outputs at a time.
const ROWS: usize = 6;

/// A panel: `WIDTH` columns of a piece of a matrix, row by row. A word is a number, or two rows' numbers in bf16, the first in the lower half.
type Panel = [[u32; WIDTH]];

/// A frozen matrix, in whatever form it is stored.
pub(crate) trait Tiles: Sync {
    /// `[rows, columns]`, as it lies.
    fn dims(&self) -> [usize; 2];

    /// Some columns of some rows, row by row.
    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]);

    /// Some rows as codes, with scale and minimum of each block, if it has such.
    fn codes(&self, _rows: Range<usize>, _scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        None
    }
}

/// A matrix of numbers, row by row.
pub(crate) struct Dense<'a> {
    /// All of them.
    pub numbers: &'a [f32],
    /// In a row.
    pub columns: usize,
}

impl Tiles for Dense<'_> {
    fn dims(&self) -> [usize; 2] {
        [self.numbers.len() / self.columns, self.columns]
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        for (out, row) in out.chunks_mut(columns.len()).zip(rows) {
            out.copy_from_slice(&self.numbers[row * self.columns..][columns.clone()]);
        }
    }
}

/// What products are computed with. Only made by [`Kernel::all`], which asks the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel(Registers);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "other machines have one kernel"))]
enum Registers {
    Portable,
    Avx2,
    Avx512,
    /// With products of pairs of bf16.
    Avx512Bf16,
}

impl Kernel {
    /// Those that this machine has, the slowest first.
    pub(crate) fn all() -> Vec<Self> {
        #[allow(unused_mut, reason = "other machines have one kernel")]
        let mut all = vec![Kernel(Registers::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Kernel(Registers::Avx2));
            }
            if is_x86_feature_detected!("avx512f") {
                all.push(Kernel(Registers::Avx512));
                if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vl") {
                    all.push(Kernel(Registers::Avx512Bf16));
                }
            }
        }
        all
    }

    /// The fastest.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| *Self::all().last().expect("portable is always there"))
    }

    /// `portable`, `avx2`, `avx512` or `avx512-bf16`: what it computes with.
    pub(crate) fn name(self, compute: Compute) -> &'static str {
        match (self.0, compute) {
            (Registers::Portable, _) => "portable",
            (Registers::Avx2, _) => "avx2",
            (Registers::Avx512, _) | (_, Compute::F32) => "avx512",
            (Registers::Avx512Bf16, Compute::Bf16) => "avx512-bf16",
        }
    }

    /// Whether its words are pairs of bf16. Where a machine has no products of those, bf16 is numbers that are rounded.
    fn pairs(self, compute: Compute) -> bool {
        compute == Compute::Bf16 && self.0 == Registers::Avx512Bf16
    }

    /// Adds the product of `x` and a panel to `y` from a column on, for rows of `x` that are `stride` words apart and rows of `y` that
    /// may end within the panel.
    fn multiply(self, pairs: bool, x: &[u32], stride: usize, panel: &Panel, y: &mut [&mut [f32]], at: usize) {
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            Registers::Portable => {}
            // SAFETY: here and below, a kernel is only made where the machine has its features.
            Registers::Avx2 => return unsafe { avx2::multiply(x, stride, panel, y, at) },
            Registers::Avx512Bf16 if pairs => return unsafe { avx512::multiply_pairs(x, stride, panel, y, at) },
            Registers::Avx512 | Registers::Avx512Bf16 => return unsafe { avx512::multiply(x, stride, panel, y, at) },
        }
        let _ = pairs;
        portable::multiply(x, stride, panel, y, at);
    }

    /// Makes a panel of words that lie along the depth, row by row: its columns.
    fn turn(self, rows: &[u32], depth: usize, panel: &mut Panel) {
        #[cfg(target_arch = "x86_64")]
        if matches!(self.0, Registers::Avx512 | Registers::Avx512Bf16) {
            // SAFETY: as above.
            return unsafe { avx512::turn(rows, depth, panel) };
        }
        portable::turn(rows, depth, panel);
    }

    /// Words of a run of numbers along the depth.
    fn words(self, compute: Compute, numbers: &[f32], words: &mut [u32]) {
        match compute {
            Compute::F32 => words[..numbers.len()].copy_from_slice(bytemuck::cast_slice(numbers)),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Compute::Bf16 if self.pairs(compute) => unsafe { avx512::pairs_along(numbers, words) },
            Compute::Bf16 => numbers.iter().zip(words).for_each(|(x, word)| *word = portable::rounded(*x).to_bits()),
        }
    }

    /// Makes a panel of its numbers, row by row.
    fn pack(self, compute: Compute, rows: &[[f32; WIDTH]], panel: &mut Panel) {
        #[cfg(target_arch = "x86_64")]
        if self.pairs(compute) {
            // SAFETY: as above.
            return unsafe { avx512::pairs_of_rows(rows, panel) };
        }
        rows.iter().zip(panel).for_each(|(row, words)| self.words(compute, row, words));
    }

    /// The sum of the products of two runs of numbers.
    fn dot(self, x: &[f32], w: &[f32]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            Registers::Portable => {}
            // SAFETY: as above.
            Registers::Avx2 => return unsafe { avx2::dot(x, w) },
            Registers::Avx512 | Registers::Avx512Bf16 => return unsafe { avx512::dot(x, w) },
        }
        portable::dot(x, w, |x, w, sum| x * w + sum)
    }

    /// Adds the products of rows of `x`, arranged as the codes are, and outputs in codes to `y` from a column on.
    fn dots(self, codes: &Codes<'_>, scales: &[[f32; 2]], x: &[codes::Group], y: &mut [&mut [f32]], at: usize) {
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            Registers::Portable => {}
            // SAFETY: as above.
            Registers::Avx2 => return unsafe { avx2::dots(codes, scales, x, y, at) },
            Registers::Avx512 | Registers::Avx512Bf16 => return unsafe { avx512::dots(codes, scales, x, y, at) },
        }
        portable::dots(codes, scales, x, y, at);
    }

    /// Adds rows of numbers, each times its factor, to `y`.
    fn add(self, x: &[f32], rows: &[f32], y: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            Registers::Portable => {}
            // SAFETY: as above.
            Registers::Avx2 => return unsafe { avx2::add(x, rows, y) },
            Registers::Avx512 | Registers::Avx512Bf16 => return unsafe { avx512::add(x, rows, y) },
        }
        portable::add(x, rows, y, |x, w, sum| x * w + sum);
    }
}
