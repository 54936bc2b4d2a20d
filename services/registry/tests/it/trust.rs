//! Signatures, the audit log, and the search for what was changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::registry::{
    AuditEntry, CollectRequest, DeleteVersionRequest, ExportAuditRequest, RetentionRules, SetRetentionRequest,
    VerifyRequest, VerifyResponse,
};
use tailor_registry::Registry;
use tailor_serverkit::Settings;
use tailor_serverkit::trust::{Keys, check_version};
use tailor_testkit::TempDir;
use tonic::Code;

use crate::support::{Service, expect_status};
use crate::world::KEY;

async fn signing(store: Store) -> Service {
    Service::with(store, |settings| settings.trust.signing_key = Some(KEY.into())).await
}

fn keys(signing_key: &str) -> Keys {
    let settings = Settings::load(None, &[("trust.signing_key".into(), signing_key.into())]).expect("settings");
    Keys::of(&settings).expect("a key")
}

async fn exported(service: &Service, from_sequence: u64) -> Vec<AuditEntry> {
    let request = ExportAuditRequest { from_sequence };
    let mut stream = service.client.clone().export_audit(request).await.expect("exported").into_inner();
    let mut entries = Vec::new();
    while let Some(entry) = stream.message().await.expect("an entry") {
        entries.push(entry);
    }
    entries
}

async fn verify(service: &Service) -> VerifyResponse {
    service.client.clone().verify(VerifyRequest {}).await.expect("verified").into_inner()
}

#[tokio::test]
async fn a_version_says_who_vouches_for_it_and_a_reader_checks_that() {
    let service = signing(Store::memory()).await;
    service.register_base().await;
    let mut request = service.adapter_request("grammar", 1).await;
    request.license = "Apache-2.0".into();
    let version = service.publish(request).await.expect("published");
    let ours = keys(KEY).trusted;
    check_version(&version, &ours).expect("sound");
    let others = keys(&"07".repeat(32)).trusted;
    let error = check_version(&version, &others).expect_err("another key");
    assert!(error.to_string().contains("none is trusted"), "{error}");

    let changes: [fn(&mut tailor_pb::registry::AdapterVersion); 5] = [
        |version| version.weights_digest = Digest::of(b"other").to_string(),
        |version| version.prompt_template = "Ignore this: {input}".into(),
        |version| version.base_fingerprint = Digest::of(b"other").to_string(),
        |version| version.adapter = "spelling".into(),
        |version| version.version = 2,
    ];
    for change in changes {
        let mut changed = version.clone();
        change(&mut changed);
        let error = check_version(&changed, &ours).expect_err("changed").to_string();
        assert!(error.contains("was changed after it was signed"), "{error}");
    }
    let bare = tailor_pb::registry::AdapterVersion { attestation: None, ..version };
    assert!(check_version(&bare, &ours).expect_err("bare").to_string().contains("is not signed"));
    assert!(check_version(&bare, &Keys::default().trusted).is_ok(), "with no trusted key nothing is checked");
}

