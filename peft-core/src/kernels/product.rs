//! The loops around the kernels.
//!
//! Outputs are cut by panels of columns. A thread takes some of them and goes through the depth in pieces: it copies the rows of `x`,
//! then makes one panel after the other, in the cache, and multiplies. So each weight is decoded once for [`LINES`] rows of `x`.

use std::cell::Cell;
use std::ops::Range;

use super::codes::Group;
use super::{Kernel, Panel, Tiles, WIDTH};
use crate::{Compute, threads};

/// Numbers that are summed before they are added to the output: 64 KB of a panel.
const DEPTH: usize = 256;

/// Rows of `x` at a time: half a megabyte of them.
const LINES: usize = 512;

/// Panels of which the outputs stay near.
const PANELS: usize = 8;

/// Up to so many rows read decoded weights as they come: a panel would cost more than the product.
const FEW: usize = 5;

/// Numbers of weights that a thread decodes at a time for few rows of `x`: 16 KB.
const FEW_NUMBERS: usize = 4096;

/// Numbers of weights whose scales a thread has at a time for few rows of `x`.
const CODED_NUMBERS: usize = 1 << 14;

/// Below so many weights a product of few rows is over before another thread has begun.
const FEW_ALONE: usize = 1 << 16;

/// What a thread works in; kept, since fresh memory costs more than to fill it.
#[derive(Default)]
struct Scratch {
    x: Vec<u32>,
    tile: Vec<f32>,
    words: Vec<u32>,
    panel: Vec<[u32; WIDTH]>,
    arranged: Vec<Group>,
    scales: Vec<[f32; 2]>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// A product `x W`, or `x W^T` of a matrix that is `turned`.
struct Product<'a> {
    kernel: Kernel,
    compute: Compute,
    w: &'a dyn Tiles,
    turned: bool,
    depth: usize,
}

/// Adds `x W` to y for W `[depth, outputs]`, or, `turned`, `x W^T` for W `[outputs, depth]`. x is `[rows, depth]`, y `[rows, outputs]`, both
/// row by row. In bf16 x and W are rounded and sums are in f32; few rows are multiplied as they are.
pub(crate) fn product(kernel: Kernel, compute: Compute, x: &[f32], w: &dyn Tiles, turned: bool, y: &mut [f32]) {
    let [rows, columns] = w.dims();
    let [depth, outputs] = if turned { [columns, rows] } else { [rows, columns] };
    if depth == 0 || outputs == 0 {
        return;
    }
    assert_eq!(x.len() / depth, y.len() / outputs, "rows of the product");
    let product = Product { kernel, compute, w, turned, depth };
    for (x, y) in x.chunks(LINES * depth).zip(y.chunks_mut(LINES * outputs)) {
        let few = y.len() <= FEW * outputs;
        let threads = if few && depth * outputs < FEW_ALONE { 1 } else { threads::count() };
        let panels = outputs.div_ceil(WIDTH).div_ceil(threads);
        let width = WIDTH * if few { panels } else { panels.min(PANELS) };
        let mut parts: Vec<(usize, Vec<&mut [f32]>)> = (0..outputs).step_by(width).map(|at| (at, vec![])).collect();
        for row in y.chunks_mut(outputs) {
            parts.iter_mut().zip(row.chunks_mut(width)).for_each(|((_, rows), row)| rows.push(row));
        }
        threads::each(parts, |(first, mut y)| {
            let mut scratch = SCRATCH.take();
            let columns = first..first + y[0].len();
            match few {
                true if product.coded(&mut scratch, x, columns.clone(), &mut y) => {}
                true => product.few(&mut scratch, x, columns, &mut y),
                false => (0..depth)
                    .step_by(DEPTH)
                    .for_each(|k| product.piece(&mut scratch, x, k..(k + DEPTH).min(depth), columns.clone(), &mut y)),
            }
            SCRATCH.set(scratch);
        });
    }
}

