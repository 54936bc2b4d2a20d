//! Many rows of x by AVX-512: the outputs of a tile lie beside each other in a register's lanes.
//!
//! A row of a weight takes a lane and a pair of values of x is the same for all of them, so the 64 products of a block end in one
//! integer a lane, and what brings it under its scales (three instructions) is needed once for 32 of `vpdpwssd`, not for four as
//! where a row lies along a register. The price is that packed rows are turned: which is why few rows of x go by
//! [`super::avx512`], whose sums are the same to the bit. Both take the integer sum of a block, which is exact
//! ([`Inputs`] sees to it that it fits 32 bits), scale it, and add it to the sum of those blocks whose number has the same last
//! three bits; the eight sums are then added up as everywhere.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::avx512::{add_products, table};
use super::lines::Lines;
use super::tiles::Tile;
use super::{BLOCK, GROUP, Inputs, Kernels, Lanes, Levels, Matrix, STRIDE};

/// Outputs of a tile: two registers of sums.
pub(super) const OUTS: usize = 2 * LANES;
const LANES: usize = 16;
/// Levels of a block of all outputs: [32 pairs of values, 2, 16 outputs, 2].
const TURNED: usize = OUTS * BLOCK;
/// Outputs of a register for all classes of blocks, each a lane.
type Sums = [[[f32; LANES]; STRIDE]; 2];

/// What a thread unpacks into.
struct Room {
    levels: Lines,    // [blocks, 32, 2, 16, 2]
    scales: Vec<f32>, // as they lie in the matrix
    turned: Vec<f32>, // [blocks (to a multiple of 8), 2, 16]
    sums: [Sums; GROUP],
    lanes: [Lanes; OUTS],
}

thread_local! {
    static ROOM: RefCell<Box<Room>> = RefCell::new(Box::new(Room {
        levels: Lines::default(),
        scales: Vec::new(),
        turned: Vec::new(),
        sums: [[[[0.0; LANES]; STRIDE]; 2]; GROUP],
        lanes: [[0.0; 8]; OUTS],
    }));
}

/// Outputs of a 4-bit weight for all rows of x.
///
/// # Safety
/// [`super::avx512::available`]; x was made for columns.
pub(super) unsafe fn work(tile: &Tile<'_>, matrix: &Matrix<'_>, kernels: Kernels) {
    ROOM.with_borrow_mut(|room| {
        let (blocks, x) = (matrix.width() / BLOCK, tile.x);
        // SAFETY: as the caller says.
        unsafe { room.read_scales(matrix, tile.first, tile.count) };
        room.levels.grow(blocks * TURNED);
        // The rows that are not there are the last one again; what comes of them is not looked at.
        let row = |at: usize| matrix.bytes(tile.first + at.min(tile.count - 1), 0..blocks).as_ptr();
        let rows: [*const u8; OUTS] = std::array::from_fn(row);
        // SAFETY: as the caller says; whole rows, and room for their levels.
        unsafe { unpack(&rows, blocks, matrix.levels(), room.levels.values_mut().as_mut_ptr()) };
        for group in 0..x.groups() {
            // SAFETY: as the caller says; levels and scales are there for all blocks.
            unsafe { room.multiply(x, group, blocks) };
            room.finish(tile, matrix.unit(), group, kernels);
        }
    });
}

