//! The largest of a product's outputs without most of its weight: a copy in 4 bits tells which rows cannot have it.
//!
//! A greedy step of decoding wants of the head's outputs the largest alone, and the head in 16 bits is a good part of what a step
//! reads. Its copy is rounded with subtractive dither (Schuchman, IEEE Trans. Commun. Tech. 12, 1964): ŵ = s·(q + d) with a step s
//! for each row and a d in ±½ for each column, drawn when the copy is made. Then ŵ − w is uniform in ±s/2 whatever w is, and
//! independent from column to column, and since sinh(u)/u ≤ exp(u²/6)
//!
//! > P(|Σ (ŵ − w)·x| > c·s·‖x‖) ≤ 2·exp(−6c²)
//!
//! which is below 4·10⁻²⁰ for the c that is used: one row in 10¹⁴ steps of a vocabulary of 128,000, were there as many as would
//! make the bound exact. What else is rounded on the way is bounded without chance. A row is left out only if it stays below an
//! output that is known, so what is found is the largest of the outputs themselves, to the bit, the first where several are equal.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Mutex;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::halves;
use super::workers::{Workers, spread};
use super::{Alone, BLOCK, Inputs, LARGEST_ACTIVATION, LARGEST_BLOCK, Matrix, Product, Weights, products_with};
use crate::{Code, CompactBf16, Float, Instructions, QuantState, Quantized, Scales};

/// c above.
const CERTAIN: f64 = 2.75;
/// Largest w/s, so that with ½ for the dither and ½ for rounding it stays within the 16 levels −7½ to 7½.
const LARGEST: f32 = 7.0;
const LARGEST_LEVEL: f32 = 7.5;
/// Rows that are coded, or computed exactly, at a time.
const ROWS: usize = 64;
/// Of so many rows one may be left to compute; with more the whole product is as good.
const FEW: usize = 8;
/// Outputs that are looked at together.
const LINE: usize = 16;

/// A copy of W [out, in].
pub struct Screen {
    /// Levels q/7½, scaled by 7½·s.
    coarse: Quantized,
    steps: Vec<f32>,  // s [out]
    dither: Vec<f32>, // d [in]
}

/// Some rows on their way.
struct Part<'a> {
    values: &'a [bf16],
    packed: &'a mut [u8],
    steps: &'a mut [f32],
}

impl Screen {
    /// None where it would not do: rows that are no whole blocks, values that are no finite numbers, a processor without fast
    /// products.
    ///
    /// # Shapes
    /// `values` [out, width], row by row
    pub fn new(values: &[bf16], width: usize, workers: &dyn Workers) -> Option<Self> {
        let whole = width > 0 && width.is_multiple_of(BLOCK) && values.len().is_multiple_of(width);
        if !whole || values.is_empty() || !Self::is_taken() {
            return None;
        }
        let out = values.len() / width;
        let dither: Vec<f32> = (0..width).map(|_| rand::random::<f32>() - 0.5).collect();
        let (mut packed, mut steps) = (vec![0u8; out * width / 2], vec![0f32; out]);
        let parts = values.chunks(ROWS * width).zip(packed.chunks_mut(ROWS * width / 2)).zip(steps.chunks_mut(ROWS));
        let parts: Vec<Mutex<Part<'_>>> =
            parts.map(|((values, packed), steps)| Mutex::new(Part { values, packed, steps })).collect();
        spread(workers, parts.len(), &|part| {
            // Nobody else takes this part; a panic elsewhere ends the whole.
            let Ok(mut part) = parts[part].lock() else { return };
            let Part { values, packed, steps } = &mut *part;
            let rows = values.chunks_exact(width).zip(packed.chunks_exact_mut(width / 2));
            rows.zip(steps.iter_mut()).for_each(|((values, packed), step)| *step = code(values, &dither, packed));
        });
        drop(parts);
        if steps.iter().any(|step| !step.is_finite()) {
            return None;
        }
        // Every row has one scale: blocks as large as may be, of which it has whole ones.
        let blocksize = 1 << width.trailing_zeros();
        let scales =
            steps.iter().flat_map(|step| std::iter::repeat_n(step * LARGEST_LEVEL, width / blocksize)).collect();
        let state = QuantState { code: Code::Nf4, blocksize, dtype: Float::F32, shape: vec![out, width], nested: None };
        let levels = std::array::from_fn(|number| (number as f32 - LARGEST_LEVEL) / LARGEST_LEVEL);
        let coarse = Quantized::new(&state, Some(levels), packed.into(), Scales::Single(scales)).ok()?;
        Some(Self { coarse, steps, dither })
    }

