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

use crate::error::{Error, Result};
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
    /// Jobs that could not be looked at, which is said once.
    unreadable: HashSet<JobId>,
}

impl Reconciler {
    pub fn new(jobs: Jobs, queue: Arc<dyn JobQueue>, settings: &settings::Trainer) -> Self {
        let every = Duration::from_millis(settings.reconcile_ms);
        let (finished, unreadable) = (HashSet::new(), HashSet::new());
        Self { jobs, queue, every, unclaimed_ms: settings.unclaimed_ms, finished, unreadable }
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
            match self.look_at(&job).await {
                Ok(was_added) => added += usize::from(was_added),
                // Store or queue are away, for the jobs behind it too.
                Err(error) if error.retryable() => return Err(error),
                Err(error) if self.unreadable.insert(job.clone()) => {
                    tracing::error!(%job, %error, "the job cannot be looked at and is left as it is");
                }
                Err(_) => {}
            }
        }
        Ok(added)
    }

    /// Whether the job was put back.
    async fn look_at(&mut self, job: &JobId) -> Result<bool> {
        let view = self.jobs.view(job).await?;
        if view.state.is_final() {
            self.finished.insert(job.clone());
            return Ok(false);
        }
        if view.state == JobState::Paused {
            return Ok(false);
        }
        let spec = match self.jobs.journal().spec(job).await {
            Ok(spec) => spec,
            // Its creation was cut short, or is under way.
            Err(Error::NoSuchJob(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let class = class_of(&spec.recipe);
        if let Some(word) = word(&view, self.jobs.absence(class).await, self.unclaimed_ms, now_ms()) {
            let is_over = matches!(word, Word::GivenUp(_));
            self.jobs.tell(job, view.fence, word).await?;
            if is_over {
                return Ok(false);
            }
        }
        // No-op while the job is queued or leased.
        Ok(self.queue.enqueue(job, class, spec.traceparent).await?)
    }
}

#[cfg(test)]
mod tests {
    use tailor_blobs::{Store, numbered_key};
    use tailor_domain::LogKind;
    use tailor_queue::{Depth, InProcessQueue};
    use tailor_serverkit::Settings;

    use super::*;
    use crate::attempt::Clients;
    use crate::fixtures::spec;
    use crate::journal::Journal;

    #[tokio::test]
    async fn a_job_whose_log_is_damaged_keeps_no_other_from_the_queue() {
        let (store, queue, settings) = (Store::memory(), Arc::new(InProcessQueue::new()), Settings::default());
        let (journal, clients) = (Journal::new(store.clone()), Clients::connect(&settings).expect("addresses"));
        let jobs = Jobs::new(journal.clone(), store.clone(), queue.clone(), clients, &settings.trainer);
        let [damaged, sound, cut_short] = [1, 2, 3].map(|number| JobId::from_parts(1_700_000_000_000, number));
        for job in [&damaged, &sound] {
            assert!(journal.create(job, &spec()).await.expect("stored").is_created());
        }
        let key = numbered_key(&format!("jobs/{damaged}/log"), 1);
        assert!(store.create_raw(&key, b"{".as_slice()).await.expect("stored").is_none());
        journal.append(&cut_short, 0, LogKind::Note, "of a job without a spec").await.expect("stored");
        let mut reconciler = Reconciler::new(jobs, queue.clone(), &settings.trainer);
        assert_eq!(reconciler.pass().await.expect("the store is there"), 1);
        assert_eq!(reconciler.pass().await.expect("the store is there"), 0, "it is queued");
        assert_eq!(queue.depth().await.expect("asked"), Depth { queued: 1, leased: 0 });
    }
}
