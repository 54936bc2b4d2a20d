//! What leaves a full tier first: GreedyDual-Size-Frequency (Cherkasova 1998, after Cao and Irani 1997).
//!
//! An adapter is worth its uses times the time that it takes to bring back, for each byte that it takes; what stays unused loses
//! against what comes, since newcomers begin at the worth of what has left last.

use std::collections::HashMap;
use std::time::Duration;

use tailor_domain::Digest;

/// Shorter times are noise.
const LEAST_COST: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
pub struct Worth {
    entries: HashMap<Digest, Entry>,
    total_bytes: u64,
    /// The worth of what has left last.
    level: f64,
    /// Counts uses, to tell the older of two that are worth the same.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    size_bytes: u64,
    cost: Duration,
    uses: u64,
    worth: f64,
    last_used: u64,
}

impl Worth {
    pub fn insert(&mut self, digest: &Digest, size_bytes: u64, cost: Duration) {
        self.remove(digest);
        self.total_bytes += size_bytes;
        let cost = cost.max(LEAST_COST);
        self.entries.insert(digest.clone(), Entry { size_bytes, cost, uses: 0, worth: 0.0, last_used: 0 });
        self.touch(digest);
    }

    /// One more use.
    pub fn touch(&mut self, digest: &Digest) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.uses += 1;
            entry.last_used = self.clock;
            let gain = entry.uses as f64 * entry.cost.as_secs_f64() / entry.size_bytes.max(1) as f64;
            entry.worth = self.level + gain;
        }
    }

    pub fn remove(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.remove(digest) {
            self.total_bytes -= entry.size_bytes;
        }
    }

    /// It makes room for what is worth more.
    pub fn evict(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.get(digest) {
            self.level = self.level.max(entry.worth);
        }
        self.remove(digest);
    }

    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.entries.keys()
    }

    /// What is worth least of what may go.
    pub fn least(&self, may_go: impl Fn(&Digest) -> bool) -> Option<Digest> {
        let idle = self.entries.iter().filter(|(digest, _)| may_go(digest));
        let least = idle.min_by(|(_, a), (_, b)| a.worth.total_cmp(&b.worth).then(a.last_used.cmp(&b.last_used)));
        least.map(|(digest, _)| digest.clone())
    }

    /// The most worth first.
    pub fn ranked(&self) -> Vec<Digest> {
        let mut all: Vec<_> = self.entries.iter().collect();
        all.sort_by(|(_, a), (_, b)| b.worth.total_cmp(&a.worth).then(b.last_used.cmp(&a.last_used)));
        all.into_iter().map(|(digest, _)| digest.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn leaves(worth: &Worth) -> Digest {
        worth.least(|_| true).expect("something is there")
    }

    #[test]
    fn what_is_large_cheap_or_little_used_leaves_first() {
        let second = Duration::from_secs(1);
        let mut worth = Worth::default();
        worth.insert(&digest("small"), 10, second);
        worth.insert(&digest("large"), 100, second);
        assert_eq!(leaves(&worth), digest("large"));
        (0..20).for_each(|_| worth.touch(&digest("large")));
        assert_eq!(leaves(&worth), digest("small"), "the large one is used all the time");
        worth.insert(&digest("dear"), 10, 100 * second);
        worth.evict(&digest("small"));
        worth.evict(&digest("large"));
        assert_eq!((leaves(&worth), worth.total_bytes()), (digest("dear"), 10));
    }

    #[test]
    fn what_was_much_used_once_does_not_stay_for_ever() {
        let mut worth = Worth::default();
        worth.insert(&digest("old"), 10, Duration::from_secs(1));
        (0..5).for_each(|_| worth.touch(&digest("old")));
        let newcomers = (0..20).map(|n| digest(&format!("{n}")));
        let mut left = None;
        for newcomer in newcomers {
            worth.insert(&newcomer, 10, Duration::from_secs(1));
            let leaving = leaves(&worth);
            worth.evict(&leaving);
            left = left.or((leaving == digest("old")).then_some(newcomer));
        }
        assert!(left.is_some(), "it was worth six newcomers");
    }

    #[test]
    fn of_two_that_are_worth_the_same_the_longer_unused_leaves() {
        let mut worth = Worth::default();
        for name in ["a", "b"] {
            worth.insert(&digest(name), 10, Duration::ZERO);
        }
        assert_eq!((leaves(&worth), worth.ranked()), (digest("a"), vec![digest("b"), digest("a")]));
    }
}
