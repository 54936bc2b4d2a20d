//! One full block with AVX-512: 16 values a step, their interval found by four comparisons instead of fifteen.

use std::arch::x86_64::*;

use super::MIN_SCALE;

/// As the portable body for a full block: gives the absolute maximum, writes the packed numbers.
///
/// Every block size is a multiple of 32, so no step is short.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
pub(super) fn block(block: &[f32], thresholds: &[f32; 15], order: &[u8; 16], packed: &mut [u8]) -> f32 {
    let steps = block.as_chunks::<16>().0;
    let mut largest = _mm512_setzero_ps();
    for step in steps {
        largest = _mm512_max_ps(largest, _mm512_abs_ps(load(step)));
    }
    let absmax = _mm512_reduce_max_ps(largest);
    let inverse = _mm512_set1_ps(1.0 / absmax.max(MIN_SCALE));

    let mut padded = [f32::INFINITY; 16];
    padded[..15].copy_from_slice(thresholds);
    let thresholds = load(&padded);
    let order = load_numbers(&order.map(i32::from));
    // Bytes come in pairs, the first of which goes into the high nibble.
    let nibbles = _mm_set1_epi16(0x0110);
    for (step, bytes) in steps.iter().zip(packed.as_chunks_mut::<8>().0) {
        let x = _mm512_mul_ps(load(step), inverse);
        let mut below = _mm512_setzero_si512(); // thresholds below x, a bit of the number at a time
        for half in [8, 4, 2, 1] {
            let middle = _mm512_add_epi32(below, _mm512_set1_epi32(half - 1));
            let above = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_permutexvar_ps(middle, thresholds), x);
            below = _mm512_mask_add_epi32(below, above, below, _mm512_set1_epi32(half));
        }
        let numbers = _mm512_cvtepi32_epi8(_mm512_permutexvar_epi32(below, order)); // 16 bytes
        let pairs = _mm_maddubs_epi16(numbers, nibbles); // 16·first + second
        let eight = _mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs));
        *bytes = eight.to_le_bytes();
    }
    absmax
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32; 16]) -> __m512 {
    // SAFETY: 16 values are there.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_numbers(values: &[i32; 16]) -> __m512i {
    // SAFETY: 16 values are there.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}
