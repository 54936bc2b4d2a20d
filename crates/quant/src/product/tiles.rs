//! A product cut into tiles of outputs, which the workers take one after another.

use std::cell::RefCell;

use half::bf16;

use super::activations::Shared;
use super::low_rank::{LowRank, Projected};
use super::workers::{Runs, Workers};
use super::{
    BLOCK, Columns, DENSE_OUT, DENSE_ROWS, Dense, GROUP, Inputs, Kernels, Lanes, Matrix, Part, STRIDE, Weights,
    kernels, total,
};
#[cfg(target_arch = "x86_64")]
use super::{avx2, halves, strip};
use crate::{CompactBf16, Instructions};

/// Outputs of one tile.
const TILE: usize = 16;
/// The same where the processor has tiles of its own.
#[cfg(target_arch = "x86_64")]
const STRIP: usize = super::amx::OUTS;
#[cfg(not(target_arch = "x86_64"))]
const STRIP: usize = TILE;
/// Bytes of x that stay in the first-level cache while the rows of a tile go by.
const NEAR: usize = 28 << 10;

/// y [M, out] = x·Wᵀ + bias, with low-rank terms for some rows.
pub struct Product<'a> {
    pub weights: Weights<'a>,
    pub bias: Option<&'a [bf16]>,
    pub low_rank: &'a [LowRank<'a>],
    /// [M, out], row by row.
    pub y: &'a mut [f32],
}

impl Product<'_> {
    fn out(&self, x: &Inputs) -> usize {
        match self.weights {
            Weights::FourBit(matrix) => matrix.out(),
            Weights::FourBitBack(matrix) => matrix.width(),
            Weights::Bf16(values) => values.len() / x.width().max(1),
            Weights::Compact(compact) => compact.out(),
        }
    }

    fn check(&self, x: &Inputs) {
        let out = self.out(x);
        let whole = match self.weights {
            Weights::FourBit(matrix) => matrix.width() == x.width() && (x.is_quantized() || x.is_tiled()),
            Weights::FourBitBack(matrix) => matrix.out() == x.width() && x.is_for_columns_avx2(),
            Weights::Bf16(values) => values.len() == out * x.width(),
            Weights::Compact(compact) => compact.width() == x.width() && x.is_halved(),
        };
        assert!(whole, "weights and input differ in width, or the input was not prepared");
        assert_eq!(self.y.len(), x.rows() * out, "output and rows differ in length");
        assert!(self.bias.is_none_or(|bias| bias.len() == out), "bias and output differ in length");
        for term in self.low_rank {
            let fits = term.a.len() == term.rank * x.width() && term.b.len() == out * term.rank;
            assert!(fits && term.rows.iter().all(|row| *row < x.rows()), "low-rank factors do not fit");
        }
    }
}

