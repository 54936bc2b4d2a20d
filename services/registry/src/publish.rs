//! Publishing: check against the base, then take the next number, exactly once for each job.
//!
//! A version is one create-if-absent of `versions/<n>.json`, and that is the only moment of decision. Whoever wants to
//! create number n has read every version from its job's claim up to n−1 and found none of its own job among them; when
//! the create is lost, the version that won is looked at in the same way. Versions never change, so two versions of one
//! job would need one of two creators to have overlooked the other's: there is none, and no gap either.
//!
//! The claim, `by-job/<job>.json`, is created first and says after which number to look. It only bounds the search: it
//! promises nothing, so a crash between claim and version leaves a claim that the next attempt takes up, and a crash
//! after the version leaves a version that the next attempt finds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tailor_blobs::{Creation, numbered_key};
use tailor_domain::{AdapterManifest, AdapterName, BaseManifest, BaseName, Digest, Invalid, JobId, Version};
use tailor_peft::{Adapter, Limits};

use crate::bases::TOKENIZER;
use crate::versions::versions_prefix;
use crate::{Error, Registry, Result};

/// An adapter that is to become a version.
#[derive(Debug, Clone)]
pub struct NewVersion {
    pub adapter: AdapterName,
    pub base: BaseName,
    pub config: Digest,
    pub weights: Digest,
    pub prompt_template: String,
    pub dataset: Option<String>,
    pub dataset_digest: Option<Digest>,
    /// Absent for an import.
    pub origin: Option<Origin>,
    pub metrics: BTreeMap<String, f64>,
    pub notes: String,
    /// Who publishes.
    pub who: String,
}

/// The job that trained an adapter, and which attempt of it is publishing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub job: JobId,
    pub fence: u64,
}

/// `adapters/<name>/by-job/<job>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Claim {
    /// The newest version when the job first came to publish: its own has a higher number.
    after: u64,
}

impl Registry {
    /// Publishes the next version, or returns the one that the job has published.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such base. [`Error::NotReady`]: a blob was not uploaded, or the job has no such attempt.
    /// [`Error::Superseded`]: a newer attempt exists. [`Error::Adapter`]: it is unsound or does not fit the base.
    pub async fn publish(&self, new: NewVersion) -> Result<AdapterManifest> {
        let base = self.base(&new.base).await?;
        let claim = match &new.origin {
            None => None,
            Some(origin) => {
                self.check_fence(origin).await?;
                let claim = self.claim(&new.adapter, &origin.job).await?;
                if let (_, Some(published)) = self.published(&new.adapter, &origin.job, &claim).await? {
                    return Ok(published);
                }
                Some(claim)
            }
        };
        let (weights_size_bytes, remarks) = self.check_adapter(&new, &base).await?;
        let tokenizer = base.file(TOKENIZER).map(|file| file.digest.clone()).ok_or_else(|| Error::Base {
            base: base.name.to_string(),
            file: TOKENIZER.into(),
            problem: "it is missing".into(),
        })?;
        let build = |version: u64| AdapterManifest {
            adapter: new.adapter.clone(),
            version: Version(version),
            weights: new.weights.clone(),
            weights_size_bytes,
            config: new.config.clone(),
            tokenizer: tokenizer.clone(),
            base: base.name.clone(),
            base_fingerprint: base.fingerprint.clone(),
            quant: base.quant,
            prompt_template: new.prompt_template.clone(),
            dataset: new.dataset.clone(),
            dataset_digest: new.dataset_digest.clone(),
            job: new.origin.as_ref().map(|origin| origin.job.clone()),
            fence: new.origin.as_ref().map_or(0, |origin| origin.fence),
            metrics: new.metrics.clone(),
            notes: with_remarks(&new.notes, &remarks),
            published_by: new.who.clone(),
            created_at_ms: (self.clock)(),
        };
        let manifest = match (&new.origin, claim) {
            (Some(origin), Some(claim)) => self.append_once(&new.adapter, &origin.job, &claim, build).await?,
            (None, _) | (_, None) => {
                let number = self.store.append_numbered(&versions_prefix(&new.adapter), build).await?;
                self.manifest(&new.adapter, Version(number)).await?
            }
        };
        tracing::info!(adapter = %manifest.adapter, version = %manifest.version, digest = %manifest.digest(), "published");
        Ok(manifest)
    }

    async fn check_fence(&self, Origin { job, fence }: &Origin) -> Result<()> {
        let newest = self.store.last_number(&format!("jobs/{job}/attempts")).await?;
        match fence.cmp(&newest) {
            std::cmp::Ordering::Equal if newest > 0 => Ok(()),
            std::cmp::Ordering::Less => Err(Error::Superseded {
                what: format!("attempt {fence} of job {job} may not publish: attempt {newest} took over"),
                remedy: "stop; the newer attempt publishes".into(),
            }),
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => Err(Error::NotReady {
                what: format!("attempt {fence} of job {job} is not on record; the newest is {newest}"),
                remedy: "record the attempt before publishing".into(),
            }),
        }
    }

