//! Deletion, retention, quotas, collection and the usage report, over the wire and a clock of the test's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::registry::{
    AdapterVersion, CollectRequest, CollectResponse, DeleteVersionRequest, DownloadBlobRequest, GetRetentionRequest,
    GetUsageRequest, GetVersionRequest, ListVersionsRequest, ResolveRequest, RetentionRules, SetRetentionRequest,
    UndeleteVersionRequest, Usage,
};
use tonic::{Code, Status};

use crate::support::{Service, expect_status};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// A registry whose clock is set by the test: undelete a week, grace a day, as the defaults are.
struct House {
    service: Service,
    ahead_ms: Arc<AtomicU64>,
}

impl House {
    async fn with_versions(count: u32) -> Self {
        let ahead_ms = Arc::new(AtomicU64::new(0));
        let (system, ahead) = (tailor_serverkit::clock::system(), ahead_ms.clone());
        let clock: tailor_serverkit::Clock = Arc::new(move || system() + ahead.load(Ordering::SeqCst));
        let service = Service::at(Store::memory(), clock, |_| {}).await;
        service.register_base().await;
        for seed in 1..=count {
            let mut request = service.adapter_request("grammar", seed).await;
            request.tags = if seed == 1 { vec!["first".into()] } else { Vec::new() };
            service.publish(request).await.expect("published");
        }
        Self { service, ahead_ms }
    }

    fn wait(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::SeqCst);
    }

    async fn delete(&self, version: u64) -> Result<AdapterVersion, Status> {
        let request = DeleteVersionRequest { adapter: "grammar".into(), version, who: "ops".into(), why: "bad".into() };
        Ok(self.service.client.clone().delete_version(request).await?.into_inner())
    }

    async fn undelete(&self, version: u64) -> Result<AdapterVersion, Status> {
        let (who, why) = ("ops".into(), "good".into());
        let request = UndeleteVersionRequest { adapter: "grammar".into(), version, who, why };
        Ok(self.service.client.clone().undelete_version(request).await?.into_inner())
    }

    async fn listed(&self, with_deleted: bool) -> Vec<u64> {
        let request = ListVersionsRequest { adapter: "grammar".into(), with_deleted, ..Default::default() };
        let answer = self.service.client.clone().list_versions(request).await.expect("listed").into_inner();
        answer.versions.iter().map(|version| version.version).collect()
    }

    async fn resolve(&self, reference: &str) -> Result<u64, Status> {
        let request = ResolveRequest { reference: reference.into() };
        Ok(self.service.client.clone().resolve(request).await?.into_inner().version)
    }

    async fn version(&self, version: u64) -> AdapterVersion {
        let request = GetVersionRequest { adapter: "grammar".into(), version };
        self.service.client.clone().get_version(request).await.expect("there").into_inner()
    }

    async fn collect(&self, dry_run: bool) -> CollectResponse {
        let request = CollectRequest { dry_run, who: "ops".into(), why: "room".into() };
        self.service.client.clone().collect(request).await.expect("collected").into_inner()
    }

    async fn usage(&self) -> Usage {
        self.service.client.clone().get_usage(GetUsageRequest {}).await.expect("usage").into_inner()
    }

    async fn keep_last(&self, keep_last: u64, keep_tags: &[&str]) -> Result<(), Status> {
        let keep_tags = keep_tags.iter().map(|tag| (*tag).to_owned()).collect();
        let rules = Some(RetentionRules { keep_last, keep_ms: 0, keep_tags });
        let request = SetRetentionRequest { adapter: "grammar".into(), rules, ..Default::default() };
        self.service.client.clone().set_retention(request).await.map(drop)
    }

    async fn has(&self, digest: &str) -> bool {
        self.service.store.blob_size(&Digest::try_new(digest).expect("digest")).await.expect("look").is_some()
    }
}

