//! y = Σ xᵢ·Wᵢᵀ for the many rows that training has, in bf16, where the processor multiplies that (AVX512-BF16): weights in 4 bits
//! as they lie in memory, and dense ones beside them (LoRA's).
//!
//! A panel, 32 outputs of a weight, is unpacked into the second-level cache, rounded to bf16 as a dequantised weight is
//! ([`unpack`]), and multiplied with block after block of x's rows ([`kernel`]) before the next one: no dequantised weight is ever in
//! memory. The terms of a sum are added up in f32 and rounded once.
//!
//! What an output gets depends on its row of x and the weights alone: neither on the other rows nor on the number of threads.

mod kernel;
mod pack;
mod unpack;

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use super::activations::Shared;
use super::lines::Lines;
use super::workers::{Workers, spread};
use super::{BLOCK, Matrix, halves};
use kernel::Block;

/// Rows of x that are multiplied at a time, and outputs of a panel: as many sums as leave registers for both.
const SIDE: usize = 14;
const OUTS: usize = 32;
/// Values of x that are multiplied with before sums are put aside.
const DEPTH: usize = 2048;
/// Bytes of the panels that are unpacked together: a part of the second-level cache.
const NEAR: usize = 256 << 10;
/// Most panels of those.
const PANELS: usize = 8;
/// Tasks for each thread, about.
const TASKS: usize = 8;
/// Blocks of rows whose values are put beside each other at a time.
const BLOCKS: usize = 160;

/// x [M, width] in bf16.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The rows lie `stride` apart.
    pub values: &'a [bf16],
    pub stride: usize,
    pub width: usize,
}

/// What x is multiplied with.
#[derive(Clone, Copy)]
pub enum Factor<'a> {
    /// x·Wᵀ
    FourBit(Matrix<'a>),
    /// x·W
    FourBitBack(Matrix<'a>),
    /// x·Wᵀ, [out, width] row by row.
    Dense(&'a [bf16]),
    /// x·W, [width, out] row by row.
    DenseBack(&'a [bf16]),
}

#[derive(Clone, Copy)]
pub struct Term<'a> {
    pub x: Rows<'a>,
    pub factor: Factor<'a>,
}

impl Term<'_> {
    fn fits(&self, rows: usize, out: usize) -> bool {
        let Rows { values, stride, width } = self.x;
        let there = rows == 0 || (width <= stride && (rows - 1) * stride + width <= values.len());
        let shape = match self.factor {
            Factor::FourBit(matrix) => (matrix.out(), matrix.width()) == (out, width),
            Factor::FourBitBack(matrix) => (matrix.width(), matrix.out()) == (out, width),
            Factor::Dense(weights) | Factor::DenseBack(weights) => weights.len() == out * width,
        };
        there && shape && width > 0
    }
}

/// y [M, out], or what is added to it.
pub struct Sum<'a> {
    pub terms: &'a [Term<'a>],
    pub out: usize,
    /// Whether y has values that the sum is added to, before it is rounded.
    pub add: bool,
    pub y: &'a mut [bf16],
}

/// What sums are made in, kept from call to call: as many values as some two thousand rows of every x have.
#[derive(Default)]
pub struct Panels {
    packed: Lines,
}

/// Some values of a term's x, and where they lie when packed.
struct Segment {
    term: usize,
    values: Range<usize>,
    /// [blocks, pairs of values, rows of a block], in pairs.
    packed: usize,
}

impl Segment {
    fn pairs(&self) -> usize {
        self.values.len().div_ceil(2)
    }
}

/// How a sum is cut.
struct Cut {
    /// What is multiplied with before sums are put aside.
    steps: Vec<Vec<Segment>>,
    /// Panels that are unpacked together, and values of each.
    panels: usize,
    depth: usize,
    groups: usize,
}

/// Where each x lies when packed, one that several sums have once.
struct Places<'a> {
    inputs: Vec<(Rows<'a>, usize)>,
    size: usize,
    /// Of rows.
    blocks: usize,
}

impl<'a> Places<'a> {
    fn of(&mut self, x: Rows<'a>) -> usize {
        let is_same = |other: &Rows<'_>| {
            std::ptr::eq(other.values, x.values) && (other.stride, other.width) == (x.stride, x.width)
        };
        if let Some((_, first)) = self.inputs.iter().find(|(other, _)| is_same(other)) {
            return *first;
        }
        let first = self.size;
        self.size += self.blocks * SIDE * chunks(x.width).map(|chunk| chunk.len().div_ceil(2)).sum::<usize>();
        self.inputs.push((x, first));
        first
    }
}

