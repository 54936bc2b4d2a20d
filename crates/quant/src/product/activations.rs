//! The rows of x: as floats, and as what the kernels multiply with.

#[cfg(target_arch = "x86_64")]
use super::chunks::{Chunk, chunks};
use super::integers::{Made, quantize_block};
use super::lines::Lines;
use super::workers::{Workers, spread};
use super::{Activations, BLOCK, GROUP, STRIDE};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512, halves, integers, layout};
use crate::Instructions;

/// Values from which on they are made on all threads.
const MANY: usize = 1 << 16;

/// Rows of x [M, K] with what was made of them.
///
/// Integers lie group by group of [`GROUP`] rows (the last may have fewer), in a group block by block, in a block row by
/// row: a kernel reads them from front to back. For the processor's tiles they are values in bf16 instead, in groups of 16.
///
/// A whole block's products are added in 32 bits: the integers are as large as a block's magnitudes together let them be.
#[derive(Default)]
pub struct Inputs {
    rows: usize,
    width: usize,
    floats: Vec<f32>, // [M, K]
    // [M/8, K/64, 8, 64]; one row for AVX-512 [K/128, 4, 2, 16]; for columns [chunks, M/8, blocks of a chunk, 8, 64];
    // halves [M, 2, K padded]
    values: Lines,
    scales: Vec<f32>, // [M, K/64 (to a multiple of 8)]; for columns as the values
    made: Made,
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
        matches!(self.made, Made::Integers | Made::Blocks | Made::Columns | Made::ColumnsAvx2)
    }

    /// Whether the kernels of AVX-512 take it, for one row or for several.
    pub(super) fn is_for_avx512(&self) -> bool {
        matches!(self.made, Made::Blocks | Made::Columns)
    }

    pub(super) fn is_for_columns(&self) -> bool {
        matches!(self.made, Made::Columns | Made::ColumnsAvx2)
    }

    pub(super) fn is_for_columns_avx2(&self) -> bool {
        self.made == Made::ColumnsAvx2
    }

    pub(super) fn is_tiled(&self) -> bool {
        self.made == Made::Tiles
    }

    pub(super) fn is_halved(&self) -> bool {
        self.made == Made::Halves
    }

    /// The halves of some rows, where there are some.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn halves(&self, rows: std::ops::Range<usize>) -> Option<&[i16]> {
        let row = 2 * halves::padded(self.width);
        (self.made == Made::Halves).then(|| &self.values.values()[rows.start * row..rows.end * row])
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
        let blocks = if self.made == Made::Blocks { blocks.next_multiple_of(2) } else { blocks };
        let values = &self.values.values()[values..values + blocks * rows * BLOCK];
        let scales = &self.scales[group * GROUP * padded + block..][..rows * padded - block];
        Activations { values, scales, scale_stride: padded }
    }

    /// Where a group's values and scales of a chunk begin: [blocks, rows, 64] and [blocks, rows].
    #[cfg(target_arch = "x86_64")]
    pub(super) fn columns(&self, group: usize, chunk: Chunk) -> (*const i16, *const f32) {
        debug_assert!(self.is_for_columns() && group < self.groups());
        let first = chunk.before * self.rows + group * GROUP * chunk.count;
        (self.values.values()[first * BLOCK..].as_ptr(), self.scales[first..].as_ptr())
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
            if instructions != Instructions::Portable && avx2::available() {
                let wide = instructions == Instructions::Avx512 && avx512::available();
                let made = match self.rows {
                    1 if wide => Made::Blocks,
                    _ if wide => Made::Columns,
                    0..=avx2::FEW => Made::Integers,
                    _ => Made::ColumnsAvx2,
                };
                return self.quantize(made, workers);
            }
            self.quantize(Made::Integers, workers);
        } else {
            #[cfg(target_arch = "x86_64")]
            if instructions == Instructions::Avx512 && halves::available() && self.width > 0 {
                self.halve(workers);
            }
        }
    }

    /// Makes the halves.
    #[cfg(target_arch = "x86_64")]
    fn halve(&mut self, workers: &dyn Workers) {
        let (rows, width, floats, padded) = (self.rows, self.width, &self.floats, halves::padded(self.width));
        self.values.grow(2 * rows * padded);
        let values = Shared(self.values.values_mut().as_mut_ptr());
        let one = |row: usize| {
            let values = &values;
            // SAFETY: the processor has them; the row's places are within the buffer, and its own.
            unsafe { halves::split(&floats[row * width..][..width], values.0.add(2 * row * padded)) };
        };
        each(workers, rows, width, &one);
        self.made = Made::Halves;
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
        // To whole pairs of blocks, which one row is made in for AVX-512.
        self.values.grow((self.rows * self.width).next_multiple_of(2 * BLOCK));
        if self.scales.len() < self.rows * padded {
            self.scales.resize(self.rows * padded, 0.0);
        }
        #[cfg(target_arch = "x86_64")]
        if made == Made::Blocks {
            let (input, scales) = (self.floats[..self.width].as_chunks().0, &mut self.scales[..padded]);
            // SAFETY: they are made so where there is AVX-512.
            unsafe { integers::quantize_pairs_avx512(input, self.values.values_mut(), scales) };
            self.made = made;
            return;
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
            // SAFETY: no other row has these places, which are within the buffers; what is made for instructions is made where they are.
            let put = |block: usize, place: usize, scale: usize| unsafe {
                let output = &mut *values.0.add(place * BLOCK).cast::<[i16; BLOCK]>();
                *scales.0.add(scale) = match made {
                    #[cfg(target_arch = "x86_64")]
                    Made::Columns => integers::quantize_block_avx512(&input[block], output, made),
                    #[cfg(target_arch = "x86_64")]
                    Made::ColumnsAvx2 => integers::quantize_block_avx2(&input[block], output, made),
                    _ => quantize_block(&input[block], output, made),
                };
            };
            #[cfg(target_arch = "x86_64")]
            if matches!(made, Made::Columns | Made::ColumnsAvx2) {
                let one = |chunk: Chunk| {
                    let first = chunk.before * rows + group * GROUP * chunk.count + at;
                    chunk.blocks().enumerate().for_each(|(i, block)| {
                        let place = first + i * members;
                        put(block, place, place);
                    });
                };
                return if rows <= GROUP { one(Chunk::whole(blocks)) } else { chunks(blocks).for_each(one) };
            }
            let (first, first_scale) = (group * GROUP * blocks + at, row * padded);
            (0..blocks).for_each(|block| put(block, first + block * members, first_scale + block));
            for block in blocks..padded {
                // SAFETY: as above.
                unsafe { *scales.0.add(first_scale + block) = 0.0 };
            }
        };
        each(workers, rows, width, &one);
        self.made = made;
    }
}

/// Calls `one` with each row: on all threads where it takes longer than to wake them.
fn each(workers: &dyn Workers, rows: usize, width: usize, one: &(dyn Fn(usize) + Sync)) {
    if rows * width < MANY { (0..rows).for_each(one) } else { spread(workers, rows, one) }
}

/// A pointer whose users write to places of their own.
pub(super) struct Shared<T>(pub *mut T);

// SAFETY: whoever writes through it does so to a place that nobody else has.
unsafe impl<T: Send> Sync for Shared<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Alone;

    #[test]
    fn room_is_used_again_for_fewer_rows() {
        let mut inputs = Inputs::default();
        inputs.resize(9, 128).fill(1.0);
        inputs.prepare_for(Instructions::Portable, true, &Alone);
        inputs.resize(1, 64).fill(2.0);
        inputs.prepare_for(Instructions::Portable, true, &Alone);
        assert_eq!((inputs.rows(), inputs.groups(), inputs.floats().len()), (1, 1, 64));
        // As many as are together 130,900.
        assert!(inputs.part(0, 0, 1).values.iter().all(|value| *value == 2045));
    }
}
