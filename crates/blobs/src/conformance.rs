//! What every backend must do. A new backend is done when [`check`] passes over it.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tailor_domain::Digest;

use crate::gc::{Mark, StoredAt};
use crate::{Children, Creation, Error, Store, numbered_key};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    writer: u32,
}

/// Runs the whole suite over an empty store.
///
/// # Panics
/// The store breaks a promise.
pub async fn check(store: &Store) {
    the_conditional_create_is_proven(store).await;
    a_blob_comes_back_and_is_stored_once(store).await;
    a_large_blob_streams_both_ways(store).await;
    an_absent_blob_is_not_found_and_leaves_no_file(store).await;
    a_record_is_never_replaced(store).await;
    of_racing_creates_one_wins(store).await;
    racing_appends_leave_no_gap_and_lose_nothing(store).await;
    the_end_of_a_log_is_found_without_reading_it(store).await;
    listings_are_sorted_and_bounded_by_their_prefix(store).await;
    a_deleted_object_is_gone_and_deleting_again_is_fine(store).await;
    a_collection_takes_what_nobody_holds(store).await;
    no_key_climbs_out_of_the_store(store).await;
}

async fn the_conditional_create_is_proven(store: &Store) {
    store.ping().await.expect("the store answers");
    store.prove_conditional_create().await.expect("conditional create holds");
    let left = store.list("probe").await.expect("list");
    assert!(left.is_empty(), "scratch objects are deleted, found {left:?}");
}

async fn a_blob_comes_back_and_is_stored_once(store: &Store) {
    for bytes in [Bytes::new(), Bytes::from_static(b"tailor"), Bytes::from(vec![7; 100_000])] {
        let digest = store.put_blob(bytes.clone()).await.expect("put");
        assert_eq!(digest, Digest::of(&bytes));
        assert_eq!(store.put_blob(bytes.clone()).await.expect("put again"), digest);
        assert_eq!(store.get_blob(&digest).await.expect("get"), bytes);
        assert_eq!(store.blob_size(&digest).await.expect("size"), Some(bytes.len() as u64));
    }
    assert_eq!(store.list("blobs").await.expect("list").len(), 3);
}

async fn a_large_blob_streams_both_ways(store: &Store) {
    let folder = tempfile::tempdir().expect("temporary folder");
    // Three parts, the last one short, no two parts alike.
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|i| (i ^ (i >> 11)) as u8).collect();
    let stored = store.put_blob_reader(bytes.as_slice()).await.expect("put from a reader");
    assert_eq!((&stored.digest, stored.size_bytes), (&Digest::of(&bytes), bytes.len() as u64));

    let path = folder.path().join("new/folder/blob");
    assert_eq!(store.fetch_blob_to(&stored.digest, &path).await.expect("fetch"), stored.size_bytes);
    assert!(std::fs::read(&path).expect("read the file") == bytes, "the file holds the blob");
    let again = store.put_blob_file(&path).await.expect("put the file");
    assert_eq!(again, stored);

    let pieces: Vec<Bytes> =
        store.open_blob_stream(&stored.digest).await.expect("open").try_collect().await.expect("stream");
    assert!(pieces.concat() == bytes, "the stream holds the blob");
}

async fn an_absent_blob_is_not_found_and_leaves_no_file(store: &Store) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let absent = Digest::of(b"never stored");
    let error = store.get_blob(&absent).await.expect_err("absent");
    assert!(error.is_not_found() && error.to_string().contains(absent.hex()), "{error}");
    let path = folder.path().join("blob");
    assert!(store.fetch_blob_to(&absent, &path).await.expect_err("absent").is_not_found());
    assert_eq!(std::fs::read_dir(folder.path()).expect("read folder").count(), 0, "nothing is left behind");
    assert_eq!(store.blob_size(&absent).await.expect("size"), None);
}

