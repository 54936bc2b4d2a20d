//! Keeps a lease alive while a job runs, and tells the run when to stop.
//!
//! The store decides who may publish, not the queue: a lease lost because Redis forgot it stops nothing, a newer attempt in
//! the store does.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tailor_domain::{JobId, JobState};
use tailor_queue::{JobQueue, Lease};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::journal::Journal;
use crate::view::View;

/// Why a run must end early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// Its owner cancelled it.
    Cancelled,
    /// Its owner paused it, and may have resumed it since; what is learnt is to be saved.
    Paused,
    /// A newer attempt has begun; this one is a zombie.
    Superseded,
    /// The process is stopping; another worker will go on.
    ShuttingDown,
}

/// Read between two steps on the device thread, so it is one atomic and no lock.
#[derive(Debug, Clone, Default)]
pub struct HaltFlag(Arc<AtomicU8>);

impl HaltFlag {
    /// The first reason stays.
    pub fn raise(&self, halt: Halt) {
        let code = match halt {
            Halt::Cancelled => 1,
            Halt::Superseded => 2,
            Halt::ShuttingDown => 3,
            Halt::Paused => 4,
        };
        let _ = self.0.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
    }

    pub fn raised(&self) -> Option<Halt> {
        match self.0.load(Ordering::Acquire) {
            1 => Some(Halt::Cancelled),
            2 => Some(Halt::Superseded),
            3 => Some(Halt::ShuttingDown),
            4 => Some(Halt::Paused),
            _ => None,
        }
    }
}

pub struct Keeper {
    pub journal: Journal,
    pub queue: Arc<dyn JobQueue>,
    pub lease: Lease,
    pub fence: u64,
    pub halt: HaltFlag,
    pub stop: CancellationToken,
}

impl Keeper {
    /// Runs until it is aborted: a run that must halt holds its lease until it has wound down. Where a newer attempt has begun
    /// there is none to hold.
    pub async fn run(self) {
        let halt = tokio::select! {
            () = self.stop.cancelled() => Halt::ShuttingDown,
            halt = self.watch() => halt,
            // Beside the watching: a store that is slow to answer costs no lease.
            never = self.beat() => match never {},
        };
        self.halt.raise(halt);
        if halt != Halt::Superseded {
            match self.beat().await {}
        }
    }

    /// Until the run must halt.
    async fn watch(&self) -> Halt {
        let every = self.lease.ttl / 3;
        let mut view = View::default();
        loop {
            if self.queue.wait_changed(&self.lease.job, every).await.is_err() {
                tokio::time::sleep(every.min(Duration::from_secs(1))).await;
            }
            if let Some(halt) = self.look(&mut view).await {
                return halt;
            }
        }
    }

    /// For as long as the lease is held; then it says no more.
    async fn beat(&self) -> Infallible {
        let mut beats = tokio::time::interval(self.lease.ttl / 3);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            if !self.heartbeat().await {
                return std::future::pending().await;
            }
        }
    }

    /// False once the queue says that the lease is gone.
    async fn heartbeat(&self) -> bool {
        match self.queue.heartbeat(&self.lease).await {
            Ok(()) => true,
            Err(error) if error.retryable() => {
                tracing::warn!(job = %self.lease.job, %error, "heartbeat failed; the run goes on");
                true
            }
            Err(error) => {
                tracing::warn!(job = %self.lease.job, %error, "lease lost; the run goes on until a newer attempt begins");
                false
            }
        }
    }

    /// What the store says about our right to go on. While it is away we go on: nothing can be published without it.
    async fn look(&self, view: &mut View) -> Option<Halt> {
        let job: &JobId = &self.lease.job;
        match self.journal.log(job, view.seq + 1).await {
            Ok(entries) => entries.iter().for_each(|entry| view.apply(entry)),
            Err(error) => {
                tracing::warn!(%job, %error, "cannot read the job's log; the run goes on");
                return None;
            }
        }
        match view.state {
            // Failed: given up for want of a worker, just before this one began.
            JobState::Cancelled | JobState::Failed => return Some(Halt::Cancelled),
            // The attempt has begun, so its owner's pause has led back here, or the reconciler to whom all workers were gone: either
            // way what is learnt is saved, and the job goes on from there.
            JobState::Paused | JobState::Queued => return Some(Halt::Paused),
            JobState::Leased
            | JobState::Preparing
            | JobState::Training
            | JobState::Evaluating
            | JobState::Publishing
            | JobState::Succeeded => {}
        }
        match self.journal.newest_attempt(job).await {
            Ok(newest) if newest > self.fence => Some(Halt::Superseded),
            Ok(_) | Err(_) => None,
        }
    }
}
