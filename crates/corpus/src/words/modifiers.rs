//! Adjectives with their degrees, adverbs, names and predicates with a fixed preposition.

use super::{Spelling, pair, same};

/// An adjective that compares with `-er` and `-est`.
#[derive(Clone, Copy, Debug)]
pub struct Adjective {
    pub plain: &'static str,
    pub comparative: &'static str,
    pub superlative: &'static str,
}

/// A manner adverb beside the adjective that learners put in its place.
#[derive(Clone, Copy, Debug)]
pub struct Adverb {
    pub adverb: &'static str,
    pub adjective: &'static str,
}

const fn short(plain: &'static str, comparative: &'static str, superlative: &'static str) -> Adjective {
    Adjective { plain, comparative, superlative }
}

pub const SHORT_ADJECTIVES: &[Adjective] = &[
    short("tall", "taller", "tallest"),
    short("old", "older", "oldest"),
    short("young", "younger", "youngest"),
    short("small", "smaller", "smallest"),
    short("strong", "stronger", "strongest"),
    short("clever", "cleverer", "cleverest"),
    short("kind", "kinder", "kindest"),
    short("happy", "happier", "happiest"),
    short("fast", "faster", "fastest"),
    short("big", "bigger", "biggest"),
];

pub const LONG_ADJECTIVES: &[&str] =
    &["beautiful", "famous", "careful", "interesting", "patient", "popular", "intelligent", "generous"];

pub const THING_ADJECTIVES: &[Spelling] = &[
    same("old"),
    same("new"),
    same("red"),
    same("blue"),
    same("green"),
    same("white"),
    same("small"),
    same("large"),
    same("heavy"),
    same("cheap"),
    same("expensive"),
    same("clean"),
    same("dirty"),
    same("useful"),
    same("empty"),
    same("ugly"),
    same("interesting"),
    same("unusual"),
    pair("gray", "grey"),
    pair("favorite", "favourite"),
    pair("colorful", "colourful"),
];

pub const PERSON_ADJECTIVES: &[&str] = &[
    "old", "young", "tall", "kind", "clever", "happy", "tired", "friendly", "honest", "quiet", "famous", "angry",
    "hungry", "polite", "brave",
];

const fn manner(adverb: &'static str, adjective: &'static str) -> Adverb {
    Adverb { adverb, adjective }
}

pub const ADVERBS: &[Adverb] = &[
    manner("quickly", "quick"),
    manner("slowly", "slow"),
    manner("carefully", "careful"),
    manner("quietly", "quiet"),
    manner("happily", "happy"),
    manner("easily", "easy"),
    manner("badly", "bad"),
    manner("well", "good"),
    manner("politely", "polite"),
    manner("nervously", "nervous"),
    manner("proudly", "proud"),
    manner("calmly", "calm"),
];

/// Adjectives that take one preposition only.
pub const PREDICATES: &[(&str, &str)] = &[
    ("interested", "in"),
    ("good", "at"),
    ("afraid", "of"),
    ("proud", "of"),
    ("similar", "to"),
    ("married", "to"),
    ("responsible", "for"),
    ("tired", "of"),
    ("fond", "of"),
];

pub const NAMES: &[&str] = &[
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo", "Maria", "Nora",
    "Oscar", "Paul", "Rosa", "Sam", "Tina", "Victor",
];
