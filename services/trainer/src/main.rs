//! `tailor-trainer`: jobs and their worker as a process of its own. The roles are settings: `trainer.api`, `trainer.worker`.

use std::process::ExitCode;
use std::sync::Arc;

use tailor_domain::Invalid;
use tailor_queue_redis::RedisQueue;
use tailor_serverkit::{boot, store};

fn main() -> ExitCode {
    let about = "Trains adapters on 4-bit bases: leases jobs, trains, evaluates, publishes";
    boot::main("tailor-trainer", 50052, about, |settings, listener, stop| async move {
        let url = settings.queue.url.clone().ok_or_else(|| {
            Invalid::new("settings: queue.url", "not set; give redis://host:port (one process alone: `tailor up`)")
        })?;
        let store = store::open(&settings).await?;
        let queue = Arc::new(RedisQueue::connect(&url).await?);
        let serving = tailor_trainer::start(&settings, store, queue, listener, stop).await?;
        Ok(serving.finished().await?)
    })
}
