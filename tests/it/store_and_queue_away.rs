//! Redis or the store away: at start, when a job is created, and in mid-job.

use std::time::Duration;

use tailor_testkit::free_port;
use tonic::Code;

use crate::support::{Cluster, Family, PATIENCE, Service, Training, rows};

const LONG: u64 = 400;

/// How long the store is away: moments, or as many seconds as TAILOR_TEST_AWAY_SECONDS says; five minutes cost no job either.
fn away() -> Duration {
    let asked = std::env::var("TAILOR_TEST_AWAY_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(asked.unwrap_or(1))
}

fn training(adapter: &str, steps: u64) -> Training<'_> {
    Training { base: Family::T5.base(), dataset: "rows", adapter, steps, key: "" }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_delays_jobs_and_loses_none() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.add_base_and_rows(Family::T5).await;
    let at = cluster.addresses.clone();
    let running = at.create(&training("away", LONG)).await;
    at.wait_for_steps(&running.id).await;
    cluster.redis.kill();
    // What is running goes on without the queue, and what is asked for is stored.
    let stored = at.create(&training("away", 5)).await;
    assert_eq!(stored.state, "QUEUED");
    let running = at.succeeded(&running.id).await;
    assert_eq!(running.attempts, 1, "nobody had to begin anew");
    assert_eq!(at.job(&stored.id).await.state, "QUEUED", "without a queue nobody is given work");
    cluster.redis.restart();
    at.succeeded(&stored.id).await;
    assert_eq!(at.versions("away").await, 2, "one version each");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_away_in_mid_job_delays_the_log_and_the_version() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.add_base_and_rows(Family::T5).await;
    let at = cluster.addresses.clone();
    let job = at.create(&training("stalled", LONG)).await;
    at.wait_for_steps(&job.id).await;
    cluster.store.shut();
    // Everything that needs the store says so; nothing is half done.
    let refused = at.try_create(&training("other", 5)).await.expect_err("the store is away");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let refused = at.upload("more", rows::csv(20).as_bytes()).await.expect_err("the store is away");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    for part in ["s3://", "does not answer", "check that it runs"] {
        assert!(refused.message().contains(part), "{part:?} is missing in: {}", refused.message());
    }
    tokio::time::sleep(away()).await;
    cluster.store.open();
    let job = at.succeeded(&job.id).await;
    assert_eq!((job.adapter_version, at.versions("stalled").await), (1, 1));
    let listed = at.dataset().list_datasets(tailor_pb::dataset::ListDatasetsRequest::default()).await;
    let names: Vec<_> = listed.expect("listed").into_inner().datasets.into_iter().map(|found| found.name).collect();
    assert_eq!(names, ["rows"], "the refused upload left nothing");
    let jobs = at.trainer().list_jobs(tailor_pb::training::ListJobsRequest::default()).await;
    assert_eq!(jobs.expect("listed").into_inner().jobs.len(), 1, "the refused job left nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_reach_its_store_or_queue_at_start_says_which_and_ends() {
    let Some(mut cluster) = Cluster::prepare() else { return };
    cluster.store.shut();
    for service in Service::ALL {
        cluster.spawn(service);
    }
    for service in Service::ALL {
        let process = cluster.process(service);
        assert_eq!(process.wait(PATIENCE).code(), Some(1), "{service:?}");
        let log = process.log();
        let last = log.lines().last().unwrap_or_default();
        let program = service.program();
        for part in [&format!("{program}: error: store s3://tailor-test at http://127.0.0.1:"), "does not answer"] {
            assert!(last.contains(part), "{part:?} is missing in: {log}");
        }
    }
    cluster.store.open();
    let nobody = free_port();
    cluster.set("QUEUE__URL", format!("redis://user:hush@127.0.0.1:{nobody}"));
    cluster.spawn(Service::Trainer);
    let process = cluster.process(Service::Trainer);
    assert_eq!(process.wait(PATIENCE).code(), Some(1));
    let log = process.log();
    let wanted = format!("tailor-trainer: error: job queue at 127.0.0.1:{nobody} does not answer");
    assert!(log.contains(&wanted), "{wanted:?} is missing in: {log}");
    assert!(!log.contains("hush"), "a password is in the log: {log}");
}
