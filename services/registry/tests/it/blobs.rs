use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::registry::upload_blob_request::Part;
use tailor_pb::registry::{
    BlobHeader, DownloadBlobRequest, GetUploadRequest, GetUploadResponse, SignDownloadRequest, UploadBlobRequest,
};
use tailor_testkit::{Fault, FlakyStore, Op, SmallDisk, TempDir};
use tonic::{Code, Status};

use crate::support::{Service, expect_status};

async fn download(service: &Service, digest: &str) -> Result<Vec<u8>, Status> {
    let request = DownloadBlobRequest { digest: digest.into(), offset: 0 };
    let mut stream = service.client.clone().download_blob(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await? {
        assert!(message.chunk.len() <= 1 << 20, "no message is larger than 1 MiB");
        bytes.extend(message.chunk);
    }
    Ok(bytes)
}

#[tokio::test]
async fn what_goes_up_comes_down() {
    let service = Service::start().await;
    for size in [0, 1, (1 << 20) + 1, 9 << 20] {
        let bytes: Vec<u8> = (0..size).map(|at: usize| (at % 251) as u8).collect();
        let digest = service.upload(&bytes).await;
        assert_eq!(download(&service, &digest).await.expect("there"), bytes);
    }
    assert_eq!(service.spooled(), 0);
}

#[tokio::test]
async fn a_blob_that_is_there_is_answered_before_it_is_sent_again() {
    let service = Service::start().await;
    let bytes = vec![7_u8; 32 << 20];
    let first = service.upload(&bytes).await;
    assert_eq!(service.upload(&bytes).await, first);
}

#[tokio::test]
async fn bytes_that_are_not_those_of_the_digest_or_size_are_refused_and_not_kept() {
    let service = Service::start().await;
    let digest = Digest::of(b"expected").to_string();
    for (size, bytes, says) in [
        (8, &b"whatever"[..], "the bytes that arrived have"),
        (9, b"expected", "8 of the announced 9 bytes"),
        (7, b"expected", "more than the announced 7 bytes"),
    ] {
        expect_status(service.upload_as(&digest, size, bytes).await, Code::InvalidArgument, &[says, &digest]);
    }
    expect_status(download(&service, &digest).await, Code::NotFound, &["is not in the store"]);
    assert_eq!(service.spooled(), 0);
}

#[tokio::test]
async fn a_stream_out_of_order_is_refused() {
    let service = Service::start().await;
    let header = || Part::Header(BlobHeader { digest: Digest::of(b"ab").to_string(), size_bytes: 2, offset: 0 });
    for parts in [vec![], vec![Part::Chunk(b"ab".to_vec())], vec![header(), header()]] {
        expect_status(service.upload_parts(parts).await, Code::InvalidArgument, &["header"]);
    }
    let large = vec![header(), Part::Chunk(vec![0; (1 << 20) + 1])];
    expect_status(service.upload_parts(large).await, Code::InvalidArgument, &["1048577 bytes", "1048576"]);
    expect_status(service.upload_as("sha256:xyz", 2, b"ab").await, Code::InvalidArgument, &["digest"]);
}

#[tokio::test]
async fn a_blob_above_the_limit_is_refused_before_it_is_received() {
    let service = Service::with(Store::memory(), |settings| settings.registry.max_blob_bytes = 10).await;
    let digest = Digest::of(b"12345678901").to_string();
    let outcome = service.upload_as(&digest, 11, b"12345678901").await;
    expect_status(outcome, Code::ResourceExhausted, &["limit of 10 bytes", "registry.max_blob_bytes"]);
}

#[tokio::test]
async fn half_an_upload_is_never_visible() {
    let service = Service::start().await;
    let bytes = vec![1_u8; 4 << 20];
    let digest = Digest::of(&bytes).to_string();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let header = Part::Header(BlobHeader { digest: digest.clone(), size_bytes: bytes.len() as u64, offset: 0 });
    let mut client = service.client.clone();
    let call =
        tokio::spawn(async move { client.upload_blob(tokio_stream::wrappers::ReceiverStream::new(receiver)).await });
    sender.send(UploadBlobRequest { part: Some(header) }).await.expect("sent");
    for chunk in bytes.chunks(1 << 20).take(3) {
        sender.send(UploadBlobRequest { part: Some(Part::Chunk(chunk.to_vec())) }).await.expect("sent");
    }
    expect_status(download(&service, &digest).await, Code::NotFound, &["is not in the store"]);
    let received = async || {
        let request = GetUploadRequest { digest: digest.clone() };
        service.client.clone().get_upload(request).await.expect("an answer").into_inner()
    };
    for _ in 0..100 {
        if received().await.received_bytes == 3 << 20 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // The caller dies in the middle.
    call.abort();
    drop(sender);
    assert_eq!(received().await, GetUploadResponse { received_bytes: 3 << 20, stored: false });
    expect_status(download(&service, &digest).await, Code::NotFound, &["is not in the store"]);

    // The rest, and nothing but the rest, makes it whole; from anywhere else nothing is taken.
    let from = |offset: u64, bytes: &[u8]| {
        let header = BlobHeader { digest: digest.clone(), size_bytes: 4 << 20, offset };
        service.upload_parts(vec![Part::Header(header), Part::Chunk(bytes.to_vec())])
    };
    let elsewhere = from(2 << 20, &bytes[..1 << 20]).await;
    expect_status(elsewhere, Code::FailedPrecondition, &["3145728 bytes of it are here", "GetUpload"]);
    assert_eq!(from(3 << 20, &bytes[3 << 20..]).await.expect("stored"), digest);
    assert_eq!(received().await, GetUploadResponse { received_bytes: 4 << 20, stored: true });
    assert_eq!((download(&service, &digest).await.expect("there"), service.spooled()), (bytes, 0));
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() {
    let service = Service::start().await;
    let bytes: Vec<u8> = (0..9 << 20).map(|at: usize| (at % 251) as u8).collect();
    let digest = service.upload(&bytes).await;
    let rest = async |offset: u64| {
        let request = DownloadBlobRequest { digest: digest.clone(), offset };
        let mut stream = service.client.clone().download_blob(request).await?.into_inner();
        let mut rest = Vec::new();
        while let Some(message) = stream.message().await? {
            rest.extend(message.chunk);
        }
        Ok::<_, Status>(rest)
    };
    for offset in [1, 5 << 20, (9 << 20) - 1, 9 << 20] {
        assert_eq!(rest(offset as u64).await.expect("there"), &bytes[offset..], "{offset}");
    }
    expect_status(rest((9 << 20) + 1).await, Code::InvalidArgument, &["offset", "9437184 bytes"]);
}

#[tokio::test]
async fn two_uploads_of_one_blob_do_not_disturb_each_other() {
    let service = Service::start().await;
    let bytes: Vec<u8> = (0..6 << 20).map(|at: usize| (at % 253) as u8).collect();
    let (one, other) = tokio::join!(service.upload(&bytes), service.upload(&bytes));
    assert_eq!(one, other);
    assert_eq!((download(&service, &one).await.expect("there"), service.spooled()), (bytes, 0));
}

#[tokio::test]
async fn a_store_that_signs_nothing_says_so() {
    let service = Service::start().await;
    let sign = |digest: &str, lifetime_ms| {
        let (mut client, request) =
            (service.client.clone(), SignDownloadRequest { digest: digest.into(), lifetime_ms });
        async move { client.sign_download(request).await.map(|answer| answer.into_inner().url) }
    };
    let digest = service.upload(b"bytes").await;
    expect_status(sign(&digest, 0).await, Code::FailedPrecondition, &["signs no addresses", "DownloadBlob"]);
    expect_status(sign(&Digest::of(b"other").to_string(), 0).await, Code::NotFound, &["is not in the store"]);
    expect_status(sign(&digest, u64::MAX).await, Code::InvalidArgument, &["lifetime_ms", "seven days"]);
}

#[tokio::test]
async fn a_store_that_fails_in_mid_upload_leaves_nothing() {
    let (backend, faults) = FlakyStore::memory();
    let service = Service::over(Store::over(backend, "memory://flaky")).await;
    let bytes = b"some bytes";
    let digest = Digest::of(bytes).to_string();
    for (fault, code) in [(Fault::Away, Code::Unavailable), (Fault::Full, Code::ResourceExhausted)] {
        faults.fail_all(Op::Put, fault);
        expect_status(service.upload_as(&digest, 10, bytes).await, code, &[digest.trim_start_matches("sha256:")]);
        faults.heal();
        expect_status(download(&service, &digest).await, Code::NotFound, &[]);
    }
    assert_eq!(service.spooled(), 1, "what arrived waits for the store");
    assert_eq!(service.upload(bytes).await, digest, "the same upload succeeds once the store is back");
}

#[tokio::test]
async fn a_damaged_blob_is_reported_and_not_passed_off_as_whole() {
    let folder = TempDir::new();
    let service = Service::over(Store::open(&folder.display(), &Default::default()).expect("store")).await;
    let digest = service.upload(b"intact").await;
    let hex = digest.trim_start_matches("sha256:");
    std::fs::write(folder.join(format!("blobs/sha256/{}/{hex}", &hex[..2])), b"broken").expect("overwritten");
    expect_status(download(&service, &digest).await, Code::DataLoss, &["is damaged"]);
}

#[tokio::test]
async fn a_spool_folder_that_cannot_be_used_names_the_setting() {
    let service = Service::with(Store::memory(), |settings| {
        let file = settings.cache_dir.with_extension("file");
        std::fs::write(&file, b"in the way").expect("a file");
        settings.cache_dir = file;
    })
    .await;
    let digest = Digest::of(b"ab").to_string();
    expect_status(service.upload_as(&digest, 2, b"ab").await, Code::Internal, &["cache_dir"]);
}

#[tokio::test]
async fn a_full_disk_refuses_the_upload_and_keeps_what_was_there() {
    let Some(disk) = SmallDisk::mount(4 << 20) else { return };
    let large: Vec<u8> = (0..3_u32 << 20).map(|at| (at % 253) as u8).collect();
    let larger = [large.as_slice(), &large].concat();
    let digest = Digest::of(&larger).to_string();

    // The spool's disk: the bytes do not even arrive.
    let cache = disk.join("cache");
    let service = Service::with(Store::memory(), |settings| settings.cache_dir = cache).await;
    let outcome = service.upload_as(&digest, larger.len() as u64, &larger).await;
    expect_status(outcome, Code::ResourceExhausted, &["no room left", "free some space"]);
    let kept = service.upload(&large).await;

    // The store's disk: the bytes arrive and cannot be stored.
    let store = Store::open(&disk.join("store").display().to_string(), &Default::default()).expect("store");
    let service = Service::over(store).await;
    let small = service.upload(b"small").await;
    let outcome = service.upload_as(&digest, larger.len() as u64, &larger).await;
    expect_status(outcome, Code::ResourceExhausted, &["no room left"]);
    expect_status(download(&service, &digest).await, Code::NotFound, &[]);
    assert_eq!(download(&service, &small).await.expect("kept"), b"small");
    assert_eq!(service.upload(&large).await, kept, "what fits is welcome");
}