async fn a_record_is_never_replaced(store: &Store) {
    let key = "records/one.json";
    assert_eq!(store.find_json::<Note>(key).await.expect("find"), None);
    assert!(store.get_json::<Note>(key).await.expect_err("absent").is_not_found());
    let first = Note { writer: 1 };
    assert_eq!(store.create_json(key, &first).await.expect("create"), Creation::Created);
    let second = store.create_json(key, &Note { writer: 2 }).await.expect("create again");
    assert_eq!(second, Creation::AlreadyExists(first.clone()));
    // Even the same content: the caller learns that the record is not its own work.
    assert_eq!(store.create_json(key, &first).await.expect("once more"), Creation::AlreadyExists(first.clone()));
    assert_eq!(store.get_json::<Note>(key).await.expect("get"), first);
    let malformed = store.get_json::<Vec<u8>>(key).await.expect_err("another type");
    assert!(matches!(malformed, Error::Malformed { .. }), "{malformed}");
}

async fn of_racing_creates_one_wins(store: &Store) {
    for round in 0..5 {
        let key = format!("races/{round}.json");
        let racers = (0..12).map(|writer| {
            let (store, key) = (store.clone(), key.clone());
            // All write the same, so nothing in the content tells the winner.
            async move { (writer, store.create_json(&key, &Note { writer: 0 }).await.expect("create")) }
        });
        let winners = join_all(racers).await.into_iter().filter(|(_, outcome)| outcome.is_created()).count();
        assert_eq!(winners, 1, "round {round}");
    }
}

async fn racing_appends_leave_no_gap_and_lose_nothing(store: &Store) {
    const WRITERS: u32 = 6;
    const EACH: u32 = 5;
    let prefix = "logs/raced";
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        async move {
            for _ in 0..EACH {
                store.append_numbered(prefix, |_| Note { writer }).await.expect("append");
            }
        }
    });
    join_all(writers).await;
    let records = store.read_numbered::<Note>(prefix, 1).await.expect("read");
    let numbers: Vec<u64> = records.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=u64::from(WRITERS * EACH)).collect::<Vec<_>>());
    for writer in 0..WRITERS {
        let count = records.iter().filter(|(_, note)| note.writer == writer).count();
        assert_eq!(count, EACH as usize, "records of writer {writer}");
    }
    let tail = store.read_numbered::<Note>(prefix, 29).await.expect("read the tail");
    assert_eq!(tail.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [29, 30]);
    assert!(store.read_numbered::<Note>(prefix, 31).await.expect("read past the end").is_empty());
}

async fn the_end_of_a_log_is_found_without_reading_it(store: &Store) {
    let prefix = "logs/long";
    assert_eq!(store.last_number(prefix).await.expect("empty"), 0);
    for number in 1..=37_u32 {
        store.create_json(&numbered_key(prefix, number.into()), &Note { writer: number }).await.expect("create");
        if [1, 2, 3, 4, 8, 31, 37].contains(&number) {
            assert_eq!(store.last_number(prefix).await.expect("last"), u64::from(number));
        }
    }
    store.forget_tails();
    assert_eq!(store.last_number(prefix).await.expect("last, from nothing"), 37);
    for number in 1..=37 {
        store.delete(&numbered_key(prefix, number)).await.expect("delete");
    }
    let restarted = store.append_numbered(prefix, |number| Note { writer: number as u32 }).await.expect("append");
    assert_eq!(restarted, 1, "a remembered end does not outlive the log");
}

async fn listings_are_sorted_and_bounded_by_their_prefix(store: &Store) {
    for key in ["tree/b/2.json", "tree/b/10.json", "tree/a/1.json", "tree/top.json", "treehouse/no.json"] {
        store.create_json(key, &Note { writer: 0 }).await.expect("create");
    }
    let all = store.list("tree").await.expect("list");
    assert_eq!(all, ["tree/a/1.json", "tree/b/10.json", "tree/b/2.json", "tree/top.json"]);
    let after = store.list_from("tree", "tree/b/10.json").await.expect("list from");
    assert_eq!(after, ["tree/b/2.json", "tree/top.json"]);
    let children = store.list_children("tree").await.expect("children");
    assert_eq!(children, Children { folders: vec!["a".into(), "b".into()], objects: vec!["top.json".into()] });
    assert_eq!(store.list("absent").await.expect("absent"), Vec::<String>::new());
    assert_eq!(store.list_children("absent").await.expect("absent"), Children::default());
}

