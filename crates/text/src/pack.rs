//! Rows into batches: packing several into one sequence of fixed length, and grouping rows of like length.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::seed::SplitMix;

/// Batches are shuffled, but rows of like length are looked for among this many batches' worth of rows.
const GROUP_BATCHES: usize = 50;

/// Rows that share one sequence. Attention must not cross the boundaries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Indices into the rows that were packed, in the order of their segments.
    pub rows: Vec<usize>,
    /// The rows' ids one after another, then padding up to the capacity.
    pub ids: Vec<u32>,
    /// False for every padding token and for the first of each segment, which nothing in its row predicts.
    pub in_loss: Vec<bool>,
    /// Position within the row, from 0 in each segment and in the padding.
    pub positions: Vec<u32>,
    /// Where segments start, and where the last one ends: one more than there are rows.
    pub boundaries: Vec<usize>,
}

/// Best-fit decreasing: the longest row first, each into the fullest bin that still has room. Returns bins of row
/// indices; every row is in exactly one.
///
/// # Errors
/// The capacity is 0 or a row is longer than it.
pub fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Result<Vec<Vec<usize>>> {
    if capacity == 0 {
        return Err(Error::Packing { problem: "the capacity is 0; it must hold the longest row".into() });
    }
    if let Some((row, length)) = lengths.iter().enumerate().find(|(_, length)| **length > capacity) {
        let problem =
            format!("row {row} has {length} tokens, the capacity is {capacity}; drop it or raise the capacity");
        return Err(Error::Packing { problem });
    }
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // Stable, so that rows of one length keep their order and the result depends on nothing else.
    order.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));

    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for row in order {
        let length = lengths[row];
        let (bin, room) = match by_room.range_mut(length..).next() {
            Some((room, fitting)) => {
                let (room, bin) = (*room, fitting.pop());
                if fitting.is_empty() {
                    by_room.remove(&room);
                }
                (bin, room)
            }
            None => (None, capacity),
        };
        let bin = bin.unwrap_or_else(|| {
            bins.push(Vec::new());
            bins.len() - 1
        });
        bins[bin].push(row);
        by_room.entry(room - length).or_default().push(bin);
    }
    Ok(bins)
}

/// Packs decoder rows (ids, and which of them count in the loss) into sequences of `capacity` tokens.
///
/// # Errors
/// As `best_fit_decreasing`, or ids and mask of a row differ in length.
pub fn pack(rows: &[(&[u32], &[bool])], capacity: usize, pad: u32) -> Result<Vec<Packed>> {
    if let Some(row) = rows.iter().position(|(ids, in_loss)| ids.len() != in_loss.len()) {
        return Err(Error::Packing { problem: format!("row {row} has ids and loss mask of different lengths") });
    }
    let lengths: Vec<usize> = rows.iter().map(|(ids, _)| ids.len()).collect();
    let bins = best_fit_decreasing(&lengths, capacity)?;
    Ok(bins.into_iter().map(|bin| pack_bin(rows, bin, capacity, pad)).collect())
}

fn pack_bin(rows: &[(&[u32], &[bool])], bin: Vec<usize>, capacity: usize, pad: u32) -> Packed {
    let mut packed = Packed {
        rows: Vec::new(),
        ids: Vec::with_capacity(capacity),
        in_loss: Vec::with_capacity(capacity),
        positions: Vec::with_capacity(capacity),
        boundaries: vec![0],
    };
    for row in &bin {
        let (ids, in_loss) = rows[*row];
        let start = packed.ids.len();
        packed.ids.extend_from_slice(ids);
        packed.in_loss.extend_from_slice(in_loss);
        if let Some(first) = packed.in_loss.get_mut(start) {
            *first = false;
        }
        packed.positions.extend(0..ids.len() as u32);
        packed.boundaries.push(packed.ids.len());
    }
    let padding = capacity - packed.ids.len();
    packed.positions.extend(0..padding as u32);
    packed.ids.resize(capacity, pad);
    packed.in_loss.resize(capacity, false);
    packed.rows = bin;
    packed
}