    async fn claim(&self, adapter: &AdapterName, job: &JobId) -> Result<Claim> {
        let key = format!("adapters/{adapter}/by-job/{job}.json");
        if let Some(claim) = self.store.find_json(&key).await? {
            return Ok(claim);
        }
        let claim = Claim { after: self.store.last_number(&versions_prefix(adapter)).await? };
        match self.store.create_json(&key, &claim).await? {
            Creation::Created => Ok(claim),
            Creation::AlreadyExists(earlier) => Ok(earlier),
        }
    }

    /// The newest number, and the job's version if there is one.
    async fn published(
        &self,
        adapter: &AdapterName,
        job: &JobId,
        claim: &Claim,
    ) -> Result<(u64, Option<AdapterManifest>)> {
        let since: Vec<(u64, AdapterManifest)> =
            self.store.read_numbered(&versions_prefix(adapter), claim.after + 1).await?;
        let newest = since.last().map_or(claim.after, |(number, _)| *number);
        let own = since.into_iter().map(|(_, manifest)| manifest).find(|manifest| manifest.job.as_ref() == Some(job));
        Ok((newest, own))
    }

    async fn append_once(
        &self,
        adapter: &AdapterName,
        job: &JobId,
        claim: &Claim,
        build: impl Fn(u64) -> AdapterManifest,
    ) -> Result<AdapterManifest> {
        // Read again: checking the adapter took a while.
        let (newest, own) = self.published(adapter, job, claim).await?;
        if let Some(published) = own {
            return Ok(published);
        }
        let mut number = newest + 1;
        loop {
            let manifest = build(number);
            match self.store.create_json(&numbered_key(&versions_prefix(adapter), number), &manifest).await? {
                Creation::Created => return Ok(manifest),
                Creation::AlreadyExists(winner) if winner.job.as_ref() == Some(job) => return Ok(winner),
                Creation::AlreadyExists(_) => number += 1,
            }
        }
    }

    /// Reads and checks both files. Returns the weights' size and what servers elsewhere may not take.
    async fn check_adapter(&self, new: &NewVersion, base: &BaseManifest) -> Result<(u64, Vec<String>)> {
        let limits = Limits::default();
        let config = self.read_small("config_digest", &new.config, limits.max_config_bytes).await?;
        let weights = self.read_small("weights_digest", &new.weights, limits.max_weights_bytes).await?;
        let shapes = self.layers.of(&self.store, base).await?;
        let size_bytes = weights.len() as u64;
        let check = move || {
            let adapter = Adapter::from_bytes(&config, &weights, &limits)?;
            adapter.check_against(&shapes)?;
            Ok(adapter.config().portability_notes())
        };
        let checked = tokio::task::spawn_blocking(check)
            .await
            .map_err(|_| Error::BrokenOff { problem: "checking the adapter was stopped".into() })?;
        let remarks = checked.map_err(|source| Error::Adapter { adapter: new.adapter.to_string(), source })?;
        Ok((size_bytes, remarks))
    }
}

fn with_remarks(notes: &str, remarks: &[String]) -> String {
    let given = Some(notes).filter(|notes| !notes.is_empty());
    given.into_iter().chain(remarks.iter().map(String::as_str)).collect::<Vec<_>>().join("; ")
}

/// What a caller says about an adapter, before anything is read.
///
/// # Errors
/// A template without `{input}`, a metric that is no number, notes or names that are too long.
pub fn check_words(new: &NewVersion) -> Result<(), Invalid> {
    const MAX_WORDS_BYTES: usize = 16 << 10;
    const MAX_METRICS: usize = 100;
    if !new.prompt_template.contains("{input}") {
        let problem = format!("{:?} has no {{input}}, so every prompt would be the same", new.prompt_template);
        return Err(Invalid::new("prompt_template", problem));
    }
    let words = [("prompt_template", &new.prompt_template), ("notes", &new.notes), ("who", &new.who)];
    for (field, words) in words {
        if words.len() > MAX_WORDS_BYTES {
            return Err(Invalid::new(field, format!("{} bytes; the limit is {MAX_WORDS_BYTES}", words.len())));
        }
    }
    if new.metrics.len() > MAX_METRICS {
        return Err(Invalid::new("metrics", format!("{} metrics; the limit is {MAX_METRICS}", new.metrics.len())));
    }
    match new.metrics.iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(Invalid::new(format!("metrics.{name}"), format!("{value} is no finite number"))),
        None => Ok(()),
    }
}
