//! What the tests need beside Rust: found, or installed with a word about it.

pub mod nextest;
pub mod python;
pub mod redis;
