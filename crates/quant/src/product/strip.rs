//! Some outputs of a product by the processor's tiles: unpacked once, multiplied with group after group of x's rows.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use super::activations::Shared;
use super::amx::{OUTS, SIDE, STEP, Sums, Tiles};
use super::layout::{self, CHUNK, Packed, STEPS};
use super::lines::Lines;
use super::low_rank::{LowRank, Projected, padded_rank};
use super::tiles::Tile;
use super::{BLOCK, Inputs, Weights};

/// Chunks that are kept where they are unpacked one by one.
const AT_ONCE: usize = 3;
/// Rows that are unpacked between two steps.
const SHARE: usize = OUTS / STEPS;
/// Outputs by which memory is asked ahead: those that this thread takes next, when there are two.
const AHEAD: usize = 2 * OUTS;

/// s·A·x of the products' low-rank terms as tiles have it, for one thread.
struct Factors<'a> {
    terms: Vec<Factor<'a>>,
    values: Vec<u16>,
}

struct Factor<'a> {
    product: usize,
    term: LowRank<'a>,
    steps: usize,
    /// Groups in which it has rows, and where their values begin.
    groups: Vec<(usize, usize)>,
}

impl<'a> Factors<'a> {
    /// `output` is [`Projected::output`], complete.
    fn new(projected: &Projected<'a>, output: &Shared<f32>, x: &Inputs) -> Self {
        let (mut terms, mut values) = (Vec::new(), Vec::new());
        for (product, term, first) in projected.terms() {
            let padded = padded_rank(term.rank);
            let steps = padded.div_ceil(STEP);
            let mut groups: Vec<(usize, usize)> = Vec::new();
            for (at, row) in term.rows.iter().enumerate() {
                let (group, member) = (row / SIDE, row % SIDE);
                let members = x.tiled(group).1;
                let place = match groups.iter().find(|(known, _)| *known == group) {
                    Some((_, place)) => *place,
                    None => {
                        groups.push((group, values.len()));
                        values.resize(values.len() + steps * STEP * members, 0);
                        groups[groups.len() - 1].1
                    }
                };
                // SAFETY: this row's values, complete since `compute` has returned.
                let own = unsafe { std::slice::from_raw_parts(output.0.add(first + at * padded).cast_const(), padded) };
                layout::place_values(own, member, members, &mut values[place..]);
            }
            terms.push(Factor { product, term: *term, steps, groups });
        }
        Self { terms, values }
    }
}

/// A thread at work on the tiles of some products.
pub(super) struct Worker<'a> {
    factors: Factors<'a>,
    tiles: Tiles,
}

impl<'a> Worker<'a> {
    /// `output` is [`Projected::output`], complete; x was made for tiles.
    pub fn new(projected: &Projected<'a>, output: &Shared<f32>, x: &Inputs) -> Self {
        assert!(x.is_tiled());
        // SAFETY: an input is made for tiles only where there are some.
        let tiles = unsafe { Tiles::new() };
        Self { factors: Factors::new(projected, output, x), tiles }
    }

    pub fn work(&mut self, tile: &Tile<'_>) {
        // SAFETY: as above.
        ROOM.with_borrow_mut(|room| unsafe { tile.by_tiles(&self.factors, &mut self.tiles, room) });
    }
}

/// What a thread unpacks into.
struct Room {
    weights: Lines,
    factors: Lines,
    scales: Vec<f32>,
    sums: Sums,
    turned: Sums,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::new(Room {
        weights: Lines::default(),
        factors: Lines::default(),
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
    unsafe fn by_tiles(&self, factors: &Factors<'_>, tiles: &mut Tiles, room: &mut Room) {
        self.read_scales(&mut room.scales);
        self.read_factors(factors, &mut room.factors);
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
            self.add_factors(tiles, factors, pair, &room.factors);
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

    /// Rows of each term's B, one term after the other.
    fn read_factors(&self, factors: &Factors<'_>, to: &mut Lines) {
        let mut place = 0;
        for factor in factors.terms.iter().filter(|factor| factor.product == self.product) {
            let size = layout::room(factor.steps * STEP);
            to.grow(place + size);
            let padded = padded_rank(factor.term.rank);
            let b = &factor.term.b[self.first * padded..(self.first + self.count) * padded];
            layout::place_factor(b, padded, &mut to.values_mut()[place..place + size]);
            place += size;
        }
    }

    fn add_factors(&self, tiles: &mut Tiles, factors: &Factors<'_>, pair: [Option<usize>; 2], placed: &Lines) {
        let mut place = 0;
        for factor in factors.terms.iter().filter(|factor| factor.product == self.product) {
            let b = placed.values()[place..].as_ptr().cast();
            for (group, at) in &factor.groups {
                let values = factors.values[*at..].as_ptr();
                // SAFETY: both have so many steps.
                unsafe {
                    if pair[0] == Some(*group) {
                        tiles.add(b, [values, std::ptr::null()], factor.steps);
                    } else if pair[1] == Some(*group) {
                        tiles.add_second(b, values, factor.steps);
                    }
                }
            }
            place += layout::room(factor.steps * STEP);
        }
    }

    /// The sums of a group to y.
    fn write_group(&self, group: usize, sums: &Sums, turned: &mut Sums) {
        let members = self.x.tiled(group).1;
        // SAFETY: an input is made for tiles only where there are some.
        unsafe { sums.turned(members, turned) };
        for member in 0..members {
            let sums = &turned.row(member)[..self.count];
            let row = group * SIDE + member;
            // SAFETY: within y, whose length was checked; no other tile has these outputs.
            let y = unsafe {
                std::slice::from_raw_parts_mut(self.part.y.0.add(row * self.part.out + self.first), self.count)
            };
            y.copy_from_slice(sums);
            if let Some(bias) = self.part.bias {
                let bias = &bias[self.first..self.first + self.count];
                y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias.to_f32());
            }
        }
    }
}
