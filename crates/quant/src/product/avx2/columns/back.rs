//! A 4-bit weight as it goes back, x·W: what is summed over are its rows, each of which has a scale of its own in a block of columns.
//!
//! So 64 rows of a tile's columns are brought under one scale a column, as 16-bit integers of 15 bits at the largest, and then
//! multiplied as any other block. Rows already lie as outputs do, side by side; nothing is turned. It takes as long as some five rows
//! of x do.

use std::arch::x86_64::*;

use super::super::super::chunks::Chunk;
use super::super::super::{BLOCK, LARGEST_LEVEL, Matrix};
use super::super::{Tables, look_up, tables};
use super::{LANES, OUTS, PAIRED, PAIRS, REGISTERS, Source, TOGETHER, TURNED};

/// Columns `first..first + 32` of a weight.
pub(super) struct Back<'a> {
    matrix: &'a Matrix<'a>,
    first: usize,
    tables: Tables,
}

/// Values of a block of rows, before its columns' scales.
#[repr(align(64))]
struct Values([[f32; OUTS]; BLOCK]);

impl<'a> Back<'a> {
    /// # Safety
    /// [`super::super::available`]
    pub unsafe fn new(matrix: &'a Matrix<'a>, first: usize) -> Self {
        // SAFETY: as the caller says.
        Self { matrix, first, tables: unsafe { tables(matrix.levels()) } }
    }

    /// # Safety
    /// As [`Source::unpack`].
    #[target_feature(enable = "avx2")]
    unsafe fn write(&self, chunk: Chunk, out: *mut i16, scales: *mut f32) {
        let mut values = Values([[0.0; OUTS]; BLOCK]);
        for (at, block) in chunk.blocks().enumerate() {
            let largest = self.values(block, &mut values);
            let out = out.wrapping_add(at * TURNED).cast::<__m256i>();
            for (register, largest) in largest.into_iter().enumerate() {
                let largest_level = _mm256_set1_ps(LARGEST_LEVEL);
                // A column of zeros has no multiple; that of others leaves f32 nowhere, since levels are integers.
                let there = _mm256_cmp_ps::<_CMP_GT_OQ>(largest, _mm256_setzero_ps());
                let inverse = _mm256_and_ps(_mm256_div_ps(largest_level, largest), there);
                let scale = _mm256_div_ps(largest, largest_level);
                // SAFETY: there is room for the block's scales and levels.
                unsafe {
                    _mm256_storeu_ps(scales.add((block * REGISTERS + register) * LANES), scale);
                    let out = out.add(register / TOGETHER * TOGETHER * PAIRS + register % TOGETHER);
                    for pair in 0..PAIRS {
                        let integers = |of: usize| {
                            let row = pair / 4 * 8 + PAIRED[pair % 4 * 2 + of];
                            let values = _mm256_load_ps(values.0[row][register * LANES..].as_ptr());
                            _mm256_cvtps_epi32(_mm256_mul_ps(values, inverse))
                        };
                        let (first, second) = (integers(0), integers(1));
                        let both = _mm256_blend_epi16::<0b1010_1010>(first, _mm256_slli_epi32::<16>(second));
                        _mm256_store_si256(out.add(pair * TOGETHER), both);
                    }
                }
            }
        }
    }

    /// Gives the largest magnitude of each column.
    #[target_feature(enable = "avx2")]
    fn values(&self, block: usize, values: &mut Values) -> [__m256; REGISTERS] {
        let column_block = self.first / BLOCK;
        let begin = self.first % BLOCK / 2;
        let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
        let mut largest = [_mm256_setzero_ps(); REGISTERS];
        for (row, values) in (block * BLOCK..).zip(&mut values.0) {
            let bytes = &self.matrix.bytes(row, column_block..column_block + 1)[begin..begin + OUTS / 2];
            let scale = _mm256_set1_ps(self.matrix.scale(row, column_block));
            // SAFETY: sixteen bytes.
            let bytes = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) };
            let [(even_low, even_high), (odd_low, odd_high)] = look_up(bytes, self.tables);
            let (even, odd) = (_mm256_unpacklo_epi8(even_low, even_high), _mm256_unpacklo_epi8(odd_low, odd_high));
            let (even_2, odd_2) = (_mm256_unpackhi_epi8(even_low, even_high), _mm256_unpackhi_epi8(odd_low, odd_high));
            let eights = [
                _mm256_unpacklo_epi16(even, odd),
                _mm256_unpackhi_epi16(even, odd),
                _mm256_unpacklo_epi16(even_2, odd_2),
                _mm256_unpackhi_epi16(even_2, odd_2),
            ];
            for (register, (levels, largest)) in eights.into_iter().zip(&mut largest).enumerate() {
                let levels = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(levels)));
                let value = _mm256_mul_ps(levels, scale);
                *largest = _mm256_max_ps(*largest, _mm256_and_ps(value, magnitude));
                // SAFETY: eight of the row's values, which begin at a cache line.
                unsafe { _mm256_store_ps(values[register * LANES..].as_mut_ptr(), value) };
            }
        }
        largest
    }
}

impl Source for Back<'_> {
    unsafe fn unpack(&self, chunk: Chunk, levels: *mut i16, scales: *mut f32) {
        // SAFETY: as the caller says.
        unsafe { self.write(chunk, levels, scales) }
    }
}
