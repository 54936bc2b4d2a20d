//! Several rows of x with AVX2: outputs lie beside each other in a register's lanes, as in [`super::super::columns`], and every
//! block ends in the same sums.
//!
//! A pair of registers of outputs by four rows of x is eight sums that stay in registers while a block's 32 pairs of values go by:
//! two instructions for sixteen products, and six loads for eight of them. To unpack a block takes as long as some three rows of x
//! do, so its levels are kept in the first-level cache meanwhile, also where there are few rows.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::super::chunks::{Chunk, chunks, twos};
use super::super::lines::Lines;
use super::super::tiles::Tile;
use super::super::{BLOCK, GROUP, Inputs, Matrix, STRIDE};
use super::{Tables, look_up, tables};

mod back;
use back::Back;

/// Outputs of a tile: four registers of sums, two of which are made at a time.
pub const OUTS: usize = REGISTERS * LANES;
const LANES: usize = 8;
const REGISTERS: usize = 4;
const TOGETHER: usize = 2;
/// Rows of x that are multiplied together.
const ROWS: usize = 4;
/// Pairs of values in a block.
const PAIRS: usize = BLOCK / 2;
/// Levels of a block of all outputs: [2, 32 pairs of values, 2, 8 outputs, 2].
const TURNED: usize = OUTS * BLOCK;
/// Bytes of each row that are turned together.
const PIECE: usize = 16;
/// Groups of x's rows whose sums are kept while a tile's chunks go by: 256 KiB.
const BUNCH: usize = 32;
/// Which of eight values, two words, make the four pairs of a lane: the high halves of a word's two bytes, which come first, and
/// the low ones.
pub const PAIRED: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Outputs of a register for all classes of blocks, each a lane.
type Sums = [[[f32; LANES]; STRIDE]; REGISTERS];

/// What a thread unpacks into.
#[derive(Default)]
struct Room {
    levels: Lines,    // [blocks of a chunk, 2, 32, 2, 8, 2]
    scales: Vec<f32>, // as they lie in the matrix
    turned: Vec<f32>, // [blocks (to a multiple of 8), 4, 8]
    sums: Vec<Sums>,  // [rows of x]
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Outputs of a 4-bit weight for all rows of x.
///
/// # Safety
/// [`super::available`]; x was made for columns.
pub unsafe fn work(tile: &Tile<'_>, matrix: &Matrix<'_>) {
    ROOM.with_borrow_mut(|room| {
        let blocks = matrix.width() / BLOCK;
        // SAFETY: as the caller says.
        unsafe { room.read_scales(matrix, tile.first, tile.count) };
        // The rows that are not there are the last one again; what comes of them is not looked at.
        let row = |at: usize| matrix.bytes(tile.first + at.min(tile.count - 1), 0..blocks).as_ptr();
        // SAFETY: as the caller says.
        let tables = unsafe { tables(matrix.levels()) };
        let packed = Packed { rows: std::array::from_fn(row), blocks, tables };
        // SAFETY: as the caller says; whole rows, and scales for all blocks.
        unsafe { room.make(tile, &packed, blocks, matrix.unit()) }
    });
}

/// The same of the weight as it goes back, x·W.
///
/// # Safety
/// As [`work`]; the weight's rows are whole blocks.
pub unsafe fn work_back(tile: &Tile<'_>, matrix: &Matrix<'_>) {
    ROOM.with_borrow_mut(|room| {
        let blocks = matrix.out() / BLOCK;
        let size = OUTS * blocks.next_multiple_of(STRIDE);
        room.turned.resize(size.max(room.turned.len()), 0.0);
        // SAFETY: as the caller says.
        unsafe { room.make(tile, &Back::new(matrix, tile.first), blocks, matrix.unit()) }
    });
}

/// Where levels come from.
trait Source {
    /// Levels of a chunk of whole rows, side by side: a pair of values of each row in a lane. One that makes its scales as it goes
    /// writes them to `scales`, [blocks, 4, 8].
    ///
    /// # Safety
    /// [`super::available`]; so many blocks are there in each row, and room for all, from a cache line on.
    unsafe fn unpack(&self, chunk: Chunk, levels: *mut i16, scales: *mut f32);
}

impl Room {
    /// A tile's outputs.
    ///
    /// # Safety
    /// [`super::available`]; the source has so many blocks, and x was made for columns.
    unsafe fn make(&mut self, tile: &Tile<'_>, source: &impl Source, blocks: usize, unit: f32) {
        let groups = tile.x.groups();
        for first in (0..groups).step_by(BUNCH) {
            let bunch = first..groups.min(first + BUNCH);
            // SAFETY: as the caller says.
            unsafe {
                if groups == 1 {
                    self.multiply(source, blocks, tile.x, bunch.clone(), twos(blocks));
                } else {
                    self.multiply(source, blocks, tile.x, bunch.clone(), chunks(blocks));
                }
                self.finish(tile, unit, bunch);
            }
        }
    }

