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
use super::{BLOCK, GROUP, Inputs, Levels, Matrix, STRIDE, by_rows};

/// Outputs of a tile: two registers of sums.
pub(super) const OUTS: usize = 2 * LANES;
const LANES: usize = 16;
/// Levels of a block of all outputs: [32 pairs of values, 2, 16 outputs, 2].
const TURNED: usize = OUTS * BLOCK;
/// Bytes of each row that are turned together, and the pairs of values in them.
const PIECE: usize = 16;
const PAIRS: usize = PIECE;
/// Which of eight values make the four pairs of a word. A number that is looked up lies in the low bits of either half of a lane
/// (the high four of a byte come first), so each shift of a word brings up two that are four apart.
pub(super) const PAIRED: [usize; 8] = [1, 5, 0, 4, 3, 7, 2, 6];
/// Outputs of a register for all classes of blocks, each a lane.
type Sums = [[[f32; LANES]; STRIDE]; 2];

/// What a thread unpacks into.
struct Room {
    levels: Lines,    // [blocks, 32, 2, 16, 2]
    scales: Vec<f32>, // as they lie in the matrix
    turned: Vec<f32>, // [blocks (to a multiple of 8), 2, 16]
    sums: [Sums; GROUP],
}

thread_local! {
    static ROOM: RefCell<Box<Room>> = RefCell::new(Box::new(Room {
        levels: Lines::default(),
        scales: Vec::new(),
        turned: Vec::new(),
        sums: [[[[0.0; LANES]; STRIDE]; 2]; GROUP],
    }));
}

/// Outputs of a 4-bit weight for all rows of x.
///
/// # Safety
/// [`super::avx512::available`]; x was made for columns.
pub(super) unsafe fn work(tile: &Tile<'_>, matrix: &Matrix<'_>) {
    ROOM.with_borrow_mut(|room| {
        let (blocks, x) = (matrix.width() / BLOCK, tile.x);
        // SAFETY: as the caller says.
        unsafe { room.read_scales(matrix, tile.first, tile.count) };
        // The rows that are not there are the last one again; what comes of them is not looked at.
        let row = |at: usize| matrix.bytes(tile.first + at.min(tile.count - 1), 0..blocks).as_ptr();
        let packed = Packed { rows: std::array::from_fn(row), blocks, levels: matrix.levels() };
        if x.groups() == 1 {
            // SAFETY: as the caller says; whole rows, and scales for all blocks.
            unsafe { room.multiply_once(&packed, x) };
            return room.finish(tile, matrix.unit(), 0);
        }
        room.levels.grow(blocks * TURNED);
        // SAFETY: as the caller says; whole rows, and room for their levels.
        unsafe { packed.unpack(room.levels.values_mut().as_mut_ptr()) };
        for group in 0..x.groups() {
            // SAFETY: as the caller says; levels and scales are there for all blocks.
            unsafe { room.multiply(x, group, blocks) };
            room.finish(tile, matrix.unit(), group);
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
        let part = Part { scales: self.turned.as_ptr(), x: x.columns(group), blocks };
        let (levels, sums) = (self.levels.values().as_ptr(), self.sums.as_mut_ptr());
        // SAFETY: as the caller says.
        unsafe { by_rows!(multiply[x.group_rows(group)](&part, levels, sums)) }
    }

    /// # Safety
    /// As [`multiply_once`].
    unsafe fn multiply_once(&mut self, packed: &Packed<'_>, x: &Inputs) {
        let part = Part { scales: self.turned.as_ptr(), x: x.columns(0), blocks: packed.blocks };
        let sums = self.sums.as_mut_ptr();
        // SAFETY: as the caller says.
        unsafe { by_rows!(multiply_once[x.rows()](&part, packed, sums)) }
    }

    /// Sums to outputs.
    fn finish(&self, tile: &Tile<'_>, unit: f32, group: usize) {
        let mut values = [0f32; OUTS];
        for (at, sums) in self.sums.iter().enumerate().take(tile.x.group_rows(group)) {
            let row = group * GROUP + at;
            for (values, s) in values.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                // As `total` adds up.
                *values = std::array::from_fn(|lane| {
                    let half = |class: usize| s[class][lane] + s[class + 4][lane];
                    (half(0) + half(2)) + (half(1) + half(3))
                });
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

/// Packed rows of a tile.
struct Packed<'a> {
    rows: [*const u8; OUTS],
    blocks: usize,
    levels: &'a Levels,
}

impl Packed<'_> {
    /// Sixteen bytes of half of the rows, turned: half a block.
    ///
    /// # Safety
    /// [`super::avx512::available`]; the rows have so many pieces.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn piece(&self, half: usize, piece: usize) -> [__m512i; 4] {
        let rows: &[*const u8; LANES] = &self.rows.as_chunks::<LANES>().0[half];
        // A hint that may point behind the end: the same rows of the tile after this.
        let next = OUTS * self.blocks * (BLOCK / 2) + piece / LANES * LANES * PIECE;
        let ahead = rows[piece % LANES].wrapping_add(next);
        for line in (0..LANES * PIECE).step_by(64) {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line).cast());
        }
        // SAFETY: as the caller says.
        unsafe { turn(rows, piece * PIECE) }
    }

    /// Levels of whole rows, side by side: a pair of values of each row in a lane.
    ///
    /// # Safety
    /// [`super::avx512::available`]; so many blocks are there in each row, and room for all.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(&self, out: *mut i16) {
        let table = table(self.levels);
        for half in 0..2 {
            for piece in 0..self.blocks * 2 {
                // SAFETY: as the caller says.
                let words = unsafe { self.piece(half, piece) };
                for (word, numbers) in words.into_iter().enumerate() {
                    for (at, levels) in pairs(numbers, table).into_iter().enumerate() {
                        let place = (piece * PAIRS + word * 4 + at) * 2 + half;
                        // SAFETY: as above.
                        unsafe { _mm512_storeu_si512(out.cast::<__m512i>().add(place).cast(), levels) };
                    }
                }
            }
        }
    }
}

