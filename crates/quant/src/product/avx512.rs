//! The kernels for one row of x with AVX-512 and its products of 16-bit integers (VNNI), which read memory as fast as it gives;
//! [`super::columns`] has those for several.
//!
//! Two blocks of a row lie in a register, one in each half, and so do x's: whatever fills a register from two places takes the
//! arithmetic's time on some processors. `vpermw` looks up 32 levels at a time by the low five bits of each lane; the table has every
//! level twice, so that the fifth may be anything. Eight blocks' products of two rows are added up across their lanes by a tree,
//! which leaves a block in each lane, and are brought under their scales together: 15 instructions for 128 weights. A second
//! row of x would need each of its values loaded for a single product, where columns use one for two.

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;

use super::{BLOCK, Columns, Dense, Kernels, Lanes, Levels, Part, STRIDE, avx2, columns};

/// For inputs that were made for blocks or for columns.
pub(super) const KERNELS: Kernels = Kernels {
    packed,
    columns: Some(Columns { work: columns::work, outs: columns::OUTS }),
    dense,
    dense_outs: 4,
    expand,
    ..avx2::KERNELS
};

/// Pairs of blocks that a kernel takes of a row at a time.
const PAIRS: usize = STRIDE / 2;
/// Packed bytes that are asked for ahead of their use.
const AHEAD: usize = 32 << 10;

pub(super) fn available() -> bool {
    avx2::available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn table(levels: &Levels) -> __m512i {
    // SAFETY: there are 16 values.
    let once = unsafe { _mm256_loadu_si256(levels.values.as_ptr().cast()) };
    _mm512_broadcast_i64x4(once)
}

/// Which of four neighbours each vector of levels has: a lane's four numbers, from the low bits up (the high four of a byte come
/// first).
pub(super) const NEIGHBOUR: [usize; 4] = [1, 0, 3, 2];

/// Levels of two blocks: every fourth value of each in each vector. What looks up takes the low five bits of a lane, the fifth of
/// which may be anything.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn levels(bytes: __m512i, table: __m512i) -> [__m512i; 4] {
    [
        _mm512_permutexvar_epi16(bytes, table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(bytes), table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16::<8>(bytes), table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16::<12>(bytes), table),
    ]
}

/// acc + Σ of two products of 16-bit integers, lane by lane. Not by its intrinsic, which LLVM takes apart into two
/// instructions to shorten a chain that nothing waits for.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn add_products(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: registers only.
    unsafe {
        asm!("vpdpwssd {0}, {1}, {2}", inout(zmm_reg) acc, in(zmm_reg) a, in(zmm_reg) b,
            options(nomem, nostack, preserves_flags));
    }
    acc
}

/// Σ of 64 products of each of two blocks in 8 lanes, from the packed bytes of both.
///
/// # Safety
/// 128 values are there.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn pair(bytes: __m512i, x: *const i16, table: __m512i) -> __m512i {
    let w = levels(bytes, table);
    // SAFETY: as the caller says.
    let x = |i: usize| unsafe { _mm512_loadu_si512(x.cast::<__m512i>().add(i)) };
    let mut sum = _mm512_madd_epi16(w[0], x(0));
    for (i, w) in w.into_iter().enumerate().skip(1) {
        sum = add_products(sum, w, x(i));
    }
    sum
}

/// Pairs of lanes of two registers, added up: the first one's, then the other's, in every second lane.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn two(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
}

/// The same of two results of [`two`].
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn four(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
}

/// The sums of the lanes of a row's four pairs of blocks and of another's, as [`ORDER`] has them.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn across([a, b, c, d]: [__m512i; PAIRS], [e, f, g, h]: [__m512i; PAIRS]) -> __m512i {
    let (first, second) = (four(two(a, b), two(c, d)), four(two(e, f), two(g, h)));
    _mm512_add_epi32(
        _mm512_shuffle_i32x4::<0b10_00_10_00>(first, second),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(first, second),
    )
}

/// Which of 16 blocks, a row's eight and another's, [`across`] leaves in each lane: of each row those of the lower halves
/// first.
const ORDER: [i32; 16] = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15];
/// Where each block is then.
const BACK: [i32; 16] = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15];

/// Eight floats of each of two rows.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn both([first, second]: [*const f32; 2]) -> __m512 {
    // SAFETY: as the caller says.
    let (first, second) = unsafe { (_mm256_loadu_pd(first.cast()), _mm256_loadu_pd(second.cast())) };
    _mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castpd256_pd512(first), second))
}

