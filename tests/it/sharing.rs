//! One worker process that trains several jobs at a time on one resident base.

use std::collections::BTreeMap;
use std::time::Duration;

use tailor_pb::{registry, training};

use crate::support::clients::Addresses;
use crate::support::{Cluster, Family, Service, Training};

/// Long enough that all have begun before the first one ends.
const STEPS: u64 = 60;
/// Base and rank of the jobs whose adapters are compared; three share a base.
const JOBS: [(Family, u32); 4] = [(Family::Llama, 2), (Family::Llama, 4), (Family::Llama, 8), (Family::T5, 4)];

fn adapter(kind: &str, (family, rank): (Family, u32)) -> String {
    format!("{kind}-{}-{rank}", family.base())
}

/// With dropout, so that the random generator's place matters.
fn request(adapter: &str, (family, rank): (Family, u32), steps: u64) -> training::CreateJobRequest {
    let mut request = Training { base: family.base(), dataset: "rows", adapter, steps, key: adapter }.request();
    let lora = training::Lora { rank: Some(rank), dropout: Some(0.1), ..Default::default() };
    request.lora = Some(lora);
    if let Some(training) = &mut request.training {
        training.seed = Some(u64::from(rank));
    }
    request
}

async fn create(at: &Addresses, request: training::CreateJobRequest) -> training::Job {
    at.trainer().create_job(request).await.expect("job created").into_inner()
}

async fn weights(at: &Addresses, adapter: &str) -> String {
    let request = registry::ResolveRequest { reference: format!("{adapter}@1") };
    at.registry().resolve(request).await.expect("resolved").into_inner().weights_digest
}

