//! Several rows of x by AVX-512: the outputs of a tile lie beside each other in a register's lanes.
//!
//! A row of a weight takes a lane and a pair of values of x is the same for all of them, so the 64 products of a block end in one
//! integer a lane, and what brings it under its scales (three instructions) is needed once for 32 of `vpdpwssd`, not for four as
//! where a row lies along a register. The price is that packed rows are turned: which is why a single row of x goes by
//! [`super::avx512`], whose sums are the same to the bit. Both take the integer sum of a block, which is exact
//! ([`Inputs`] sees to it that it fits 32 bits), scale it, and add it to the sum of those blocks whose number has the same last
//! three bits; the eight sums are then added up as everywhere.
//!
//! One group of rows is multiplied as a block is unpacked, with nothing in between. For more the levels of a few blocks are kept
//! ([`super::chunks`]) while all groups go by.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::avx512::{add_products, table};
use super::chunks::{Chunk, chunks};
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
/// Groups of x's rows whose sums are kept while a tile's chunks go by: 512 KiB.
const BUNCH: usize = 64;
/// Which of eight values make the four pairs of a word. A number that is looked up lies in the low bits of either half of a lane
/// (the high four of a byte come first), so each shift of a word brings up two that are four apart.
pub(super) const PAIRED: [usize; 8] = [1, 5, 0, 4, 3, 7, 2, 6];
/// Outputs of a register for all classes of blocks, each a lane.
type Sums = [[[f32; LANES]; STRIDE]; 2];

/// What a thread unpacks into.
#[derive(Default)]
struct Room {
    levels: Lines,    // [blocks of a chunk, 32, 2, 16, 2]
    scales: Vec<f32>, // as they lie in the matrix
    turned: Vec<f32>, // [blocks (to a multiple of 8), 2, 16]
    sums: Vec<Sums>,  // [rows of x]
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
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
        let groups = x.groups();
        if groups == 1 {
            // SAFETY: as the caller says; whole rows, and scales for all blocks.
            unsafe {
                room.multiply_once(&packed, x);
                room.finish(tile, matrix.unit(), 0..1);
            }
            return;
        }
        for first in (0..groups).step_by(BUNCH) {
            let bunch = first..groups.min(first + BUNCH);
            // SAFETY: as the caller says; whole rows, and scales for all blocks.
            unsafe {
                room.multiply(&packed, x, bunch.clone());
                room.finish(tile, matrix.unit(), bunch);
            }
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

    /// Room for the sums of so many rows of x. They begin with the first chunk of a class; a class without any has zeros.
    fn begin(&mut self, rows: usize, blocks: usize) {
        if blocks < STRIDE {
            self.sums.clear();
        }
        if self.sums.len() < rows {
            self.sums.resize(rows, [[[0.0; LANES]; STRIDE]; 2]);
        }
    }

    /// # Safety
    /// As [`multiply`].
    unsafe fn multiply(&mut self, packed: &Packed<'_>, x: &Inputs, groups: Range<usize>) {
        self.begin(groups.len() * GROUP, packed.blocks);
        for chunk in chunks(packed.blocks) {
            self.levels.grow(chunk.count * TURNED);
            // SAFETY: as the caller says; there is room for a chunk's levels.
            unsafe { packed.unpack(chunk, self.levels.values_mut().as_mut_ptr()) };
            let levels = self.levels.values().as_ptr();
            for (at, group) in groups.clone().enumerate() {
                let part = Part { scales: self.turned.as_ptr(), x: x.columns(group, chunk) };
                let sums = self.sums[at * GROUP..].as_mut_ptr();
                // SAFETY: as the caller says.
                unsafe { by_rows!(multiply[x.group_rows(group)](&part, chunk, levels, sums)) }
            }
        }
    }

    /// # Safety
    /// As [`multiply_once`].
    unsafe fn multiply_once(&mut self, packed: &Packed<'_>, x: &Inputs) {
        self.sums.clear();
        self.sums.resize(x.rows(), [[[0.0; LANES]; STRIDE]; 2]);
        let part = Part { scales: self.turned.as_ptr(), x: x.columns(0, Chunk::whole(packed.blocks)) };
        let sums = self.sums.as_mut_ptr();
        // SAFETY: as the caller says.
        unsafe { by_rows!(multiply_once[x.rows()](&part, packed, sums)) }
    }

    /// Sums to outputs.
    ///
    /// # Safety
    /// [`super::avx512::available`]
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(&self, tile: &Tile<'_>, unit: f32, groups: Range<usize>) {
        let rows = groups.start * GROUP..tile.x.rows().min(groups.end * GROUP);
        let mut values = [0f32; OUTS];
        for (row, sums) in rows.zip(&self.sums) {
            for (values, s) in values.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                // SAFETY: as many values as lanes.
                unsafe {
                    let s = |class: usize| _mm512_loadu_ps(s[class].as_ptr());
                    // As `total` adds up.
                    let half = |class: usize| _mm512_add_ps(s(class), s(class + 4));
                    let [even, odd] = [0, 1].map(|class| _mm512_add_ps(half(class), half(class + 2)));
                    let total = _mm512_mul_ps(_mm512_add_ps(even, odd), _mm512_set1_ps(unit));
                    _mm512_storeu_ps(values.as_mut_ptr(), total);
                }
            }
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
pub(super) unsafe fn turn(rows: &[*const u8; LANES], byte: usize) -> [__m512i; 4] {
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
        // SAFETY: as the caller says.
        unsafe { turn(&self.rows.as_chunks::<LANES>().0[half], piece * PIECE) }
    }

    /// Hints that some of the next tile will be read: of as many bytes as the `number`th block has. Its rows follow this one's, so
    /// the blocks' numbers may come in any order that is from front to back on the whole.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn ask(&self, number: usize) {
        const BYTES: usize = OUTS * BLOCK / 2;
        let next = self.rows[0].wrapping_add(BYTES * (self.blocks + number));
        for line in (0..BYTES).step_by(64) {
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line).cast());
        }
    }

    /// Levels of a chunk of whole rows, side by side: a pair of values of each row in a lane.
    ///
    /// # Safety
    /// [`super::avx512::available`]; so many blocks are there in each row, and room for all.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(&self, chunk: Chunk, out: *mut i16) {
        let table = table(self.levels);
        for (at, block) in chunk.blocks().enumerate() {
            self.ask(chunk.before + at);
            for half in 0..2 {
                for piece in 0..2 {
                    // SAFETY: as the caller says.
                    let words = unsafe { self.piece(half, 2 * block + piece) };
                    for (word, numbers) in words.into_iter().enumerate() {
                        for (pair, levels) in pairs(numbers, table).into_iter().enumerate() {
                            let place = ((2 * at + piece) * PAIRS + word * 4 + pair) * 2 + half;
                            // SAFETY: as above.
                            unsafe { _mm512_storeu_si512(out.cast::<__m512i>().add(place).cast(), levels) };
                        }
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
    /// Values [blocks of a chunk, rows, 64] and their scales [blocks of a chunk, rows].
    x: (*const i16, *const f32),
}

impl Part {
    /// A block's values, of ROWS rows: pairs, row by row. `at`: its number in the chunk.
    ///
    /// # Safety
    /// There are so many blocks.
    #[inline(always)]
    unsafe fn values<const ROWS: usize>(&self, at: usize) -> *const i32 {
        // SAFETY: as the caller says.
        unsafe { self.x.0.add(at * ROWS * BLOCK).cast() }
    }

    /// acc + products brought under their scales. `at`: the block's number in the chunk.
    ///
    /// # Safety
    /// [`super::avx512::available`]; there are so many blocks.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn add_scaled<const ROWS: usize>(
        &self,
        (at, block): (usize, usize),
        products: [[__m512i; 2]; ROWS],
        mut add: impl FnMut(usize, usize, __m512, __m512),
    ) {
        // SAFETY: as the caller says.
        unsafe {
            let scales = self.scales.add(block * OUTS);
            let scales = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(LANES))];
            for (row, products) in products.into_iter().enumerate() {
                let of_x = _mm512_set1_ps(*self.x.1.add(at * ROWS + row));
                for (half, (products, scales)) in products.into_iter().zip(scales).enumerate() {
                    add(row, half, _mm512_cvtepi32_ps(products), _mm512_mul_ps(scales, of_x));
                }
            }
        }
    }
}

