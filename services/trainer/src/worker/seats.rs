//! Which seat in another worker's job this worker takes, and when.
//!
//! One that has no job takes a seat at once. With `trainer.jobs_at_once` above 1 there may always be one that runs, and a job with
//! ranks would wait for such workers for ever. So a call that was passed by while others ran for as long as these may go before a
//! job gets its seat all the same: from then on no job is leased, and the worker sits down once those that run have ended. The seat
//! is taken before they have: a call that is still open then, on all of its workers, would be luck.

use std::time::Duration;

use tailor_domain::JobId;
use tailor_queue::Seat;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::turned_away::TurnedAway;

/// Longest pause between two signs that a seat is kept.
const KEEP_EVERY: Duration = Duration::from_secs(2);

impl Worker {
    /// A seat in a call for a job whose part this worker can hold: the oldest where it is idle, else one that has waited for this
    /// worker for long enough. None also where queue or store are away, which is told elsewhere.
    pub async fn find_seat(&self, is_idle: bool, turned_away: &mut TurnedAway) -> Option<Seat> {
        // Whoever runs a job by itself is idle after it.
        if !is_idle && !self.room.is_shared() {
            return None;
        }
        for job in self.queue.calls(self.class).await.ok()? {
            let is_due = is_idle || turned_away.is_due(&job);
            if !is_due || self.declines(&job).await {
                continue;
            }
            // Somebody else may have taken it by now.
            if let Some(seat) = self.queue.take_seat(&self.name, &job, self.lease_ttl).await.ok()? {
                return Some(seat);
            }
        }
        None
    }

