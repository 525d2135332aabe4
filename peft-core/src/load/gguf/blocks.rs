//! The element types of GGUF. Quantized ones come in blocks of 32 or 256 elements that lie along a row.
//!
//! The order of the operations is that of the reference (the Python package `gguf`), so that every bit is its.

use half::f16;

/// An element type.
pub(super) struct Kind {
    /// Its number in files.
    pub(super) id: u32,
    /// Its name.
    pub(super) name: &'static str,
    /// Elements of a block.
    pub(super) elements: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
}

const fn kind(id: u32, name: &'static str, elements: usize, bytes: usize) -> Kind {
    Kind { id, name, elements, bytes }
}

/// The types that are read.
pub(super) const KINDS: [Kind; 14] = [
    kind(0, "F32", 1, 4),
    kind(1, "F16", 1, 2),
    kind(2, "Q4_0", 32, 18),
    kind(3, "Q4_1", 32, 20),
    kind(6, "Q5_0", 32, 22),
    kind(7, "Q5_1", 32, 24),
    kind(8, "Q8_0", 32, 34),
    kind(12, "Q4_K", 256, 144),
    kind(13, "Q5_K", 256, 176),
    kind(14, "Q6_K", 256, 210),
    kind(26, "I32", 1, 4),
    kind(27, "I64", 1, 8),
    kind(28, "F64", 1, 8),
    kind(30, "BF16", 1, 2),
];

/// Makes numbers of bytes.
pub(in crate::load) type Decoder = fn(&[u8]) -> Vec<f32>;

/// The decoder of a quantized type, for whole blocks, and the bytes of a block.
pub(in crate::load) fn decoder(dtype: &str) -> Option<(Decoder, usize)> {
    let decoder: Decoder = match dtype {
        "Q4_0" => |bytes| decode(bytes, q4_0),
        "Q4_1" => |bytes| decode(bytes, q4_1),
        "Q5_0" => |bytes| decode(bytes, q5_0),
        "Q5_1" => |bytes| decode(bytes, q5_1),
        "Q8_0" => |bytes| decode(bytes, q8_0),
        "Q4_K" => |bytes| decode(bytes, q4_k),
        "Q5_K" => |bytes| decode(bytes, q5_k),
        "Q6_K" => |bytes| decode(bytes, q6_k),
        _ => return None,
    };
    let kind = KINDS.iter().find(|kind| kind.name == dtype)?;
    Some((decoder, kind.bytes))
}

fn decode<const B: usize, const N: usize>(bytes: &[u8], block: impl Fn(&[u8; B], &mut [f32; N])) -> Vec<f32> {
    let blocks = bytes.as_chunks().0;
    let mut values = vec![0.0; blocks.len() * N];
    for (bytes, values) in blocks.iter().zip(values.as_chunks_mut().0) {
        block(bytes, values);
    }
    values
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low four bits are elements 0 to 15, the high ones 16 to 31; `high` gives each its fifth bit (as 16).
fn nibbles(bytes: &[u8], out: &mut [f32; 32], high: impl Fn(usize) -> u8, value: impl Fn(u8) -> f32) {
    for (j, byte) in bytes.iter().enumerate() {
        out[j] = value(byte & 15 | high(j));
        out[j + 16] = value(byte >> 4 | high(j + 16));
    }
}

fn fifth_bits(block: &[u8], at: usize) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |j| (bits >> j & 1) as u8 * 16
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |_| 0, |q| d * (f32::from(q) - 8.));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_| 0, |q| d * f32::from(q) + m);
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[6..], out, fifth_bits(block, 2), |q| d * (f32::from(q) - 16.));
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[8..], out, fifth_bits(block, 4), |q| d * f32::from(q) + m);
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (value, byte) in out.iter_mut().zip(&block[2..]) {
        *value = d * f32::from(*byte as i8);
    }
}

/// The 6-bit scale and minimum of the sub-block j of 8, out of the 12 bytes that pack them.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (scale.into(), min.into())
}

/// Eight sub-blocks of 32, each with a scale and a minimum; two of them share 32 bytes. `high` gives the element l of
/// sub-block j its fifth bit (as 16).
fn sub_blocks(block: &[u8], quants: &[u8], out: &mut [f32; 256], high: impl Fn(usize, usize) -> u8) {
    let (d, d_min) = (half(block, 0), half(block, 2));
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], j);
        let (scale, min) = (d * scale, d_min * min);
        for (l, value) in out.iter_mut().enumerate() {
            let q = quants[j / 2 * 32 + l] >> (j % 2 * 4) & 15 | high(j, l);
            *value = scale * f32::from(q) - min;
        }
    }
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    sub_blocks(block, &block[16..], out, |_, _| 0);
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    sub_blocks(block, &block[48..], out, |j, l| (block[16 + l] >> j & 1) * 16);
}

/// Two halves of 128, each four quarters of 32: a quarter has its low four bits in one half of the bytes of 64
/// elements, and its high two in a byte that all four share. Every 16 elements have a signed scale.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (i, value) in out.iter_mut().enumerate() {
        let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let low = low[part * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        let high = high[part * 32 + l] >> (quarter * 2) & 3;
        let scale = d * f32::from(scales[i / 16] as i8);
        *value = scale * (f32::from(low | high << 4) - 32.);
    }
}
