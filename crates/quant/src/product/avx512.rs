//! The kernels for 4-bit weights with AVX-512 and its products of 16-bit integers (VNNI).
//!
//! Two rows of the weight lie in a register, one in each half: each half adds what a register of AVX2 adds, in the same order,
//! so the bits are the same. `vpermw` looks up 32 levels at a time by the low five bits of each lane; the table has every level
//! twice, so that the fifth may be anything. For 128 weights that is 9 instructions to unpack, shared by all rows of x, and 7 a
//! row.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{BLOCK, Kernels, Lanes, Levels, Part, avx2, by_rows};

pub(super) const KERNELS: Kernels = Kernels { packed, unpacked, ..avx2::KERNELS };

/// Packed bytes that are asked for ahead of their use.
const AHEAD: usize = 32 << 10;
/// Lanes of the second row.
const SECOND: __mmask16 = 0xff00;

pub(super) fn available() -> bool {
    avx2::available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn table(levels: &Levels) -> __m512i {
    // SAFETY: there are 16 values.
    let once = unsafe { _mm256_loadu_si256(levels.values.as_ptr().cast()) };
    _mm512_broadcast_i64x4(once)
}

/// 32 bytes in each half.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn both<T>(first: *const T, second: *const T) -> __m512i {
    // SAFETY: as the caller says.
    let (first, second) = unsafe { (_mm256_loadu_si256(first.cast()), _mm256_loadu_si256(second.cast())) };
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
}

/// Levels of a block of each row, in the order of [`super::element`].
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn levels(bytes: __m512i, table: __m512i) -> [__m512i; 4] {
    // Each byte twice in a lane: its low number is in the low bits, and its high number four further up.
    let (low, high) = (_mm512_unpacklo_epi8(bytes, bytes), _mm512_unpackhi_epi8(bytes, bytes));
    [
        _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(low), table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(high), table),
        _mm512_permutexvar_epi16(low, table),
        _mm512_permutexvar_epi16(high, table),
    ]
}

/// acc + Σ of two products of 16-bit integers, lane by lane. Not by its intrinsic, which LLVM takes apart into two
/// instructions to shorten a chain that nothing waits for.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_products(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: registers only.
    unsafe {
        asm!("vpdpwssd {0}, {1}, {2}", inout(zmm_reg) acc, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// Σ of 64 products of each row in 8 lanes, for ROWS rows of x: their chains side by side, since each waits for itself.
///
/// # Safety
/// ROWS·64 values are there.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn block<const ROWS: usize>(w: [__m512i; 4], x: *const i16) -> [__m512i; ROWS] {
    // SAFETY: as the caller says.
    let x = |row: usize, i: usize| unsafe {
        _mm512_broadcast_i64x4(_mm256_loadu_si256(x.add(row * BLOCK).cast::<__m256i>().add(i)))
    };
    let mut sums = std::array::from_fn(|row| _mm512_madd_epi16(w[0], x(row, 0)));
    for (i, w) in w.into_iter().enumerate().skip(1) {
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = add_products(*sum, w, x(row, i));
        }
    }
    sums
}

/// Two rows of a weight by ROWS rows of x: `weights`, `scales` and `sums` [ROWS] of each.
///
/// # Safety
/// All that the blocks and rows call for is there.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn add<const ROWS: usize, T>(
    [mut first, mut second]: [*const T; 2],
    [first_scales, second_scales]: [*const f32; 2],
    part: &Part<'_, T>,
    per_block: usize,
    load: impl Fn(*const T, *const T) -> [__m512i; 4],
    [first_sums, second_sums]: [*mut Lanes; 2],
) {
    let mut acc = [_mm512_setzero_ps(); ROWS];
    for (row, acc) in acc.iter_mut().enumerate() {
        // SAFETY: as the caller says.
        *acc = _mm512_castsi512_ps(unsafe { both(first_sums.add(row), second_sums.add(row)) });
    }
    let (mut x, mut x_scales) = (part.x.values.as_ptr(), part.x.scales.as_ptr());
    for at in 0..part.blocks {
        let w = load(first, second);
        // SAFETY: a scale for each block.
        let scales = unsafe {
            let first = _mm512_set1_ps(*first_scales.add(at));
            _mm512_mask_broadcastss_ps(first, SECOND, _mm_load_ss(second_scales.add(at)))
        };
        // SAFETY: ROWS·64 values a block.
        let sums = unsafe { block::<ROWS>(w, x) };
        for (row, (acc, sum)) in acc.iter_mut().zip(sums).enumerate() {
            // SAFETY: ROWS scales a block.
            let scale = unsafe { _mm512_set1_ps(*x_scales.add(row)) };
            *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scales, scale), *acc);
        }
        // SAFETY: one past the end at most.
        unsafe {
            (first, second) = (first.add(per_block), second.add(per_block));
            (x, x_scales) = (x.add(ROWS * BLOCK), x_scales.add(ROWS));
        }
    }
    for (row, acc) in acc.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(first_sums.add(row).cast(), _mm512_castps512_ps256(acc));
            _mm256_storeu_pd(second_sums.add(row).cast(), _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(acc)));
        }
    }
}

