//! The errors that a sentence can be given, each recorded where the grammar knows the evidence for its correction.
//!
//! A fault is offered only where the rest of the sentence fixes what stood there: a tense fault beside a time
//! expression, a number fault beside a numeral, a preposition fault beside a verb that takes one only. So the correct
//! sentence can be recovered from the faulty one.

use std::ops::Range;

/// The types of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// `she walk`, `they was`.
    Agreement,
    /// `yesterday she walks`.
    Tense,
    /// `can walks`, `has ate`, `enjoys to swim`.
    VerbForm,
    /// `three dog`.
    NounNumber,
    /// `a old car`.
    ArticleChoice,
    /// `in garden`.
    ArticleMissing,
    /// `the Anna`.
    ArticleExtra,
    /// `listen at`.
    PrepositionWrong,
    /// `listen the story`.
    PrepositionMissing,
    /// `visited to the museum`.
    PrepositionExtra,
    /// `him walks`, `with I`.
    PronounCase,
    /// `me brother`, `Anna brother`.
    Possessive,
    /// `a car red`, `where she went?`.
    WordOrder,
    /// `more taller`.
    Comparison,
    /// `sang beautiful`.
    AdverbForm,
    /// `too much books`.
    Quantifier,
    /// `the man which`.
    Relative,
    /// `did not see nothing`.
    Negation,
    /// `the the garden`.
    DoubledWord,
    /// `anna`, a small letter at the start.
    Capital,
    /// A missing comma or full stop, a wrong end mark.
    Punctuation,
}

impl FaultKind {
    pub const ALL: [Self; 21] = [
        Self::Agreement,
        Self::Tense,
        Self::VerbForm,
        Self::NounNumber,
        Self::ArticleChoice,
        Self::ArticleMissing,
        Self::ArticleExtra,
        Self::PrepositionWrong,
        Self::PrepositionMissing,
        Self::PrepositionExtra,
        Self::PronounCase,
        Self::Possessive,
        Self::WordOrder,
        Self::Comparison,
        Self::AdverbForm,
        Self::Quantifier,
        Self::Relative,
        Self::Negation,
        Self::DoubledWord,
        Self::Capital,
        Self::Punctuation,
    ];

    /// How often the kind is drawn when a sentence offers it: what nearly every sentence offers weighs little, what
    /// few offer weighs much, so that all kinds appear often enough to be learnt.
    pub(crate) fn weight(self) -> u32 {
        match self {
            Self::Negation => 90,
            Self::PrepositionExtra | Self::AdverbForm => 50,
            Self::Relative | Self::PrepositionMissing => 25,
            Self::Comparison | Self::Quantifier => 15,
            Self::Agreement | Self::Tense | Self::VerbForm => 12,
            Self::NounNumber | Self::ArticleChoice | Self::PrepositionWrong => 10,
            Self::PronounCase | Self::Possessive => 8,
            Self::WordOrder | Self::ArticleMissing | Self::ArticleExtra => 4,
            Self::DoubledWord | Self::Capital | Self::Punctuation => 2,
        }
    }
}

/// One possible error: the words of `at` are replaced by `with`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub kind: FaultKind,
    /// Word positions in the correct sentence.
    pub at: Range<usize>,
    pub with: Vec<String>,
    /// The clause whose words are the evidence. Two faults of one sentence are taken from different clauses.
    pub clause: usize,
}
