//! What the ranks of a version hold, two versions side by side, and a version of fewer ranks.
//!
//! The mathematics is `tailor_peft`'s. It takes a processor for seconds to minutes and as much memory as an adapter in f64, so one
//! request at a time has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tailor_domain::{AdapterManifest, AdapterName, AdapterRef, Digest};
use tailor_pb::registry as pb;
use tailor_peft::{Adapter, Comparison, Compressed, Keep, Limits, Spectrum};
use tailor_serverkit::trust::check_version;
use tokio::sync::OwnedMutexGuard;

use crate::publish::NewVersion;
use crate::{Error, Registry, Result};

/// Whoever has it decomposes adapters; no other does.
pub(crate) type Alone = Arc<OwnedMutexGuard<()>>;

/// What a version's ranks hold.
#[derive(Debug)]
pub struct OfVersion {
    pub manifest: Arc<AdapterManifest>,
    pub spectrum: Spectrum,
    /// What limits the figures; empty for most.
    pub notes: Vec<String>,
}

/// A version that is to be made of another.
#[derive(Debug, Clone)]
pub struct Compression {
    pub from: AdapterRef,
    pub keep: Keep,
    /// Whose next version it becomes; absent: the same adapter's.
    pub name: Option<AdapterName>,
    pub who: String,
}

/// What became of it.
#[derive(Debug)]
pub struct Lighter {
    pub manifest: Arc<AdapterManifest>,
    /// False where the newest version was this one already.
    pub created: bool,
    pub compressed: Compressed,
}

