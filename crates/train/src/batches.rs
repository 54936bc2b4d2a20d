//! Which rows make up which step: shuffled per epoch from the seed, rows of like length together.
//!
//! A shuffled epoch is cut into pools of [`POOL_BATCHES`] batches; inside a pool rows are sorted by length, so that a
//! batch wastes little on padding, and the batches of the epoch are shuffled again, so that length says nothing about
//! when a row is seen. Every row is in exactly one batch of an epoch.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Batches that share one sort. More of them pad less but mix less.
const POOL_BATCHES: usize = 16;

/// Batches without end: epoch after epoch.
pub struct Batches<'a> {
    lengths: &'a [usize],
    batch_rows: usize,
    seed: u64,
    epoch: u64,
    /// Batches left of the present epoch, the next one last.
    left: Vec<Vec<usize>>,
}

impl<'a> Batches<'a> {
    /// `lengths` holds the tokens of each row and is not empty; `batch_rows` is at least 1.
    pub fn new(lengths: &'a [usize], batch_rows: usize, seed: u64) -> Self {
        Self { lengths, batch_rows: batch_rows.max(1), seed, epoch: 0, left: Vec::new() }
    }

    pub fn per_epoch(&self) -> u64 {
        self.lengths.len().div_ceil(self.batch_rows) as u64
    }

    /// The rows of the next step, longest first, so that what does not fit in memory fails at once.
    pub fn next_batch(&mut self) -> Vec<usize> {
        if self.left.is_empty() {
            self.left = self.shuffled_epoch();
            self.epoch += 1;
        }
        self.left.pop().unwrap_or_default()
    }

    /// As after `steps` calls of [`Self::next_batch`]: the order hangs on the seed alone.
    pub fn skip(&mut self, steps: u64) {
        self.epoch = steps / self.per_epoch();
        self.left.clear();
        let into_epoch = (steps % self.per_epoch()) as usize;
        if into_epoch > 0 {
            self.left = self.shuffled_epoch();
            self.left.truncate(self.left.len() - into_epoch);
            self.epoch += 1;
        }
    }

    fn shuffled_epoch(&self) -> Vec<Vec<usize>> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(self.epoch);
        let mut rows: Vec<usize> = (0..self.lengths.len()).collect();
        rows.shuffle(&mut random);
        let mut batches = Vec::with_capacity(rows.len().div_ceil(self.batch_rows));
        for pool in rows.chunks_mut(self.batch_rows.saturating_mul(POOL_BATCHES)) {
            // Stable, so rows of one length keep their shuffled order.
            pool.sort_by_key(|&row| std::cmp::Reverse(self.lengths[row]));
            batches.extend(pool.chunks(self.batch_rows).map(<[usize]>::to_vec));
        }
        batches.shuffle(&mut random);
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(rows: usize) -> Vec<usize> {
        (0..rows).map(|row| 5 + (row * 7919) % 40).collect()
    }

    #[test]
    fn an_epoch_holds_every_row_once() {
        let lengths = lengths(1003);
        let mut batches = Batches::new(&lengths, 32, 3);
        for _ in 0..2 {
            let mut seen: Vec<usize> = (0..batches.per_epoch()).flat_map(|_| batches.next_batch()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..1003).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_seed_decides_the_order_and_epochs_differ() {
        let lengths = lengths(200);
        let order = |seed| {
            let mut batches = Batches::new(&lengths, 16, seed);
            (0..2 * batches.per_epoch()).map(|_| batches.next_batch()).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        let two_epochs = order(1);
        assert_ne!(two_epochs[..13], two_epochs[13..]);
    }

    #[test]
    fn skipping_is_as_having_taken_the_batches() {
        let lengths = lengths(100);
        for taken in [0, 1, 6, 7, 8, 13, 14, 30] {
            let (mut one_by_one, mut skipped) = (Batches::new(&lengths, 16, 4), Batches::new(&lengths, 16, 4));
            for _ in 0..taken {
                one_by_one.next_batch();
            }
            skipped.skip(taken);
            for _ in 0..20 {
                assert_eq!(one_by_one.next_batch(), skipped.next_batch(), "{taken}");
            }
        }
    }

    #[test]
    fn grouping_by_length_pads_less_than_a_tenth() {
        let lengths = lengths(4000);
        let mut batches = Batches::new(&lengths, 32, 0);
        let (mut real, mut padded) = (0, 0);
        for _ in 0..batches.per_epoch() {
            let batch = batches.next_batch();
            let longest = batch.iter().map(|&row| lengths[row]).max().unwrap_or(0);
            real += batch.iter().map(|&row| lengths[row]).sum::<usize>();
            padded += longest * batch.len();
        }
        assert!(padded as f64 <= real as f64 * 1.1, "{padded} positions for {real} tokens");
    }
}
