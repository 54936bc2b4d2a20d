//! Look-ups with AVX2. Tails go through the portable code.

use std::arch::x86_64::*;

use half::bf16;

use super::{blocks, to_bf16};
use crate::Quantized;

#[target_feature(enable = "avx2")]
pub(super) fn blocks_f32_avx2(weight: &Quantized, first: usize, out: &mut [f32]) {
    blocks(weight, first, out, |value| value, |table, packed, out| look_up_f32_avx2(table, packed, out));
}

#[target_feature(enable = "avx2")]
pub(super) fn blocks_bf16_avx2(weight: &Quantized, first: usize, out: &mut [bf16]) {
    blocks(weight, first, out, to_bf16, |table, packed, out| look_up_bf16_avx2(table, packed, out));
}

/// Nibbles of 8 bytes in order, one a byte: high nibble first.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn nibbles(packed: &[u8; 8]) -> __m128i {
    let bytes = _mm_set_epi64x(0, i64::from_le_bytes(*packed));
    let mask = _mm_set1_epi8(15);
    let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
    let low = _mm_and_si128(bytes, mask);
    _mm_unpacklo_epi8(high, low)
}

/// 8 elements a step: two permutations of half the table each, chosen by the number's top bit.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up_f32_avx2(table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
    // SAFETY: the table has 16 entries.
    let (first, second) = unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) };
    let select = |index: __m256i| {
        let top_bit = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
        let (low, high) = (_mm256_permutevar8x32_ps(first, index), _mm256_permutevar8x32_ps(second, index));
        _mm256_blendv_ps(low, high, top_bit)
    };
    let (steps, tail) = packed.as_chunks::<8>();
    let (wide, rest) = out.split_at_mut((steps.len() * 16).min(out.len() / 16 * 16));
    for (eight, out) in steps.iter().zip(wide.as_chunks_mut::<16>().0) {
        let nibbles = nibbles(eight);
        let low = select(_mm256_cvtepu8_epi32(nibbles));
        let high = select(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(nibbles)));
        // SAFETY: `out` has 16 entries.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), low);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), high);
        }
    }
    super::look_up(table, tail_of(packed, tail, wide.len()), rest);
}

/// 16 elements a step: one byte shuffle for the low bytes of the table, one for the high bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up_bf16_avx2(table: &[bf16; 16], packed: &[u8], out: &mut [bf16]) {
    let low_bytes = table.map(|value| value.to_bits() as u8);
    let high_bytes = table.map(|value| (value.to_bits() >> 8) as u8);
    // SAFETY: both arrays have 16 bytes.
    let (low_table, high_table) =
        unsafe { (_mm_loadu_si128(low_bytes.as_ptr().cast()), _mm_loadu_si128(high_bytes.as_ptr().cast())) };
    let (steps, tail) = packed.as_chunks::<8>();
    let (wide, rest) = out.split_at_mut((steps.len() * 16).min(out.len() / 16 * 16));
    for (eight, out) in steps.iter().zip(wide.as_chunks_mut::<16>().0) {
        let nibbles = nibbles(eight);
        let low = _mm_shuffle_epi8(low_table, nibbles);
        let high = _mm_shuffle_epi8(high_table, nibbles);
        let out: *mut __m128i = out.as_mut_ptr().cast();
        // SAFETY: `out` has 16 entries of two bytes.
        unsafe {
            _mm_storeu_si128(out, _mm_unpacklo_epi8(low, high));
            _mm_storeu_si128(out.add(1), _mm_unpackhi_epi8(low, high));
        }
    }
    super::look_up(table, tail_of(packed, tail, wide.len()), rest);
}

/// The packed bytes of what the wide loop left: usually `tail`, and a full step where the last byte is half used.
fn tail_of<'a>(packed: &'a [u8], tail: &'a [u8], done: usize) -> &'a [u8] {
    if done / 2 == packed.len() - tail.len() { tail } else { &packed[done / 2..] }
}
