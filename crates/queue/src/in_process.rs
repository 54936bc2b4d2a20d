//! The queue for one process: a list, a map of leases, and tokio's clock.
//!
//! Leases that ran out are noticed by the next call, or by a waiting `lease`, which wakes at the nearest deadline; so no
//! background task is needed. Time is `tokio::time`, so tests pause it.

mod calls;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tailor_domain::JobId;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::{Class, Depth, Error, JobQueue, Lease, Result, Seat, Standing};
use calls::Calls;

/// Notifications kept for a slow waiter; one that falls further behind is simply woken.
const NOTIFICATIONS_KEPT: usize = 256;

/// A [`JobQueue`] inside one process. It forgets everything when it is dropped.
pub struct InProcessQueue {
    state: Mutex<State>,
    /// Signalled whenever a job joins the line.
    job_came: Notify,
    changed: broadcast::Sender<JobId>,
}

#[derive(Default)]
struct State {
    line: VecDeque<JobId>,
    /// Every job in the queue, queued or leased.
    jobs: HashMap<JobId, Entry>,
    /// One counter for all jobs, so an epoch is never used twice, even for a job that left and came back.
    last_epoch: u64,
    calls: Calls,
}

struct Entry {
    class: Class,
    trace: Option<String>,
    held: Option<Held>,
}

struct Held {
    epoch: u64,
    deadline: Instant,
}

impl InProcessQueue {
    pub fn new() -> Self {
        Self { state: Mutex::default(), job_came: Notify::new(), changed: broadcast::Sender::new(NOTIFICATIONS_KEPT) }
    }

    /// The state, with leases that ran out already back in line.
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held leaves the maps usable: every change under it is complete or absent.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let expired = state.requeue_expired(Instant::now());
        if expired > 0 {
            self.job_came.notify_waiters();
        }
        state
    }
}

impl Default for InProcessQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InProcessQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessQueue").finish_non_exhaustive()
    }
}

impl State {
    fn requeue_expired(&mut self, now: Instant) -> usize {
        let mut expired: Vec<(Instant, JobId)> = Vec::new();
        for (job, entry) in &mut self.jobs {
            if let Some(deadline) = entry.held.as_ref().map(|held| held.deadline).filter(|deadline| *deadline <= now) {
                entry.held = None;
                self.calls.end(job);
                expired.push((deadline, job.clone()));
            }
        }
        expired.sort();
        let count = expired.len();
        self.line.extend(expired.into_iter().map(|(_, job)| job));
        count
    }

    fn nearest_deadline(&self) -> Option<Instant> {
        self.jobs.values().filter_map(|entry| entry.held.as_ref()).map(|held| held.deadline).min()
    }

    fn take(&mut self, worker: &str, class: Class, ttl: Duration, now: Instant) -> Option<Lease> {
        let can_run = |job: &JobId| self.jobs.get(job).is_some_and(|entry| entry.class <= class);
        let at = self.line.iter().position(can_run)?;
        let job = self.line.remove(at)?;
        let entry = self.jobs.get_mut(&job)?;
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        entry.held = Some(Held { epoch, deadline: now + ttl });
        let (worker, class, trace) = (worker.to_owned(), entry.class, entry.trace.clone());
        Some(Lease { job, epoch, worker, class, ttl, trace })
    }

    fn held(&mut self, lease: &Lease) -> Result<&mut Held> {
        self.jobs
            .get_mut(&lease.job)
            .and_then(|entry| entry.held.as_mut())
            .filter(|held| held.epoch == lease.epoch)
            .ok_or_else(|| Error::LeaseLost { job: lease.job.clone(), epoch: lease.epoch })
    }
}

#[async_trait]
impl JobQueue for InProcessQueue {
    async fn enqueue(&self, job: &JobId, class: Class, trace: Option<String>) -> Result<bool> {
        let mut state = self.state();
        if state.jobs.contains_key(job) {
            return Ok(false);
        }
        state.jobs.insert(job.clone(), Entry { class, trace, held: None });
        state.line.push_back(job.clone());
        drop(state);
        self.job_came.notify_waiters();
        Ok(true)
    }

    async fn lease(&self, worker: &str, class: Class, ttl: Duration, wait: Duration) -> Result<Option<Lease>> {
        let give_up_at = Instant::now() + wait;
        loop {
            // Listen before looking, so that a job that comes in between is not missed.
            let came = self.job_came.notified();
            tokio::pin!(came);
            came.as_mut().enable();

            let now = Instant::now();
            let nearest_deadline = {
                let mut state = self.state();
                if let Some(lease) = state.take(worker, class, ttl, now) {
                    return Ok(Some(lease));
                }
                state.nearest_deadline()
            };
            if now >= give_up_at {
                return Ok(None);
            }
            let wake_at = nearest_deadline.map_or(give_up_at, |deadline| deadline.min(give_up_at));
            tokio::select! {
                () = came => {}
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
    }

    async fn heartbeat(&self, lease: &Lease) -> Result<()> {
        self.state().held(lease)?.deadline = Instant::now() + lease.ttl;
        Ok(())
    }

    async fn ack(&self, lease: &Lease) -> Result<()> {
        let mut state = self.state();
        state.held(lease)?;
        state.jobs.remove(&lease.job);
        state.calls.hang_up(lease);
        Ok(())
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        let mut state = self.state();
        state.held(lease)?;
        if let Some(entry) = state.jobs.get_mut(&lease.job) {
            entry.held = None;
        }
        state.calls.hang_up(lease);
        state.line.push_back(lease.job.clone());
        drop(state);
        self.job_came.notify_waiters();
        Ok(())
    }

    async fn call(&self, lease: &Lease, class: Class, seats: u32, address: &str) -> Result<Standing> {
        let mut state = self.state();
        state.held(lease)?;
        Ok(state.calls.call(lease, class, seats, address, Instant::now()))
    }

    async fn hang_up(&self, lease: &Lease) -> Result<()> {
        self.state().calls.hang_up(lease);
        Ok(())
    }

    async fn calls(&self, class: Class) -> Result<Vec<JobId>> {
        Ok(self.state().calls.open(class, Instant::now()))
    }

    async fn take_seat(&self, worker: &str, job: &JobId, ttl: Duration) -> Result<Option<Seat>> {
        Ok(self.state().calls.take(worker, job, ttl, Instant::now()))
    }

    async fn keep_seat(&self, seat: &Seat) -> Result<bool> {
        self.state().calls.keep(seat, Instant::now())
    }

    async fn leave_seat(&self, seat: &Seat) -> Result<()> {
        self.state().calls.leave(seat, Instant::now());
        Ok(())
    }

    async fn depth(&self) -> Result<Depth> {
        let state = self.state();
        let queued = state.line.len();
        Ok(Depth { queued: queued as u64, leased: (state.jobs.len() - queued) as u64 })
    }

    async fn notify(&self, job: &JobId) -> Result<()> {
        // An error only says that nobody waits.
        let _ = self.changed.send(job.clone());
        Ok(())
    }

    async fn wait_changed(&self, job: &JobId, timeout: Duration) -> Result<bool> {
        let mut changes = self.changed.subscribe();
        let told = async {
            loop {
                match changes.recv().await {
                    Ok(changed) if changed == *job => return true,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return true,
                    Err(broadcast::error::RecvError::Closed) => return false,
                }
            }
        };
        Ok(tokio::time::timeout(timeout, told).await.unwrap_or(false))
    }

    async fn ping(&self) -> Result<()> {
        Ok(())
    }
}
