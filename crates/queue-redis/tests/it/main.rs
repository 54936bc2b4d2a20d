//! The queue over a real redis-server, which is flushed, killed and restarted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tailor_domain::{ErrorCode, JobId};
use tailor_queue::{Class, Depth, Error, JobQueue, Lease, conformance};
use tailor_queue_redis::{GPU_STREAM, GROUP, RedisQueue, STREAM};
use tailor_testkit::{RedisServer, free_port};

const TTL: Duration = Duration::from_secs(30);

fn job(number: u128) -> JobId {
    JobId::from_parts(1_700_000_000_000, number)
}

async fn connect(server: &RedisServer) -> RedisQueue {
    RedisQueue::connect(&server.url()).await.expect("connect")
}

async fn lease_now(queue: &RedisQueue) -> Option<Lease> {
    queue.lease("worker", Class::Cpu, TTL, Duration::ZERO).await.expect("lease")
}

fn assert_lost(outcome: Result<(), Error>) {
    assert!(matches!(outcome, Err(Error::LeaseLost { .. })), "{outcome:?}");
}

/// Repeats a call while the server is away.
async fn until_back<T>(mut call: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let started = Instant::now();
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) if error.retryable() && started.elapsed() < Duration::from_secs(15) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("after {:?}: {error}", started.elapsed()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_redis_queue_conforms() {
    let Some(server) = RedisServer::spawn() else { return };
    conformance::check(Arc::new(connect(&server).await), Duration::from_millis(150)).await;
    for stream in [STREAM, GPU_STREAM] {
        let length = server.command(&format!("XLEN {stream}"));
        assert_eq!(length.trim(), ":0", "finished jobs leave nothing behind in {stream}");
        let consumers = server.command(&format!("XINFO CONSUMERS {stream} {GROUP}"));
        assert_eq!(consumers.trim(), "*0", "idle workers leave no name behind in {stream}");
    }
}

#[tokio::test]
async fn a_flush_in_mid_job_loses_the_lease_and_enqueue_works_again() {
    let Some(server) = RedisServer::spawn() else { return };
    let queue = connect(&server).await;
    queue.enqueue(&job(1), Class::Cpu, None).await.expect("enqueue");
    let before = lease_now(&queue).await.expect("queued");
    server.command("FLUSHALL");

    assert_lost(queue.heartbeat(&before).await);
    assert_lost(queue.ack(&before).await);
    assert_eq!(queue.depth().await, Ok(Depth::default()));
    assert_eq!(lease_now(&queue).await, None, "an empty server is a working server");

    assert_eq!(queue.enqueue(&job(1), Class::Cpu, None).await, Ok(true), "the reconciler queues it again");
    let after = lease_now(&queue).await.expect("queued again");
    assert!(after.epoch > before.epoch, "{} after {}", after.epoch, before.epoch);
    assert_lost(queue.ack(&before).await);
    queue.ack(&after).await.expect("ack");
}

#[tokio::test]
async fn a_worker_that_waits_while_the_server_is_flushed_still_gets_the_next_job() {
    let Some(server) = RedisServer::spawn() else { return };
    let queue = Arc::new(connect(&server).await);
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.lease("waiter", Class::Cpu, TTL, TTL).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.command("FLUSHALL");
    queue.enqueue(&job(1), Class::Cpu, None).await.expect("enqueue");
    let lease = waiting.await.expect("join").expect("lease");
    assert_eq!(lease.map(|lease| lease.job), Some(job(1)));
}

#[tokio::test]
async fn a_killed_server_with_its_log_on_disk_comes_back_with_every_job_and_lease() {
    let Some(mut server) = RedisServer::spawn_durable() else { return };
    let queue = connect(&server).await;
    for number in 1..=3 {
        queue.enqueue(&job(number), Class::Cpu, Some(format!("trace-{number}"))).await.expect("enqueue");
    }
    let held = lease_now(&queue).await.expect("queued");
    server.kill();
    let error = queue.heartbeat(&held).await.expect_err("the server is dead");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.to_string().contains(&format!("127.0.0.1:{}", server.port())), "{error}");
    server.restart();

    until_back(async || queue.heartbeat(&held).await).await;
    assert_eq!(queue.depth().await, Ok(Depth { queued: 2, leased: 1 }));
    assert_eq!(queue.enqueue(&job(1), Class::Cpu, None).await, Ok(false), "still leased");
    let next = lease_now(&queue).await.expect("queued");
    assert_eq!((next.job, next.trace.as_deref()), (job(2), Some("trace-2")));
    queue.ack(&held).await.expect("ack");
}

#[tokio::test]
async fn a_killed_server_that_forgot_everything_serves_again() {
    let Some(mut server) = RedisServer::spawn() else { return };
    let queue = connect(&server).await;
    queue.enqueue(&job(1), Class::Cpu, None).await.expect("enqueue");
    let held = lease_now(&queue).await.expect("queued");
    server.restart();
    assert!(
        until_back(async || queue.enqueue(&job(1), Class::Cpu, None).await).await,
        "it was forgotten, so it is new"
    );
    assert_lost(queue.ack(&held).await);
    // A hint channel comes back as well.
    let queue = Arc::new(queue);
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.wait_changed(&job(1), TTL).await }
    });
    let started = Instant::now();
    while !waiting.is_finished() && started.elapsed() < Duration::from_secs(10) {
        queue.notify(&job(1)).await.expect("notify");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(waiting.await.expect("join"), Ok(true));
}

