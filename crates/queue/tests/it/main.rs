//! The in-process queue against the suite, in paused time: minutes pass in milliseconds.

use std::sync::Arc;
use std::time::Duration;

use tailor_domain::JobId;
use tailor_queue::{Class, InProcessQueue, JobQueue, conformance};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn the_in_process_queue_conforms() {
    conformance::check(Arc::new(InProcessQueue::new()), Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_in_process_queue_conforms_in_real_time_on_several_threads() {
    conformance::check(Arc::new(InProcessQueue::new()), Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiting_lease_wakes_at_the_deadline_and_not_later() {
    let queue = InProcessQueue::new();
    let job = JobId::from_parts(1, 1);
    queue.enqueue(&job, Class::Cpu, None).await.expect("enqueue");
    let ttl = Duration::from_secs(30);
    queue.lease("dies", Class::Cpu, ttl, Duration::ZERO).await.expect("lease").expect("queued");
    let started = Instant::now();
    let next = queue.lease("heir", Class::Cpu, ttl, Duration::from_secs(3600)).await.expect("lease");
    assert!(next.is_some());
    assert!(started.elapsed() <= ttl + Duration::from_millis(2), "after {:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_loses_no_job() {
    let queue = InProcessQueue::new();
    let job = JobId::from_parts(1, 1);
    let waiting = queue.lease("gives up", Class::Cpu, Duration::from_secs(30), Duration::from_secs(60));
    tokio::time::timeout(Duration::from_secs(1), waiting).await.expect_err("nothing came");
    queue.enqueue(&job, Class::Cpu, None).await.expect("enqueue");
    let lease = queue.lease("next", Class::Cpu, Duration::from_secs(30), Duration::ZERO).await.expect("lease");
    assert_eq!(lease.map(|lease| lease.job), Some(job));
}
