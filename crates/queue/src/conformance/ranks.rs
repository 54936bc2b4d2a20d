//! What a queue promises to jobs that several workers train: calls and seats.

use std::time::Duration;

use tokio::time::sleep;

use super::{LONG, Suite, assert_lost, job};
use crate::{Class, Lease, Seat, Standing};

impl Suite {
    async fn call(&self, lease: &Lease, seats: u32) -> Standing {
        self.call_as(Class::Cpu, lease, seats).await
    }

    /// By a worker of this class.
    async fn call_as(&self, class: Class, lease: &Lease, seats: u32) -> Standing {
        self.queue.call(lease, class, seats, &format!("host:{seats}")).await.expect("call")
    }

    async fn take_seat(&self, worker: &str, ttl: Duration) -> Option<Seat> {
        self.take_seat_as(Class::Cpu, worker, ttl).await
    }

    /// In the oldest call that a worker of this class is shown.
    async fn take_seat_as(&self, class: Class, worker: &str, ttl: Duration) -> Option<Seat> {
        let calls = self.queue.calls(class).await.expect("calls");
        self.queue.take_seat(worker, calls.first()?, ttl).await.expect("take a seat")
    }

    pub(super) async fn a_seat_is_for_who_can_run_the_job(&self) {
        self.enqueue_for(Class::Gpu, 1).await;
        // Among jobs of one moment either may count as the one that has waited longest.
        sleep(self.unit / 10).await;
        self.enqueue_for(Class::Cpu, 2).await;
        let older = self.lease_as(Class::Gpu, LONG).await.expect("queued");
        let younger = self.lease_as(Class::Cpu, LONG).await.expect("queued");
        self.call(&older, 1).await;
        assert_eq!(self.take_seat("a", LONG).await, None, "no seat for this one");
        self.call(&younger, 1).await;
        let seat = self.take_seat("a", LONG).await.expect("of the younger call");
        assert_eq!(seat.job, job(2));
        let seat = self.take_seat_as(Class::Gpu, "b", LONG).await.expect("of the older call");
        assert_eq!(seat.job, job(1));
        self.ack(&older).await;
        self.ack(&younger).await;
    }

    pub(super) async fn seats_are_given_of_the_oldest_call_and_the_younger_caller_is_told(&self) {
        assert_eq!(self.take_seat("early", LONG).await, None, "nobody has called");
        // The older job calls second: what counts is who got a lease first.
        self.enqueue(&job(2)).await;
        self.enqueue(&job(1)).await;
        let (first, second) = (self.must_lease(LONG).await, self.must_lease(LONG).await);
        assert_eq!(self.call(&second, 1).await, Standing::default());
        assert_eq!(self.call(&first, 2).await, Standing::default(), "the younger call is nothing to give way to");
        assert_eq!(self.call(&second, 1).await.older, [job(2)]);
        let a = self.take_seat("a", LONG).await.expect("a seat");
        assert_eq!((&a.job, a.epoch, a.rank, a.ranks), (&job(2), first.epoch, 1, 3));
        assert_eq!((a.address.as_str(), a.worker.as_str(), a.ttl), ("host:2", "a", LONG));
        assert!(!self.queue.keep_seat(&a).await.expect("kept"), "one is free yet");
        let b = self.take_seat("b", LONG).await.expect("a seat");
        assert_eq!((&b.job, b.rank), (&job(2), 2));
        assert!(self.queue.keep_seat(&a).await.expect("kept"), "all are taken");
        assert_eq!(self.call(&first, 2).await.taken, ["a", "b"]);
        assert!(self.call(&second, 1).await.older.is_empty(), "it waits no more");
        let c = self.take_seat("c", LONG).await.expect("a seat");
        assert_eq!((&c.job, c.rank, c.ranks), (&job(1), 1, 2));
        assert_eq!(self.take_seat("d", LONG).await, None, "all are taken");
        for lease in [first, second] {
            self.ack(&lease).await;
        }
    }

    pub(super) async fn a_caller_is_told_of_older_calls_that_its_worker_could_serve_and_of_no_others(&self) {
        self.enqueue_for(Class::Gpu, 1).await;
        sleep(self.unit / 10).await;
        self.enqueue_for(Class::Cpu, 2).await;
        let older = self.lease_as(Class::Gpu, LONG).await.expect("queued");
        let younger = self.lease_as(Class::Cpu, LONG).await.expect("queued");
        assert_eq!((&older.job, &younger.job), (&job(1), &job(2)));
        self.call_as(Class::Gpu, &older, 1).await;
        let none = self.call_as(Class::Cpu, &younger, 1).await.older;
        assert!(none.is_empty(), "nothing that this worker could give way to");
        let standing = self.call_as(Class::Gpu, &younger, 1).await;
        assert_eq!((standing.taken, standing.older), (Vec::<String>::new(), vec![job(1)]), "one with a GPU could");
        let seat = self.take_seat("a", LONG).await.expect("of the younger call");
        assert_eq!(seat.job, job(2));
        let standing = self.call_as(Class::Gpu, &younger, 1).await;
        assert_eq!((standing.taken, standing.older), (vec!["a".to_owned()], vec![job(1)]));
        self.ack(&older).await;
        assert!(self.call_as(Class::Gpu, &younger, 1).await.older.is_empty(), "it waits no more");
        self.ack(&younger).await;
    }

