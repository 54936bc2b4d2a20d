//! Publishing: check against the base, then take the next number, exactly once for each job.
//!
//! A version is one create-if-absent of `versions/<n>.json`, and that is the only moment of decision. Whoever wants to
//! create number n has read every version from its job's claim up to n−1 and found none of its own job among them; when
//! the create is lost, the version that won is looked at in the same way. Versions never change, so two versions of one
//! job would need one of two creators to have overlooked the other's: there is none, and no gap either.
//!
//! The claim, `by-job/<job>.json`, is created first and says after which number to look. It only bounds the search: it
//! promises nothing, so a crash between claim and version leaves a claim that the next attempt takes up, and a crash
//! after the version leaves a version that the next attempt finds. Beside it `by-job/<job>/version.json` says which version
//! it became, once it has: that ends the search at once, and is a hint as well.
//!
//! The fence is looked at twice, before the adapter is read and after, because reading may take as long as a lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tailor_blobs::{Creation, numbered_key};
use tailor_domain::{AdapterManifest, AdapterName, BaseManifest, BaseName, Digest, JobId, Version};
use tailor_peft::{Adapter, Limits};
use tailor_trust::provenance;

use crate::bases::{CHAT_TEMPLATES, TOKENIZER};
use crate::versions::versions_prefix;
use crate::{Error, Registry, Result};

/// As many as a key's digits can tell apart.
const MAX_VERSIONS: u64 = 99_999_999;

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
    pub code_commit: String,
    pub license: String,
    pub tags: BTreeSet<String>,
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

/// `adapters/<name>/by-job/<job>/version.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Became {
    version: u64,
}

