use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::dataset::{ImportDatasetRequest, ImportDatasetResponse, UploadHeader};
use tailor_testkit::{S3Server, TempDir};
use tonic::{Code, Status};

use crate::support::{NAME, ROWS, Service, csv, expect_status, header};

/// Without a name of its own, so that the address gives one.
fn nameless() -> UploadHeader {
    UploadHeader { file_name: String::new(), ..header(NAME) }
}

async fn import(service: &Service, url: &str, header: UploadHeader) -> Result<ImportDatasetResponse, Status> {
    let request = ImportDatasetRequest { url: url.into(), header: Some(header) };
    Ok(service.client.clone().import_dataset(request).await?.into_inner())
}

struct Folder {
    folder: TempDir,
    service: Service,
}

impl Folder {
    /// A service that may import from one folder of two, and reads no file above 1 MiB.
    async fn new() -> Self {
        let folder = TempDir::new();
        for name in ["open", "shut"] {
            std::fs::create_dir(folder.join(name)).expect("made");
            std::fs::write(folder.join(name).join("rows.csv"), csv(1, ROWS)).expect("written");
        }
        std::fs::write(folder.join("open/large.csv"), vec![b'x'; 2 << 20]).expect("written");
        let place = format!("s3://nowhere, file://{}", folder.join("open").display());
        let service = Service::with(Store::memory(), |settings| {
            settings.dataset.import_from = place;
            settings.dataset.max_upload_bytes = 1 << 20;
        });
        let service = service.await;
        Self { folder, service }
    }

    fn url(&self, name: &str) -> String {
        format!("file://{}", self.folder.join(name).display())
    }
}

#[tokio::test]
async fn a_file_in_an_allowed_folder_becomes_the_dataset_that_an_upload_makes() {
    let place = Folder::new().await;
    let answer = import(&place.service, &place.url("open/rows.csv"), nameless()).await.expect("imported");
    let dataset = answer.dataset.expect("a dataset");
    assert!(answer.created);
    assert_eq!((dataset.version, dataset.rows_train, dataset.file_name.as_str()), (1, 36, "rows.csv"));
    assert_eq!(place.service.spooled(), 0);
    let same = UploadHeader { file_name: "rows.csv".into(), ..header(NAME) };
    let again = place.service.upload(same, &csv(1, ROWS)).await.expect("uploaded");
    assert_eq!((again.created, again.dataset), (false, Some(dataset)));
}

#[tokio::test]
async fn what_cannot_be_imported_is_said_and_leaves_nothing() {
    let place = Folder::new().await;
    let sha256 = Digest::of(b"another file").to_string();
    for (name, header, code, says) in [
        ("shut/rows.csv", nameless(), Code::PermissionDenied, "dataset.import_from"),
        ("open/../shut/rows.csv", nameless(), Code::PermissionDenied, "dataset.import_from"),
        ("open/absent.csv", nameless(), Code::NotFound, "absent.csv"),
        ("open/large.csv", nameless(), Code::ResourceExhausted, "limit of 1048576 bytes"),
        ("open/rows.csv", UploadHeader { sha256, ..nameless() }, Code::InvalidArgument, "sha256"),
        ("open/rows.csv", UploadHeader { size_bytes: 3, ..nameless() }, Code::InvalidArgument, "size_bytes"),
        ("open/rows.csv", UploadHeader { offset: 3, ..nameless() }, Code::InvalidArgument, "offset"),
        ("open/rows.csv", UploadHeader { target_column: "x".into(), ..nameless() }, Code::InvalidArgument, "\"x\""),
    ] {
        expect_status(import(&place.service, &place.url(name), header).await, code, &[says]);
        assert_eq!(place.service.spooled(), 0, "{name}");
    }
    for (url, says) in [("rows.csv", "no scheme"), ("https://a/b.csv", "not supported"), ("s3://nowhere", "no object")]
    {
        expect_status(import(&place.service, url, nameless()).await, Code::InvalidArgument, &[says]);
    }
    expect_status(place.service.get(0).await, Code::NotFound, &[]);
}

#[tokio::test]
async fn nothing_is_imported_where_no_place_is_named() {
    let service = Service::start().await;
    let outcome = import(&service, "s3://company/rows.csv", nameless()).await;
    expect_status(outcome, Code::PermissionDenied, &["s3://company/rows.csv", "dataset.import_from", "UploadDataset"]);
}

#[tokio::test]
async fn an_object_of_an_s3_server_is_imported_with_the_stores_credentials() {
    let Some(server) = S3Server::spawn() else { return };
    let url = server.url();
    let mut settings = tailor_serverkit::Settings::default();
    settings.store.url.clone_from(&url);
    settings.store.endpoint = Some(server.endpoint());
    settings.store.region = Some(server.region().into());
    settings.store.access_key_id = Some(server.access_key_id().into());
    settings.store.secret_access_key = Some(server.secret_access_key().into());
    settings.store.allow_http = true;
    let store = Store::open(&url, &tailor_serverkit::store::options(&settings.store)).expect("opens");
    let digest = store.put_blob(csv(1, ROWS)).await.expect("stored");
    let service = Service::with(Store::memory(), |own| {
        own.store = settings.store.clone();
        own.dataset.import_from = format!("{url}/blobs");
    });
    let service = service.await;
    let object = format!("{url}/blobs/sha256/{}/{}", &digest.hex()[..2], digest.hex());
    let csv = UploadHeader { format: "csv".into(), ..nameless() };
    let answer = import(&service, &object, csv.clone()).await.expect("imported");
    assert_eq!(answer.dataset.expect("a dataset").rows_train, 36);
    let absent = format!("{url}/blobs/absent.csv");
    expect_status(import(&service, &absent, csv.clone()).await, Code::NotFound, &[&absent]);
    let outcome = import(&service, &format!("{url}/jobs/rows.csv"), csv).await;
    expect_status(outcome, Code::PermissionDenied, &["dataset.import_from"]);
}