/// Batches of rows of like length, so that little is padded, in an order that depends on the seed alone. Every row is in
/// exactly one batch; all batches but one are full.
pub fn length_grouped_batches(lengths: &[usize], batch_rows: usize, seed: u64) -> Vec<Vec<usize>> {
    let batch_rows = batch_rows.max(1);
    let mut random = SplitMix::new(seed);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    random.shuffle(&mut order);
    // Full groups are multiples of the batch, so only the last group can leave a part of a batch.
    let mut batches: Vec<Vec<usize>> = Vec::with_capacity(lengths.len().div_ceil(batch_rows));
    for group in order.chunks_mut(batch_rows.saturating_mul(GROUP_BATCHES)) {
        group.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
        batches.extend(group.chunks(batch_rows).map(<[usize]>::to_vec));
    }
    random.shuffle(&mut batches);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_lengths(random: &mut SplitMix, rows: usize, longest: usize) -> Vec<usize> {
        (0..rows).map(|_| 1 + random.below(longest)).collect()
    }

    fn each_once(groups: &[Vec<usize>], rows: usize) {
        let mut all: Vec<usize> = groups.concat();
        all.sort_unstable();
        assert_eq!(all, (0..rows).collect::<Vec<_>>(), "every row once");
    }

    #[test]
    fn packing_loses_no_token_and_overfills_no_bin() {
        let mut random = SplitMix::new(7);
        for round in 0..200 {
            let rows = random.below(60);
            let capacity = 1 + random.below(64);
            let lengths = random_lengths(&mut random, rows, capacity);
            let bins = best_fit_decreasing(&lengths, capacity).expect("rows fit");
            each_once(&bins, lengths.len());
            for bin in &bins {
                assert!(bin.iter().map(|row| lengths[*row]).sum::<usize>() <= capacity, "round {round}");
            }
            let total: usize = lengths.iter().sum();
            let needed = total.div_ceil(capacity);
            // Best-fit decreasing is proven to be within 11/9 of the optimum and a constant.
            assert!(bins.len() <= needed.max(1) * 2 + 4, "{} bins for {total} tokens of {capacity}", bins.len());
        }
    }

    #[test]
    fn the_fullest_bin_that_fits_is_taken() {
        assert_eq!(best_fit_decreasing(&[6, 5, 4, 4, 1], 10).expect("fit"), [vec![0, 2], vec![1, 3, 4]]);
        assert!(best_fit_decreasing(&[], 10).expect("nothing").is_empty());
    }

    #[test]
    fn a_row_that_cannot_fit_is_named() {
        let error = best_fit_decreasing(&[3, 11], 10).expect_err("too long");
        assert!(error.to_string().contains("row 1 has 11 tokens"), "{error}");
        assert!(best_fit_decreasing(&[1], 0).is_err());
    }

    #[test]
    fn packed_rows_keep_ids_masks_and_positions() {
        let mut random = SplitMix::new(11);
        let rows: Vec<(Vec<u32>, Vec<bool>)> = random_lengths(&mut random, 40, 16)
            .into_iter()
            .map(|n| ((0..n).map(|_| 1 + random.next() as u32 % 99).collect(), (0..n).map(|i| i > n / 2).collect()))
            .collect();
        let views: Vec<(&[u32], &[bool])> = rows.iter().map(|(ids, mask)| (ids.as_slice(), mask.as_slice())).collect();
        let packed = pack(&views, 24, 0).expect("fit");
        each_once(&packed.iter().map(|bin| bin.rows.clone()).collect::<Vec<_>>(), rows.len());
        for bin in &packed {
            assert_eq!((bin.ids.len(), bin.in_loss.len(), bin.positions.len()), (24, 24, 24));
            for (segment, row) in bin.boundaries.windows(2).zip(&bin.rows) {
                let (ids, mask) = &rows[*row];
                assert_eq!(&bin.ids[segment[0]..segment[1]], ids.as_slice());
                assert_eq!(&bin.in_loss[segment[0] + 1..segment[1]], &mask[1..]);
                assert!(!bin.in_loss[segment[0]], "nothing predicts a row's first token");
                assert!(bin.positions[segment[0]..segment[1]].iter().enumerate().all(|(i, p)| i as u32 == *p));
            }
            let end = bin.boundaries.last().copied().expect("a boundary");
            assert!(
                bin.ids[end..].iter().all(|id| *id == 0) && !bin.in_loss[end..].contains(&true),
                "padding is silent"
            );
        }
    }

    #[test]
    fn batches_hold_every_row_once_and_pad_less_than_chance() {
        let mut random = SplitMix::new(3);
        let lengths = random_lengths(&mut random, 1003, 100);
        let batches = length_grouped_batches(&lengths, 8, 5);
        each_once(&batches, lengths.len());
        assert_eq!(batches.iter().filter(|batch| batch.len() < 8).count(), 1);
        let padded: usize = batches.iter().map(|b| b.len() * b.iter().map(|r| lengths[*r]).max().unwrap_or(0)).sum();
        let total: usize = lengths.iter().sum();
        assert!(padded < total * 11 / 10, "{padded} for {total} tokens");
        assert_eq!(batches, length_grouped_batches(&lengths, 8, 5), "the seed decides");
        assert_ne!(batches, length_grouped_batches(&lengths, 8, 6));
    }
}