impl Registry {
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Figures`]: it has no low-rank update; [`Error::NotReady`]: it is not signed as it must be.
    pub async fn spectrum(&self, reference: &AdapterRef) -> Result<OfVersion> {
        let alone = self.alone().await;
        let (manifest, adapter) = self.open_version(reference, &alone).await?;
        let notes = adapter.limits_of_figures().map(str::to_owned).into_iter().collect();
        let spectrum = figures(&manifest, &alone, move || adapter.spectrum()).await?;
        Ok(OfVersion { manifest, spectrum, notes })
    }

    /// The first version's layers beside the second's, and what limits the figures.
    ///
    /// # Errors
    /// As [`Self::spectrum`]; [`Error::Figures`] also where they have no layer of one shape in common.
    pub async fn compare(&self, first: &AdapterRef, second: &AdapterRef) -> Result<(Comparison, Vec<String>)> {
        let alone = self.alone().await;
        let (one, adapter) = self.open_version(first, &alone).await?;
        let (two, other) = self.open_version(second, &alone).await?;
        let limits = adapter.limits_of_figures().or(other.limits_of_figures());
        let mut notes: Vec<String> = limits.map(str::to_owned).into_iter().collect();
        if one.base_fingerprint != two.base_fingerprint {
            let (one, two) = (&one.base, &two.base);
            notes.push(format!("the bases differ ({one} and {two}): equal directions may mean other things"));
        }
        let found = figures(&one, &alone, move || adapter.compare(&other)).await?;
        Ok((found, notes))
    }

    /// Publishes a version of lower rank, unless the newest is that one already. Lineage and template are its origin's.
    ///
    /// # Errors
    /// As [`Self::spectrum`] and [`Self::publish`]; [`Error::Figures`] also where nothing is gained or DoRA forbids it.
    pub async fn compress(&self, wanted: &Compression) -> Result<Lighter> {
        let alone = self.alone().await;
        let (parent, original) = self.open_version(&wanted.from, &alone).await?;
        let (keep, before) = (wanted.keep, original.max_rank());
        let (compressed, config, weights) = figures(&parent, &alone, move || {
            let compressed = original.compress(keep)?;
            let (config, weights) = (compressed.adapter.config_to_bytes(), compressed.adapter.weights_to_bytes()?);
            Ok((compressed, config, weights))
        })
        .await?;
        let adapter = wanted.name.clone().unwrap_or_else(|| parent.adapter.clone());
        if let Some(newest) = self.newest_with(&adapter, &Digest::of(&config), &Digest::of(&weights)).await? {
            return Ok(Lighter { manifest: newest, created: false, compressed });
        }
        let mut metrics = BTreeMap::from([("energy_lost".to_owned(), compressed.energy_lost())]);
        metrics.extend(compressed.worst_layer().map(|(_, share)| ("energy_lost_worst_layer".to_owned(), share)));
        let lost = compressed.energy_lost() * 100.0;
        let manifest = self
            .publish(NewVersion {
                adapter,
                base: parent.base.clone(),
                config: self.store.put_blob(config).await?,
                weights: self.store.put_blob(weights).await?,
                prompt_template: parent.prompt_template.clone(),
                dataset: parent.dataset.clone(),
                dataset_digest: parent.dataset_digest.clone(),
                origin: None,
                metrics,
                notes: format!(
                    "compressed from {}@{}: rank {before} → {}; energy lost {lost:.3} %; evaluation not measured",
                    parent.adapter,
                    parent.version,
                    compressed.adapter.max_rank()
                ),
                code_commit: parent.code_commit.clone(),
                license: parent.license.clone(),
                tags: parent.tags.clone(),
                who: wanted.who.clone(),
            })
            .await?;
        Ok(Lighter { manifest, created: true, compressed })
    }

    pub(crate) async fn alone(&self) -> Alone {
        Arc::new(self.figures.clone().lock_owned().await)
    }

    /// A version's files, checked as they are before they are served.
    async fn open_version(&self, reference: &AdapterRef, alone: &Alone) -> Result<(Arc<AdapterManifest>, Adapter)> {
        let manifest = self.trusted(reference).await?;
        let adapter = self.open(&manifest, alone).await?;
        Ok((manifest, adapter))
    }

    /// A version that may be used.
    pub(crate) async fn trusted(&self, reference: &AdapterRef) -> Result<Arc<AdapterManifest>> {
        let manifest = self.resolve(reference).await?.manifest;
        check_version(&pb::AdapterVersion::from(&*manifest), &self.trust.trusted).map_err(|error| Error::NotReady {
            what: error.to_string(),
            remedy: "publish it by a registry whose key is among trust.trusted_keys".into(),
        })?;
        Ok(manifest)
    }

    pub(crate) async fn open(&self, manifest: &AdapterManifest, alone: &Alone) -> Result<Adapter> {
        let limits = Limits::default();
        let config = self.read_small("config_digest", &manifest.config, limits.max_config_bytes).await?;
        let weights = self.read_small("weights_digest", &manifest.weights, limits.max_weights_bytes).await?;
        figures(manifest, alone, move || Adapter::from_bytes(&config, &weights, &limits)).await
    }

    /// The newest live version, if it has these files.
    async fn newest_with(
        &self,
        adapter: &AdapterName,
        config: &Digest,
        weights: &Digest,
    ) -> Result<Option<Arc<AdapterManifest>>> {
        let newest = match self.latest_live(adapter).await {
            Ok(newest) => self.manifest(adapter, newest).await?,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(newest).filter(|newest| newest.config == *config && newest.weights == *weights))
    }
}

/// Off the threads that answer calls. What was begun is held until it ends, even if the caller has gone.
async fn figures<T: Send + 'static>(
    manifest: &AdapterManifest,
    alone: &Alone,
    work: impl FnOnce() -> tailor_peft::Result<T> + Send + 'static,
) -> Result<T> {
    let alone = alone.clone();
    let done = tokio::task::spawn_blocking(move || {
        let _alone = alone;
        work()
    });
    let done = done.await;
    let done = done.map_err(|_| Error::Defect { problem: "the figures of an adapter were not finished".into() })?;
    let version = format!("{}@{}", manifest.adapter, manifest.version);
    done.map_err(|source| Error::Figures { version, source })
}
