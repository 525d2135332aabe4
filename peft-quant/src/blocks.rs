//! What the block-wise codecs share: sizes that are checked, the largest magnitude of a block, work cut for threads.

use peft_core::{Error, Result};

use crate::wide::wide;

/// The largest block of any codec.
pub(crate) const LARGEST: usize = 4096;

/// Elements that a thread takes at a time: whole blocks of every size, and few enough to stay in its cache.
pub(crate) const UNIT: usize = 4 * LARGEST;

/// Numbers that are decoded at a time: few enough for a buffer that costs nothing.
pub(crate) const PIECE: usize = 512;

/// bitsandbytes divides by no smaller magnitude than this.
pub(crate) const SMALLEST: f32 = 1e-38;

/// The number of elements of a tensor.
///
/// # Errors
/// If it has none, or more than memory can have.
pub(crate) fn elements(dims: &[usize]) -> Result<usize> {
    let count = dims.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim)).filter(|count| *count > 0);
    count
        .filter(|_| !dims.is_empty())
        .ok_or_else(|| Error::config("shape", format!("{dims:?}"), "the extents of a tensor that has elements"))
}

/// Refuses a number of values that is not the one that follows from `why`.
pub(crate) fn expect_len(key: &str, found: usize, expected: usize, why: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::config(key, format!("a length of {found}"), format!("{expected} ({why})")))
}

/// Where the rows of a tensor begin in it, all axes but the first being a row.
///
/// # Errors
/// If there are no such rows, or the slice that they go to has another length.
pub(crate) fn expect_rows(dims: &[usize], rows: &std::ops::Range<usize>, room: usize) -> Result<usize> {
    if rows.start > rows.end || rows.end > dims[0] {
        return Err(Error::config("rows", format!("{rows:?}"), format!("a range within 0..{}", dims[0])));
    }
    let row: usize = dims[1..].iter().product();
    expect_len("the slice to decode into", room, rows.len() * row, "the weights of the rows")?;
    Ok(rows.start * row)
}

/// Refuses a block size that is not a power of two from `least` to 4096.
pub(crate) fn expect_block(key: &str, block: usize, least: usize) -> Result<()> {
    if block.is_power_of_two() && (least..=LARGEST).contains(&block) {
        return Ok(());
    }
    Err(Error::config(key, block, format!("a power of two from {least} to {LARGEST}")))
}

/// Refuses values that are not finite, by the index of the first.
pub(crate) fn expect_finite(key: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(not_finite(key, index, values[index])),
    }
}

pub(crate) fn not_finite(key: &str, index: usize, value: f32) -> Error {
    Error::config(format!("{key}, element {index}"), value, "a finite number")
}

wide! {
    /// The bits of the largest magnitude. Magnitudes order as their bits do, and infinity and NaN are above all others.
    fn largest_bits(x: &[f32]) -> u32 {
        let mut largest = 0;
        for x in x {
            largest = largest.max((x.to_bits() & 0x7fff_ffff) as i32);
        }
        largest as u32
    }
}

/// The largest magnitude, or nothing if a value is not finite.
pub(crate) fn absmax(width: crate::wide::Width, x: &[f32]) -> Option<f32> {
    Some(f32::from_bits(largest_bits(width, x))).filter(|largest| largest.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wide::Width;

    #[test]
    fn the_largest_magnitude_is_the_same_at_every_width() {
        let x: Vec<f32> = (0..777).map(|i| ((i * 7919) % 1000) as f32 / 100. - 5.).collect();
        for width in Width::all() {
            for length in [0, 1, 15, 16, 17, 64, 777] {
                let expected = x[..length].iter().fold(0f32, |largest, x| largest.max(x.abs()));
                assert_eq!(absmax(width, &x[..length]), Some(expected), "{width:?} {length}");
            }
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = x.clone();
                x[500] = bad;
                assert_eq!(absmax(width, &x), None, "{width:?} {bad}");
            }
        }
    }
}
