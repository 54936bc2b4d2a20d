//! Shards: a dataset version tokenised for one base. The train shard has ids and loss mask; the validation shard has what
//! the model will be asked and nothing of the answer.
//!
//! The same dataset, base and length give the same bytes, so the record that remembers their digests may be lost, made
//! twice or raced for without harm.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tailor_blobs::Creation;
use tailor_domain::{BaseManifest, BaseName, DatasetManifest, DatasetName, Digest, Family, Invalid, Version};
use tailor_serverkit::spool;
use tailor_text::shard::{Content, Record, ShardKind, ShardWriter};
use tailor_text::{Error as TextError, ExampleBuilder, Refusal};
use tempfile::TempPath;

use crate::bases::tokenizer_digests;
use crate::{Datasets, Error, Result, rows};

/// Part of every key: raise it when the same request would give other bytes.
const RECIPE: &str = "shards-1";
/// As in a job's settings.
const MIN_TOKENS: u32 = 8;
const MAX_TOKENS: u32 = 1 << 20;

/// `shards/<sha256 of what decides the bytes>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shards {
    pub train: Digest,
    pub validation: Digest,
    pub train_rows: u64,
    pub train_tokens: u64,
    pub validation_rows: u64,
    pub rows_too_long: u64,
}

/// Shards and the dataset version that they were made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    pub dataset: DatasetManifest,
    pub shards: Shards,
}

impl Datasets {
    /// Tokenises a dataset version for a base, or finds that it was done before.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such dataset, version or base. [`Error::Invalid`]: `max_tokens` is outside its limits or
    /// leaves no row. [`Error::Base`]: its tokenizer is unusable.
    pub async fn prepare_shards(
        &self,
        name: &DatasetName,
        version: Option<Version>,
        base: &BaseName,
        max_tokens: u32,
    ) -> Result<Prepared> {
        if !(MIN_TOKENS..=MAX_TOKENS).contains(&max_tokens) {
            let problem = format!("{max_tokens} is outside {MIN_TOKENS} to {MAX_TOKENS}");
            return Err(Invalid::new("max_tokens", problem).into());
        }
        let dataset = self.version(name, version).await?;
        let base = self.base(base).await?;
        let key = shards_key(&dataset, &base, max_tokens);
        if let Some(shards) = self.known_shards(&key).await? {
            return Ok(Prepared { dataset, shards });
        }
        let shards = self.make_shards(&dataset, &base, max_tokens).await?;
        match self.store.create_json(&key, &shards).await? {
            Creation::Created => {
                tracing::info!(
                    dataset = %dataset.name, version = %dataset.version, base = %base.name, max_tokens,
                    train_rows = shards.train_rows, train_tokens = shards.train_tokens, "shards prepared"
                );
                Ok(Prepared { dataset, shards })
            }
            Creation::AlreadyExists(shards) => Ok(Prepared { dataset, shards }),
        }
    }

    async fn known_shards(&self, key: &str) -> Result<Option<Shards>> {
        let Some(shards) = self.store.find_json::<Shards>(key).await? else { return Ok(None) };
        for digest in [&shards.train, &shards.validation] {
            // Collected as garbage since: made again, to the same digest.
            if self.store.blob_size(digest).await?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(shards))
    }

    async fn make_shards(&self, dataset: &DatasetManifest, base: &BaseManifest, max_tokens: u32) -> Result<Shards> {
        let builder = self.example_builder(base, &dataset.prompt_template).await?;
        let train_rows = self.fetch_rows(&dataset.train).await?;
        let validation_rows = self.fetch_rows(&dataset.validation).await?;
        let job = ShardJob {
            dataset: dataset.name.to_string(),
            base: base.name.to_string(),
            family: base.family,
            builder,
            max_tokens: max_tokens as usize,
            folder: self.spool_dir.clone(),
        };
        let (train, validation) = self
            .off_thread(move || Ok((job.train_shard(&train_rows)?, job.validation_shard(&validation_rows)?)))
            .await?;
        if train.rows == 0 {
            let problem = format!(
                "{max_tokens} leaves none of the {} training rows of dataset {}; the shortest needs more",
                dataset.report.rows_train, dataset.name
            );
            return Err(Invalid::new("max_tokens", problem).into());
        }
        Ok(Shards {
            train: self.store.put_blob_file(&train.path).await?.digest,
            validation: self.store.put_blob_file(&validation.path).await?.digest,
            train_rows: train.rows,
            train_tokens: train.tokens,
            validation_rows: validation.rows,
            rows_too_long: train.too_long + validation.too_long,
        })
    }
}

