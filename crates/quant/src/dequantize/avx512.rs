//! Look-ups with AVX-512: a block's 16 results are one register, and a look-up is one permutation of it. Tails go through
//! the portable code.
//!
//! What is larger than the caches is written past them: reading each line before overwriting it would be a third of the
//! time.

use std::arch::x86_64::*;

use half::bf16;

use super::avx2::nibbles;
use super::look_up;
use crate::{Float, Quantized, Scales};

/// Outputs from this size on are written past the caches, bytes.
const STREAM_FROM: usize = 16 << 20;
const LINE: usize = 64;

/// Whether to write past the caches: the output is large, and what this task writes begins at a cache line and has whole
/// ones in every block.
fn streams<T>(weight: &Quantized, out: &[T]) -> bool {
    let large = weight.elements() * size_of::<T>() >= STREAM_FROM;
    large && out.as_ptr().addr().is_multiple_of(LINE) && (weight.blocksize() * size_of::<T>()).is_multiple_of(LINE)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
pub(super) fn blocks_f32(weight: &Quantized, first: usize, out: &mut [f32]) {
    let stream = streams(weight, out);
    let blocksize = weight.blocksize();
    for (i, out) in out.chunks_mut(blocksize).enumerate() {
        let start = first + i * blocksize;
        let packed = &weight.packed()[start / 2..(start + out.len()).div_ceil(2)];
        let table = table(weight, start / blocksize);
        let steps = out.len() / 16;
        let (wide, rest) = out.split_at_mut(steps * 16);
        let (whole, tail) = packed.split_at(steps * 8);
        for (eight, out) in whole.as_chunks::<8>().0.iter().zip(wide.as_chunks_mut::<16>().0) {
            let index = _mm512_cvtepu8_epi32(nibbles(eight));
            let values = _mm512_permutexvar_ps(index, table);
            // SAFETY: `out` has 16 entries; where it streams it is at the beginning of a cache line.
            unsafe {
                match stream {
                    true => _mm512_stream_ps(out.as_mut_ptr(), values),
                    false => _mm512_storeu_ps(out.as_mut_ptr(), values),
                }
            }
        }
        if !rest.is_empty() {
            let mut values = [0f32; 16];
            // SAFETY: `values` has 16 entries.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), table) };
            look_up(&values, tail, rest);
        }
    }
    if stream {
        // Whoever reads next, on whatever core, must see what was written past the caches.
        _mm_sfence();
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
pub(super) fn blocks_bf16(weight: &Quantized, first: usize, out: &mut [bf16]) {
    let stream = streams(weight, out);
    let blocksize = weight.blocksize();
    for (i, out) in out.chunks_mut(blocksize).enumerate() {
        let start = first + i * blocksize;
        let packed = &weight.packed()[start / 2..(start + out.len()).div_ceil(2)];
        // The upper halves, 16 numbers of 16 bits.
        let table = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(to_bf16(table(weight, start / blocksize))));
        let wide_table = _mm512_castsi256_si512(table);
        let steps = out.len() / 32;
        let (wide, rest) = out.split_at_mut(steps * 32);
        let (whole, tail) = packed.split_at(steps * 16);
        for (sixteen, out) in whole.as_chunks::<16>().0.iter().zip(wide.as_chunks_mut::<32>().0) {
            let index = _mm512_cvtepu8_epi16(nibbles_of_16(sixteen));
            let values = _mm512_permutexvar_epi16(index, wide_table);
            // SAFETY: `out` has 32 entries of two bytes; where it streams it is at the beginning of a cache line.
            unsafe {
                match stream {
                    true => _mm512_stream_si512(out.as_mut_ptr().cast(), values),
                    false => _mm512_storeu_si512(out.as_mut_ptr().cast(), values),
                }
            }
        }
        if !rest.is_empty() {
            let mut values = [bf16::ZERO; 16];
            // SAFETY: `values` has 16 entries of two bytes.
            unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), table) };
            look_up(&values, tail, rest);
        }
    }
    if stream {
        _mm_sfence();
    }
}

/// The 16 results of one block, rounded to the weight's own type: as [`super::table`].
#[inline]
#[target_feature(enable = "avx512f")]
fn table(weight: &Quantized, block: usize) -> __m512 {
    // SAFETY: a code book has 16 entries.
    let values = unsafe { _mm512_loadu_ps(weight.values().as_ptr()) };
    let scaled = |scale: f32| _mm512_mul_ps(values, _mm512_set1_ps(scale));
    let exact = match weight.scales() {
        Scales::Single(absmax) => scaled(absmax[block]),
        Scales::Nested { codes, map, absmax, blocksize, offset } => {
            scaled(map[codes[block] as usize] * absmax[block / blocksize] + offset)
        }
        Scales::Affine { width, minimum } => _mm512_add_ps(scaled(width[block]), _mm512_set1_ps(minimum[block])),
    };
    match weight.dtype() {
        Float::F32 => exact,
        Float::Bf16 => _mm512_castsi512_ps(to_bf16(exact)),
        Float::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(exact)),
    }
}

/// To nearest, ties to even, in the upper half of each number; the lower half is zero. No value here is NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn to_bf16(values: __m512) -> __m512i {
    let bits = _mm512_castps_si512(values);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
    _mm512_and_si512(rounded, _mm512_set1_epi32(0xffff_0000_u32 as i32))
}

/// Nibbles of 16 bytes in order, one a byte: high nibble first.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles_of_16(packed: &[u8; 16]) -> __m256i {
    // SAFETY: 16 bytes are there.
    let bytes = unsafe { _mm_loadu_si128(packed.as_ptr().cast()) };
    let mask = _mm_set1_epi8(15);
    let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
    let low = _mm_and_si128(bytes, mask);
    _mm256_set_m128i(_mm_unpackhi_epi8(high, low), _mm_unpacklo_epi8(high, low))
}