    /// # Safety
    /// [`super::available`]
    #[target_feature(enable = "avx2")]
    unsafe fn read_scales(&mut self, matrix: &Matrix<'_>, first: usize, count: usize) {
        let padded = matrix.padded_blocks();
        let size = OUTS * padded;
        self.scales.resize(size.max(self.scales.len()), 0.0);
        matrix.scales(first, count, &mut self.scales);
        self.turned.resize(size.max(self.turned.len()), 0.0);
        let turned = self.turned.as_mut_ptr().cast::<__m256i>();
        for register in 0..REGISTERS {
            let rows = std::array::from_fn(|row| self.scales[(register * LANES + row) * padded..].as_ptr().cast());
            for block in (0..padded).step_by(4) {
                // SAFETY: each row has so many, and there is room for all.
                unsafe {
                    for (at, scales) in turn_floats(&rows, block * size_of::<f32>()).into_iter().enumerate() {
                        _mm256_storeu_si256(turned.add((block + at) * REGISTERS + register), scales);
                    }
                }
            }
        }
    }

    /// The sums of all chunks. They begin with the first chunk of a class; a class without any has zeros.
    ///
    /// # Safety
    /// [`super::available`]; the rows have all blocks of the chunks, and x was made for them.
    unsafe fn multiply(
        &mut self,
        source: &impl Source,
        blocks: usize,
        x: &Inputs,
        groups: Range<usize>,
        chunks: impl Iterator<Item = Chunk>,
    ) {
        if blocks < STRIDE {
            self.sums.clear();
        }
        let rows = groups.len() * GROUP;
        if self.sums.len() < rows {
            self.sums.resize(rows, [[[0.0; LANES]; STRIDE]; REGISTERS]);
        }
        for chunk in chunks {
            self.levels.grow(chunk.count * TURNED);
            // SAFETY: as the caller says; there is room for a chunk's levels.
            unsafe { source.unpack(chunk, self.levels.values_mut().as_mut_ptr(), self.turned.as_mut_ptr()) };
            for (at, group) in groups.clone().enumerate() {
                let (values, scales) = x.columns(group, chunk);
                let part = Part {
                    chunk,
                    levels: self.levels.values().as_ptr(),
                    scales: self.turned.as_ptr(),
                    rows: x.group_rows(group),
                    values: values.cast(),
                    scales_of_x: scales,
                };
                // SAFETY: as the caller says; there are sums for all rows.
                unsafe { part.multiply(self.sums[at * GROUP..].as_mut_ptr()) }
            }
        }
    }

