//! The order in which [`super::columns`] takes the blocks of a weight: a few at a time, whose levels stay in the first-level
//! cache while all rows of x go by. They are of one class, so that a row's sum of it stays in registers meanwhile.

use super::STRIDE;

/// Blocks of a chunk: with the levels of 32 outputs 16 KiB, half of the smallest cache there is.
const NEAR: usize = 4;

/// Blocks `first`, `first + step`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub first: usize,
    pub step: usize,
    pub count: usize,
    /// Blocks of the chunks before.
    pub before: usize,
}

impl Chunk {
    /// All blocks as they lie: so rows of x that are one group lie.
    pub fn whole(blocks: usize) -> Self {
        Self { first: 0, step: 1, count: blocks, before: 0 }
    }

    /// Whether it is the first of its class.
    pub fn begins(self) -> bool {
        self.first < STRIDE
    }

    pub fn blocks(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(move |at| self.first + at * self.step)
    }

    /// Which of the [`STRIDE`] sums its blocks belong to.
    pub fn class(self) -> usize {
        self.first % STRIDE
    }
}

/// Chunks of two blocks each, a cache line of packed bytes, as they lie: for rows of x that are one group. They have no class.
pub(super) fn twos(blocks: usize) -> impl Iterator<Item = Chunk> {
    (0..blocks).step_by(2).map(move |first| Chunk { first, step: 1, count: 2.min(blocks - first), before: first })
}

/// Chunks of all blocks: in each class from the front to the back.
pub(super) fn chunks(blocks: usize) -> impl Iterator<Item = Chunk> {
    let mut before = 0;
    let firsts = (0..STRIDE.min(blocks)).flat_map(move |class| (class..blocks).step_by(STRIDE * NEAR));
    firsts.map(move |first| {
        let count = (blocks - first).div_ceil(STRIDE).min(NEAR);
        before += count;
        Chunk { first, step: STRIDE, count, before: before - count }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_is_in_one_chunk_and_a_class_goes_from_front_to_back() {
        for blocks in [1, 7, 8, 9, 32, 33, 88, 100] {
            let all: Vec<Chunk> = chunks(blocks).collect();
            let order: Vec<usize> = all.iter().flat_map(|chunk| chunk.blocks()).collect();
            for class in 0..STRIDE {
                let of_class: Vec<usize> = order.iter().copied().filter(|block| block % STRIDE == class).collect();
                let expected: Vec<usize> = (class..blocks).step_by(STRIDE).collect();
                assert_eq!(of_class, expected, "class {class} of {blocks}");
            }
            assert_eq!(order.len(), blocks);
            let mut before = 0;
            for chunk in all {
                assert_eq!(chunk.before, before);
                assert!(chunk.blocks().all(|block| block % STRIDE == chunk.class()));
                before += chunk.count;
            }
        }
    }
}
