//! What every queue must do. A new implementation is done when [`check`] passes over it.

mod ranks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tailor_domain::JobId;
use tokio::time::{Instant, sleep};

use crate::{Class, Depth, Error, JobQueue, Lease};

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(30);

/// Runs the whole suite over an empty queue. `unit` is a span that the queue's clock tells from nothing and that a busy
/// machine does not exceed by accident; leases last a few of them.
///
/// # Panics
/// The queue breaks a promise.
pub async fn check(queue: Arc<dyn JobQueue>, unit: Duration) {
    let suite = Suite { queue, unit };
    suite.queue.ping().await.expect("the queue answers");
    suite.jobs_come_in_the_order_they_were_queued().await;
    suite.a_job_is_in_the_queue_once_while_queued_or_leased().await;
    suite.without_work_a_lease_waits_and_ends_with_none().await;
    suite.a_waiting_lease_wakes_when_a_job_comes().await;
    suite.an_expired_lease_returns_its_job_with_a_higher_epoch().await;
    suite.an_expired_lease_is_refused_even_before_anybody_took_the_job().await;
    suite.a_waiting_lease_gets_the_job_whose_lease_runs_out().await;
    suite.a_heartbeat_moves_the_deadline().await;
    suite.a_released_job_goes_to_the_back().await;
    suite.a_finished_job_may_come_again_and_old_leases_stay_refused().await;
    suite.many_workers_never_share_a_job().await;
    suite.a_job_waits_for_a_worker_that_can_run_it_and_the_others_pass_it_by().await;
    suite.a_worker_for_all_jobs_gets_the_one_that_has_waited_longest().await;
    suite.a_worker_that_waits_wakes_for_what_it_can_run_alone().await;
    suite.a_job_keeps_its_class_when_its_lease_ends().await;
    suite.a_seat_is_for_who_can_run_the_job().await;
    suite.a_notification_wakes_who_waits_for_that_job().await;
    suite.seats_are_given_of_the_oldest_call_and_the_younger_caller_is_told().await;
    suite.a_caller_is_told_of_older_calls_that_its_worker_could_serve_and_of_no_others().await;
    suite.a_worker_may_pass_an_older_call_by_and_finds_no_seat_where_none_is_free().await;
    suite.a_call_whose_seats_were_all_taken_gives_none_again().await;
    suite.a_seat_not_kept_in_time_is_free_while_the_call_waits().await;
    suite.a_call_ends_with_its_lease_and_when_it_is_not_renewed().await;
    suite.expect_depth(0, 0).await;
}

struct Suite {
    queue: Arc<dyn JobQueue>,
    unit: Duration,
}

fn job(number: u128) -> JobId {
    JobId::from_parts(1_700_000_000_000, number)
}

fn assert_lost<T: std::fmt::Debug>(what: &str, outcome: Result<T, Error>) {
    assert!(matches!(outcome, Err(Error::LeaseLost { .. })), "{what}: {outcome:?}");
}

impl Suite {
    async fn enqueue(&self, job: &JobId) -> bool {
        self.queue.enqueue(job, Class::Cpu, None).await.expect("enqueue")
    }

    async fn lease_now(&self, ttl: Duration) -> Option<Lease> {
        self.queue.lease("worker", Class::Cpu, ttl, NO_WAIT).await.expect("lease")
    }

    async fn must_lease(&self, ttl: Duration) -> Lease {
        self.lease_now(ttl).await.expect("a job is queued")
    }

    async fn ack(&self, lease: &Lease) {
        self.queue.ack(lease).await.expect("ack");
    }

    async fn expect_depth(&self, queued: u64, leased: u64) {
        assert_eq!(self.queue.depth().await.expect("depth"), Depth { queued, leased });
    }

    async fn jobs_come_in_the_order_they_were_queued(&self) {
        for number in [3, 1, 2] {
            assert!(self.enqueue(&job(number)).await);
        }
        self.expect_depth(3, 0).await;
        let mut leases = Vec::new();
        for number in [3, 1, 2] {
            let lease = self.must_lease(LONG).await;
            assert_eq!((&lease.job, lease.worker.as_str(), lease.ttl), (&job(number), "worker", LONG));
            leases.push(lease);
        }
        self.expect_depth(0, 3).await;
        for lease in leases {
            self.ack(&lease).await;
        }
        self.expect_depth(0, 0).await;
    }

    async fn a_job_is_in_the_queue_once_while_queued_or_leased(&self) {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(self.queue.enqueue(&job(1), Class::Cpu, Some(trace.into())).await.expect("enqueue"));
        assert!(!self.enqueue(&job(1)).await, "queued already");
        let lease = self.must_lease(LONG).await;
        assert_eq!(lease.trace.as_deref(), Some(trace));
        assert!(!self.enqueue(&job(1)).await, "leased already");
        assert_eq!(self.lease_now(LONG).await, None);
        self.ack(&lease).await;
        assert_eq!(self.lease_now(LONG).await, None, "a finished job does not come again");
    }