/// Levels of a word of each row, in the order of [`PAIRED`]. Those that look up take the low five bits of either half of a lane, the
/// fifth of which may be anything.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn pairs(numbers: __m512i, table: __m512i) -> [__m512i; 4] {
    [
        _mm512_permutexvar_epi16(numbers, table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(numbers), table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16::<8>(numbers), table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16::<12>(numbers), table),
    ]
}

/// What both ways to multiply read beside levels.
struct Part {
    scales: *const f32, // [blocks, 2, 16]
    /// Values [blocks, rows, 64] and their scales [blocks, rows].
    x: (*const i16, *const f32),
    blocks: usize,
}

impl Part {
    /// A block's values, of ROWS rows: pairs, row by row.
    ///
    /// # Safety
    /// There are so many blocks.
    #[inline(always)]
    unsafe fn values<const ROWS: usize>(&self, block: usize) -> *const i32 {
        // SAFETY: as the caller says.
        unsafe { self.x.0.add(block * ROWS * BLOCK).cast() }
    }

    /// acc + products brought under their scales.
    ///
    /// # Safety
    /// [`super::avx512::available`]; there are so many blocks.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn add_scaled<const ROWS: usize>(
        &self,
        block: usize,
        products: [[__m512i; 2]; ROWS],
        mut add: impl FnMut(usize, usize, __m512, __m512),
    ) {
        // SAFETY: as the caller says.
        unsafe {
            let scales = self.scales.add(block * OUTS);
            let scales = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(LANES))];
            for (row, products) in products.into_iter().enumerate() {
                let of_x = _mm512_set1_ps(*self.x.1.add(block * ROWS + row));
                for (half, (products, scales)) in products.into_iter().zip(scales).enumerate() {
                    add(row, half, _mm512_cvtepi32_ps(products), _mm512_mul_ps(scales, of_x));
                }
            }
        }
    }
}

/// All blocks of a tile's outputs by ROWS rows of x.
///
/// # Safety
/// [`super::avx512::available`]; levels, scales and values of all blocks are there, and room for the rows' sums.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply<const ROWS: usize>(part: &Part, levels: *const i16, sums: *mut Sums) {
    for class in 0..STRIDE {
        let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
        for block in (class..part.blocks).step_by(STRIDE) {
            // SAFETY: as the caller says.
            unsafe {
                let levels = levels.add(block * TURNED).cast::<__m512i>();
                let x = part.values::<ROWS>(block);
                let mut products = [[_mm512_setzero_si512(); 2]; ROWS];
                for pair in 0..BLOCK / 2 {
                    let w = [
                        _mm512_loadu_si512(levels.add(2 * pair).cast()),
                        _mm512_loadu_si512(levels.add(2 * pair + 1).cast()),
                    ];
                    add_pair(&mut products, w, x.add(pair));
                }
                part.add_scaled(block, products, |row, half, products, scales| {
                    acc[row][half] = _mm512_fmadd_ps(products, scales, acc[row][half]);
                });
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

/// The same from packed rows, of which nothing is kept: for rows of x that are one group.
///
/// # Safety
/// As [`multiply`]; the rows have all blocks.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply_once<const ROWS: usize>(part: &Part, packed: &Packed<'_>, sums: *mut Sums) {
    let table = table(packed.levels);
    // SAFETY: as the caller says.
    unsafe { std::slice::from_raw_parts_mut(sums, ROWS) }.fill([[[0.0; LANES]; STRIDE]; 2]);
    for block in 0..part.blocks {
        // SAFETY: as the caller says.
        unsafe {
            let x = part.values::<ROWS>(block);
            let mut products = [[_mm512_setzero_si512(); 2]; ROWS];
            for piece in 0..2 {
                let (first, second) = (packed.piece(0, 2 * block + piece), packed.piece(1, 2 * block + piece));
                for (word, (first, second)) in first.into_iter().zip(second).enumerate() {
                    let levels = pairs(first, table).into_iter().zip(pairs(second, table));
                    for (at, (first, second)) in levels.enumerate() {
                        add_pair(&mut products, [first, second], x.add(piece * PAIRS + word * 4 + at));
                    }
                }
            }
            // In memory, since registers are full: a block's sums are added up once for 32 products of each.
            part.add_scaled(block, products, |row, half, products, scales| {
                let acc = (*sums.add(row))[half][block % STRIDE].as_mut_ptr();
                _mm512_storeu_ps(acc, _mm512_fmadd_ps(products, scales, _mm512_loadu_ps(acc)));
            });
        }
    }
}

/// A pair of levels of all outputs by the pair of each row of x, which lie a block apart.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn add_pair<const ROWS: usize>(products: &mut [[__m512i; 2]; ROWS], w: [__m512i; 2], x: *const i32) {
    for (row, products) in products.iter_mut().enumerate() {
        // SAFETY: as the caller says.
        let x = _mm512_set1_epi32(unsafe { *x.add(row * BLOCK / 2) });
        for (products, w) in products.iter_mut().zip(w) {
            *products = add_products(*products, w, x);
        }
    }
}
