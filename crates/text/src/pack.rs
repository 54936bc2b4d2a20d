//! Which rows share a sequence of fixed length.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::Column;
use crate::error::{Error, Result};

/// Which rows each sequence holds.
#[derive(Debug)]
pub struct Bins {
    /// Where in `rows` each bin begins, and where the last one ends.
    starts: Column,
    rows: Column,
}

impl Bins {
    /// A bin for each row.
    pub fn alone(rows: Column, folder: Option<&Path>) -> Result<Self> {
        Ok(Self { starts: Column::counting(rows.len() + 1, folder)?, rows })
    }

    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows of a bin.
    pub fn rows(&self, bin: usize) -> &[u32] {
        &self.rows[self.range(bin)]
    }

    fn range(&self, bin: usize) -> Range<usize> {
        self.starts[bin] as usize..self.starts[bin + 1] as usize
    }

    /// The same bins of rows that are called otherwise: row `n` becomes `names[n]`.
    #[must_use]
    pub fn named(mut self, names: &[u32]) -> Self {
        self.rows.iter_mut().for_each(|row| *row = names[*row as usize]);
        self
    }

    /// Gives the memory back; what is looked up later comes back from the disk.
    pub fn release(&self) {
        self.starts.release();
        self.rows.release();
    }
}

/// Best-fit decreasing: the longest row first, each into the fullest bin that still has room; every row is in exactly one.
/// What takes a number for each row lies in `folder`, or in memory where there is none.
///
/// # Errors
/// The capacity is 0 or a row is longer than it; the disk is full.
pub fn best_fit_decreasing(lengths: &[u32], capacity: usize, folder: Option<&Path>) -> Result<Bins> {
    if capacity == 0 {
        return Err(Error::Packing { problem: "the capacity is 0; it must hold the longest row".into() });
    }
    if let Some((row, length)) = lengths.iter().enumerate().find(|(_, length)| **length as usize > capacity) {
        let problem =
            format!("row {row} has {length} tokens, the capacity is {capacity}; drop it or raise the capacity");
        return Err(Error::Packing { problem });
    }
    let order = longest_first(lengths, folder)?;
    let mut bin_of = Column::zeros(lengths.len(), folder)?;
    let mut bins = 0;
    // The bins of each room are a stack: its top here, and under each bin the next one and 1, or 0.
    let mut by_room: BTreeMap<usize, u32> = BTreeMap::new();
    let mut under = Column::zeros(lengths.len(), folder)?;
    for row in order.iter() {
        let length = lengths[*row as usize] as usize;
        let (bin, room) = match by_room.range(length..).next() {
            Some((room, top)) => {
                let (room, top) = (*room, *top);
                match under[top as usize] {
                    0 => by_room.remove(&room),
                    next => by_room.insert(room, next - 1),
                };
                (top, room)
            }
            None => {
                bins += 1;
                (bins - 1, capacity)
            }
        };
        bin_of[*row as usize] = bin;
        under[bin as usize] = by_room.insert(room - length, bin).map_or(0, |top| top + 1);
    }
    drop(under);
    let mut starts = Column::zeros(bins as usize + 1, folder)?;
    sizes_into_starts(&bin_of, &mut starts);
    // Filled in the order that rows were put in; `next` runs ahead of `starts`.
    let mut next = Column::zeros(bins as usize, folder)?;
    next.copy_from_slice(&starts[..bins as usize]);
    let mut rows = Column::zeros(lengths.len(), folder)?;
    for row in order.iter() {
        let place = &mut next[bin_of[*row as usize] as usize];
        rows[*place as usize] = *row;
        *place += 1;
    }
    let bins = Bins { starts, rows };
    bins.release();
    Ok(bins)
}

/// Counts the rows of each bin and adds them up to where each begins.
fn sizes_into_starts(bin_of: &[u32], starts: &mut [u32]) {
    for bin in bin_of {
        starts[*bin as usize + 1] += 1;
    }
    for bin in 1..starts.len() {
        starts[bin] += starts[bin - 1];
    }
}

/// Stable, so that rows of one length keep their order and the result depends on nothing else.
fn longest_first(lengths: &[u32], folder: Option<&Path>) -> Result<Column> {
    let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
    // Where the next row of each length goes.
    let mut next = vec![0u32; longest + 1];
    for length in lengths {
        next[*length as usize] += 1;
    }
    let mut before = 0;
    for place in next.iter_mut().rev() {
        before += std::mem::replace(place, before);
    }
    let mut order = Column::zeros(lengths.len(), folder)?;
    for (row, length) in (0..).zip(lengths) {
        let place = &mut next[*length as usize];
        order[*place as usize] = row;
        *place += 1;
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::SplitMix;

    fn random_lengths(random: &mut SplitMix, rows: usize, longest: usize) -> Vec<u32> {
        (0..rows).map(|_| 1 + random.below(longest) as u32).collect()
    }

    fn pack(lengths: &[u32], capacity: usize) -> Result<Vec<Vec<usize>>> {
        let bins = best_fit_decreasing(lengths, capacity, None)?;
        let rows = |bin| bins.rows(bin).iter().map(|row| *row as usize).collect();
        Ok((0..bins.len()).map(rows).collect())
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
            let bins = pack(&lengths, capacity).expect("rows fit");
            each_once(&bins, lengths.len());
            for bin in &bins {
                assert!(bin.iter().map(|row| lengths[*row] as usize).sum::<usize>() <= capacity, "round {round}");
            }
            let total = lengths.iter().sum::<u32>() as usize;
            let needed = total.div_ceil(capacity);
            // Best-fit decreasing is proven to be within 11/9 of the optimum and a constant.
            assert!(bins.len() <= needed.max(1) * 2 + 4, "{} bins for {total} tokens of {capacity}", bins.len());
        }
    }

    #[test]
    fn the_fullest_bin_that_fits_is_taken() {
        assert_eq!(pack(&[6, 5, 4, 4, 1], 10).expect("fit"), [vec![0, 2], vec![1, 3, 4]]);
        assert!(pack(&[], 10).expect("nothing").is_empty());
    }

    #[test]
    fn on_disk_the_bins_are_those_in_memory() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = SplitMix::new(8);
        let lengths = random_lengths(&mut random, 20_000, 512);
        let there = best_fit_decreasing(&lengths, 512, Some(folder.path())).expect("rows fit");
        let here = best_fit_decreasing(&lengths, 512, None).expect("rows fit");
        assert_eq!(there.len(), here.len());
        for bin in 0..there.len() {
            assert_eq!(there.rows(bin), here.rows(bin));
        }
    }

    #[test]
    fn a_row_that_cannot_fit_is_named() {
        let error = pack(&[3, 11], 10).expect_err("too long");
        assert!(error.to_string().contains("row 1 has 11 tokens"), "{error}");
        assert!(pack(&[1], 0).is_err());
    }
}
