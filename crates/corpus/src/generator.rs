//! Seeded streams of sentences and of (faulty, correct) pairs.

use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::draft::{Draft, render};
use crate::fault::{Fault, FaultKind};
use crate::sentence::sentence;
use crate::words::Dialect;

/// A correct sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    pub dialect: Dialect,
    pub text: String,
}

/// A faulty sentence and its correction. `faults` is empty where the sentence was left as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub dialect: Dialect,
    pub text: String,
    pub expected: String,
    pub faults: Vec<FaultKind>,
}

/// How often a pair is left without a fault, in percent: a corrector must also learn to leave well alone.
const CORRECT_PERCENT: u32 = 5;
/// How often a pair gets a second fault, where the sentence offers one in another clause.
const SECOND_PERCENT: u32 = 12;

/// An endless stream. The same seed gives the same sentences on every platform.
pub struct Generator {
    rng: ChaCha8Rng,
    us_percent: u32,
}

impl Generator {
    /// Two American sentences for each British one; see [`Generator::with_us_percent`].
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), us_percent: 64 }
    }

    /// Sets how many sentences of a hundred are American.
    pub fn with_us_percent(mut self, us_percent: u32) -> Self {
        self.us_percent = us_percent;
        self
    }

    pub fn sentence(&mut self) -> Sentence {
        let (dialect, words, _) = self.draft();
        Sentence { dialect, text: render(&words, true) }
    }

    pub fn pair(&mut self) -> Pair {
        let (dialect, words, offered) = self.draft();
        let expected = render(&words, true);
        let chosen = if self.rng.random_range(0..100) < CORRECT_PERCENT { Vec::new() } else { self.choose(&offered) };
        let text = apply(&words, &chosen);
        Pair { dialect, text, expected, faults: chosen.iter().map(|fault| fault.kind).collect() }
    }

    fn draft(&mut self) -> (Dialect, Vec<String>, Vec<Fault>) {
        let dialect = if self.rng.random_range(0..100) < self.us_percent { Dialect::Us } else { Dialect::Gb };
        let mut draft = Draft::new(&mut self.rng, dialect);
        sentence(&mut draft);
        (dialect, draft.words, draft.faults)
    }

    /// One fault, sometimes two: first the kind by weight, then one of that kind.
    fn choose(&mut self, offered: &[Fault]) -> Vec<Fault> {
        let Some(first) = self.choose_one(offered) else { return Vec::new() };
        if self.rng.random_range(0..100) >= SECOND_PERCENT {
            return vec![first];
        }
        let apart: Vec<Fault> =
            offered.iter().filter(|other| other.kind != first.kind && apart(&first, other)).cloned().collect();
        let second = self.choose_one(&apart);
        std::iter::once(first).chain(second).collect()
    }

    fn choose_one(&mut self, offered: &[Fault]) -> Option<Fault> {
        let mut kinds: Vec<FaultKind> = offered.iter().map(|fault| fault.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let kind = *kinds.choose_weighted(&mut self.rng, |kind| kind.weight()).ok()?;
        let of_kind: Vec<&Fault> = offered.iter().filter(|fault| fault.kind == kind).collect();
        of_kind.choose(&mut self.rng).map(|&fault| fault.clone())
    }
}

/// Whether two faults leave each other's evidence standing: capitals and end marks are evidence of nothing, all others
/// must lie in different clauses.
fn apart(one: &Fault, other: &Fault) -> bool {
    let mechanical = |fault: &Fault| matches!(fault.kind, FaultKind::Capital | FaultKind::Punctuation);
    let disjoint = one.at.end <= other.at.start || other.at.end <= one.at.start;
    disjoint && (mechanical(one) || mechanical(other) || one.clause != other.clause)
}

fn apply(words: &[String], faults: &[Fault]) -> String {
    let mut ordered: Vec<&Fault> = faults.iter().collect();
    ordered.sort_by_key(|fault| std::cmp::Reverse(fault.at.start));
    let mut faulty = words.to_vec();
    for fault in ordered {
        faulty.splice(fault.at.clone(), fault.with.iter().cloned());
    }
    let small_start = faults.iter().any(|fault| fault.kind == FaultKind::Capital && fault.at.start == 0);
    render(&faulty, !small_start)
}

#[cfg(test)]
mod tests;
