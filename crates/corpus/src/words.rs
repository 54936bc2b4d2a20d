//! The vocabulary: nouns, verbs, modifiers and closed-class words with the features that the grammar selects by.
//!
//! Inflected forms are computed by the regular rules of [`inflect`] unless a table spells them out.

pub mod inflect;
mod modifiers;
mod nouns;
mod verbs;

pub use modifiers::{
    ADVERBS, Adjective, Adverb, LONG_ADJECTIVES, NAMES, PERSON_ADJECTIVES, PREDICATES, SHORT_ADJECTIVES,
    THING_ADJECTIVES,
};
pub use nouns::{MASS, Mass, MassClass, NOUNS, Noun, NounClass, PLACES, Place, TITLES};
pub use verbs::{Complement, VERBS, Verb};

/// Spelling and vocabulary of one side of the Atlantic. It is the `language` column of the shipped rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    Us,
    Gb,
}

impl Dialect {
    /// The BCP 47 tag.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Us => "en-US",
            Self::Gb => "en-GB",
        }
    }
}

/// A word with an American and a British form; most are the same.
#[derive(Clone, Copy, Debug)]
pub struct Spelling {
    pub us: &'static str,
    pub gb: &'static str,
}

impl Spelling {
    pub fn of(self, dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::Us => self.us,
            Dialect::Gb => self.gb,
        }
    }
}

/// The same word on both sides.
pub(crate) const fn same(word: &'static str) -> Spelling {
    Spelling { us: word, gb: word }
}

/// An American and a British word.
pub(crate) const fn pair(us: &'static str, gb: &'static str) -> Spelling {
    Spelling { us, gb }
}
