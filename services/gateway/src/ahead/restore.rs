//! What was there when the process before ended, brought back: bases first, the last used of them first, then the adapters on
//! them. Nothing that is there leaves for it, and what cannot come back is told and left out.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailor_domain::{BaseName, Digest, ErrorCode, Version};

use super::list::List;
use crate::error::{Error, Result};
use crate::models::Models;

/// Pause while no registry answers.
const PAUSE: Duration = Duration::from_secs(1);

/// What is there, as it is written down.
pub struct Lists {
    /// The last used first.
    bases: List<OpenBase>,
    /// The most worth first.
    adapters: List<ResidentAdapter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OpenBase {
    base: BaseName,
    fingerprint: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ResidentAdapter {
    adapter: String,
    version: u64,
    pinned: bool,
    size_bytes: u64,
}

impl Lists {
    /// What the process before has left in its cache folder.
    pub async fn read(cache_dir: &Path) -> Self {
        let bases = List::read(cache_dir.join("bases").join("open.json")).await;
        let adapters = List::read(cache_dir.join("adapters").join("resident.json")).await;
        Self { bases, adapters }
    }

    /// Writes down what is there now.
    pub async fn keep(&mut self, models: &Models) {
        let bases = models.bases.by_use().await.into_iter().map(|(base, fingerprint)| OpenBase { base, fingerprint });
        self.bases.keep(bases.collect()).await;
        let adapters = models.resident_by_worth().into_iter().map(|entry| ResidentAdapter {
            adapter: entry.version.name,
            version: entry.version.version.0,
            pinned: entry.pinned,
            size_bytes: entry.size_bytes,
        });
        self.adapters.keep(adapters.collect()).await;
    }

    /// Brings back what is listed, as far as there is room.
    pub async fn restore(&self, models: &Arc<Models>) {
        let (bases, adapters) = (self.bases.items(), self.adapters.items());
        for (place, wanted) in (0..).zip(bases) {
            let OpenBase { base, fingerprint } = wanted;
            match patiently(move || models.open_again(base, fingerprint, place)).await {
                Ok(()) => tracing::info!(%base, "a base that was open is open again"),
                Err(error) => tracing::warn!(%base, %error, "a base that was open is not opened again"),
            }
        }
        let mut room = models.device_budget();
        // Where the list of bases was lost, an adapter brings its own back.
        for (place, wanted) in (bases.len() as u64..).zip(adapters) {
            let Some(left) = room.checked_sub(wanted.size_bytes) else { continue };
            match patiently(move || wanted.restore(models, place)).await {
                Ok(()) => room = left,
                Err(error) => {
                    let ResidentAdapter { adapter, version, .. } = wanted;
                    tracing::warn!(adapter, version, %error, "an adapter that was resident is not restored");
                }
            }
        }
    }
}

impl ResidentAdapter {
    async fn restore(&self, models: &Arc<Models>, place: u64) -> Result<()> {
        let version = models.routes().version(&self.adapter, Version(self.version)).await;
        let version = version.map_err(Error::service("registry"))?;
        let model = models.ready_again(&version, place).await?;
        model.lease().await?;
        if let Some(adapter) = model.adapter.as_ref().filter(|_| self.pinned) {
            models.pin(&adapter.digest, true)?;
        }
        Ok(())
    }
}

/// Asks again as long as the registry or the store is away.
async fn patiently<F>(ask: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    loop {
        match ask().await {
            Err(error @ (Error::Service { .. } | Error::Store(_) | Error::Told(_)))
                if error.code() == ErrorCode::Unavailable =>
            {
                tracing::debug!(%error, "asked again in a moment");
                tokio::time::sleep(PAUSE).await;
            }
            said => return said,
        }
    }
}
