//! Some outputs of a product by the processor's tiles: unpacked once, multiplied with group after group of x's rows.

use std::cell::RefCell;

use super::amx::{OUTS, SIDE, STEP, Sums, Tiles};
use super::layout::{self, CHUNK, Dense, Packed, Rows, STEPS};
use super::lines::Lines;
use super::tiles::Tile;
use super::{BLOCK, Inputs, Matrix, Weights};

/// Rows that are unpacked between two steps.
const SHARE: usize = SIDE / STEPS;
/// Outputs by which memory is asked ahead: those that this thread takes next, when there are two.
const AHEAD: usize = 2 * OUTS;

/// A thread at work on the tiles of some products.
pub(super) struct Worker {
    tiles: Tiles,
}

impl Worker {
    /// x was made for tiles.
    pub fn new(x: &Inputs) -> Self {
        assert!(x.is_tiled());
        // SAFETY: an input is made for tiles only where there are some.
        Self { tiles: unsafe { Tiles::new() } }
    }

    pub fn work(&mut self, tile: &Tile<'_>) {
        // SAFETY: as above.
        ROOM.with_borrow_mut(|room| unsafe { tile.by_tiles(&mut self.tiles, room) });
    }
}

/// What a thread unpacks into.
struct Room {
    weights: Lines,
    scales: Vec<f32>,
    sums: Sums,
    turned: Sums,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::new(Room {
        weights: Lines::default(),
        scales: Vec::new(),
        sums: Sums::new(),
        turned: Sums::new(),
    });
}

impl Tile<'_> {
    /// # Safety
    /// [`super::amx::available`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn by_tiles(&self, tiles: &mut Tiles, room: &mut Room) {
        let width = self.x.width();
        match &self.part.weights {
            Weights::FourBit(matrix) => {
                self.read_scales(matrix, &mut room.scales);
                let rows = Packed {
                    bytes: matrix.strip(self.first, self.count, 0..width / BLOCK).as_ptr(),
                    stride: width / 2,
                    blocks: width / BLOCK,
                    values: matrix.values(),
                    scales: room.scales.as_ptr(),
                    scale_stride: matrix.padded_blocks(),
                    ahead: AHEAD * width / 2,
                };
                // SAFETY: as the caller says; whole rows of all blocks, with their scales.
                unsafe { self.multiply(&rows, tiles, room) };
            }
            Weights::Bf16(values) => {
                let values = values[self.first * width..(self.first + self.count) * width].as_ptr();
                // SAFETY: as the caller says; whole rows.
                unsafe { self.multiply(&Dense { values, width, ahead: AHEAD * width }, tiles, room) };
            }
            Weights::Compact(_) | Weights::FourBitBack(_) => unreachable!("looked at before: the input is for tiles"),
        }
    }

    /// # Safety
    /// [`super::amx::available`]; `rows` are this tile's.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn multiply(&self, rows: &impl Rows, tiles: &mut Tiles, room: &mut Room) {
        let (groups, chunks) = (self.x.rows().div_ceil(SIDE), self.x.width().div_ceil(CHUNK));
        let whole = self.count == OUTS;
        let piecemeal = whole && groups <= 2;
        let half = layout::room(if piecemeal { LEAD + 1 } else { chunks } * CHUNK);
        room.weights.grow(2 * half);
        let first: *mut u16 = room.weights.values_mut().as_mut_ptr().cast();
        // SAFETY: there is room for two.
        let halves = [first, unsafe { first.add(half) }];
        for chunk in 0..if piecemeal { 0 } else { chunks } {
            // SAFETY: there is room for all chunks of both halves.
            let to = halves.map(|half| unsafe { half.add(chunk * layout::room(CHUNK)) });
            // SAFETY: the rows are there.
            unsafe {
                if whole {
                    rows.unpack::<SIDE>(0, chunk, to[0]);
                    rows.unpack::<SIDE>(SIDE, chunk, to[1]);
                } else {
                    (0..self.count).for_each(|row| rows.unpack::<1>(row, chunk, to[row / SIDE]));
                }
            }
        }
        for first in (0..groups).step_by(2) {
            let pair = [Some(first), (first + 1 < groups).then_some(first + 1)];
            let (mut x, mut members) = ([std::ptr::null(); 2], [0; 2]);
            for (at, group) in pair.into_iter().enumerate() {
                let Some(group) = group else { continue };
                let (values, count) = self.x.tiled(group);
                (x[at], members[at]) = (values.as_ptr().cast(), count);
            }
            tiles.begin(members);
            // SAFETY: all of both halves is unpacked or as many rows there; each group has all steps, and what is null stays so.
            unsafe {
                match pair {
                    _ if !piecemeal => tiles.add(halves.map(|half| half.cast_const()), x, chunks * STEPS),
                    [_, None] => Piecemeal::<_, 1> { rows, chunks, halves, x, members }.multiply(tiles),
                    _ => Piecemeal::<_, 2> { rows, chunks, halves, x, members }.multiply(tiles),
                }
            }
            for (at, group) in pair.into_iter().enumerate() {
                if let Some(group) = group {
                    tiles.sums(at, &mut room.sums);
                    self.write_group(group, &room.sums, &mut room.turned);
                }
            }
        }
    }

    fn read_scales(&self, matrix: &Matrix<'_>, scales: &mut Vec<f32>) {
        let padded = matrix.padded_blocks();
        scales.resize((OUTS * padded).max(scales.len()), 0.0);
        matrix.scales(self.first, self.count, scales);
    }

    /// The sums of a group to y.
    fn write_group(&self, group: usize, sums: &Sums, turned: &mut Sums) {
        let members = self.x.tiled(group).1;
        // SAFETY: an input is made for tiles only where there are some.
        unsafe { sums.turned(members, turned) };
        for member in 0..members {
            self.write_run(group * SIDE + member, &turned.row(member)[..self.count]);
        }
    }
}

