//! Whether this gateway can answer now, for health checks (`grpc.health.v1`, `/readyz`): not that it listens, but that an
//! answer would come.
//!
//! It can when the registry has told it what aliases mean, the bases that it must have from the start have made a token each,
//! and no device has been at one piece of work for longer than `gateway.hang_ms`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tailor_domain::{BaseName, ErrorCode};
use tailor_serverkit::Settings;
use tailor_serverkit::server::Hindrances;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::models::Models;

const UNTOLD: &str = "the registry has not said what aliases mean, or too long ago";
/// How often we look.
const EVERY: Duration = Duration::from_millis(100);
/// Pause before a base that could not be loaded is tried again.
const PAUSE: Duration = Duration::from_secs(2);
/// However short aliases may outlive the registry: it confirms them many times a second, and may miss some.
const LEAST_PATIENCE: Duration = Duration::from_secs(2);

pub struct Readiness {
    models: Arc<Models>,
    preload: Vec<BaseName>,
    hang: Duration,
    /// How old the registry's last word may be: until then aliases go on meaning what they last meant.
    patience: Duration,
    /// Why bases that must be there are not.
    missing: Mutex<BTreeMap<BaseName, String>>,
    /// Those of them that what may come later waits for.
    awaited: watch::Sender<BTreeSet<BaseName>>,
    found: watch::Sender<Vec<String>>,
}

impl Readiness {
    /// # Errors
    /// A name in `gateway.preload` that is none.
    pub fn new(models: Arc<Models>, settings: &Settings) -> Result<Self> {
        let gateway = &settings.gateway;
        let preload = gateway.preloaded()?;
        let awaited = watch::Sender::new(preload.iter().cloned().collect());
        let missing = preload.iter().map(|base| (base.clone(), "it is being loaded".to_owned())).collect();
        let found = std::iter::once(UNTOLD.to_owned()).chain(not_there(&missing)).collect();
        Ok(Self {
            models,
            preload,
            hang: Duration::from_millis(gateway.hang_ms),
            patience: Duration::from_millis(gateway.outage_grace_ms.max(gateway.alias_ttl_ms)).max(LEAST_PATIENCE),
            missing: Mutex::new(missing),
            awaited,
            found: watch::Sender::new(found),
        })
    }

    /// What stands in the way now; empty when nothing does.
    pub fn hindrances(&self) -> Hindrances {
        self.found.subscribe()
    }

    /// Loads what must be there and goes on looking, until `stop`.
    pub async fn attend(self: Arc<Self>, stop: CancellationToken) {
        let loading = self.preload.iter().map(|base| self.load(base));
        let looking = async {
            loop {
                let found = self.look().await;
                self.found.send_if_modified(|known| {
                    let changed = *known != found;
                    if changed {
                        *known = found;
                    }
                    changed
                });
                tokio::time::sleep(EVERY).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = looking => {}
            () = async { futures::future::join_all(loading).await; std::future::pending().await } => {}
        }
    }

    /// Loads a base, however long the registry or the store is away.
    async fn load(&self, base: &BaseName) {
        while let Err(error) = self.models.find(base.as_str(), "").await {
            tracing::warn!(%base, %error, "a base that must be there cannot be loaded; trying again");
            self.missing().insert(base.clone(), error.to_string());
            // Who is away may come back. What is wrong otherwise may stay so, and others need not wait for that.
            if error.code() != ErrorCode::Unavailable {
                self.settle(base);
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.missing().remove(base);
        self.settle(base);
    }

    fn settle(&self, base: &BaseName) {
        self.awaited.send_modify(|awaited| {
            awaited.remove(base);
        });
    }

    /// Returns once each base that must be there is, or cannot be as things are.
    pub async fn preloaded(&self) {
        let mut awaited = self.awaited.subscribe();
        // Fails only where the sender is gone, and that is ours.
        let _ = awaited.wait_for(|awaited| awaited.is_empty()).await;
    }

    async fn look(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !self.models.routes().table().confirmed_within(self.patience) {
            found.push(UNTOLD.to_owned());
        }
        found.extend(not_there(&self.missing()));
        found.extend(self.models.fleet().and_then(|fleet| fleet.hindrance()));
        for base in self.models.bases.running().await {
            let Some(engine) = base.device.engine() else { continue };
            let name = &base.manifest.name;
            if engine.has_ended() {
                found.push(format!("the device of base {name} has ended; restart this process"));
            } else if engine.usage().without_progress > self.hang {
                let limit = self.hang.as_secs_f64();
                found.push(format!(
                    "the device of base {name} hangs: no step has ended for {limit} s (gateway.hang_ms)"
                ));
            }
        }
        found
    }

    fn missing(&self) -> std::sync::MutexGuard<'_, BTreeMap<BaseName, String>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_there(missing: &BTreeMap<BaseName, String>) -> impl Iterator<Item = String> {
    missing.iter().map(|(base, why)| format!("base {base} is not there: {why}"))
}
