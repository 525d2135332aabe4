//! Attention of one head after another, some rows of queries at a time: their scores are in the cache, and nowhere else. Backward computes
//! them again, from the largest score of each row and the sum of the powers of e. Products are by the kernels of frozen products, whose
//! panels are made here of keys, values and rows of queries.
//!
//! Threads share heads of keys, so that each number is summed by one thread in one order.

use std::cell::Cell;

use bytemuck::cast_slice;

use super::rows::{self, Scores, UNSEEN};
use super::{Kernel, Panel, WIDTH};
use crate::ops::Drops;
use crate::threads;

/// Rows of queries at a time: as many as a panel of gradients' transposes has columns.
const ROWS: usize = WIDTH;

/// `[batch, heads, rows, width]`, the numbers of a row one after the other.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    /// The memory that they are in.
    pub numbers: &'a [f32],
    /// Where the first is.
    pub start: usize,
    /// From a sequence, a head and a row to the next.
    pub strides: [usize; 3],
}

/// Sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub batch: usize,
    pub heads: usize,
    /// Of keys and values; each is for `heads / key_heads` heads of queries.
    pub key_heads: usize,
    pub rows: usize,
    pub keys: usize,
    /// Of a head.
    pub width: usize,
}

/// An attention whose heads are split.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub sizes: Sizes,
    pub query: Heads<'a>,
    pub key: Heads<'a>,
    pub value: Heads<'a>,
    /// Added to the scores, `[heads, rows, keys]`.
    pub bias: Option<&'a [f32]>,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// True where a key is padding, `[batch, keys]`.
    pub padding: Option<&'a [bool]>,
    /// Row i sees key j if j <= i + causal.
    pub causal: Option<usize>,
    pub drops: Option<&'a Drops>,
}

/// Where gradients go: those of queries, keys and values lie as `[batch, rows, heads, width]`, that of the bias as itself.
pub(crate) struct Gradients<'a> {
    pub query: Option<&'a mut [f32]>,
    pub key: Option<&'a mut [f32]>,
    pub value: Option<&'a mut [f32]>,
    pub bias: Option<&'a mut [f32]>,
}

/// What a thread works in.
#[derive(Default)]
struct Scratch {
    /// Keys by columns, values by rows; in backward the other way round too.
    keys: Vec<[u32; WIDTH]>,
    values: Vec<[u32; WIDTH]>,
    keys_back: Vec<[u32; WIDTH]>,
    values_back: Vec<[u32; WIDTH]>,
    /// Of a block of rows.
    queries: Vec<f32>,
    gradients: Vec<f32>,
    weights: Vec<f32>,
    weights_back: Vec<f32>,
    panel: Vec<[u32; WIDTH]>,
    turned: Vec<[u32; WIDTH]>,
    limits: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl<'a> Heads<'a> {
    fn row(&self, sequence: usize, head: usize, row: usize, width: usize) -> &'a [f32] {
        let [of_sequence, of_head, of_row] = self.strides;
        &self.numbers[self.start + sequence * of_sequence + head * of_head + row * of_row..][..width]
    }
}

impl Sizes {
    /// Heads of queries for one of keys.
    fn group(&self) -> usize {
        self.heads / self.key_heads
    }

    /// Words from a row of scores to the next: rows that are a power of two apart would share their places in the cache.
    fn stride(&self) -> usize {
        self.keys.next_multiple_of(16) + 16
    }
}