#[tokio::test]
async fn a_deleted_version_is_out_of_sight_and_comes_back() {
    let house = House::with_versions(3).await;
    let deleted = house.delete(3).await.expect("deleted");
    let deletion = deleted.deletion.expect("said");
    assert_eq!((deletion.who.as_str(), deletion.why.as_str(), deletion.purged), ("ops", "bad", false));
    assert_eq!(house.delete(3).await.expect("again").deletion.expect("said"), deletion);
    assert_eq!(house.listed(false).await, [2, 1]);
    assert_eq!(house.listed(true).await, [3, 2, 1]);
    assert_eq!(house.resolve("grammar").await.expect("the newest live one"), 2);
    expect_status(house.resolve("grammar@3").await, Code::FailedPrecondition, &["deleted by \"ops\"", "undelete"]);
    expect_status(house.service.set_alias(3, None).await, Code::FailedPrecondition, &["version 3", "undelete"]);
    assert!(house.version(3).await.deletion.is_some(), "it can be looked at");

    assert!(house.undelete(3).await.expect("back").deletion.is_none());
    assert_eq!(house.undelete(3).await.expect("again").version, 3);
    assert_eq!(house.resolve("grammar@3").await.expect("there"), 3);
    let request = house.service.adapter_request("grammar", 4).await;
    assert_eq!(house.service.publish(request).await.expect("published").version, 4, "no number is given twice");
}

#[tokio::test]
async fn what_an_alias_points_to_cannot_be_deleted() {
    let house = House::with_versions(2).await;
    house.service.set_alias(1, None).await.expect("set");
    expect_status(house.delete(1).await, Code::FailedPrecondition, &["alias production points to", "set-alias"]);
    expect_status(house.delete(9).await, Code::NotFound, &["no version 9"]);
    house.service.set_alias(2, None).await.expect("moved");
    house.delete(1).await.expect("deleted");
}

#[tokio::test]
async fn an_adapter_whose_versions_are_all_deleted_says_how_to_get_one_back() {
    let house = House::with_versions(1).await;
    house.delete(1).await.expect("deleted");
    expect_status(house.resolve("grammar").await, Code::NotFound, &["every version", "undelete grammar@1"]);
    let listed = house.service.client.clone().list_adapters(tailor_pb::registry::ListAdaptersRequest::default()).await;
    assert!(listed.expect("listed").into_inner().adapters.is_empty());
}

#[tokio::test]
async fn bytes_go_in_two_phases_and_only_after_all_the_time_that_was_promised() {
    let house = House::with_versions(3).await;
    let weights = house.version(2).await.weights_digest;
    let stray = house.service.upload(b"never published").await;
    house.delete(2).await.expect("deleted");

    house.wait(6 * DAY_MS);
    let early = house.collect(false).await;
    assert!(early.purged.is_empty(), "it can be undeleted yet");
    assert_eq!(early.waiting_blobs, 1, "the stray blob is marked");

    house.wait(DAY_MS + HOUR_MS);
    let swept = house.collect(false).await;
    assert_eq!((swept.deleted_blobs, swept.deleted_bytes), (1, 15));
    assert!(!house.has(&stray).await && house.has(&weights).await);
    assert_eq!(swept.purged[0].versions, [2]);
    assert_eq!(swept.waiting_blobs, 1, "its weights are marked");
    expect_status(house.undelete(2).await, Code::FailedPrecondition, &["purged", "publish the adapter again"]);

    assert_eq!(house.collect(false).await.deleted_blobs, 0, "the mark waits");
    house.wait(DAY_MS);
    assert_eq!(house.collect(false).await.deleted_blobs, 1);
    assert!(!house.has(&weights).await);
    let purged = house.version(2).await;
    assert!(purged.deletion.expect("said").purged && purged.weights_digest == weights, "the record stays");
    let request = DownloadBlobRequest { digest: weights, offset: 0 };
    expect_status(
        house.service.client.clone().download_blob(request).await.map(drop),
        Code::NotFound,
        &["not in the store"],
    );
    for version in [1, 3] {
        assert!(house.has(&house.version(version).await.weights_digest).await, "version {version} is whole");
    }
    let nothing = house.collect(false).await;
    assert_eq!(nothing, CollectResponse::default(), "nothing is left to do");
}

#[tokio::test]
async fn a_dry_run_says_it_all_and_does_nothing() {
    let house = House::with_versions(4).await;
    house.delete(1).await.expect("deleted");
    house.service.upload(b"stray").await;
    house.keep_last(2, &[]).await.expect("set");
    house.wait(8 * DAY_MS);
    let before = house.service.store.list("adapters").await.expect("list");
    let said = house.collect(true).await;
    assert_eq!((said.purged[0].versions.as_slice(), said.expired[0].versions.as_slice()), (&[1][..], &[2][..]));
    assert_eq!(said.waiting_blobs, 2, "the stray blob and the weights of version 1");
    assert_eq!(house.service.store.list("adapters").await.expect("list"), before);
    assert!(house.service.store.list("gc").await.expect("list").is_empty());
    let done = house.collect(false).await;
    assert_eq!((&done.purged, &done.expired, done.waiting_blobs), (&said.purged, &said.expired, said.waiting_blobs));
}

