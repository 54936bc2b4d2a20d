//! The rows of x: as floats, and as the integers that the 4-bit kernels multiply with.

use super::lines::Lines;
use super::workers::{Workers, spread};
use super::{Activations, BLOCK, GROUP, LARGEST_ACTIVATION, STRIDE, element};
#[cfg(target_arch = "x86_64")]
use super::{amx, layout};
use crate::Instructions;

/// Below this magnitude a block counts as zero: its reciprocal would leave f32.
const SMALLEST: f32 = 1e-30;

/// Rows of x [M, K] with what was made of them.
///
/// Integers lie group by group of [`GROUP`] rows (the last may have fewer), in a group block by block, in a block row by
/// row: a kernel reads them from front to back. For the processor's tiles they are values in bf16 instead, in groups of 16.
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
    Tiles,
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
        self.made == Made::Integers
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
        let values = group * GROUP * self.width + block * rows * BLOCK;
        let scales = group * GROUP * self.padded_blocks() + block * rows;
        Activations {
            values: &self.values.values()[values..values + blocks * rows * BLOCK],
            scales: &self.scales[scales..scales + blocks.next_multiple_of(STRIDE) * rows + GROUP],
        }
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
            self.quantize(workers);
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
    fn quantize(&mut self, workers: &dyn Workers) {
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
            for (block, input) in input.iter().enumerate() {
                let place = group * GROUP * width + (block * members + at) * BLOCK;
                // SAFETY: no other row has this place, which is within the buffer.
                let output = unsafe { &mut *values.0.add(place).cast::<[i16; BLOCK]>() };
                let scale = quantize_block(input, output);
                // SAFETY: as above.
                unsafe { *scales.0.add(group * GROUP * padded + block * members + at) = scale };
            }
            for block in blocks..padded {
                // SAFETY: as above.
                unsafe { *scales.0.add(group * GROUP * padded + block * members + at) = 0.0 };
            }
        };
        if rows < GROUP {
            (0..rows).for_each(one);
        } else {
            spread(workers, rows, &one);
        }
        self.made = Made::Integers;
    }
}

/// A pointer whose users write to places of their own.
pub(super) struct Shared<T>(pub *mut T);

// SAFETY: whoever writes through it does so to a place that nobody else has.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Gives the scale.
#[inline]
fn quantize_block(input: &[f32; BLOCK], output: &mut [i16; BLOCK]) -> f32 {
    // As integers, magnitudes have the order of floats, with infinity and not-a-number last.
    let largest = input.iter().fold(0u32, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    if !(SMALLEST..).contains(&largest) || !largest.is_finite() {
        *output = [0; BLOCK];
        return if largest.is_finite() { 0.0 } else { f32::NAN };
    }
    let inverse = LARGEST_ACTIVATION / largest;
    let mut natural = [0i16; BLOCK];
    for (value, input) in natural.iter_mut().zip(input) {
        // Adding 1.5·2²³ leaves the nearest integer, ties to even, in the low bits.
        let shifted = input * inverse + 12_582_912.0;
        *value = shifted.to_bits() as i16;
    }
    for (place, value) in output.iter_mut().enumerate() {
        *value = natural[ORDER[place]];
    }
    largest / LARGEST_ACTIVATION
}

const ORDER: [usize; BLOCK] = {
    let mut order = [0; BLOCK];
    let mut place = 0;
    while place < BLOCK {
        order[place] = element(place);
        place += 1;
    }
    order
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Alone;

    #[test]
    fn order_names_every_element_once() {
        let mut seen = ORDER;
        seen.sort_unstable();
        assert_eq!(seen, std::array::from_fn(|i| i));
    }

    #[test]
    fn integers_are_within_half_a_step_of_the_floats() {
        let input: [f32; BLOCK] = std::array::from_fn(|i| ((i * 37 % 64) as f32 - 31.0) * 0.013);
        let mut output = [0; BLOCK];
        let scale = quantize_block(&input, &mut output);
        for (place, value) in output.iter().enumerate() {
            let error = (f32::from(*value) * scale - input[ORDER[place]]).abs();
            assert!(error <= 0.501 * scale, "{error} of {scale} at {place}");
        }
        assert_eq!(quantize_block(&[0.0; BLOCK], &mut output), 0.0);
        assert!(quantize_block(&[f32::INFINITY; BLOCK], &mut output).is_nan());
        let mut spoiled = input;
        spoiled[17] = f32::NAN;
        assert!(quantize_block(&spoiled, &mut output).is_nan());
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
