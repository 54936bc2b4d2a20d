//! The kernels for 4-bit weights with AVX-512 and its products of 16-bit integers (VNNI).
//!
//! Two rows of the weight lie in a register, one in each half: each half adds what a register of AVX2 adds, in the same order,
//! so the bits are the same. `vpermw` looks up 32 levels at a time by the low five bits of each lane; the table has every level
//! twice, so that the fifth may be anything. For 128 weights that is 9 instructions to unpack, shared by all rows of x, and 7 a
//! row.
//!
//! Where there are several groups of x's rows, what is loaded would be the limit if each pair of weights went over them by
//! itself: two pairs by four rows of x load 24 registers for 32 products of registers, levels of a pair beside each other.

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;

use super::{BLOCK, Dense, Kernels, Lanes, Levels, Part, avx2, by_rows};

pub(super) const KERNELS: Kernels = Kernels { packed, unpacked, unpack, dense, dense_outs: 4, ..avx2::KERNELS };

/// Packed bytes that are asked for ahead of their use.
const AHEAD: usize = 32 << 10;
/// Rows of x that are multiplied together.
const TOGETHER: usize = 4;
/// Values of a block of a pair of rows.
const PAIR: usize = 2 * BLOCK;
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
        // SAFETY: as the caller says.
        unsafe { last(part, per_block, one, ROWS, sums) };
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

/// PAIRS pairs of rows of a weight by ROWS rows of x, of `stride` in the group.
///
/// # Safety
/// Each pair's levels are there as [`unpack_pair`] leaves them, scales for all blocks, x from the first of these rows on, and
/// sums of these rows for each row of the weight.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn by_pairs<const PAIRS: usize, const ROWS: usize>(
    mut levels: [*const i16; PAIRS],
    scales: [[*const f32; 2]; PAIRS],
    blocks: usize,
    (mut x, mut x_scales, stride): (*const i16, *const f32, usize),
    sums: [[*mut Lanes; 2]; PAIRS],
) {
    let mut acc = [[_mm512_setzero_ps(); ROWS]; PAIRS];
    for (acc, sums) in acc.iter_mut().zip(sums) {
        for (row, acc) in acc.iter_mut().enumerate() {
            // SAFETY: as the caller says.
            *acc = _mm512_castsi512_ps(unsafe { both(sums[0].add(row), sums[1].add(row)) });
        }
    }
    for at in 0..blocks {
        // SAFETY: four registers of levels a block and pair, and ROWS·64 values of x a block, `stride` apart.
        let w = |pair: usize, i: usize| unsafe { _mm512_loadu_si512(levels[pair].cast::<__m512i>().add(i)) };
        // SAFETY: as above.
        let of_x = |row: usize, i: usize| unsafe {
            _mm512_broadcast_i64x4(_mm256_loadu_si256(x.add(row * BLOCK).cast::<__m256i>().add(i)))
        };
        let mut products = [[_mm512_setzero_si512(); ROWS]; PAIRS];
        for i in 0..4 {
            let w: [__m512i; PAIRS] = std::array::from_fn(|pair| w(pair, i));
            for row in 0..ROWS {
                let x = of_x(row, i);
                for (products, w) in products.iter_mut().zip(w) {
                    products[row] = if i == 0 { _mm512_madd_epi16(w, x) } else { add_products(products[row], w, x) };
                }
            }
        }
        for ((acc, products), scales) in acc.iter_mut().zip(products).zip(scales) {
            // SAFETY: a scale for each block.
            let scales = unsafe {
                let first = _mm512_set1_ps(*scales[0].add(at));
                _mm512_mask_broadcastss_ps(first, SECOND, _mm_load_ss(scales[1].add(at)))
            };
            for (row, (acc, sum)) in acc.iter_mut().zip(products).enumerate() {
                // SAFETY: as many scales a block as there are rows.
                let scale = unsafe { _mm512_set1_ps(*x_scales.add(row)) };
                *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scales, scale), *acc);
            }
        }
        // SAFETY: one past the end at most.
        unsafe {
            levels.iter_mut().for_each(|levels| *levels = levels.add(PAIR));
            (x, x_scales) = (x.add(stride * BLOCK), x_scales.add(stride));
        }
    }
    for (acc, sums) in acc.into_iter().zip(sums) {
        for (row, acc) in acc.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(sums[0].add(row).cast(), _mm512_castps512_ps256(acc));
                _mm256_storeu_pd(sums[1].add(row).cast(), _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(acc)));
            }
        }
    }
}

