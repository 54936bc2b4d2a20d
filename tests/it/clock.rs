//! The host's clock jumps while a job runs: days ahead, then back before the job was made. Nothing is lost, the log stays in
//! its order, and what is learnt is the same to the byte.

use std::path::Path;
use std::process::Command;

use tailor_pb::{registry, training};

use crate::support::process::repository;
use crate::support::{Family, Training, Up};

const STEPS: u64 = 400;
const DAY_MS: i64 = 86_400_000;

/// The library that shifts a process's wall clock, built by the C compiler that Rust links with.
fn build_shift(folder: &Path) -> String {
    let (source, library) = (repository().join("tests/clock/jump.c"), folder.join("jump.so"));
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(built.expect("a C compiler").success());
    library.display().to_string()
}

fn training(adapter: &str) -> Training<'_> {
    Training { base: Family::T5.base(), dataset: "rows", adapter, steps: STEPS, key: adapter }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_in_mid_job_costs_nothing() {
    let tools = tailor_testkit::TempDir::new();
    let (library, clock) = (build_shift(tools.path()), tools.join("offset"));
    let clock_path = clock.display().to_string();
    let set = |days: i64| std::fs::write(&clock, (days * DAY_MS / 1000).to_string()).expect("sets the clock");
    set(0);
    let mut up = Up::with(&[("LD_PRELOAD", &library), ("TAILOR_TEST_CLOCK", &clock_path)]).await;
    up.add_base_and_rows(Family::T5).await;
    let at = &up.addresses;
    let calm = at.succeeded(&at.create(&training("calm")).await.id).await;

    let job = at.create(&training("shaken")).await;
    at.wait_for_steps(&job.id).await;
    set(3);
    let ahead = job.created_at_ms as i64 + 2 * DAY_MS;
    at.watch_until(&job.id, |event| event.at_ms as i64 > ahead).await;
    // Made while the clock is ahead, so that the list has to hold an order against it.
    let next = at.create(&training("next")).await;
    set(-30);
    let behind = job.created_at_ms as i64 - 20 * DAY_MS;
    at.watch_until(&job.id, |event| (event.at_ms as i64) < behind).await;
    let job = at.succeeded(&job.id).await;
    assert_eq!((job.attempts, job.adapter_version), (1, 1), "no lease ran out and nobody began anew");
    assert_eq!(weights(&up, "shaken").await, weights(&up, "calm").await, "the same bytes");
    assert_eq!(job.metrics["train_loss"].to_bits(), calm.metrics["train_loss"].to_bits());
    assert_eq!(at.succeeded(&next.id).await.attempts, 1);

    let late = at.succeeded(&at.create(&training("late")).await.id).await;
    let listed = at.trainer().list_jobs(training::ListJobsRequest::default()).await.expect("listed").into_inner().jobs;
    let mut ids: Vec<_> = listed.into_iter().map(|job| job.id).collect();
    ids.sort_unstable();
    let mut expected = vec![calm.id, job.id, next.id, late.id];
    expected.sort_unstable();
    assert_eq!(ids, expected, "each job is there once");
    assert_eq!(up.stop(), Some(0));
}

async fn weights(up: &Up, adapter: &str) -> String {
    let request = registry::GetVersionRequest { adapter: adapter.to_owned(), version: 1 };
    up.addresses.registry().get_version(request).await.expect("a version").into_inner().weights_digest
}