    async fn without_work_a_lease_waits_and_ends_with_none(&self) {
        let started = Instant::now();
        let none = self.queue.lease("worker", Class::Cpu, LONG, self.unit * 3).await.expect("lease");
        assert_eq!(none, None);
        assert!(started.elapsed() >= self.unit * 3, "ended after {:?}", started.elapsed());
    }

    async fn a_waiting_lease_wakes_when_a_job_comes(&self) {
        let queue = self.queue.clone();
        let waiting = tokio::spawn(async move { queue.lease("waiter", Class::Cpu, LONG, LONG).await });
        sleep(self.unit * 2).await;
        let started = Instant::now();
        assert!(self.enqueue(&job(1)).await);
        let lease = waiting.await.expect("join").expect("lease").expect("the job came");
        assert!(started.elapsed() < Duration::from_secs(5), "woke after {:?}", started.elapsed());
        self.ack(&lease).await;
    }

    async fn an_expired_lease_returns_its_job_with_a_higher_epoch(&self) {
        self.enqueue(&job(1)).await;
        let dead = self.must_lease(self.unit * 2).await;
        sleep(self.unit * 3).await;
        self.expect_depth(1, 0).await;
        let alive = self.must_lease(LONG).await;
        assert_eq!(alive.job, dead.job);
        assert!(alive.epoch > dead.epoch, "{} after {}", alive.epoch, dead.epoch);
        assert_lost("heartbeat of a zombie", self.queue.heartbeat(&dead).await);
        assert_lost("ack of a zombie", self.queue.ack(&dead).await);
        assert_lost("release of a zombie", self.queue.release(&dead).await);
        self.expect_depth(0, 1).await;
        self.queue.heartbeat(&alive).await.expect("the zombie changed nothing");
        self.ack(&alive).await;
    }

    async fn an_expired_lease_is_refused_even_before_anybody_took_the_job(&self) {
        self.enqueue(&job(1)).await;
        let dead = self.must_lease(self.unit * 2).await;
        sleep(self.unit * 3).await;
        assert_lost("late heartbeat", self.queue.heartbeat(&dead).await);
        assert_lost("late ack", self.queue.ack(&dead).await);
        assert_lost("late release", self.queue.release(&dead).await);
        let next = self.must_lease(LONG).await;
        assert_eq!(next.job, dead.job);
        self.ack(&next).await;
    }

    async fn a_waiting_lease_gets_the_job_whose_lease_runs_out(&self) {
        self.enqueue(&job(1)).await;
        let dead = self.must_lease(self.unit * 4).await;
        let started = Instant::now();
        let next = self.queue.lease("heir", Class::Cpu, LONG, LONG).await.expect("lease").expect("the job comes back");
        assert_eq!(next.job, dead.job);
        assert!(started.elapsed() < Duration::from_secs(10), "came after {:?}", started.elapsed());
        self.ack(&next).await;
    }

    async fn a_heartbeat_moves_the_deadline(&self) {
        self.enqueue(&job(1)).await;
        let lease = self.must_lease(self.unit * 6).await;
        for _ in 0..4 {
            sleep(self.unit * 2).await;
            self.queue.heartbeat(&lease).await.expect("heartbeat");
        }
        assert_eq!(self.lease_now(LONG).await, None, "still held after more than its first span");
        self.ack(&lease).await;
    }

    async fn a_released_job_goes_to_the_back(&self) {
        self.enqueue(&job(1)).await;
        self.enqueue(&job(2)).await;
        let first = self.must_lease(LONG).await;
        self.queue.release(&first).await.expect("release");
        assert_lost("ack after release", self.queue.ack(&first).await);
        let second = self.must_lease(LONG).await;
        assert_eq!(second.job, job(2));
        let again = self.must_lease(LONG).await;
        assert_eq!(again.job, job(1));
        assert!(again.epoch > first.epoch);
        self.ack(&second).await;
        self.ack(&again).await;
    }

    async fn a_finished_job_may_come_again_and_old_leases_stay_refused(&self) {
        self.enqueue(&job(1)).await;
        let old = self.must_lease(LONG).await;
        self.ack(&old).await;
        assert_lost("second ack", self.queue.ack(&old).await);
        assert!(self.enqueue(&job(1)).await, "the job left the queue, so it may be queued again");
        let new = self.must_lease(LONG).await;
        assert!(new.epoch > old.epoch, "{} after {}", new.epoch, old.epoch);
        assert_lost("heartbeat of the first life", self.queue.heartbeat(&old).await);
        self.ack(&new).await;
    }

