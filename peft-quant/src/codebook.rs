//! The 16 values of NF4 and of FP4.

use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// The 16 values that a weight can be of its block's largest magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codebook {
    /// NormalFloat: quantiles of a normal distribution, with 0. Dettmers et al., "QLoRA", 2023.
    Nf4,
    /// bitsandbytes' four-bit float: a sign and eight magnitudes. It is not OCP's E2M1, and its codes are not in the order of its values.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

const FP4: [f32; 16] = {
    let twelfths = [0., 0.0625, 8., 12., 4., 6., 2., 3.];
    let mut values = [0.; 16];
    let mut i = 0;
    while i < 8 {
        values[i] = twelfths[i] / 12.;
        values[i + 8] = if i == 0 { 0. } else { -values[i] };
        i += 1;
    }
    values
};

/// FP4's codes in the order of their values; of the two zeros the first is first.
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

/// What encoding and decoding look up.
pub(crate) struct Tables {
    /// The midpoints between neighbours, rising. As many as are below a value, so many values are.
    pub(crate) bounds: [f32; 15],
    /// Two ranks as a byte to two codes as a byte.
    pub(crate) codes: [u8; 256],
    /// A byte to its two values.
    pub(crate) values: [[f32; 2]; 256],
    /// The value of each code.
    pub(crate) of: [f32; 16],
}

const fn tables(values: [f32; 16], order: [u8; 16]) -> Tables {
    let mut tables = Tables { bounds: [0.; 15], codes: [0; 256], values: [[0.; 2]; 256], of: values };
    let mut i = 0;
    while i < 15 {
        tables.bounds[i] = (values[order[i] as usize] + values[order[i + 1] as usize]) / 2.;
        i += 1;
    }
    let mut byte = 0;
    while byte < 256 {
        tables.codes[byte] = order[byte >> 4] << 4 | order[byte & 15];
        tables.values[byte] = [values[byte >> 4], values[byte & 15]];
        byte += 1;
    }
    tables
}

static NF4_TABLES: Tables = tables(NF4, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
static FP4_TABLES: Tables = tables(FP4, FP4_ORDER);

impl Codebook {
    /// Its name in files: `nf4`, `fp4`.
    pub const fn name(self) -> &'static str {
        match self {
            Codebook::Nf4 => "nf4",
            Codebook::Fp4 => "fp4",
        }
    }

    /// The one of a name.
    ///
    /// # Errors
    /// If there is none.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "nf4" => Ok(Codebook::Nf4),
            "fp4" => Ok(Codebook::Fp4),
            other => Err(Error::config("quant_type", format!("{other:?}"), "nf4 or fp4")),
        }
    }

    /// The value of each code.
    pub const fn values(self) -> [f32; 16] {
        match self {
            Codebook::Nf4 => NF4,
            Codebook::Fp4 => FP4,
        }
    }

    pub(crate) fn tables(self) -> &'static Tables {
        match self {
            Codebook::Nf4 => &NF4_TABLES,
            Codebook::Fp4 => &FP4_TABLES,
        }
    }
}
