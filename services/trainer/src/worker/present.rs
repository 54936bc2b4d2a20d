//! Saying that this worker is there, also where that could not be said at first.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::calibrations::{Calibrations, Presence};
use crate::device::Device;
use crate::error::Result;

/// Between two tries to say so for the first time.
const AGAIN: Duration = Duration::from_secs(30);

/// Says it until `stop`, and then goodbye. `first` is what became of the first try; those after it measure nothing, since jobs run
/// by now.
pub async fn stay(
    calibrations: Calibrations,
    device: Device,
    cache_dir: PathBuf,
    memory_limit: Option<u64>,
    first: Result<Presence>,
    stop: CancellationToken,
) {
    let mut present = first;
    loop {
        match present {
            Ok(presence) => return presence.keep(stop).await,
            Err(error) => {
                tracing::warn!(%error, "cannot say that this worker is there: no job is planned for it; trying again")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
        present = calibrations.introduce(&device, &cache_dir, false, memory_limit).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tailor_blobs::Store;
    use tailor_testkit::FlakyStore;

    use super::*;
    use crate::journal::now_ms;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_could_not_say_that_it_is_there_says_so_once_the_store_is() {
        let (backend, faults) = FlakyStore::memory();
        let calibrations = Calibrations::of(&Store::over(backend, "memory://"));
        let device = Device::start("tailor-device-test").expect("a thread");
        let here = Path::new(".");
        faults.cut();
        let first = calibrations.introduce(&device, here, false, None).await;
        assert!(first.is_err(), "the store is away");
        let stop = CancellationToken::new();
        let staying = stay(calibrations.clone(), device, here.to_owned(), None, first, stop.clone());
        let staying = tokio::spawn(staying);
        tokio::time::sleep(AGAIN * 3 / 2).await;
        faults.heal();
        tokio::time::sleep(AGAIN).await;
        assert_eq!(calibrations.there(now_ms()).await.expect("read").len(), 1);
        stop.cancel();
        staying.await.expect("ends");
        assert!(calibrations.there(now_ms()).await.expect("read").is_empty(), "it said goodbye");
    }
}