impl Registry {
    /// Publishes the next version, or returns the one that the job has published.
    ///
    /// # Errors
    /// [`Error::NotFound`]: no such base. [`Error::NotReady`]: a blob was not uploaded, or the job has no such attempt.
    /// [`Error::Superseded`]: a newer attempt exists. [`Error::Adapter`]: it is unsound or does not fit the base.
    pub async fn publish(&self, new: NewVersion) -> Result<Arc<AdapterManifest>> {
        let base = self.base(&new.base).await?;
        let claim = match &new.origin {
            None => None,
            Some(origin) => {
                if let Some(published) = self.answered_before(&new.adapter, origin).await? {
                    return Ok(published);
                }
                self.check_fence(origin).await?;
                let claim = self.claim(&new.adapter, &origin.job).await?;
                if let (_, Some(published)) = self.published(&new.adapter, &origin.job, &claim).await? {
                    self.note_version(&new.adapter, &origin.job, published.version).await;
                    return Ok(published);
                }
                Some(claim)
            }
        };
        let (weights_size_bytes, remarks) = self.check_adapter(&new, &base).await?;
        self.check_quota(&new.adapter, weights_size_bytes).await?;
        let tokenizer = base.file(TOKENIZER).map(|file| file.digest.clone()).ok_or_else(|| Error::Base {
            base: base.name.to_string(),
            file: TOKENIZER.into(),
            problem: "it is missing".into(),
        })?;
        let build = |version: u64| {
            self.signed(AdapterManifest {
                adapter: new.adapter.clone(),
                version: Version(version),
                weights: new.weights.clone(),
                weights_size_bytes,
                config: new.config.clone(),
                tokenizer: tokenizer.clone(),
                chat_template: CHAT_TEMPLATES.iter().find_map(|name| base.file(name)).map(|file| file.digest.clone()),
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
                code_commit: new.code_commit.clone(),
                license: new.license.clone(),
                tags: new.tags.clone(),
                published_by: new.who.clone(),
                attestation: None,
                created_at_ms: (self.clock)(),
            })
        };
        let manifest = match (&new.origin, claim) {
            (Some(origin), Some(claim)) => {
                self.hold(&new).await?;
                self.check_fence(origin).await?;
                let manifest = Arc::new(self.append_once(&new.adapter, &origin.job, &claim, build).await?);
                self.note_version(&new.adapter, &origin.job, manifest.version).await;
                manifest
            }
            (None, _) | (_, None) => {
                self.hold(&new).await?;
                let newest = self.store.last_number(&versions_prefix(&new.adapter)).await?;
                Arc::new(self.take_number(&new.adapter, newest + 1, None, build).await?)
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

    /// The version that this very attempt has published: its answer was lost, and the caller asks again. Here no fence
    /// counts, for the attempt was the newest when it published.
    async fn answered_before(
        &self,
        adapter: &AdapterName,
        Origin { job, fence }: &Origin,
    ) -> Result<Option<Arc<AdapterManifest>>> {
        let Some(Became { version }) = self.store.find_json(&became_key(adapter, job)).await? else { return Ok(None) };
        let manifest = self.manifest(adapter, Version(version)).await?;
        Ok(Some(manifest).filter(|manifest| manifest.job.as_ref() == Some(job) && manifest.fence == *fence))
    }

    /// Checking may take longer than a collection's grace period: the blobs are looked at again before they are named.
    async fn hold(&self, new: &NewVersion) -> Result<()> {
        self.require_blob("config_digest", &new.config).await?;
        self.require_blob("weights_digest", &new.weights).await?;
        Ok(())
    }

    /// Best effort: without it the next search takes longer.
    async fn note_version(&self, adapter: &AdapterName, job: &JobId, version: Version) {
        let noted = self.store.create_json(&became_key(adapter, job), &Became { version: version.0 }).await;
        if let Err(error) = noted {
            tracing::warn!(%adapter, %job, %version, %error, "could not note which version the job became");
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
    ) -> Result<(u64, Option<Arc<AdapterManifest>>)> {
        if let Some(Became { version }) = self.store.find_json(&became_key(adapter, job)).await? {
            let manifest = self.manifest(adapter, Version(version)).await?;
            if manifest.job.as_ref() == Some(job) {
                return Ok((version, Some(manifest)));
            }
        }
        let since: Vec<(u64, AdapterManifest)> =
            self.store.read_numbered(&versions_prefix(adapter), claim.after + 1).await?;
        let newest = since.last().map_or(claim.after, |(number, _)| *number);
        let own = since.into_iter().map(|(_, manifest)| manifest).find(|manifest| manifest.job.as_ref() == Some(job));
        Ok((newest, own.map(Arc::new)))
    }

    async fn append_once(
        &self,
        adapter: &AdapterName,
        job: &JobId,
        claim: &Claim,
        build: impl Fn(u64) -> Result<AdapterManifest>,
    ) -> Result<AdapterManifest> {
        // Read again: checking the adapter took a while.
        let (newest, own) = self.published(adapter, job, claim).await?;
        if let Some(published) = own {
            return Ok(AdapterManifest::clone(&published));
        }
        self.take_number(adapter, newest + 1, Some(job), build).await
    }

    /// Creates the version under the next free number, unless one that is met on the way is of the same job.
    async fn take_number(
        &self,
        adapter: &AdapterName,
        mut number: u64,
        job: Option<&JobId>,
        build: impl Fn(u64) -> Result<AdapterManifest>,
    ) -> Result<AdapterManifest> {
        loop {
            if number > MAX_VERSIONS {
                return Err(Error::OverQuota {
                    what: format!("adapter {adapter} has {MAX_VERSIONS} versions, and more have no number"),
                    remedy: "publish under another name".into(),
                });
            }
            let manifest = build(number)?;
            let key = numbered_key(&versions_prefix(adapter), number);
            match self.store.create_json(&key, &manifest).await? {
                Creation::Created => {
                    self.note("publish", &manifest.published_by, &manifest.notes, &key, &manifest).await;
                    return Ok(manifest);
                }
                Creation::AlreadyExists(winner) if job.is_some() && winner.job.as_ref() == job => return Ok(winner),
                Creation::AlreadyExists(_) => number += 1,
            }
        }
    }

    fn signed(&self, mut manifest: AdapterManifest) -> Result<AdapterManifest> {
        if let Some(key) = &self.trust.own {
            let signed = provenance(key, &manifest).map_err(|problem| Error::Defect { problem })?;
            manifest.attestation = Some(signed);
        }
        Ok(manifest)
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

fn became_key(adapter: &AdapterName, job: &JobId) -> String {
    format!("adapters/{adapter}/by-job/{job}/version.json")
}

fn with_remarks(notes: &str, remarks: &[String]) -> String {
    let given = Some(notes).filter(|notes| !notes.is_empty());
    given.into_iter().chain(remarks.iter().map(String::as_str)).collect::<Vec<_>>().join("; ")
}