    /// Sums to outputs.
    ///
    /// # Safety
    /// [`super::available`]
    #[target_feature(enable = "avx2")]
    unsafe fn finish(&self, tile: &Tile<'_>, unit: f32, groups: Range<usize>) {
        let rows = groups.start * GROUP..tile.x.rows().min(groups.end * GROUP);
        let mut values = [0f32; OUTS];
        for (row, sums) in rows.zip(&self.sums) {
            for (values, s) in values.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                // SAFETY: as many values as lanes.
                unsafe {
                    let s = |class: usize| _mm256_loadu_ps(s[class].as_ptr());
                    // As `total` adds up.
                    let half = |class: usize| _mm256_add_ps(s(class), s(class + 4));
                    let [even, odd] = [0, 1].map(|class| _mm256_add_ps(half(class), half(class + 2)));
                    let total = _mm256_mul_ps(_mm256_add_ps(even, odd), _mm256_set1_ps(unit));
                    _mm256_storeu_ps(values.as_mut_ptr(), total);
                }
            }
            tile.write_run(row, &values[..tile.count]);
        }
    }
}

/// Sixteen bytes of each row, from a byte on, in words of 16 bits: in the first register the first word of rows 0 to 3 and the
/// second of these, in its other half the same of rows 4 to 7; in the next register the third and the fourth word, and so on.
///
/// # Safety
/// [`super::available`]; the bytes are there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn turn(rows: &[*const u8; LANES], byte: usize) -> [__m256i; 4] {
    // SAFETY: as the caller says.
    let [a, b, c, d] = unsafe { halves(rows, byte) };
    let (ab, cd) = (_mm256_unpacklo_epi16(a, b), _mm256_unpacklo_epi16(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi16(a, b), _mm256_unpackhi_epi16(c, d));
    [
        _mm256_unpacklo_epi32(ab, cd),
        _mm256_unpackhi_epi32(ab, cd),
        _mm256_unpacklo_epi32(ab_high, cd_high),
        _mm256_unpackhi_epi32(ab_high, cd_high),
    ]
}

/// Four floats of each row, from a byte on: the first of all rows, the second, and so on.
///
/// # Safety
/// As [`turn`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn turn_floats(rows: &[*const u8; LANES], byte: usize) -> [__m256i; 4] {
    // SAFETY: as the caller says.
    let [a, b, c, d] = unsafe { halves(rows, byte) };
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Sixteen bytes of rows 0 and 4, of 1 and 5, and so on.
///
/// # Safety
/// As [`turn`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn halves(rows: &[*const u8; LANES], byte: usize) -> [__m256i; 4] {
    std::array::from_fn(|first| {
        // SAFETY: as the caller says.
        let row = |at: usize| unsafe { _mm_loadu_si128(rows[at].add(byte).cast()) };
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(first)), row(first + 4))
    })
}

/// Packed rows of a tile.
struct Packed {
    rows: [*const u8; OUTS],
    blocks: usize,
    tables: Tables,
}

impl Packed {
    /// Hints that some of the next tile will be read: of as many bytes as the `number`th block has. Its rows follow this one's, so
    /// the blocks' numbers may come in any order that is from front to back on the whole.
    #[inline]
    fn ask(&self, number: usize) {
        const BYTES: usize = OUTS * BLOCK / 2;
        let next = self.rows[0].wrapping_add(BYTES * (self.blocks + number));
        for line in (0..BYTES).step_by(64) {
            // SAFETY: every x86-64 has the instruction, which may point anywhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line).cast()) };
        }
    }

    /// # Safety
    /// As [`Source::unpack`].
    #[target_feature(enable = "avx2")]
    unsafe fn write(&self, chunk: Chunk, out: *mut i16) {
        let out: *mut __m256i = out.cast();
        for (at, block) in chunk.blocks().enumerate() {
            self.ask(chunk.before + at);
            for (register, rows) in self.rows.as_chunks::<LANES>().0.iter().enumerate() {
                let first = (at * REGISTERS + register / TOGETHER * TOGETHER) * PAIRS + register % TOGETHER;
                for piece in 0..2 {
                    // SAFETY: as the caller says.
                    let turned = unsafe { turn(rows, (2 * block + piece) * PIECE) };
                    for (word, words) in turned.into_iter().enumerate() {
                        for (pair, levels) in pairs(words, self.tables).into_iter().enumerate() {
                            let pair = piece * PAIRS / 2 + word * 4 + pair;
                            // SAFETY: as above.
                            unsafe { _mm256_store_si256(out.add(first + pair * TOGETHER), levels) };
                        }
                    }
                }
            }
        }
    }
}

