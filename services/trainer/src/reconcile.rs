//! The always-on reaper: whatever the store says is unfinished is offered to the queue again, and where nobody is there to take
//! it, its owner is told.
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
use crate::journal::now_ms;
use crate::matching::class_of;
use crate::waiting::{Word, word};

pub struct Reconciler {
    jobs: Jobs,
    queue: Arc<dyn JobQueue>,
    every: Duration,
    /// A job that waits so long for a worker which is not there is failed; 0: never.
    unclaimed_ms: u64,
    /// Jobs that need no second look.
    finished: HashSet<JobId>,
}

impl Reconciler {
    pub fn new(jobs: Jobs, queue: Arc<dyn JobQueue>, settings: &settings::Trainer) -> Self {
        let every = Duration::from_millis(settings.reconcile_ms);
        Self { jobs, queue, every, unclaimed_ms: settings.unclaimed_ms, finished: HashSet::new() }
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
            let view = self.jobs.view(&job).await?;
            if view.state.is_final() {
                self.finished.insert(job);
                continue;
            }
            if view.state == JobState::Paused {
                continue;
            }
            let Ok(spec) = self.jobs.journal().spec(&job).await else { continue };
            let class = class_of(&spec.recipe);
            if let Some(word) = word(&view, self.jobs.absence(class).await, self.unclaimed_ms, now_ms()) {
                let is_over = matches!(word, Word::GivenUp(_));
                self.jobs.tell(&job, view.fence, word).await?;
                if is_over {
                    continue;
                }
            }
            // No-op while the job is queued or leased.
            if self.queue.enqueue(&job, class, spec.traceparent).await? {
                added += 1;
            }
        }
        Ok(added)
    }
}