/// Chunks that are unpacked ahead.
const LEAD: usize = 1;

/// Up to two groups of x by a whole tile that is unpacked as it is multiplied, half of a chunk after the other. A product takes long
/// to begin, so shares of both alternate; what has been written has to reach the cache before tiles are loaded from there, so what is
/// unpacked is not what is multiplied next; and what is kept is small, since x and what memory gives are in the first-level cache
/// beside it.
struct Piecemeal<'a, R, const GROUPS: usize> {
    rows: &'a R,
    chunks: usize,
    /// Room for [`LEAD`] + 1 chunks of each half.
    halves: [*mut u16; 2],
    x: [*const u16; 2],
    members: [usize; 2],
}

impl<R: Rows, const GROUPS: usize> Piecemeal<'_, R, GROUPS> {
    /// # Safety
    /// [`super::amx::available`]; `rows` are whole tiles of so many chunks; x's groups have so many members and all steps.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn multiply(&self, tiles: &mut Tiles) {
        let place =
            |half: usize, chunk: usize| self.halves[half].wrapping_add(chunk % (LEAD + 1) * layout::room(CHUNK));
        // SAFETY: as the caller says.
        unsafe {
            for chunk in 0..LEAD.min(self.chunks) {
                self.rows.unpack::<SIDE>(0, chunk, place(0, chunk));
                self.rows.unpack::<SIDE>(SIDE, chunk, place(1, chunk));
            }
            for chunk in 0..self.chunks {
                self.half::<0>(chunk, place(0, chunk), place(0, chunk + LEAD), tiles);
                self.half::<1>(chunk, place(1, chunk), place(1, chunk + LEAD), tiles);
            }
        }
    }

    /// # Safety
    /// As [`Self::multiply`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn half<const HALF: usize>(&self, chunk: usize, from: *const u16, to: *mut u16, tiles: &mut Tiles) {
        let later = chunk + LEAD;
        for share in 0..STEPS {
            // SAFETY: as the caller says.
            unsafe {
                if later < self.chunks {
                    self.rows.unpack::<SHARE>(HALF * SIDE + share * SHARE, later, to);
                }
                let step = chunk * STEPS + share;
                let x = [0, 1].map(|group| self.x[group].wrapping_add(step * STEP * self.members[group]));
                tiles.add_half::<HALF, GROUPS>(from.add(share * layout::room(STEP)), x);
            }
        }
    }
}
