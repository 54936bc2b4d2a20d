//! Reads the engines once a second for whoever watches over OTLP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tailor_serverkit::meter::{EngineReading, ResidentReading};
use tokio_util::sync::CancellationToken;

use crate::models::Models;

const EVERY: Duration = Duration::from_secs(1);
/// Where adapters are: on the device, which on a CPU is the process' memory.
pub const DEVICE: &str = "device";

/// Until `stop`, and once more then, so that the last counts are sent too.
pub async fn attend(models: Arc<Models>, stop: CancellationToken) {
    loop {
        read(&models).await;
        tokio::select! {
            () = stop.cancelled() => return read(&models).await,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn read(models: &Models) {
    let mut resident = BTreeMap::new();
    for (manifest, engine) in models.bases.running().await {
        let usage = engine.usage();
        let reading = EngineReading {
            running: usage.running as u64,
            waiting: usage.waiting as u64,
            waiting_tokens: usage.waiting_tokens as u64,
            kv_blocks: usage.kv_blocks as u64,
            kv_blocks_held: usage.kv_blocks_held as u64,
            steps: usage.steps,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            made_tokens: usage.made_tokens,
        };
        let name = manifest.name.to_string();
        models.meters.engines.read(&name, manifest.fingerprint.as_str(), reading);
        // Also of a base without any adapter: a gauge keeps what it was last told.
        resident.insert(name, (0, 0));
    }
    for entry in models.resident() {
        let (adapters, bytes) = resident.entry(entry.base.to_string()).or_default();
        *adapters += 1;
        *bytes += entry.size_bytes;
    }
    let readings =
        resident.into_iter().map(|(base, (adapters, bytes))| ResidentReading { base, tier: DEVICE, adapters, bytes });
    // Files are of whatever base.
    let shelves =
        models.shelves().map(|(tier, adapters, bytes)| ResidentReading { base: String::new(), tier, adapters, bytes });
    models.meters.engines.resident(&readings.chain(shelves).collect::<Vec<_>>());
}
