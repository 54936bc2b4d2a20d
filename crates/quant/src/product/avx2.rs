//! The kernels with AVX2 and FMA: for one row of x, and of what is not in 4 bits; [`columns`] has those for several rows.
//!
//! A block of 64 levels: two byte shuffles by each half of the bytes' numbers (low and high byte of the level) and two
//! interleavings give four vectors of 16 integers, in the order of [`super::element`]; `vpmaddwd` multiplies and adds pairs.
//! Eight blocks' products are added up across their lanes by a tree, which leaves a block in each lane, and are brought under
//! their scales together: 22 instructions a block.

pub(super) mod columns;

use std::arch::x86_64::*;

use half::bf16;

use super::{BLOCK, Columns, Dense, Kernels, Lanes, Levels, Part, STRIDE, total};

pub(super) const KERNELS: Kernels = Kernels {
    packed,
    columns: Some(Columns { work: columns::work, outs: columns::OUTS }),
    dense,
    dense_outs: 2,
    expand,
    totals,
};

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

/// The low and the high bytes of the levels of 32 bytes' high halves, and of their low halves.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(bytes: __m256i, (low, high): Tables) -> [(__m256i, __m256i); 2] {
    let mask = _mm256_set1_epi8(15);
    let (even, odd) = (_mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask), _mm256_and_si256(bytes, mask));
    [even, odd].map(|numbers| (_mm256_shuffle_epi8(low, numbers), _mm256_shuffle_epi8(high, numbers)))
}

/// Levels of a block, in the order of [`super::element`].
///
/// # Safety
/// 32 bytes are there.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn levels(bytes: *const u8, tables: Tables) -> [__m256i; 4] {
    // SAFETY: as the caller says.
    let [(even_low, even_high), (odd_low, odd_high)] = look_up(unsafe { _mm256_loadu_si256(bytes.cast()) }, tables);
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

/// Pairs of lanes of two registers, added up: the first one's, then the other's, in every second lane.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn two(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
}

/// The same of two results of [`two`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn four(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
}

/// The sums of the lanes of two times four blocks, from two results of [`four`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn eight(first: __m256i, last: __m256i) -> __m256i {
    let (low, high) = (_mm256_permute2x128_si256::<0x20>(first, last), _mm256_permute2x128_si256::<0x31>(first, last));
    _mm256_add_epi32(low, high)
}

/// A row of a weight by ROWS rows of x.
///
/// # Safety
/// All that the blocks call for is there; `sums` has an entry for each row.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add<const ROWS: usize>(
    weights: *const u8,
    scales: *const f32,
    part: &Part<'_>,
    tables: Tables,
    sums: *mut Lanes,
) {
    let mut acc = [_mm256_setzero_ps(); ROWS];
    for (row, acc) in acc.iter_mut().enumerate() {
        // SAFETY: as the caller says.
        *acc = unsafe { _mm256_loadu_ps(sums.add(row).cast()) };
    }
    let x = part.x.values.as_ptr();
    for at in (0..part.blocks).step_by(STRIDE) {
        let there = part.blocks - at;
        // Products of a block; zeros of one that is not there. Not closures, which might be called where they should be a part
        // of this; and no more of them is kept than a tree needs.
        macro_rules! products {
            ($i:expr) => {{
                let mut products = [_mm256_setzero_si256(); ROWS];
                if there >= STRIDE || $i < there {
                    // SAFETY: a block has 32 bytes, and 64 values a row.
                    unsafe {
                        let weights = weights.add((at + $i) * (BLOCK / 2));
                        // A hint that may point behind the end: the rows after these.
                        _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD).cast());
                        let w = levels(weights, tables);
                        for (row, products) in products.iter_mut().enumerate() {
                            *products = block(w, x.add(((at + $i) * ROWS + row) * BLOCK));
                        }
                    }
                }
                products
            }};
        }
        macro_rules! pair {
            ($i:expr) => {{
                let (even, odd) = (products!($i), products!($i + 1));
                let mut sums = [_mm256_setzero_si256(); ROWS];
                sums.iter_mut().zip(even).zip(odd).for_each(|((sum, even), odd)| *sum = two(even, odd));
                sums
            }};
        }
        macro_rules! quad {
            ($i:expr) => {{
                let (even, odd) = (pair!($i), pair!($i + 2));
                let mut sums = [_mm256_setzero_si256(); ROWS];
                sums.iter_mut().zip(even).zip(odd).for_each(|((sum, even), odd)| *sum = four(even, odd));
                sums
            }};
        }
        let (first, last) = (quad!(0), quad!(4));
        for row in 0..ROWS {
            // SAFETY: scales are padded to whole strides.
            let scales = unsafe {
                let of_x = part.x.scales.as_ptr().add(row * part.x.scale_stride + at);
                _mm256_mul_ps(_mm256_loadu_ps(scales.add(at)), _mm256_loadu_ps(of_x))
            };
            acc[row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(eight(first[row], last[row])), scales, acc[row]);
        }
    }
    for (row, acc) in acc.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(sums.add(row).cast(), acc) };
    }
}

/// Rows of x from which on they are made for columns.
pub(super) const FEW: usize = 4;

/// # Safety
/// The processor has AVX2 and FMA; `sums` has an entry for each pair of rows.
pub(super) unsafe fn packed(part: &Part<'_>, rows: usize, sums: *mut Lanes) {
    #[target_feature(enable = "avx2,fma")]
    unsafe fn by<const ROWS: usize>(part: &Part<'_>, sums: *mut Lanes) {
        let tables = tables(part.levels);
        for out in 0..part.outs {
            let (weights, scales) = part.row(out);
            // SAFETY: as the caller says; the slices are as long as the part's blocks say.
            unsafe { add::<ROWS>(weights.as_ptr(), scales.as_ptr(), part, tables, sums.add(out * ROWS)) };
        }
    }
    // SAFETY: as the caller says.
    unsafe {
        match rows {
            1 => by::<1>(part, sums),
            2 => by::<2>(part, sums),
            3 => by::<3>(part, sums),
            4 => by::<4>(part, sums),
            _ => super::portable::packed(part, rows, sums),
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
