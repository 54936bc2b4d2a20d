//! Which rows share a sequence of fixed length.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::Column;
use crate::error::{Error, Result};
use crate::sort::{Sorted, Sorter};

/// Rows whose names are looked up together: half a MiB.
const NAMED: usize = 1 << 17;

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
    pub fn named(mut self, names: &Column) -> Self {
        self.rows.each_piece(NAMED, |rows| {
            let named = names.gather(rows);
            rows.copy_from_slice(&named);
        });
        names.release();
        self
    }

    /// Gives the memory back; what is looked up later comes back from the disk.
    pub fn release(&self) {
        self.starts.release();
        self.rows.release();
    }
}

/// Best-fit decreasing: the longest row first, each into the fullest bin that still has room; every row is in exactly one.
/// Beside the bins comes how many tokens each has. What takes a number for each row lies in `folder`, or in memory where there
/// is none: rows are sorted there by their length, and what was put somewhere by its bin, so that a few MiB are enough for any
/// number of them.
///
/// # Errors
/// The capacity is 0 or a row is longer than it; the disk is full.
pub fn best_fit_decreasing(lengths: &Column, capacity: usize, folder: Option<&Path>) -> Result<(Bins, Column)> {
    if capacity == 0 {
        return Err(Error::Packing { problem: "the capacity is 0; it must hold the longest row".into() });
    }
    let mut filling = Filling::new(lengths.len(), capacity, folder)?;
    let mut by_bin = Sorter::new(folder)?;
    for (turn, next) in (0u64..).zip(longest_first(lengths, capacity, folder)?) {
        let [shortness, row] = next?;
        let bin = filling.put(capacity - shortness as usize);
        // Of one bin in the order that they were put in.
        by_bin.push([u64::from(bin), (turn << 32) | row])?;
    }
    let (count, tokens) = filling.finish();
    let mut starts = Column::zeros(count + 1, folder)?;
    let mut rows = Column::zeros(lengths.len(), folder)?;
    for (at, next) in by_bin.finish()?.enumerate() {
        let [bin, put] = next?;
        rows.put(at, put as u32); // the lower half: the row
        starts.put(bin as usize + 1, at as u32 + 1);
    }
    let bins = Bins { starts, rows };
    bins.release();
    Ok((bins, tokens))
}

/// What each row's length lacks of the capacity, and the row: the longest first, those of one length in their order.
fn longest_first(lengths: &Column, capacity: usize, folder: Option<&Path>) -> Result<Sorted> {
    let mut sorter = Sorter::new(folder)?;
    for row in 0..lengths.len() {
        let length = lengths.look(row) as usize;
        let Some(shortness) = capacity.checked_sub(length) else {
            let problem =
                format!("row {row} has {length} tokens, the capacity is {capacity}; drop it or raise the capacity");
            return Err(Error::Packing { problem });
        };
        sorter.push([shortness as u64, row as u64])?;
    }
    lengths.release();
    Ok(sorter.finish()?)
}

/// Bins while rows are put into them.
struct Filling {
    capacity: usize,
    bins: u32,
    /// The bins of each room are a stack: its top here, and under each bin the next one and 1, or 0.
    by_room: BTreeMap<usize, u32>,
    under: Column,
    /// In each bin.
    tokens: Column,
}

impl Filling {
    /// There are no more bins than rows.
    fn new(rows: usize, capacity: usize, folder: Option<&Path>) -> Result<Self> {
        let (under, tokens) = (Column::zeros(rows, folder)?, Column::zeros(rows, folder)?);
        Ok(Self { capacity, bins: 0, by_room: BTreeMap::new(), under, tokens })
    }

    /// Puts a row of this length into the fullest bin that has room, and says into which.
    fn put(&mut self, length: usize) -> u32 {
        let (bin, room) = match self.by_room.range(length..).next() {
            Some((room, top)) => {
                let (room, top) = (*room, *top);
                match self.under.look(top as usize) {
                    0 => self.by_room.remove(&room),
                    next => self.by_room.insert(room, next - 1),
                };
                (top, room)
            }
            None => {
                self.bins += 1;
                (self.bins - 1, self.capacity)
            }
        };
        let left = room - length;
        let under = self.by_room.insert(left, bin).map_or(0, |top| top + 1);
        self.under.put(bin as usize, under);
        self.tokens.put(bin as usize, (self.capacity - left) as u32);
        bin
    }