#[tokio::test]
async fn a_zombie_changes_nothing_even_over_another_connection() {
    let Some(server) = RedisServer::spawn() else { return };
    let (first, second) = (connect(&server).await, connect(&server).await);
    first.enqueue(&job(1), Class::Cpu, None).await.expect("enqueue");
    let ttl = Duration::from_millis(200);
    let zombie = first.lease("zombie", Class::Cpu, ttl, Duration::ZERO).await.expect("lease").expect("queued");
    let heir = second.lease("heir", Class::Cpu, TTL, TTL).await.expect("lease").expect("expired");
    assert!(heir.epoch > zombie.epoch);
    assert_lost(first.ack(&zombie).await);
    assert_lost(first.heartbeat(&zombie).await);
    assert_lost(first.release(&zombie).await);
    assert_eq!(second.depth().await, Ok(Depth { queued: 0, leased: 1 }));
    second.ack(&heir).await.expect("the heir's lease is untouched");
}

#[tokio::test]
async fn a_dead_workers_job_counts_as_lag_again() {
    let Some(server) = RedisServer::spawn() else { return };
    let queue = connect(&server).await;
    let lag = || {
        let info = server.command(&format!("XINFO GROUPS {STREAM}"));
        let after = info.rsplit_once("lag\r\n").map(|(_, after)| after.trim().to_owned());
        after.unwrap_or_else(|| panic!("no lag in {info:?}"))
    };
    queue.enqueue(&job(1), Class::Cpu, None).await.expect("enqueue");
    assert_eq!(lag(), ":1");
    queue.lease("dies", Class::Cpu, Duration::from_millis(100), Duration::ZERO).await.expect("lease").expect("queued");
    assert_eq!(lag(), ":0", "delivered entries are no lag");
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Any look at the queue brings it back; the reconciler looks at it all the time.
    assert_eq!(queue.depth().await, Ok(Depth { queued: 1, leased: 0 }));
    assert_eq!(lag(), ":1", "an autoscaler sees the job again");
    let lease = lease_now(&queue).await.expect("queued");
    queue.ack(&lease).await.expect("ack");
    assert_eq!(lag(), ":0");
    queue.enqueue(&job(2), Class::Cpu, None).await.expect("enqueue");
    assert_eq!(lag(), ":1");
}

#[tokio::test]
async fn one_lost_key_does_not_strand_a_job() {
    let Some(server) = RedisServer::spawn() else { return };
    let queue = connect(&server).await;
    let lease_now = async || queue.lease("worker", Class::Gpu, TTL, Duration::ZERO).await.expect("lease");
    for key in [STREAM, GPU_STREAM, "{tailor}:entries", "{tailor}:deadlines", "{tailor}:leases", "{tailor}:epochs"] {
        for (class, leased) in [(Class::Cpu, false), (Class::Cpu, true), (Class::Gpu, false), (Class::Gpu, true)] {
            queue.enqueue(&job(1), class, None).await.expect("enqueue");
            let before = if leased { lease_now().await } else { None };
            server.command(&format!("DEL {key}"));
            queue.enqueue(&job(1), class, None).await.expect("the reconciler enqueues again");
            // Held still, or to be had again: never neither, never twice.
            let held = match &before {
                Some(lease) => queue.heartbeat(lease).await.is_ok(),
                None => false,
            };
            let again = lease_now().await;
            assert_ne!(held, again.is_some(), "{key} lost, {class:?}, leased: {leased}");
            assert_eq!(lease_now().await, None, "{key} lost, {class:?}, leased: {leased}");
            server.command("FLUSHALL");
        }
    }
}

#[tokio::test]
async fn a_job_for_gpus_counts_as_lag_where_an_autoscaler_of_gpus_looks() {
    let Some(server) = RedisServer::spawn() else { return };
    let queue = connect(&server).await;
    queue.enqueue(&job(1), Class::Gpu, None).await.expect("enqueue");
    assert_eq!(lease_now(&queue).await, None, "this worker has none");
    let lag = |stream: &str| {
        let info = server.command(&format!("XINFO GROUPS {stream}"));
        info.rsplit_once("lag\r\n").map(|(_, after)| after.trim().to_owned())
    };
    assert_eq!((lag(STREAM).as_deref(), lag(GPU_STREAM).as_deref()), (Some(":0"), Some(":1")));
}

#[tokio::test]
async fn a_server_that_is_away_at_start_is_named_with_a_remedy() {
    let url = format!("redis://user:hunter2@127.0.0.1:{}", free_port());
    let started = Instant::now();
    let error = RedisQueue::connect(&url).await.expect_err("nobody listens");
    assert!(matches!(error, Error::Unavailable { .. }) && error.retryable(), "{error}");
    let text = error.to_string();
    assert!(text.contains("127.0.0.1:") && text.contains("check that the server runs"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(10), "reported after {:?}", started.elapsed());
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_retried() {
    let Some(server) = RedisServer::spawn() else { return };
    server.command("CONFIG SET requirepass right");
    for url in [server.url(), format!("redis://:wrong@127.0.0.1:{}", server.port())] {
        let error = RedisQueue::connect(&url).await.expect_err("no password, or a wrong one");
        assert!(matches!(error, Error::Refused { .. }) && !error.retryable(), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_address_says_how_to_write_one() {
    let error = RedisQueue::connect("localhost").await.expect_err("no scheme");
    assert!(matches!(error, Error::BadAddress { .. }), "{error}");
    assert!(error.to_string().contains("redis://"), "{error}");
}
