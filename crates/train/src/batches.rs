//! Which rows make up which step: shuffled per epoch from the seed, rows of like length together.
//!
//! A shuffled epoch is cut into pools of [`POOL_BATCHES`] batches; inside a pool rows are sorted by length, so that a
//! batch wastes little on padding, and the batches of the epoch are shuffled again, so that length says nothing about
//! when a row is seen. Every row is in exactly one batch of an epoch.

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tailor_text::Column;

use crate::error::Error;
use crate::rows::on_disk;
use crate::shuffle;

/// Batches that share one sort. More of them pad less but mix less.
const POOL_BATCHES: usize = 16;
/// Rows whose lengths are looked up together, whole pools of them: half a MiB.
const GATHERED: usize = 1 << 17;

/// Batches without end: epoch after epoch.
pub struct Batches {
    batch_rows: usize,
    seed: u64,
    epoch: u64,
    /// The rows of the present epoch, batch after batch; and the batches' order, of which `left` are to come, the next one
    /// last.
    rows: Column,
    order: Column,
    left: usize,
}

impl Batches {
    /// `rows` is at least 1, as is `batch_rows`. The order lies in `folder`, or in memory where there is none.
    ///
    /// # Errors
    /// The disk is full.
    pub fn new(rows: usize, batch_rows: usize, seed: u64, folder: Option<&Path>) -> Result<Self, Error> {
        let batch_rows = batch_rows.max(1);
        let order = Column::zeros(rows.div_ceil(batch_rows), folder).map_err(on_disk)?;
        let rows = Column::zeros(rows, folder).map_err(on_disk)?;
        Ok(Self { batch_rows, seed, epoch: 0, rows, order, left: 0 })
    }

    pub fn per_epoch(&self) -> u64 {
        self.order.len() as u64
    }

    /// The rows of the next step, longest first, so that what does not fit in memory fails at once. `lengths` holds the tokens
    /// of each row.
    pub fn next_batch(&mut self, lengths: &Column) -> Vec<usize> {
        if self.left == 0 {
            self.shuffle_epoch(lengths);
            self.left = self.order.len();
            self.epoch += 1;
        }
        self.left = self.left.saturating_sub(1);
        let Some(batch) = self.order.get(self.left) else { return Vec::new() };
        let start = *batch as usize * self.batch_rows;
        let end = (start + self.batch_rows).min(self.rows.len());
        let batch = self.rows[start..end].iter().map(|row| *row as usize).collect();
        self.rows.release();
        self.order.release();
        batch
    }

    /// As after `steps` calls of [`Self::next_batch`]: the order hangs on the seed alone.
    pub fn skip(&mut self, steps: u64, lengths: &Column) {
        self.epoch = steps / self.per_epoch();
        self.left = 0;
        let into_epoch = (steps % self.per_epoch()) as usize;
        if into_epoch > 0 {
            self.shuffle_epoch(lengths);
            self.left = self.order.len() - into_epoch;
            self.epoch += 1;
        }
    }

    fn shuffle_epoch(&mut self, lengths: &Column) {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(self.epoch);
        for column in [&mut self.rows, &mut self.order] {
            column.fill(|at| at as u32);
        }
        self.rows.swap_all(shuffle::swaps(&mut random, 0, self.rows.len()));
        let pool = self.batch_rows.saturating_mul(POOL_BATCHES);
        self.rows.each_piece(pool.saturating_mul((GATHERED / pool).max(1)), |rows| {
            let mut by_length: Vec<(u32, u32)> = lengths.gather(rows).into_iter().zip(rows.iter().copied()).collect();
            // Stable, so rows of one length keep their shuffled order.
            by_length.chunks_mut(pool).for_each(|pool| pool.sort_by_key(|(length, _)| std::cmp::Reverse(*length)));
            rows.iter_mut().zip(by_length).for_each(|(place, (_, row))| *place = row);
        });
        lengths.release();
        // A pool is whole batches, so that they stand in the rows one after the other.
        self.order.swap_all(shuffle::swaps(&mut random, 0, self.order.len()));
    }
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;

    use super::*;

    fn lengths(rows: usize) -> Column {
        let mut lengths = Column::zeros(rows, None).expect("in memory");
        lengths.iter_mut().enumerate().for_each(|(row, length)| *length = 5 + (row as u32 * 7919) % 40);
        lengths
    }

    fn batches(lengths: &Column, batch_rows: usize, seed: u64) -> Batches {
        Batches::new(lengths.len(), batch_rows, seed, None).expect("in memory")
    }

    #[test]
    fn an_epoch_holds_every_row_once() {
        let lengths = lengths(1003);
        let mut batches = batches(&lengths, 32, 3);
        for _ in 0..2 {
            let mut seen: Vec<usize> = (0..batches.per_epoch()).flat_map(|_| batches.next_batch(&lengths)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..1003).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_seed_decides_the_order_and_epochs_differ() {
        let lengths = lengths(200);
        let order = |seed| {
            let mut batches = batches(&lengths, 16, seed);
            (0..2 * batches.per_epoch()).map(|_| batches.next_batch(&lengths)).collect::<Vec<_>>()
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
            let (mut one_by_one, mut skipped) = (batches(&lengths, 16, 4), batches(&lengths, 16, 4));
            for _ in 0..taken {
                one_by_one.next_batch(&lengths);
            }
            skipped.skip(taken, &lengths);
            for _ in 0..20 {
                assert_eq!(one_by_one.next_batch(&lengths), skipped.next_batch(&lengths), "{taken}");
            }
        }
    }

    #[test]
    fn grouping_by_length_pads_less_than_a_tenth() {
        let lengths = lengths(4000);
        let mut batches = batches(&lengths, 32, 0);
        let (mut real, mut padded) = (0, 0);
        for _ in 0..batches.per_epoch() {
            let batch = batches.next_batch(&lengths);
            let longest = batch.iter().map(|&row| lengths[row] as usize).max().unwrap_or(0);
            real += batch.iter().map(|&row| lengths[row] as usize).sum::<usize>();
            padded += longest * batch.len();
        }
        assert!(padded as f64 <= real as f64 * 1.1, "{padded} positions for {real} tokens");
    }

    /// What the order was before it lay on disk, so that checkpoints of then and adapters of then stay what they are.
    fn as_vectors(lengths: &[u32], batch_rows: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(epoch);
        let mut rows: Vec<usize> = (0..lengths.len()).collect();
        rows.shuffle(&mut random);
        let mut batches = Vec::new();
        for pool in rows.chunks_mut(batch_rows * POOL_BATCHES) {
            pool.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
            batches.extend(pool.chunks(batch_rows).map(<[usize]>::to_vec));
        }
        batches.shuffle(&mut random);
        batches
    }

    #[test]
    fn on_disk_the_order_is_that_of_plain_vectors() {
        let folder = tempfile::tempdir().expect("a folder");
        for rows in [1, 5, 16, 1003, 20_000, 300_000] {
            let lengths = lengths(rows);
            let mut batches = Batches::new(rows, 4, 9, Some(folder.path())).expect("room");
            for epoch in 0..2 {
                for expected in as_vectors(&lengths, 4, 9, epoch).iter().rev() {
                    assert_eq!(batches.next_batch(&lengths), *expected, "{rows} rows, epoch {epoch}");
                }
            }
        }
    }
}
