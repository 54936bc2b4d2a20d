//! The shuffle of `rand` 0.9 as a list of swaps, for a column that is not in memory.
//!
//! `SliceRandom` wants a slice, and swapping in one brings every page of it to memory. [`swaps`] gives what it would swap,
//! from the same draws, so that a seed means the order that it always meant: a checkpoint says how many batches of it were
//! taken, and nothing else.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What `partial_shuffle` swaps in a slice of `length` so that its end, from `begin` on, is drawn from all of it; with a
/// `begin` of 0 it is `shuffle`.
pub fn swaps(random: &mut ChaCha8Rng, begin: usize, length: usize) -> Swaps<'_> {
    // There is a u32 for each row.
    let (next, end) = (begin as u32, length as u32);
    // The first item has nobody else to swap with, which takes no draw.
    Swaps { random, next, end, drawn: 0, left: u8::from(begin == 0) }
}

pub struct Swaps<'r> {
    random: &'r mut ChaCha8Rng,
    next: u32,
    end: u32,
    /// One draw is for several swaps: what is left of it, and for how many.
    drawn: u32,
    left: u8,
}

impl Iterator for Swaps<'_> {
    type Item = [u32; 2];

    fn next(&mut self) -> Option<[u32; 2]> {
        if self.next >= self.end {
            return None;
        }
        let (at, choices) = (self.next, self.next + 1);
        if self.left == 0 {
            let (bound, count) = product(choices);
            self.drawn = self.random.random_range(..bound);
            self.left = count;
        }
        self.left -= 1;
        let other = match self.left {
            0 => self.drawn,
            _ => {
                let other = self.drawn % choices;
                self.drawn /= choices;
                other
            }
        };
        self.next = choices;
        Some([at, other])
    }
}

/// As many numbers from `first` on as have a product in a u32: the product, and how many.
fn product(first: u32) -> (u32, u8) {
    let (mut product, mut count) = (first, 1u8);
    while let Some(more) = first.checked_add(u32::from(count)).and_then(|next| product.checked_mul(next)) {
        (product, count) = (more, count + 1);
    }
    (product, count)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::seq::SliceRandom;

    use super::*;

    fn swapped(random: &mut ChaCha8Rng, begin: usize, length: usize) -> Vec<u32> {
        let mut items: Vec<u32> = (0..length as u32).collect();
        swaps(random, begin, length).for_each(|[one, other]| items.swap(one as usize, other as usize));
        items
    }

    #[test]
    fn the_swaps_are_those_of_rand_and_leave_its_generator_where_it_does() {
        for length in [0, 1, 2, 3, 12, 13, 14, 100, 70_000] {
            let (mut theirs, mut ours) = (ChaCha8Rng::seed_from_u64(length), ChaCha8Rng::seed_from_u64(length));
            let length = length as usize;
            for amount in [0, 1, 5, length / 2, length] {
                let mut items: Vec<u32> = (0..length as u32).collect();
                let _ = items.partial_shuffle(&mut theirs, amount);
                assert_eq!(swapped(&mut ours, length.saturating_sub(amount), length), items, "{amount} of {length}");
            }
            let mut items: Vec<u32> = (0..length as u32).collect();
            items.shuffle(&mut theirs);
            assert_eq!(swapped(&mut ours, 0, length), items);
            assert_eq!(ours.random::<u64>(), theirs.random::<u64>(), "{length}");
        }
    }

    #[test]
    fn every_item_stays() {
        let mut items = swapped(&mut ChaCha8Rng::seed_from_u64(3), 0, 10_000);
        items.sort_unstable();
        assert!(items.into_iter().eq(0..10_000));
    }
}
