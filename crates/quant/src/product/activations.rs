//! The rows of x: as floats, and as the integers that the 4-bit kernels multiply with.

use super::lines::Lines;
use super::workers::{Workers, spread};
use super::{Activations, BLOCK, GROUP, LARGEST_ACTIVATION, LARGEST_BLOCK, STRIDE, element};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx512, columns, layout};
use crate::Instructions;

/// Below this magnitude a block counts as zero: its reciprocal would leave f32.
const SMALLEST: f32 = 1e-30;

/// Rows of x [M, K] with what was made of them.
///
/// Integers lie group by group of [`GROUP`] rows (the last may have fewer), in a group block by block, in a block row by
/// row: a kernel reads them from front to back. For the processor's tiles they are values in bf16 instead, in groups of 16.
///
/// AVX-512 adds a whole block's products in 32 bits: its integers are as large as a block's magnitudes together let them be.
#[derive(Default)]
pub struct Inputs {
    rows: usize,
    width: usize,
    floats: Vec<f32>, // [M, K]
    values: Lines,    // [M/8, K/64, 8, 64]
    scales: Vec<f32>, // [M/8, K/64 (to a multiple of 8), 8]
    made: Made,
}

/// What was made of the floats.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Made {
    #[default]
    Nothing,
    Integers,
    /// The same for AVX-512 and few rows: scales row by row.
    Blocks,
    /// The same for AVX-512 and many rows: a block's values as pairs that are unpacked together.
    Columns,
    Tiles,
}

impl Made {
    /// Element of a block that stands in each place.
    fn order(self) -> &'static [usize; BLOCK] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Made::Blocks => &FOURTHS,
            #[cfg(target_arch = "x86_64")]
            Made::Columns => &COLUMNS,
            _ => &ORDER,
        }
    }
}

impl Inputs {
    /// Room for `rows` of `width` values, used again and again; what is in them is left from before.
    pub fn resize(&mut self, rows: usize, width: usize) -> &mut [f32] {
        (self.rows, self.width, self.made) = (rows, width, Made::Nothing);
        if self.floats.len() < rows * width {
            self.floats.resize(rows * width, 0.0);
        }
        &mut self.floats[..rows * width]
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// [M, K]
    pub fn floats(&self) -> &[f32] {
        &self.floats[..self.rows * self.width]
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.floats[row * self.width..(row + 1) * self.width]
    }

    pub fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    pub(super) fn group_rows(&self, group: usize) -> usize {
        GROUP.min(self.rows - group * GROUP)
    }

    pub(super) fn is_quantized(&self) -> bool {
        matches!(self.made, Made::Integers | Made::Blocks | Made::Columns)
    }

    /// Whether the kernels of AVX-512 take it, for few rows or for many.
    pub(super) fn is_for_avx512(&self) -> bool {
        matches!(self.made, Made::Blocks | Made::Columns)
    }

    pub(super) fn is_for_columns(&self) -> bool {
        self.made == Made::Columns
    }

    pub(super) fn is_tiled(&self) -> bool {
        self.made == Made::Tiles
    }

    /// A group's values for the tiles, and how many rows it has.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn tiled(&self, group: usize) -> (&[i16], usize) {
        let members = amx::SIDE.min(self.rows - group * amx::SIDE);
        let padded = layout::padded(self.width);
        let first = group * amx::SIDE * padded;
        (&self.values.values()[first..first + members * padded], members)
    }

    fn padded_blocks(&self) -> usize {
        (self.width / BLOCK).next_multiple_of(STRIDE)
    }

