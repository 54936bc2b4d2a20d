//! What stays intact when the store fails in mid-call.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tailor_blobs::{Creation, Error, S3Options, Store};
use tailor_domain::{Digest, ErrorCode};
use tailor_testkit::{Fault, Faults, FlakyStore, Op, SmallDisk, TempDir};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    text: String,
}

fn note(text: &str) -> Note {
    Note { text: text.into() }
}

fn flaky() -> (Store, Faults) {
    let (backend, faults) = FlakyStore::memory();
    (Store::over(backend, "flaky://"), faults)
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_is_recognised_as_our_own() {
    let (store, faults) = flaky();
    let store = store.with_replays();
    faults.fail_nth(Op::Create, 1, Fault::AnswerLost);
    assert_eq!(store.create_json("a.json", &note("mine")).await, Ok(Creation::Created));
    assert_eq!(faults.count(Op::Create), 1, "it is read back, not written again");
    faults.fail_nth(Op::Create, 1, Fault::Replayed);
    assert_eq!(store.create_json("b.json", &note("mine")).await, Ok(Creation::Created));
}

#[tokio::test]
async fn an_append_that_was_sent_twice_appends_once() {
    let (store, faults) = flaky();
    let store = store.with_replays();
    for fault in [Fault::Replayed, Fault::AnswerLost, Fault::Away] {
        faults.fail_nth(Op::Create, 1, fault);
        store.append_numbered("log", |n| note(&n.to_string())).await.expect("append");
    }
    let texts: Vec<String> =
        store.read_numbered::<Note>("log", 1).await.expect("read").into_iter().map(|(_, note)| note.text).collect();
    assert_eq!(texts, ["1", "2", "3"]);
}

#[tokio::test]
async fn a_create_that_cannot_be_settled_says_so_and_can_be_made_again() {
    let (store, faults) = flaky();
    let store = store.with_replays();
    faults.fail_nth(Op::Create, 1, Fault::AnswerLost);
    faults.fail_all(Op::Get, Fault::Away);
    let error = store.create_json("a.json", &note("mine")).await.expect_err("unsettled");
    assert!(error.retryable(), "{error}");
    faults.heal();
    let again = store.create_json("a.json", &note("mine")).await;
    assert_eq!(again, Ok(Creation::AlreadyExists(note("mine"))));
}

#[tokio::test]
async fn a_full_disk_is_said_so_and_leaves_nothing() {
    let (store, faults) = flaky();
    faults.fail_all(Op::Create, Fault::Full);
    faults.fail_all(Op::Put, Fault::Full);
    let record = store.create_json("a.json", &note("x")).await.expect_err("full");
    let blob = store.put_blob("x").await.expect_err("full");
    for error in [record, blob] {
        assert!(matches!(error, Error::Full { .. }), "{error}");
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
        assert!(error.to_string().contains("free some space"), "{error}");
    }
    faults.heal();
    assert_eq!(store.find_json::<Note>("a.json").await, Ok(None));
    assert_eq!(store.blob_size(&Digest::of(b"x")).await, Ok(None));
}

#[tokio::test]
async fn a_really_full_disk_takes_nothing_by_halves() {
    let Some(disk) = SmallDisk::mount(1 << 20) else { return };
    let store = Store::open(&disk.join("store").display().to_string(), &S3Options::default()).expect("open");
    store.create_json("kept.json", &note("kept")).await.expect("there is room yet");
    let large = vec![7; 2 << 20];
    let error = store.put_blob(large.clone()).await.expect_err("larger than the disk");
    assert!(matches!(error, Error::Full { .. }), "{error}");
    let fetched = Store::memory();
    let digest = fetched.put_blob(large).await.expect("put");
    let error = fetched.fetch_blob_to(&digest, &disk.join("copy")).await.expect_err("larger than the disk");
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert!(!disk.join("copy").exists());

    // The failed writes gave their room back, and what was there is there.
    assert_eq!(store.create_json("after.json", &note("fits")).await, Ok(Creation::Created));
    assert_eq!(store.get_json::<Note>("kept.json").await, Ok(note("kept")));
    assert_eq!(store.list("blobs").await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_store_whose_creates_race_is_refused_with_the_reason() {
    let (store, faults) = flaky();
    faults.fail_all(Op::Create, Fault::ConditionIgnored);
    let error = store.prove_conditional_create().await.expect_err("racy");
    assert!(matches!(error, Error::Unfit { .. }) && !error.retryable(), "{error}");
    assert!(error.to_string().contains("8 of 8 racing creates"), "{error}");
}

#[tokio::test]
async fn a_damaged_blob_is_never_handed_out() {
    let folder = TempDir::new();
    let store = Store::open(&folder.join("store").display().to_string(), &S3Options::default()).expect("open");
    let digest = store.put_blob("the right bytes").await.expect("put");
    let key = store.list("blobs").await.expect("list").pop().expect("one blob");
    std::fs::write(folder.join("store").join(key), "the wrong bytes").expect("damage it");

    let whole = store.get_blob(&digest).await.expect_err("damaged");
    assert!(matches!(whole, Error::Corrupt { .. }), "{whole}");
    let target = folder.join("copy");
    let fetched = store.fetch_blob_to(&digest, &target).await.expect_err("damaged");
    assert_eq!(fetched.code(), ErrorCode::DataLoss);
    assert!(!target.exists(), "no file under the final name");
    let leftovers = std::fs::read_dir(folder.path()).expect("read folder").count();
    assert_eq!(leftovers, 1, "only the store's own folder is left");
}

#[tokio::test]
async fn a_blob_beyond_the_readers_limit_is_refused_by_its_size_also_where_the_store_says_less_than_it_sends() {
    let folder = TempDir::new();
    let local = Store::open(&folder.join("store").display().to_string(), &S3Options::default()).expect("open");
    let (remote, faults) = flaky();
    for store in [&local, &remote] {
        let digest = store.put_blob("ten bytes.").await.expect("put");
        assert_eq!(store.get_blob_within(&digest, 10).await.expect("it is no larger"), "ten bytes.");
        let refused = store.get_blob_within(&digest, 9).await.expect_err("a byte too many");
        assert_eq!(refused, Error::TooLarge { digest: digest.clone(), size_bytes: 10, limit_bytes: 9 });
        assert!(refused.to_string().contains("10 bytes") && !refused.retryable(), "{refused}");
    }
    let digest = Digest::of(b"ten bytes.");
    faults.fail_all(Op::Get, Fault::Overlong);
    let refused = remote.get_blob_within(&digest, 25).await.expect_err("it never ends");
    assert_eq!(refused, Error::TooLarge { digest: digest.clone(), size_bytes: 30, limit_bytes: 25 });
    faults.fail_all(Op::Get, Fault::Truncated);
    let damaged = remote.get_blob_within(&digest, 25).await.expect_err("half of it");
    assert!(matches!(damaged, Error::Corrupt { .. }), "{damaged}");
    let absent = local.get_blob_within(&Digest::of(b"never stored"), 25).await.expect_err("absent");
    assert!(absent.is_not_found(), "{absent}");
}

#[tokio::test]
async fn a_fetch_that_breaks_off_leaves_the_old_file() {
    let folder = TempDir::new();
    let (store, faults) = flaky();
    let digest = store.put_blob("new").await.expect("put");
    let target = folder.join("file");
    std::fs::write(&target, "old").expect("write");
    faults.cut();
    store.fetch_blob_to(&digest, &target).await.expect_err("cut");
    assert_eq!(std::fs::read_to_string(&target).expect("read"), "old");
    faults.heal();
    store.fetch_blob_to(&digest, &target).await.expect("fetch");
    assert_eq!(std::fs::read_to_string(&target).expect("read"), "new");
}

#[tokio::test]
async fn a_local_create_survives_losers_and_stray_files() {
    let folder = TempDir::new();
    let store = Arc::new(Store::open(&folder.display(), &S3Options::default()).expect("open"));
    store.append_numbered("log", |n| note(&n.to_string())).await.expect("append");
    // What a crash in mid-write leaves, and what a person may drop there.
    std::fs::write(folder.join("log/00000002.json#1"), "half").expect("write");
    std::fs::write(folder.join("log/README"), "hello").expect("write");
    assert_eq!(store.append_numbered("log", |n| note(&n.to_string())).await, Ok(2));
    assert_eq!(store.list("log").await, Ok(vec!["log/00000001.json".into(), "log/00000002.json".into()]));
}
