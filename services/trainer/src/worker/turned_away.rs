//! A job that does not fit beside what runs. It goes back to the queue: another worker may have room, and jobs that fit need not
//! wait for it. Once they have gone before it for long enough, the worker that gets it keeps it, and takes no other until there is
//! room.

use std::collections::HashMap;
use std::time::Duration;

use tailor_domain::{JobId, JobState, LogKind};
use tailor_queue::Lease;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Worker, pause};
use crate::room::{Footprint, Place};
use crate::view::View;

/// A job that has not come by for so long was run by another worker.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);

/// Why there is no room for a job.
#[derive(Debug)]
pub struct Turned {
    pub footprint: Option<Footprint>,
    pub why: String,
}

/// Jobs that this worker has turned away, and for how long it may.
#[derive(Debug)]
pub struct TurnedAway {
    limit: Duration,
    jobs: HashMap<JobId, Seen>,
}

#[derive(Debug)]
struct Seen {
    first: Instant,
    last: Instant,
    /// Its log says that it waits for room, or that it is waited for with a seat.
    told_no_room: bool,
    told_seat: bool,
    /// Of its log, as far as it was read.
    view: View,
}

impl TurnedAway {
    pub fn new(limit: Duration) -> Self {
        Self { limit, jobs: HashMap::new() }
    }

    /// It runs here.
    pub fn forget(&mut self, job: &JobId) {
        self.jobs.remove(job);
    }

    /// A job comes by; whether others have gone before it for long enough.
    pub fn is_due(&mut self, job: &JobId) -> bool {
        let limit = self.limit;
        self.see(job).first.elapsed() >= limit
    }

    /// A seat is kept for a job; whether its log is yet to be told. Once is enough, however often it calls.
    pub fn is_news(&mut self, job: &JobId) -> bool {
        !std::mem::replace(&mut self.see(job).told_seat, true)
    }

    fn see(&mut self, job: &JobId) -> &mut Seen {
        let now = Instant::now();
        self.jobs.retain(|_, seen| now - seen.last < FORGOTTEN);
        let new = || Seen { first: now, last: now, told_no_room: false, told_seat: false, view: View::default() };
        let seen = self.jobs.entry(job.clone()).or_insert_with(new);
        seen.last = now;
        seen
    }
}

