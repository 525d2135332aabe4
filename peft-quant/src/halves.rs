//! Tables of words in the sixteen bits that their files have: nothing is lost, and they take half the memory.

use std::fmt::{self, Debug};
use std::ops::Range;

use crate::Element;
use crate::matrix::Codec;

/// A matrix of a short number type.
pub(crate) struct Halves<E> {
    dims: [usize; 2],
    values: Vec<E>,
}

impl<E: Element> Halves<E> {
    /// `[rows, columns]`, row by row, rounded to the type if it is not of it.
    pub(crate) fn new(values: &[f32], dims: [usize; 2]) -> Self {
        let mut narrow = E::zeros(values.len());
        E::narrow(values, &mut narrow);
        Halves { dims, values: narrow }
    }
}

impl<E: Element> Debug for Halves<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", E::NAME, self.dims)
    }
}

impl<E: Element> Codec for Halves<E> {
    fn kind(&self) -> String {
        E::NAME.to_string()
    }

    fn dims(&self) -> Vec<usize> {
        self.dims.to_vec()
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_mut(columns.len())) {
            let start = row * self.dims[1];
            E::widen(&self.values[start + columns.start..start + columns.end], out);
        }
    }
}
