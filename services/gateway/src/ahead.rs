//! What is made ready before anybody asks: what was there when the last process ended, and what aliases come to mean.
//!
//! What is there is written down in the cache folder when it has changed: the bases that are open (`bases/open.json`) and the
//! adapters on the device (`adapters/resident.json`). Without that the gateway begins with nothing, and loads what is asked for.

mod list;
mod restore;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tailor_pb::registry;
use tokio_util::sync::CancellationToken;

use self::restore::Lists;
use crate::models::Models;
use crate::readiness::Readiness;

/// How often what is there is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Restores, then keeps the lists; follows the aliases; until `stop`.
pub async fn attend(models: Arc<Models>, readiness: Arc<Readiness>, cache_dir: PathBuf, stop: CancellationToken) {
    let following = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow(&models) => {}
        }
    };
    tokio::join!(restore_and_keep(&models, &readiness, cache_dir, &stop), following);
}

async fn restore_and_keep(models: &Arc<Models>, readiness: &Readiness, cache_dir: PathBuf, stop: &CancellationToken) {
    let mut lists = Lists::read(&cache_dir).await;
    let restore = async {
        // What must be there comes first, and shares the device and the disk with nothing.
        readiness.preloaded().await;
        lists.restore(models).await;
    };
    // Until all is back the lists stay as they are: whoever is ended before that has lost nothing.
    tokio::select! {
        () = stop.cancelled() => return,
        () = restore => {}
    }
    loop {
        lists.keep(models).await;
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
    lists.keep(models).await;
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
