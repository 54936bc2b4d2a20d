//! A job that is set aside gives its worker to others, loses nothing, and comes to the bytes of one that never waited.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tailor_pb::{registry, training};
use tonic::Code;

use crate::support::clients::Addresses;
use crate::support::{Cluster, Family, Service, Training, Up, eventually};

/// Steps of a job that lasts some seconds, long enough to be paused in the middle.
const LONG: u64 = 400;

async fn create(at: &Addresses, adapter: &str, steps: u64) -> String {
    let mut request = Training { base: Family::T5.base(), dataset: "rows", adapter, steps, key: adapter }.request();
    // With dropout, so that the generator's place matters.
    request.lora = Some(training::Lora { rank: Some(4), dropout: Some(0.1), ..Default::default() });
    at.trainer().create_job(request).await.expect("job created").into_inner().id
}

async fn pause(at: &Addresses, id: &str) -> training::Job {
    let request = training::PauseJobRequest { id: id.to_owned() };
    at.trainer().pause_job(request).await.expect("paused").into_inner()
}

async fn resume(at: &Addresses, id: &str) -> training::Job {
    let request = training::ResumeJobRequest { id: id.to_owned() };
    at.trainer().resume_job(request).await.expect("resumed").into_inner()
}

/// Step, and whether the job can still go on from it, newest first.
async fn listed_checkpoints(at: &Addresses, id: &str) -> Vec<(u64, bool)> {
    let request = training::ListCheckpointsRequest { job_id: id.to_owned(), page: None };
    let listed = at.trainer().list_checkpoints(request).await.expect("listed").into_inner();
    assert_eq!(listed.next_page_token, "");
    listed.checkpoints.iter().map(|saved| (saved.step, saved.kept)).collect()
}

