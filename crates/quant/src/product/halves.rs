//! Weights in bf16 by the processor's products of bf16 (AVX512-BF16), which make twice as many as those of f32.
//!
//! An activation goes as two halves: what bf16 holds of it, and what bf16 holds of the rest. Together they have 16 significant
//! bits; the weight is exact, and sums are f32.

use std::arch::x86_64::*;
use std::cell::OnceCell;

use half::bf16;

use super::avx512;
use crate::compact::{self, CompactBf16};

/// Rows of weights and of x that are multiplied at a time: as many sums as leave registers for both.
pub(super) const OUTS: usize = 4;
pub(super) const ROWS: usize = 4;
/// Values of a register.
const STEP: usize = compact::STEP;
/// Bytes of a compact weight that are asked for ahead of their use.
const AHEAD: usize = 8 << 10;

thread_local! {
    static AVAILABLE: OnceCell<bool> = const { OnceCell::new() };
}

pub(super) fn available() -> bool {
    AVAILABLE.with(|there| *there.get_or_init(|| avx512::available() && is_x86_feature_detected!("avx512bf16")))
}

/// Values of a half of a row of x, padded with zeros to whole steps.
pub(super) fn padded(width: usize) -> usize {
    width.next_multiple_of(STEP)
}

/// Both halves of a row, [2, padded].
///
/// # Safety
/// [`available`]; there is room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn split(row: &[f32], to: *mut i16) {
    let padded = padded(row.len());
    for at in (0..padded).step_by(16) {
        let mask = mask16(row.len().saturating_sub(at));
        // SAFETY: values of the row alone are read; as the caller says.
        unsafe {
            let x = _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(at));
            let high = bits(_mm512_cvtneps_pbh(x));
            let wide = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high)));
            let low = bits(_mm512_cvtneps_pbh(_mm512_sub_ps(x, wide)));
            _mm256_storeu_si256(to.add(at).cast(), high);
            _mm256_storeu_si256(to.add(padded + at).cast(), low);
        }
    }
}

fn mask16(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bits(x: __m256bh) -> __m256i {
    // SAFETY: both are 256 bits.
    unsafe { std::mem::transmute(x) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(x: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits.
    unsafe { std::mem::transmute(x) }
}

/// A row of a compact weight, exceptions and all.
///
/// # Safety
/// [`available`]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn decode(weight: &CompactBf16, row: usize, to: &mut [bf16]) {
    let (bytes, exponents) = weight.row(row);
    // SAFETY: there are 16 exponents; each step has its bytes, and as many places. A hint may point behind the end.
    unsafe {
        let once = _mm256_loadu_si256(exponents.as_ptr().cast());
        // Twice, since what names one has five bits for the table, the fifth of which may be anything.
        let table = _mm512_broadcast_i64x4(once);
        let (sign, mantissa) = (_mm512_set1_epi16(i16::MIN), _mm512_set1_epi16(0x7f));
        for (step, to) in bytes.chunks_exact(compact::BYTES).zip(to.chunks_exact_mut(STEP)) {
            _mm_prefetch::<_MM_HINT_T0>(step.as_ptr().wrapping_add(AHEAD).cast());
            let short = _mm512_cvtepu8_epi16(_mm256_loadu_si256(step.as_ptr().cast()));
            let names = _mm256_cvtepu8_epi16(_mm_loadu_si128(step.as_ptr().add(STEP).cast()));
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(names), _mm256_srli_epi16::<4>(names));
            let exponents = _mm512_permutexvar_epi16(both, table);
            // (a & b) | c
            let low = _mm512_ternarylogic_epi64::<0xea>(short, mantissa, exponents);
            let value = _mm512_ternarylogic_epi64::<0xea>(_mm512_slli_epi16::<8>(short), sign, low);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), value);
        }
    }
    for (column, value) in weight.exceptions(row) {
        to[*column as usize] = *value;
    }
}

/// Some rows of weights by some of x.
pub(super) struct Part<'a> {
    /// Row by row, whole ones.
    pub weights: &'a [bf16],
    pub width: usize,
    /// The halves of the rows of x, each [2, padded].
    pub x: &'a [i16],
}

impl Part<'_> {
    /// w·x of `OUTS` rows of weights at most and `ROWS` of x, to `out` [rows of w, rows of x].
    ///
    /// # Safety
    /// [`available`]
    pub unsafe fn multiply(&self, out: &mut [f32; OUTS * ROWS]) -> usize {
        let outs = self.weights.len() / self.width;
        let rows = self.x.len() / (2 * padded(self.width));
        // SAFETY: as the caller says; as many rows as were counted.
        unsafe {
            match (outs, rows) {
                (4, 1) => self.rows::<4, 1>(out),
                (4, 2) => self.rows::<4, 2>(out),
                (4, 3) => self.rows::<4, 3>(out),
                (4, 4) => self.rows::<4, 4>(out),
                _ => {
                    for row in 0..outs {
                        let weights = &self.weights[row * self.width..][..self.width];
                        let mut some = [0.0; OUTS * ROWS];
                        let one = Part { weights, ..*self };
                        match rows {
                            1 => one.rows::<1, 1>(&mut some),
                            2 => one.rows::<1, 2>(&mut some),
                            3 => one.rows::<1, 3>(&mut some),
                            _ => one.rows::<1, 4>(&mut some),
                        }
                        out[row * rows..][..rows].copy_from_slice(&some[..rows]);
                    }
                }
            }
        }
        rows
    }

    /// # Safety
    /// [`available`]; there are so many rows of both.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn rows<const W: usize, const X: usize>(&self, out: &mut [f32; OUTS * ROWS]) {
        let (width, padded) = (self.width, padded(self.width));
        let (weights, x) = (self.weights.as_ptr(), self.x.as_ptr());
        let mut acc = [[_mm512_setzero_ps(); X]; W];
        for at in (0..padded).step_by(STEP) {
            let left = width - at;
            let mask: __mmask32 = if left >= STEP { !0 } else { (1 << left) - 1 };
            // SAFETY: values of the rows alone are read; hints may point behind the end: the rows after these.
            unsafe {
                let mut w = [pairs(_mm512_setzero_si512()); W];
                for (row, w) in w.iter_mut().enumerate() {
                    let place = weights.wrapping_add(row * width + at);
                    _mm_prefetch::<_MM_HINT_T1>(place.wrapping_add(W * width).cast());
                    *w = pairs(_mm512_maskz_loadu_epi16(mask, place.cast()));
                }
                for of_x in 0..X {
                    let high = x.add(2 * of_x * padded + at);
                    let halves = [high, high.add(padded)].map(|half| pairs(_mm512_loadu_si512(half.cast())));
                    for (acc, w) in acc.iter_mut().zip(w) {
                        for half in halves {
                            acc[of_x] = _mm512_dpbf16_ps(acc[of_x], w, half);
                        }
                    }
                }
            }
        }
        for (out, acc) in out.chunks_exact_mut(X).zip(acc) {
            for (out, acc) in out.iter_mut().zip(acc) {
                *out = _mm512_reduce_add_ps(acc);
            }
        }
    }
}