impl Attention<'_> {
    /// Adds the values summed by the softmax of the scores to `out`, `[batch, rows, heads, width]`. `softmax` gets two numbers for each
    /// row, `[heads, batch, rows]`, with which backward makes the softmax again.
    pub(crate) fn forward(&self, kernel: Kernel, out: &mut [f32], softmax: &mut [f32]) {
        let s = self.sizes;
        let parts = of_heads(out, s.heads * s.width, s.key_heads).into_iter();
        let parts = parts.zip(softmax.chunks_mut(2 * s.group() * s.batch * s.rows)).enumerate().collect();
        threads::each(parts, |(own, (mut out, softmax)): (usize, (Vec<&mut [f32]>, &mut [f32]))| {
            let mut scratch = SCRATCH.take();
            for sequence in 0..s.batch {
                columns(kernel, self.key, [sequence, own], s.keys, s.width, &mut scratch);
                std::mem::swap(&mut scratch.panel, &mut scratch.keys);
                panels(self.value, [sequence, own], 0..s.keys, s.width, &mut scratch.values);
                let out = &mut out[sequence * s.rows..][..s.rows];
                for (member, softmax) in softmax.chunks_mut(2 * s.batch * s.rows).enumerate() {
                    let softmax = &mut softmax[2 * sequence * s.rows..][..2 * s.rows];
                    let mut of_head = within(out, member * s.width, s.width);
                    self.forward_head(
                        kernel,
                        &mut scratch,
                        [sequence, own * s.group() + member],
                        &mut of_head,
                        softmax,
                    );
                }
            }
            SCRATCH.set(scratch);
        });
    }

    fn forward_head(
        &self,
        kernel: Kernel,
        scratch: &mut Scratch,
        place: [usize; 2],
        out: &mut [&mut [f32]],
        softmax: &mut [f32],
    ) {
        let (s, stride) = (self.sizes, self.sizes.stride());
        for (block, (out, softmax)) in out.chunks_mut(ROWS).zip(softmax.chunks_mut(2 * ROWS)).enumerate() {
            let first = block * ROWS;
            self.products(
                kernel,
                self.query,
                &scratch.keys,
                place,
                first..first + out.len(),
                &mut scratch.queries,
                &mut scratch.weights,
            );
            let Scratch { weights, limits, .. } = scratch;
            self.limits(place[0], limits);
            for (row, (weights, kept)) in weights.chunks_mut(stride).zip(softmax.chunks_mut(2)).enumerate() {
                let weights = &mut weights[..s.keys];
                kept.copy_from_slice(&rows::softmax(kernel, weights, self.scores(place[1], first + row, limits)));
                if let Some((drops, key)) = self.drops(place, first + row) {
                    rows::drop(kernel, weights, drops, key);
                }
            }
            multiply(kernel, weights, stride, &scratch.values, s.keys, out);
        }
    }

    /// Adds what the gradient of the result, `dy`, is for its inputs, to theirs.
    pub(crate) fn backward(&self, kernel: Kernel, dy: Heads<'_>, softmax: &[f32], gradients: Gradients<'_>) {
        let s = self.sizes;
        let query = split_heads(gradients.query, s.heads * s.width, s.key_heads);
        let key = split_heads(gradients.key, s.key_heads * s.width, s.key_heads);
        let value = split_heads(gradients.value, s.key_heads * s.width, s.key_heads);
        let mut bias = gradients.bias.map(|bias| bias.chunks_mut(s.group() * s.rows * s.keys));
        let bias: Vec<_> = (0..s.key_heads).map(|_| bias.as_mut().and_then(Iterator::next)).collect();
        let softmax = softmax.chunks(2 * s.group() * s.batch * s.rows);
        let parts = query.into_iter().zip(key).zip(value).zip(bias).zip(softmax).enumerate().collect();
        threads::each(parts, |(own, ((((query, key), value), bias), softmax))| {
            let mut part = Part { query, key, value, bias, softmax };
            let mut scratch = SCRATCH.take();
            for sequence in 0..s.batch {
                self.backward_sequence(kernel, &mut scratch, [sequence, own], dy, &mut part);
            }
            SCRATCH.set(scratch);
        });
    }

    fn backward_sequence(
        &self,
        kernel: Kernel,
        scratch: &mut Scratch,
        [sequence, own]: [usize; 2],
        dy: Heads<'_>,
        part: &mut Part<'_>,
    ) {
        let (s, stride) = (self.sizes, self.sizes.stride());
        columns(kernel, self.key, [sequence, own], s.keys, s.width, scratch);
        std::mem::swap(&mut scratch.panel, &mut scratch.keys);
        columns(kernel, self.value, [sequence, own], s.keys, s.width, scratch);
        std::mem::swap(&mut scratch.panel, &mut scratch.values_back);
        panels(self.key, [sequence, own], 0..s.keys, s.width, &mut scratch.keys_back);
        self.limits(sequence, &mut scratch.limits);
        for member in 0..s.group() {
            let place = [sequence, own * s.group() + member];
            let softmax = &part.softmax[2 * (member * s.batch + sequence) * s.rows..][..2 * s.rows];
            for first in (0..s.rows).step_by(ROWS) {
                let block = first..(first + ROWS).min(s.rows);
                let Scratch { keys, values_back, keys_back, queries, gradients, weights, weights_back, .. } = scratch;
                self.products(kernel, self.query, keys, place, block.clone(), queries, weights);
                self.products(kernel, dy, values_back, place, block.clone(), gradients, weights_back);
                for (row, (p, dp)) in weights.chunks_mut(stride).zip(weights_back.chunks_mut(stride)).enumerate() {
                    let (row, p, dp) = (first + row, &mut p[..s.keys], &mut dp[..s.keys]);
                    let scores = self.scores(place[1], row, &scratch.limits);
                    rows::softmax_again(kernel, p, scores, [softmax[2 * row], softmax[2 * row + 1]]);
                    rows::softmax_back(kernel, p, dp, self.drops(place, row), scores);
                    if let Some(bias) = &mut part.bias {
                        let bias = &mut bias[(member * s.rows + row) * s.keys..][..s.keys];
                        rows::sum_rows(kernel, None, dp, bias);
                    }
                    rows::scale(kernel, dp, self.scale);
                }
                if let Some(query) = &mut part.query {
                    let query = &mut query[sequence * s.rows..][block.clone()];
                    multiply(
                        kernel,
                        weights_back,
                        stride,
                        keys_back,
                        s.keys,
                        &mut within(query, member * s.width, s.width),
                    );
                }
                let Scratch { panel, turned, .. } = scratch;
                let mut of_keys = |weights: &[f32], of: Heads<'_>, sums: &mut Option<Vec<&mut [f32]>>| {
                    let Some(sums) = sums else { return };
                    turned.resize(stride, [0; WIDTH]);
                    kernel.turn(cast_slice(weights), stride, turned);
                    panels(of, place, block.clone(), s.width, panel);
                    let sums = &mut sums[sequence * s.keys..][..s.keys];
                    multiply(kernel, cast_slice(turned), WIDTH, panel, block.len(), sums);
                };
                of_keys(weights, dy, &mut part.value);
                of_keys(weights_back, self.query, &mut part.key);
            }
        }
    }

    /// The products of a block of rows with all keys or values, which are given by columns.
    #[expect(clippy::too_many_arguments, reason = "parts of one scratch, borrowed apart")]
    fn products(
        &self,
        kernel: Kernel,
        x: Heads<'_>,
        columns: &Panel,
        [sequence, head]: [usize; 2],
        block: std::ops::Range<usize>,
        copy: &mut Vec<f32>,
        products: &mut Vec<f32>,
    ) {
        let (s, stride) = (self.sizes, self.sizes.stride());
        copy.clear();
        for row in block.clone() {
            copy.extend_from_slice(x.row(sequence, head, row, s.width));
        }
        products.clear();
        products.resize(block.len() * stride, 0.0);
        let mut rows: Vec<&mut [f32]> = products.chunks_mut(stride).map(|row| &mut row[..s.keys]).collect();
        multiply(kernel, copy, s.width, columns, s.width, &mut rows);
    }

    /// The largest score of each key of a sequence.
    fn limits(&self, sequence: usize, limits: &mut Vec<f32>) {
        limits.clear();
        if let Some(padding) = self.padding {
            let padding = &padding[sequence * self.sizes.keys..][..self.sizes.keys];
            limits.extend(padding.iter().map(|hidden| if *hidden { UNSEEN } else { f32::INFINITY }));
        }
    }

    fn scores<'a>(&'a self, head: usize, row: usize, limits: &'a [f32]) -> Scores<'a> {
        let s = self.sizes;
        Scores {
            scale: self.scale,
            bias: self.bias.map(|bias| &bias[(head * s.rows + row) * s.keys..][..s.keys]),
            limits: (!limits.is_empty()).then_some(limits),
            seen: self.causal.map_or(s.keys, |causal| row + causal + 1),
        }
    }

    fn drops(&self, [sequence, head]: [usize; 2], row: usize) -> Option<(&Drops, u32)> {
        self.drops.map(|drops| (drops, drops.row_key(sequence, &[head, row])))
    }
}