/// The rows of a group by PAIRS pairs.
///
/// # Safety
/// As [`by_pairs`].
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn all_rows<const PAIRS: usize>(
    part: &Part<'_, i16>,
    rows: usize,
    levels: [*const i16; PAIRS],
    scales: [[*const f32; 2]; PAIRS],
    sums: [[*mut Lanes; 2]; PAIRS],
) {
    for row in (0..rows).step_by(TOGETHER) {
        // SAFETY: as the caller says.
        unsafe {
            let x = (part.x.values.as_ptr().add(row * BLOCK), part.x.scales.as_ptr().add(row), rows);
            let blocks = part.blocks;
            let sums = sums.map(|pair| pair.map(|sums| sums.add(row)));
            match rows - row {
                1 => by_pairs::<PAIRS, 1>(levels, scales, blocks, x, sums),
                2 => by_pairs::<PAIRS, 2>(levels, scales, blocks, x, sums),
                3 => by_pairs::<PAIRS, 3>(levels, scales, blocks, x, sums),
                _ => by_pairs::<PAIRS, TOGETHER>(levels, scales, blocks, x, sums),
            }
        }
    }
}

/// Levels of some blocks of two rows, beside each other: [blocks, 4, 2, 16].
///
/// # Safety
/// So many blocks are there in both rows, and room for them.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpack_pair([first, second]: [*const u8; 2], table: __m512i, blocks: usize, out: *mut i16) {
    for block in 0..blocks {
        let (first, second) = (first.wrapping_add(block * BLOCK / 2), second.wrapping_add(block * BLOCK / 2));
        // SAFETY: as the caller says.
        unsafe {
            for (i, levels) in levels(both(first, second), table).into_iter().enumerate() {
                _mm512_storeu_si512(out.add(block * PAIR).cast::<__m512i>().add(i), levels);
            }
        }
    }
}

/// Rows two by two, one of the first half and one of the second; the last of an odd number as AVX2 has it, behind them.
///
/// # Safety
/// As for [`packed`].
unsafe fn unpack(packed: &[&[u8]], values: &Levels, out: &mut [i16]) {
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn inner(packed: &[&[u8]], values: &Levels, out: &mut [i16]) {
        let (table, width, half) = (table(values), out.len() / packed.len().max(1), packed.len() / 2);
        for (pair, out) in out.chunks_exact_mut((2 * width).max(1)).enumerate().take(half) {
            let rows = [packed[pair].as_ptr(), packed[half + pair].as_ptr()];
            // SAFETY: rows of whole blocks, and room for two.
            unsafe { unpack_pair(rows, table, width / BLOCK, out.as_mut_ptr()) };
        }
        if !packed.len().is_multiple_of(2) {
            // SAFETY: as the caller says.
            unsafe { avx2::unpack_row(packed[2 * half], values, &mut out[2 * half * width..]) };
        }
    }
    // SAFETY: as the caller says.
    unsafe { inner(packed, values, out) }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpacked_all(part: &Part<'_, i16>, rows: usize, sums: *mut Lanes) {
    let half = part.outs / 2;
    let scales = |out: usize| part.scales[out * part.scale_stride..].as_ptr();
    let levels = |pair: usize| part.weights[(pair * part.weight_stride + part.first_block * BLOCK) * 2..].as_ptr();
    // SAFETY: as the caller says.
    unsafe {
        let of_pair = |pair: usize| [sums.add(pair * rows), sums.add((half + pair) * rows)];
        for pair in (0..half / 2 * 2).step_by(2) {
            let two = [pair, pair + 1];
            let both = two.map(|pair| [scales(pair), scales(half + pair)]);
            all_rows::<2>(part, rows, two.map(levels), both, two.map(of_pair));
        }
        if !half.is_multiple_of(2) {
            let pair = half - 1;
            let both = [[scales(pair), scales(half + pair)]];
            all_rows::<1>(part, rows, [levels(pair)], both, [of_pair(pair)]);
        }
        if !part.outs.is_multiple_of(2) {
            last(part, BLOCK, avx2::unpacked, rows, sums);
        }
    }
}

/// The last of an odd number of rows, by AVX2.
///
/// # Safety
/// As for [`packed`].
unsafe fn last<T>(
    part: &Part<'_, T>,
    per_block: usize,
    one: unsafe fn(&Part<'_, T>, usize, *mut Lanes),
    rows: usize,
    sums: *mut Lanes,
) {
    let out = part.outs - 1;
    let (weights, scales) = part.row(out, per_block);
    // SAFETY: as the caller says.
    unsafe { one(&Part { outs: 1, weights, first_block: 0, scales, ..*part }, rows, sums.add(out * rows)) };
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
    unsafe { unpacked_all(part, rows, sums) }
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

/// As [`super::portable::dot`] for four rows of weights, two pairs, and ROWS of x.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn dense_rows<const ROWS: usize>(part: &Dense<'_>, sums: *mut Lanes) {
    let width = part.width;
    let whole = width / 8 * 8;
    let mut acc = [[_mm512_setzero_ps(); ROWS]; 2];
    let (weights, x) = (part.weights.as_ptr(), part.x.as_ptr());
    for at in (0..whole).step_by(8) {
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
            (4, 2) => dense_rows::<2>(part, sums),
            (4, 3) => dense_rows::<3>(part, sums),
            (4, 4) => dense_rows::<4>(part, sums),
            _ => (avx2::KERNELS.dense)(part, sums),
        }
    }
}
