use std::time::Duration;

use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::dataset::upload_dataset_request::Part;
use tailor_pb::dataset::{UploadDatasetRequest, UploadHeader};
use tailor_testkit::{Fault, FlakyStore, Op, SmallDisk};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::{NAME, ROWS, Service, csv, expect_status, header};

#[tokio::test]
async fn bytes_that_are_not_those_of_the_sha256_are_refused() {
    let service = Service::start().await;
    let sha256 = Digest::of(b"another file").to_string();
    let outcome = service.upload(UploadHeader { sha256, ..header(NAME) }, &csv(1, ROWS)).await;
    expect_status(outcome, Code::InvalidArgument, &["errors.csv", "sha256", "send it again"]);
    expect_status(service.get(0).await, Code::NotFound, &[]);
}

#[tokio::test]
async fn a_stream_out_of_order_is_refused() {
    let service = Service::start().await;
    for parts in [vec![], vec![Part::Chunk(csv(1, ROWS))], vec![Part::Header(header(NAME)), Part::Header(header(NAME))]]
    {
        expect_status(service.upload_parts(parts).await, Code::InvalidArgument, &["header"]);
    }
    let large = vec![Part::Header(header(NAME)), Part::Chunk(vec![b'x'; (1 << 20) + 1])];
    expect_status(service.upload_parts(large).await, Code::InvalidArgument, &["1048577 bytes"]);
}

#[tokio::test]
async fn a_file_above_the_limit_is_refused_and_forgotten() {
    let service = Service::with(Store::memory(), |settings| settings.dataset.max_upload_bytes = 3 << 20).await;
    let outcome = service.upload(header(NAME), &vec![b'x'; 5 << 20]).await;
    expect_status(outcome, Code::ResourceExhausted, &["limit of 3145728 bytes", "dataset.max_upload_bytes"]);
    assert_eq!(service.spooled(), 0);
    service.upload(header(NAME), &csv(1, ROWS)).await.expect("a smaller one is welcome");
}

#[tokio::test]
async fn a_caller_that_dies_in_mid_upload_leaves_nothing() {
    let service = Service::start().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut client = service.client.clone();
    let call = tokio::spawn(async move { client.upload_dataset(ReceiverStream::new(receiver)).await });
    for part in [Part::Header(header(NAME)), Part::Chunk(csv(1, ROWS)), Part::Chunk(b"99,en,half a".to_vec())] {
        sender.send(UploadDatasetRequest { part: Some(part) }).await.expect("sent");
    }
    while service.spooled() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    call.abort();
    for _ in 0..200 {
        if service.spooled() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(sender);
    assert_eq!(service.spooled(), 0, "what had arrived is deleted");
    expect_status(service.get(0).await, Code::NotFound, &[]);
}

/// Each write of an upload fails in turn; nothing is visible, and the same upload succeeds afterwards.
#[tokio::test]
async fn a_store_that_fails_at_any_write_leaves_no_dataset() {
    for (fault, code) in [(Fault::Away, Code::Unavailable), (Fault::Full, Code::ResourceExhausted)] {
        for (op, nth) in [(Op::Put, 1), (Op::Put, 2), (Op::Put, 3), (Op::Create, 1)] {
            let (backend, faults) = FlakyStore::memory();
            let service = Service::over(Store::over(backend, "memory://flaky")).await;
            faults.fail_nth(op, nth, fault);
            expect_status(service.upload(header(NAME), &csv(1, ROWS)).await, code, &[]);
            expect_status(service.get(0).await, Code::NotFound, &[]);
            assert_eq!(service.spooled(), 0);
            let answer = service.upload(header(NAME), &csv(1, ROWS)).await.expect("the store is back");
            assert!(answer.created, "{op:?} {nth} failed by {fault:?}");
            assert_eq!(answer.dataset.expect("dataset").version, 1);
        }
    }
}

#[tokio::test]
async fn an_answer_lost_after_the_last_write_does_not_make_a_second_version() {
    let (backend, faults) = FlakyStore::memory();
    let service = Service::over(Store::over(backend, "memory://flaky")).await;
    faults.fail_nth(Op::Create, 1, Fault::AnswerLost);
    let outcome = service.upload(header(NAME), &csv(1, ROWS)).await;
    expect_status(outcome, Code::Unavailable, &["memory://flaky does not answer"]);
    let answer = service.upload(header(NAME), &csv(1, ROWS)).await.expect("again");
    assert!(!answer.created);
    assert_eq!(answer.dataset.expect("dataset").version, 1);
}

#[tokio::test]
async fn a_store_that_is_away_is_unavailable_for_every_call() {
    let (backend, faults) = FlakyStore::memory();
    let service = Service::over(Store::over(backend, "memory://flaky")).await;
    service.upload(header(NAME), &csv(1, ROWS)).await.expect("uploaded");
    faults.cut();
    let next = UploadHeader { new_version: true, ..header(NAME) };
    expect_status(service.upload(next, &csv(2, ROWS)).await, Code::Unavailable, &["check that it runs"]);
    expect_status(service.get(0).await, Code::Unavailable, &["memory://flaky"]);
    expect_status(service.shards("tiny", 64).await, Code::Unavailable, &["memory://flaky"]);
    faults.heal();
    assert_eq!(service.get(0).await.expect("still there").version, 1);
}

#[tokio::test]
async fn a_full_disk_refuses_the_upload_and_keeps_what_was_there() {
    let Some(disk) = SmallDisk::mount(2 << 20) else { return };
    let large = csv(2, 60_000);
    assert!(large.len() > 2 << 20);

    // The spool's disk.
    let cache = disk.join("cache");
    let service = Service::with(Store::memory(), |settings| settings.cache_dir = cache).await;
    let outcome = service.upload(header(NAME), &large).await;
    expect_status(outcome, Code::ResourceExhausted, &["no room left", "free some space"]);
    service.upload(header(NAME), &csv(1, ROWS)).await.expect("what fits is welcome");

    // The store's disk.
    let store = Store::open(&disk.join("store").display().to_string(), &Default::default()).expect("store");
    let service = Service::over(store).await;
    let kept = service.upload(header(NAME), &csv(1, ROWS)).await.expect("fits").dataset;
    let next = UploadHeader { new_version: true, ..header(NAME) };
    expect_status(service.upload(next, &large).await, Code::ResourceExhausted, &["no room left"]);
    assert_eq!(service.get(0).await.ok(), kept);
    expect_status(service.get(2).await, Code::NotFound, &["no version 2"]);
    assert_eq!(service.spooled(), 0);
}
