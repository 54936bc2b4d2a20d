//! The generator of the shipped texts: English sentences and their grammatical errors.
//!
//! A small grammar writes sentences ([`Generator::sentence`]) and, where the rest of the sentence fixes what must
//! stand, offers errors ([`FaultKind`]); a pair ([`Generator::pair`]) applies one or two of them. Everything is seeded
//! and gives the same text on every platform.

pub mod dictionary;
pub mod fault;
pub mod generator;
pub mod rows;
pub mod words;

mod clause;
mod draft;
mod phrase;
mod sentence;

pub use fault::FaultKind;
pub use generator::{Generator, Pair, Sentence};
pub use words::Dialect;
