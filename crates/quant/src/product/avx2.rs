//! The kernels with AVX2 and FMA.
//!
//! A block of 64 levels: two byte shuffles by each half of the bytes' numbers (low and high byte of the level) and two
//! interleavings give four vectors of 16 integers, in the order of [`super::element`]; `vpmaddwd` multiplies and adds pairs.
//! That is 12 instructions to unpack, shared by all rows of x, and 9 a row for 64 products.

use std::arch::x86_64::*;

use half::bf16;

use super::{BLOCK, Dense, GROUP, Kernels, Lanes, Levels, Part, STRIDE, by_rows, total};

pub(super) const KERNELS: Kernels = Kernels { packed, unpacked, unpack, dense, dense_outs: 2, expand, totals };

/// Packed bytes that are asked for ahead of their use.
const AHEAD: usize = 2048;
/// Values of bf16 in a cache line.
pub(super) const LINE: usize = 32;

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// The low and the high bytes of the levels, in both halves of a register.
type Tables = (__m256i, __m256i);

#[inline]
#[target_feature(enable = "avx2,fma")]
fn tables(levels: &Levels) -> Tables {
    // SAFETY: both have 16 bytes.
    let (low, high) =
        unsafe { (_mm_loadu_si128(levels.low.as_ptr().cast()), _mm_loadu_si128(levels.high.as_ptr().cast())) };
    (_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high))
}

/// # Safety
/// 32 bytes are there.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn levels(bytes: *const u8, (low, high): Tables) -> [__m256i; 4] {
    // SAFETY: as the caller says.
    let bytes = unsafe { _mm256_loadu_si256(bytes.cast()) };
    let mask = _mm256_set1_epi8(15);
    let (even, odd) = (_mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask), _mm256_and_si256(bytes, mask));
    let (even_low, even_high) = (_mm256_shuffle_epi8(low, even), _mm256_shuffle_epi8(high, even));
    let (odd_low, odd_high) = (_mm256_shuffle_epi8(low, odd), _mm256_shuffle_epi8(high, odd));
    [
        _mm256_unpacklo_epi8(even_low, even_high),
        _mm256_unpackhi_epi8(even_low, even_high),
        _mm256_unpacklo_epi8(odd_low, odd_high),
        _mm256_unpackhi_epi8(odd_low, odd_high),
    ]
}

/// Σ of 64 products in 8 lanes.
///
/// # Safety
/// 64 values are there.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn block(w: [__m256i; 4], x: *const i16) -> __m256i {
    let x: *const __m256i = x.cast();
    // SAFETY: as the caller says.
    let pair = |i: usize| unsafe { _mm256_madd_epi16(w[i], _mm256_loadu_si256(x.add(i))) };
    _mm256_add_epi32(_mm256_add_epi32(pair(0), pair(1)), _mm256_add_epi32(pair(2), pair(3)))
}

/// A value in all lanes, from memory: left to itself the compiler keeps the table it came from in registers and takes it apart
/// by shuffles, which are what the kernel is short of.
///
/// # Safety
/// The value is there.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn broadcast(value: *const f32) -> __m256 {
    let lanes;
    // SAFETY: as the caller says.
    unsafe {
        std::arch::asm!(
            "vbroadcastss {lanes}, dword ptr [{value}]",
            lanes = lateout(ymm_reg) lanes,
            value = in(reg) value,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    lanes
}

/// Each row of a weight by ROWS rows of x.
///
/// # Safety
/// `sums` has an entry for each pair of rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn each<const ROWS: usize, T>(
    part: &Part<'_, T>,
    per_block: usize,
    load: impl Fn(*const T) -> [__m256i; 4] + Copy,
    sums: *mut Lanes,
) {
    for out in 0..part.outs {
        let (weights, scales) = part.row(out, per_block);
        // SAFETY: as the caller says.
        unsafe { add::<ROWS, T>(weights, scales, part, per_block, load, sums.add(out * ROWS)) };
    }
}

