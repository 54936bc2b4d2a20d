use std::time::Duration;

use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::dataset::upload_dataset_request::Part;
use tailor_pb::dataset::{GetUploadRequest, UploadDatasetRequest, UploadHeader};
use tailor_testkit::{Fault, FlakyStore, Op};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::{NAME, ROWS, Service, csv, expect_status, header};

fn announced(file: &[u8], offset: usize) -> UploadHeader {
    let (sha256, size_bytes) = (Digest::of(file).to_string(), file.len() as u64);
    UploadHeader { sha256, size_bytes, offset: offset as u64, ..header(NAME) }
}

async fn received(service: &Service, file: &[u8]) -> usize {
    let request = GetUploadRequest { sha256: Digest::of(file).to_string() };
    service.client.clone().get_upload(request).await.expect("answers").into_inner().received_bytes as usize
}

/// Sends a part of the file and dies.
async fn break_off_after(service: &Service, file: &[u8], count: usize) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut client = service.client.clone();
    let call = tokio::spawn(async move { client.upload_dataset(ReceiverStream::new(receiver)).await });
    for part in [Part::Header(announced(file, 0)), Part::Chunk(file[..count].to_vec())] {
        sender.send(UploadDatasetRequest { part: Some(part) }).await.expect("sent");
    }
    for _ in 0..500 {
        if received(service, file).await == count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    call.abort();
    drop(sender);
}

#[tokio::test]
async fn an_upload_that_broke_off_goes_on_where_it_ended() {
    let service = Service::start().await;
    let file = csv(1, ROWS);
    let half = file.len() / 2;
    assert_eq!(received(&service, &file).await, 0);
    break_off_after(&service, &file, half).await;
    assert_eq!(received(&service, &file).await, half);
    expect_status(service.get(0).await, Code::NotFound, &[]);
    let mut outcome = service.upload(announced(&file, half), &file[half..]).await;
    // The service may not have heard yet that the first caller is gone: then it still writes.
    for _ in 0..100 {
        if outcome.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        outcome = service.upload(announced(&file, half), &file[half..]).await;
    }
    let dataset = outcome.expect("uploaded").dataset.expect("a dataset");
    assert_eq!((dataset.version, dataset.source_size_bytes), (1, file.len() as u64));
    assert_eq!((service.spooled(), received(&service, &file).await), (0, 0), "stored, so forgotten");
}

#[tokio::test]
async fn a_stream_that_ends_early_is_one_that_broke_off() {
    let service = Service::start().await;
    let file = csv(1, ROWS);
    for (from, to) in [(0, 100), (100, 300)] {
        let outcome = service.upload(announced(&file, from), &file[from..to]).await;
        let says = format!("{to} of the announced {} bytes", file.len());
        expect_status(outcome, Code::Cancelled, &[&says, "nothing was stored"]);
        assert_eq!(received(&service, &file).await, to);
    }
    assert!(service.upload(announced(&file, 300), &file[300..]).await.expect("the rest").created);
    // Without a sha256 there is nothing to find it by.
    let header = UploadHeader { size_bytes: file.len() as u64, new_version: true, ..header(NAME) };
    expect_status(service.upload(header, &file[..100]).await, Code::Cancelled, &["100 of the announced"]);
    assert_eq!(service.spooled(), 0);
}

#[tokio::test]
async fn an_offset_at_which_nothing_ended_is_refused() {
    let service = Service::start().await;
    let file = csv(1, ROWS);
    let outcome = service.upload(announced(&file, 100), &file[100..]).await;
    expect_status(outcome, Code::FailedPrecondition, &["0 bytes of it are here", "from 100", "ask GetUpload"]);
    assert_eq!(service.spooled(), 0);
    let nameless = UploadHeader { offset: 100, ..header(NAME) };
    expect_status(service.upload(nameless, &file[100..]).await, Code::InvalidArgument, &["offset", "sha256"]);
    let unknown = GetUploadRequest { sha256: "x".into() };
    expect_status(service.client.clone().get_upload(unknown).await, Code::InvalidArgument, &["sha256"]);
    assert!(service.upload(announced(&file, 0), &file).await.expect("anew").created);
}

#[tokio::test]
async fn bytes_of_another_file_are_forgotten_and_a_wrong_size_is_named() {
    let service = Service::start().await;
    let (file, other) = (csv(1, ROWS), csv(2, ROWS));
    assert_eq!(file.len(), other.len());
    let outcome = service.upload(announced(&file, 0), &file[..100]).await;
    expect_status(outcome, Code::Cancelled, &["broke off"]);
    let outcome = service.upload(announced(&file, 100), &other[100..]).await;
    expect_status(outcome, Code::InvalidArgument, &["sha256", "send it again"]);
    assert_eq!((received(&service, &file).await, service.spooled()), (0, 0));
    let short = UploadHeader { size_bytes: 100, ..announced(&file, 0) };
    expect_status(service.upload(short, &file).await, Code::InvalidArgument, &["size_bytes", "whole file"]);
    assert!(service.upload(announced(&file, 0), &file).await.expect("anew").created);
}

#[tokio::test]
async fn what_is_announced_to_be_too_large_is_refused_before_it_is_sent() {
    let service = Service::with(Store::memory(), |settings| settings.dataset.max_upload_bytes = 1 << 20).await;
    let file = vec![b'x'; 2 << 20];
    let outcome = service.upload_parts(vec![Part::Header(announced(&file, 0))]).await;
    expect_status(outcome, Code::ResourceExhausted, &["limit of 1048576 bytes"]);
    // And where it was announced as less, its bytes are not kept.
    let outcome = service.upload(UploadHeader { size_bytes: 0, ..announced(&file, 0) }, &file).await;
    expect_status(outcome, Code::ResourceExhausted, &["limit of 1048576 bytes"]);
    assert_eq!(service.spooled(), 0);
}

#[tokio::test]
async fn a_file_that_is_no_dataset_is_not_kept() {
    let service = Service::start().await;
    let file = b"a,b\n1,2\n";
    let outcome = service.upload(announced(file, 0), file).await;
    expect_status(outcome, Code::InvalidArgument, &["no column for the input"]);
    assert_eq!(service.spooled(), 0);
}

#[tokio::test]
async fn a_file_that_the_store_did_not_take_need_not_be_sent_again() {
    let (backend, faults) = FlakyStore::memory();
    let service = Service::over(Store::over(backend, "memory://flaky")).await;
    let file = csv(1, ROWS);
    faults.fail_nth(Op::Put, 1, Fault::Away);
    expect_status(service.upload(announced(&file, 0), &file).await, Code::Unavailable, &["memory://flaky"]);
    assert_eq!(received(&service, &file).await, file.len());
    let answer = service.upload(announced(&file, file.len()), &[]).await.expect("the store is back");
    assert!(answer.created);
    assert_eq!(service.spooled(), 0);
}
