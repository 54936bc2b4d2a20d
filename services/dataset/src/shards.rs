//! Shards: a dataset version tokenised for one base. The train shard has ids and loss mask, or for dpo pairs of answers; the
//! validation shard has what the model will be asked and nothing of the answer.
//!
//! The same dataset, base, length, loss and objective give the same bytes, so the record that remembers their digests may be lost, made
//! twice or raced for without harm.

use serde::{Deserialize, Serialize};
use tailor_blobs::Creation;
use tailor_domain::dataset::DroppedRow;
use tailor_domain::spec::{LossOn, Objective};
use tailor_domain::{BaseManifest, BaseName, DatasetManifest, DatasetName, Digest, Invalid, Version};

use crate::bases::tokenizer_digests;
use crate::tokenise::{Longest, ShardJob};
use crate::{Datasets, Result};

/// Part of every key: raise it when the same request would give other bytes.
const RECIPE: &str = "shards-2";
/// As in a job's settings.
const MIN_TOKENS: u32 = 8;
const MAX_TOKENS: u32 = 1 << 20;

/// How rows are to be tokenised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub max_tokens: u32,
    pub loss_on: LossOn,
    pub objective: Objective,
}

/// `shards/<sha256 of what decides the bytes>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shards {
    pub train: Digest,
    pub validation: Digest,
    pub train_rows: u64,
    pub train_tokens: u64,
    /// All 0 in a record from before it was counted.
    #[serde(default)]
    pub longest: Longest,
    pub validation_rows: u64,
    pub rows_too_long: u64,
    /// Training rows of which nothing could be learnt, and the first of them.
    pub rows_refused: u64,
    pub refused: Vec<DroppedRow>,
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
    /// [`crate::Error::NotFound`]: no such dataset, version or base. [`crate::Error::Invalid`]: `max_tokens` is outside its
    /// limits, no row is left, or the dataset's kind cannot be learnt from as wanted. [`crate::Error::Base`]: its tokenizer
    /// or chat template is unusable.
    pub async fn prepare_shards(
        &self,
        name: &DatasetName,
        version: Option<Version>,
        base: &BaseName,
        wanted: Wanted,
    ) -> Result<Prepared> {
        let max_tokens = wanted.max_tokens;
        if !(MIN_TOKENS..=MAX_TOKENS).contains(&max_tokens) {
            let problem = format!("{max_tokens} is outside {MIN_TOKENS} to {MAX_TOKENS}");
            return Err(Invalid::new("max_tokens", problem).into());
        }
        let dataset = self.version(name, version).await?;
        let base = self.base(base).await?;
        dataset.kind.check(wanted.objective, wanted.loss_on, base.family)?;
        let key = shards_key(&dataset, &base, wanted);
        if let Some(shards) = self.known_shards(&key).await? {
            return Ok(Prepared { dataset, shards });
        }
        let shards = self.make_shards(&dataset, &base, wanted).await?;
        match self.store.create_json(&key, &shards).await? {
            Creation::Created => {
                tracing::info!(
                    dataset = %dataset.name, version = %dataset.version, base = %base.name, max_tokens,
                    loss_on = %wanted.loss_on, objective = %wanted.objective, refused = shards.rows_refused,
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

    async fn make_shards(&self, dataset: &DatasetManifest, base: &BaseManifest, wanted: Wanted) -> Result<Shards> {
        let builder = self.example_builder(base, &dataset.prompt_template).await?;
        let train_rows = self.fetch_rows(&dataset.train).await?;
        let validation_rows = self.fetch_rows(&dataset.validation).await?;
        let job = ShardJob {
            dataset: dataset.name.to_string(),
            base: base.name.to_string(),
            family: base.family,
            builder,
            wanted,
            folder: self.spool_dir.clone(),
        };
        let (train, validation) = self
            .off_thread(move || Ok((job.train_shard(&train_rows)?, job.validation_shard(&validation_rows)?)))
            .await?;
        if train.rows == 0 {
            return Err(none_left(dataset, wanted, train.too_long, train.refused.first()).into());
        }
        if let Some(row) = validation.refused.first() {
            let (refused, line) = (validation.rows_refused, row.line);
            tracing::warn!(dataset = %dataset.name, refused, line, "held-out rows cannot be asked");
        }
        Ok(Shards {
            train: self.store.put_blob_file(&train.path).await?.digest,
            validation: self.store.put_blob_file(&validation.path).await?.digest,
            train_rows: train.rows,
            train_tokens: train.tokens,
            longest: train.longest,
            validation_rows: validation.rows,
            rows_too_long: train.too_long + validation.too_long,
            rows_refused: train.rows_refused,
            refused: train.refused,
        })
    }
}

fn shards_key(dataset: &DatasetManifest, base: &BaseManifest, wanted: Wanted) -> String {
    let tokenizer: Vec<String> = tokenizer_digests(base).iter().map(ToString::to_string).collect();
    let Wanted { max_tokens, loss_on, objective } = wanted;
    let identity = format!(
        "{RECIPE}\n{}\n{}\n{}\n{max_tokens}\n{loss_on}\n{objective}",
        dataset.digest(),
        base.fingerprint,
        tokenizer.join("\n")
    );
    format!("shards/{}.json", Digest::of(identity.as_bytes()).hex())
}

/// Why nothing is left to train on, and what to change.
fn none_left(dataset: &DatasetManifest, wanted: Wanted, too_long: u64, refused: Option<&DroppedRow>) -> Invalid {
    let (name, rows) = (&dataset.name, dataset.report.rows_train);
    match refused {
        Some(row) if too_long == 0 => {
            let problem = format!(
                "none of the {rows} training rows of dataset {name} can be learnt from; the first, of line {}: {}",
                row.line, row.detail
            );
            Invalid::new("dataset", problem)
        }
        _ => {
            let problem = format!(
                "{} leaves none of the {rows} training rows of dataset {name}; the shortest needs more",
                wanted.max_tokens
            );
            Invalid::new("max_tokens", problem)
        }
    }
}
