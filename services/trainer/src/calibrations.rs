//! What workers say of their machines: one object for each kind, written once by the first worker on it.

use std::collections::BTreeMap;
use std::path::Path;

use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_plan::{Calibration, Compute};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::journal::now_ms;

const FOLDER: &str = "trainers";
/// Part of every key: raise it when measuring changes.
const RECIPE: &str = "calibration-1";

pub struct Calibrations {
    store: Store,
}

impl Calibrations {
    pub fn of(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// Writes what this machine has, or as much of it as the worker may take, unless the store knows it; with `measure` also
    /// what it does in a second.
    pub async fn introduce(
        &self,
        device: &Device,
        cache_dir: &Path,
        measure: bool,
        memory_limit: Option<u64>,
    ) -> Result<()> {
        let (mut host, threads) = (tailor_train::host(), tailor_train::threads());
        host.memory_bytes = host.memory_bytes.min(memory_limit.unwrap_or(u64::MAX));
        let identity = format!("{RECIPE}\n{}\n{}\n{threads}\n{measure}", host.name, host.memory_bytes);
        let key = format!("{FOLDER}/{}.json", Digest::of(identity.as_bytes()).hex());
        if self.store.find_json::<Calibration>(&key).await?.is_some() {
            return Ok(());
        }
        let scratch = cache_dir.join(format!("calibration-{}", std::process::id()));
        let rates = match measure {
            false => BTreeMap::new(),
            true => {
                let span = tracing::info_span!("trainer.calibrate");
                let folder = scratch.clone();
                let measure = move || {
                    let each = Compute::ALL.map(|compute| {
                        let rates = tailor_train::calibrate(&folder, compute)?;
                        Ok::<_, Error>((compute.as_str().to_owned(), rates))
                    });
                    each.into_iter().collect::<Result<BTreeMap<_, _>>>()
                };
                let measured = device.once("calibration", span, measure).await;
                // Whatever came of it.
                let _ = tokio::fs::remove_dir_all(&scratch).await;
                measured?
            }
        };
        let calibration = Calibration { device: host, threads, rates, measured_at_ms: now_ms() };
        self.store.create_json(&key, &calibration).await?;
        tracing::info!(device = calibration.device.name, "measured, for plans");
        Ok(())
    }

    /// What all workers have said, the measured ones first.
    pub async fn all(&self) -> Result<Vec<Calibration>> {
        let mut all = Vec::new();
        for key in self.store.list(FOLDER).await? {
            all.extend(self.store.find_json::<Calibration>(&key).await?);
        }
        all.sort_by_key(|calibration| calibration.rates.is_empty());
        Ok(all)
    }
}