impl Product<'_> {
    /// What a piece of the depth adds to some columns.
    fn piece(&self, s: &mut Scratch, x: &[f32], piece: Range<usize>, columns: Range<usize>, y: &mut [&mut [f32]]) {
        let pairs = self.kernel.pairs(self.compute);
        let words = if pairs { piece.len().div_ceil(2) } else { piece.len() };
        // Rows that are a power of two apart would share their places in the cache.
        let stride = words.next_multiple_of(16) + 16;
        s.x.resize(y.len() * stride, 0);
        for (x, words) in x.chunks(self.depth).zip(s.x.chunks_mut(stride)) {
            self.kernel.words(self.compute, &x[piece.clone()], words);
        }
        s.panel.resize(words, [0; WIDTH]);
        for first in columns.clone().step_by(WIDTH) {
            let of = first..(first + WIDTH).min(columns.end);
            self.panel(&mut s.tile, &mut s.words, &mut s.panel, &piece, of);
            self.kernel.multiply(pairs, &s.x, stride, &s.panel, y, first - columns.start);
        }
    }

    /// Makes a panel of the weights of some columns. Of those that it has beside them nothing is read.
    fn panel(
        &self,
        tile: &mut Vec<f32>,
        words: &mut Vec<u32>,
        panel: &mut Panel,
        piece: &Range<usize>,
        columns: Range<usize>,
    ) {
        tile.resize(piece.len() * WIDTH, 0.);
        let (count, depth) = (piece.len() * columns.len(), panel.len());
        if self.turned {
            self.w.tile(columns.clone(), piece.clone(), &mut tile[..count]);
            words.resize(columns.len() * depth, 0);
            for (numbers, words) in tile[..count].chunks(piece.len()).zip(words.chunks_mut(depth)) {
                self.kernel.words(self.compute, numbers, words);
            }
            self.kernel.turn(words, depth, panel);
        } else {
            self.w.tile(piece.clone(), columns.clone(), &mut tile[..count]);
            // Rows of a narrower tile move apart, the last first.
            for k in (0..piece.len()).rev().filter(|_| columns.len() < WIDTH) {
                tile.copy_within(k * columns.len()..(k + 1) * columns.len(), k * WIDTH);
            }
            self.kernel.pack(self.compute, tile.as_chunks().0, panel);
        }
    }

    /// The whole of some columns, for few rows, if they are had as codes.
    fn coded(&self, s: &mut Scratch, x: &[f32], columns: Range<usize>, y: &mut [&mut [f32]]) -> bool {
        if !self.turned {
            return false;
        }
        let step = (CODED_NUMBERS / self.depth).max(1);
        for first in columns.clone().step_by(step) {
            let of = first..(first + step).min(columns.end);
            let Some(codes) = self.w.codes(of, &mut s.scales) else { return false };
            if first == columns.start {
                codes.arrange(x, self.depth, &mut s.arranged);
            }
            self.kernel.dots(&codes, &s.scales, &s.arranged, y, first - columns.start);
        }
        true
    }

    /// The whole of some columns, for few rows.
    fn few(&self, s: &mut Scratch, x: &[f32], columns: Range<usize>, y: &mut [&mut [f32]]) {
        let Scratch { tile, .. } = s;
        tile.resize(FEW_NUMBERS.max(tile.len()), 0.);
        if self.turned {
            for k in (0..self.depth).step_by(FEW_NUMBERS) {
                let piece = k..(k + FEW_NUMBERS).min(self.depth);
                let step = FEW_NUMBERS / piece.len();
                for first in columns.clone().step_by(step) {
                    let of = first..(first + step).min(columns.end);
                    let tile = &mut tile[..of.len() * piece.len()];
                    self.w.tile(of, piece.clone(), tile);
                    for (x, y) in x.chunks(self.depth).zip(y.iter_mut()) {
                        for (w, y) in tile.chunks(piece.len()).zip(&mut y[first - columns.start..]) {
                            *y += self.kernel.dot(&x[piece.clone()], w);
                        }
                    }
                }
            }
            return;
        }
        let width = columns.len().min(FEW_NUMBERS / 4);
        let step = FEW_NUMBERS / width;
        for first in columns.clone().step_by(width) {
            let of = first..(first + width).min(columns.end);
            for k in (0..self.depth).step_by(step) {
                let piece = k..(k + step).min(self.depth);
                let tile = &mut tile[..piece.len() * of.len()];
                self.w.tile(piece.clone(), of.clone(), tile);
                for (x, y) in x.chunks(self.depth).zip(y.iter_mut()) {
                    let y = &mut y[first - columns.start..][..of.len()];
                    self.kernel.add(&x[piece.clone()], tile, y);
                }
            }
        }
    }
}
