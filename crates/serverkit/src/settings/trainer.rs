//! The trainer's: leases, checkpoints, what jobs may take, and how ranks meet.

use serde::Deserialize;

use super::{Error, positive};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trainer {
    /// Answer the TrainingService.
    pub api: bool,
    /// Lease and train jobs.
    pub worker: bool,
    /// How long a worker may be silent before its job goes to another.
    pub lease_ms: u64,
    /// How often unfinished jobs are put back into the queue.
    pub reconcile_ms: u64,
    /// How often a run is saved, so that another attempt goes on from there.
    pub checkpoint_ms: u64,
    /// Attempts in a row that get no further before a job that keeps losing its worker is failed.
    pub max_attempts: u64,
    /// How long a job may wait while no worker is there that could run it, before it is failed; 0: for ever.
    pub unclaimed_ms: u64,
    /// Measure, once for each kind of machine and store, what this worker does in a second, so that jobs can be planned.
    pub calibrate: bool,
    /// What jobs may take of this worker's memory; 0 means all that the machine or its control group has.
    pub memory_bytes: u64,
    /// Name or address of this machine for other workers of one job (`train.ranks`); empty: that of the network over which
    /// the registry is reached, or for a worker that joins, the first rank.
    pub rendezvous_host: String,
    /// How long a worker that leased a job with ranks waits for the others before it gives the job back.
    pub gather_ms: u64,
    /// How long ranks wait for one that is silent. One that ends is noticed at once.
    pub ranks_timeout_ms: u64,
    /// Most ranks of a job; 0: as many as jobs ask for.
    pub max_ranks: u32,
    /// Jobs that this worker trains at a time, in turns; those on the same base share it in memory.
    pub jobs_at_once: u64,
    /// How long other jobs may go before one that does not fit beside what runs, or that calls for this worker as a rank; then the
    /// worker takes no other until that one has its place.
    pub overtake_ms: u64,
}

impl Default for Trainer {
    fn default() -> Self {
        Self {
            api: true,
            worker: true,
            lease_ms: 30_000,
            reconcile_ms: 10_000,
            checkpoint_ms: 60_000,
            max_attempts: 5,
            unclaimed_ms: 7 * 24 * 3600 * 1000,
            calibrate: true,
            memory_bytes: 0,
            rendezvous_host: String::new(),
            gather_ms: 60_000,
            ranks_timeout_ms: 600_000,
            max_ranks: 0,
            jobs_at_once: 1,
            overtake_ms: 300_000,
        }
    }
}

impl Trainer {
    pub(super) fn check(&self) -> Result<(), Error> {
        positive("trainer.reconcile_ms", self.reconcile_ms)?;
        positive("trainer.checkpoint_ms", self.checkpoint_ms)?;
        positive("trainer.max_attempts", self.max_attempts)?;
        positive("trainer.gather_ms", self.gather_ms)?;
        positive("trainer.ranks_timeout_ms", self.ranks_timeout_ms)?;
        positive("trainer.jobs_at_once", self.jobs_at_once)?;
        if self.lease_ms < 300 {
            let problem = format!("{} ms is too short to heartbeat in; the least is 300", self.lease_ms);
            return Err(Error::Invalid { key: "trainer.lease_ms", problem });
        }
        if !self.api && !self.worker {
            return Err(Error::Invalid { key: "trainer.api", problem: "api and worker are both off".into() });
        }
        Ok(())
    }
}
