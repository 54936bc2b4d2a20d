//! What must hold of a store at any moment, whatever died in the middle of whatever.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tailor_blobs::{Store, numbered_key};
use tailor_domain::{AdapterManifest, AliasMove, BaseManifest, Digest};

/// # Panics
/// Something does not hold; `case` says where.
pub async fn check(store: &Store, case: &str) {
    blobs_are_what_their_names_say(store, case).await;
    let bases = bases_are_whole(store, case).await;
    the_audit_log_is_a_chain(store, case).await;
    for adapter in store.list_children("adapters").await.expect("list").folders {
        adapter_is_whole(store, &adapter, &bases, case).await;
    }
}

async fn blobs_are_what_their_names_say(store: &Store, case: &str) {
    for blob in store.list_blobs().await.expect("list") {
        let bytes = store.get_blob(&blob.digest).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(bytes.len() as u64, blob.size_bytes, "{case}");
    }
}

async fn bases_are_whole(store: &Store, case: &str) -> BTreeSet<String> {
    let names = store.list_children("bases").await.expect("list").folders;
    for name in &names {
        let base: BaseManifest = store.get_json(&format!("bases/{name}/manifest.json")).await.expect("a base");
        for file in base.files {
            let size = store.blob_size(&file.digest).await.expect("look");
            assert_eq!(size, Some(file.size_bytes), "{case}: {} of base {name}", file.name);
        }
    }
    names.into_iter().collect()
}

async fn adapter_is_whole(store: &Store, adapter: &str, bases: &BTreeSet<String>, case: &str) {
    let prefix = format!("adapters/{adapter}");
    let versions: Vec<(u64, AdapterManifest)> =
        store.read_numbered(&format!("{prefix}/versions"), 1).await.unwrap_or_else(|error| panic!("{case}: {error}"));
    without_gaps(&versions, case);
    let purged = purged(store, &prefix, case).await;
    let mut jobs = BTreeMap::new();
    for (number, manifest) in &versions {
        assert_eq!((manifest.version.0, manifest.adapter.as_str()), (*number, adapter), "{case}");
        assert!(bases.contains(manifest.base.as_str()), "{case}: version {number} is for no base");
        if let Some(earlier) = manifest.job.as_ref().and_then(|job| jobs.insert(job.clone(), number)) {
            panic!("{case}: versions {earlier} and {number} are of one job");
        }
        if purged.contains(number) {
            continue;
        }
        for digest in [&manifest.weights, &manifest.config, &manifest.tokenizer] {
            let bytes = store.get_blob(digest).await;
            bytes.unwrap_or_else(|error| panic!("{case}: version {number} is not whole: {error}"));
        }
    }
    for alias in store.list_children(&format!("{prefix}/aliases")).await.expect("list").folders {
        let moves: Vec<(u64, AliasMove)> =
            store.read_numbered(&format!("{prefix}/aliases/{alias}"), 1).await.expect("read");
        without_gaps(&moves, case);
        let mut before = None;
        for (number, entry) in &moves {
            assert_eq!((entry.seq, entry.from), (*number, before), "{case}: move {number} of {alias}");
            before = Some(entry.to);
        }
        let target = before.expect("an alias has moved at least once").0;
        assert!(target <= versions.len() as u64 && !purged.contains(&target), "{case}: {alias} points to {target}");
    }
}

async fn the_audit_log_is_a_chain(store: &Store, case: &str) {
    let mut before: Option<String> = None;
    for seq in 1..=store.last_number("audit").await.expect("read") {
        let bytes = store.get_raw(&numbered_key("audit", seq)).await.expect("a link");
        let link: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!((link["seq"].as_u64(), link["prev"].as_str()), (Some(seq), before.as_deref()), "{case}");
        before = Some(Digest::of(&bytes).to_string());
    }
}

fn without_gaps<T>(log: &[(u64, T)], case: &str) {
    let numbers: Vec<u64> = log.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=log.len() as u64).collect::<Vec<_>>(), "{case}: a log has a gap");
}

async fn purged(store: &Store, prefix: &str, case: &str) -> BTreeSet<u64> {
    let life: Vec<(u64, Value)> = store.read_numbered(&format!("{prefix}/life"), 1).await.expect("read");
    without_gaps(&life, case);
    let purges = life.iter().filter(|(_, entry)| entry["change"] == "purge");
    purges
        .flat_map(|(_, entry)| entry["versions"].as_array().expect("versions").clone())
        .filter_map(|v| v.as_u64())
        .collect()
}
