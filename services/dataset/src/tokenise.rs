//! Rows into the files of a shard. Blocking.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tailor_domain::dataset::DroppedRow;
use tailor_domain::spec::Objective;
use tailor_domain::{DropReason, Family};
use tailor_serverkit::spool;
use tailor_text::shard::{Content, Record, ShardKind, ShardWriter};
use tailor_text::{Error as TextError, Example, ExampleBuilder, Refusal, RowContent};
use tempfile::TempPath;

use crate::shards::Wanted;
use crate::{Error, Result, rows};

/// Refused rows that are named; all are counted.
const MAX_REFUSED_SHOWN: usize = 10;

/// What both shards are made with.
pub struct ShardJob {
    pub dataset: String,
    pub base: String,
    pub family: Family,
    pub builder: ExampleBuilder,
    pub wanted: Wanted,
    pub folder: PathBuf,
}

pub struct ShardFile {
    pub path: TempPath,
    pub rows: u64,
    pub tokens: u64,
    pub longest: Longest,
    pub too_long: u64,
    pub rows_refused: u64,
    /// The first of them.
    pub refused: Vec<DroppedRow>,
}

/// The longest of any row, by what it is: for whoever plans how much memory a pass takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Longest {
    /// Prompt and target together; of a pair, its longer answer with the prompt.
    pub row: u64,
    /// What goes in: a decoder's whole row, an encoder's prompt.
    pub input: u64,
    /// An encoder-decoder's answer; 0 for a decoder.
    pub target: u64,
    /// Tokens that count in the loss.
    pub in_loss: u64,
}

impl Longest {
    fn see(&mut self, content: &Content) {
        match content {
            Content::Example(example) => self.see_example(example),
            Content::Preference(pair) => {
                self.see_example(&pair.chosen);
                self.see_example(&pair.rejected);
            }
            Content::Prompt(_) => {}
        }
    }

    fn see_example(&mut self, example: &Example) {
        let (input, target) = match example {
            Example::Decoder { ids, .. } => (ids.len(), 0),
            Example::EncoderDecoder { encoder, labels } => (encoder.len(), labels.len()),
        };
        self.row = self.row.max(example.tokens() as u64);
        self.input = self.input.max(input as u64);
        self.target = self.target.max(target as u64);
        self.in_loss = self.in_loss.max(example.tokens_in_loss() as u64);
    }
}

impl ShardJob {
    /// Every row of it has something that counts in the loss.
    pub fn train_shard(&self, rows: &Path) -> Result<ShardFile> {
        let Wanted { max_tokens, loss_on, objective } = self.wanted;
        let kind = match (objective, self.family) {
            (Objective::Sft, Family::Decoder) => ShardKind::Decoder,
            (Objective::Sft, Family::EncoderDecoder) => ShardKind::EncoderDecoder,
            (Objective::Dpo, Family::Decoder) => ShardKind::DecoderPreferences,
            (Objective::Dpo, Family::EncoderDecoder) => ShardKind::EncoderDecoderPreferences,
        };
        self.shard(kind, rows, |row| match objective {
            Objective::Sft => {
                let example = self.builder.row_example(row, loss_on, max_tokens as usize)?;
                Ok((example.tokens(), Content::Example(example)))
            }
            Objective::Dpo => {
                let pair = self.builder.preference(row, max_tokens as usize)?;
                Ok((pair.tokens(), Content::Preference(pair)))
            }
        })
    }

    /// Made of what is asked alone.
    pub fn validation_shard(&self, rows: &Path) -> Result<ShardFile> {
        let limit = self.wanted.max_tokens as usize;
        self.shard(ShardKind::Prompts, rows, |row| {
            let ids = self.builder.row_prompt(row)?.ids;
            match ids.len() {
                0 => Err(TextError::Row(Refusal::NothingToLearn)),
                tokens if tokens > limit => Err(TextError::Row(Refusal::TooLong { tokens, limit })),
                tokens => Ok((tokens, Content::Prompt(ids))),
            }
        })
    }

    fn shard(
        &self,
        kind: ShardKind,
        rows: &Path,
        tokenise: impl Fn(&RowContent) -> Result<(usize, Content), TextError>,
    ) -> Result<ShardFile> {
        let (file, path) = tempfile::NamedTempFile::new_in(&self.folder)
            .map_err(|error| spool::Error::from_io(&self.folder, &error))?
            .into_parts();
        let vocabulary = u32::try_from(self.builder.tokenizer().vocabulary_size()).unwrap_or(u32::MAX);
        let mut shard: ShardWriter<BufWriter<File>> =
            ShardWriter::new(BufWriter::new(file), kind, vocabulary).map_err(|error| self.unwritten(error))?;
        let mut made = ShardFile {
            path,
            rows: 0,
            tokens: 0,
            longest: Longest::default(),
            too_long: 0,
            rows_refused: 0,
            refused: Vec::new(),
        };
        for (row, index) in rows::read(&self.dataset, rows)?.zip(0..) {
            let row = row?;
            let (tokens, content) = match tokenise(&row.content) {
                Ok(tokenised) => tokenised,
                Err(TextError::Row(refusal)) => {
                    match reason(&refusal) {
                        None => made.too_long += 1,
                        Some(reason) => made.refuse(row.line, reason, &refusal),
                    }
                    continue;
                }
                Err(source) => return Err(Error::Base { base: self.base.clone(), source }),
            };
            made.tokens += tokens as u64;
            made.longest.see(&content);
            shard.push(&Record { row: index, content }).map_err(|error| self.unwritten(error))?;
        }
        made.rows = shard.records();
        shard.finish().map_err(|error| self.unwritten(error))?;
        Ok(made)
    }

    fn unwritten(&self, error: TextError) -> Error {
        match error {
            TextError::Io(error) => spool::Error::from_io(&self.folder, &error).into(),
            source => Error::Shard { dataset: self.dataset.clone(), source },
        }
    }
}

impl ShardFile {
    fn refuse(&mut self, line: u64, reason: DropReason, refusal: &Refusal) {
        self.rows_refused += 1;
        if self.refused.len() < MAX_REFUSED_SHOWN {
            self.refused.push(DroppedRow { line, field: None, reason, detail: refusal.to_string() });
        }
    }
}

/// None for a row that is too long: those are counted by themselves.
fn reason(refusal: &Refusal) -> Option<DropReason> {
    match refusal {
        Refusal::TooLong { .. } => None,
        Refusal::NothingToLearn => Some(DropReason::NothingToLearn),
        Refusal::SameAnswer => Some(DropReason::SameAnswer),
        Refusal::Template { .. } => Some(DropReason::TemplateRefused),
    }
}
