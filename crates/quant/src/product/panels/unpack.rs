//! Weights as the kernel takes them: pairs of the values that are summed over, each of all outputs of a panel, [pairs, 32, 2] in bf16.
//!
//! A value is the code's times its block's scale in f32, rounded (of a weight in f16 to that first): what a dequantised weight in
//! bf16 has.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::super::columns::turn;
use super::{BLOCK, Factor, Matrix, OUTS, Term};

/// Outputs of a register.
const LANES: usize = 16;

/// Outputs from `first` on of `out`, for some of the values that are summed over. What is behind the last output is anything.
pub(super) struct Panel {
    pub first: usize,
    pub out: usize,
    pub values: Range<usize>,
}

impl Panel {
    /// # Safety
    /// [`super::halves::available`]; the term has these outputs and values; there is room for the panel.
    pub unsafe fn unpack(&self, term: Term<'_>, to: *mut [u32; OUTS], scales: &mut Vec<f32>) {
        // SAFETY: as the caller says.
        unsafe {
            match term.factor {
                Factor::FourBit(matrix) if matrix.is_f16() => self.four_bit::<true>(&matrix, to, scales),
                Factor::FourBit(matrix) => self.four_bit::<false>(&matrix, to, scales),
                Factor::FourBitBack(matrix) if matrix.is_f16() => self.four_bit_back::<true>(&matrix, to),
                Factor::FourBitBack(matrix) => self.four_bit_back::<false>(&matrix, to),
                Factor::Dense(weights) => self.dense(|out, value| weights[out * term.x.width + value], to),
                Factor::DenseBack(weights) => self.dense(|out, value| weights[value * self.out + out], to),
            }
        }
    }

    /// Outputs are rows of the weight, which are turned.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn four_bit<const F16: bool>(&self, matrix: &Matrix<'_>, to: *mut [u32; OUTS], scales: &mut Vec<f32>) {
        let count = OUTS.min(self.out - self.first);
        let padded = matrix.padded_blocks();
        scales.resize((OUTS * padded).max(scales.len()), 0.0);
        matrix.scales(self.first, count, scales);
        let blocks = 0..matrix.width() / BLOCK;
        // The rows that are not there are the last one again.
        let own = |at: usize| at.min(count - 1);
        let rows: [*const u8; OUTS] =
            std::array::from_fn(|at| matrix.bytes(self.first + own(at), blocks.clone()).as_ptr());
        // SAFETY: sixteen values.
        let table = unsafe { _mm512_loadu_ps(matrix.values().as_ptr()) };
        let order = interleaved();
        for (at, block) in (self.values.start / BLOCK..self.values.end / BLOCK).enumerate() {
            for (half, rows) in rows.as_chunks::<LANES>().0.iter().enumerate() {
                let scale: [f32; LANES] = std::array::from_fn(|at| scales[own(half * LANES + at) * padded + block]);
                // SAFETY: sixteen values.
                let scale = unsafe { _mm512_loadu_ps(scale.as_ptr()) };
                for piece in 0..2 {
                    // SAFETY: each row has so many bytes.
                    let words = unsafe { turn(rows, block * BLOCK / 2 + piece * LANES) };
                    for (word, numbers) in words.into_iter().enumerate() {
                        let value =
                            |numbers| own_type::<F16>(_mm512_mul_ps(_mm512_permutexvar_ps(numbers, table), scale));
                        // Of a byte the high four bits come first.
                        let pairs = [
                            (value(_mm512_srli_epi32::<4>(numbers)), value(numbers)),
                            (value(_mm512_srli_epi32::<12>(numbers)), value(_mm512_srli_epi32::<8>(numbers))),
                            (value(_mm512_srli_epi32::<20>(numbers)), value(_mm512_srli_epi32::<16>(numbers))),
                            (value(_mm512_srli_epi32::<28>(numbers)), value(_mm512_srli_epi32::<24>(numbers))),
                        ];
                        for (pair, (even, odd)) in pairs.into_iter().enumerate() {
                            let place = at * (BLOCK / 2) + piece * LANES + word * 4 + pair;
                            // SAFETY: as the caller says.
                            unsafe { put(even, odd, order, to.add(place).cast::<__m512i>().add(half)) };
                        }
                    }
                }
            }
        }
    }

    /// Outputs are columns of the weight, and what is summed over its rows.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn four_bit_back<const F16: bool>(&self, matrix: &Matrix<'_>, to: *mut [u32; OUTS]) {
        let (column_block, begin) = (self.first / BLOCK, self.first % BLOCK / 2);
        // SAFETY: sixteen values.
        let table = unsafe { _mm512_loadu_ps(matrix.values().as_ptr()) };
        let order = interleaved();
        let high_first = _mm512_set1_epi64(4);
        let row = |row: usize| -> [__m512; 2] {
            if row >= self.values.end {
                return [_mm512_setzero_ps(); 2];
            }
            let bytes = &matrix.bytes(row, column_block..column_block + 1)[begin..begin + OUTS / 2];
            let scale = _mm512_set1_ps(matrix.scale(row, column_block));
            let table = own_type::<F16>(_mm512_mul_ps(table, scale));
            // SAFETY: sixteen bytes.
            let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
            // Each byte twice, the first time its high bits come down.
            let look_up = |twice| {
                let numbers = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(twice), high_first);
                _mm512_permutexvar_ps(numbers, table)
            };
            [look_up(_mm_unpacklo_epi8(bytes, bytes)), look_up(_mm_unpackhi_epi8(bytes, bytes))]
        };
        for (pair, first) in self.values.clone().step_by(2).enumerate() {
            for (half, (even, odd)) in row(first).into_iter().zip(row(first + 1)).enumerate() {
                // SAFETY: as the caller says.
                unsafe { put(even, odd, order, to.add(pair).cast::<__m512i>().add(half)) };
            }
        }
    }

    /// # Safety
    /// There is room for the panel.
    unsafe fn dense(&self, value: impl Fn(usize, usize) -> bf16, to: *mut [u32; OUTS]) {
        let count = OUTS.min(self.out - self.first);
        for (pair, first) in self.values.clone().step_by(2).enumerate() {
            // SAFETY: as the caller says.
            let pairs = unsafe { &mut *to.add(pair) };
            for (at, to) in pairs[..count].iter_mut().enumerate() {
                let of = |number| if number < self.values.end { value(self.first + at, number).to_bits() } else { 0 };
                *to = u32::from(of(first)) | u32::from(of(first + 1)) << 16;
            }
        }
    }
}

/// Rounded to the weight's own type; f32 and bf16 need nothing, since bf16 comes next.
#[inline]
#[target_feature(enable = "avx512f")]
fn own_type<const F16: bool>(values: __m512) -> __m512 {
    if F16 { _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values)) } else { values }
}

/// Which of 32 values, sixteen and sixteen others, stands in each place when they take turns.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleaved() -> __m512i {
    const ORDER: [u16; OUTS] = {
        let mut order = [0; OUTS];
        let mut place = 0;
        while place < OUTS {
            order[place] = (place / 2 + place % 2 * LANES) as u16;
            place += 1;
        }
        order
    };
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
}

/// Sixteen pairs.
///
/// # Safety
/// There is room for them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn put(even: __m512, odd: __m512, order: __m512i, to: *mut __m512i) {
    // SAFETY: both types are 64 bytes; as the caller says.
    unsafe {
        let narrow = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
        _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(order, narrow));
    }
}
