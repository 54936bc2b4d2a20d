use std::net::Ipv4Addr;
use std::sync::Barrier;

use tailor_blobs::Store;
use tailor_queue::{Class, InProcessQueue};

use super::*;

const TTL: Duration = Duration::from_secs(2);

struct World {
    queue: Arc<dyn JobQueue>,
    journal: Journal,
    gatherer: Gatherer,
    stop: CancellationToken,
}

impl World {
    fn new(gather: Duration) -> Self {
        let network = Network::new("", "http://127.0.0.1:1");
        let (timeout, declined) = (Duration::from_secs(30), Declined::default());
        let gatherer = Gatherer { network, class: Class::Cpu, gather, timeout, declined };
        let queue = Arc::new(InProcessQueue::new());
        Self { queue, journal: Journal::new(Store::memory()), gatherer, stop: CancellationToken::new() }
    }

    async fn lease(&self, number: u128, worker: &str) -> Lease {
        let job = JobId::from_parts(1_700_000_000_000, number);
        self.queue.enqueue(&job, Class::Cpu, None).await.expect("queued");
        self.queue.lease(worker, Class::Cpu, TTL, Duration::ZERO).await.expect("asked").expect("leased")
    }

    async fn gather(&self, lease: &Lease) -> Gathered {
        self.gatherer.gather(&self.queue, &self.journal, lease, 2, &self.stop).await.expect("gathers")
    }

    async fn seat(&self, worker: &str) -> Seat {
        loop {
            for job in self.queue.calls(Class::Cpu).await.expect("asked") {
                if let Some(seat) = self.queue.take_seat(worker, &job, TTL).await.expect("asked") {
                    return seat;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn all(gathered: Gathered) -> Arc<Party> {
    match gathered {
        Gathered::All(party) => party,
        Gathered::GiveBack | Gathered::Cancelled | Gathered::LeaseLost => panic!("somebody came"),
    }
}

/// Its place, how many there are, and whether it is the first. The ranks stay on the thread that connected them, until all
/// who meet at `end` have been there.
async fn connect(party: Arc<Party>, end: Arc<Barrier>) -> Result<(u32, u32, bool)> {
    blocking(move || {
        let ranks = party.connect(&|| false)?;
        end.wait();
        Ok((ranks.rank(), ranks.world(), ranks.is_first()))
    })
    .await
}

#[tokio::test]
async fn of_two_callers_the_younger_gives_way_and_both_workers_meet() {
    let world = World::new(Duration::from_secs(60));
    let (older, younger) = (world.lease(2, "a").await, world.lease(1, "b").await);
    let (party, seat) = tokio::join!(world.gather(&older), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(matches!(world.gather(&younger).await, Gathered::GiveBack));
        world.queue.release(&younger).await.expect("given back");
        world.seat("b").await
    });
    let party = all(party);
    assert_eq!((&seat.job, party.with.as_slice()), (&older.job, ["b".to_owned()].as_slice()));
    let other = Arc::new(world.gatherer.join(&world.queue, &seat).await.expect("joins"));
    assert_eq!((party.own, other.own), (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)));

    let digest = Digest::of(b"a checkpoint");
    party.announce(7, Some(&digest)).expect("announced");
    let plan = blocking({
        let other = other.clone();
        move || other.plan(&|| false)
    });
    assert_eq!(plan.await.expect("told"), (7, Some(digest)));
    let end = Arc::new(Barrier::new(2));
    let (first, second) = tokio::join!(connect(party, end.clone()), connect(other, end));
    let places = [first, second].map(|place| place.expect("connected"));
    assert_eq!(places, [(0, 2, true), (1, 2, false)]);
    // From here on the queue may forget them.
    assert!(world.queue.calls(Class::Cpu).await.expect("asked").is_empty());
}

#[tokio::test]
async fn no_worker_gives_way_to_a_call_that_it_could_not_serve() {
    let world = World::new(Duration::from_secs(60));
    let job = JobId::from_parts(1_700_000_000_000, 2);
    world.queue.enqueue(&job, Class::Gpu, None).await.expect("queued");
    let older = world.queue.lease("gpu", Class::Gpu, TTL, Duration::ZERO).await.expect("asked").expect("leased");
    world.queue.call(&older, Class::Gpu, 1, "127.0.0.1:1").await.expect("called");
    let lease = world.lease(1, "a").await;
    let (party, seat) = tokio::join!(world.gather(&lease), world.seat("b"));
    assert_eq!((&all(party).with, &seat.job), (&vec!["b".to_owned()], &lease.job));
}

#[tokio::test]
async fn no_worker_gives_way_to_a_job_that_is_too_large_for_it() {
    let world = World::new(Duration::from_secs(60));
    let (older, lease) = (world.lease(2, "b").await, world.lease(1, "a").await);
    world.queue.call(&older, Class::Cpu, 1, "127.0.0.1:1").await.expect("called");
    assert!(matches!(world.gather(&lease).await, Gathered::GiveBack), "it could sit there, as far as it knows");
    world.gatherer.declined.add(&older.job);
    let sit = async {
        // Until the call of the younger stands.
        loop {
            if let Some(seat) = world.queue.take_seat("c", &lease.job, TTL).await.expect("asked") {
                return seat;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (party, _) = tokio::join!(world.gather(&lease), sit);
    assert_eq!(all(party).with, ["c"]);
}

#[tokio::test]
async fn a_worker_that_leaves_before_all_are_connected_ends_the_wait() {
    let world = World::new(Duration::from_secs(60));
    let lease = world.lease(1, "a").await;
    let (party, seat) = tokio::join!(world.gather(&lease), world.seat("b"));
    world.queue.leave_seat(&seat).await.expect("left");
    let error = connect(all(party), Arc::new(Barrier::new(1))).await.expect_err("nobody comes");
    assert!(error.retryable(), "the job can be tried again");
    assert_eq!(error.to_string(), "ranks: a worker is gone before the ranks are connected");
}

#[tokio::test]
async fn too_few_workers_give_the_job_back_and_its_log_says_so_once() {
    let world = World::new(Duration::from_millis(300));
    let lease = world.lease(1, "a").await;
    for _ in 0..2 {
        assert!(matches!(world.gather(&lease).await, Gathered::GiveBack));
    }
    let log = world.journal.log(&lease.job, 1).await.expect("log");
    let told: Vec<&str> = log.iter().map(|entry| entry.message.as_str()).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("waiting for 2 free workers at once (train.ranks)"), "{told:?}");
}

#[tokio::test]
async fn a_cancelled_job_and_a_lost_lease_gather_nobody() {
    let world = World::new(Duration::from_secs(60));
    let lease = world.lease(1, "a").await;
    world.journal.event(&lease.job, 0, tailor_domain::JobEvent::Cancel, "no more").await.expect("cancelled");
    assert!(matches!(world.gather(&lease).await, Gathered::Cancelled));
    world.queue.ack(&lease).await.expect("done with");
    assert!(matches!(world.gather(&lease).await, Gathered::LeaseLost));
    let lease = world.lease(2, "a").await;
    world.stop.cancel();
    assert!(matches!(world.gather(&lease).await, Gathered::GiveBack), "the worker is stopping");
}
