use tailor_blobs::Store;
use tailor_pb::common::Page;
use tailor_pb::dataset::{DeleteDatasetRequest, GetDatasetRequest, ListDatasetsRequest, UploadHeader};
use tailor_testkit::TempDir;
use tonic::{Code, Status};

use crate::support::{NAME, ROWS, Service, csv, expect_status, header};

async fn delete(service: &Service, name: &str) -> Result<u64, Status> {
    let request = DeleteDatasetRequest { name: name.into() };
    Ok(service.client.clone().delete_dataset(request).await?.into_inner().versions_deleted)
}

#[tokio::test]
async fn datasets_are_listed_by_name_in_pages_each_in_its_latest_version() {
    let service = Service::start().await;
    for name in ["c", "a", "b"] {
        service.upload(header(name), &csv(1, ROWS)).await.expect("uploaded");
    }
    service.upload(UploadHeader { new_version: true, ..header("b") }, &csv(2, ROWS)).await.expect("next version");
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let request = ListDatasetsRequest { page: Some(Page { size: 2, token }) };
        let answer = service.client.clone().list_datasets(request).await.expect("listed").into_inner();
        seen.extend(answer.datasets.into_iter().map(|dataset| (dataset.name, dataset.version)));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, [("a".into(), 1), ("b".into(), 2), ("c".into(), 1)]);
    let request = ListDatasetsRequest { page: Some(Page { size: 5000, token: String::new() }) };
    let outcome = service.client.clone().list_datasets(request).await;
    expect_status(outcome, Code::InvalidArgument, &["page.size", "1000"]);
}

#[tokio::test]
async fn what_is_missing_is_answered_with_what_exists() {
    let service = Service::with_dataset().await;
    expect_status(service.get(7).await, Code::NotFound, &["dataset errors has no version 7; it has version 1"]);
    let other = GetDatasetRequest { name: "spelling".into(), version: 0 };
    let outcome = service.client.clone().get_dataset(other).await;
    expect_status(outcome, Code::NotFound, &["dataset spelling does not exist; the datasets are errors"]);
}

#[tokio::test]
async fn deleting_takes_all_versions_and_the_second_time_finds_none() {
    let service = Service::with_dataset().await;
    let next = UploadHeader { new_version: true, ..header(NAME) };
    service.upload(next, &csv(2, ROWS)).await.expect("next version");
    assert_eq!(delete(&service, NAME).await.expect("deleted"), 2);
    expect_status(delete(&service, NAME).await, Code::NotFound, &["dataset errors does not exist"]);
    for version in [0, 1, 2, 3] {
        expect_status(service.get(version).await, Code::NotFound, &["dataset errors does not exist"]);
    }
    let listed = service.client.clone().list_datasets(ListDatasetsRequest { page: None }).await.expect("listed");
    assert!(listed.into_inner().datasets.is_empty());
}

#[tokio::test]
async fn a_number_is_never_given_to_other_content() {
    let service = Service::with_dataset().await;
    delete(&service, NAME).await.expect("deleted");
    let answer = service.upload(header(NAME), &csv(2, ROWS)).await.expect("the name is free again");
    let version = answer.dataset.expect("dataset").version;
    assert!(answer.created && version > 1, "version {version}");
    expect_status(service.get(1).await, Code::NotFound, &["no version 1"]);
    assert_eq!(service.get(0).await.expect("latest").version, version);
    assert_eq!(delete(&service, NAME).await.expect("deleted"), 1);
}

#[tokio::test]
async fn of_racing_deletions_one_succeeds() {
    let service = Service::with_dataset().await;
    let outcomes = futures::future::join_all((0..8).map(|_| delete(&service, NAME))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_dataset_survives_a_restart_on_a_local_folder() {
    let folder = TempDir::new();
    let open = || Store::open(&folder.display(), &Default::default()).expect("store");
    let before = Service::over(open()).await;
    let uploaded = before.upload(header(NAME), &csv(1, ROWS)).await.expect("uploaded").dataset;
    drop(before);
    let after = Service::over(open()).await;
    assert_eq!(Some(after.get(0).await.expect("kept")), uploaded);
}
