//! Shards as the dataset service wrote them, brought into memory.

use tailor_domain::Invalid;
use tailor_text::Example;
use tailor_text::shard::{Content, Record, ShardLimits, ShardReader};

use crate::error::Result;

fn records(bytes: &[u8]) -> Result<Vec<Record>> {
    let reader = ShardReader::open(bytes, ShardLimits::default())?;
    Ok(reader.collect::<tailor_text::Result<Vec<_>>>()?)
}

/// The rows to train on.
pub fn read_examples(bytes: &[u8]) -> Result<Vec<Example>> {
    let example = |record: Record| match record.content {
        Content::Example(example) => Ok(example),
        Content::Prompt(_) => {
            Err(Invalid::new("train_digest", "names a shard of prompts; there is nothing to learn").into())
        }
    };
    records(bytes)?.into_iter().map(example).collect()
}

/// The held-out prompts, in the order of their rows.
pub fn read_prompts(bytes: &[u8]) -> Result<Vec<HeldOut>> {
    let prompt = |record: Record| match record.content {
        Content::Prompt(ids) => Ok(HeldOut { row: record.row, ids }),
        Content::Example(_) => {
            Err(Invalid::new("validation_digest", "names a shard with targets; held-out rows must hide them").into())
        }
    };
    records(bytes)?.into_iter().map(prompt).collect()
}

/// A held-out row: which one, and what the model is asked.
pub struct HeldOut {
    /// Index in the validation split; rows that are too long are not in the shard.
    pub row: u32,
    pub ids: Vec<u32>,
}