fn shards_key(dataset: &DatasetManifest, base: &BaseManifest, max_tokens: u32) -> String {
    let tokenizer: Vec<String> = tokenizer_digests(base).iter().map(ToString::to_string).collect();
    let identity =
        format!("{RECIPE}\n{}\n{}\n{}\n{max_tokens}", dataset.digest(), base.fingerprint, tokenizer.join("\n"));
    format!("shards/{}.json", Digest::of(identity.as_bytes()).hex())
}

/// What both shards are made with. Blocking.
struct ShardJob {
    dataset: String,
    base: String,
    family: Family,
    builder: ExampleBuilder,
    max_tokens: usize,
    folder: PathBuf,
}

struct ShardFile {
    path: TempPath,
    rows: u64,
    tokens: u64,
    too_long: u64,
}

impl ShardJob {
    fn train_shard(&self, rows: &Path) -> Result<ShardFile> {
        let kind = match self.family {
            Family::Decoder => ShardKind::Decoder,
            Family::EncoderDecoder => ShardKind::EncoderDecoder,
        };
        self.shard(kind, rows, |input, target| {
            let example = self.builder.example(input, target, self.max_tokens)?;
            Ok((example.tokens(), Content::Example(example)))
        })
    }

    /// Made of the inputs alone.
    fn validation_shard(&self, rows: &Path) -> Result<ShardFile> {
        self.shard(ShardKind::Prompts, rows, |input, _| {
            let ids = self.builder.prompt(input)?.ids;
            let tokens = ids.len();
            if tokens > self.max_tokens {
                return Err(TextError::Row(Refusal::TooLong { tokens, limit: self.max_tokens }));
            }
            Ok((tokens, Content::Prompt(ids)))
        })
    }

    fn shard(
        &self,
        kind: ShardKind,
        rows: &Path,
        tokenise: impl Fn(&str, &str) -> Result<(usize, Content), TextError>,
    ) -> Result<ShardFile> {
        let (file, path) = tempfile::NamedTempFile::new_in(&self.folder)
            .map_err(|error| spool::Error::from_io(&self.folder, &error))?
            .into_parts();
        let vocabulary = u32::try_from(self.builder.tokenizer().vocabulary_size()).unwrap_or(u32::MAX);
        let mut shard: ShardWriter<BufWriter<File>> =
            ShardWriter::new(BufWriter::new(file), kind, vocabulary).map_err(|error| self.unwritten(error))?;
        let (mut tokens, mut too_long) = (0, 0);
        for (row, index) in rows::read(&self.dataset, rows)?.zip(0..) {
            let row = row?;
            let (count, content) = match tokenise(&row.input, &row.target) {
                Ok(tokenised) => tokenised,
                Err(TextError::Row(Refusal::TooLong { .. })) => {
                    too_long += 1;
                    continue;
                }
                Err(TextError::Row(Refusal::NothingToLearn)) => {
                    tracing::warn!(dataset = %self.dataset, line = row.line, "no token of the row is left to learn");
                    continue;
                }
                Err(source) => return Err(Error::Base { base: self.base.clone(), source }),
            };
            tokens += count as u64;
            shard.push(&Record { row: index, content }).map_err(|error| self.unwritten(error))?;
        }
        let rows = shard.records();
        shard.finish().map_err(|error| self.unwritten(error))?;
        Ok(ShardFile { path, rows, tokens, too_long })
    }

    fn unwritten(&self, error: TextError) -> Error {
        match error {
            TextError::Io(error) => spool::Error::from_io(&self.folder, &error).into(),
            source => Error::Shard { dataset: self.dataset.clone(), source },
        }
    }
}
