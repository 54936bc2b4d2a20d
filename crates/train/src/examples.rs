//! Rows as the trainer gets them: single ones, or pairs of which one is preferred.

use tailor_text::{Example, Preference};

use crate::rows::targets;

/// What a job learns from.
#[derive(Debug, Clone, Copy)]
pub enum Examples<'a> {
    Single(&'a [Example]),
    Pairs(&'a [Preference]),
}

impl<'a> Examples<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::Single(rows) => rows.len(),
            Self::Pairs(pairs) => pairs.len(),
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The one example of a row, or the chosen and then the rejected one.
    pub fn of(self, row: usize) -> impl Iterator<Item = &'a Example> {
        let (first, second) = match self {
            Self::Single(rows) => (&rows[row], None),
            Self::Pairs(pairs) => (&pairs[row].chosen, Some(&pairs[row].rejected)),
        };
        std::iter::once(first).chain(second)
    }

    pub fn tokens(self, row: usize) -> usize {
        self.of(row).map(Example::tokens).sum()
    }

    pub fn targets(self, row: usize) -> usize {
        self.of(row).map(targets).sum()
    }
}

impl<'a> From<&'a [Example]> for Examples<'a> {
    fn from(rows: &'a [Example]) -> Self {
        Self::Single(rows)
    }
}

impl<'a> From<&'a Vec<Example>> for Examples<'a> {
    fn from(rows: &'a Vec<Example>) -> Self {
        Self::Single(rows)
    }
}

impl<'a, const N: usize> From<&'a [Example; N]> for Examples<'a> {
    fn from(rows: &'a [Example; N]) -> Self {
        Self::Single(rows)
    }
}

impl<'a> From<&'a [Preference]> for Examples<'a> {
    fn from(pairs: &'a [Preference]) -> Self {
        Self::Pairs(pairs)
    }
}
