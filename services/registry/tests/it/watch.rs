use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tailor_blobs::{S3Options, Store, numbered_key};
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::registry::watch_response::What;
use tailor_pb::registry::{SetAliasRequest, WatchRequest, WatchResponse};
use tailor_serverkit::Client;
use tailor_testkit::TempDir;
use tonic::{Code, Status, Streaming};

use crate::support::{Service, expect_status};

/// Long enough for a busy machine; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Watcher {
    stream: Streaming<WatchResponse>,
    /// Where to go on.
    sequence: u64,
}

impl Watcher {
    async fn start(client: &AdapterRegistryClient<Client>, after_sequence: u64) -> Result<Self, Status> {
        let stream = client.clone().watch(WatchRequest { after_sequence }).await?.into_inner();
        Ok(Self { stream, sequence: after_sequence })
    }

    async fn next(&mut self) -> Result<What, Status> {
        let message =
            tokio::time::timeout(PATIENCE, self.stream.message()).await.expect("something is said in time")?;
        let message = message.ok_or_else(|| Status::aborted("the stream has ended"))?;
        self.sequence = message.sequence;
        Ok(message.what.expect("something is said"))
    }

    /// Alias, its own sequence and its version, of the next move.
    async fn next_move(&mut self) -> (String, u64, u64) {
        loop {
            if let What::Alias(told) = self.next().await.expect("watching") {
                let entry = told.r#move.expect("a move");
                assert_eq!(told.target.map(|target| target.version), Some(entry.version));
                return (entry.alias, entry.sequence, entry.version);
            }
        }
    }

    /// Everything up to the first confirmation or the snapshot's end.
    async fn settled(&mut self) -> Vec<What> {
        let mut told = Vec::new();
        loop {
            match self.next().await.expect("watching") {
                What::SnapshotEnd(_) | What::Confirmation(_) => return told,
                what => told.push(what),
            }
        }
    }
}

async fn point(client: &AdapterRegistryClient<Client>, alias: &str, version: u64, why: &str) -> Result<u64, Status> {
    let request = SetAliasRequest {
        adapter: "grammar".into(),
        alias: alias.into(),
        version,
        who: "ops".into(),
        why: why.into(),
        ..Default::default()
    };
    Ok(client.clone().set_alias(request).await?.into_inner().sequence)
}

#[tokio::test]
async fn a_watch_begins_with_what_is_and_goes_on_with_every_move() {
    let service = Service::with_versions("grammar", 3).await;
    for version in 1..=3 {
        point(&service.client, "production", version, "").await.expect("moved");
    }
    point(&service.client, "staging", 3, "").await.expect("moved");
    let mut watcher = Watcher::start(&service.client, 0).await.expect("watching");
    let snapshot = watcher.settled().await;
    let told = snapshot.into_iter().map(|what| match what {
        What::Alias(told) => told.r#move.map(|entry| (entry.alias, entry.sequence, entry.version)).expect("a move"),
        other => panic!("{other:?}"),
    });
    let told: Vec<_> = told.collect();
    assert_eq!(told, [("production".into(), 3, 3), ("staging".into(), 1, 3)], "the present, not the history");
    assert_eq!(watcher.sequence, 4, "of four moves in all");
    point(&service.client, "production", 1, "back").await.expect("moved");
    assert_eq!(watcher.next_move().await, ("production".into(), 4, 1));
    assert_eq!(watcher.sequence, 5);
}

#[tokio::test]
async fn a_watch_that_broke_off_goes_on_without_a_gap_also_after_the_registry_was_restarted() {
    let first = Service::with_versions("grammar", 2).await;
    let mut watcher = Watcher::start(&first.client, 0).await.expect("watching");
    watcher.settled().await;
    for n in 1..=5 {
        point(&first.client, "production", n % 2 + 1, &n.to_string()).await.expect("moved");
        assert_eq!(watcher.next_move().await.1, n);
    }
    let place = watcher.sequence;
    drop(watcher);
    for n in 6..=8 {
        point(&first.client, "production", n % 2 + 1, &n.to_string()).await.expect("moved");
    }
    let store = first.store.clone();
    drop(first);
    let second = Service::over(store).await;
    for n in 9..=10 {
        point(&second.client, "production", n % 2 + 1, &n.to_string()).await.expect("moved");
    }
    let mut watcher = Watcher::start(&second.client, place).await.expect("watching");
    for n in 6..=10 {
        assert_eq!(watcher.next_move().await, ("production".into(), n, n % 2 + 1), "each once, in order");
    }
}