/// What of the gradients is for one head of keys.
struct Part<'a> {
    query: Option<Vec<&'a mut [f32]>>,
    key: Option<Vec<&'a mut [f32]>>,
    value: Option<Vec<&'a mut [f32]>>,
    bias: Option<&'a mut [f32]>,
    softmax: &'a [f32],
}

/// Of rows of this width, what each of some heads of keys has of them.
fn of_heads(numbers: &mut [f32], width: usize, key_heads: usize) -> Vec<Vec<&mut [f32]>> {
    let mut parts: Vec<Vec<&mut [f32]>> = (0..key_heads).map(|_| vec![]).collect();
    for row in numbers.chunks_mut(width) {
        parts.iter_mut().zip(row.chunks_mut(width / key_heads)).for_each(|(part, row)| part.push(row));
    }
    parts
}

fn split_heads(numbers: Option<&mut [f32]>, width: usize, key_heads: usize) -> Vec<Option<Vec<&mut [f32]>>> {
    match numbers {
        Some(numbers) => of_heads(numbers, width, key_heads).into_iter().map(Some).collect(),
        None => (0..key_heads).map(|_| None).collect(),
    }
}

/// Some columns of rows.
fn within<'a>(rows: &'a mut [&mut [f32]], first: usize, width: usize) -> Vec<&'a mut [f32]> {
    rows.iter_mut().map(|row| &mut row[first..][..width]).collect()
}

