//! AdamW whose moments are kept in eight bits a number. Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022.
//!
//! The arithmetic is bitsandbytes' on a CPU, operation by operation, in f32: with g the gradient of step t,
//! `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `p = (1 - rate decay) p - rate / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)`,
//! from the decoded moments and with the new ones before they are encoded.

use peft_core::{Error, Result};
use rayon::prelude::*;

use crate::blocks::{self, UNIT};
use crate::blockwise::{Blockwise, decode_block, encode_block};
use crate::map8::{Map8, Search};
use crate::wide::{Width, wide};

/// What the rule needs beside a learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW8 {
    /// How much of the first moment is kept.
    pub beta1: f64,
    /// How much of the second moment is kept.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// What the learning rate is multiplied by to get the part of a parameter that is lost in a step.
    pub weight_decay: f64,
    /// How the moments are encoded. Bins cannot tell small second moments from 0: 0 becomes 1.5e-5 of the block's largest.
    pub search: Search,
}

/// The moments of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments8 {
    first: Blockwise,
    second: Blockwise,
}

impl Moments8 {
    /// Numbers for each magnitude.
    pub const BLOCK: usize = 256;
    /// bitsandbytes keeps the moments of tensors with fewer elements in f32.
    pub const LEAST_ELEMENTS: usize = 4096;

    /// Zeros.
    ///
    /// # Errors
    /// If there are no elements.
    pub fn zeros(elements: usize) -> Result<Self> {
        let zeros = |map| {
            let keys = ["elements", "absmax", "blocksize"];
            let absmax = vec![0.; elements.div_ceil(Self::BLOCK)];
            Blockwise::from_parts(map, Self::BLOCK, vec![0; elements], absmax, keys)
        };
        Ok(Moments8 { first: zeros(Map8::signed())?, second: zeros(Map8::unsigned())? })
    }

    /// From both moments, as a checkpoint has them.
    ///
    /// # Errors
    /// If they are not of as many numbers, in blocks of 256.
    pub fn from_parts(first: Blockwise, second: Blockwise) -> Result<Self> {
        for (key, moment) in [("first moment", &first), ("second moment", &second)] {
            blocks::expect_len(key, moment.len(), first.len(), "that of the first moment")?;
            if moment.block() != Self::BLOCK {
                return Err(Error::config(format!("{key}, blocksize"), moment.block(), "256"));
            }
        }
        Ok(Moments8 { first, second })
    }

    /// The mean of gradients.
    pub fn first(&self) -> &Blockwise {
        &self.first
    }

    /// The mean of their squares.
    pub fn second(&self) -> &Blockwise {
        &self.second
    }

    /// The bytes that they take.
    pub fn size(&self) -> usize {
        self.first.size() + self.second.size()
    }
}

impl AdamW8 {
    /// One step, counted from 1.
    ///
    /// # Errors
    /// If the lengths differ, the step is 0, or a gradient's square is not finite; nothing has changed then.
    pub fn step(
        &self,
        moments: &mut Moments8,
        step: u32,
        rate: f64,
        gradients: &[f32],
        parameters: &mut [f32],
    ) -> Result<()> {
        let factors = self.factors([moments.first.len(); 2], step, rate, gradients, parameters)?;
        let width = Width::best();
        let (block, units) = (Moments8::BLOCK, UNIT / Moments8::BLOCK);
        let (map1, codes1, absmax1) = moments.first.parts_mut();
        let (map2, codes2, absmax2) = moments.second.parts_mut();
        let first = codes1.par_chunks_mut(UNIT).zip(absmax1.par_chunks_mut(units));
        let second = codes2.par_chunks_mut(UNIT).zip(absmax2.par_chunks_mut(units));
        let values = parameters.par_chunks_mut(UNIT).zip(gradients.par_chunks(UNIT));
        first.zip(second).zip(values).for_each(|(((codes1, absmax1), (codes2, absmax2)), (p, g))| {
            let first = codes1.chunks_mut(block).zip(absmax1);
            let second = codes2.chunks_mut(block).zip(absmax2);
            let values = p.chunks_mut(block).zip(g.chunks(block));
            for (((codes1, absmax1), (codes2, absmax2)), (p, g)) in first.zip(second).zip(values) {
                let (mut m, mut v) = ([0.; Moments8::BLOCK], [0.; Moments8::BLOCK]);
                let (m, v) = (&mut m[..g.len()], &mut v[..g.len()]);
                decode_block(codes1, map1, *absmax1, m);
                decode_block(codes2, map2, *absmax2, v);
                update(width, &factors, g, m, v, p);
                // Finite gradients make finite moments, so that there is always a largest.
                *absmax1 = encode_block(m, map1, block, self.search, codes1).unwrap_or_default();
                *absmax2 = encode_block(v, map2, block, self.search, codes2).unwrap_or_default();
            }
        });
        Ok(())
    }
}

impl AdamW8 {
    /// The same with moments in f32.
    pub(crate) fn step_in_f32(
        &self,
        [first, second]: [&mut [f32]; 2],
        step: u32,
        rate: f64,
        gradients: &[f32],
        parameters: &mut [f32],
    ) -> Result<()> {
        let factors = self.factors([first.len(), second.len()], step, rate, gradients, parameters)?;
        update(Width::best(), &factors, gradients, first, second, parameters);
        Ok(())
    }

    fn factors(
        &self,
        [count, second]: [usize; 2],
        step: u32,
        rate: f64,
        gradients: &[f32],
        parameters: &[f32],
    ) -> Result<Factors> {
        blocks::expect_len("second moment", second, count, "that of the first moment")?;
        blocks::expect_len("gradients", gradients.len(), count, "one for each moment")?;
        blocks::expect_len("parameters", parameters.len(), count, "one for each moment")?;
        if step == 0 {
            return Err(Error::config("step", step, "1 or more"));
        }
        let large = |g: &f32| !(g * g).is_finite();
        if let Some(index) = gradients.par_iter().position_first(large) {
            let expected = "a number whose square is finite";
            return Err(Error::config(format!("gradients, element {index}"), gradients[index], expected));
        }
        let correction = |beta: f64| 1. - beta.powi(step.cast_signed());
        Ok(Factors {
            beta1: self.beta1 as f32,
            new1: (1. - self.beta1) as f32,
            beta2: self.beta2 as f32,
            new2: (1. - self.beta2) as f32,
            root: correction(self.beta2).sqrt() as f32,
            epsilon: self.epsilon as f32,
            kept: (1. - rate * self.weight_decay) as f32,
            change: (-rate / correction(self.beta1)) as f32,
        })
    }
}

/// The numbers of one step.
struct Factors {
    beta1: f32,
    new1: f32,
    beta2: f32,
    new2: f32,
    root: f32,
    epsilon: f32,
    kept: f32,
    change: f32,
}

wide! {
    fn update(factors: &Factors, g: &[f32], m: &mut [f32], v: &mut [f32], p: &mut [f32]) {
        for (((g, m), v), p) in g.iter().zip(m).zip(v).zip(p) {
            *m = g.mul_add(factors.new1, *m * factors.beta1);
            *v = (factors.new2 * g).mul_add(*g, *v * factors.beta2);
            *p = *p * factors.kept + factors.change * *m / (v.sqrt() / factors.root + factors.epsilon);
        }
    }
}