async fn weights(at: &Addresses, adapter: &str) -> String {
    let request = registry::ResolveRequest { reference: format!("{adapter}@1") };
    at.registry().resolve(request).await.expect("resolved").into_inner().weights_digest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_frees_its_worker_outlives_it_and_comes_to_the_same_bytes() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.add_base_and_rows(Family::T5).await;
    let at = cluster.addresses.clone();
    let id = create(&at, "paused", LONG).await;
    at.wait_for_steps(&id).await;
    // One that waits behind it is paused where it stands.
    let waiting = create(&at, "waiting", 5).await;
    assert_eq!(pause(&at, &waiting).await.state, "PAUSED");
    assert_eq!(pause(&at, &id).await.state, "PAUSED");
    assert_eq!(pause(&at, &id).await.state, "PAUSED", "asked twice, paused once");

    // The only worker is free, and the paused jobs are not in its way.
    let other = create(&at, "other", 5).await;
    at.succeeded(&other).await;
    let (aside, unbegun) = (at.job(&id).await, at.job(&waiting).await);
    assert_eq!((aside.state.as_str(), aside.attempts), ("PAUSED", 1), "nobody goes on with it");
    assert_eq!((unbegun.state.as_str(), unbegun.attempts), ("PAUSED", 0));
    let paused_at = aside.last_step.as_ref().expect("steps were made").step;
    assert_eq!(listed_checkpoints(&at, &id).await.first(), Some(&(paused_at, true)), "where it was paused");
    assert_eq!(listed_checkpoints(&at, &waiting).await, []);
    let unknown = training::ListCheckpointsRequest { job_id: "01m8efaj4c432ncct34rgj697z".into(), page: None };
    assert_eq!(at.trainer().list_checkpoints(unknown).await.expect_err("no such job").code(), Code::NotFound);
    let page = Some(tailor_pb::common::Page { size: 0, token: "x".into() });
    let foreign = training::ListCheckpointsRequest { job_id: id.clone(), page };
    assert_eq!(at.trainer().list_checkpoints(foreign).await.expect_err("no token").code(), Code::InvalidArgument);

    // Whoever knew of it is gone.
    assert!(cluster.redis.command("FLUSHALL").starts_with("+OK"));
    cluster.replace(Service::Trainer).await;
    assert_ne!(resume(&at, &id).await.state, "PAUSED");
    let mut went_on_after = None;
    at.watch_until(&id, |event| {
        let after = event.message.split_once("going on after step ").map(|(_, rest)| rest.to_owned());
        went_on_after = went_on_after.take().or(after);
        event.state == "TRAINING" && went_on_after.is_some()
    })
    .await;
    let saved = went_on_after.expect("a step");
    assert_eq!(saved.split(',').next(), Some(paused_at.to_string().as_str()), "no step is made twice");

    // So soon that the worker may never see it paused.
    pause(&at, &id).await;
    resume(&at, &id).await;
    resume(&at, &waiting).await;
    let (job, waited) = (at.succeeded(&id).await, at.succeeded(&waiting).await);
    assert_eq!((job.adapter_version, at.versions("paused").await, waited.adapter_version), (1, 1, 1));
    assert_eq!(job.last_step.map(|step| step.step), Some(LONG));
    assert!(listed_checkpoints(&at, &id).await.iter().all(|(_, kept)| !kept), "nobody goes on from there");

    let whole = create(&at, "whole", LONG).await;
    let whole = at.succeeded(&whole).await;
    assert_eq!(whole.attempts, 1, "this one was left alone");
    assert_eq!(weights(&at, "paused").await, weights(&at, "whole").await, "the same bytes");
    let loss = |job: &training::Job| job.metrics["train_loss"].to_bits();
    assert_eq!(loss(&job), loss(&whole), "the same figures");

    for asked in ["pause", "resume"] {
        let refused = match asked {
            "pause" => at.trainer().pause_job(training::PauseJobRequest { id: id.clone() }).await,
            _ => at.trainer().resume_job(training::ResumeJobRequest { id: id.clone() }).await,
        };
        let refused = refused.expect_err("it is done");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("SUCCEEDED") && refused.message().contains(&id), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_can_be_cancelled_and_leaves_no_checkpoint_behind() {
    let up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    let cli = up.cli();
    let train =
        ["train", "--base", "little-t5", "--dataset", "rows", "--adapter", "a", "--rank", "4", "--epochs", "1000"];
    let id = cli.json(&[&train[..], &["--max-steps", "100000", "--detach"]].concat())["id"].clone();
    let id = id.as_str().expect("id");
    up.addresses.wait_for_steps(id).await;
    assert_eq!(cli.json(&["job", "pause", id])["state"], "PAUSED");
    let saved = eventually("the worker saves the job", async || {
        let saved = checkpoints(&up.state, id);
        (!saved.is_empty() && saved.iter().any(|blob| blob.is_file())).then_some(saved)
    })
    .await;
    assert_eq!(cli.json(&["job", "show", id])["state"], "PAUSED");
    assert_eq!(cli.json(&["job", "cancel", id])["state"], "CANCELLED");
    assert!(saved.iter().all(|blob| !blob.exists()), "{saved:?}");
    cli.refused(&["job", "resume", id]).says("FAILED_PRECONDITION", &[id, "CANCELLED", "create it anew"]);
    cli.refused(&["job", "pause", id]).says("FAILED_PRECONDITION", &[id, "CANCELLED", "waits or trains"]);
    let unknown = "01arz3ndektsv4rrffq69g5fav";
    cli.refused(&["job", "pause", unknown]).says("NOT_FOUND", &[unknown]);
    cli.refused(&["job", "resume", unknown]).says("NOT_FOUND", &[unknown]);
}

/// Where the bytes of a job's checkpoints are, or were.
fn checkpoints(state: &Path, job: &str) -> Vec<PathBuf> {
    let Ok(records) = std::fs::read_dir(state.join("store/jobs").join(job).join("checkpoints")) else {
        return Vec::new();
    };
    let blob = |record: std::fs::DirEntry| -> Option<PathBuf> {
        let record: Value = serde_json::from_slice(&std::fs::read(record.path()).ok()?).ok()?;
        let hex = record["digest"].as_str()?.strip_prefix("sha256:")?.to_owned();
        Some(state.join("store/blobs/sha256").join(&hex[..2]).join(hex))
    };
    records.filter_map(|record| blob(record.ok()?)).collect()
}