impl Source for Packed {
    unsafe fn unpack(&self, chunk: Chunk, levels: *mut i16, _: *mut f32) {
        // SAFETY: as the caller says.
        unsafe { self.write(chunk, levels) }
    }
}

/// Levels of two words of each row as [`turn`] leaves them, a pair in each lane, in the order of [`PAIRED`].
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(words: __m256i, tables: Tables) -> [__m256i; 4] {
    let [(even_low, even_high), (odd_low, odd_high)] = look_up(words, tables);
    [
        _mm256_unpacklo_epi8(even_low, even_high),
        _mm256_unpackhi_epi8(even_low, even_high),
        _mm256_unpacklo_epi8(odd_low, odd_high),
        _mm256_unpackhi_epi8(odd_low, odd_high),
    ]
}

/// A chunk of a tile and a group of x's rows.
struct Part {
    chunk: Chunk,
    levels: *const i16,
    scales: *const f32, // [blocks, 4, 8]
    rows: usize,
    values: *const i32,      // [blocks of a chunk, rows, 32 pairs]
    scales_of_x: *const f32, // [blocks of a chunk, rows]
}

impl Part {
    /// Adds its products to the rows' sums.
    ///
    /// # Safety
    /// [`super::available`]; levels, scales and values of the chunk's blocks are there, and the rows' sums.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn multiply(&self, sums: *mut Sums) {
        for (at, block) in self.chunk.blocks().enumerate() {
            for row in (0..self.rows).step_by(ROWS) {
                for register in (0..REGISTERS).step_by(TOGETHER) {
                    // SAFETY: as the caller says.
                    unsafe {
                        match self.rows - row {
                            1 => self.some::<1>((at, block), row, register, sums),
                            2 => self.some::<2>((at, block), row, register, sums),
                            3 => self.some::<3>((at, block), row, register, sums),
                            _ => self.some::<ROWS>((at, block), row, register, sums),
                        }
                    }
                }
            }
        }
    }

    /// A block's products of two registers of outputs by COUNT rows from `row` on. `at`: the block's number in the chunk.
    ///
    /// # Safety
    /// As [`Self::multiply`]; there are so many.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn some<const COUNT: usize>(
        &self,
        (at, block): (usize, usize),
        row: usize,
        register: usize,
        sums: *mut Sums,
    ) {
        // SAFETY: as the caller says.
        unsafe {
            let x = self.values.add((at * self.rows + row) * PAIRS);
            let levels = self.levels.cast::<__m256i>().add((at * REGISTERS + register) * PAIRS);
            let products = if COUNT == ROWS { four(levels, x) } else { few::<COUNT>(levels, x) };
            let scales = self.scales.add((block * REGISTERS + register) * LANES);
            let scales = [_mm256_loadu_ps(scales), _mm256_loadu_ps(scales.add(LANES))];
            let of_x = self.scales_of_x.add(at * self.rows + row);
            let sums = (*sums.add(row))[register][block % STRIDE].as_mut_ptr();
            // The first of its class begins with zeros. Twice, so that nothing is decided for each row.
            let add = |before: fn(*mut f32) -> __m256| {
                for (row, products) in products.into_iter().take(COUNT).enumerate() {
                    let of_x = _mm256_set1_ps(*of_x.add(row));
                    for (half, (products, scales)) in products.into_iter().zip(scales).enumerate() {
                        let sum = sums.add((row * REGISTERS + half) * STRIDE * LANES);
                        let products = _mm256_cvtepi32_ps(products);
                        _mm256_storeu_ps(sum, _mm256_fmadd_ps(products, _mm256_mul_ps(scales, of_x), before(sum)));
                    }
                }
            };
            if block < STRIDE { add(|_| _mm256_setzero_ps()) } else { add(|sum| _mm256_loadu_ps(sum)) }
        }
    }
}