/// Adds the product of rows and panels to `y`.
fn multiply(kernel: Kernel, x: &[f32], stride: usize, panels: &Panel, depth: usize, y: &mut [&mut [f32]]) {
    for (i, panel) in panels.chunks(depth).enumerate() {
        kernel.multiply(false, cast_slice(x), stride, panel, y, i * WIDTH);
    }
}

/// Panels of which these rows are the columns, into `panel`.
fn columns(
    kernel: Kernel,
    x: Heads<'_>,
    [sequence, head]: [usize; 2],
    count: usize,
    width: usize,
    scratch: &mut Scratch,
) {
    let Scratch { panel, queries: copy, .. } = scratch;
    panel.resize(count.div_ceil(WIDTH) * width, [0; WIDTH]);
    for (first, panel) in (0..count).step_by(WIDTH).zip(panel.chunks_mut(width)) {
        copy.clear();
        for row in first..(first + WIDTH).min(count) {
            copy.extend_from_slice(x.row(sequence, head, row, width));
        }
        kernel.turn(cast_slice(copy), width, panel);
    }
}

/// Panels of which these rows are the rows.
fn panels(
    x: Heads<'_>,
    [sequence, head]: [usize; 2],
    rows: std::ops::Range<usize>,
    width: usize,
    panels: &mut Vec<[u32; WIDTH]>,
) {
    panels.resize(rows.len() * width.div_ceil(WIDTH), [0; WIDTH]);
    for (first, panel) in (0..width).step_by(WIDTH).zip(panels.chunks_mut(rows.len())) {
        let of = first..(first + WIDTH).min(width);
        for (row, words) in rows.clone().zip(panel) {
            words[..of.len()].copy_from_slice(cast_slice(&x.row(sequence, head, row, width)[of.clone()]));
        }
    }
}