    /// The blocks from `block` on, a multiple of [`STRIDE`], of a group.
    #[inline(always)]
    pub(super) fn part(&self, group: usize, block: usize, blocks: usize) -> Activations<'_> {
        let rows = self.group_rows(group);
        let (values, padded) = (group * GROUP * self.width + block * rows * BLOCK, self.padded_blocks());
        let values = &self.values.values()[values..values + blocks * rows * BLOCK];
        if self.made == Made::Blocks {
            return Activations { values, scales: &self.scales[block..rows * padded], scale_stride: padded };
        }
        let scales = group * GROUP * padded + block * rows;
        let scales = &self.scales[scales..scales + blocks.next_multiple_of(STRIDE) * rows + GROUP];
        Activations { values, scales, scale_stride: 0 }
    }

    /// Where a group's values and scales begin: [blocks, rows, 64] and [blocks, rows].
    #[cfg(target_arch = "x86_64")]
    pub(super) fn columns(&self, group: usize) -> (*const i16, *const f32) {
        debug_assert!(self.is_for_columns() && group < self.groups());
        let values = &self.values.values()[group * GROUP * self.width..];
        (values.as_ptr(), self.scales[group * GROUP * self.padded_blocks()..].as_ptr())
    }

    /// Makes what products need, with 4-bit weights or without, by the best instructions there are.
    ///
    /// # Panics
    /// There are 4-bit weights, and the width is no multiple of [`BLOCK`].
    pub fn prepare(&mut self, four_bit: bool, workers: &dyn Workers) {
        self.prepare_for(Instructions::detect(), four_bit, workers);
    }

    /// For given instructions: what [`Self::prepare`] does, for comparing.
    ///
    /// # Panics
    /// As [`Self::prepare`].
    pub fn prepare_for(&mut self, instructions: Instructions, four_bit: bool, workers: &dyn Workers) {
        if instructions == Instructions::Amx && self.width.is_multiple_of(BLOCK) && self.width > 0 {
            #[cfg(target_arch = "x86_64")]
            self.tile(workers);
        } else if four_bit {
            #[cfg(target_arch = "x86_64")]
            if instructions == Instructions::Avx512 && avx512::available() {
                let made = if self.rows <= avx512::FEW { Made::Blocks } else { Made::Columns };
                return self.quantize(made, workers);
            }
            self.quantize(Made::Integers, workers);
        }
    }

    /// Puts the rows beside each other for the processor's tiles.
    #[cfg(target_arch = "x86_64")]
    fn tile(&mut self, workers: &dyn Workers) {
        assert!(amx::available(), "this processor has no tiles");
        let (rows, width, floats, padded) = (self.rows, self.width, &self.floats, layout::padded(self.width));
        self.values.grow(rows * padded);
        let values = Shared(self.values.values_mut().as_mut_ptr());
        let one = |group: usize| {
            let values = &values;
            let members = amx::SIDE.min(rows - group * amx::SIDE);
            let input = &floats[group * amx::SIDE * width..][..members * width];
            // SAFETY: the processor has them; the group's places are within the buffer, and its own.
            unsafe { layout::place_group(input, width, values.0.add(group * amx::SIDE * padded).cast()) };
        };
        spread(workers, rows.div_ceil(amx::SIDE), &one);
        self.made = Made::Tiles;
    }

    /// Makes the integers, which products with 4-bit weights need. Not a number or infinity in a block makes every
    /// output of its row not a number.
    fn quantize(&mut self, made: Made, workers: &dyn Workers) {
        assert!(self.width.is_multiple_of(BLOCK), "{} values a row are no whole blocks of {BLOCK}", self.width);
        let (blocks, padded) = (self.width / BLOCK, self.padded_blocks());
        self.values.grow(self.rows * self.width);
        if self.scales.len() < self.rows * padded + GROUP {
            self.scales.resize(self.rows * padded + GROUP, 0.0);
        }
        let (rows, width) = (self.rows, self.width);
        let floats = &self.floats;
        let values = Shared(self.values.values_mut().as_mut_ptr());
        let scales = Shared(self.scales.as_mut_ptr());
        let one = |row: usize| {
            let (values, scales) = (&values, &scales);
            let (group, at) = (row / GROUP, row % GROUP);
            let members = GROUP.min(rows - group * GROUP);
            let input = floats[row * width..(row + 1) * width].as_chunks::<BLOCK>().0;
            let scale_place = |block: usize| match made {
                Made::Blocks => row * padded + block,
                _ => group * GROUP * padded + block * members + at,
            };
            for (block, input) in input.iter().enumerate() {
                let place = group * GROUP * width + (block * members + at) * BLOCK;
                // SAFETY: no other row has this place, which is within the buffer.
                let output = unsafe { &mut *values.0.add(place).cast::<[i16; BLOCK]>() };
                // SAFETY: as above.
                unsafe { *scales.0.add(scale_place(block)) = quantize_block(input, output, made) };
            }
            for block in blocks..padded {
                // SAFETY: as above.
                unsafe { *scales.0.add(scale_place(block)) = 0.0 };
            }
        };
        if rows < GROUP {
            (0..rows).for_each(one);
        } else {
            spread(workers, rows, &one);
        }
        self.made = made;
    }
}

/// A pointer whose users write to places of their own.
pub(super) struct Shared<T>(pub *mut T);

