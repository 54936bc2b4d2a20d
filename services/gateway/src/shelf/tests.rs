//! How much of an adapter is read, and what is said where that is too much.

use tailor_domain::ErrorCode;
use tailor_testkit::{Fault, Faults, FlakyStore, Op, TempDir};

use super::*;
use crate::error::Error;

const LIMITS: Limits = Limits { max_config_bytes: 20, max_weights_bytes: 30 };

struct Stage {
    shelf: Shelf,
    store: Store,
    faults: Faults,
    folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = TempDir::new();
        let (backend, faults) = FlakyStore::memory();
        let store = Store::over(backend, "flaky://");
        let settings = Settings { cache_dir: folder.path().to_owned(), ..Settings::default() };
        let shelf = Shelf { limits: LIMITS, ..Shelf::new(&settings, store.clone()) };
        Self { shelf, store, faults, folder }
    }

    /// Version 1 of an adapter with files of so many bytes, the weights' size as it is.
    async fn publish(&self, config: usize, weights: usize) -> registry::AdapterVersion {
        let config_digest = self.store.put_blob(vec![1; config]).await.expect("put");
        let weights_digest = self.store.put_blob(vec![2; weights]).await.expect("put");
        registry::AdapterVersion {
            adapter: "grammar".into(),
            version: 1,
            digest: Digest::of(format!("{config} {weights}").as_bytes()).to_string(),
            config_digest: config_digest.to_string(),
            weights_digest: weights_digest.to_string(),
            weights_size_bytes: weights as u64,
            ..Default::default()
        }
    }

    async fn fetch(&self, version: &registry::AdapterVersion) -> Result<Arc<Files>> {
        self.shelf.fetch(version, &Engines::default()).await
    }
}

#[track_caller]
fn says(refused: Result<Arc<Files>>, file: &str, size_bytes: u64, limit_bytes: u64) {
    let Err(error) = refused else { panic!("{file} is taken") };
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    let said = error.to_string();
    for part in [
        "grammar@1".to_owned(),
        format!("{file} has {size_bytes} bytes"),
        format!("the limit is {limit_bytes}"),
        "lower rank".to_owned(),
    ] {
        assert!(said.contains(&part), "{part:?} is not in {said:?}");
    }
}

#[tokio::test]
async fn an_adapter_that_is_too_large_is_refused_before_it_is_read() {
    let stage = Stage::new();
    let published = stage.publish(20, 30).await;
    assert_eq!(stage.fetch(&published).await.expect("as large as may be").weights.len(), 30);

    let large = stage.publish(20, 31).await;
    let before = stage.faults.count(Op::Get);
    says(stage.fetch(&large).await, WEIGHTS_FILE, 31, 30);
    assert_eq!(stage.faults.count(Op::Get), before, "its manifest says so: nobody asks the store");

    // A manifest that says less than there is.
    says(stage.fetch(&registry::AdapterVersion { weights_size_bytes: 3, ..large }).await, WEIGHTS_FILE, 31, 30);
    says(stage.fetch(&stage.publish(21, 30).await).await, CONFIG_FILE, 21, 20);
    assert_eq!(
        stage.shelf.in_memory(),
        [Digest::try_new(published.digest).expect("a digest")],
        "nothing of it is kept"
    );
}

#[tokio::test]
async fn a_store_that_sends_more_than_it_says_is_read_no_further_than_the_limit() {
    let stage = Stage::new();
    let version = stage.publish(8, 8).await;
    stage.faults.fail_all(Op::Get, Fault::Overlong);
    says(stage.fetch(&version).await, CONFIG_FILE, 24, 20);
    stage.faults.heal();
    stage.fetch(&version).await.expect("the store's fault is not held against the adapter");
}

#[tokio::test]
async fn a_file_on_disk_that_has_grown_beyond_the_limit_is_fetched_again() {
    let stage = Stage::new();
    let version = stage.publish(8, 8).await;
    stage.fetch(&version).await.expect("both files");
    let digest = Digest::try_new(version.weights_digest.clone()).expect("a digest");
    std::fs::write(stage.folder.join("adapters/blobs").join(digest.hex()), [2; 31]).expect("grown");
    stage.shelf.drop_files(&Digest::try_new(version.digest.clone()).expect("a digest"));
    assert_eq!(stage.fetch(&version).await.expect("from the store").weights, vec![2; 8]);
}
