//! Shards as the dataset service wrote them, brought into memory.

use tailor_domain::Invalid;
use tailor_text::shard::{Content, Record, ShardLimits, ShardReader};
use tailor_text::{Example, Preference};

use crate::error::Result;

fn records(bytes: &[u8]) -> Result<Vec<Record>> {
    let reader = ShardReader::open(bytes, ShardLimits::default())?;
    Ok(reader.collect::<tailor_text::Result<Vec<_>>>()?)
}

/// The rows to train on.
pub fn read_examples(bytes: &[u8]) -> Result<Vec<Example>> {
    let example = |record: Record| match record.content {
        Content::Example(example) => Ok(example),
        Content::Prompt(_) | Content::Preference(_) => {
            Err(Invalid::new("train_digest", "names a shard of other rows than sft learns from").into())
        }
    };
    records(bytes)?.into_iter().map(example).collect()
}

/// The pairs of answers to learn from.
pub fn read_preferences(bytes: &[u8]) -> Result<Vec<Preference>> {
    let preference = |record: Record| match record.content {
        Content::Preference(pair) => Ok(pair),
        Content::Prompt(_) | Content::Example(_) => {
            Err(Invalid::new("train_digest", "names a shard of other rows than dpo learns from").into())
        }
    };
    records(bytes)?.into_iter().map(preference).collect()
}

/// The held-out prompts, in the order of their rows.
pub fn read_prompts(bytes: &[u8]) -> Result<Vec<HeldOut>> {
    let prompt = |record: Record| match record.content {
        Content::Prompt(ids) => Ok(HeldOut { row: record.row, ids }),
        Content::Example(_) | Content::Preference(_) => {
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

#[cfg(test)]
mod tests {
    use tailor_text::shard::{ShardKind, ShardWriter};

    use super::*;

    fn shard(kind: ShardKind, content: Content) -> Vec<u8> {
        let mut writer = ShardWriter::new(Vec::new(), kind, 10).expect("writes");
        writer.push(&Record { row: 3, content }).expect("a record");
        writer.finish().expect("writes")
    }

    #[test]
    fn each_reader_takes_its_own_rows_and_no_others() {
        let example = |answer| Example::Decoder { ids: vec![1, answer], in_loss: vec![false, true] };
        let pair = Preference { chosen: example(2), rejected: example(3) };
        let pairs = shard(ShardKind::DecoderPreferences, Content::Preference(pair.clone()));
        let rows = shard(ShardKind::Decoder, Content::Example(example(2)));
        let prompts = shard(ShardKind::Prompts, Content::Prompt(vec![1]));
        assert_eq!(read_preferences(&pairs).expect("pairs"), [pair]);
        assert_eq!(read_examples(&rows).expect("rows"), [example(2)]);
        assert_eq!(read_prompts(&prompts).expect("prompts").first().map(|held_out| held_out.row), Some(3));
        assert!(read_preferences(&rows).is_err() && read_preferences(&prompts).is_err());
        assert!(read_examples(&pairs).is_err() && read_examples(&prompts).is_err());
        assert!(read_prompts(&pairs).is_err() && read_prompts(&rows).is_err(), "held-out rows must hide their targets");
    }
}
