//! Packed weights with an update in them: unpacked, added to, and packed again. A packed form cannot hold the sum, so that what it costs is
//! always told.

use peft_core::{Error, Result};

use crate::{FourBit, Grouped, Int8Rows, Scales, blocks};

/// What packed weights became with an update, and how far they are from the sum that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Requantized<T> {
    /// The weights, packed as before.
    pub packed: T,
    /// The root of the sum of the update's squares.
    pub update: f64,
    /// The same of the difference between the packed weights and the sum.
    pub error: f64,
    /// The largest such difference.
    pub largest: f32,
}

/// Packed weights that can be packed again after a change.
pub trait Requantize: Sized {
    /// All weights.
    fn weights(&self) -> Vec<f32>;

    /// Other weights, packed as these are.
    ///
    /// # Errors
    /// If they cannot be.
    fn alike(&self, weights: &[f32]) -> Result<Self>;

    /// These weights with an update, as PEFT merges a LoRA into them. The update is of the same extents.
    ///
    /// # Errors
    /// If it has another length, or a sum cannot be packed.
    fn plus(&self, update: &[f32]) -> Result<Requantized<Self>> {
        let mut sums = self.weights();
        blocks::expect_len("update", update.len(), sums.len(), "one for each weight")?;
        sums.iter_mut().zip(update).for_each(|(sum, update)| *sum += update);
        let packed = self.alike(&sums)?;
        let differences = packed.weights().into_iter().zip(&sums).map(|(packed, sum)| packed - sum);
        let (mut error, mut largest) = (0., 0f32);
        for difference in differences {
            error += f64::from(difference).powi(2);
            largest = largest.max(difference.abs());
        }
        let squares: f64 = update.iter().map(|x| f64::from(*x).powi(2)).sum();
        Ok(Requantized { packed, update: squares.sqrt(), error: error.sqrt(), largest })
    }
}

impl Requantize for FourBit {
    fn weights(&self) -> Vec<f32> {
        self.decode()
    }

    fn alike(&self, weights: &[f32]) -> Result<Self> {
        let plain = FourBit::encode(weights, self.dims(), self.codebook(), self.block())?;
        match self.scales() {
            Scales::Plain(_) => Ok(plain),
            Scales::Nested { .. } => plain.with_nested_scales(),
        }
    }
}

impl Requantize for Int8Rows {
    fn weights(&self) -> Vec<f32> {
        self.decode()
    }

    fn alike(&self, weights: &[f32]) -> Result<Self> {
        Int8Rows::encode(weights, self.dims())
    }
}

/// In groups of consecutive inputs; where all zero points are the middle code, symmetric.
impl Requantize for Grouped {
    fn weights(&self) -> Vec<f32> {
        self.decode()
    }

    fn alike(&self, weights: &[f32]) -> Result<Self> {
        if self.groups().is_some() {
            let expected = "groups of consecutive inputs, which alone can be made anew";
            return Err(Error::config("g_idx", "other groups", expected));
        }
        let middle = (1u32 << (self.bits() - 1)) as f32;
        let symmetric = self.zeros().iter().all(|zero| *zero == middle);
        Grouped::encode(weights, self.dims(), self.bits(), self.group(), symmetric)
    }
}