    async fn many_workers_never_share_a_job(&self) {
        const JOBS: u128 = 40;
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let queue = self.queue.clone();
                tokio::spawn(async move {
                    let mut done = Vec::new();
                    let name = format!("worker-{worker}");
                    while let Some(lease) =
                        queue.lease(&name, Class::Cpu, LONG, Duration::from_secs(2)).await.expect("lease")
                    {
                        queue.ack(&lease).await.expect("ack");
                        done.push(lease.job);
                    }
                    done
                })
            })
            .collect();
        for number in 0..JOBS {
            self.enqueue(&job(number)).await;
        }
        let mut times: BTreeMap<JobId, usize> = BTreeMap::new();
        for worker in workers {
            for job in worker.await.expect("join") {
                *times.entry(job).or_default() += 1;
            }
        }
        assert_eq!(times.len() as u128, JOBS, "every job was done");
        assert!(times.values().all(|count| *count == 1), "each once: {times:?}");
    }

    async fn enqueue_for(&self, class: Class, number: u128) {
        assert!(self.queue.enqueue(&job(number), class, None).await.expect("enqueue"));
    }

    async fn lease_as(&self, class: Class, ttl: Duration) -> Option<Lease> {
        self.queue.lease("worker", class, ttl, NO_WAIT).await.expect("lease")
    }

    async fn a_job_waits_for_a_worker_that_can_run_it_and_the_others_pass_it_by(&self) {
        self.enqueue_for(Class::Gpu, 1).await;
        self.enqueue_for(Class::Cpu, 2).await;
        self.expect_depth(2, 0).await;
        let any = self.lease_as(Class::Cpu, LONG).await.expect("the second in line");
        assert_eq!((&any.job, any.class), (&job(2), Class::Cpu));
        assert_eq!(self.lease_as(Class::Cpu, LONG).await, None, "what is left is not for it");
        self.expect_depth(1, 1).await;
        assert!(!self.enqueue(&job(1)).await, "queued already, whatever its class is called");
        let own = self.lease_as(Class::Gpu, LONG).await.expect("waited at its place");
        assert_eq!((&own.job, own.class), (&job(1), Class::Gpu));
        self.ack(&any).await;
        self.ack(&own).await;
    }

    async fn a_worker_for_all_jobs_gets_the_one_that_has_waited_longest(&self) {
        let classes = [Class::Cpu, Class::Gpu, Class::Gpu, Class::Cpu];
        for (number, class) in (1..).zip(classes) {
            self.enqueue_for(class, number).await;
            sleep(self.unit / 10).await;
        }
        for (number, class) in (1..).zip(classes) {
            let lease = self.lease_as(Class::Gpu, LONG).await.expect("queued");
            assert_eq!((&lease.job, lease.class), (&job(number), class));
            self.ack(&lease).await;
        }
    }

    async fn a_worker_that_waits_wakes_for_what_it_can_run_alone(&self) {
        let wait = |class: Class, wait: Duration| {
            let queue = self.queue.clone();
            tokio::spawn(async move { queue.lease("waiter", class, LONG, wait).await })
        };
        let (without, with) = (wait(Class::Cpu, self.unit * 6), wait(Class::Gpu, LONG));
        sleep(self.unit * 2).await;
        let started = Instant::now();
        self.enqueue_for(Class::Gpu, 1).await;
        let lease = with.await.expect("join").expect("lease").expect("the job came");
        assert_eq!(lease.class, Class::Gpu);
        assert!(started.elapsed() < Duration::from_secs(5), "woke after {:?}", started.elapsed());
        assert_eq!(without.await.expect("join").expect("lease"), None, "it was not for this one");
        self.ack(&lease).await;
    }

    async fn a_job_keeps_its_class_when_its_lease_ends(&self) {
        self.enqueue_for(Class::Gpu, 1).await;
        let dead = self.lease_as(Class::Gpu, self.unit * 2).await.expect("queued");
        sleep(self.unit * 3).await;
        assert_eq!(self.lease_as(Class::Cpu, LONG).await, None, "ran out");
        let released = self.lease_as(Class::Gpu, LONG).await.expect("back in line");
        assert!(released.epoch > dead.epoch);
        self.queue.release(&released).await.expect("release");
        assert_eq!(self.lease_as(Class::Cpu, LONG).await, None, "given back");
        let lease = self.lease_as(Class::Gpu, LONG).await.expect("back in line");
        assert_lost("heartbeat of who gave it back", self.queue.heartbeat(&released).await);
        self.ack(&lease).await;
        assert_eq!(self.lease_as(Class::Gpu, LONG).await, None, "finished");
    }

    async fn a_notification_wakes_who_waits_for_that_job(&self) {
        let nobody = self.queue.wait_changed(&job(1), self.unit * 2).await.expect("wait");
        assert!(!nobody, "nobody notified");

        let queue = self.queue.clone();
        let waiting = tokio::spawn(async move { queue.wait_changed(&job(1), LONG).await });
        sleep(self.unit * 2).await;
        self.queue.notify(&job(2)).await.expect("notify another");
        sleep(self.unit).await;
        assert!(!waiting.is_finished(), "another job's news wakes nobody");
        // A hint may be lost while a remote queue's subscription is being set up, so it is repeated.
        let started = Instant::now();
        while !waiting.is_finished() && started.elapsed() < Duration::from_secs(10) {
            self.queue.notify(&job(1)).await.expect("notify");
            sleep(self.unit).await;
        }
        assert!(waiting.await.expect("join").expect("wait"), "told");
        assert!(started.elapsed() < Duration::from_secs(10), "woken by the notification");
    }
}
