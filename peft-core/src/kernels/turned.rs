//! `x W^T` for a dense W as it lies: panels are of x, whose rows become columns, and W is read once, row by row. To make panels of W
//! instead, of which each number is used for a few hundred rows alone, takes a fifth of the time on fast cores.

use bytemuck::cast_slice;

use super::{Dense, Kernel, Tiles, WIDTH};
use crate::threads;

/// Numbers that are summed before they are added: 64 KB of a panel.
const DEPTH: usize = 256;

/// Rows of W at a time: whole tiles of the kernels.
const LINES: usize = 48;

/// Fewer rows of x would leave most of a panel empty.
pub(crate) const FEWEST: usize = 32;

/// Writes `x W^T` for W `[outputs, depth]`: x is `[rows, depth]`, y `[rows, outputs]`, both row by row.
pub(crate) fn product_turned(kernel: Kernel, x: &[f32], w: &Dense<'_>, y: &mut [f32]) {
    let [outputs, depth] = w.dims();
    let rows = x.len() / depth;
    let panels = panels(kernel, x, rows, depth);
    let mut parts: Vec<(usize, Vec<&mut [f32]>)> = (0..outputs).step_by(LINES).map(|first| (first, vec![])).collect();
    for row in y.chunks_mut(outputs) {
        parts.iter_mut().zip(row.chunks_mut(LINES)).for_each(|((_, part), row)| part.push(row));
    }
    threads::each(parts, |(first, y)| {
        let lines = y[0].len();
        let mut sums = vec![0.0; lines * rows];
        let mut by_line: Vec<&mut [f32]> = sums.chunks_mut(rows).collect();
        for at in (0..depth).step_by(DEPTH) {
            let piece = DEPTH.min(depth - at);
            let w = &cast_slice(w.numbers)[first * depth + at..][..(lines - 1) * depth + piece];
            let panels = &panels[at * rows.div_ceil(WIDTH)..];
            for (i, panel) in panels.chunks(piece).take(rows.div_ceil(WIDTH)).enumerate() {
                kernel.multiply(false, w, depth, panel, &mut by_line, i * WIDTH);
            }
        }
        let mut by_row = vec![[0; WIDTH]; rows];
        kernel.turn(cast_slice(&sums), rows, &mut by_row);
        y.into_iter().zip(&by_row).for_each(|(y, row)| y.copy_from_slice(&cast_slice(row)[..lines]));
    });
}

/// Panels of which the rows of x are columns, piece after piece of the depth.
fn panels(kernel: Kernel, x: &[f32], rows: usize, depth: usize) -> Vec<[u32; WIDTH]> {
    let mut panels = vec![[0; WIDTH]; rows.div_ceil(WIDTH) * depth];
    let mut copy = Vec::with_capacity(WIDTH * DEPTH);
    let mut rest = &mut panels[..];
    for at in (0..depth).step_by(DEPTH) {
        let piece = DEPTH.min(depth - at);
        for x in x.chunks(WIDTH * depth) {
            copy.clear();
            x.chunks(depth).for_each(|row| copy.extend_from_slice(&row[at..][..piece]));
            let (panel, after) = rest.split_at_mut(piece);
            kernel.turn(cast_slice(&copy), piece, panel);
            rest = after;
        }
    }
    panels
}