#[tokio::test]
async fn rules_keep_the_newest_the_tagged_and_what_a_rollback_needs() {
    let house = House::with_versions(7).await;
    house.service.set_alias(3, None).await.expect("set");
    house.service.set_alias(4, None).await.expect("moved");
    expect_status(house.keep_last(0, &["first"]).await, Code::InvalidArgument, &["keep_last"]);
    house.keep_last(2, &["first"]).await.expect("set");
    let request = GetRetentionRequest { adapter: "grammar".into() };
    let rules = house.service.client.clone().get_retention(request).await.expect("read").into_inner().rules;
    assert_eq!(rules.expect("set").keep_tags, ["first"]);
    assert_eq!(house.collect(false).await.expired[0].versions, [2, 5]);
    assert_eq!(house.listed(false).await, [7, 6, 4, 3, 1]);
    house.undelete(5).await.expect("what a rule deleted comes back as well");
}

#[tokio::test]
async fn an_upload_of_bytes_that_are_marked_rescues_them() {
    let house = House::with_versions(1).await;
    let bytes = b"stray for a while";
    let digest = house.service.upload(bytes).await;
    house.wait(2 * DAY_MS);
    assert_eq!(house.collect(false).await.waiting_blobs, 1);
    // Another process: this one may not know of the mark for a while, which the grace period allows for.
    let other = Service::over(tailor_blobs::Store::over(house.service.store.backend(), "memory://other")).await;
    other.upload(bytes).await;
    house.wait(2 * DAY_MS);
    let swept = house.collect(false).await;
    assert_eq!((swept.deleted_blobs, swept.kept_blobs), (0, 1));
    assert!(house.has(&digest).await);
}

#[tokio::test]
async fn quotas_are_named_with_their_setting() {
    let ahead = tailor_serverkit::clock::system();
    let limited = |versions, bytes| {
        let ahead = ahead.clone();
        async move {
            let service = Service::at(Store::memory(), ahead, |settings| {
                settings.registry.quota_versions = versions;
                settings.registry.quota_bytes = bytes;
            });
            let service = service.await;
            service.register_base().await;
            service.publish(service.adapter_request("grammar", 1).await).await.expect("the first fits");
            service
        }
    };
    let service = limited(1, 0).await;
    let outcome = service.publish(service.adapter_request("grammar", 2).await).await;
    expect_status(outcome, Code::ResourceExhausted, &["has 1 versions", "limit is 1", "registry.quota_versions"]);
    let request = DeleteVersionRequest { adapter: "grammar".into(), version: 1, ..Default::default() };
    service.client.clone().delete_version(request).await.expect("deleted");
    assert_eq!(service.publish(service.adapter_request("grammar", 2).await).await.expect("room again").version, 2);
    service.publish(service.adapter_request("spelling", 2).await).await.expect("a quota is each adapter's own");

    let service = limited(0, 1000).await;
    let outcome = service.publish(service.adapter_request("grammar", 2).await).await;
    expect_status(outcome, Code::ResourceExhausted, &["bytes", "limit is 1000", "registry.quota_bytes"]);
}

#[tokio::test]
async fn the_usage_report_adds_up() {
    let house = House::with_versions(3).await;
    house.delete(3).await.expect("deleted");
    house.service.upload(b"stray").await;
    house.wait(2 * DAY_MS);
    house.collect(false).await;
    let usage = house.usage().await;
    let share = &usage.adapters[0];
    assert_eq!((share.adapter.as_str(), share.live, share.deleted, share.purged), ("grammar", 2, 1, 0));
    let one = house.version(1).await.weights_size_bytes;
    assert_eq!(share.size_bytes, 3 * one);
    assert_eq!((usage.waiting_blobs, usage.waiting_bytes), (1, 5));
    let blobs = house.service.store.list_blobs().await.expect("list");
    assert_eq!((usage.blobs, usage.size_bytes), (blobs.len() as u64, blobs.iter().map(|blob| blob.size_bytes).sum()));
    assert!(usage.base_bytes > 0 && usage.base_bytes < usage.size_bytes);
}