/// Two rows of a weight by x: `weights`, `scales` and `sums` of each.
///
/// # Safety
/// All that the blocks call for is there.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn add(
    [mut first, mut second]: [*const u8; 2],
    [first_scales, second_scales]: [*const f32; 2],
    part: &Part<'_>,
    table: __m512i,
    [first_sums, second_sums]: [*mut Lanes; 2],
) {
    // SAFETY: sixteen numbers each.
    let (order, back) =
        unsafe { (_mm512_loadu_si512(ORDER.as_ptr().cast()), _mm512_loadu_si512(BACK.as_ptr().cast())) };
    // SAFETY: as the caller says.
    let mut acc = _mm512_permutexvar_ps(order, unsafe { both([first_sums.cast(), second_sums.cast()]) });
    let mut x = part.x.values.as_ptr();
    for at in (0..part.blocks).step_by(STRIDE) {
        let products = if part.blocks - at >= STRIDE {
            // Not a closure or a loop, whose results would lie in memory.
            macro_rules! multiply {
                ($weights:expr, $pair:expr) => {{
                    let weights: *const u8 = $weights.wrapping_add($pair * BLOCK);
                    // A hint that may point behind the end: the rows after the next.
                    _mm_prefetch::<_MM_HINT_T1>(weights.wrapping_add(AHEAD).cast());
                    // SAFETY: a pair has 64 bytes, and 128 values.
                    unsafe { pair(_mm512_loadu_si512(weights.cast()), x.add($pair * 2 * BLOCK), table) }
                }};
            }
            macro_rules! row {
                ($weights:expr) => {
                    [multiply!($weights, 0), multiply!($weights, 1), multiply!($weights, 2), multiply!($weights, 3)]
                };
            }
            across(row!(first), row!(second))
        } else {
            // SAFETY: as the caller says; x has zeros beside an odd block.
            unsafe { across(rest(first, x, part.blocks - at, table), rest(second, x, part.blocks - at, table)) }
        };
        (first, second) = (first.wrapping_add(PAIRS * BLOCK), second.wrapping_add(PAIRS * BLOCK));
        x = x.wrapping_add(STRIDE * BLOCK);
        // SAFETY: scales are padded with zeros to whole strides.
        let scales = unsafe {
            let of_x = _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_loadu_pd(part.x.scales.as_ptr().add(at).cast())));
            _mm512_mul_ps(both([first_scales.add(at), second_scales.add(at)]), of_x)
        };
        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_permutexvar_ps(order, scales), acc);
    }
    let acc = _mm512_permutexvar_ps(back, acc);
    // SAFETY: as above.
    unsafe {
        _mm256_storeu_ps(first_sums.cast(), _mm512_castps512_ps256(acc));
        _mm256_storeu_pd(second_sums.cast(), _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(acc)));
    }
}

/// The pairs of fewer blocks than a stride has, the last of which may be one block.
///
/// # Safety
/// The blocks' bytes are there, and x's values to whole pairs.
#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn rest(weights: *const u8, x: *const i16, blocks: usize, table: __m512i) -> [__m512i; PAIRS] {
    std::array::from_fn(|i| {
        let present = (0xffu32 >> (8 - 4 * (blocks - blocks.min(2 * i)).min(2))) as __mmask8;
        if present == 0 {
            return _mm512_setzero_si512();
        }
        // SAFETY: as the caller says; what is not present is not read.
        unsafe {
            let bytes = _mm512_maskz_loadu_epi64(present, weights.add(i * BLOCK).cast());
            pair(bytes, x.add(i * 2 * BLOCK), table)
        }
    })
}

/// The rows of a weight by one row of x, two by two: one of the first half and one of the second, so that memory is read in two
/// streams that do not meet in a page. The last of an odd number is beside itself.
///
/// # Safety
/// The processor has what [`available`] looks for; `sums` has an entry for each row; x has one row, made for blocks.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn packed(part: &Part<'_>, rows: usize, sums: *mut Lanes) {
    debug_assert!(rows == 1);
    let (table, half) = (table(part.levels), part.outs / 2);
    let mut unread = [0f32; 8];
    for out in 0..part.outs.div_ceil(2) {
        let (first, second) = if out < half { (out, half + out) } else { (part.outs - 1, part.outs - 1) };
        let ((weights, scales), (others, other_scales)) = (part.row(first), part.row(second));
        // SAFETY: as the caller says.
        unsafe {
            let others_sums = if out < half { sums.add(second) } else { &raw mut unread };
            let both = [weights.as_ptr(), others.as_ptr()];
            let scales = [scales.as_ptr(), other_scales.as_ptr()];
            add(both, scales, part, table, [sums.add(first), others_sums]);
        }
    }
}

