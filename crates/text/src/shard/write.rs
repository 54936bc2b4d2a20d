//! Writing a shard record by record.

use std::io::Write;

use super::{Checksum, Content, MAGIC, RECORD, Record, ShardKind, TRAILER, teaches};
use crate::error::{Error, Result};
use crate::example::Example;

pub struct ShardWriter<W> {
    out: W,
    kind: ShardKind,
    vocabulary: u32,
    checksum: Checksum,
    records: u64,
    /// The record in making, so that a refused one leaves no trace.
    buffer: Vec<u8>,
}

impl<W: Write> ShardWriter<W> {
    /// `vocabulary` is one more than the largest id that may occur.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn new(out: W, kind: ShardKind, vocabulary: u32) -> Result<Self> {
        let mut writer = Self { out, kind, vocabulary, checksum: Checksum::new(), records: 0, buffer: Vec::new() };
        writer.buffer.extend_from_slice(MAGIC);
        writer.buffer.extend([kind.code(), 0, 0, 0]);
        writer.buffer.extend(vocabulary.to_le_bytes());
        writer.flush_buffer()?;
        Ok(writer)
    }

    /// # Errors
    /// The record is of another kind than the shard, breaks a rule of it, or cannot be written.
    pub fn push(&mut self, record: &Record) -> Result<()> {
        self.buffer.clear();
        self.buffer.push(RECORD);
        self.buffer.extend(record.row.to_le_bytes());
        match (self.kind, &record.content) {
            (ShardKind::Decoder, Content::Example(Example::Decoder { ids, in_loss })) => {
                if ids.len() != in_loss.len() {
                    let problem = format!("row {}: {} ids and {} mask bytes", record.row, ids.len(), in_loss.len());
                    return Err(Error::shard(problem));
                }
                self.ids(record.row, ids)?;
                if !teaches(in_loss) {
                    return Err(Error::nothing_counts(record.row));
                }
                self.buffer.extend(in_loss.iter().map(|counts| u8::from(*counts)));
            }
            (ShardKind::EncoderDecoder, Content::Example(Example::EncoderDecoder { encoder, labels })) => {
                self.ids(record.row, encoder)?;
                self.ids(record.row, labels)?;
            }
            (ShardKind::Prompts, Content::Prompt(ids)) => self.ids(record.row, ids)?,
            (
                kind @ (ShardKind::DecoderPreferences | ShardKind::EncoderDecoderPreferences),
                Content::Preference(pair),
            ) if pair.chosen.is_decoder() == (kind == ShardKind::DecoderPreferences) => {
                let parts = pair.parts().ok_or_else(|| {
                    Error::shard(format!("row {} holds no two answers to one prompt, and nothing else", record.row))
                })?;
                for ids in parts {
                    self.ids(record.row, ids)?;
                }
            }
            (kind, _) => return Err(Error::shard(format!("row {} is no record of a {kind:?} shard", record.row))),
        }
        self.flush_buffer()?;
        self.records += 1;
        Ok(())
    }

    /// Writes the trailer; without it a reader refuses the shard.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(mut self) -> Result<W> {
        self.buffer.clear();
        self.buffer.push(TRAILER);
        self.buffer.extend(self.records.to_le_bytes());
        self.flush_buffer()?;
        self.out.write_all(&self.checksum.0.to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }

    pub fn records(&self) -> u64 {
        self.records
    }

    fn ids(&mut self, row: u32, ids: &[u32]) -> Result<()> {
        let count = u32::try_from(ids.len()).map_err(|_| Error::shard(format!("row {row} has {} ids", ids.len())))?;
        if ids.is_empty() {
            return Err(Error::shard(format!("row {row} has no ids")));
        }
        if let Some(id) = ids.iter().find(|id| **id >= self.vocabulary) {
            return Err(Error::shard(format!("row {row}: id {id} is outside the vocabulary of {}", self.vocabulary)));
        }
        self.buffer.extend(count.to_le_bytes());
        self.buffer.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        Ok(())
    }

    fn flush_buffer(&mut self) -> Result<()> {
        self.checksum.add(&self.buffer);
        self.out.write_all(&self.buffer)?;
        Ok(())
    }
}