/// Products of a block's levels [32, 2, 8, 2] by COUNT rows of 32 pairs.
///
/// # Safety
/// [`super::available`]; they are there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn few<const COUNT: usize>(levels: *const __m256i, x: *const i32) -> [[__m256i; TOGETHER]; ROWS] {
    let mut products = [[_mm256_setzero_si256(); TOGETHER]; ROWS];
    for pair in 0..PAIRS {
        // SAFETY: as the caller says.
        let w: [__m256i; TOGETHER] =
            std::array::from_fn(|half| unsafe { _mm256_load_si256(levels.add(pair * TOGETHER + half)) });
        for (row, products) in products.iter_mut().take(COUNT).enumerate() {
            // SAFETY: as above.
            let x = _mm256_set1_epi32(unsafe { *x.add(row * PAIRS + pair) });
            for (products, w) in products.iter_mut().zip(w) {
                *products = _mm256_add_epi32(*products, _mm256_madd_epi16(w, x));
            }
        }
    }
    products
}

/// The same by four rows: four products, then their sums. In the order in which compilers put them, a sum behind each product,
/// sums take the places where a Zen 3 could multiply: 5.4 cycles for a pair and not 5.0.
///
/// # Safety
/// As [`few`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four(levels: *const __m256i, x: *const i32) -> [[__m256i; TOGETHER]; ROWS] {
    let mut p = [_mm256_setzero_si256(); TOGETHER * ROWS];
    for pair in 0..PAIRS {
        let [p0, p1, p2, p3, p4, p5, p6, p7] = &mut p;
        // SAFETY: as the caller says.
        unsafe {
            asm!(
                "vmovdqa {w0}, ymmword ptr [{levels}]",
                "vmovdqa {w1}, ymmword ptr [{levels} + 32]",
                "vpbroadcastd {a}, dword ptr [{x}]",
                "vpbroadcastd {b}, dword ptr [{x} + 128]",
                "vpmaddwd {t0}, {w0}, {a}",
                "vpmaddwd {t1}, {w1}, {a}",
                "vpmaddwd {t2}, {w0}, {b}",
                "vpmaddwd {t3}, {w1}, {b}",
                "vpaddd {p0}, {p0}, {t0}",
                "vpaddd {p1}, {p1}, {t1}",
                "vpaddd {p2}, {p2}, {t2}",
                "vpaddd {p3}, {p3}, {t3}",
                "vpbroadcastd {a}, dword ptr [{x} + 256]",
                "vpbroadcastd {b}, dword ptr [{x} + 384]",
                "vpmaddwd {t0}, {w0}, {a}",
                "vpmaddwd {t1}, {w1}, {a}",
                "vpmaddwd {t2}, {w0}, {b}",
                "vpmaddwd {t3}, {w1}, {b}",
                "vpaddd {p4}, {p4}, {t0}",
                "vpaddd {p5}, {p5}, {t1}",
                "vpaddd {p6}, {p6}, {t2}",
                "vpaddd {p7}, {p7}, {t3}",
                levels = in(reg) levels.add(pair * TOGETHER), x = in(reg) x.add(pair),
                p0 = inout(ymm_reg) *p0, p1 = inout(ymm_reg) *p1, p2 = inout(ymm_reg) *p2, p3 = inout(ymm_reg) *p3,
                p4 = inout(ymm_reg) *p4, p5 = inout(ymm_reg) *p5, p6 = inout(ymm_reg) *p6, p7 = inout(ymm_reg) *p7,
                w0 = out(ymm_reg) _, w1 = out(ymm_reg) _, a = out(ymm_reg) _, b = out(ymm_reg) _,
                t0 = out(ymm_reg) _, t1 = out(ymm_reg) _, t2 = out(ymm_reg) _, t3 = out(ymm_reg) _,
                options(readonly, nostack, preserves_flags),
            );
        }
    }
    let [a, b, c, d, e, f, g, h] = p;
    [[a, b], [c, d], [e, f], [g, h]]
}

const _: () = assert!(TOGETHER == 2 && ROWS == 4 && PAIRS * size_of::<i32>() == 128, "as in four");
