//! A bad adapter never hurts a neighbour: each fault happens under load, and every other stream says what it says alone.
//!
//! `cargo xtask faults` runs these and writes what they print into docs/adapter-faults.md.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tailor_domain::Digest;
use tailor_pb::inference::{GenerateRequest, GenerateResponse, ListResidentRequest, UnloadRequest};
use tailor_pb::registry::{GetVersionRequest, SetAliasRequest};
use tonic::{Code, Status};

use crate::support::clients::Addresses;
use crate::support::fleet::{Fleet, write_padded_adapter};
use crate::support::{Cluster, Family, Service};

const TOKENS: u32 = 40;
/// Of an adapter that takes a while to be fetched.
const PADDING: usize = 1_000_000;

fn request(adapter: &str, number: u32) -> GenerateRequest {
    let base = if adapter.is_empty() { Family::Llama.base() } else { "" };
    GenerateRequest {
        base: base.into(),
        adapter: adapter.into(),
        input: format!("anna sees {} boats", number % 4),
        max_new_tokens: TOKENS,
        // So that no answer ends early.
        logit_bias: [(1, -1000.0)].into(),
        ..Default::default()
    }
}

async fn ask(at: &Addresses, adapter: &str, number: u32) -> Result<GenerateResponse, Status> {
    Ok(at.gateway().generate(request(adapter, number)).await?.into_inner())
}

/// Streams of the base and of a healthy adapter, one after the other in each of four tasks, as long as this lives; each answer is
/// held to what was said before anything happened.
struct Neighbours {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Neighbours {
    async fn start(at: &Addresses, healthy: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for number in 0..4u32 {
            let adapter = if number % 2 == 0 { healthy.to_owned() } else { String::new() };
            let alone = ask(at, &adapter, number).await.expect("an answer").text;
            let (at, stop) = (at.clone(), stop.clone());
            tasks.push(tokio::spawn(async move {
                let mut answers = 0;
                while !stop.load(Ordering::Relaxed) || answers == 0 {
                    let said = ask(&at, &adapter, number).await.expect("a neighbour is answered");
                    assert_eq!(said.text, alone, "{adapter:?} says what it says alone");
                    answers += 1;
                }
                answers
            }));
        }
        Self { stop, tasks }
    }

    /// Ends them, and tells the report of a fault.
    async fn held(self, fault: &str, callers: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let mut answers = 0;
        for task in self.tasks {
            answers += task.await.expect("no neighbour was let down");
        }
        let row = format!("| {fault} | {callers} | {answers} |\n");
        print!("{row}");
        if let Some(rows) = std::env::var_os("TAILOR_FAULT_ROWS") {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(rows);
            file.and_then(|mut file| file.write_all(row.as_bytes())).expect("the report's row");
        }
    }
}

/// Files of versions, written past the registry as nothing but a broken or malicious store would have them.
struct Versions {
    folder: PathBuf,
    blobs: PathBuf,
}

impl Versions {
    fn of(fleet: &Fleet) -> Self {
        let store = fleet.folder.join("store");
        Self { folder: store.join("adapters/grammar/versions"), blobs: store.join("blobs/sha256") }
    }

    fn path(&self, version: u32) -> PathBuf {
        self.folder.join(format!("{version:08}.json"))
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a digest");
        self.blobs.join(&hex[..2]).join(hex)
    }

    fn read(&self, version: u32) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(version)).expect("a version")).expect("JSON")
    }

    /// Version 1 with changes, as another version.
    fn write(&self, version: u32, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.read(1);
        manifest["version"] = version.into();
        change(&mut manifest);
        std::fs::write(self.path(version), serde_json::to_vec(&manifest).expect("JSON")).expect("a version");
    }

    /// Version 1 with other weights.
    fn write_weights(&self, version: u32, change: impl FnOnce(&mut Vec<u8>)) {
        let whole = self.read(1)["weights"].as_str().expect("a digest").to_owned();
        let mut bytes = std::fs::read(self.blob(&whole)).expect("weights");
        change(&mut bytes);
        let digest = Digest::of(&bytes).to_string();
        let path = self.blob(&digest);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, &bytes).expect("a blob");
        self.write(version, |manifest| {
            manifest["weights"] = digest.into();
            manifest["weights_size_bytes"] = bytes.len().into();
        });
    }
}

/// One registry and one gateway with `grammar@1`.
async fn one(settings: &[(&str, &str)]) -> (Fleet, Addresses, Versions) {
    with(1, settings).await
}