    /// Keeps a seat until nothing runs here any more. False: the call was given up, or the worker stops.
    pub async fn let_others_end(
        &self,
        seat: &Seat,
        turned_away: &mut TurnedAway,
        running: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> bool {
        if running.is_empty() {
            return true;
        }
        let (job, jobs) = (&seat.job, running.len());
        tracing::info!(%job, jobs, "others have gone before the job for long enough; none is taken until it has this worker");
        if turned_away.is_news(job) {
            let message = format!(
                "{} keeps a seat for this job and takes no other; training begins once what runs there has ended",
                self.name
            );
            self.note(job, &message).await;
        }
        let mut beats = tokio::time::interval((seat.ttl / 4).min(KEEP_EVERY));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !running.is_empty() {
            tokio::select! {
                () = stop.cancelled() => {
                    if let Err(error) = self.queue.leave_seat(seat).await {
                        tracing::debug!(%job, %error, "the seat is free once its time has run out");
                    }
                    return false;
                }
                _ = running.join_next() => {}
                _ = beats.tick() => match self.queue.keep_seat(seat).await {
                    Ok(_) => {}
                    Err(error) if error.retryable() => {
                        tracing::warn!(%job, %error, "cannot keep the seat; trying again");
                    }
                    Err(_) => {
                        tracing::info!(%job, "the call was given up; other jobs are taken again");
                        return false;
                    }
                },
            }
        }
        true
    }

    /// Whether a rank's part of the job is for others. Known before a seat is taken: to give one up ends the call.
    async fn declines(&self, job: &JobId) -> bool {
        let declined = &self.gatherer.declined;
        if declined.has(job) {
            return true;
        }
        let Ok(spec) = self.journal.spec(job).await else { return false };
        let is_for_others = self.is_for_others(job, &spec).await;
        if is_for_others {
            tracing::info!(%job, "another trainer can hold a rank's part of the job, and this one cannot; it takes no seat");
            declined.add(job);
        }
        is_for_others
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tailor_blobs::Store;
    use tailor_domain::Digest;
    use tailor_plan::{Compute, Device, Memory};
    use tailor_queue::{Class, InProcessQueue, Lease};
    use tailor_serverkit::Settings;
    use tokio::time::{Instant, advance, sleep};

    use super::*;
    use crate::attempt::Clients;
    use crate::journal::Journal;
    use crate::room::{Footprint, Place, Room};

    const MINUTE: Duration = Duration::from_secs(60);

    fn worker() -> Worker {
        let (store, mut settings) = (Store::memory(), Settings::default());
        settings.trainer.jobs_at_once = 2;
        let clients = Clients::connect(&settings).expect("addresses");
        let mut worker =
            Worker::new(Journal::new(store.clone()), Arc::new(InProcessQueue::new()), store, clients, &settings);
        worker.room = Room::of(Device::cpu("a host", 1 << 30, true));
        worker
    }

    /// Another worker calls for one seat, for hours.
    async fn called(worker: &Worker) -> Lease {
        let job = JobId::from_parts(1_700_000_000_000, 1);
        worker.queue.enqueue(&job, Class::Cpu, None).await.expect("queued");
        let lease = worker.queue.lease("another", Class::Cpu, 600 * MINUTE, Duration::ZERO).await;
        let lease = lease.expect("asked").expect("leased");
        worker.queue.call(&lease, Class::Cpu, 1, "127.0.0.1:1").await.expect("called");
        lease
    }

    fn shared(worker: &Worker) -> Place {
        let memory = Memory { weights: 1000, ..Memory::default() };
        let footprint = Footprint { base: (Digest::of(b"a base"), Compute::F32), memory };
        worker.room.take(Some(footprint)).expect("room")
    }

    fn runs(place: Place, running: &mut JoinSet<()>, span: Duration) {
        running.spawn(async move {
            sleep(span).await;
            drop(place);
        });
    }

    /// A seat, taken when the job has waited for five minutes while another runs for thirty.
    async fn due(worker: &Worker, turned_away: &mut TurnedAway, running: &mut JoinSet<()>) -> (Lease, Seat) {
        let lease = called(worker).await;
        runs(shared(worker), running, 30 * MINUTE);
        assert_eq!(worker.find_seat(false, turned_away).await, None, "it has only just come by");
        advance(5 * MINUTE).await;
        let seat = worker.find_seat(false, turned_away).await.expect("others went before it for long enough");
        assert_eq!(seat.job, lease.job);
        (lease, seat)
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_never_idle_takes_a_seat_after_a_while_and_sits_once_its_jobs_have_ended() {
        let (worker, mut running, stop) = (worker(), JoinSet::new(), CancellationToken::new());
        let (mut turned_away, began) = (TurnedAway::new(5 * MINUTE), Instant::now());
        let (lease, seat) = due(&worker, &mut turned_away, &mut running).await;
        assert!(worker.let_others_end(&seat, &mut turned_away, &mut running, &stop).await);
        assert!(running.is_empty() && began.elapsed() >= 30 * MINUTE, "after {:?}", began.elapsed());
        assert!(worker.queue.keep_seat(&seat).await.expect("it was kept"));
        let log = worker.journal.log(&lease.job, 1).await.expect("log");
        let told: Vec<&str> = log.iter().map(|entry| entry.message.as_str()).collect();
        assert!(told.len() == 1 && told[0].contains("keeps a seat for this job and takes no other"), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_given_up_is_waited_for_no_longer_and_the_next_one_gets_its_seat_at_once() {
        let (worker, mut running, stop) = (worker(), JoinSet::new(), CancellationToken::new());
        let mut turned_away = TurnedAway::new(5 * MINUTE);
        let (lease, seat) = due(&worker, &mut turned_away, &mut running).await;
        let began = Instant::now();
        let give_up = async {
            sleep(MINUTE).await;
            worker.queue.release(&lease).await.expect("given back");
        };
        let waiting = worker.let_others_end(&seat, &mut turned_away, &mut running, &stop);
        let (is_there, ()) = tokio::join!(waiting, give_up);
        assert!(!is_there && !running.is_empty() && began.elapsed() < 2 * MINUTE, "after {:?}", began.elapsed());
        let lease = called(&worker).await;
        let seat = worker.find_seat(false, &mut turned_away).await.expect("it has waited already");
        stop.cancel();
        assert!(!worker.let_others_end(&seat, &mut turned_away, &mut running, &stop).await);
        assert_eq!(worker.journal.log(&lease.job, 1).await.expect("log").len(), 1, "it was told once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_stops_leaves_its_seat() {
        let (worker, mut running, stop) = (worker(), JoinSet::new(), CancellationToken::new());
        let mut turned_away = TurnedAway::new(5 * MINUTE);
        let (lease, seat) = due(&worker, &mut turned_away, &mut running).await;
        stop.cancel();
        assert!(!worker.let_others_end(&seat, &mut turned_away, &mut running, &stop).await);
        let standing = worker.queue.call(&lease, Class::Cpu, 1, "").await.expect("asked");
        assert!(standing.taken.is_empty(), "{standing:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_worker_takes_a_seat_at_once_and_one_whose_job_shares_with_nobody_after_that_job() {
        let worker = worker();
        let lease = called(&worker).await;
        let mut turned_away = TurnedAway::new(Duration::ZERO);
        let place = worker.room.alone();
        assert_eq!(worker.find_seat(false, &mut turned_away).await, None, "it is idle once this one has ended");
        drop(place);
        let seat = worker.find_seat(true, &mut turned_away).await.expect("at once");
        assert_eq!(seat.job, lease.job);
    }
}