    /// Whether one is of use on this processor.
    pub fn is_taken() -> bool {
        super::is_fast()
    }

    pub fn out(&self) -> usize {
        self.steps.len()
    }

    pub fn width(&self) -> usize {
        self.dither.len()
    }

    /// What is kept.
    pub fn size_bytes(&self) -> usize {
        let scales = match self.coarse.scales() {
            Scales::Single(scales) => scales.len(),
            Scales::Nested { .. } | Scales::Affine { .. } => 0, // none is made
        };
        self.coarse.packed().len() + (scales + self.steps.len() + self.dither.len()) * size_of::<f32>()
    }

    /// Of each row of x the place of the largest output of `weights`, which this was made of: the first, where several are equal.
    /// None where too many might be it, or x has what is no finite number. `room` is used again and again.
    ///
    /// # Panics
    /// `weights` or x have other sides.
    pub fn largest(
        &self,
        weights: Weights<'_>,
        x: &mut Inputs,
        room: &mut Vec<f32>,
        workers: &dyn Workers,
    ) -> Vec<Option<u32>> {
        self.largest_with(weights, x, room, workers, Instructions::detect())
    }

    /// With given instructions, for comparing.
    pub(super) fn largest_with(
        &self,
        weights: Weights<'_>,
        x: &mut Inputs,
        room: &mut Vec<f32>,
        workers: &dyn Workers,
        instructions: Instructions,
    ) -> Vec<Option<u32>> {
        let (out, rows) = (self.out(), x.rows());
        assert_eq!(x.width(), self.width(), "the copy and x differ in width");
        let Some(coarse) = Matrix::new(&self.coarse) else { return vec![None; rows] };
        x.prepare_for(instructions, true, workers);
        room.resize(rows * out, 0.0);
        let product = Product { weights: Weights::FourBit(coarse), bias: None, low_rank: &[], y: room };
        products_with(x, &mut [product], workers, instructions);
        let exact = Exact { weights, x, instructions, out };

        let candidates: Vec<Mutex<Vec<u32>>> = (0..rows).map(|_| Mutex::default()).collect();
        spread(workers, rows, &|row| {
            let outputs = &room[row * out..][..out];
            if let Ok(mut candidates) = candidates[row].lock() {
                let values = multiplied(x.row(row), instructions);
                *candidates = self.candidates(&values, outputs, |best| exact.output(row, best));
            }
        });
        let candidates: Vec<Vec<u32>> =
            candidates.into_iter().map(|row| row.into_inner().unwrap_or_default()).collect();

        let tasks: Vec<(usize, &[u32])> = candidates
            .iter()
            .enumerate()
            .flat_map(|(row, all)| all.chunks(ROWS).map(move |some| (row, some)))
            .collect();
        let best: Vec<Mutex<Option<(u32, f32)>>> = tasks.iter().map(|_| Mutex::default()).collect();
        spread(workers, tasks.len(), &|task| {
            let (row, some) = tasks[task];
            if let Ok(mut best) = best[task].lock() {
                *best = exact.best(row, some);
            }
        });
        let mut largest: Vec<Option<(u32, f32)>> = vec![None; rows];
        for ((row, _), best) in tasks.iter().zip(best) {
            largest[*row] = better(largest[*row], best.into_inner().ok().flatten());
        }
        largest.into_iter().map(|found| found.filter(|(_, output)| output.is_finite()).map(|(at, _)| at)).collect()
    }

