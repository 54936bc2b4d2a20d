//! Against a server that speaks the hub's protocol over HTTP and misbehaves on demand.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tailor_hub::{Error, Hub, HubOptions, Progress, RepoId, Snapshot, cached};
use tailor_testkit::{HubFault, HubServer};

const TOKEN: &str = "hf_secret";

fn hub(server: &HubServer, cache: &Path) -> Hub {
    Hub::new(options(server, cache)).expect("a hub")
}

fn options(server: &HubServer, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: server.url(),
        token: None,
        offline: false,
        cache: cache.to_owned(),
        pause: Duration::from_millis(5),
    }
}

async fn fetch(hub: &Hub) -> Result<Snapshot, Error> {
    fetch_at(hub, "main").await
}

async fn fetch_at(hub: &Hub, revision: &str) -> Result<Snapshot, Error> {
    hub.snapshot(&RepoId::parse("google/tiny-model").expect("an id"), revision, &mut |_| {}).await
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}

#[tokio::test]
async fn a_sharded_model_comes_with_what_is_needed_and_nothing_else() {
    let (server, cache) = (HubServer::sharded().await, tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    let mut last = (0, 0);
    let repo = RepoId::parse("google/tiny-model").expect("an id");
    let mut watch = |progress: Progress<'_>| last = (progress.bytes_done, progress.bytes_total);
    let snapshot = hub.snapshot(&repo, "main", &mut watch).await.expect("fetched");
    assert_eq!(snapshot.commit, server.commit());
    assert_eq!(
        names(&snapshot.folder),
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
    for name in names(&snapshot.folder) {
        assert_eq!(std::fs::read(snapshot.folder.join(&name)).expect("a file"), server.content(&name), "{name}");
    }
    assert!(last.0 > 0 && last.0 == last.1, "progress ends at the whole: {last:?}");
    // Again: the branch is asked for, no file is.
    let files = server.file_requests();
    assert_eq!(fetch(&hub).await.expect("again"), snapshot);
    assert_eq!(server.file_requests(), files);
}

#[tokio::test]
async fn the_commit_is_kept_when_the_branch_moves_on() {
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    let first = fetch(&hub).await.expect("fetched");
    server.move_branch("config.json", b"{\"model_type\": \"t5\"}");
    let second = fetch(&hub).await.expect("fetched");
    assert_ne!(first.commit, second.commit);
    assert_ne!(
        std::fs::read(first.folder.join("config.json")).ok(),
        std::fs::read(second.folder.join("config.json")).ok()
    );
    let asked = server.requests();
    assert_eq!(fetch_at(&hub, &first.commit).await.expect("pinned"), first);
    assert_eq!(server.requests(), asked, "a commit in the cache is never asked for");
}

#[tokio::test]
async fn what_broke_off_goes_on_where_it_ended() {
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    server.fail("model.safetensors", [HubFault::BreakOff(1000), HubFault::BreakOff(3000), HubFault::BreakOff(7000)]);
    let snapshot = fetch(&hub(&server, cache.path())).await.expect("fetched");
    let got = std::fs::read(snapshot.folder.join("model.safetensors")).expect("weights");
    assert_eq!(got, server.content("model.safetensors"));
    assert_eq!(server.ranges("model.safetensors"), ["", "bytes=1000-", "bytes=4000-", "bytes=11000-"]);
}

#[tokio::test]
async fn the_next_call_goes_on_too_and_a_server_without_ranges_begins_anew() {
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    server.fail(
        "model.safetensors",
        [HubFault::BreakOff(1000)].into_iter().chain(std::iter::repeat_n(HubFault::BreakOff(0), 9)),
    );
    let hub = hub(&server, cache.path());
    let error = fetch(&hub).await.expect_err("it never gets on");
    assert!(error.to_string().contains("goes on from there"), "{error}");
    assert!(error.code().retryable());
    server.heal();
    server.fail("model.safetensors", [HubFault::IgnoreRange]);
    let snapshot = fetch(&hub).await.expect("fetched");
    let got = std::fs::read(snapshot.folder.join("model.safetensors")).expect("weights");
    assert_eq!(got, server.content("model.safetensors"));
    assert_eq!(server.ranges("model.safetensors").last().map(String::as_str), Some("bytes=1000-"));
}

#[tokio::test]
async fn a_file_that_is_not_what_the_hub_states_is_thrown_away() {
    for name in ["model.safetensors", "config.json"] {
        let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
        server.fail(name, [HubFault::Flip]);
        let hub = hub(&server, cache.path());
        let error = fetch(&hub).await.expect_err("wrong bytes").to_string();
        assert!(error.contains(name) && error.contains("the hub states"), "{error}");
        assert!(fetch(&hub).await.is_ok(), "the next call gets it right");
    }
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    server.fail("model.safetensors", [HubFault::Longer]);
    let error = fetch(&hub(&server, cache.path())).await.expect_err("too long").to_string();
    assert!(error.contains("longer than"), "{error}");
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_not_where_it_redirects() {
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    let elsewhere = server.redirect_weights().await;
    server.require_token(TOKEN);
    let error = fetch(&hub(&server, cache.path())).await.expect_err("no token").to_string();
    assert!(error.contains("401") && error.contains("HF_TOKEN") && error.contains("terms"), "{error}");
    let mut with = options(&server, cache.path());
    with.token = Some(TOKEN.to_owned());
    let snapshot = fetch(&Hub::new(with).expect("a hub")).await.expect("fetched");
    let got = std::fs::read(snapshot.folder.join("model.safetensors")).expect("weights");
    assert_eq!(got, server.content("model.safetensors"));
    let tokens = elsewhere.tokens();
    assert!(!tokens.is_empty() && tokens.iter().all(Option::is_none), "{tokens:?}");
}

#[tokio::test]
async fn a_busy_hub_is_asked_again_and_then_named() {
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    server.fail("config.json", [HubFault::Status(429), HubFault::RetryAfter(0), HubFault::Status(503)]);
    assert!(fetch(&hub(&server, cache.path())).await.is_ok());

    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    server.fail("config.json", std::iter::repeat_n(HubFault::Status(429), 9));
    let error = fetch(&hub(&server, cache.path())).await.expect_err("busy");
    assert!(error.to_string().contains("(429) after 5 attempts"), "{error}");
    server.heal();
    server.fail("config.json", [HubFault::RetryAfter(3600)]);
    let error = fetch(&hub(&server, cache.path())).await.expect_err("an hour is too long");
    assert!(error.to_string().contains("after 1 attempts"), "{error}");
}

#[tokio::test]
async fn two_at_once_fetch_each_file_once() {
    let (server, cache) = (HubServer::sharded().await, tempfile::tempdir().expect("a folder"));
    let (one, other) = (hub(&server, cache.path()), hub(&server, cache.path()));
    let (first, second) = tokio::join!(fetch(&one), fetch(&other));
    assert_eq!(first.expect("fetched"), second.expect("fetched"));
    assert_eq!(server.file_requests(), 5);
    // Complete: all that is left to write is what the branch is, each time by all at once.
    for _ in 0..50 {
        let (one, other, third) = tokio::join!(fetch(&one), fetch(&other), fetch(&one));
        for snapshot in [one, other, third] {
            snapshot.expect("from the cache");
        }
    }
    assert_eq!(server.file_requests(), 5);
}

#[tokio::test]
async fn offline_knows_the_cache_alone() {
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    let mut offline = options(&server, cache.path());
    offline.offline = true;
    let offline = Hub::new(offline).expect("a hub");
    let error = fetch(&offline).await.expect_err("nothing there").to_string();
    assert!(error.contains("google/tiny-model at main") && error.contains("offline"), "{error}");
    let online = fetch(&hub(&server, cache.path())).await.expect("fetched");
    let asked = server.requests();
    assert_eq!(fetch(&offline).await.expect("from the cache"), online);
    assert_eq!(fetch_at(&offline, &online.commit).await.expect("by commit"), online);
    assert_eq!(server.requests(), asked);
}

#[tokio::test]
async fn pickled_weights_and_missing_repositories_are_refused_with_the_reason() {
    let (server, cache) = (HubServer::pickled().await, tempfile::tempdir().expect("a folder"));
    let error = fetch(&hub(&server, cache.path())).await.expect_err("pickled").to_string();
    for part in ["pytorch_model.bin", "runs whatever code", "--revision"] {
        assert!(error.contains(part), "{part} is missing in {error}");
    }
    assert_eq!(server.file_requests(), 0, "nothing of it was fetched");
    let other = RepoId::parse("google/none").expect("an id");
    let error = hub(&server, cache.path()).snapshot(&other, "main", &mut |_| {}).await.expect_err("none").to_string();
    assert!(error.contains("google/none at main") && error.contains("not found"), "{error}");
}

#[tokio::test]
async fn an_index_cannot_lead_out_of_the_folder() {
    let (server, cache) =
        (HubServer::with_index("../../outside.safetensors").await, tempfile::tempdir().expect("a folder"));
    let error = fetch(&hub(&server, cache.path())).await.expect_err("a path").to_string();
    assert!(error.contains("../../outside.safetensors") && error.contains("no plain name"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let cache = tempfile::tempdir().expect("a folder");
    let server = HubServer::single().await;
    let mut options = options(&server, cache.path());
    // Nothing can listen on port 0.
    options.endpoint = "http://127.0.0.1:0".into();
    let error = fetch(&Hub::new(options.clone()).expect("a hub")).await.expect_err("nobody");
    assert!(error.to_string().contains("127.0.0.1:0") && error.code().retryable(), "{error}");
    options.endpoint = "ftp://x".into();
    assert!(Hub::new(options).is_err_and(|error| error.to_string().contains("HF_ENDPOINT")));
}

#[tokio::test]
async fn what_lies_in_the_cache_is_told_and_removed_snapshot_by_snapshot() {
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    assert!(cached(&cache.path().join("none")).expect("read").is_empty());
    let first = fetch(&hub).await.expect("fetched");
    server.move_branch("config.json", b"{\"model_type\": \"t5\"}");
    let second = fetch(&hub).await.expect("fetched");
    std::fs::write(cache.path().join("notes.txt"), "of somebody else").expect("written");
    let all = cached(cache.path()).expect("read");
    let of = |commit: &str| all.iter().find(|snapshot| snapshot.commit == commit).expect("it is there");
    let (old, new) = (of(&first.commit), of(&second.commit));
    assert_eq!((all.len(), old.repo.as_str(), old.is_complete), (2, "google/tiny-model", true));
    assert!(old.size_bytes >= server.content("model.safetensors").len() as u64);
    assert_eq!((old.revisions.len(), new.revisions.as_slice()), (0, ["main".to_owned()].as_slice()));
    assert!(new.is_of(&RepoId::parse("google/tiny-model").expect("an id")));
    assert!(!new.is_of(&RepoId::parse("google/tiny").expect("an id")));

    assert!(old.remove().expect("removed") && old.remove().expect("gone"), "gone is gone");
    assert!(!first.folder.exists() && second.folder.exists());
    assert!(new.remove().expect("removed"));
    let left: Vec<_> = std::fs::read_dir(cache.path()).expect("the cache").collect();
    assert_eq!(left.len(), 1, "what is not ours stays: {left:?}");
    assert_eq!(fetch(&hub).await.expect("fetched again"), second);
}

#[tokio::test]
async fn what_is_being_fetched_is_not_removed_and_what_broke_off_can_be() {
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    server.fail("model.safetensors", std::iter::repeat_n(HubFault::BreakOff(0), 9));
    let hub = hub(&server, cache.path());
    fetch(&hub).await.expect_err("it never gets on");
    let all = cached(cache.path()).expect("read");
    let [part] = all.as_slice() else { panic!("{all:?}") };
    assert!(!part.is_complete);
    let folder = cache.path().join("models--google--tiny-model").join(&part.commit);
    let fetching = File::create(folder.join(".lock")).expect("a lock");
    fetching.lock().expect("held");
    assert!(!part.remove().expect("asked") && folder.exists(), "somebody is at it");
    drop(fetching);
    assert!(part.remove().expect("removed") && !folder.exists());
    server.heal();
    assert!(fetch(&hub).await.expect("fetched").folder.exists());
}

#[tokio::test]
async fn asking_for_a_snapshot_is_using_it() {
    let (server, cache) = (HubServer::single().await, tempfile::tempdir().expect("a folder"));
    let hub = hub(&server, cache.path());
    let snapshot = fetch(&hub).await.expect("fetched");
    let long_ago = SystemTime::now() - Duration::from_secs(90 * 86_400);
    let used_at = || cached(cache.path()).expect("read")[0].used_at;
    for revision in ["main", &snapshot.commit] {
        for entry in std::fs::read_dir(&snapshot.folder).expect("the folder") {
            let file = File::open(entry.expect("an entry").path()).expect("a file");
            file.set_modified(long_ago).expect("set");
        }
        assert!(used_at() <= long_ago);
        fetch_at(&hub, revision).await.expect("from the cache");
        assert!(used_at() > long_ago, "{revision}");
    }
}
