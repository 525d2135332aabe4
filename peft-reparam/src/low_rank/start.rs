//! What a LoRA took out of its base at the start, so that the two together were what the base is: PiSSA (Meng et al., 2024,
//! arXiv:2404.02948) and OLoRA (Büyükakyüz, 2024, arXiv:2406.01775). PEFT's files hold the adapter alone, and PEFT takes it out anew
//! whenever it loads one. Here the adapter takes it out, by as many ranks more: W - s A0 B0 + s A B = W + s [A A0] [B; -B0].

use burn::tensor::Tensor;
use burn::tensor::linalg::{qr, svd};
use peft_core::{Error, Result, Start};

/// The most sweeps for each singular value, of which a few do.
const SWEEPS: usize = 100;

/// A0 `[in, r]` and B0 `[r, out]` of a matrix `[in, out]`.
pub(super) fn taken(start: Start, w: &Tensor<2>, r: usize, scale: f64) -> Result<[Tensor<2>; 2]> {
    let [rows, columns] = w.dims();
    if r > rows.min(columns) {
        let expected = format!("at most {}, as it started from the matrix [{rows}, {columns}]", rows.min(columns));
        return Err(Error::config("r", r, expected));
    }
    let (b, divisor) = match start {
        // The best approximation of that rank.
        Start::Pissa => (svd::<2, 1>(w.clone(), SWEEPS).2.narrow(0, 0, r), scale),
        // That which is in the span of the first rows.
        Start::Olora => (qr(w.clone().narrow(0, 0, r).transpose(), true).0.transpose(), 1.0),
    };
    Ok([w.clone().matmul(b.clone().transpose()) / divisor, b])
}