    /// How many bins there are, and the tokens in each.
    fn finish(mut self) -> (usize, Column) {
        self.tokens.truncate(self.bins as usize);
        self.tokens.release();
        (self.bins as usize, self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::SplitMix;

    fn random_lengths(random: &mut SplitMix, rows: usize, longest: usize) -> Vec<u32> {
        (0..rows).map(|_| 1 + random.below(longest) as u32).collect()
    }

    fn column(numbers: &[u32], folder: Option<&Path>) -> Column {
        let mut column = Column::zeros(numbers.len(), folder).expect("room");
        column.copy_from_slice(numbers);
        column
    }

    fn pack_in(lengths: &[u32], capacity: usize, folder: Option<&Path>) -> Result<Vec<Vec<usize>>> {
        let (bins, tokens) = best_fit_decreasing(&column(lengths, folder), capacity, folder)?;
        let rows = |bin| bins.rows(bin).iter().map(|row| *row as usize).collect::<Vec<_>>();
        let packed: Vec<Vec<usize>> = (0..bins.len()).map(rows).collect();
        let sum = |rows: &Vec<usize>| rows.iter().map(|row| lengths[*row]).sum::<u32>();
        assert!(packed.iter().map(sum).eq(tokens.iter().copied()), "the tokens of each bin");
        Ok(packed)
    }

    fn pack(lengths: &[u32], capacity: usize) -> Result<Vec<Vec<usize>>> {
        pack_in(lengths, capacity, None)
    }

    /// The same by a search of all bins for each row: the fullest one with room, and of those the one that came to be so last.
    fn one_by_one(lengths: &[u32], capacity: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
        let mut bins: Vec<(usize, usize, Vec<usize>)> = Vec::new(); // room, turn of the last row, rows
        for (turn, row) in order.into_iter().enumerate() {
            let length = lengths[row] as usize;
            let fits = bins.iter_mut().filter(|(room, ..)| *room >= length);
            match fits.min_by_key(|(room, last, _)| (*room, std::cmp::Reverse(*last))) {
                Some((room, last, rows)) => {
                    (*room, *last) = (*room - length, turn);
                    rows.push(row);
                }
                None => bins.push((capacity - length, turn, vec![row])),
            }
        }
        bins.into_iter().map(|(_, _, rows)| rows).collect()
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
    fn the_bins_are_those_of_a_search_of_all_bins() {
        let mut random = SplitMix::new(9);
        for (rows, longest, capacity) in [(1, 5, 5), (300, 7, 30), (300, 64, 64), (500, 200, 512)] {
            let lengths = random_lengths(&mut random, rows, longest);
            assert_eq!(pack(&lengths, capacity).expect("rows fit"), one_by_one(&lengths, capacity));
        }
    }

    #[test]
    fn on_disk_the_bins_are_those_in_memory() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = SplitMix::new(8);
        for rows in [20_000, 400_000] {
            let lengths = random_lengths(&mut random, rows, 512);
            let there = pack_in(&lengths, 512, Some(folder.path())).expect("rows fit");
            assert!(there == pack(&lengths, 512).expect("rows fit"), "{rows} rows");
        }
    }

    #[test]
    fn rows_take_the_names_they_are_given() {
        let lengths = column(&[6, 5, 4, 4, 1], None);
        let (bins, _) = best_fit_decreasing(&lengths, 10, None).expect("fit");
        let bins = bins.named(&column(&[10, 11, 12, 13, 14], None));
        assert_eq!([bins.rows(0), bins.rows(1)], [&[10u32, 12][..], &[11, 13, 14]]);
    }

    #[test]
    fn a_row_that_cannot_fit_is_named() {
        let error = pack(&[3, 11], 10).expect_err("too long");
        assert!(error.to_string().contains("row 1 has 11 tokens"), "{error}");
        assert!(pack(&[1], 0).is_err());
    }
}