/// One row of a weight by ROWS rows of x.
///
/// # Safety
/// The slices are as long as the part's blocks say; `sums` has an entry for each row.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add<const ROWS: usize, T>(
    weights: &[T],
    scales: &[f32],
    part: &Part<'_, T>,
    per_block: usize,
    load: impl Fn(*const T) -> [__m256i; 4],
    sums: *mut Lanes,
) {
    let mut acc = [_mm256_setzero_ps(); ROWS];
    for (row, acc) in acc.iter_mut().enumerate() {
        // SAFETY: as the caller says.
        *acc = unsafe { _mm256_loadu_ps(sums.add(row).cast()) };
    }
    let (mut weights, mut x) = (weights.as_ptr(), part.x.values.as_ptr());
    let (mut weight_scales, mut x_scales) = (scales.as_ptr(), part.x.scales.as_ptr());
    // Of a stride's blocks and the rows, by intrinsics alone: the compiler's own idea of this table is ten times as long.
    let mut scales = [[0f32; GROUP]; STRIDE];
    let mut left = part.blocks;
    while left > 0 {
        // SAFETY: both are padded to whole strides, x's with eight more.
        unsafe {
            if ROWS == 1 {
                let both = _mm256_mul_ps(_mm256_loadu_ps(weight_scales), _mm256_loadu_ps(x_scales));
                _mm256_storeu_ps(scales[0].as_mut_ptr(), both);
            } else {
                for (block, scales) in scales.iter_mut().enumerate() {
                    let of_x = _mm256_loadu_ps(x_scales.add(block * ROWS));
                    let both = _mm256_mul_ps(_mm256_broadcast_ss(&*weight_scales.add(block)), of_x);
                    _mm256_storeu_ps(scales.as_mut_ptr(), both);
                }
            }
            (weight_scales, x_scales) = (weight_scales.add(STRIDE), x_scales.add(STRIDE * ROWS));
        }
        let blocks = left.min(STRIDE);
        let scales = scales.as_flattened();
        let mut step = |at: usize| {
            let w = load(weights);
            for (row, acc) in acc.iter_mut().enumerate() {
                // SAFETY: a scale for each block and row; ROWS·64 values a block.
                let (scale, sum) = unsafe {
                    let scale = scales.as_ptr().add(if ROWS == 1 { at } else { at * GROUP + row });
                    (broadcast(scale), block(w, x.add(row * BLOCK)))
                };
                *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, *acc);
            }
            // SAFETY: one past the end at most.
            unsafe { (weights, x) = (weights.add(per_block), x.add(ROWS * BLOCK)) };
        };
        if ROWS == 1 && blocks == STRIDE {
            // A number the compiler knows, so that it does without counting.
            (0..STRIDE).for_each(&mut step);
        } else {
            (0..blocks).for_each(&mut step);
        }
        left -= blocks;
    }
    for (row, acc) in acc.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(sums.add(row).cast(), acc) };
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn packed_rows<const ROWS: usize>(part: &Part<'_, u8>, sums: *mut Lanes) {
    let tables = tables(part.levels);
    let load = |bytes: *const u8| {
        // A hint that may point behind the end: the next row's bytes, which memory's own foresight stops short of.
        _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(AHEAD).cast());
        // SAFETY: a block has 32 bytes.
        unsafe { levels(bytes, tables) }
    };
    // SAFETY: as the caller says.
    unsafe { each::<ROWS, u8>(part, BLOCK / 2, load, sums) };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn unpacked_rows<const ROWS: usize>(part: &Part<'_, i16>, sums: *mut Lanes) {
    let load = |levels: *const i16| {
        let levels: *const __m256i = levels.cast();
        // SAFETY: a block has four vectors.
        unsafe {
            [
                _mm256_loadu_si256(levels),
                _mm256_loadu_si256(levels.add(1)),
                _mm256_loadu_si256(levels.add(2)),
                _mm256_loadu_si256(levels.add(3)),
            ]
        }
    };
    // SAFETY: as the caller says.
    unsafe { each::<ROWS, i16>(part, BLOCK, load, sums) };
}

/// # Safety
/// The processor has AVX2 and FMA; `sums` has an entry for each pair of rows; of x's there are [`GROUP`] at most.
pub(super) unsafe fn packed(part: &Part<'_, u8>, rows: usize, sums: *mut Lanes) {
    // SAFETY: as the caller says.
    unsafe { by_rows!(packed_rows[rows](part, sums)) }
}

/// # Safety
/// As for [`packed`].
pub(super) unsafe fn unpacked(part: &Part<'_, i16>, rows: usize, sums: *mut Lanes) {
    // SAFETY: as the caller says.
    unsafe { by_rows!(unpacked_rows[rows](part, sums)) }
}

/// # Safety
/// The processor has AVX2 and FMA.
unsafe fn unpack(packed: &[&[u8]], values: &Levels, out: &mut [i16]) {
    let width = out.len() / packed.len().max(1);
    for (packed, out) in packed.iter().zip(out.chunks_exact_mut(width.max(1))) {
        // SAFETY: as the caller says.
        unsafe { unpack_row(packed, values, out) };
    }
}

/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn unpack_row(packed: &[u8], values: &Levels, out: &mut [i16]) {
    let tables = tables(values);
    for (bytes, out) in packed.as_chunks::<{ BLOCK / 2 }>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        // SAFETY: 32 bytes are there, and room for 64 integers.
        unsafe {
            for (i, vector) in levels(bytes.as_ptr(), tables).into_iter().enumerate() {
                _mm256_storeu_si256(out.as_mut_ptr().cast::<__m256i>().add(i), vector);
            }
        }
    }
}

/// Eight values of bf16 as f32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn wide(values: *const bf16) -> __m256 {
    // SAFETY: as the caller says.
    let values = unsafe { _mm_loadu_si128(values.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(values)))
}

