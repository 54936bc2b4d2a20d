//! What is stored, by adapter and in all, and the quotas that a publish meets.

use std::collections::{BTreeMap, HashMap};

use tailor_domain::{AdapterName, BaseManifest, Digest};

use crate::{Error, Registry, Result};

/// One adapter's share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdapterUsage {
    pub live: u64,
    pub deleted: u64,
    pub purged: u64,
    /// Weights of what is not purged; the same bytes in two versions count once.
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    pub adapters: BTreeMap<String, AdapterUsage>,
    /// Every blob of the store, whichever service wrote it.
    pub blobs: u64,
    pub size_bytes: u64,
    /// Of these, files of bases.
    pub base_bytes: u64,
    /// Marked by a collection.
    pub waiting_blobs: u64,
    pub waiting_bytes: u64,
}

impl Registry {
    /// # Errors
    /// [`Error::Store`].
    pub async fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for adapter in self.adapter_names().await? {
            let share = self.adapter_usage(&adapter).await?;
            if share != AdapterUsage::default() {
                usage.adapters.insert(adapter.to_string(), share);
            }
        }
        let blobs = self.store.list_blobs().await?;
        usage.blobs = blobs.len() as u64;
        usage.size_bytes = blobs.iter().map(|blob| blob.size_bytes).sum();
        let mut base_files: HashMap<Digest, u64> = HashMap::new();
        for name in self.store.list_children("bases").await?.folders {
            let base: Option<BaseManifest> = self.store.find_json(&format!("bases/{name}/manifest.json")).await?;
            base_files.extend(base.into_iter().flat_map(|base| base.files).map(|file| (file.digest, file.size_bytes)));
        }
        usage.base_bytes = base_files.values().sum();
        if let Some((_, mark)) = self.store.waiting_mark().await? {
            usage.waiting_blobs = mark.candidates.len() as u64;
            usage.waiting_bytes = mark.size_bytes();
        }
        Ok(usage)
    }

    async fn adapter_usage(&self, adapter: &AdapterName) -> Result<AdapterUsage> {
        let life = self.life(adapter).await?;
        let mut weights: HashMap<Digest, u64> = HashMap::new();
        let mut usage = AdapterUsage::default();
        self.each_manifest(adapter, |manifest| {
            let count = match life.of(manifest.version) {
                Some(gone) if gone.purged => {
                    usage.purged += 1;
                    return;
                }
                Some(_) => &mut usage.deleted,
                None => &mut usage.live,
            };
            *count += 1;
            weights.insert(manifest.weights.clone(), manifest.weights_size_bytes);
        })
        .await?;
        usage.size_bytes = weights.values().sum();
        Ok(usage)
    }

    /// Whether another version fits. Publishers that race may all be let in: a quota bounds growth, it is no lock.
    ///
    /// # Errors
    /// [`Error::OverQuota`].
    pub(crate) async fn check_quota(&self, adapter: &AdapterName, more_bytes: u64) -> Result<()> {
        let house = &self.house;
        if house.quota_versions == 0 && house.quota_bytes == 0 {
            return Ok(());
        }
        let over = |what: String, setting: &'static str| Error::OverQuota {
            what: format!("adapter {adapter} {what}"),
            remedy: format!("delete versions (tailor adapter rm) or raise {setting}"),
        };
        let count = self.store.last_number(&crate::versions::versions_prefix(adapter)).await?;
        let live = count - self.life(adapter).await?.count().min(count);
        if house.quota_versions > 0 && live >= house.quota_versions {
            let what = format!("has {live} versions; the limit is {}", house.quota_versions);
            return Err(over(what, "registry.quota_versions"));
        }
        if house.quota_bytes > 0 {
            let used = self.adapter_usage(adapter).await?.size_bytes;
            if used.saturating_add(more_bytes) > house.quota_bytes {
                let what =
                    format!("has {used} bytes and would get {more_bytes} more; the limit is {}", house.quota_bytes);
                return Err(over(what, "registry.quota_bytes"));
            }
        }
        Ok(())
    }
}