/// Makes all products of the same x at once.
///
/// # Panics
/// Lengths that do not fit; 4-bit weights with an input that was not prepared for them.
pub fn products(x: &Inputs, products: &mut [Product<'_>], workers: &dyn Workers) {
    products_with(x, products, workers, Instructions::detect());
}

/// With given instructions, for comparing: what [`products`] does, but that an input that was prepared for tiles is
/// multiplied by them.
///
/// # Panics
/// As [`products`].
pub fn products_with(x: &Inputs, products: &mut [Product<'_>], workers: &dyn Workers, instructions: Instructions) {
    let kernels = kernels(x, instructions);
    let terms: Vec<&[LowRank<'_>]> = products.iter().map(|product| product.low_rank).collect();
    let mut projected = Projected::new(terms.into_iter(), x.rows(), workers.count());
    let values = projected.output();
    let height = match kernels.columns {
        _ if x.is_tiled() => STRIP,
        Some(columns) if x.is_for_columns() => columns.outs,
        _ => TILE,
    };
    let mut tiles = 0;
    let parts = products.iter_mut().map(|product| {
        product.check(x);
        let out = product.out(x);
        let first = tiles;
        tiles += out.div_ceil(height);
        Output { first, out, weights: product.weights, bias: product.bias, y: Shared(product.y.as_mut_ptr()) }
    });
    let parts: Vec<Output<'_>> = parts.collect();
    let runs = Runs::new(tiles, workers.count());
    let at = |tile: usize| {
        let product = parts.partition_point(|part| part.first <= tile) - 1;
        let part = &parts[product];
        let first = (tile - part.first) * height;
        Tile { x, part, product, first, count: height.min(part.out - first), projected: &projected, values: &values }
    };
    let work = || {
        projected.compute(x, kernels, &values);
        #[cfg(target_arch = "x86_64")]
        if x.is_tiled() {
            let mut worker = strip::Worker::new(x);
            return runs.take(|tile| at(tile).with_low_rank(kernels, |tile| worker.work(tile)));
        }
        runs.take(|tile| at(tile).with_low_rank(kernels, |tile| tile.by_lanes(kernels)));
    };
    if tiles <= 1 { work() } else { workers.run(&work) }
}

/// One product among those that are made together.
pub(super) struct Output<'a> {
    /// Number of its first tile.
    first: usize,
    pub out: usize,
    pub weights: Weights<'a>,
    pub bias: Option<&'a [bf16]>,
    pub y: Shared<f32>,
}

/// Outputs `first..first + count` of a product.
pub(super) struct Tile<'a> {
    pub x: &'a Inputs,
    pub part: &'a Output<'a>,
    pub product: usize,
    pub first: usize,
    pub count: usize,
    projected: &'a Projected<'a>,
    values: &'a Shared<f32>,
}

/// Scales and sums of a tile's rows.
#[derive(Default)]
struct Room {
    scales: Vec<f32>,
    sums: Vec<Lanes>, // [tile, rows of a group]
}

impl Room {
    /// Sums of a tile and so many rows of x, all zero.
    fn zero(&mut self, rows: usize) {
        self.sums.clear();
        self.sums.resize(TILE * rows, [0.0; 8]);
    }
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
    static DECODED: RefCell<Vec<bf16>> = const { RefCell::new(Vec::new()) };
}

impl Tile<'_> {
    /// The tile's own outputs by `work`, and then what its rows get in addition: the same sums whichever way they came.
    fn with_low_rank(&self, kernels: Kernels, mut work: impl FnMut(&Self)) {
        self.projected.ask(self.product, self.part.out, self.first..self.first + self.count);
        work(self);
        self.projected.add_to(self.product, self.part.out, self.first, kernels, self.values, |row| self.outputs(row));
    }

    /// By the kernels for lanes of a register.
    fn by_lanes(&self, kernels: Kernels) {
        match &self.part.weights {
            Weights::FourBit(matrix) => match kernels.columns {
                // SAFETY: chosen for this processor; x is made for columns.
                Some(Columns { work, .. }) if self.x.is_for_columns() => unsafe { work(self, matrix) },
                _ => self.four_bit(matrix, kernels),
            },
            Weights::FourBitBack(matrix) => {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an input is made for AVX2's columns only where there is AVX2, of whole blocks.
                unsafe {
                    avx2::columns::work_back(self, matrix);
                }
                #[cfg(not(target_arch = "x86_64"))]
                let _ = matrix;
            }
            Weights::Bf16(weights) => self.dense(weights, kernels),
            Weights::Compact(compact) => self.compact(compact),
        }
    }

    /// Each row of the weight along a register.
    fn four_bit(&self, matrix: &Matrix<'_>, kernels: Kernels) {
        ROOM.with_borrow_mut(|room| {
            let (blocks, padded) = (matrix.width() / BLOCK, matrix.padded_blocks());
            room.scales.resize((TILE * padded).max(room.scales.len()), 0.0);
            matrix.scales(self.first, self.count, &mut room.scales);
            for group in 0..self.x.groups() {
                let rows = self.x.group_rows(group);
                room.zero(rows);
                for span in spans(blocks, rows) {
                    let part = Part {
                        levels: matrix.levels(),
                        outs: self.count,
                        weights: matrix.strip(self.first, self.count, span.clone()),
                        weight_stride: matrix.width() / 2,
                        blocks: span.len(),
                        scales: &room.scales[span.start..self.count * padded],
                        scale_stride: padded,
                        x: self.x.part(group, span.start, span.len()),
                    };
                    // SAFETY: chosen for this processor; as many sums as rows of both.
                    unsafe { (kernels.packed)(&part, rows, room.sums.as_mut_ptr()) };
                }
                self.finish(group, matrix.unit(), kernels, &mut room.sums);
            }
        });
    }

    fn dense(&self, weights: &[bf16], kernels: Kernels) {
        let (rows, width) = (self.x.rows(), self.x.width());
        #[cfg(target_arch = "x86_64")]
        if self.x.is_halved() {
            return self.by_halves(weights);
        }
        // One row of x: four chains of sums at a time hide the additions' latency. More: some rows of weights by four.
        let (wide, tall) = if rows == 1 { (DENSE_OUT, 1) } else { (kernels.dense_outs, DENSE_ROWS) };
        for at in (0..self.count).step_by(wide) {
            let outs = wide.min(self.count - at);
            let first = self.first + at;
            let weights = &weights[first * width..(first + outs) * width];
            for row in (0..rows).step_by(tall) {
                let members = tall.min(rows - row);
                let x = &self.x.floats()[row * width..(row + members) * width];
                let mut sums = [[0f32; 8]; DENSE_OUT * DENSE_ROWS];
                // SAFETY: chosen for this processor; a row of sums for each pair of rows.
                unsafe { (kernels.dense)(&Dense { weights, x, width }, sums.as_mut_ptr()) };
                for (pair, sums) in sums[..outs * members].iter().enumerate() {
                    self.write(row + pair % members, first + pair / members, total(sums));
                }
            }
        }
    }

    /// Rows of x outside: they are twice as many bytes as the weights.
    #[cfg(target_arch = "x86_64")]
    fn by_halves(&self, weights: &[bf16]) {
        let (rows, width) = (self.x.rows(), self.x.width());
        for row in (0..rows).step_by(halves::ROWS) {
            for at in (0..self.count).step_by(halves::OUTS) {
                let first = self.first + at;
                let outs = halves::OUTS.min(self.count - at);
                self.some_by_halves(&weights[first * width..(first + outs) * width], first, row);
            }
        }
    }

    /// Some outputs, from `first` on, of some rows of x, from `row` on.
    #[cfg(target_arch = "x86_64")]
    fn some_by_halves(&self, weights: &[bf16], first: usize, row: usize) {
        let (rows, width) = (self.x.rows(), self.x.width());
        let Some(x) = self.x.halves(row..rows.min(row + halves::ROWS)) else { return };
        let mut sums = [0.0; halves::OUTS * halves::ROWS];
        // SAFETY: halves are made where the processor has products for them.
        let members = unsafe { halves::Part { weights, width, x }.multiply(&mut sums) };
        for (pair, sum) in sums[..weights.len() / width * members].iter().enumerate() {
            self.write(row + pair % members, first + pair / members, *sum);
        }
    }

    /// A few outputs' weights are decoded at a time, into the first-level cache.
    fn compact(&self, compact: &CompactBf16) {
        #[cfg(target_arch = "x86_64")]
        DECODED.with_borrow_mut(|decoded| {
            let (rows, width) = (self.x.rows(), self.x.width());
            decoded.resize(halves::OUTS * width, bf16::ZERO);
            for at in (0..self.count).step_by(halves::OUTS) {
                let first = self.first + at;
                let outs = halves::OUTS.min(self.count - at);
                for (row, to) in (first..first + outs).zip(decoded.chunks_exact_mut(width)) {
                    // SAFETY: x has halves, so the processor has what it takes.
                    unsafe { halves::decode(compact, row, to) };
                }
                for row in (0..rows).step_by(halves::ROWS) {
                    self.some_by_halves(&decoded[..outs * width], first, row);
                }
            }
        });
        #[cfg(not(target_arch = "x86_64"))]
        let _ = compact;
    }

    /// `sums` [tile, rows of the group]
    fn finish(&self, group: usize, unit: f32, kernels: Kernels, sums: &mut [Lanes]) {
        let rows = self.x.group_rows(group);
        let mut values = [0f32; TILE];
        let values = &mut values[..self.count];
        for at in 0..rows {
            // SAFETY: chosen for this processor; a row's sums lie as many apart as there are rows.
            unsafe { (kernels.totals)(sums[at..].as_ptr(), rows, values) };
            values.iter_mut().for_each(|value| *value *= unit);
            self.write_run(group * GROUP + at, values);
        }
    }

    /// The tile's outputs of a row of y.
    #[expect(clippy::mut_from_ref, reason = "a tile has its outputs to itself, and asks for a row's once at a time")]
    fn outputs(&self, row: usize) -> &mut [f32] {
        // SAFETY: within y, whose length was checked; no other tile has these outputs.
        unsafe { std::slice::from_raw_parts_mut(self.part.y.0.add(row * self.part.out + self.first), self.count) }
    }

    /// A row of x's, all of the tile.
    pub(super) fn write_run(&self, row: usize, values: &[f32]) {
        let y = self.outputs(row);
        y.copy_from_slice(values);
        if let Some(bias) = self.part.bias {
            let bias = &bias[self.first..self.first + self.count];
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias.to_f32());
        }
    }

    #[inline(always)]
    fn write(&self, row: usize, out: usize, value: f32) {
        let value = value + self.part.bias.map_or(0.0, |bias| bias[out].to_f32());
        // SAFETY: within y, whose length was checked; no other tile has this output.
        unsafe { *self.part.y.0.add(row * self.part.out + out) = value };
    }
}

/// Ranges of blocks whose activations stay near while the rows of a tile go by.
fn spans(blocks: usize, rows: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let bytes = BLOCK * rows * 2;
    let step = (NEAR / bytes / STRIDE).max(1) * STRIDE;
    (0..blocks).step_by(step).map(move |first| first..(first + step).min(blocks))
}