/// What a thread works in.
#[derive(Default)]
struct Room {
    weights: Lines,   // [panels, pairs, 32, 2]
    sums: Vec<Block>, // [blocks, panels]
    scales: Vec<f32>,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Whether the processor has them. Where it has tiles a library's products are faster.
pub fn available() -> bool {
    halves::available() && !super::has_tiles()
}

impl Panels {
    /// Makes sums of as many rows each.
    ///
    /// # Panics
    /// There are none of these instructions, a sum without terms, or lengths do not fit.
    pub fn sums(&mut self, rows: usize, sums: &mut [Sum<'_>], workers: &dyn Workers) {
        assert!(halves::available(), "this processor has no products of bf16");
        for sum in sums.iter() {
            assert_eq!(sum.y.len(), rows * sum.out, "output and rows differ in length");
            let fits = !sum.terms.is_empty() && sum.terms.iter().all(|term| term.fits(rows, sum.out));
            assert!(fits, "rows and weights do not fit, or there are none");
        }
        // As near to equal as blocks allow, so that no weight is unpacked for a handful of rows.
        let blocks = rows.div_ceil(SIDE);
        let parts = blocks.div_ceil(BLOCKS);
        for part in 0..parts {
            let (first, end) = (part * blocks / parts, (part + 1) * blocks / parts);
            self.some(first * SIDE..rows.min(end * SIDE), sums, workers);
        }
    }

    fn some<'a>(&mut self, rows: Range<usize>, sums: &mut [Sum<'a>], workers: &dyn Workers) {
        let blocks = rows.len().div_ceil(SIDE);
        let mut places = Places { inputs: Vec::new(), size: 0, blocks };
        let cuts: Vec<Cut> = sums.iter().map(|sum| Cut::new(sum, &mut places, workers.count())).collect();
        self.packed.grow(2 * places.size);
        let inputs = places.inputs;
        let packed = Shared(self.packed.values_mut().as_mut_ptr().cast::<u32>());
        spread(workers, inputs.len() * blocks, &|task| {
            let (packed, (x, first), block) = (&packed, inputs[task / blocks], task % blocks);
            let begin = rows.start + block * SIDE;
            let mut to = first;
            for chunk in chunks(x.width) {
                let pairs = chunk.len().div_ceil(2);
                // SAFETY: looked at by the caller; each block has a place of its own, within the buffer.
                unsafe {
                    pack::block(x, begin..rows.end.min(begin + SIDE), chunk, packed.0.add(to + block * pairs * SIDE))
                };
                to += blocks * pairs * SIDE;
            }
        });
        let packed = packed.0.cast_const();
        let parts: Vec<Part<'_>> = sums
            .iter_mut()
            .zip(&cuts)
            .map(|(sum, cut)| Part {
                terms: sum.terms,
                cut,
                out: sum.out,
                add: sum.add,
                y: Shared(sum.y.as_mut_ptr()),
                packed: Shared(packed.cast_mut()),
                rows: rows.clone(),
            })
            .collect();
        let groups: usize = cuts.iter().map(|cut| cut.groups).sum();
        // Enough tasks for each thread. Rows that are shared out have a weight unpacked once for each part of them.
        let splits = (TASKS / 2 * workers.count()).div_ceil(groups.max(1)).clamp(1, blocks.div_ceil(16));
        spread(workers, groups * splits, &|task| {
            let (mut group, split) = (task / splits, task % splits);
            let Some(part) = parts.iter().find(|part| {
                let own = group < part.cut.groups;
                if !own {
                    group -= part.cut.groups;
                }
                own
            }) else {
                return;
            };
            let blocks = split * blocks / splits..(split + 1) * blocks / splits;
            // SAFETY: looked at by the caller; a group's outputs of some rows are a task's own.
            ROOM.with_borrow_mut(|room| unsafe { part.work(group, blocks, room) });
        });
    }
}

/// Equal parts of so many values, whole blocks but for the last.
fn chunks(width: usize) -> impl Iterator<Item = Range<usize>> {
    let step = width.div_ceil(width.div_ceil(DEPTH).max(1)).next_multiple_of(BLOCK);
    (0..width).step_by(step).map(move |first| first..width.min(first + step))
}