#[tokio::test]
async fn a_registry_with_a_key_that_is_none_does_not_start_and_does_not_repeat_it() {
    let settings = Settings {
        trust: tailor_serverkit::settings::Trust { signing_key: Some("hunter2".into()), ..Default::default() },
        ..Settings::default()
    };
    let error = Registry::new(&settings, Store::memory(), tailor_serverkit::clock::system()).err().expect("no key");
    assert!(error.to_string().contains("trust.signing_key") && !error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn the_exported_log_is_a_chain_with_every_deed_of_many_publishers_once() {
    let service = signing(Store::memory()).await;
    service.register_base().await;
    let mut requests = Vec::new();
    for seed in 0..16 {
        requests.push(service.adapter_request("grammar", seed).await);
    }
    let calls = requests.into_iter().map(|mut request| {
        request.who = "trainer".into();
        service.publish(request)
    });
    futures::future::join_all(calls).await.into_iter().for_each(|outcome| drop(outcome.expect("published")));
    service.set_alias(3, None).await.expect("set");

    let (mut before, mut deeds) = (None, Vec::new());
    let entries = exported(&service, 0).await;
    for entry in &entries {
        assert_eq!(entry.digest, Digest::of(&entry.record).to_string());
        let link: Value = serde_json::from_slice(&entry.record).expect("JSON");
        assert_eq!(link["prev"].as_str().map(ToOwned::to_owned), before, "link {}", entry.sequence);
        assert_eq!(link["signatures"].as_array().expect("signed").len(), 1);
        deeds.extend(link["deeds"].as_array().expect("deeds").clone());
        before = Some(entry.digest.clone());
    }
    let of = |what: &str| deeds.iter().filter(|deed| deed["what"] == what).collect::<Vec<_>>();
    let published: BTreeSet<&str> = of("publish").iter().filter_map(|deed| deed["key"].as_str()).collect();
    assert_eq!((of("publish").len(), published.len()), (16, 16), "each once");
    assert!(of("publish").iter().all(|deed| deed["who"] == "trainer"));
    let moved = of("set-alias");
    assert_eq!(
        (moved.len(), moved[0]["who"].as_str(), moved[0]["why"].as_str()),
        (1, Some("ops"), Some("version 3 is better"))
    );
    let later = exported(&service, 3).await;
    assert_eq!(later.as_slice(), &entries[2..]);
}

/// Two versions, an alias, a deletion, rules, a collection: every kind of record that there is.
async fn lived_in(folder: &TempDir) -> Store {
    let store = Store::open(&folder.display(), &Default::default()).expect("store");
    let service = signing(store.clone()).await;
    service.register_base().await;
    for seed in 1..=3 {
        let job = crate::support::job(seed);
        let fence = service.new_attempt(&job).await;
        let mut request = service.adapter_request("grammar", seed as u32).await;
        (request.job_id, request.fence) = (job.to_string(), fence);
        service.publish(request).await.expect("published");
    }
    service.set_alias(1, None).await.expect("set");
    service.set_alias(2, None).await.expect("moved");
    let delete = DeleteVersionRequest { adapter: "grammar".into(), version: 3, ..Default::default() };
    service.client.clone().delete_version(delete).await.expect("deleted");
    let rules = Some(RetentionRules { keep_last: 5, ..Default::default() });
    let keep = SetRetentionRequest { adapter: "grammar".into(), rules, ..Default::default() };
    service.client.clone().set_retention(keep).await.expect("set");
    service.client.clone().collect(CollectRequest::default()).await.expect("collected");
    let first = verify(&service).await;
    assert!(first.problems.is_empty() && first.made_up > 0, "claims have no deed of their own: {first:?}");
    let second = verify(&service).await;
    assert!(second.problems.is_empty() && second.made_up == 0, "{second:?}");
    store
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// A process that has read nothing yet.
async fn problems(folder: &TempDir) -> std::collections::BTreeMap<String, String> {
    let store = Store::open(&folder.display(), &Default::default()).expect("store");
    let settings = Settings::load(None, &[("trust.signing_key".into(), KEY.into())]).expect("settings");
    let registry = Registry::new(&settings, store, tailor_serverkit::clock::system()).expect("a registry");
    registry.verify().await.expect("verified").problems
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_any_stored_byte_is_found_and_the_object_named() {
    let folder = TempDir::new();
    lived_in(&folder).await;
    let (mut objects, mut changes) = (0, 0);
    let all = files(folder.path());
    let last_link =
        all.iter().rfind(|path| path.strip_prefix(folder.path()).is_ok_and(|key| key.starts_with("audit"))).cloned();
    for path in all {
        let key = path.strip_prefix(folder.path()).expect("inside").display().to_string();
        // Attempts are the trainer's.
        if !["adapters/", "bases/", "blobs/", "audit/"].iter().any(|folder| key.starts_with(folder)) {
            continue;
        }
        objects += 1;
        let whole = std::fs::read(&path).expect("read");
        // Each region of a record, not each byte: the whole test is to take seconds.
        let positions: BTreeSet<usize> =
            (0..whole.len()).step_by((whole.len() / 24).max(1)).chain([whole.len() - 1]).collect();
        for at in positions {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).expect("changed");
            let found = problems(&folder).await;
            assert!(found.contains_key(&key), "byte {at} of {key}: {found:?}");
            changes += 1;
        }
        if Some(&path) != last_link.as_ref() {
            std::fs::remove_file(&path).expect("removed");
            let found = problems(&folder).await;
            let is_free = key.starts_with("blobs/") && found.is_empty();
            assert!(
                found.contains_key(&key) || is_free || key.starts_with("audit/") && !found.is_empty(),
                "{key} removed: {found:?}"
            );
            changes += 1;
        }
        std::fs::write(&path, &whole).expect("restored");
    }
    assert!(problems(&folder).await.is_empty(), "nothing is left of it");
    eprintln!("{changes} changes of {objects} objects, each found and named");
}

#[tokio::test]
async fn a_damaged_version_is_refused_when_it_is_resolved_or_loaded() {
    let folder = TempDir::new();
    let store = lived_in(&folder).await;
    let service = signing(Store::open(&folder.display(), &Default::default()).expect("store")).await;
    let key = store.list("adapters/grammar/versions").await.expect("list").remove(0);
    let text = std::fs::read_to_string(folder.join(&key)).expect("read");
    std::fs::write(folder.join(&key), text.replace("Correct the grammar", "Correct the wording")).expect("changed");
    let request = tailor_pb::registry::GetVersionRequest { adapter: "grammar".into(), version: 1 };
    let version = service.client.clone().get_version(request).await.expect("readable").into_inner();
    let error = check_version(&version, &keys(KEY).trusted).expect_err("changed");
    assert!(error.to_string().contains("prompt_template"), "{error}");
    std::fs::write(folder.join(&key), "{").expect("damaged");
    let fresh = signing(Store::open(&folder.display(), &Default::default()).expect("store")).await;
    let outcome = fresh.client.clone().get_version(request_of(1)).await;
    expect_status(outcome.map(drop), Code::DataLoss, &[&key]);
}

fn request_of(version: u64) -> tailor_pb::registry::GetVersionRequest {
    tailor_pb::registry::GetVersionRequest { adapter: "grammar".into(), version }
}
