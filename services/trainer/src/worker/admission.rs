//! Whether a job that was leased runs on this worker: another may be the one that can, or what runs here leaves no room.

use tailor_domain::{JobId, JobSpec};
use tailor_queue::Lease;

use super::Worker;
use super::turned_away::Turned;
use crate::matching::class_of;
use crate::planner::Planner;
use crate::room::{Footprint, Place};

/// What becomes of a job that was leased.
pub enum Admission {
    Here(Place),
    /// It does not fit beside what runs.
    Later(Turned),
    /// Another trainer that is there can run it, and this one cannot.
    Elsewhere,
}

impl Worker {
    /// Whether the job runs here now, and its place in memory. Its lease is kept for as long as that takes: to know how long
    /// rows are they may have to be tokenised.
    pub async fn admit(&self, lease: &Lease) -> Admission {
        let mut admission = std::pin::pin!(self.decide(lease));
        loop {
            tokio::select! {
                admission = &mut admission => return admission,
                () = tokio::time::sleep(self.lease_ttl / 3) => {
                    if let Err(error) = self.queue.heartbeat(lease).await {
                        tracing::warn!(job = %lease.job, %error, "heartbeat failed");
                    }
                }
            }
        }
    }

    async fn decide(&self, lease: &Lease) -> Admission {
        let spec = match self.journal.spec(&lease.job).await {
            Ok(spec) => Some(spec),
            Err(error) => {
                tracing::info!(job = %lease.job, %error, "the job cannot be looked at; it runs by itself or waits");
                None
            }
        };
        if let Some(spec) = &spec
            && self.is_for_others(&lease.job, spec).await
        {
            tracing::info!(job = %lease.job, "another trainer can run the job, and this one cannot; it goes back");
            return Admission::Elsewhere;
        }
        if self.jobs_at_once == 1 {
            return Admission::Here(self.room.alone());
        }
        let footprint = match &spec {
            // Its steps wait for other workers', and whoever shared the device with it would wait too.
            Some(spec) if spec.recipe.train.ranks == 1 => self.footprint(lease, spec).await,
            Some(_) | None => None,
        };
        match self.room.take(footprint.clone()) {
            Ok(place) => Admission::Here(place),
            Err(why) => {
                tracing::info!(job = %lease.job, why, "no room for the job beside those that run");
                Admission::Later(Turned { footprint, why })
            }
        }
    }

    /// Where that cannot be told the job is tried here.
    pub(super) async fn is_for_others(&self, job: &JobId, spec: &JobSpec) -> bool {
        // The queue knows as long as it has lost nothing.
        if class_of(&spec.recipe) > self.class {
            return true;
        }
        match self.planner().is_for_others(spec, self.room.worker()).await {
            Ok(is_for_others) => is_for_others,
            Err(error) => {
                tracing::info!(%job, %error, "which trainers can hold the job is not known; it runs here");
                false
            }
        }
    }

    async fn footprint(&self, lease: &Lease, spec: &JobSpec) -> Option<Footprint> {
        match self.planner().footprint(spec, self.room.worker()).await {
            Ok(footprint) => Some(footprint),
            Err(error) => {
                tracing::info!(job = %lease.job, %error, "what the job takes is not known; it runs by itself or waits");
                None
            }
        }
    }

    fn planner(&self) -> Planner<'_> {
        Planner { store: &self.store, clients: &self.clients }
    }
}