/// The rows of a weight, two by two: one of the first half and one of the second, so that memory is read in two streams that
/// do not meet in a page. The last of an odd number is AVX2's.
///
/// # Safety
/// As for [`packed`].
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn pairs<const ROWS: usize, T>(
    part: &Part<'_, T>,
    per_block: usize,
    load: impl Fn(*const T, *const T) -> [__m512i; 4] + Copy,
    one: unsafe fn(&Part<'_, T>, usize, *mut Lanes),
    sums: *mut Lanes,
) {
    let row = |out: usize| part.row(out, per_block);
    let half = part.outs / 2;
    for out in 0..half {
        let ((first, first_scales), (second, second_scales)) = (row(out), row(half + out));
        let weights = [first.as_ptr(), second.as_ptr()];
        let scales = [first_scales.as_ptr(), second_scales.as_ptr()];
        // SAFETY: as the caller says.
        unsafe {
            let sums = [sums.add(out * ROWS), sums.add((half + out) * ROWS)];
            add::<ROWS, T>(weights, scales, part, per_block, load, sums);
        }
    }
    if !part.outs.is_multiple_of(2) {
        let out = part.outs - 1;
        let (weights, scales) = row(out);
        // SAFETY: as the caller says.
        unsafe { one(&Part { outs: 1, weights, scales, ..*part }, ROWS, sums.add(out * ROWS)) };
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn packed_rows<const ROWS: usize>(part: &Part<'_, u8>, sums: *mut Lanes) {
    let table = table(part.levels);
    let load = |first: *const u8, second: *const u8| {
        // Hints that may point behind the end: the rows after the next.
        _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(AHEAD).cast());
        _mm_prefetch::<_MM_HINT_T1>(second.wrapping_add(AHEAD).cast());
        // SAFETY: a block has 32 bytes.
        levels(unsafe { both(first, second) }, table)
    };
    // SAFETY: as the caller says.
    unsafe { pairs::<ROWS, u8>(part, BLOCK / 2, load, avx2::packed, sums) };
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpacked_rows<const ROWS: usize>(part: &Part<'_, i16>, sums: *mut Lanes) {
    let load = |first: *const i16, second: *const i16| {
        // SAFETY: a block has four halves of a register.
        std::array::from_fn(|i| unsafe { both(first.add(16 * i), second.add(16 * i)) })
    };
    // SAFETY: as the caller says.
    unsafe { pairs::<ROWS, i16>(part, BLOCK, load, avx2::unpacked, sums) };
}

/// # Safety
/// The processor has what [`available`] looks for; `sums` has an entry for each pair of rows; of x's there are
/// [`super::GROUP`] at most.
unsafe fn packed(part: &Part<'_, u8>, rows: usize, sums: *mut Lanes) {
    // SAFETY: as the caller says.
    unsafe { by_rows!(packed_rows(part, rows, sums)) }
}

/// # Safety
/// As for [`packed`].
unsafe fn unpacked(part: &Part<'_, i16>, rows: usize, sums: *mut Lanes) {
    // SAFETY: as the caller says.
    unsafe { by_rows!(unpacked_rows(part, rows, sums)) }
}
