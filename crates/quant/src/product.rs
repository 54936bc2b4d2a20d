//! y = x·Wᵀ for the few rows of x that a step of serving has, W read once as it lies in memory: in 4 bits (arXiv 2305.14314
//! eq. 5) or bf16, with low-rank terms of some rows' own (LoRA, arXiv 2106.09685 eq. 3; many at once as in Punica,
//! arXiv 2310.18547).
//!
//! A dequantised weight is never in memory. Both factors become 16-bit integers whose products are added in 32 bits a block
//! of [`BLOCK`] at a time and scaled in f32:
//!
//! * a level of the code, |v| ≤ 1, is rounded to a multiple of 2⁻¹⁴: within 2⁻¹⁵ of the block's scale;
//! * an activation is rounded to a multiple of 1/16383 of its block's largest, or of 1/130,900 of its block's magnitudes together, if
//!   that is coarser: within 2⁻¹⁵ of the largest where one stands out, within 2⁻¹² where all are as large. Then the 64 products of a
//!   block add up in 32 bits, and are brought under their scales once.
//!
//! bf16, which has 8 significant bits, rounds a dequantised weight more coarsely; the tests hold the error against f64
//! below an eighth of that of the way over a bf16 weight. What a row gets depends on nothing but the row: neither on the other rows,
//! nor on the number of threads, nor on the vectors that the processor has.
//!
//! A weight in bf16 is multiplied by f32, or by two halves of bf16 that have 16 significant bits where the processor multiplies
//! those.
//!
//! A processor's tiles (AMX) multiply what is unpacked and rounded to bf16: many times as fast for many rows, with other bits than the
//! rest; in them too a row is all that its result depends on.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod chunks;
#[cfg(target_arch = "x86_64")]
mod columns;
#[cfg(target_arch = "x86_64")]
mod halves;
mod integers;
#[cfg(target_arch = "x86_64")]
mod layout;
mod lines;
mod low_rank;
mod matrix;
#[cfg(target_arch = "x86_64")]
mod panels;
mod portable;
#[cfg(target_arch = "x86_64")]
mod scales;
mod screen;
#[cfg(target_arch = "x86_64")]
mod strip;
mod tiles;
mod workers;

pub use activations::Inputs;
pub use low_rank::LowRank;
pub use matrix::{Matrix, Weights};
#[cfg(target_arch = "x86_64")]
pub use panels::{Factor, Panels, Rows, Sum, Term};
pub use screen::Screen;
pub use tiles::{Product, products, products_with};
pub use workers::{Alone, Workers, spread};

use crate::Instructions;

/// Values that share one scale of an activation: as many as the smallest block of a weight that is taken.
pub const BLOCK: usize = 64;
/// Blocks that a kernel takes at a time.
const STRIDE: usize = 8;
/// Rows of x that a kernel takes at a time.
const GROUP: usize = 8;
/// Rows of weights and of x that the kernel for bf16 takes at a time: as many sums as registers hold.
const DENSE_OUT: usize = 4;
const DENSE_ROWS: usize = 4;
/// Largest magnitude of an activation as an integer. A lane of 32 bits adds 8 products of a block:
/// 8 · 2¹⁴ · 16383 = 2³¹ − 2¹⁷ < 2³¹ − 1.
const LARGEST_ACTIVATION: f32 = 16383.0;
/// Largest sum of a block's magnitudes as integers where a lane adds all of its products: with [`LARGEST_LEVEL`] and what
/// rounding adds, half for each, below 2³¹.
const LARGEST_BLOCK: f32 = 130_900.0;
/// A level of magnitude 1 as an integer.
const LARGEST_LEVEL: f32 = 16384.0;

/// Calls a kernel that is compiled for each number of x's rows, of which there are [`GROUP`] at most.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($kernel:ident[$rows:expr]($($argument:expr),*)) => {
        match $rows {
            1 => $kernel::<1>($($argument),*),
            2 => $kernel::<2>($($argument),*),
            3 => $kernel::<3>($($argument),*),
            4 => $kernel::<4>($($argument),*),
            5 => $kernel::<5>($($argument),*),
            6 => $kernel::<6>($($argument),*),
            7 => $kernel::<7>($($argument),*),
            _ => $kernel::<8>($($argument),*),
        }
    };
}
#[cfg(target_arch = "x86_64")]
use by_rows;
#[cfg(target_arch = "x86_64")]
const _: () = assert!(GROUP == 8, "a kernel for each number of rows");

/// Eight sums side by side, as a register holds them.
type Lanes = [f32; 8];

