//! Some outputs of a product by the processor's tiles: unpacked once, multiplied with group after group of x's rows.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use super::amx::{OUTS, SIDE, STEP, Sums, Tiles};
use super::layout::{self, CHUNK, Packed, STEPS};
use super::lines::Lines;
use super::tiles::Tile;
use super::{BLOCK, Inputs, Weights};

/// Chunks that are kept where they are unpacked one by one.
const AT_ONCE: usize = 3;
/// Rows that are unpacked between two steps.
const SHARE: usize = OUTS / STEPS;
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

/// Where the rows of a tile come from.
enum Source<'a> {
    FourBit(Packed<'a>),
    /// Row by row, whole ones.
    Bf16(&'a [bf16]),
}

impl Tile<'_> {
    /// # Safety
    /// [`super::amx::available`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn by_tiles(&self, tiles: &mut Tiles, room: &mut Room) {
        self.read_scales(&mut room.scales);
        let source = self.source(&room.scales);
        let (groups, chunks) = (self.x.rows().div_ceil(SIDE), self.x.width().div_ceil(CHUNK));
        let few = groups <= 2;
        room.weights.grow(layout::room(if few { AT_ONCE } else { chunks } * CHUNK));
        let weights: *mut u16 = room.weights.values_mut().as_mut_ptr().cast();
        // SAFETY: there is room for so many.
        let place =
            |chunk: usize| unsafe { weights.add(if few { chunk % AT_ONCE } else { chunk } * layout::room(CHUNK)) };
        for chunk in 0..if few { chunks.min(AT_ONCE - 1) } else { chunks } {
            // SAFETY: the place is for a chunk of all rows.
            unsafe { self.unpack(&source, 0..OUTS, chunk, place(chunk)) };
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
            // SAFETY: so many steps are unpacked, and each group has them; what is null stays so.
            unsafe {
                if few {
                    // A later chunk is unpacked, in shares, while this one is multiplied, which takes long to begin. Not the
                    // next: what has just been written would have to reach the cache first.
                    for chunk in 0..chunks {
                        let (this, next) = (place(chunk), chunk + AT_ONCE - 1);
                        for share in 0..STEPS {
                            if next < chunks {
                                self.unpack(&source, share * SHARE..(share + 1) * SHARE, next, place(next));
                            }
                            tiles.add(this.add(share * layout::room(STEP)), x, 1);
                            x[0] = x[0].wrapping_add(STEP * members[0]);
                            x[1] = x[1].wrapping_add(STEP * members[1]);
                        }
                    }
                } else {
                    tiles.add(weights, x, chunks * STEPS);
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

    fn source<'a>(&'a self, scales: &'a [f32]) -> Source<'a> {
        let width = self.x.width();
        match &self.part.weights {
            Weights::FourBit(matrix) => Source::FourBit(Packed {
                bytes: matrix.strip(self.first, self.count, 0..width / BLOCK),
                stride: width / 2,
                blocks: width / BLOCK,
                values: matrix.values(),
                scales,
                scale_stride: matrix.padded_blocks(),
                ahead: AHEAD * width / 2,
            }),
            Weights::Bf16(values) => Source::Bf16(&values[self.first * width..(self.first + self.count) * width]),
            Weights::Compact(_) | Weights::FourBitBack(_) => unreachable!("looked at before: the input is for tiles"),
        }
    }

    /// A chunk of some rows, of those that there are.
    ///
    /// # Safety
    /// [`super::amx::available`]; `to` is for a chunk of all rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn unpack(&self, source: &Source<'_>, rows: Range<usize>, chunk: usize, to: *mut u16) {
        let rows = rows.start..rows.end.min(self.count);
        // SAFETY: as the caller says.
        unsafe {
            match source {
                Source::FourBit(packed) => packed.unpack(rows, chunk, to),
                Source::Bf16(values) => {
                    let width = self.x.width();
                    for row in rows {
                        let ahead = values.as_ptr().wrapping_add(AHEAD * width + (chunk * OUTS + row) * CHUNK);
                        layout::arrange(&values[row * width..(row + 1) * width][chunk * CHUNK..], row, to, ahead);
                    }
                }
            }
        }
    }

    fn read_scales(&self, scales: &mut Vec<f32>) {
        let Weights::FourBit(matrix) = &self.part.weights else { return };
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
