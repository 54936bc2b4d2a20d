//! One suite, every backend; and what is particular to one.

use tailor_blobs::{Error, S3Options, Store, conformance, create_bucket};
use tailor_testkit::{S3Server, TempDir, free_port};

fn options(server: &S3Server) -> S3Options {
    S3Options {
        endpoint: Some(server.endpoint()),
        region: Some(server.region().into()),
        access_key_id: Some(server.access_key_id().into()),
        secret_access_key: Some(server.secret_access_key().into()),
        allow_http: true,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conformance::check(&Store::open("memory://", &S3Options::default()).expect("open")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_folder_conforms_and_is_read_again_after_reopening() {
    let folder = TempDir::new();
    let url = format!("file://{}", folder.join("new/store").display());
    let store = Store::open(&url, &S3Options::default()).expect("open");
    conformance::check(&store).await;
    drop(store);
    let plain = folder.join("new/store").display().to_string();
    let reopened = Store::open(&plain, &S3Options::default()).expect("reopen");
    assert_eq!(reopened.last_number("logs/raced").await.expect("last"), 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_server_conforms_with_and_without_a_prefix() {
    let Some(server) = S3Server::spawn() else { return };
    let options = options(&server);
    let whole = Store::open(&server.url(), &options).expect("open");
    conformance::check(&whole).await;

    let url = format!("{}/tenants/one", server.url());
    let part = Store::open(&url, &options).expect("open");
    conformance::check(&part).await;
    let inside = part.list("logs/raced").await.expect("list");
    let outside = whole.list("tenants/one/logs/raced").await.expect("list");
    assert_eq!(inside.len(), outside.len());
    assert!(inside.iter().zip(&outside).all(|(inner, outer)| *outer == format!("tenants/one/{inner}")));
}

#[tokio::test]
async fn a_missing_bucket_is_said_so_and_not_taken_for_a_missing_object() {
    let Some(server) = S3Server::spawn() else { return };
    let store = Store::open("s3://no-such-bucket", &options(&server)).expect("open");
    let error = store.prove_conditional_create().await.expect_err("no bucket");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains("the bucket does not exist"), "{error}");
    let error = store.find_json::<String>("jobs/one.json").await.expect_err("no bucket");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_bucket_is_made_once_and_then_left_alone() {
    let Some(server) = S3Server::spawn() else { return };
    let options = options(&server);
    let url = "s3://made-at-start/prefix";
    create_bucket(url, &options).await.expect("make the bucket");
    let store = Store::open(url, &options).expect("open");
    store.create_json("kept.json", &"kept".to_owned()).await.expect("create");
    create_bucket(url, &options).await.expect("find the bucket");
    assert_eq!(store.find_json::<String>("kept.json").await.expect("find").as_deref(), Some("kept"));
}

#[tokio::test]
async fn a_store_that_is_away_makes_no_bucket_and_is_named() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let options = S3Options { endpoint: Some(endpoint.clone()), allow_http: true, ..S3Options::default() };
    let options = S3Options { access_key_id: Some("test".into()), secret_access_key: Some("test".into()), ..options };
    let error = create_bucket("s3://bucket", &options).await.expect_err("nobody listens");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains(&endpoint), "{error}");
    assert!(!error.to_string().contains("X-Amz-Signature"), "{error}");
}

#[tokio::test]
async fn a_store_that_is_away_is_named_with_a_remedy() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let options = S3Options {
        endpoint: Some(endpoint.clone()),
        region: Some("us-east-1".into()),
        access_key_id: Some("test".into()),
        secret_access_key: Some("test".into()),
        allow_http: true,
    };
    let store = Store::open("s3://bucket", &options).expect("open");
    let started = std::time::Instant::now();
    let error = store.prove_conditional_create().await.expect_err("nobody listens");
    assert!(matches!(error, Error::Unavailable { .. }) && error.retryable(), "{error}");
    let text = error.to_string();
    assert!(text.contains(&endpoint) && text.contains("check that it runs"), "{text}");
    assert!(started.elapsed().as_secs() < 20, "reported after {:?}", started.elapsed());
}

#[tokio::test]
async fn a_store_that_goes_away_and_comes_back_serves_again() {
    let Some(mut server) = S3Server::spawn() else { return };
    let store = Store::open(&server.url(), &options(&server)).expect("open");
    store.put_blob("before").await.expect("put");
    server.kill();
    let error = store.put_blob("during").await.expect_err("away");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    server.restart();
    store.put_blob("after").await.expect("put after the restart");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = TempDir::new();
    let file = folder.join("file");
    std::fs::write(&file, "in the way").expect("write");
    let url = format!("file://{}/store", file.display());
    let error = Store::open(&url, &S3Options::default()).expect_err("a file is in the way");
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
}