/// Eight values of bf16 of each row as f32.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn wide([first, second]: [*const bf16; 2]) -> __m512 {
    // SAFETY: as the caller says.
    let values = unsafe { _mm256_loadu2_m128i(second.cast(), first.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
}

/// # Safety
/// The processor has what [`available`] looks for; there are as many rows of `b` as values, `stride` apart and as long as `y`.
unsafe fn expand(b: *const bf16, stride: usize, values: &[f32], y: &mut [f32]) {
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn sixteens(b: *const bf16, stride: usize, values: &[f32], y: &mut [[f32; 16]]) {
        for (at, y) in y.iter_mut().enumerate() {
            // SAFETY: as the caller says.
            unsafe {
                let mut acc = _mm512_loadu_ps(y.as_ptr());
                for (row, value) in values.iter().enumerate() {
                    let b = _mm256_loadu_si256(b.add(row * stride + at * 16).cast());
                    let b = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(b)));
                    acc = _mm512_fmadd_ps(b, _mm512_set1_ps(*value), acc);
                }
                _mm512_storeu_ps(y.as_mut_ptr(), acc);
            }
        }
    }
    let (whole, rest) = y.as_chunks_mut::<16>();
    // SAFETY: as the caller says.
    unsafe {
        sixteens(b, stride, values, whole);
        (avx2::KERNELS.expand)(b.add(whole.len() * 16), stride, values, rest);
    }
}

/// As [`super::portable::dot`] for four rows of weights, two pairs, and ROWS of x.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn dense_rows<const ROWS: usize>(part: &Dense<'_>, sums: *mut Lanes) {
    let width = part.width;
    let whole = width / 8 * 8;
    let mut acc = [[_mm512_setzero_ps(); ROWS]; 2];
    let (weights, x) = (part.weights.as_ptr(), part.x.as_ptr());
    for line in (0..whole).step_by(avx2::LINE) {
        for out in 4..8 {
            // Hints that may point behind the end: the rows after these.
            _mm_prefetch::<_MM_HINT_T1>(weights.wrapping_add(out * width + line).cast());
        }
        for at in (line..whole.min(line + avx2::LINE)).step_by(8) {
            // SAFETY: eight values are there in each row.
            unsafe {
                let row = |out: usize| weights.add(out * width + at);
                let w = [wide([row(0), row(1)]), wide([row(2), row(3)])];
                for of_x in 0..ROWS {
                    let x = _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_loadu_pd(x.add(of_x * width + at).cast())));
                    for (acc, w) in acc.iter_mut().zip(w) {
                        acc[of_x] = _mm512_fmadd_ps(w, x, acc[of_x]);
                    }
                }
            }
        }
    }
    for (pair, acc) in acc.into_iter().enumerate() {
        for (row, acc) in acc.into_iter().enumerate() {
            let halves =
                [_mm512_castps512_ps256(acc), _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(acc)))];
            for (half, lanes) in halves.into_iter().enumerate() {
                let out = 2 * pair + half;
                // SAFETY: `sums` has an entry for each pair of rows, of eight sums.
                let sums = unsafe { &mut *sums.add(out * ROWS + row) };
                // SAFETY: as above.
                unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), lanes) };
                let (weights, x) = (&part.weights[out * width..][whole..width], &part.x[row * width..][whole..width]);
                super::portable::dot(weights, x, sums);
            }
        }
    }
}

/// # Safety
/// The processor has what [`available`] looks for; `sums` has an entry for each pair of rows.
unsafe fn dense(part: &Dense<'_>, sums: *mut Lanes) {
    // SAFETY: as the caller says.
    unsafe {
        match part.shape() {
            (4, 1) => dense_rows::<1>(part, sums),
            (4, 2) => dense_rows::<2>(part, sums),
            (4, 3) => dense_rows::<3>(part, sums),
            (4, 4) => dense_rows::<4>(part, sums),
            _ => (avx2::KERNELS.dense)(part, sums),
        }
    }
}
