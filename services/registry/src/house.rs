//! What the settings say about keeping house, and the task that does it by itself.

use std::time::Duration;

use tailor_serverkit::Settings;
use tokio_util::sync::CancellationToken;

use crate::{Reason, Registry};

#[derive(Debug, Clone)]
pub(crate) struct House {
    /// How old a blob must be to be marked, and a mark to be swept.
    pub grace_ms: u64,
    /// How long a deletion can be taken back.
    pub undelete_ms: u64,
    /// 0: no limit.
    pub quota_versions: u64,
    pub quota_bytes: u64,
    /// `None`: only when somebody asks.
    every: Option<Duration>,
}

impl House {
    pub fn of(settings: &Settings) -> Self {
        let registry = &settings.registry;
        Self {
            grace_ms: registry.collect_grace_ms,
            undelete_ms: registry.undelete_ms,
            quota_versions: registry.quota_versions,
            quota_bytes: registry.quota_bytes,
            every: Some(registry.collect_every_ms).filter(|every| *every > 0).map(Duration::from_millis),
        }
    }
}

/// Collects every so often until `stop`. Several registries may do so: of two sweepers one gives way.
pub(crate) async fn keep(registry: Registry, stop: CancellationToken) {
    let Some(every) = registry.house.every else { return };
    let reason = Reason { who: "registry".into(), why: "registry.collect_every_ms".into() };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        if let Err(error) = registry.collect(false, &reason).await {
            tracing::warn!(%error, "the collection broke off; the next one goes on with it");
        }
    }
}
