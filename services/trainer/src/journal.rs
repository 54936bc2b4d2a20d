//! Jobs as they are kept: a spec that never changes, numbered attempts, and a log with one order.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tailor_blobs::{Creation, Store};
use tailor_domain::{JobEvent, JobId, JobSpec, LogEntry, LogKind, Version};

use crate::error::{Error, Result};

/// `jobs/<job>/attempts/<fence>.json`: the number is the fence.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    pub worker: String,
    pub at_ms: u64,
}

/// `jobs/<job>/result.json`: created once, by the attempt that published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub adapter_version: Version,
    pub fence: u64,
}

/// `job-keys/<sha256 of the key>.json`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyRecord {
    pub job: JobId,
    pub spec: JobSpec,
}

#[derive(Debug, Clone)]
pub struct Journal {
    store: Store,
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Journal {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    fn key(job: &JobId, rest: &str) -> String {
        format!("jobs/{job}/{rest}")
    }

    /// Claims an idempotency key; returns what holds it when somebody was first.
    pub async fn claim_key(&self, key: &str, record: &KeyRecord) -> Result<Creation<KeyRecord>> {
        let digest = tailor_domain::Digest::of(key.as_bytes());
        Ok(self.store.create_json(&format!("job-keys/{}.json", digest.hex()), record).await?)
    }

    pub async fn create(&self, job: &JobId, spec: &JobSpec) -> Result<Creation<JobSpec>> {
        Ok(self.store.create_json(&Self::key(job, "spec.json"), spec).await?)
    }

    pub async fn spec(&self, job: &JobId) -> Result<JobSpec> {
        let spec = self.store.find_json(&Self::key(job, "spec.json")).await?;
        spec.ok_or_else(|| Error::NoSuchJob(job.clone()))
    }

    /// All job ids, oldest first.
    pub async fn jobs(&self) -> Result<Vec<JobId>> {
        let children = self.store.list_children("jobs").await?;
        Ok(children.folders.into_iter().filter_map(|name| JobId::try_new(name).ok()).collect())
    }

    /// Begins an attempt; the returned number fences every earlier one.
    pub async fn begin_attempt(&self, job: &JobId, worker: &str) -> Result<u64> {
        let attempt = Attempt { worker: worker.to_owned(), at_ms: now_ms() };
        Ok(self.store.append_numbered(&Self::key(job, "attempts"), |_| attempt.clone()).await?)
    }

    pub async fn newest_attempt(&self, job: &JobId) -> Result<u64> {
        Ok(self.store.last_number(&Self::key(job, "attempts")).await?)
    }

    /// Appends to the job's log and returns the entry's number.
    pub async fn append(&self, job: &JobId, fence: u64, kind: LogKind, message: &str) -> Result<u64> {
        let build = |seq| LogEntry { seq, at_ms: now_ms(), fence, message: message.to_owned(), kind: kind.clone() };
        Ok(self.store.append_numbered(&Self::key(job, "log"), build).await?)
    }

    pub async fn event(&self, job: &JobId, fence: u64, event: JobEvent, message: &str) -> Result<u64> {
        self.append(job, fence, LogKind::State { event }, message).await
    }

    /// The log's entries from `seq` on, in order.
    pub async fn log(&self, job: &JobId, from: u64) -> Result<Vec<LogEntry>> {
        let entries = self.store.read_numbered(&Self::key(job, "log"), from).await?;
        Ok(entries.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Records what the job came to; returns what stands there if another attempt was first.
    pub async fn finish(&self, job: &JobId, outcome: &Outcome) -> Result<Outcome> {
        match self.store.create_json(&Self::key(job, "result.json"), outcome).await? {
            Creation::Created => Ok(outcome.clone()),
            Creation::AlreadyExists(first) => Ok(first),
        }
    }

    pub async fn outcome(&self, job: &JobId) -> Result<Option<Outcome>> {
        Ok(self.store.find_json(&Self::key(job, "result.json")).await?)
    }
}