impl Cut {
    fn new<'a>(sum: &Sum<'a>, places: &mut Places<'a>, workers: usize) -> Self {
        let (mut steps, mut depth): (Vec<Vec<Segment>>, usize) = (Vec::new(), 0);
        let mut values = usize::MAX;
        for (term, Term { x, .. }) in sum.terms.iter().enumerate() {
            let mut packed = places.of(*x);
            for chunk in chunks(x.width) {
                let segment = Segment { term, values: chunk, packed };
                let length = 2 * segment.pairs();
                packed += places.blocks * SIDE * segment.pairs();
                // A short one goes with the one before, so that LoRA's takes no step of its own.
                match steps.last_mut() {
                    Some(step) if values.saturating_add(length) <= DEPTH + DEPTH / 8 => {
                        step.push(segment);
                        values += length;
                    }
                    _ => {
                        steps.push(vec![segment]);
                        values = length;
                    }
                }
                depth = depth.max(values);
            }
        }
        let panels = (NEAR / (OUTS * depth.max(1) * size_of::<bf16>())).clamp(1, PANELS);
        // So that nobody waits long for who has the last ones.
        let panels = panels.min(sum.out / (OUTS * TASKS * workers.max(1))).max(1);
        Self { steps, panels, depth, groups: sum.out.div_ceil(OUTS * panels) }
    }
}

/// A sum, as the threads see it.
struct Part<'a> {
    terms: &'a [Term<'a>],
    cut: &'a Cut,
    out: usize,
    add: bool,
    y: Shared<bf16>,
    packed: Shared<u32>,
    rows: Range<usize>,
}

impl Part<'_> {
    /// A group of panels by some blocks of rows.
    ///
    /// # Safety
    /// [`halves::available`]; terms, packed rows and y fit; nobody else has these outputs.
    unsafe fn work(&self, group: usize, blocks: Range<usize>, room: &mut Room) {
        let first_out = group * self.cut.panels * OUTS;
        let panels = (self.out - first_out).div_ceil(OUTS).min(self.cut.panels);
        room.weights.grow(panels * OUTS * self.cut.depth);
        let weights = room.weights.values_mut().as_mut_ptr();
        let steps = self.cut.steps.len();
        if steps > 1 && room.sums.len() < blocks.len() * panels {
            room.sums.resize_with(blocks.len() * panels, Block::default);
        }
        let mut alone = Block::default();
        for (number, step) in self.cut.steps.iter().enumerate() {
            for panel in 0..panels {
                let mut to = weights.wrapping_add(panel * OUTS * self.cut.depth);
                for Segment { term, values, .. } in step {
                    let panel =
                        unpack::Panel { first: first_out + panel * OUTS, out: self.out, values: values.clone() };
                    // SAFETY: as the caller says; there is room for the panel.
                    unsafe { panel.unpack(self.terms[*term], to.cast(), &mut room.scales) };
                    to = to.wrapping_add(OUTS * values.len().next_multiple_of(2));
                }
            }
            for (at, block) in blocks.clone().enumerate() {
                for panel in 0..panels {
                    let sums = if steps > 1 { &mut room.sums[at * panels + panel] } else { &mut alone };
                    let mut weights = weights.cast_const().wrapping_add(panel * OUTS * self.cut.depth);
                    for (pair, segments) in step.chunks(2).enumerate() {
                        let x = |segment: Option<&Segment>| {
                            let Some(segment) = segment else { return (std::ptr::null(), 0) };
                            let pairs = segment.pairs();
                            (self.packed.0.wrapping_add(segment.packed + block * pairs * SIDE).cast_const(), pairs)
                        };
                        let x = [x(segments.first()), x(segments.get(1))];
                        // SAFETY: as above; the segments' rows are packed there.
                        unsafe { sums.add(number + pair == 0, x, weights) };
                        weights = weights.wrapping_add(OUTS * 2 * (x[0].1 + x[1].1));
                    }
                    if number + 1 == steps {
                        let (row, out) = (self.rows.start + block * SIDE, first_out + panel * OUTS);
                        let (rows, outs) = (SIDE.min(self.rows.end - row), OUTS.min(self.out - out));
                        // SAFETY: as above.
                        unsafe { sums.write(rows, outs, self.add, self.y.0.add(row * self.out + out), self.out) };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