async fn with(versions: u32, settings: &[(&str, &str)]) -> (Fleet, Addresses, Versions) {
    let fleet = Fleet::start(1, &[0], settings).await;
    fleet.publish(versions);
    let (at, versions) = (fleet.at(0, 0), Versions::of(&fleet));
    (fleet, at, versions)
}

async fn refused(at: &Addresses, reference: &str, code: Code, words: &str) -> String {
    let mut last = String::new();
    for number in 0..10 {
        let status = ask(at, reference, number).await.expect_err("never the base's answer");
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
        last = status.message().to_owned();
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_cut_off_fails_its_own_adapter_alone_until_it_is_whole_again() {
    let (_fleet, at, versions) = one(&[]).await;
    versions.write_weights(2, |bytes| *bytes.last_mut().expect("bytes") ^= 1);
    let blob = versions.blob(versions.read(2)["weights"].as_str().expect("a digest"));
    let whole = std::fs::read(&blob).expect("weights");
    std::fs::write(&blob, &whole[..whole.len() / 2]).expect("cut off");
    let neighbours = Neighbours::start(&at, "grammar@1").await;
    refused(&at, "grammar@2", Code::DataLoss, "").await;
    std::fs::write(&blob, &whole).expect("whole again");
    // A fault of the store is not held against the adapter.
    ask(&at, "grammar@2", 0).await.expect("an answer");
    neighbours.held("truncated blob", "10 × DATA_LOSS; answered once the blob was whole again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_adapter_is_quarantined_and_says_why() {
    let (_fleet, at, versions) = one(&[]).await;
    let nan = f32::NAN.to_le_bytes();
    versions.write_weights(2, |bytes| bytes.splice(bytes.len() - 4.., nan).for_each(drop));
    versions.write(3, |manifest| manifest["base_fingerprint"] = Digest::of(b"another").to_string().into());
    // Another rank than the config says, and the shapes of another base.
    versions.write_weights(4, |bytes| replace(bytes, "[64,2]", "[2,64]"));
    versions.write_weights(5, |bytes| {
        replace(bytes, "[2,64]", "[2,32]");
        replace(bytes, "[0,512]", "[0,256]");
        replace(bytes, "[512,1024]", "[256, 768]");
        bytes.truncate(bytes.len() - 256);
    });
    let neighbours = Neighbours::start(&at, "grammar@1").await;
    ask(&at, "grammar@2", 0).await.expect_err("NaN");
    let nan = refused(&at, "grammar@2", Code::FailedPrecondition, "quarantined").await;
    refused(&at, "grammar@3", Code::FailedPrecondition, "was made for another").await;
    for version in 4..=5 {
        let reference = format!("grammar@{version}");
        ask(&at, &reference, 0).await.expect_err("shapes");
        refused(&at, &reference, Code::FailedPrecondition, "quarantined").await;
    }
    neighbours.held("NaN, wrong base, wrong rank, wrong shapes", "43 × FAILED_PRECONDITION with the reason").await;
    println!("{nan}");
}

fn replace(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("it is in the header");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_that_push_each_other_out_while_they_are_in_use_answer_as_if_alone() {
    const ADAPTERS: u32 = 8;
    // Room for one: what is in use stays beyond the budget, and leaves with its last stream.
    let (_fleet, at, versions) = one(&[("GATEWAY__ADAPTER_BYTES", "1")]).await;
    for version in 2..=ADAPTERS {
        versions.write_weights(version, |bytes| {
            let at = bytes.len() - 4 * version as usize;
            bytes[at..at + 4].copy_from_slice(&(version as f32).to_le_bytes());
        });
    }
    let mut alone = Vec::new();
    for version in 1..=ADAPTERS {
        alone.push(ask(&at, &format!("grammar@{version}"), version).await.expect("an answer"));
    }
    let neighbours = Neighbours::start(&at, "grammar@1").await;
    for _ in 0..5 {
        let versions: Vec<_> = (1..=ADAPTERS).map(|version| format!("grammar@{version}")).collect();
        let all = versions.iter().zip(1..).map(|(version, number)| ask(&at, version, number));
        for (said, alone) in futures::future::join_all(all).await.into_iter().zip(&alone) {
            let said = said.expect("an answer");
            assert_eq!((&said.text, &said.adapter_digest), (&alone.text, &alone.adapter_digest));
        }
        let request = UnloadRequest { digest: alone[0].adapter_digest.clone() };
        // By order, too, in the middle of a neighbour's answers; gone already is as good.
        let _ = at.admin().unload(request).await;
    }
    neighbours.held("evicted and unloaded while in use", "40 answers as if alone").await;
    let resident = at.admin().list_resident(ListResidentRequest {}).await.expect("a list").into_inner();
    assert!(resident.adapters.len() <= 2, "{:?}", resident.adapters);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_that_moves_in_the_middle_of_streams_mixes_no_two_versions() {
    let (_fleet, at, _) = with(2, &[]).await;
    let mut alone = Vec::new();
    for version in [1, 2] {
        alone.push(ask(&at, &format!("grammar@{version}"), 0).await.expect("an answer").text);
    }
    assert_ne!(alone[0], alone[1], "the versions can be told apart");
    let neighbours = Neighbours::start(&at, "grammar@1").await;
    let mut seen = [0u32; 2];
    for moves in 0..6u64 {
        let version = 1 + moves % 2;
        let request = SetAliasRequest {
            adapter: "grammar".into(),
            alias: "production".into(),
            version,
            who: "ops".into(),
            ..Default::default()
        };
        at.registry().set_alias(request).await.expect("moved");
        let streams = (0..6).map(|_| ask(&at, "grammar@production", 0));
        for said in futures::future::join_all(streams).await {
            let said = said.expect("an answer");
            let which = said.adapter_version as usize - 1;
            assert_eq!(said.text, alone[which], "what it says is what version {} says", which + 1);
            seen[which] += 1;
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    let callers = format!("{} answers of version 1, {} of version 2, each whole", seen[0], seen[1]);
    neighbours.held("replaced while streaming", &callers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_loads_at_once_load_each_adapter_once() {
    const LOADS: u32 = 1000;
    let (fleet, at, versions) = one(&[]).await;
    for version in 2..=LOADS {
        versions.write(version, |manifest| manifest["prompt_template"] = format!("{version}: {{input}}").into());
    }
    at.registry()
        .get_version(GetVersionRequest { adapter: "grammar".into(), version: u64::from(LOADS) })
        .await
        .expect("the registry has them");
    let neighbours = Neighbours::start(&at, "grammar@1").await;
    // Calls, not connections, are what there are so many of.
    let admins: Vec<_> = (0..4).map(|_| fleet.admin(0)).collect();
    let all = (1..=LOADS).map(|version| {
        let mut admin = admins[version as usize % admins.len()].clone();
        async move {
            let request = tailor_pb::inference::LoadRequest { adapter: format!("grammar@{version}") };
            admin.load(request).await.map(|loaded| loaded.into_inner().digest)
        }
    });
    let mut digests = Vec::new();
    for loaded in futures::future::join_all(all).await {
        digests.push(loaded.expect("loaded"));
    }
    digests.sort();
    digests.dedup();
    let resident = at.admin().list_resident(ListResidentRequest {}).await.expect("a list").into_inner();
    assert_eq!((digests.len(), resident.adapters.len()), (LOADS as usize, LOADS as usize));
    neighbours.held("1,000 loads at once", "1,000 adapters resident").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_in_the_middle_of_a_load_fails_that_load_alone() {
    let Some(mut cluster) = Cluster::prepare() else { return };
    cluster.spawn(Service::Registry);
    cluster.spawn(Service::Gateway);
    cluster.serving(Service::Registry).await;
    cluster.serving(Service::Gateway).await;
    let folder = Family::Llama.write(cluster.folder.path()).display().to_string();
    let cli = cluster.cli();
    cli.text(&["base", "add", &folder, "--name", Family::Llama.base(), "--dtype", "f32"]);
    for seed in 1..=2 {
        let folder = cluster.folder.join(format!("adapter-{seed}"));
        write_padded_adapter(Family::Llama, &folder, seed, PADDING);
        let folder = folder.display().to_string();
        cli.text(&["adapter", "import", &folder, "--name", "grammar", "--base", Family::Llama.base()]);
    }
    let at = cluster.addresses.clone();
    let neighbours = Neighbours::start(&at, "grammar@1").await;
    // In the middle of the weights, and nothing gets through after it.
    cluster.store.shut_after(PADDING as u64 / 2);
    let status = ask(&at, "grammar@2", 0).await.expect_err("the store is gone");
    assert!(matches!(status.code(), Code::Unavailable | Code::DataLoss), "{status}");
    cluster.store.open();
    let patience = tokio::time::Instant::now() + Duration::from_secs(30);
    while let Err(status) = ask(&at, "grammar@2", 0).await {
        assert!(tokio::time::Instant::now() < patience, "the store is back: {status}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    neighbours.held("store dead in mid-load", "UNAVAILABLE while it was away, answered after").await;
}
