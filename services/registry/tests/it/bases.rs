use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::common::{FileRef, Page};
use tailor_pb::registry::{GetBaseRequest, ListBasesRequest, RegisterBaseRequest};
use tailor_testkit::{FlakyStore, TempDir};
use tonic::Code;

use crate::support::{BASE, Service, expect_status, safetensors};

fn file_mut<'a>(request: &'a mut RegisterBaseRequest, name: &str) -> &'a mut FileRef {
    request.files.iter_mut().find(|file| file.name == name).expect("file")
}

async fn replace(service: &Service, request: &mut RegisterBaseRequest, name: &str, bytes: &[u8]) {
    let digest = service.upload(bytes).await;
    let file = file_mut(request, name);
    file.digest = digest;
    file.size_bytes = bytes.len() as u64;
}

#[tokio::test]
async fn a_base_is_registered_once_and_read_back() {
    let service = Service::start().await;
    let request = service.base_request().await;
    let mut client = service.client.clone();
    let first = client.register_base(request.clone()).await.expect("registered").into_inner();
    assert_eq!((first.family.as_str(), first.model_type.as_str()), ("decoder", "llama"));
    let mut shuffled = request;
    shuffled.files.reverse();
    let again = client.register_base(shuffled).await.expect("the same base").into_inner();
    assert_eq!(again, first);
    let read = client.get_base(GetBaseRequest { name: BASE.into() }).await.expect("there").into_inner();
    assert_eq!(read, first);
}

#[tokio::test]
async fn bases_are_listed_by_name_in_pages() {
    let service = Service::start().await;
    let mut client = service.client.clone();
    for name in ["c", "a", "b"] {
        let request = RegisterBaseRequest { name: name.into(), ..service.base_request().await };
        client.register_base(request).await.expect("registered");
    }
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let page = Some(Page { size: 2, token });
        let answer = client.list_bases(ListBasesRequest { page }).await.expect("page").into_inner();
        names.extend(answer.bases.into_iter().map(|base| base.name));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_name_that_belongs_to_another_fingerprint_is_refused() {
    let service = Service::start().await;
    service.register_base().await;
    let other = Digest::of(b"another").to_string();
    let request = RegisterBaseRequest { fingerprint: other, ..service.base_request().await };
    let outcome = service.client.clone().register_base(request).await;
    expect_status(outcome, Code::AlreadyExists, &["tiny-llama exists already", "under another name"]);
}

#[tokio::test]
async fn of_two_racing_registrations_one_base_remains() {
    let service = Service::start().await;
    let request = service.base_request().await;
    let calls = (0..8_u8).map(|racer| {
        let fingerprint = Digest::of(&[racer]).to_string();
        let request = RegisterBaseRequest { fingerprint, ..request.clone() };
        let mut client = service.client.clone();
        async move { client.register_base(request).await }
    });
    let outcomes = futures::future::join_all(calls).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_file_that_was_not_uploaded_is_named() {
    let service = Service::start().await;
    let mut request = service.base_request().await;
    file_mut(&mut request, "tokenizer.json").digest = Digest::of(b"elsewhere").to_string();
    let outcome = service.client.clone().register_base(request).await;
    expect_status(outcome, Code::FailedPrecondition, &["tokenizer.json", "upload it first"]);
    let mut request = service.base_request().await;
    file_mut(&mut request, "config.json").size_bytes += 1;
    expect_status(service.client.clone().register_base(request).await, Code::InvalidArgument, &["config.json"]);
}

#[tokio::test]
async fn a_folder_that_is_no_base_is_refused_with_the_file() {
    let service = Service::start().await;
    let weights = safetensors(&[("model.norm.weight", "F32", vec![4], vec![0; 16])]);
    for (file, bytes, says) in [
        ("config.json", &br#"{"model_type": "bert"}"#[..], "\"bert\" is not supported"),
        ("config.json", b"not json", "no model's config"),
        ("model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\xff{}", "no safetensors file"),
        ("model.safetensors", b"tiny", "no safetensors file"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]", "header is not readable"),
        ("model.safetensors", &weights, "no linear layer"),
    ] {
        let mut request = service.base_request().await;
        replace(&service, &mut request, file, bytes).await;
        let outcome = service.client.clone().register_base(request).await;
        expect_status(outcome, Code::InvalidArgument, &[says]);
    }
    let mut request = service.base_request().await;
    request.files.retain(|file| file.name != "tokenizer.json");
    expect_status(service.client.clone().register_base(request).await, Code::InvalidArgument, &["tokenizer.json"]);
    let absent = service.client.clone().get_base(GetBaseRequest { name: BASE.into() }).await;
    expect_status(absent, Code::NotFound, &["base tiny-llama does not exist", "tailor base add"]);
}

#[tokio::test]
async fn an_unknown_base_is_answered_with_the_known_ones() {
    let service = Service::start().await;
    service.register_base().await;
    let outcome = service.client.clone().get_base(GetBaseRequest { name: "tiny-t5".into() }).await;
    expect_status(outcome, Code::NotFound, &["base tiny-t5 does not exist; the bases are tiny-llama"]);
    let outcome = service.client.clone().get_base(GetBaseRequest { name: "../etc".into() }).await;
    expect_status(outcome, Code::InvalidArgument, &["has '/'"]);
}

#[tokio::test]
async fn a_base_survives_a_restart_on_a_local_folder() {
    let folder = TempDir::new();
    let open = || Store::open(&folder.display(), &Default::default()).expect("store");
    let before = Service::over(open()).await;
    before.register_base().await;
    drop(before);
    let after = Service::over(open()).await;
    let read = after.client.clone().get_base(GetBaseRequest { name: BASE.into() }).await.expect("kept").into_inner();
    assert_eq!(read.files.len(), 4);
}

#[tokio::test]
async fn a_store_that_is_away_is_unavailable_and_changes_nothing() {
    let (backend, faults) = FlakyStore::memory();
    let service = Service::over(Store::over(backend, "memory://flaky")).await;
    let request = service.base_request().await;
    faults.cut();
    let outcome = service.client.clone().register_base(request.clone()).await;
    expect_status(outcome, Code::Unavailable, &["memory://flaky does not answer"]);
    faults.heal();
    expect_status(service.client.clone().get_base(GetBaseRequest { name: BASE.into() }).await, Code::NotFound, &[]);
    service.client.clone().register_base(request).await.expect("registered once the store is back");
}
