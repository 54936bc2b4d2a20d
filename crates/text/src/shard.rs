//! Tokenised rows as bytes: what the dataset service makes and the trainer reads.
//!
//! Little-endian. Header: 8 bytes magic with the version, kind u8, 3 zero bytes, vocabulary size u32. Record: 1, row
//! number u32, then by kind
//!
//! - decoder: n u32, n ids u32, n bytes 0 or 1 (counts in the loss);
//! - encoder-decoder: n u32, n ids u32, m u32, m labels u32;
//! - preferences, of either family: n u32, n prompt ids u32, m u32, m chosen ids u32, k u32, k rejected ids u32; only the
//!   answers count;
//! - prompts: n u32, n ids u32. No targets: a shard of this kind cannot tell them.
//!
//! Trailer: 0, record count u64, FNV-1a of all bytes before it u64. The checksum finds accidents, not attackers: shards
//! are named by their sha256. In every row to learn from, something counts that something stands before: a loss over it is
//! a number. Reading allocates no more than the limits, whatever the bytes claim.

mod indexed;
mod read;
mod write;

pub use indexed::ShardFile;
pub use read::{ShardLimits, ShardReader};
pub use write::ShardWriter;

use crate::error::{Error, Result};
use crate::example::{Example, Preference};

const MAGIC: &[u8; 8] = b"TLRSHD02";
const RECORD: u8 = 1;
const TRAILER: u8 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardKind {
    Decoder,
    EncoderDecoder,
    /// What the model is asked for each validation row, and nothing of the answer.
    Prompts,
    /// A prompt and two answers a row.
    DecoderPreferences,
    EncoderDecoderPreferences,
}

impl ShardKind {
    fn code(self) -> u8 {
        match self {
            Self::Decoder => 1,
            Self::EncoderDecoder => 2,
            Self::Prompts => 3,
            Self::DecoderPreferences => 4,
            Self::EncoderDecoderPreferences => 5,
        }
    }

    fn from_code(code: u8) -> Result<Self> {
        match code {
            1 => Ok(Self::Decoder),
            2 => Ok(Self::EncoderDecoder),
            3 => Ok(Self::Prompts),
            4 => Ok(Self::DecoderPreferences),
            5 => Ok(Self::EncoderDecoderPreferences),
            other => Err(Error::shard(format!("kind {other} is not known to this version"))),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Example(Example),
    Prompt(Vec<u32>),
    Preference(Preference),
}

/// What stands first in its row counts for nothing: nothing predicts it.
fn teaches(in_loss: &[bool]) -> bool {
    in_loss.iter().skip(1).any(|counts| *counts)
}

/// One row of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Index of the row in its split.
    pub row: u32,
    pub content: Content,
}

/// FNV-1a, 64 bit.
#[derive(Debug, Clone)]
struct Checksum(u64);

impl Checksum {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests;
