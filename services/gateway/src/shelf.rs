//! Adapters' files on their way to the device: object storage → disk → memory, a budget of bytes for each.
//!
//! What is here is whole: each file's digest was checked when it came from the store and whenever it is read from disk. Whether
//! it is a good adapter is found out on its way to the device. What is larger than an adapter can be is not read at all.

mod disk;
mod file;
mod worth;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::registry;
use tailor_peft::{CONFIG_FILE, Limits, WEIGHTS_FILE};
use tailor_serverkit::meter::Engines;
use tailor_serverkit::{Settings, status};

use self::disk::Disk;
use self::file::File;
pub use self::worth::Worth;
use crate::error::Result;
use crate::gates::Gates;

pub const MEMORY: &str = "memory";
pub const DISK: &str = "disk";

/// An adapter as it was published.
pub struct Files {
    pub config: Bytes,
    pub weights: Bytes,
}

pub struct Shelf {
    store: Store,
    disk: Disk,
    budget: u64,
    /// How large an adapter's files may be.
    limits: Limits,
    memory: Mutex<Memory>,
    gates: Gates,
}

#[derive(Default)]
struct Memory {
    worth: Worth,
    files: HashMap<Digest, Arc<Files>>,
}

impl Shelf {
    pub fn new(settings: &Settings, store: Store) -> Self {
        let gateway = &settings.gateway;
        let disk = Disk::open(settings.cache_dir.join("adapters/blobs"), gateway.adapter_disk_bytes);
        let (budget, limits) = (gateway.adapter_memory_bytes, Limits::default());
        Self { store, disk, budget, limits, memory: Mutex::default(), gates: Gates::default() }
    }

    /// A version's files, from the nearest tier that has them. Callers of one version share one fetch.
    ///
    /// # Errors
    /// The store's; [`Error::TooLarge`](crate::Error::TooLarge).
    pub async fn fetch(&self, version: &registry::AdapterVersion, meter: &Engines) -> Result<Arc<Files>> {
        let digest = Digest::try_new(version.digest.clone())?;
        if let Some(files) = self.held(&digest) {
            return Ok(files);
        }
        let gate = self.gates.at(&digest);
        let _alone = gate.lock().await;
        if let Some(files) = self.held(&digest) {
            return Ok(files);
        }
        let config = File::of(version, CONFIG_FILE, &version.config_digest, self.limits.max_config_bytes);
        let weights = File::of(version, WEIGHTS_FILE, &version.weights_digest, self.limits.max_weights_bytes);
        // Where the registry says already that it is too large, nothing of it is fetched.
        weights.check(version.weights_size_bytes)?;
        let begun = Instant::now();
        let read = async {
            let config = self.blob(&config, meter).await?;
            let weights = self.blob(&weights, meter).await?;
            Ok(Arc::new(Files { config, weights }))
        };
        let read: Result<_> = read.await;
        let error = read.as_ref().err().map(|error: &crate::Error| status::reason(error.code()));
        meter.loaded(MEMORY, begun.elapsed(), error);
        let files = read?;
        let left = self.keep(&digest, &files, begun);
        (0..left).for_each(|_| meter.evicted(MEMORY));
        Ok(files)
    }

    /// It is no good: its place in memory is another's.
    pub fn drop_files(&self, digest: &Digest) {
        let mut memory = self.memory();
        memory.worth.remove(digest);
        memory.files.remove(digest);
    }

    /// Digests of versions in memory.
    pub fn in_memory(&self) -> Vec<Digest> {
        self.memory().worth.digests().cloned().collect()
    }

    /// Versions in memory and files on disk, with their bytes.
    pub fn holds(&self) -> [(&'static str, u64, u64); 2] {
        let (files, bytes) = self.disk.holds();
        let memory = self.memory();
        [(MEMORY, memory.files.len() as u64, memory.worth.total_bytes()), (DISK, files, bytes)]
    }

    async fn blob(&self, file: &File<'_>, meter: &Engines) -> Result<Bytes> {
        let digest = Digest::try_new(file.digest)?;
        if let Some(bytes) = self.disk.get(&digest, file.limit_bytes).await {
            return Ok(bytes.into());
        }
        let begun = Instant::now();
        let fetched = self.store.get_blob_within(&digest, file.limit_bytes).await;
        let fetched = fetched.map_err(|error| file.refused(error));
        let error = fetched.as_ref().err().map(|error| status::reason(error.code()));
        meter.loaded(DISK, begun.elapsed(), error);
        let bytes = fetched?;
        let left = self.disk.put(&digest, &bytes, begun.elapsed()).await;
        (0..left).for_each(|_| meter.evicted(DISK));
        Ok(bytes)
    }

    fn held(&self, digest: &Digest) -> Option<Arc<Files>> {
        let mut memory = self.memory();
        memory.worth.touch(digest);
        memory.files.get(digest).cloned()
    }

    /// Returns how many left.
    fn keep(&self, digest: &Digest, files: &Arc<Files>, begun: Instant) -> u64 {
        let size_bytes = (files.config.len() + files.weights.len()) as u64;
        if size_bytes > self.budget {
            return 0;
        }
        let mut memory = self.memory();
        memory.worth.insert(digest, size_bytes, begun.elapsed());
        memory.files.insert(digest.clone(), files.clone());
        let mut left = 0;
        while memory.worth.total_bytes() > self.budget
            && let Some(least) = memory.worth.least(|other| other != digest)
        {
            memory.worth.evict(&least);
            memory.files.remove(&least);
            left += 1;
        }
        left
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
