//! Which rows share a sequence of fixed length.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::SplitMix;

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
}
