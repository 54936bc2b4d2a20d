//! A sentence while it is written: its words, and the faults that each part offers.

use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore};

use crate::fault::{Fault, FaultKind};
use crate::words::Dialect;

/// Words whose doubling is an error and never a meaning.
const DOUBLED: [&str; 17] =
    ["the", "a", "an", "to", "in", "at", "on", "of", "is", "are", "was", "were", "and", "for", "than", "will", "has"];

/// The capitalised words of the calendar.
pub(crate) const DAYS: [&str; 5] = ["Monday", "Tuesday", "Wednesday", "Friday", "Sunday"];
pub(crate) const MONTHS: [&str; 4] = ["May", "June", "April", "October"];

pub(crate) struct Draft<'r> {
    pub rng: &'r mut dyn RngCore,
    pub dialect: Dialect,
    pub words: Vec<String>,
    pub faults: Vec<Fault>,
    clause: usize,
}

impl<'r> Draft<'r> {
    pub fn new(rng: &'r mut dyn RngCore, dialect: Dialect) -> Self {
        Self { rng, dialect, words: Vec::new(), faults: Vec::new(), clause: 0 }
    }

    pub fn next_clause(&mut self) {
        self.clause += 1;
    }

    /// Appends a word and says where it stands.
    pub fn push(&mut self, word: impl Into<String>) -> usize {
        self.words.push(word.into());
        self.words.len() - 1
    }

    /// Appends the words of a phrase and says where the first stands.
    pub fn phrase(&mut self, phrase: &str) -> usize {
        let at = self.words.len();
        self.words.extend(phrase.split(' ').map(str::to_owned));
        at
    }

    /// Offers the error that the `count` words at `at` are `with` (several words are parted by spaces).
    pub fn fault(&mut self, kind: FaultKind, at: usize, count: usize, with: &str) {
        let with: Vec<String> = with.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        if self.words.get(at..at + count).is_some_and(|words| words != with) {
            self.faults.push(Fault { kind, at: at..at + count, with, clause: self.clause });
        }
    }

    /// Offers the errors that belong to no phrase: doubled words, capitals and punctuation.
    pub fn mechanical_faults(&mut self) {
        for at in 0..self.words.len() {
            let word = self.words[at].clone();
            if DOUBLED.contains(&word.as_str()) {
                self.fault(FaultKind::DoubledWord, at, 1, &format!("{word} {word}"));
            }
            if word.starts_with(char::is_uppercase) && at > 0 {
                self.fault(FaultKind::Capital, at, 1, &word.to_lowercase());
            }
            if word == "," {
                self.fault(FaultKind::Punctuation, at, 1, "");
            }
        }
        let small = self.words[0].to_lowercase();
        self.faults.push(Fault { kind: FaultKind::Capital, at: 0..1, with: vec![small], clause: self.clause });
        let end = self.words.len() - 1;
        self.fault(FaultKind::Punctuation, end, 1, "");
        self.fault(FaultKind::Punctuation, end, 1, if self.words[end] == "?" { "." } else { "?" });
    }

    pub fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end)
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        items.choose(&mut self.rng).expect("the tables are not empty")
    }
}

/// Joins words into a line: marks stand close, the first letter is large unless its smallness is the fault.
pub(crate) fn render(words: &[String], capital: bool) -> String {
    let mut line = String::new();
    for word in words {
        let stands_close = matches!(word.as_str(), "," | "." | "?" | "'s");
        if !line.is_empty() && !stands_close {
            line.push(' ');
        }
        if line.is_empty() && capital {
            let mut letters = word.chars();
            line.extend(letters.next().into_iter().flat_map(char::to_uppercase));
            line.push_str(letters.as_str());
        } else {
            line.push_str(word);
        }
    }
    line
}