#[tokio::test]
async fn every_move_of_many_writers_on_two_registries_is_told() {
    let (left, folder) = on_disk().await;
    let right = Service::over(store_in(&folder)).await;
    let mut watchers = Vec::new();
    for service in [&left, &right] {
        watchers.push(Watcher::start(&service.client, 0).await.expect("watching"));
    }
    for watcher in &mut watchers {
        watcher.settled().await;
    }
    let writers = (0..16_u64).map(|writer| {
        let client = if writer % 2 == 0 { left.client.clone() } else { right.client.clone() };
        async move {
            for n in 0..4 {
                let alias = format!("a{}", writer % 3);
                point(&client, &alias, n % 3 + 1, &format!("{writer}.{n}")).await.expect("moved");
            }
        }
    });
    futures::future::join_all(writers).await;
    for watcher in &mut watchers {
        let mut told: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        while told.values().map(Vec::len).sum::<usize>() < 64 {
            let (alias, sequence, _) = watcher.next_move().await;
            let sequences = told.entry(alias).or_default();
            if !sequences.contains(&sequence) {
                sequences.push(sequence);
            }
        }
        for (alias, mut sequences) in told {
            sequences.sort_unstable();
            let whole: Vec<u64> = (1..=sequences.len() as u64).collect();
            assert_eq!(sequences, whole, "{alias} has no gap");
        }
    }
}

#[tokio::test]
async fn a_move_through_one_registry_is_told_by_another_within_100_ms() {
    let (left, folder) = on_disk().await;
    let right = Service::over(store_in(&folder)).await;
    for (name, from, to) in [("the same registry", &left, &left), ("another registry", &left, &right)] {
        let mut watcher = Watcher::start(&to.client, 0).await.expect("watching");
        watcher.settled().await;
        let mut took = Vec::new();
        for n in 0..50_u64 {
            // From the moment at which the mover is told that it has moved.
            point(&from.client, "production", n % 3 + 1, &format!("{name} {n}")).await.expect("moved");
            let moved_at = Instant::now();
            watcher.next_move().await;
            took.push(moved_at.elapsed());
        }
        took.sort_unstable();
        let (median, p95, longest) = (took[25], took[47], took[49]);
        println!("a move is told by {name}: median {median:?}, p95 {p95:?}, longest {longest:?} of 50");
        assert!(median < Duration::from_millis(100), "{name}: {median:?}");
    }
}

#[tokio::test]
async fn an_announcement_whose_writer_died_holds_nobody_up_and_loses_nothing() {
    let service = Service::with_versions("grammar", 2).await;
    let mut watcher = Watcher::start(&service.client, 0).await.expect("watching");
    watcher.settled().await;
    // What a registry leaves that is killed between the two writes.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now").as_millis() as u64;
    let announced =
        serde_json::json!({"kind": "alias", "adapter": "grammar", "alias": "production", "seq": 2, "at_ms": now});
    let created = service.store.create_json(&numbered_key("changes", 1), &announced).await.expect("announced");
    assert!(created.is_created());
    point(&service.client, "production", 1, "").await.expect("moved");
    assert_eq!(watcher.next_move().await.1, 1, "what comes after it is told");
    assert_eq!(watcher.sequence, 0, "but a break now would begin before it");
    point(&service.client, "production", 2, "").await.expect("moved");
    let mut told = [watcher.next_move().await.1, watcher.next_move().await.1];
    told.sort_unstable();
    assert_eq!(told, [2, 2], "the dead writer's number was taken by another: it is told for both announcements");
    watcher.settled().await;
    assert_eq!(watcher.sequence, 3);
}

#[tokio::test]
async fn a_place_that_the_log_has_not_reached_is_refused() {
    let service = Service::with_versions("grammar", 1).await;
    let mut watcher = Watcher::start(&service.client, 7).await.expect("the call begins");
    expect_status(
        watcher.next().await,
        Code::FailedPrecondition,
        &["no change 7", "the last one is 0", "begin with 0"],
    );
}

#[tokio::test]
async fn a_watch_ends_with_the_service() {
    let service = Service::with_versions("grammar", 1).await;
    let mut watcher = Watcher::start(&service.client, 0).await.expect("watching");
    watcher.settled().await;
    let begun = Instant::now();
    service.stop();
    let ended = loop {
        if let Err(status) = watcher.next().await {
            break status;
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "it does not use up the grace period");
}

fn store_in(folder: &TempDir) -> Store {
    Store::open(&folder.join("store").display().to_string(), &S3Options::default()).expect("a store")
}

/// Three versions of an adapter in a folder.
async fn on_disk() -> (Service, TempDir) {
    let folder = TempDir::new();
    let service = Service::over(store_in(&folder)).await;
    service.register_base().await;
    for seed in 1..=3 {
        let request = service.adapter_request("grammar", seed).await;
        service.publish(request).await.expect("published");
    }
    (service, folder)
}