    /// The rows that may have the largest output. `coarse`: outputs of the copy without its dither; `exact` gives one of W's own.
    fn candidates(&self, x: &[f32], coarse: &[f32], exact: impl Fn(u32) -> f32) -> Vec<u32> {
        let (dither, bound) = (self.of_dither(x), bound(x));
        let guess = self.first_largest(coarse, dither);
        let known = exact(guess);
        if !bound.is_finite() || !known.is_finite() {
            return Vec::new();
        }
        let mut found = Vec::new();
        let most = dither + bound;
        let lines = coarse.chunks(LINE).zip(self.steps.chunks(LINE));
        for (first, (coarse, steps)) in (0u32..).step_by(LINE).zip(lines) {
            let may_be = |(y, step): (&f32, &f32)| y + step * most >= known;
            // Without a branch for each, since hardly any line has one.
            if coarse.iter().zip(steps).fold(false, |any, pair| any | may_be(pair)) {
                found.extend(
                    (first..).zip(coarse.iter().zip(steps)).filter(|(_, pair)| may_be(*pair)).map(|(at, _)| at),
                );
            }
        }
        if found.len() > self.out().div_ceil(FEW) { Vec::new() } else { found }
    }

    /// Where the copy's own output is largest.
    fn first_largest(&self, coarse: &[f32], dither: f32) -> u32 {
        let larger = |largest: f32, y: f32| if y > largest { y } else { largest };
        let mut lanes = [f32::NEG_INFINITY; LINE];
        for (coarse, steps) in coarse.chunks(LINE).zip(self.steps.chunks(LINE)) {
            for ((largest, y), step) in lanes.iter_mut().zip(coarse).zip(steps) {
                *largest = larger(*largest, y + step * dither);
            }
        }
        let largest = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
        let place = coarse.iter().zip(&self.steps).position(|(y, step)| y + step * dither == largest);
        place.unwrap_or(0) as u32
    }

    /// Σ d·x
    fn of_dither(&self, x: &[f32]) -> f32 {
        x.iter().zip(&self.dither).map(|(x, d)| f64::from(*x) * f64::from(*d)).sum::<f64>() as f32
    }
}

/// What products take for a row of x: tiles round it to bf16, the copy's and W's own alike.
fn multiplied(x: &[f32], instructions: Instructions) -> Cow<'_, [f32]> {
    match instructions {
        Instructions::Amx => x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
        _ => Cow::Borrowed(x),
    }
}

/// How far the copy's output, in steps of its row, may lie from the weight's own, both as they are computed.
fn bound(x: &[f32]) -> f32 {
    let (mut squares, mut magnitudes, mut rounded) = (0f64, 0f64, 0f64);
    for block in x.chunks(BLOCK) {
        let sum: f64 = block.iter().map(|x| f64::from(x.abs())).sum();
        let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        squares += block.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        magnitudes += sum;
        // An activation is off by half of a multiple of this, and there are as many as the block has.
        let multiple = (f64::from(largest) / f64::from(LARGEST_ACTIVATION)).max(sum / f64::from(LARGEST_BLOCK));
        rounded += multiple / 2.0 * BLOCK as f64;
    }
    let level = f64::from(LARGEST_LEVEL);
    // Levels are off by 2⁻¹⁵ of the largest, W's own products by 2⁻¹⁷ of each, and sums in f32 of thousands by less than 2⁻¹⁵.
    let others = level * magnitudes / f64::from(1 << 13);
    (CERTAIN * squares.sqrt() + level * rounded + others) as f32
}

