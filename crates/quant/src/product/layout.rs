//! How the numbers of W and x come to lie in tiles ([`super::amx`]), which take values in any order that both share.
//!
//! Two blocks are unpacked at a time: 64 bytes are 32 lanes with four numbers each, so step n of four has from each lane its
//! nth number, and every fourth value of the 128. x's values follow in that order; the last block of an odd number has zeros
//! beside it.

use std::arch::x86_64::*;

use half::bf16;

use super::BLOCK;
use super::amx::{OUTS, SIDE, STEP, TILE, columns};
use super::avx512::NEIGHBOUR;

/// Values of a row that are unpacked together, and their steps.
pub(super) const CHUNK: usize = 2 * BLOCK;
pub(super) const STEPS: usize = CHUNK / STEP;

/// A row's length in whole chunks.
pub(super) const fn padded(width: usize) -> usize {
    width.next_multiple_of(CHUNK)
}

/// Values of half of the rows, unpacked, for so many values of each: [steps, 16, 32].
pub(super) const fn room(width: usize) -> usize {
    width * SIDE
}

/// Rows of a 4-bit weight, packed.
pub(super) struct Packed<'a> {
    /// The rows lie `stride` apart.
    pub bytes: *const u8,
    pub stride: usize,
    /// Of each row.
    pub blocks: usize,
    pub values: &'a [f32; 16],
    /// One a block, and a zero behind an odd number; the rows' lie `scale_stride` apart.
    pub scales: *const f32,
    pub scale_stride: usize,
    /// How far behind these rows lies what will be wanted next.
    pub ahead: usize,
}

/// Rows of which chunks are unpacked.
pub(super) trait Rows {
    /// A chunk of `N` rows of a half, from `first` on.
    ///
    /// # Safety
    /// [`super::amx::available`]; there are so many rows and chunks; `to` is [`room`] for a chunk of the half.
    unsafe fn unpack<const N: usize>(&self, first: usize, chunk: usize, to: *mut u16);
}

impl Rows for Packed<'_> {
    /// value·scale, rounded to bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn unpack<const N: usize>(&self, first: usize, chunk: usize, to: *mut u16) {
        // From the front to the back, so that the processor's own foresight sees a stream.
        let next = self.bytes.wrapping_add(self.ahead + (chunk * OUTS + first) * (CHUNK / 2));
        // SAFETY: as the caller says.
        unsafe {
            let bytes = self.bytes.add(first * self.stride + chunk * (CHUNK / 2));
            let scales = self.scales.add(first * self.scale_stride + 2 * chunk);
            let to = to.add(first % SIDE * STEP);
            let whole = 2 * chunk + 1 < self.blocks;
            for row in 0..N {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(row * (CHUNK / 2)).cast());
                let bytes = bytes.add(row * self.stride);
                let numbers = match whole {
                    true => _mm512_loadu_si512(bytes.cast()),
                    false => _mm512_zextsi256_si512(_mm256_loadu_si256(bytes.cast())),
                };
                let steps = self.values(numbers, scales.add(row * self.scale_stride));
                for (step, values) in steps.into_iter().enumerate() {
                    _mm512_storeu_si512(to.add(step * TILE + row * STEP).cast(), values);
                }
            }
        }
    }
}

impl Packed<'_> {
    /// What the numbers of two blocks stand for, every fourth in a register.
    ///
    /// # Safety
    /// [`super::amx::available`]; there are two scales.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn values(&self, numbers: __m512i, scales: *const f32) -> [__m512i; STEPS] {
        let (low, second) =
            (_mm512_set1_epi8(15), _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi8(16)));
        // SAFETY: there are 16 values, and as the caller says; tables are 64 bytes.
        let table = unsafe {
            let values = _mm512_loadu_ps(self.values.as_ptr());
            let first = _mm512_mul_ps(values, _mm512_set1_ps(*scales));
            let next = _mm512_mul_ps(values, _mm512_set1_ps(*scales.add(1)));
            // The results of both blocks; a lane of the second has the fifth bit, which looks into its half of the table.
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(next, first))
        };
        // (a & b) | c, of the lower number of each byte and of the upper. What looks up takes a lane's lower byte.
        let number = |numbers| _mm512_ternarylogic_epi32::<0xea>(numbers, low, second);
        let (lower, upper) = (number(numbers), number(_mm512_srli_epi16::<4>(numbers)));
        let look_up = |numbers| _mm512_permutexvar_epi16(numbers, table);
        [look_up(lower), look_up(upper), look_up(_mm512_srli_epi16::<8>(lower)), look_up(_mm512_srli_epi16::<8>(upper))]
    }
}

