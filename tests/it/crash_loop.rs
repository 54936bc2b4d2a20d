//! A job whose trainer is killed with SIGKILL at random moments, again and again: it costs time, and nothing else.

use std::time::{Duration, Instant};

use tailor_pb::{registry, training};

use crate::support::clients::Addresses;
use crate::support::{Cluster, Family, Service, Training};

/// How often a trainer is killed, and when.
struct Kills {
    count: u64,
    /// From this kill on the moments are those after training: while predicting, and while publishing.
    predicting_from: u64,
    publishing_from: u64,
    /// Some dozen attempts' worth. Should they be trained sooner, the kills of the first phase hit the predicting.
    steps: u64,
}

/// Every attempt reads the job's whole log, so the time that many of them take grows with the square of their number; in a folder
/// reading is cheap.
const FIFTY: Kills = Kills { count: 50, predicting_from: 42, publishing_from: 48, steps: 1500 };
/// What is being sent to an object store ends in other ways than what is being written to a disk.
const TEN: Kills = Kills { count: 10, predicting_from: 7, publishing_from: 9, steps: 300 };
/// In which an attempt is killed, from the beginning of its training on.
const WHILE_TRAINING: Duration = Duration::from_millis(400);
const AFTER_TRAINING: Duration = Duration::from_millis(60);

/// Moments that nobody chose.
struct Chance(u64);

impl Chance {
    fn up_to(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        most.mul_f64((self.0 >> 40) as f64 / (1u64 << 24) as f64)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_trainer_is_killed_fifty_times_publishes_once_and_the_same_bytes() {
    let Some(mut cluster) = Cluster::prepare() else { return };
    let folder = cluster.folder.join("store").display().to_string();
    cluster.set("STORE__URL", folder);
    publishes_once_and_the_same_bytes(cluster, FIFTY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_over_an_object_store_whose_trainer_is_killed_ten_times_publishes_once_and_the_same_bytes() {
    let Some(cluster) = Cluster::prepare() else { return };
    publishes_once_and_the_same_bytes(cluster, TEN).await;
}

async fn publishes_once_and_the_same_bytes(mut cluster: Cluster, kills: Kills) {
    cluster.set("TRAINER__LEASE_MS", "600");
    cluster.set("TRAINER__RECONCILE_MS", "300");
    cluster.set("TRAINER__CHECKPOINT_MS", "50");
    // Attempts that die while predicting get no further than the one before them.
    cluster.set("TRAINER__MAX_ATTEMPTS", "1000");
    cluster.start_all().await;
    cluster.add_base_and_rows(Family::T5).await;
    let at = cluster.addresses.clone();
    at.upload("many", crate::support::rows::csv(400).as_bytes()).await.expect("rows uploaded");

    let killed = create(&at, "killed", kills.steps).await;
    let mut chance = Chance(20_261_125);
    let mut attempts = 0;
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    for kill in 0..kills.count {
        let job = moment(&at, &killed.id, &kills, kill, attempts).await;
        *counts.entry(job.state.clone()).or_default() += 1;
        attempts = job.attempts;
        let longest = if job.state == "TRAINING" { WHILE_TRAINING } else { AFTER_TRAINING };
        tokio::time::sleep(chance.up_to(longest)).await;
        cluster.replace(Service::Trainer).await;
    }
    println!("killed while {counts:?}, {attempts} attempts");
    let finished = patiently(&at, &killed.id, |job| job.state == "SUCCEEDED").await;
    assert!(finished.attempts > kills.count / 2, "{} attempts", finished.attempts);
    assert_eq!((finished.adapter_version, at.versions("killed").await), (1, 1), "one version");
    assert_eq!(finished.last_step.as_ref().map(|step| step.step), Some(kills.steps));

    let whole = create(&at, "whole", kills.steps).await;
    let whole = patiently(&at, &whole.id, |job| job.state == "SUCCEEDED").await;
    assert_eq!(whole.attempts, 1, "this one was left alone");
    assert_eq!(weights(&at, "killed").await, weights(&at, "whole").await, "the same bytes");
    let loss = |job: &training::Job| job.metrics["train_loss"].to_bits();
    assert_eq!(loss(&finished), loss(&whole), "the same figures");
    for metric in ["exact_match", "gleu", "base_gleu"] {
        assert_eq!(finished.metrics[metric], whole.metrics[metric], "{metric}");
    }
}

/// With dropout, so that the generator's place matters.
async fn create(at: &Addresses, adapter: &str, steps: u64) -> training::Job {
    let mut request = Training { base: Family::T5.base(), dataset: "many", adapter, steps, key: adapter }.request();
    request.lora = Some(training::Lora { rank: Some(4), dropout: Some(0.1), ..Default::default() });
    if let Some(evaluation) = &mut request.evaluation {
        evaluation.max_validation_rows = Some(0);
        evaluation.max_new_tokens = Some(32);
    }
    at.trainer().create_job(request).await.expect("job created").into_inner()
}

/// Waits until a new attempt is where kill number `kill` should hit it.
async fn moment(at: &Addresses, id: &str, kills: &Kills, kill: u64, attempts: u64) -> training::Job {
    let states: &[&str] = if kill < kills.predicting_from {
        &["TRAINING", "EVALUATING"]
    } else if kill < kills.publishing_from {
        &["EVALUATING"]
    } else {
        &["PUBLISHING", "SUCCEEDED"]
    };
    patiently(at, id, |job| {
        assert_ne!(job.state, "FAILED", "{}", job.error);
        assert!(kill >= kills.publishing_from || job.state != "SUCCEEDED", "the job ended before kill {kill}");
        states.contains(&job.state.as_str()) && (job.attempts > attempts || job.state == "SUCCEEDED")
    })
    .await
}

async fn patiently(at: &Addresses, id: &str, wanted: impl Fn(&training::Job) -> bool) -> training::Job {
    let give_up_at = Instant::now() + Duration::from_secs(180);
    loop {
        let request = training::GetJobRequest { id: id.to_owned() };
        // Away while its process is being replaced.
        if let Ok(job) = at.trainer().get_job(request).await {
            let job = job.into_inner();
            if wanted(&job) {
                return job;
            }
            assert!(Instant::now() < give_up_at, "job {id} stays {} after {} attempts", job.state, job.attempts);
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}

async fn weights(at: &Addresses, adapter: &str) -> String {
    let request = registry::ResolveRequest { reference: format!("{adapter}@1") };
    at.registry().resolve(request).await.expect("resolved").into_inner().weights_digest
}