/// [`code_row`] by the processor's vectors: a head has hundreds of millions of values, and rounding one is a call without them.
fn code(values: &[bf16], dither: &[f32], packed: &mut [u8]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        unsafe fn vectors(values: &[bf16], dither: &[f32], packed: &mut [u8]) -> f32 {
            code_row(values, dither, packed)
        }
        if super::avx2::available() {
            // SAFETY: just looked at.
            return unsafe { vectors(values, dither, packed) };
        }
    }
    code_row(values, dither, packed)
}

/// Gives the row's step, which is no number where one of its values is none.
#[inline(always)]
fn code_row(values: &[bf16], dither: &[f32], packed: &mut [u8]) -> f32 {
    if !values.iter().all(|value| value.is_finite()) {
        return f32::NAN;
    }
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.to_f32().abs()));
    let mut step = (largest / LARGEST).max(f32::MIN_POSITIVE);
    if super::has_tiles() {
        step = in_four_bits(step);
    }
    let number = |value: bf16, dither: f32| ((value.to_f32() / step - dither).floor() + 8.0).clamp(0.0, 15.0) as u8;
    for ((pair, dither), byte) in values.as_chunks::<2>().0.iter().zip(dither.as_chunks::<2>().0).zip(packed) {
        *byte = number(pair[0], dither[0]) << 4 | number(pair[1], dither[1]);
    }
    step
}

/// The next number of four significant bits. A level has as many, q + ½, so that tiles, which round their product to the eight of
/// bf16, have it as it is.
fn in_four_bits(step: f32) -> f32 {
    const REST: u32 = (1 << 20) - 1;
    f32::from_bits((step.to_bits() + REST) & !REST)
}

/// The larger output, or the first of equals.
fn better(one: Option<(u32, f32)>, other: Option<(u32, f32)>) -> Option<(u32, f32)> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.1.total_cmp(&one.1).is_gt() { other } else { one }),
        (one, other) => one.or(other),
    }
}

/// What a thread computes outputs exactly in.
#[derive(Default)]
struct Room {
    rows: Vec<bf16>, // some of W
    x: Inputs,       // one row
    outputs: Vec<f32>,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Outputs of W itself, with the bits that [`super::products`] gives them.
struct Exact<'a> {
    weights: Weights<'a>,
    x: &'a Inputs,
    instructions: Instructions,
    out: usize,
}

impl Exact<'_> {
    fn output(&self, row: usize, at: u32) -> f32 {
        self.best(row, &[at]).map_or(f32::NAN, |(_, output)| output)
    }

    /// The largest output among some of a row of x.
    fn best(&self, row: usize, some: &[u32]) -> Option<(u32, f32)> {
        let width = self.x.width();
        ROOM.with_borrow_mut(|Room { rows, x, outputs }| {
            rows.resize(some.len() * width, bf16::ZERO);
            for (at, to) in some.iter().zip(rows.chunks_exact_mut(width)) {
                self.copy(*at as usize, to);
            }
            x.resize(1, width).copy_from_slice(self.x.row(row));
            x.prepare_for(self.instructions, false, &Alone);
            outputs.resize(some.len(), 0.0);
            let product = Product { weights: Weights::Bf16(rows), bias: None, low_rank: &[], y: outputs };
            products_with(x, &mut [product], &Alone, self.instructions);
            some.iter().zip(outputs).map(|(at, output)| Some((*at, *output))).reduce(better).flatten()
        })
    }

    /// A row of W.
    fn copy(&self, at: usize, to: &mut [bf16]) {
        match &self.weights {
            Weights::Bf16(values) => {
                assert_eq!(values.len(), self.out * to.len(), "the copy and the weight differ in size");
                to.copy_from_slice(&values[at * to.len()..][..to.len()]);
            }
            #[cfg(target_arch = "x86_64")]
            Weights::Compact(compact) => {
                assert!(CompactBf16::is_taken() && (compact.out(), compact.width()) == (self.out, to.len()));
                // SAFETY: the processor has what takes one.
                unsafe { halves::decode(compact, at, to) };
            }
            _ => unreachable!("what a screen is made of is in 16 bits"),
        }
    }
}

#[cfg(test)]
mod tests;