/// The functions of one instruction set.
#[derive(Clone, Copy)]
struct Kernels {
    /// Adds w·x of each row of a part of a 4-bit weight and each of a group of rows of x, to sums [rows of w, rows of x].
    packed: unsafe fn(&Part<'_>, rows: usize, sums: *mut Lanes),
    /// For an x that was made for columns.
    columns: Option<Columns>,
    /// Adds w·x of a few rows of weights in bf16 and a few of x: sums of the first weight's row, then the second's.
    dense: unsafe fn(&Dense<'_>, sums: *mut Lanes),
    /// Rows of weights that `dense` is best given with several rows of x: at most [`DENSE_OUT`].
    dense_outs: usize,
    /// Adds values·b to y, row by row of `b`, of which there are as many as values, `stride` apart and as long as y.
    expand: unsafe fn(b: *const half::bf16, stride: usize, values: &[f32], y: &mut [f32]),
    /// The [`total`] of each of so many sums that are `stride` apart.
    totals: unsafe fn(sums: *const Lanes, stride: usize, out: &mut [f32]),
}

/// What makes a tile of a 4-bit weight's outputs, for all rows of x.
#[derive(Clone, Copy)]
struct Columns {
    work: unsafe fn(&tiles::Tile<'_>, &Matrix<'_>),
    /// Outputs of a tile.
    outs: usize,
}

/// The code book as integers, and their low and high bytes.
#[derive(Clone, Copy)]
struct Levels {
    values: [i16; 16],
    low: [u8; 16],
    high: [u8; 16],
}

/// Some blocks of a few rows of a packed weight, and the same blocks of a group of rows of x.
struct Part<'a> {
    levels: &'a Levels,
    /// Rows of the weight.
    outs: usize,
    /// The rows from the first of the blocks on, which lie `weight_stride` apart.
    weights: &'a [u8],
    weight_stride: usize,
    blocks: usize,
    /// One a block, padded with zeros to whole strides; the rows' lie `scale_stride` apart.
    scales: &'a [f32],
    scale_stride: usize,
    x: Activations<'a>,
}

impl<'a> Part<'a> {
    /// Weights and scales of one row.
    #[inline(always)]
    fn row(&self, out: usize) -> (&'a [u8], &'a [f32]) {
        let (weights, scales) = (&self.weights[out * self.weight_stride..], &self.scales[out * self.scale_stride..]);
        (&weights[..self.blocks * BLOCK / 2], &scales[..self.blocks.next_multiple_of(STRIDE)])
    }
}

/// Blocks of a group of rows of x: block by block, in each row by row.
#[derive(Clone, Copy)]
struct Activations<'a> {
    values: &'a [i16],
    /// Those of the first row, padded to whole strides; the rows' lie `scale_stride` apart.
    scales: &'a [f32],
    scale_stride: usize,
}

/// At most [`DENSE_OUT`] rows of weights and [`DENSE_ROWS`] of x, row after row of `width` values.
struct Dense<'a> {
    weights: &'a [half::bf16],
    x: &'a [f32],
    width: usize,
}

impl Dense<'_> {
    /// Rows of weights, and of x.
    fn shape(&self) -> (usize, usize) {
        (self.weights.len() / self.width, self.x.len() / self.width)
    }
}

/// Element of a block that stands in a place of the kernels' order: AVX2 unpacks the numbers of 32 bytes so.
const fn element(place: usize) -> usize {
    let (vector, at) = (place / 16, place % 16);
    let byte = (vector & 1) * 8 + if at < 8 { at } else { at + 8 };
    2 * byte + vector / 2
}

/// The kernels for x as it was made, by these instructions where that leaves a choice.
fn kernels(x: &Inputs, instructions: Instructions) -> Kernels {
    #[cfg(target_arch = "x86_64")]
    {
        if x.is_for_avx512() {
            return avx512::KERNELS;
        }
        if matches!(instructions, Instructions::Avx512 | Instructions::Amx) && avx512::available() {
            let Kernels { dense, dense_outs, expand, .. } = avx512::KERNELS;
            return Kernels { dense, dense_outs, expand, ..avx2::KERNELS };
        }
        if x.is_for_columns() || (instructions != Instructions::Portable && avx2::available()) {
            return avx2::KERNELS;
        }
    }
    let _ = (x, instructions);
    portable::KERNELS
}

/// Whether this processor has a fast variant: without, a library's own product of floats is the better choice.
pub fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx2::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether processor and kernel have tiles (AMX), which then make all products whose width is whole blocks.
pub fn has_tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether [`Panels`] are faster here than a library's product of bf16 with a dequantised weight.
pub fn has_panels() -> bool {
    #[cfg(target_arch = "x86_64")]
    return panels::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the processor has products of bf16 for weights in bf16.
pub(crate) fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return halves::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The eight sums as one, in the same order everywhere.
#[inline(always)]
fn total(sums: &Lanes) -> f32 {
    let half = [sums[0] + sums[4], sums[1] + sums[5], sums[2] + sums[6], sums[3] + sums[7]];
    (half[0] + half[2]) + (half[1] + half[3])
}

#[cfg(test)]
mod tests;