/// Rows of a weight in bf16, `width` apart.
pub(super) struct Dense {
    pub values: *const bf16,
    pub width: usize,
    /// How far behind these rows lies what will be wanted next.
    pub ahead: usize,
}

impl Rows for Dense {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn unpack<const N: usize>(&self, first: usize, chunk: usize, to: *mut u16) {
        let count = CHUNK.min(self.width - chunk * CHUNK);
        for row in first..first + N {
            let ahead = self.values.wrapping_add(self.ahead + (chunk * OUTS + row) * CHUNK);
            // SAFETY: as the caller says.
            unsafe {
                let values = std::slice::from_raw_parts(self.values.add(row * self.width + chunk * CHUNK), count);
                arrange(values, row, to, ahead);
            }
        }
    }
}

/// Every fourth value of a chunk in four registers, from each of the first four on in turn: what the steps have.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn steps([a, b, c, d]: [__m512i; STEPS]) -> [__m512i; STEPS] {
    let fourths = _mm512_set_epi16(
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0,
    );
    let mut steps = [a; STEPS];
    for (step, neighbour) in steps.iter_mut().zip(NEIGHBOUR) {
        let order = _mm512_add_epi16(fourths, _mm512_set1_epi16(neighbour as i16));
        let (first, second) = (_mm512_permutex2var_epi16(a, order, b), _mm512_permutex2var_epi16(c, order, d));
        *step = _mm512_inserti64x4::<1>(first, _mm512_castsi512_si256(second));
    }
    steps
}

/// A row's chunk, with zeros behind an end that is no whole one.
#[inline(always)]
fn whole<T: Copy + Default>(values: &[T], filled: &mut [T; CHUNK]) -> *const T {
    if values.len() < CHUNK {
        *filled = [T::default(); CHUNK];
        filled[..values.len()].copy_from_slice(values);
        return filled.as_ptr();
    }
    values.as_ptr()
}

/// A row's chunk in bf16, in the order of what is unpacked.
///
/// # Safety
/// [`super::amx::available`]; `to` is [`room`] for a chunk of the row's half.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn arrange(values: &[bf16], row: usize, to: *mut u16, ahead: *const bf16) {
    let mut filled = [bf16::ZERO; CHUNK];
    let values = whole(values, &mut filled);
    for line in 0..CHUNK / STEP {
        _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line * STEP).cast());
    }
    // SAFETY: four times 32 values.
    let values = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(values.add(i * STEP).cast()) });
    for (step, values) in steps(values).into_iter().enumerate() {
        // SAFETY: as the caller says.
        unsafe { _mm512_storeu_si512(to.add(step * TILE + row % SIDE * STEP).cast(), values) };
    }
}

/// Puts the rows of a group of x, [members, width], beside each other: [steps, 16 pairs, members, 2].
///
/// # Safety
/// [`super::amx::available`]; there are [`SIDE`] rows at most, and room for whole chunks of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn place_group(rows: &[f32], width: usize, group: *mut u32) {
    let members = rows.len() / width;
    let present = (1u32 << members).wrapping_sub(1) as __mmask16;
    let mut of_step = [[_mm512_setzero_ps(); SIDE]; STEPS];
    let mut filled = [0f32; CHUNK];
    for chunk in 0..width.div_ceil(CHUNK) {
        for (member, row) in rows.chunks_exact(width).enumerate() {
            let values = whole(&row[chunk * CHUNK..], &mut filled);
            let narrow = std::array::from_fn(|i| {
                // SAFETY: 32 values; both types are 64 bytes.
                unsafe {
                    let (low, high) =
                        (_mm512_loadu_ps(values.add(i * STEP)), _mm512_loadu_ps(values.add(i * STEP + SIDE)));
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
                }
            });
            for (step, pairs) in steps(narrow).into_iter().enumerate() {
                of_step[step][member] = _mm512_castsi512_ps(pairs);
            }
        }
        for (step, rows) in of_step.iter().enumerate() {
            // SAFETY: as the caller says.
            let to = unsafe { group.add((chunk * STEPS + step) * SIDE * members) };
            if members == 1 {
                // SAFETY: as the caller says.
                unsafe { _mm512_storeu_ps(to.cast(), rows[0]) };
                continue;
            }
            for (pair, values) in columns(*rows).into_iter().enumerate() {
                // SAFETY: as the caller says: what is not present is not written.
                unsafe { _mm512_mask_storeu_ps(to.add(pair * members).cast(), present, values) };
            }
        }
    }
}
