//! Rows as the trainer gets them: single ones, or pairs of which one is preferred; in memory, or in a shard on disk of which
//! the rows of one pass are read.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tailor_text::shard::{Content, ShardFile, ShardKind};
use tailor_text::{Error as TextError, Example, Preference};

use crate::error::Error;

/// What a job learns from. Cloning shares it.
#[derive(Debug, Clone)]
pub enum Examples<'a> {
    Single(&'a [Example]),
    Pairs(&'a [Preference]),
    /// Of any kind that is learnt from.
    Shard(Arc<Shard>),
}

/// A shard on disk.
#[derive(Debug)]
pub struct Shard {
    file: ShardFile,
    pairs: bool,
    /// Names the bytes, so that a checkpoint is known to be of the same rows without reading them.
    digest: String,
}

impl Shard {
    /// `digest` names the file's bytes.
    ///
    /// # Errors
    /// The shard holds prompts, which nothing can be learnt from.
    pub fn new(file: ShardFile, digest: &str) -> Result<Self, Error> {
        let pairs = match file.kind() {
            ShardKind::Decoder | ShardKind::EncoderDecoder => false,
            ShardKind::DecoderPreferences | ShardKind::EncoderDecoderPreferences => true,
            ShardKind::Prompts => {
                let problem = "it holds prompts, and no answers to learn".into();
                return Err(TextError::Shard { problem }.into());
            }
        };
        Ok(Self { file, pairs, digest: digest.to_owned() })
    }

    pub fn file(&self) -> &ShardFile {
        &self.file
    }
}

impl Examples<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::Single(rows) => rows.len(),
            Self::Pairs(pairs) => pairs.len(),
            Self::Shard(shard) => shard.file.rows(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn are_pairs(&self) -> bool {
        match self {
            Self::Single(_) => false,
            Self::Pairs(_) => true,
            Self::Shard(shard) => shard.pairs,
        }
    }

    /// Where what takes a number for each row may lie; None where the rows are in memory themselves.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Single(_) | Self::Pairs(_) => None,
            Self::Shard(shard) => Some(shard.file.folder()),
        }
    }

    /// Gives back the memory of what was looked up on disk.
    pub fn release(&self) {
        if let Self::Shard(shard) = self {
            shard.file.release();
        }
    }

    /// Tokens of a row; of a pair both answers, each with its prompt.
    pub fn tokens(&self, row: usize) -> usize {
        match self {
            Self::Single(rows) => rows[row].tokens(),
            Self::Pairs(pairs) => pairs[row].tokens(),
            Self::Shard(shard) => shard.file.tokens(row),
        }
    }

    /// Tokens that something is learnt from; of a pair those of the chosen answer.
    pub fn targets(&self, row: usize) -> usize {
        match self {
            Self::Single(rows) => rows[row].targets(),
            Self::Pairs(pairs) => pairs[row].chosen.targets(),
            Self::Shard(shard) => shard.file.targets(row),
        }
    }

    /// The rows of one pass, in memory.
    ///
    /// # Errors
    /// The shard cannot be read any more.
    pub fn load<'r>(&self, sequences: impl IntoIterator<Item = &'r [u32]>) -> Result<Loaded, Error> {
        let mut rows = Vec::new();
        let mut loaded = Vec::new();
        for sequence in sequences {
            loaded.push(rows.len()..rows.len() + sequence.len());
            rows.extend(sequence.iter().map(|row| *row as usize));
        }
        let rows = match self {
            Self::Single(all) => Texts::Single(rows.into_iter().map(|row| all[row].clone()).collect()),
            Self::Pairs(all) => Texts::Pairs(rows.into_iter().map(|row| all[row].clone()).collect()),
            Self::Shard(shard) => shard.load(&rows)?,
        };
        Ok(Loaded { rows, sequences: loaded })
    }

    /// Names the rows: others have another name, and a shard's name is not that of the same rows in memory.
    pub fn name(&self) -> String {
        let mut hasher = Sha256::new();
        match self {
            Self::Single(rows) => rows.iter().for_each(|row| hash(&mut hasher, row)),
            Self::Pairs(pairs) => pairs.iter().for_each(|pair| {
                hash(&mut hasher, &pair.chosen);
                hash(&mut hasher, &pair.rejected);
            }),
            Self::Shard(shard) => return shard.digest.clone(),
        }
        format!("{:x}", hasher.finalize())
    }
}

impl Shard {
    fn load(&self, rows: &[usize]) -> Result<Texts, Error> {
        let other = || TextError::Shard { problem: "its rows are not of the kind that its beginning says".into() };
        if self.pairs {
            let pair = |row: &usize| match self.file.read(*row)?.content {
                Content::Preference(pair) => Ok(pair),
                Content::Example(_) | Content::Prompt(_) => Err(other()),
            };
            return Ok(Texts::Pairs(rows.iter().map(pair).collect::<Result<_, TextError>>()?));
        }
        let single = |row: &usize| match self.file.read(*row)?.content {
            Content::Example(example) => Ok(example),
            Content::Preference(_) | Content::Prompt(_) => Err(other()),
        };
        Ok(Texts::Single(rows.iter().map(single).collect::<Result<_, TextError>>()?))
    }
}

fn hash(hasher: &mut Sha256, example: &Example) {
    let mut ids = |ids: &[u32]| {
        hasher.update((ids.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice::<u32, u8>(ids));
    };
    match example {
        Example::Decoder { ids: all, in_loss } => {
            ids(all);
            ids(&in_loss.iter().map(|counts| u32::from(*counts)).collect::<Vec<_>>());
        }
        Example::EncoderDecoder { encoder, labels } => {
            ids(encoder);
            ids(labels);
        }
    }
}

/// Rows of one pass, and which of them share a sequence.
#[derive(Debug)]
pub struct Loaded {
    rows: Texts,
    sequences: Vec<Range<usize>>,
}

/// The rows themselves, those of the first sequence first.
#[derive(Debug)]
pub enum Texts {
    Single(Vec<Example>),
    Pairs(Vec<Preference>),
}

impl Loaded {
    pub fn texts(&self) -> &Texts {
        &self.rows
    }

    /// Each sequence's rows, of single ones.
    pub fn sequences<'a>(&self, rows: &'a [Example]) -> Vec<Vec<&'a Example>> {
        self.sequences.iter().map(|range| rows[range.clone()].iter().collect()).collect()
    }

    pub fn len(&self) -> usize {
        match &self.rows {
            Texts::Single(rows) => rows.len(),
            Texts::Pairs(pairs) => pairs.len(),
        }
    }
}

impl<'a> From<&'a [Example]> for Examples<'a> {
    fn from(rows: &'a [Example]) -> Self {
        Self::Single(rows)
    }
}

impl<'a> From<&'a Vec<Example>> for Examples<'a> {
    fn from(rows: &'a Vec<Example>) -> Self {
        Self::Single(rows)
    }
}

impl<'a, const N: usize> From<&'a [Example; N]> for Examples<'a> {
    fn from(rows: &'a [Example; N]) -> Self {
        Self::Single(rows)
    }
}

impl<'a> From<&'a [Preference]> for Examples<'a> {
    fn from(pairs: &'a [Preference]) -> Self {
        Self::Pairs(pairs)
    }
}

impl From<Shard> for Examples<'static> {
    fn from(shard: Shard) -> Self {
        Self::Shard(Arc::new(shard))
    }
}