/// A chunk of a tile's outputs by ROWS rows of x, added to their sums.
///
/// # Safety
/// [`super::avx512::available`]; levels, scales and values of the chunk's blocks are there, and the rows' sums.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply<const ROWS: usize>(part: &Part, chunk: Chunk, levels: *const i16, sums: *mut Sums) {
    // SAFETY: as the caller says.
    let sum = |row: usize, half: usize| unsafe { (*sums.add(row))[half][chunk.class()].as_mut_ptr() };
    let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
    if !chunk.begins() {
        // SAFETY: as above.
        acc = std::array::from_fn(|row| std::array::from_fn(|half| unsafe { _mm512_loadu_ps(sum(row, half)) }));
    }
    for (at, block) in chunk.blocks().enumerate() {
        // SAFETY: as the caller says.
        unsafe {
            let levels = levels.add(at * TURNED).cast::<__m512i>();
            let x = part.values::<ROWS>(at);
            let mut products = [[_mm512_setzero_si512(); 2]; ROWS];
            for pair in 0..BLOCK / 2 {
                let w = [
                    _mm512_loadu_si512(levels.add(2 * pair).cast()),
                    _mm512_loadu_si512(levels.add(2 * pair + 1).cast()),
                ];
                add_pair(&mut products, w, x.add(pair));
            }
            part.add_scaled((at, block), products, |row, half, products, scales| {
                acc[row][half] = _mm512_fmadd_ps(products, scales, acc[row][half]);
            });
        }
    }
    for (row, acc) in acc.into_iter().enumerate() {
        for (half, acc) in acc.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(sum(row, half), acc) };
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
    for block in 0..packed.blocks {
        packed.ask(block);
        // SAFETY: as the caller says.
        unsafe {
            let x = part.values::<ROWS>(block);
            let mut products = [[_mm512_setzero_si512(); 2]; ROWS];
            for piece in 0..2 {
                let first = packed.piece(0, 2 * block + piece);
                let second = packed.piece(1, 2 * block + piece);
                let x = x.add(piece * PAIRS);
                // Written out: a function with so many registers would not be part of this one.
                macro_rules! add {
                    ($($word:literal $at:literal)*) => { $({
                        let of = |word| _mm512_permutexvar_epi16(_mm512_srli_epi16::<{ 4 * $at }>(word), table);
                        let w = [of(first[$word]), of(second[$word])];
                        let x = x.add(4 * $word + $at);
                        let mut row = 0;
                        while row < ROWS {
                            let x = _mm512_set1_epi32(*x.add(row * BLOCK / 2));
                            products[row] = [add_products(products[row][0], w[0], x), add_products(products[row][1], w[1], x)];
                            row += 1;
                        }
                    })* };
                }
                add!(0 0  0 1  0 2  0 3  1 0  1 1  1 2  1 3  2 0  2 1  2 2  2 3  3 0  3 1  3 2  3 3);
            }
            part.add_scaled((block, block), products, |row, half, products, scales| {
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