impl Room {
    /// # Safety
    /// [`super::avx512::available`]
    #[target_feature(enable = "avx512f")]
    unsafe fn read_scales(&mut self, matrix: &Matrix<'_>, first: usize, count: usize) {
        let padded = matrix.padded_blocks();
        let size = OUTS * padded;
        self.scales.resize(size.max(self.scales.len()), 0.0);
        matrix.scales(first, count, &mut self.scales);
        self.turned.resize(size.max(self.turned.len()), 0.0);
        let turned = self.turned.as_mut_ptr().cast::<__m512i>();
        for half in 0..2 {
            let rows = std::array::from_fn(|row| self.scales[(half * LANES + row) * padded..].as_ptr().cast());
            for block in (0..padded).step_by(4) {
                // SAFETY: each row has so many, and there is room for all.
                unsafe {
                    for (at, scales) in turn(&rows, block * size_of::<f32>()).into_iter().enumerate() {
                        _mm512_storeu_si512(turned.add((block + at) * 2 + half), scales);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`multiply`].
    unsafe fn multiply(&mut self, x: &Inputs, group: usize, blocks: usize) {
        let (levels, scales) = (self.levels.values().as_ptr(), self.turned.as_ptr());
        let sums = self.sums.as_mut_ptr();
        let (values, x_scales) = x.columns(group);
        // SAFETY: as the caller says.
        unsafe {
            match x.group_rows(group) {
                1 => multiply::<1>(levels, scales, values, x_scales, blocks, sums),
                2 => multiply::<2>(levels, scales, values, x_scales, blocks, sums),
                3 => multiply::<3>(levels, scales, values, x_scales, blocks, sums),
                4 => multiply::<4>(levels, scales, values, x_scales, blocks, sums),
                5 => multiply::<5>(levels, scales, values, x_scales, blocks, sums),
                6 => multiply::<6>(levels, scales, values, x_scales, blocks, sums),
                7 => multiply::<7>(levels, scales, values, x_scales, blocks, sums),
                _ => multiply::<GROUP>(levels, scales, values, x_scales, blocks, sums),
            }
        }
    }

    /// Sums to outputs.
    fn finish(&mut self, tile: &Tile<'_>, unit: f32, group: usize, kernels: Kernels) {
        let mut values = [0f32; OUTS];
        for (at, sums) in self.sums.iter().enumerate().take(tile.x.group_rows(group)) {
            let row = group * GROUP + at;
            if tile.has_low_rank(row) {
                // SAFETY: an input is made for columns only where there are instructions for them.
                unsafe { by_output(sums, &mut self.lanes) };
                let lanes = &mut self.lanes[..tile.count];
                tile.low_rank(row, tile.first, kernels, lanes, 1);
                // SAFETY: chosen for this processor; as many values as sums.
                unsafe { (kernels.totals)(lanes.as_ptr(), 1, &mut values[..tile.count]) };
            } else {
                for (values, s) in values.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                    // As `total` adds up.
                    *values = std::array::from_fn(|lane| {
                        let half = |class: usize| s[class][lane] + s[class + 4][lane];
                        (half(0) + half(2)) + (half(1) + half(3))
                    });
                }
            }
            values[..tile.count].iter_mut().for_each(|value| *value *= unit);
            tile.write_run(row, &values[..tile.count]);
        }
    }
}

/// Four words of each row, from a byte on: the first of all rows, the second, and so on.
///
/// # Safety
/// [`super::avx512::available`]; the words are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn turn(rows: &[*const u8; LANES], byte: usize) -> [__m512i; 4] {
    // SAFETY: as the caller says.
    let four = |first: usize| unsafe {
        let row = |at: usize| _mm_loadu_si128(rows[first + 4 * at].add(byte).cast());
        let low = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(row(0)), row(1));
        _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(low, row(2)), row(3))
    };
    let [a, b, c, d] = [four(0), four(1), four(2), four(3)];
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Each output's eight sums beside each other.
///
/// # Safety
/// [`super::avx512::available`]
#[target_feature(enable = "avx2")]
unsafe fn by_output(sums: &Sums, lanes: &mut [Lanes; OUTS]) {
    for (at, lanes) in lanes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let (half, first) = (at / 4, at % 4 * 4);
        // SAFETY: four outputs of each class.
        let class = |class: usize| unsafe {
            let four = |class: usize| _mm_loadu_ps(sums[half][class][first..].as_ptr());
            _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four(class)), four(class + 4))
        };
        let [a, b, c, d] = [class(0), class(1), class(2), class(3)];
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        let pairs = |low, high| (_mm256_castps_pd(low), _mm256_castps_pd(high));
        let ((ab, cd), (ab_high, cd_high)) = (pairs(ab, cd), pairs(ab_high, cd_high));
        let outputs = [
            _mm256_unpacklo_pd(ab, cd),
            _mm256_unpackhi_pd(ab, cd),
            _mm256_unpacklo_pd(ab_high, cd_high),
            _mm256_unpackhi_pd(ab_high, cd_high),
        ];
        for (lanes, output) in lanes.iter_mut().zip(outputs) {
            // SAFETY: there is room for eight.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_castpd_ps(output)) };
        }
    }
}