/// # Safety
/// The processor has AVX2 and FMA; `sums` has an entry for each pair of rows.
unsafe fn dense(part: &Dense<'_>, sums: *mut Lanes) {
    // SAFETY: as the caller says.
    unsafe {
        match part.shape() {
            (4, 1) => dense_rows::<4, 1>(part, sums),
            (4, 2) => dense_rows::<4, 2>(part, sums),
            (2, 1) => dense_rows::<2, 1>(part, sums),
            (2, 2) => dense_rows::<2, 2>(part, sums),
            (2, 3) => dense_rows::<2, 3>(part, sums),
            (2, 4) => dense_rows::<2, 4>(part, sums),
            (out, rows) => {
                for at in 0..out * rows {
                    let (w, x) = (at / rows * part.width, at % rows * part.width);
                    let (weights, x) = (&part.weights[w..w + part.width], &part.x[x..x + part.width]);
                    dense_rows::<1, 1>(&Dense { weights, x, width: part.width }, sums.add(at));
                }
            }
        }
    }
}

/// As [`super::portable::dot`], for all pairs of rows at a time.
#[target_feature(enable = "avx2,fma")]
unsafe fn dense_rows<const OUT: usize, const ROWS: usize>(part: &Dense<'_>, sums: *mut Lanes) {
    let width = part.width;
    let whole = width / 8 * 8;
    let mut acc = [[_mm256_setzero_ps(); ROWS]; OUT];
    let (weights, x) = (part.weights.as_ptr(), part.x.as_ptr());
    for line in (0..whole).step_by(LINE) {
        for out in 0..OUT {
            // Hints that may point behind the end: the rows after these, whose beginnings memory's own foresight misses.
            _mm_prefetch::<_MM_HINT_T1>(weights.wrapping_add((OUT + out) * width + line).cast());
        }
        for at in (line..whole.min(line + LINE)).step_by(8) {
            // SAFETY: eight values are there in each row.
            unsafe {
                let x: [__m256; ROWS] = std::array::from_fn(|row| _mm256_loadu_ps(x.add(row * width + at)));
                for (out, acc) in acc.iter_mut().enumerate() {
                    let weights = wide(weights.add(out * width + at));
                    for (acc, x) in acc.iter_mut().zip(x) {
                        *acc = _mm256_fmadd_ps(weights, x, *acc);
                    }
                }
            }
        }
    }
    for (out, acc) in acc.into_iter().enumerate() {
        for (row, acc) in acc.into_iter().enumerate() {
            // SAFETY: `sums` has an entry for each pair.
            let sums = unsafe { &mut *sums.add(out * ROWS + row) };
            // SAFETY: eight sums.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), acc) };
            let (weights, x) = (&part.weights[out * width..][whole..width], &part.x[row * width..][whole..width]);
            super::portable::dot(weights, x, sums);
        }
    }
}

/// # Safety
/// The processor has AVX2 and FMA; there are as many rows of `b` as values, `stride` apart and as long as `y`.
unsafe fn expand(b: *const bf16, stride: usize, values: &[f32], y: &mut [f32]) {
    #[target_feature(enable = "avx2,fma")]
    unsafe fn eights(b: *const bf16, stride: usize, values: &[f32], y: &mut [[f32; 8]]) {
        for (at, y) in y.iter_mut().enumerate() {
            // SAFETY: as the caller says.
            unsafe {
                let mut acc = _mm256_loadu_ps(y.as_ptr());
                for (row, value) in values.iter().enumerate() {
                    acc = _mm256_fmadd_ps(wide(b.add(row * stride + at * 8)), _mm256_set1_ps(*value), acc);
                }
                _mm256_storeu_ps(y.as_mut_ptr(), acc);
            }
        }
    }
    let (whole, rest) = y.as_chunks_mut::<8>();
    // SAFETY: as the caller says.
    unsafe {
        eights(b, stride, values, whole);
        super::portable::expand(b.add(whole.len() * 8), stride, values, rest);
    }
}

/// # Safety
/// The processor has AVX2; `sums` has an entry for each of `out`, `stride` apart.
unsafe fn totals(sums: *const Lanes, stride: usize, out: &mut [f32]) {
    #[target_feature(enable = "avx2,fma")]
    unsafe fn inner(sums: *const Lanes, stride: usize, out: &mut [f32]) {
        let (fours, rest) = out.as_chunks_mut::<4>();
        let first_of_rest = fours.len() * 4;
        for (four, out) in fours.iter_mut().enumerate() {
            // SAFETY: as the caller says.
            unsafe {
                let half = |at: usize| {
                    let sums = sums.add((four * 4 + at) * stride).cast::<f32>();
                    _mm_add_ps(_mm_loadu_ps(sums), _mm_loadu_ps(sums.add(4)))
                };
                let [a, b, c, d] = [half(0), half(1), half(2), half(3)];
                // The first two of each by the last two: lanes a0 + a2, b0 + b2, a1 + a3, b1 + b3.
                let a_b = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
                let c_d = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
                let all = _mm_add_ps(_mm_movelh_ps(a_b, c_d), _mm_movehl_ps(c_d, a_b));
                _mm_storeu_ps(out.as_mut_ptr(), all);
            }
        }
        for (at, out) in rest.iter_mut().enumerate() {
            // SAFETY: as the caller says.
            *out = total(unsafe { &*sums.add((first_of_rest + at) * stride) });
        }
    }
    // SAFETY: as the caller says.
    unsafe { inner(sums, stride, out) }
}