// SAFETY: whoever writes through it does so to a place that nobody else has.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Gives the scale.
#[inline]
fn quantize_block(input: &[f32; BLOCK], output: &mut [i16; BLOCK], made: Made) -> f32 {
    // As integers, magnitudes have the order of floats, with infinity and not-a-number last.
    let largest = input.iter().fold(0u32, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    if !(SMALLEST..).contains(&largest) || !largest.is_finite() {
        *output = [0; BLOCK];
        return if largest.is_finite() { 0.0 } else { f32::NAN };
    }
    let steps = match made {
        Made::Blocks | Made::Columns => LARGEST_ACTIVATION.min(LARGEST_BLOCK / magnitude(input, 1.0 / largest)),
        _ => LARGEST_ACTIVATION,
    };
    let inverse = steps / largest;
    let mut natural = [0i16; BLOCK];
    for (value, input) in natural.iter_mut().zip(input) {
        // Adding 1.5·2²³ leaves the nearest integer, ties to even, in the low bits.
        let shifted = input * inverse + 12_582_912.0;
        *value = shifted.to_bits() as i16;
    }
    for (value, element) in output.iter_mut().zip(made.order()) {
        *value = natural[*element];
    }
    largest / steps
}

/// Σ |x| · `scale`, in sixteen sums.
#[inline]
fn magnitude(input: &[f32; BLOCK], scale: f32) -> f32 {
    let mut sums = [0f32; 16];
    for input in input.as_chunks::<16>().0 {
        sums.iter_mut().zip(input).for_each(|(sum, x)| *sum += x.abs() * scale);
    }
    sums.iter().sum()
}

/// Which element of a block stands in each place.
const fn order(made: Made) -> [usize; BLOCK] {
    let mut order = [0; BLOCK];
    let mut place = 0;
    while place < BLOCK {
        order[place] = match made {
            #[cfg(target_arch = "x86_64")]
            Made::Blocks => place % 16 * 4 + avx512::NEIGHBOUR[place / 16],
            #[cfg(target_arch = "x86_64")]
            Made::Columns => place / 8 * 8 + columns::PAIRED[place % 8],
            _ => element(place),
        };
        place += 1;
    }
    order
}

const ORDER: [usize; BLOCK] = order(Made::Integers);
#[cfg(target_arch = "x86_64")]
const FOURTHS: [usize; BLOCK] = order(Made::Blocks);
#[cfg(target_arch = "x86_64")]
const COLUMNS: [usize; BLOCK] = order(Made::Columns);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::{Alone, LARGEST_LEVEL};

    #[test]
    fn order_names_every_element_once() {
        for made in [Made::Integers, Made::Blocks, Made::Columns] {
            let mut seen = *made.order();
            seen.sort_unstable();
            assert_eq!(seen, std::array::from_fn(|i| i));
        }
    }

    #[test]
    fn integers_are_within_half_a_step_of_the_floats() {
        let input: [f32; BLOCK] = std::array::from_fn(|i| ((i * 37 % 64) as f32 - 31.0) * 0.013);
        let mut output = [0; BLOCK];
        let scale = quantize_block(&input, &mut output, Made::Integers);
        for (place, value) in output.iter().enumerate() {
            let error = (f32::from(*value) * scale - input[ORDER[place]]).abs();
            assert!(error <= 0.501 * scale, "{error} of {scale} at {place}");
        }
        for made in [Made::Integers, Made::Blocks, Made::Columns] {
            assert_eq!(quantize_block(&[0.0; BLOCK], &mut output, made), 0.0);
            assert!(quantize_block(&[f32::INFINITY; BLOCK], &mut output, made).is_nan());
            let mut spoiled = input;
            spoiled[17] = f32::NAN;
            assert!(quantize_block(&spoiled, &mut output, made).is_nan());
        }
    }

    #[test]
    fn a_blocks_integers_leave_room_for_the_sum_of_its_products() {
        let one_of = |at: usize| std::array::from_fn(|i| if i == at { -3.0e38 } else { 1e-3 });
        let inputs: [[f32; BLOCK]; 5] = [
            [3.0e38; BLOCK],
            std::array::from_fn(|i| if i % 2 == 0 { 1.0 } else { -1.0 }),
            std::array::from_fn(|i| (i as f32 * 0.7).sin()),
            std::array::from_fn(|i| 1e-29 * (i as f32 + 0.5)),
            one_of(5),
        ];
        for input in inputs {
            let natural = [Made::Columns, Made::Blocks].map(|made| {
                let (mut ordered, mut natural) = ([0; BLOCK], [0; BLOCK]);
                let scale = quantize_block(&input, &mut ordered, made);
                made.order().iter().zip(ordered).for_each(|(element, value)| natural[*element] = value);
                (natural, scale)
            });
            assert_eq!(natural[0], natural[1], "few rows and many");
            let (natural, scale) = natural[0];
            let together: i64 = natural.iter().map(|value| i64::from(*value).abs()).sum();
            assert!(together * LARGEST_LEVEL as i64 <= i64::from(i32::MAX), "{together}");
            for (value, input) in natural.iter().zip(input) {
                let error = (f32::from(*value) * scale - input).abs();
                assert!(error <= 0.501 * scale, "{error} of {scale}");
            }
        }
    }

    #[test]
    fn room_is_used_again_for_fewer_rows() {
        let mut inputs = Inputs::default();
        inputs.resize(9, 128).fill(1.0);
        inputs.prepare_for(Instructions::Portable, true, &Alone);
        inputs.resize(1, 64).fill(2.0);
        inputs.prepare_for(Instructions::Portable, true, &Alone);
        assert_eq!((inputs.rows(), inputs.groups(), inputs.floats().len()), (1, 1, 64));
        assert!(inputs.part(0, 0, 1).values.iter().all(|value| *value == 16383));
    }
}
