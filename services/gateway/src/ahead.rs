//! What is made ready before anybody asks: what was resident when the last process ended, and what aliases come to mean.
//!
//! The list of what is resident lies in the cache folder (`resident.json`), written when it has changed; without it the
//! gateway begins with nothing, and loads what is asked for.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailor_domain::{ErrorCode, Version};
use tailor_pb::registry;
use tailor_serverkit::status::code_of;
use tokio_util::sync::CancellationToken;

use crate::models::Models;

/// How often the list is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// Pause while no registry answers.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    adapter: String,
    version: u64,
    pinned: bool,
    size_bytes: u64,
}

/// Restores, then keeps the list and follows the aliases, until `stop`.
pub async fn attend(models: Arc<Models>, list: PathBuf, stop: CancellationToken) {
    let work = async {
        let listed = read(&list).await;
        restore(&models, &listed).await;
        tokio::join!(keep(&models, &list, listed), follow(&models))
    };
    tokio::select! {
        () = stop.cancelled() => {}
        ((), ()) = work => {}
    }
}

async fn read(list: &PathBuf) -> Vec<Listed> {
    let Ok(bytes) = tokio::fs::read(list).await else { return Vec::new() };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(list = %list.display(), %error, "the list of resident adapters cannot be read; begun anew");
        Vec::new()
    })
}

/// Makes resident what was, the most worth first, as far as there is room.
async fn restore(models: &Arc<Models>, listed: &[Listed]) {
    let mut room = models.device_budget();
    for wanted in listed {
        let Some(left) = room.checked_sub(wanted.size_bytes) else { continue };
        let reference = format!("{}@{}", wanted.adapter, wanted.version);
        let version = loop {
            match models.routes().version(&wanted.adapter, Version(wanted.version)).await {
                Ok(version) => break Some(version),
                Err(status) if code_of(&status) == ErrorCode::Unavailable => tokio::time::sleep(PAUSE).await,
                Err(status) => {
                    tracing::info!(reference, problem = status.message(), "not restored");
                    break None;
                }
            }
        };
        let Some(version) = version else { continue };
        let restored = async {
            // What is worth less must not put away the bases of what is worth more.
            if !models.has_room(&version).await? {
                return Ok(false);
            }
            let model = models.ready("", &version).await?;
            model.lease().await?;
            if let Some(adapter) = model.adapter.as_ref().filter(|_| wanted.pinned) {
                models.pin(&adapter.digest, true)?;
            }
            Ok::<_, crate::Error>(true)
        };
        match restored.await {
            Ok(true) => room = left,
            Ok(false) => tracing::info!(reference, "not restored: its base does not fit beside others"),
            Err(error) => tracing::warn!(reference, %error, "an adapter that was resident cannot be restored"),
        }
    }
}

async fn keep(models: &Models, list: &PathBuf, mut written: Vec<Listed>) {
    loop {
        let resident = models.resident_by_worth().into_iter().map(|entry| Listed {
            adapter: entry.version.name,
            version: entry.version.version.0,
            pinned: entry.pinned,
            size_bytes: entry.size_bytes,
        });
        let now: Vec<_> = resident.collect();
        if now != written {
            match write(list, &now).await {
                Ok(()) => written = now,
                Err(problem) => {
                    tracing::warn!(list = %list.display(), %problem, "the list of resident adapters cannot be written");
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn write(list: &PathBuf, now: &[Listed]) -> std::io::Result<()> {
    if let Some(folder) = list.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let partial = list.with_extension("part");
    tokio::fs::write(&partial, serde_json::to_vec_pretty(now)?).await?;
    tokio::fs::rename(&partial, list).await
}

/// Fetches what aliases come to mean; makes it resident where what they meant before is.
async fn follow(models: &Arc<Models>) {
    let table = models.routes().table();
    let mut changed = table.changed();
    // What aliases mean at the beginning is fetched as it is asked for: there may be very many.
    let mut known: Option<HashSet<String>> = None;
    loop {
        let all = table.all();
        let targets = all.iter().filter_map(|(_, route)| Some(route.target.as_ref()?.digest.clone()));
        let now: HashSet<String> = targets.collect();
        if let Some(known) = &known {
            for (_, route) in &all {
                if let Some(target) = route.target.as_ref().filter(|target| !known.contains(&target.digest)) {
                    fetch(models, target, route.previous.as_ref()).await;
                }
            }
        }
        if table.confirmed_within(Duration::MAX) {
            known = Some(now);
        }
        if changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn fetch(models: &Arc<Models>, target: &registry::AdapterVersion, previous: Option<&registry::AdapterVersion>) {
    let is_in_use = previous.is_some_and(|previous| models.is_resident(&previous.digest));
    let fetched = match is_in_use {
        true => async { models.ready("", target).await?.lease().await.map(drop) }.await,
        false => models.prefetch(target).await,
    };
    if let Err(error) = fetched {
        let (adapter, version) = (&target.adapter, target.version);
        tracing::debug!(adapter, version, %error, "what an alias has come to mean is not fetched ahead");
    }
}