async fn a_deleted_object_is_gone_and_deleting_again_is_fine(store: &Store) {
    let key = "gone/soon.json";
    store.create_json(key, &Note { writer: 0 }).await.expect("create");
    assert!(store.exists(key).await.expect("exists"));
    store.delete(key).await.expect("delete");
    assert!(!store.exists(key).await.expect("exists"));
    store.delete(key).await.expect("delete again");
    let again = tokio::time::timeout(Duration::from_secs(30), store.create_json(key, &Note { writer: 1 })).await;
    assert!(again.expect("in time").expect("create again").is_created());
}

async fn a_collection_takes_what_nobody_holds(store: &Store) {
    let held = store.put_blob("held").await.expect("put");
    let named = store.put_blob("named").await.expect("put");
    let garbage = store.put_blob("garbage").await.expect("put");
    store.create_json("names/one.json", &named).await.expect("create");
    let all = store.list_blobs().await.expect("list");
    let of_ours = |blob: &StoredAt| [&held, &named, &garbage].contains(&&blob.digest);
    let mark = Mark { at_ms: 1, grace_ms: 1, candidates: all.into_iter().filter(of_ours).collect() };
    assert_eq!(mark.candidates.len(), 3);
    let round = store.open_with(&mark).await.expect("open").expect("no other round");
    assert_eq!(store.open_with(&mark).await.expect("ask"), None, "one round at a time");
    assert_eq!(store.waiting_mark().await.expect("read"), Some((round, mark.clone())));

    // As a process that has just started: it knows of the round.
    store.rounds.forget();
    assert_eq!(store.hold_blob(&held).await.expect("hold"), Some(4));
    assert_eq!(store.hold_blob(&Digest::of(b"absent")).await.expect("hold"), None);
    let claim = store.claim_round(round, 2).await.expect("claim");
    assert!(matches!(store.claim_round(round, 3).await, Err(Error::Busy { .. })));
    let live = store.references(|key| key.starts_with("names/")).await.expect("read");
    assert!(live.contains(&named) && !live.contains(&garbage));
    let swept = store.sweep(&claim, &mark, &live, &|| 4).await.expect("sweep");
    assert_eq!((swept.deleted, swept.deleted_bytes, swept.kept), (1, 7, 2));
    for (digest, size) in [(&held, Some(4)), (&named, Some(5)), (&garbage, None)] {
        assert_eq!(store.blob_size(digest).await.expect("look"), size);
    }
    assert_eq!(store.swept(round).await.expect("read"), Some(swept));
    assert_eq!(store.list("gc/fates").await.expect("list"), Vec::<String>::new(), "cleared up");
    assert_eq!(store.put_blob("garbage").await.expect("put again"), garbage);
    assert_eq!(store.blob_size(&garbage).await.expect("look"), Some(7));
}

async fn no_key_climbs_out_of_the_store(store: &Store) {
    let bad: BTreeSet<&str> = ["../x", "a/../../x", "/etc/passwd", "", "a//b", "a/.hidden"].into();
    for key in bad {
        let refused = [
            store.get_json::<Note>(key).await.map(drop),
            store.create_json(key, &Note { writer: 0 }).await.map(drop),
            store.list(key).await.map(drop),
            store.delete(key).await,
            store.append_numbered(key, |_| Note { writer: 0 }).await.map(drop),
        ];
        for outcome in refused {
            assert!(matches!(outcome, Err(Error::InvalidKey { .. })), "{key:?}: {outcome:?}");
        }
    }
}