    pub(super) async fn a_worker_may_pass_an_older_call_by_and_finds_no_seat_where_none_is_free(&self) {
        for number in [1, 2] {
            self.enqueue(&job(number)).await;
        }
        let (older, younger) = (self.must_lease(LONG).await, self.must_lease(LONG).await);
        self.call(&younger, 1).await;
        self.call(&older, 1).await;
        let calls = async || self.queue.calls(Class::Cpu).await.expect("calls");
        assert_eq!(calls().await, [job(1), job(2)]);
        let take = async |number| self.queue.take_seat("a", &job(number), LONG).await.expect("take a seat");
        let seat = take(2).await.expect("of the younger call");
        assert_eq!((&seat.job, seat.rank), (&job(2), 1));
        assert_eq!(calls().await, [job(1)], "all seats of the other one are taken");
        assert_eq!(take(2).await, None, "taken");
        assert_eq!(take(3).await, None, "nobody called");
        self.ack(&older).await;
        assert_eq!(take(1).await, None, "the call ended with its lease");
        assert!(calls().await.is_empty());
        self.ack(&younger).await;
    }

    pub(super) async fn a_call_whose_seats_were_all_taken_gives_none_again(&self) {
        self.enqueue(&job(1)).await;
        let lease = self.must_lease(LONG).await;
        self.call(&lease, 2).await;
        let (a, b) = (self.take_seat("a", LONG).await.expect("one"), self.take_seat("b", LONG).await.expect("two"));
        self.queue.leave_seat(&b).await.expect("left");
        assert_eq!(self.call(&lease, 2).await.taken, ["a"], "the caller sees that one is gone");
        assert_eq!(self.take_seat("c", LONG).await, None);
        assert_lost("a seat that was left", self.queue.keep_seat(&b).await);
        self.queue.hang_up(&lease).await.expect("hung up");
        assert_lost("a seat of no call", self.queue.keep_seat(&a).await);
        self.call(&lease, 1).await;
        assert!(self.take_seat("c", LONG).await.is_some(), "a new call begins anew");
        self.ack(&lease).await;
    }

    pub(super) async fn a_seat_not_kept_in_time_is_free_while_the_call_waits(&self) {
        self.enqueue(&job(1)).await;
        let lease = self.must_lease(LONG).await;
        self.call(&lease, 2).await;
        let dead = self.take_seat("dead", self.unit * 2).await.expect("a seat");
        let kept = self.take_seat("kept", self.unit * 6).await;
        assert!(kept.is_some());
        self.queue.hang_up(&lease).await.expect("hung up");
        self.call(&lease, 2).await;
        let dead_again = self.take_seat("dead", self.unit * 2).await.expect("a seat");
        assert_eq!(dead_again.rank, dead.rank);
        sleep(self.unit * 3).await;
        assert_lost("a seat not kept", self.queue.keep_seat(&dead_again).await);
        let heir = self.take_seat("heir", LONG).await.expect("free again");
        assert_eq!(heir.rank, dead.rank);
        assert_lost("a seat that is another's", self.queue.keep_seat(&dead_again).await);
        self.queue.leave_seat(&dead_again).await.expect("nothing to leave");
        assert_eq!(self.call(&lease, 2).await.taken, ["heir"], "and nothing was left");
        self.ack(&lease).await;
    }

    pub(super) async fn a_call_ends_with_its_lease_and_when_it_is_not_renewed(&self) {
        self.enqueue(&job(1)).await;
        let lease = self.must_lease(LONG).await;
        self.call(&lease, 1).await;
        let seat = self.take_seat("a", LONG).await.expect("a seat");
        self.queue.release(&lease).await.expect("released");
        assert_lost("a seat without a caller", self.queue.keep_seat(&seat).await);
        assert_lost("a call without a lease", self.queue.call(&lease, Class::Cpu, 1, "host:1").await);
        let short = self.must_lease(self.unit * 4).await;
        self.call(&short, 1).await;
        for _ in 0..3 {
            sleep(self.unit * 2).await;
            self.queue.heartbeat(&short).await.expect("heartbeat");
        }
        assert_eq!(self.take_seat("b", LONG).await, None, "a heartbeat renews no call");
        self.ack(&short).await;
    }
}