impl Worker {
    /// A place for a job that did not fit, if it is to wait for one here. None: it is back in the queue, or over.
    pub async fn turn_away(
        &self,
        lease: &Lease,
        turned: Turned,
        turned_away: &mut TurnedAway,
        running: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Option<Place> {
        let limit = turned_away.limit;
        let seen = turned_away.see(&lease.job);
        if self.is_over(lease, &mut seen.view).await {
            return None;
        }
        if seen.first.elapsed() >= limit {
            return self.hold(lease, turned, &mut seen.view, running, stop).await;
        }
        if !seen.told_no_room {
            seen.told_no_room = true;
            let (name, why) = (&self.name, &turned.why);
            let message = format!("it does not fit beside what runs on {name} ({why}) and waits in the queue");
            self.note(&lease.job, &message).await;
        }
        self.give_back(lease).await;
        pause(running, stop).await;
        None
    }

    /// Keeps the job until there is room for it.
    async fn hold(
        &self,
        lease: &Lease,
        turned: Turned,
        view: &mut View,
        running: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Option<Place> {
        let Turned { footprint, why } = turned;
        tracing::info!(job = %lease.job, why, "others have gone before the job for long enough; none is taken until it has room");
        let message = format!("{} takes no other job before this one, which waits for room ({why})", self.name);
        self.note(&lease.job, &message).await;
        let mut beats = tokio::time::interval(self.lease_ttl / 3);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Ok(place) = self.room.take(footprint.clone()) {
                return Some(place);
            }
            tokio::select! {
                () = stop.cancelled() => {
                    self.give_back(lease).await;
                    return None;
                }
                Some(_) = running.join_next() => {}
                _ = beats.tick() => {
                    match self.queue.heartbeat(lease).await {
                        Ok(()) => {}
                        Err(error) if error.retryable() => {
                            tracing::warn!(job = %lease.job, %error, "heartbeat failed; the job waits on");
                        }
                        Err(error) => {
                            tracing::warn!(job = %lease.job, %error, "lease lost while the job waited for room");
                            return None;
                        }
                    }
                    if self.is_over(lease, view).await {
                        return None;
                    }
                }
            }
        }
    }

    /// Whether its owner has ended the job or set it aside while it waited; then it is out of the queue.
    async fn is_over(&self, lease: &Lease, view: &mut View) -> bool {
        match self.journal.log(&lease.job, view.seq + 1).await {
            Ok(entries) => entries.iter().for_each(|entry| view.apply(entry)),
            Err(error) => {
                tracing::info!(job = %lease.job, %error, "cannot read the job's log; it waits on");
                return false;
            }
        }
        if !view.state.is_final() && view.state != JobState::Paused {
            return false;
        }
        match self.settle_if_done(lease).await {
            Ok(done) => done.is_some(),
            Err(error) => {
                tracing::warn!(job = %lease.job, %error, "cannot take the job out of the queue; trying again");
                false
            }
        }
    }

    pub(super) async fn note(&self, job: &JobId, message: &str) {
        match self.journal.append(job, 0, LogKind::Note, message).await {
            Ok(_) => {
                // Only a hint.
                let _ = self.queue.notify(job).await;
            }
            Err(error) => tracing::warn!(%job, %error, message, "a note is not in the job's log"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tailor_blobs::Store;
    use tailor_domain::{Digest, JobEvent};
    use tailor_plan::{Compute, Device, Memory};
    use tailor_queue::{Class, Depth, InProcessQueue};
    use tailor_serverkit::Settings;
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::attempt::Clients;
    use crate::journal::Journal;
    use crate::room::Room;

    const MINUTE: Duration = Duration::from_secs(60);

    /// With room for two of the small ones, or for one that is large.
    fn worker() -> Worker {
        let (store, settings) = (Store::memory(), Settings::default());
        let clients = Clients::connect(&settings).expect("addresses");
        let queue = Arc::new(InProcessQueue::new());
        let mut worker = Worker::new(Journal::new(store.clone()), queue, store, clients, &settings);
        worker.room = Room::of(Device::cpu("a host", 1800, true));
        worker
    }

    fn footprint(activations: u64) -> Footprint {
        let memory = Memory { weights: 1000, adapter: 50, optimizer: 150, activations, ..Memory::default() };
        Footprint { base: (Digest::of(b"a base"), Compute::F32), memory }
    }

    fn large() -> Turned {
        Turned { footprint: Some(footprint(500)), why: "no room".into() }
    }

    /// As the queue gives the job, new or again.
    async fn leased(worker: &Worker) -> Lease {
        let job = JobId::from_parts(1_700_000_000_000, 1);
        worker.queue.enqueue(&job, Class::Cpu, None).await.expect("queued");
        let lease = worker.queue.lease("worker", Class::Cpu, worker.lease_ttl, Duration::ZERO).await;
        lease.expect("asked").expect("leased")
    }

    /// A small job that runs for so long.
    fn runs(worker: &Worker, running: &mut JoinSet<()>, span: Duration) {
        let place = worker.room.take(Some(footprint(100))).expect("room for a small one");
        running.spawn(async move {
            sleep(span).await;
            drop(place);
        });
    }

    async fn depth(worker: &Worker) -> (u64, u64) {
        let Depth { queued, leased } = worker.queue.depth().await.expect("asked");
        (queued, leased)
    }

    #[tokio::test(start_paused = true)]
    async fn others_go_before_a_large_job_for_so_long_and_then_it_is_kept_until_there_is_room() {
        let (worker, mut running, stop) = (worker(), JoinSet::new(), CancellationToken::new());
        let mut turned_away = TurnedAway::new(5 * MINUTE);
        runs(&worker, &mut running, 30 * MINUTE);
        let began = Instant::now();
        for _ in 0..3 {
            let lease = leased(&worker).await;
            assert!(worker.turn_away(&lease, large(), &mut turned_away, &mut running, &stop).await.is_none());
            assert_eq!(depth(&worker).await, (1, 0), "back in the queue");
            advance(MINUTE).await;
        }
        advance(2 * MINUTE).await;
        // One that fits is not in its way.
        runs(&worker, &mut running, MINUTE);
        let lease = leased(&worker).await;
        let place = worker.turn_away(&lease, large(), &mut turned_away, &mut running, &stop).await;
        assert!(place.is_some() && running.is_empty() && began.elapsed() >= 30 * MINUTE);
        worker.queue.heartbeat(&lease).await.expect("its lease was kept");
        let log = worker.journal.log(&lease.job, 1).await.expect("log");
        let told: Vec<&str> = log.iter().map(|entry| entry.message.as_str()).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("waits in the queue") && told[1].contains("takes no other job before this one"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_is_cancelled_while_it_waits_for_room_leaves_the_queue() {
        let (worker, mut running, stop) = (worker(), JoinSet::new(), CancellationToken::new());
        let mut turned_away = TurnedAway::new(Duration::ZERO);
        runs(&worker, &mut running, 60 * MINUTE);
        let (lease, began) = (leased(&worker).await, Instant::now());
        let cancel = async {
            sleep(MINUTE).await;
            worker.journal.event(&lease.job, 0, JobEvent::Cancel, "no more").await.expect("cancelled");
        };
        let waiting = worker.turn_away(&lease, large(), &mut turned_away, &mut running, &stop);
        let (place, ()) = tokio::join!(waiting, cancel);
        assert!(place.is_none() && began.elapsed() < 2 * MINUTE, "after {:?}", began.elapsed());
        assert_eq!(depth(&worker).await, (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_stops_gives_the_job_back() {
        let (worker, mut running, stop) = (worker(), JoinSet::new(), CancellationToken::new());
        let mut turned_away = TurnedAway::new(Duration::ZERO);
        runs(&worker, &mut running, 60 * MINUTE);
        let lease = leased(&worker).await;
        let end = async {
            sleep(MINUTE).await;
            stop.cancel();
        };
        let waiting = worker.turn_away(&lease, large(), &mut turned_away, &mut running, &stop);
        let (place, ()) = tokio::join!(waiting, end);
        assert!(place.is_none());
        assert_eq!(depth(&worker).await, (1, 0));
    }
}