/// Whether the job's log says that it found its base in memory.
async fn shared(at: &Addresses, id: &str) -> bool {
    let request = training::WatchJobRequest { id: id.to_owned(), from_sequence: 1, no_follow: true };
    let mut events = at.trainer().watch_job(request).await.expect("events").into_inner();
    let mut found = false;
    while let Some(event) = events.message().await.expect("an event") {
        found |= event.message.contains("in memory already and shared");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_share_a_worker_publish_the_bytes_of_jobs_that_were_alone() {
    let Some(mut cluster) = Cluster::prepare() else { return };
    cluster.set("TRAINER__JOBS_AT_ONCE", "6");
    cluster.set("TRAINER__CHECKPOINT_MS", "300");
    // Five jobs keep the store busy; that a lease can be lost is looked at elsewhere.
    cluster.set("TRAINER__LEASE_MS", "5000");
    cluster.start_all().await;
    for family in Family::ALL {
        cluster.add_base_and_rows(family).await;
    }
    let at = cluster.addresses.clone();
    let mut together = BTreeMap::new();
    for job in JOBS {
        let name = adapter("together", job);
        together.insert(name.clone(), create(&at, request(&name, job, STEPS)).await.id);
    }
    let cancelled = create(&at, request("cancelled", (Family::Llama, 3), 100_000)).await;
    // All five are under way at once; then one is cancelled, and the process dies.
    for id in together.values().chain([&cancelled.id]) {
        at.wait_for_steps(id).await;
    }
    let cancel = training::CancelJobRequest { id: cancelled.id.clone() };
    at.trainer().cancel_job(cancel).await.expect("cancelled");
    cluster.replace(Service::Trainer).await;
    let mut gone_on_with = 0;
    for (name, id) in &together {
        let job = at.succeeded(id).await;
        assert_eq!(job.adapter_version, 1, "{name}");
        gone_on_with += usize::from(job.attempts == 2);
    }
    assert!(gone_on_with >= 2, "{gone_on_with} jobs were under way when their process died");
    assert_eq!(at.job(&cancelled.id).await.state, "CANCELLED");
    let mut sharing = 0;
    for id in together.values() {
        sharing += usize::from(shared(&at, id).await);
    }
    assert!(sharing >= 2, "{sharing} jobs found the base in memory; three are on the same");

    cluster.set("TRAINER__JOBS_AT_ONCE", "1");
    cluster.replace(Service::Trainer).await;
    for job in JOBS {
        let name = adapter("alone", job);
        let alone = create(&at, request(&name, job, STEPS)).await;
        assert_eq!(at.succeeded(&alone.id).await.attempts, 1);
        assert_eq!(weights(&at, &name).await, weights(&at, &adapter("together", job)).await, "{name}");
        assert!(!shared(&at, &alone.id).await);
    }
}

/// A job whose adapter weighs more than its base.
fn heavy(adapter: &str, steps: u64) -> training::CreateJobRequest {
    let mut request = request(adapter, (Family::Llama, 1000), steps);
    if let Some(training) = &mut request.training {
        training.max_tokens = Some(96);
    }
    request
}

/// A job that fits beside a heavy one.
fn small(adapter: &str) -> training::CreateJobRequest {
    let mut request = request(adapter, (Family::Llama, 2), 5);
    if let Some(training) = &mut request.training {
        training.max_tokens = Some(96);
    }
    request
}

/// A worker with memory for a heavy job and small ones, and a heavy job that runs there until it is cancelled.
async fn with_a_heavy_job(overtake_ms: &str) -> Option<(Cluster, training::Job)> {
    const BESIDE: u64 = 20 << 20;
    let mut cluster = Cluster::prepare()?;
    cluster.set("TRAINER__JOBS_AT_ONCE", "4");
    cluster.set("TRAINER__OVERTAKE_MS", overtake_ms);
    cluster.start_all().await;
    cluster.add_base_and_rows(Family::Llama).await;
    let at = cluster.addresses.clone();
    let plan = training::PlanJobRequest { job: Some(heavy("planned", 1)), ..Default::default() };
    let plan = at.trainer().plan_job(plan).await.expect("planned").into_inner();
    let own = plan.fits.iter().find(|fit| fit.own).expect("the trainer said what it has");
    let optimizer = own.parts.iter().find(|part| part.name == "optimizer").expect("a part").bytes;
    assert!(optimizer > BESIDE, "a second one of these does not fit where a small one does");
    cluster.set("TRAINER__MEMORY_BYTES", (own.needed_bytes + BESIDE).to_string());
    cluster.replace(Service::Trainer).await;

    let running = create(&at, heavy("running", 100_000)).await;
    at.wait_for_steps(&running.id).await;
    Some((cluster, running))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_fit_beside_what_runs_waits_for_it() {
    let Some((cluster, running)) = with_a_heavy_job("600000").await else { return };
    let at = cluster.addresses.clone();
    let waiting = create(&at, heavy("waiting", 1)).await;
    let small = create(&at, small("small")).await;
    at.succeeded(&small.id).await;
    assert_eq!(at.job(&waiting.id).await.attempts, 0, "it waits in the queue and costs no attempt");
    let cancel = training::CancelJobRequest { id: running.id.clone() };
    at.trainer().cancel_job(cancel).await.expect("cancelled");
    assert_eq!(at.succeeded(&waiting.id).await.attempts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_fit_go_before_one_that_does_not_for_so_long_and_no_longer() {
    let Some((cluster, running)) = with_a_heavy_job("1").await else { return };
    let at = cluster.addresses.clone();
    let waiting = create(&at, heavy("waiting", 1)).await;
    at.watch_until(&waiting.id, |event| event.message.contains("takes no other job before this one")).await;
    let small = create(&at, small("small")).await;
    // It would begin at once.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((at.job(&small.id).await.attempts, at.job(&waiting.id).await.attempts), (0, 0));
    let cancel = training::CancelJobRequest { id: running.id.clone() };
    at.trainer().cancel_job(cancel).await.expect("cancelled");
    assert_eq!(at.succeeded(&waiting.id).await.attempts, 1);
    assert_eq!(at.succeeded(&small.id).await.attempts, 1);
}
