//! The always-on reaper: whatever the store says is unfinished is offered to the queue again.
//!
//! This is what makes losing every byte in Redis harmless.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tailor_domain::{JobId, JobState};
use tailor_queue::JobQueue;
use tailor_serverkit::settings;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::jobs::Jobs;
use crate::matching::class_of;

pub struct Reconciler {
    jobs: Jobs,
    queue: Arc<dyn JobQueue>,
    every: Duration,
    /// Jobs that need no second look.
    finished: HashSet<JobId>,
}

impl Reconciler {
    pub fn new(jobs: Jobs, queue: Arc<dyn JobQueue>, settings: &settings::Trainer) -> Self {
        let every = Duration::from_millis(settings.reconcile_ms);
        Self { jobs, queue, every, finished: HashSet::new() }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            match self.pass().await {
                Ok(0) => {}
                Ok(added) => tracing::info!(added, "put unfinished jobs back into the queue"),
                Err(error) => tracing::warn!(%error, "could not look for unfinished jobs; trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.every) => {}
            }
        }
    }

    /// One look at every unfinished job; says how many were put back.
    async fn pass(&mut self) -> Result<usize> {
        let mut added = 0;
        for job in self.jobs.journal().jobs().await? {
            if self.finished.contains(&job) {
                continue;
            }
            let state = self.jobs.view(&job).await?.state;
            if state.is_final() {
                self.finished.insert(job);
                continue;
            }
            if state == JobState::Paused {
                continue;
            }
            let Ok(spec) = self.jobs.journal().spec(&job).await else { continue };
            // No-op while the job is queued or leased.
            if self.queue.enqueue(&job, class_of(&spec), spec.traceparent).await? {
                added += 1;
            }
        }
        Ok(added)
    }
}
