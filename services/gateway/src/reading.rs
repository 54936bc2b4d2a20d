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
    let mut told = BTreeMap::new();
    loop {
        read(&models, &mut told).await;
        tokio::select! {
            () = stop.cancelled() => return read(&models, &mut told).await,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// `told`: the bases that were read last, by fingerprint.
async fn read(models: &Models, told: &mut BTreeMap<String, String>) {
    let engines = &models.meters.engines;
    let running = models.bases.running().await;
    let names = running.iter().map(|base| (base.manifest.fingerprint.to_string(), base.manifest.name.to_string()));
    let now: BTreeMap<String, String> = names.collect();
    let (mut resident, mut sizes) = (BTreeMap::new(), BTreeMap::new());
    // A gauge keeps what it was last told: of a base that has left that there is nothing any more.
    for (fingerprint, name) in told.iter().filter(|(fingerprint, _)| !now.contains_key(*fingerprint)) {
        engines.read(name, fingerprint, EngineReading::default());
        resident.insert(name.clone(), (0, 0));
        sizes.insert(name.clone(), 0);
    }
    for base in &running {
        let Some(engine) = base.device.engine() else { continue };
        let (usage, info) = (engine.usage(), engine.info());
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
        let name = base.manifest.name.to_string();
        engines.read(&name, base.manifest.fingerprint.as_str(), reading);
        *sizes.entry(name.clone()).or_default() += info.resident_bytes + info.kv_bytes;
        // Also of a base without any adapter.
        resident.insert(name, (0, 0));
    }
    engines.bases(running.len() as u64, &sizes);
    drop(running);
    *told = now;
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
    engines.resident(&readings.chain(shelves).collect::<Vec<_>>());
}