/// Levels of whole rows, side by side: a pair of values of each row in a lane.
///
/// # Safety
/// [`super::avx512::available`]; so many blocks are there in each row, and room for all.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpack(rows: &[*const u8; OUTS], blocks: usize, levels: &Levels, out: *mut i16) {
    let table = table(levels);
    let bytes = blocks * BLOCK / 2;
    for half in 0..2 {
        // A piece is sixteen bytes of each row, half a block.
        let rows: [*const u8; LANES] = std::array::from_fn(|row| rows[half * LANES + row]);
        for piece in 0..bytes / 16 {
            // A hint that may point behind the end: the same rows of the tile after this.
            let ahead = rows[piece % LANES].wrapping_add(OUTS * bytes + piece / LANES * LANES * 16);
            for line in (0..LANES * 16).step_by(64) {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line).cast());
            }
            // SAFETY: as the caller says.
            let words = unsafe { turn(&rows, piece * 16) };
            for (word, x) in words.into_iter().enumerate() {
                // A byte's first value is in its high bits. Those that look up have it in the low five of either half of a
                // lane, the fifth of which may be anything.
                let second = |of_first: __m512i, of_second: __m512i| {
                    _mm512_permutexvar_epi16(_mm512_mask_blend_epi16(0xaaaa_aaaa, of_first, of_second), table)
                };
                let pairs = [
                    second(_mm512_srli_epi32::<4>(x), _mm512_slli_epi32::<16>(x)),
                    second(_mm512_srli_epi32::<12>(x), _mm512_slli_epi32::<8>(x)),
                    second(_mm512_srli_epi32::<20>(x), x),
                    second(_mm512_srli_epi32::<28>(x), _mm512_srli_epi32::<8>(x)),
                ];
                for (at, pair) in pairs.into_iter().enumerate() {
                    let place = ((piece * 4 + word) * 4 + at) * 2 + half;
                    // SAFETY: as above.
                    unsafe { _mm512_storeu_si512(out.cast::<__m512i>().add(place).cast(), pair) };
                }
            }
        }
    }
}

/// All blocks of a tile's outputs by ROWS rows of x.
///
/// # Safety
/// [`super::avx512::available`]; levels, scales and values of so many blocks are there, and room for the rows' sums.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply<const ROWS: usize>(
    levels: *const i16,
    scales: *const f32,
    x: *const i16,
    x_scales: *const f32,
    blocks: usize,
    sums: *mut Sums,
) {
    for class in 0..STRIDE {
        let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
        for block in (class..blocks).step_by(STRIDE) {
            // SAFETY: as the caller says.
            unsafe {
                let levels = levels.add(block * TURNED).cast::<__m512i>();
                let x = x.add(block * ROWS * BLOCK).cast::<i32>();
                let mut products = [[_mm512_setzero_si512(); 2]; ROWS];
                for pair in 0..BLOCK / 2 {
                    let w = [
                        _mm512_loadu_si512(levels.add(2 * pair).cast()),
                        _mm512_loadu_si512(levels.add(2 * pair + 1).cast()),
                    ];
                    for (row, products) in products.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(*x.add(row * BLOCK / 2 + pair));
                        for (products, w) in products.iter_mut().zip(w) {
                            *products = add_products(*products, w, x);
                        }
                    }
                }
                let scales = scales.add(block * OUTS);
                let scales = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(LANES))];
                for (row, (acc, products)) in acc.iter_mut().zip(products).enumerate() {
                    let of_x = _mm512_set1_ps(*x_scales.add(block * ROWS + row));
                    for ((acc, products), scales) in acc.iter_mut().zip(products).zip(scales) {
                        *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_mul_ps(scales, of_x), *acc);
                    }
                }
            }
        }
        for (row, acc) in acc.into_iter().enumerate() {
            for (half, acc) in acc.into_iter().enumerate() {
                // SAFETY: as the caller says.
                unsafe { _mm512_storeu_ps((*sums.add(row))[half][class].as_mut_ptr(), acc) };
            }
        }
    }
}
