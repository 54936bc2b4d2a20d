//! Jobs of which this worker could not hold a rank's part, and others can: it takes no seat in them and gives way to none.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tailor_domain::JobId;
use tokio::time::Instant;

/// Then it is looked at anew: who else is there may have changed.
const REMEMBERED: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, Default)]
pub struct Declined(Mutex<HashMap<JobId, Instant>>);

impl Declined {
    pub fn add(&self, job: &JobId) {
        self.jobs().insert(job.clone(), Instant::now());
    }

    pub fn has(&self, job: &JobId) -> bool {
        self.jobs().contains_key(job)
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, Instant>> {
        // Nothing panics while it is held.
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.retain(|_, since| since.elapsed() < REMEMBERED);
        jobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_job_is_declined_for_a_while() {
        let (declined, job) = (Declined::default(), JobId::from_parts(1_700_000_000_000, 1));
        assert!(!declined.has(&job));
        declined.add(&job);
        tokio::time::advance(REMEMBERED / 2).await;
        assert!(declined.has(&job) && !declined.has(&JobId::from_parts(1_700_000_000_000, 2)));
        tokio::time::advance(REMEMBERED / 2).await;
        assert!(!declined.has(&job), "others may be there by now");
    }
}
