//! A job that no worker which is there could run: its owner is told at once, and it does not wait for ever.

use tailor_pb::training;
use tonic::{Code, Status};

use crate::support::clients::Addresses;
use crate::support::{Family, Training, Up, eventually};

async fn create(at: &Addresses, adapter: &str, optimizer: &str) -> Result<training::Job, Status> {
    let mut request = Training { base: Family::Llama.base(), dataset: "rows", adapter, steps: 2, key: "" }.request();
    if let Some(training) = &mut request.training {
        training.optimizer = optimizer.into();
    }
    Ok(at.trainer().create_job(request).await?.into_inner())
}

async fn log(at: &Addresses, id: &str) -> Vec<String> {
    let request = training::WatchJobRequest { id: id.to_owned(), from_sequence: 1, no_follow: true };
    let mut events = at.trainer().watch_job(request).await.expect("events").into_inner();
    let mut messages = Vec::new();
    while let Some(event) = events.message().await.expect("an event") {
        messages.push(event.message);
    }
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_nobody_could_run_says_what_it_waits_for_and_is_given_up_in_time() {
    let mut up = Up::with(&[("TAILOR__TRAINER__WORKER", "false")]).await;
    up.add_base_and_rows(Family::Llama).await;
    let at = up.addresses.clone();
    let paged = create(&at, "paged", "paged_adamw").await.expect("a worker may come");
    let plain = create(&at, "plain", "adamw").await.expect("a worker may come");
    assert_eq!(paged.waiting, "no trainer with a GPU has been there yet");
    assert_eq!(plain.waiting, "no trainer has been there yet");
    let told = log(&at, &paged.id).await;
    assert!(told.iter().any(|message| message.contains("GPU has been there yet; the job waits for one")), "{told:?}");
    let listed = up.cli().text(&["job", "list"]);
    assert!(listed.contains(&format!("{} waits: no trainer with a GPU", paged.id)), "{listed}");

    // A worker comes, and it has no GPU.
    up.stop();
    let Up { folder, state, .. } = up;
    let up = Up::on(folder, Some(state), &[("TAILOR__TRAINER__UNCLAIMED_MS", "1")]).await;
    let at = up.addresses.clone();
    assert_eq!(at.succeeded(&plain.id).await.waiting, "");
    let failed = eventually("the job is given up", async || {
        let job = at.job(&paged.id).await;
        (job.state == "FAILED").then_some(job)
    })
    .await;
    assert!(failed.error.contains("is given up (trainer.unclaimed_ms)"), "{}", failed.error);
    assert_eq!(failed.waiting, "");
    let refused = create(&at, "again", "paged_adamw").await.expect_err("all trainers are CPUs, and always were");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("take adamw"), "{refused}");
}
