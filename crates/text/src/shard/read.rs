//! Reading a shard record by record; every claim of the bytes is checked before memory is spent on it.

use std::io::Read;

use tailor_domain::Family;

use super::{Checksum, Content, MAGIC, RECORD, Record, ShardKind, TRAILER, teaches};
use crate::error::{Error, Result};
use crate::example::{Example, Preference};

#[derive(Debug, Clone, Copy)]
pub struct ShardLimits {
    pub max_tokens_a_row: u32,
}

impl Default for ShardLimits {
    /// The longest context that a job may ask for.
    fn default() -> Self {
        Self { max_tokens_a_row: 1 << 20 }
    }
}

/// Gives records one by one, then checks the trailer. Ends after the first `Err`. A shard is only whole when the iterator
/// has ended without one.
pub struct ShardReader<R> {
    input: R,
    kind: ShardKind,
    vocabulary: u32,
    limits: ShardLimits,
    checksum: Checksum,
    records: u64,
    done: bool,
}

impl<R: Read> ShardReader<R> {
    /// # Errors
    /// This is no shard, or one of another version.
    pub fn open(input: R, limits: ShardLimits) -> Result<Self> {
        let mut reader = Self {
            input,
            kind: ShardKind::Prompts,
            vocabulary: 0,
            limits,
            checksum: Checksum::new(),
            records: 0,
            done: false,
        };
        let magic: [u8; 8] = reader.bytes()?;
        if &magic != MAGIC {
            let problem = if magic[..6] == MAGIC[..6] { "of another version; prepare it again" } else { "no shard" };
            return Err(Error::shard(format!("these bytes are {problem}")));
        }
        let [kind, zeros @ ..]: [u8; 4] = reader.bytes()?;
        reader.kind = ShardKind::from_code(kind)?;
        if zeros != [0; 3] {
            return Err(Error::shard("the header is damaged"));
        }
        reader.vocabulary = reader.number()?;
        Ok(reader)
    }

    /// Begins at a record in the middle of a shard whose header and checksum were looked at before.
    pub(super) fn at_record(input: R, kind: ShardKind, vocabulary: u32, limits: ShardLimits) -> Self {
        Self { input, kind, vocabulary, limits, checksum: Checksum::new(), records: 0, done: false }
    }

    pub(super) fn input(&self) -> &R {
        &self.input
    }

    pub fn kind(&self) -> ShardKind {
        self.kind
    }

    /// One more than the largest id that may occur.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    pub(super) fn read(&mut self) -> Result<Option<Record>> {
        let [mark]: [u8; 1] = self.bytes()?;
        match mark {
            RECORD => {}
            TRAILER => return self.trailer().map(|()| None),
            other => return Err(Error::shard(format!("byte {other} where a record starts"))),
        }
        let row = self.number()?;
        let content = match self.kind {
            ShardKind::Decoder => {
                let ids = self.ids(row)?;
                let in_loss = self.mask(row, ids.len())?;
                Content::Example(Example::Decoder { ids, in_loss })
            }
            ShardKind::EncoderDecoder => {
                let (encoder, labels) = (self.ids(row)?, self.ids(row)?);
                Content::Example(Example::EncoderDecoder { encoder, labels })
            }
            ShardKind::Prompts => Content::Prompt(self.ids(row)?),
            ShardKind::DecoderPreferences => Content::Preference(self.preference(Family::Decoder, row)?),
            ShardKind::EncoderDecoderPreferences => Content::Preference(self.preference(Family::EncoderDecoder, row)?),
        };
        self.records += 1;
        Ok(Some(Record { row, content }))
    }

    fn preference(&mut self, family: Family, row: u32) -> Result<Preference> {
        let (prompt, chosen, rejected) = (self.ids(row)?, self.ids(row)?, self.ids(row)?);
        let chosen = Example::answered(family, prompt.clone(), chosen);
        Ok(Preference { chosen, rejected: Example::answered(family, prompt, rejected) })
    }

    fn trailer(&mut self) -> Result<()> {
        let records = u64::from_le_bytes(self.bytes()?);
        if records != self.records {
            return Err(Error::shard(format!("{} records where the trailer says {records}", self.records)));
        }
        let expected = self.checksum.0;
        if u64::from_le_bytes(self.bytes()?) != expected {
            return Err(Error::shard("the checksum is wrong; the bytes are damaged"));
        }
        if self.input.read(&mut [0])? != 0 {
            return Err(Error::shard("there are bytes after the trailer"));
        }
        Ok(())
    }

    fn ids(&mut self, row: u32) -> Result<Vec<u32>> {
        let count = self.number()?;
        let limit = self.limits.max_tokens_a_row;
        if count == 0 || count > limit {
            return Err(Error::shard(format!("row {row} claims {count} ids, the limit is {limit}")));
        }
        let bytes = self.vector(count as usize * 4)?;
        let ids: Vec<u32> = bytes.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
        match ids.iter().find(|id| **id >= self.vocabulary) {
            Some(id) => {
                Err(Error::shard(format!("row {row}: id {id} is outside the vocabulary of {}", self.vocabulary)))
            }
            None => Ok(ids),
        }
    }

    fn mask(&mut self, row: u32, length: usize) -> Result<Vec<bool>> {
        let bytes = self.vector(length)?;
        match bytes.iter().find(|byte| **byte > 1) {
            Some(byte) => Err(Error::shard(format!("row {row}: mask byte {byte} is neither 0 nor 1"))),
            None => {
                let in_loss: Vec<bool> = bytes.into_iter().map(|byte| byte == 1).collect();
                if teaches(&in_loss) { Ok(in_loss) } else { Err(Error::nothing_counts(row)) }
            }
        }
    }

    fn number(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(cut_off)?;
        self.checksum.add(&bytes);
        Ok(bytes)
    }

    /// Grows with what is really there, not with what is claimed.
    fn vector(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() < length {
            return Err(Error::shard("it breaks off in the middle"));
        }
        self.checksum.add(&bytes);
        Ok(bytes)
    }
}

fn cut_off(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return Error::shard("it breaks off in the middle");
    }
    error.into()
}

impl<R: Read> Iterator for ShardReader<R> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}
