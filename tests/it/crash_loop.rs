//! One job whose trainer is killed with SIGKILL at fifty random moments: it costs time, and nothing else.

use std::time::{Duration, Instant};

use tailor_pb::{registry, training};

use crate::support::clients::Addresses;
use crate::support::{Cluster, Family, Service, Training};

const KILLS: u64 = 50;
/// From this kill on the moments are those after training: while predicting, and while publishing.
const AFTER_TRAINING_FROM: u64 = 42;
const PUBLISHING_FROM: u64 = 48;
/// Some dozen attempts' worth. Should they be trained sooner, the kills of the first phase hit the predicting.
const STEPS: u64 = 1500;

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
    cluster.set("TRAINER__LEASE_MS", "600");
    cluster.set("TRAINER__RECONCILE_MS", "300");
    cluster.set("TRAINER__CHECKPOINT_MS", "50");
    // Attempts that die while predicting get no further than the one before them.
    cluster.set("TRAINER__MAX_ATTEMPTS", "1000");
    cluster.start_all().await;
    cluster.add_base_and_rows(Family::T5).await;
    let at = cluster.addresses.clone();
    at.upload("many", crate::support::rows::csv(400).as_bytes()).await.expect("rows uploaded");

    let killed = create(&at, "killed").await;
    let mut chance = Chance(20_261_125);
    let mut attempts = 0;
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    for kill in 0..KILLS {
        let job = moment(&at, &killed.id, kill, attempts).await;
        *counts.entry(job.state.clone()).or_default() += 1;
        attempts = job.attempts;
        let longest = if job.state == "TRAINING" { 900 } else { 60 };
        tokio::time::sleep(chance.up_to(Duration::from_millis(longest))).await;
        cluster.replace(Service::Trainer).await;
    }
    println!("killed while {counts:?}, {attempts} attempts");
    let finished = patiently(&at, &killed.id, |job| job.state == "SUCCEEDED").await;
    assert!(finished.attempts > KILLS / 2, "{} attempts", finished.attempts);
    assert_eq!((finished.adapter_version, at.versions("killed").await), (1, 1), "one version");
    assert_eq!(finished.last_step.as_ref().map(|step| step.step), Some(STEPS));

    let whole = create(&at, "whole").await;
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
async fn create(at: &Addresses, adapter: &str) -> training::Job {
    let mut request =
        Training { base: Family::T5.base(), dataset: "many", adapter, steps: STEPS, key: adapter }.request();
    request.lora = Some(training::Lora { rank: Some(4), dropout: Some(0.1), ..Default::default() });
    if let Some(evaluation) = &mut request.evaluation {
        evaluation.max_validation_rows = Some(0);
        evaluation.max_new_tokens = Some(32);
    }
    at.trainer().create_job(request).await.expect("job created").into_inner()
}

/// Waits until a new attempt is where kill number `kill` should hit it.
async fn moment(at: &Addresses, id: &str, kill: u64, attempts: u64) -> training::Job {
    let states: &[&str] = match kill {
        ..AFTER_TRAINING_FROM => &["TRAINING", "EVALUATING"],
        AFTER_TRAINING_FROM..PUBLISHING_FROM => &["EVALUATING"],
        _ => &["PUBLISHING", "SUCCEEDED"],
    };
    patiently(at, id, |job| {
        assert_ne!(job.state, "FAILED", "{}", job.error);
        assert!(kill >= PUBLISHING_FROM || job.state != "SUCCEEDED", "the job ended before kill {kill}");
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
