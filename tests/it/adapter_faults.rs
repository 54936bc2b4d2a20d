//! A bad adapter never hurts a neighbour: each fault happens under load, and every other stream says what it says alone.
//!
//! `cargo xtask faults` runs these and writes what they print into docs/adapter-faults.md.

mod edge;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tailor_domain::Digest;
use tailor_pb::inference::{GenerateRequest, ListResidentRequest, ListResidentResponse, LoadRequest, UnloadRequest};
use tailor_pb::registry::GetVersionRequest;
use tonic::Code;

use crate::support::answers::{self, stream};
use crate::support::clients::Addresses;
use crate::support::faults::{Neighbours, Served, Stage, ask, refused, request};
use crate::support::fleet::write_padded_adapter;
use crate::support::{Cluster, Family, Service, eventually};

/// Of an adapter that takes a while to be fetched.
const PADDING: usize = 1_000_000;

async fn list(at: &Addresses) -> ListResidentResponse {
    at.admin().list_resident(ListResidentRequest {}).await.expect("a list").into_inner()
}

async fn cut_off(served: Served) {
    let stage = Stage::with(served, 1, &[]).await;
    let (at, versions) = (&stage.at, &stage.versions);
    versions.write_weights(2, |bytes| *bytes.last_mut().expect("bytes") ^= 1);
    let blob = versions.blob(versions.read(2)["weights"].as_str().expect("a digest"));
    let whole = std::fs::read(&blob).expect("weights");
    std::fs::write(&blob, &whole[..whole.len() / 2]).expect("cut off");
    let neighbours = Neighbours::start(at, "grammar@1").await;
    refused(at, "grammar@2", Code::DataLoss, "").await;
    std::fs::write(&blob, &whole).expect("whole again");
    // A fault of the store is not held against the adapter.
    ask(at, "grammar@2", 0).await.expect("an answer");
    let callers = "10 × DATA_LOSS; answered once the blob was whole again";
    neighbours.held(&stage.called("truncated blob"), callers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_cut_off_fails_its_own_adapter_alone_until_it_is_whole_again() {
    cut_off(Served::ByOne).await;
}

async fn quarantined(served: Served) {
    let stage = Stage::with(served, 1, &[]).await;
    let (at, versions) = (&stage.at, &stage.versions);
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
    let neighbours = Neighbours::start(at, "grammar@1").await;
    ask(at, "grammar@2", 0).await.expect_err("NaN");
    let nan = refused(at, "grammar@2", Code::FailedPrecondition, "quarantined").await;
    assert!(nan.contains("is not a finite number"), "its callers are told why: {nan}");
    refused(at, "grammar@3", Code::FailedPrecondition, "was made for another").await;
    for version in 4..=5 {
        let reference = format!("grammar@{version}");
        ask(at, &reference, 0).await.expect_err("shapes");
        refused(at, &reference, Code::FailedPrecondition, "quarantined").await;
    }
    let resident = list(at).await;
    assert!(resident.adapters.iter().all(|adapter| adapter.version == 1), "none of them is anywhere: {resident:?}");
    let fault = stage.called("NaN, wrong base, wrong rank, wrong shapes");
    neighbours.held(&fault, "43 × FAILED_PRECONDITION with the reason").await;
}

fn replace(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("it is in the header");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_adapter_is_quarantined_and_says_why() {
    quarantined(Served::ByOne).await;
}

async fn pushed_out(served: Served) {
    const ADAPTERS: u32 = 8;
    // Room for one: what is in use stays beyond the budget, and leaves with its last stream.
    let stage = Stage::with(served, 1, &[("GATEWAY__ADAPTER_BYTES", "1")]).await;
    let at = &stage.at;
    for version in 2..=ADAPTERS {
        stage.versions.write_weights(version, |bytes| {
            let at = bytes.len() - 4 * version as usize;
            bytes[at..at + 4].copy_from_slice(&(version as f32).to_le_bytes());
        });
    }
    let versions: Vec<_> = (1..=ADAPTERS).map(|version| format!("grammar@{version}")).collect();
    let mut alone = Vec::new();
    for (number, version) in versions.iter().enumerate() {
        alone.push(ask(at, version, number).await.expect("an answer"));
    }
    let neighbours = Neighbours::start(at, "grammar@1").await;
    for _ in 0..5 {
        let all = versions.iter().enumerate().map(|(number, version)| ask(at, version, number));
        for (said, alone) in futures::future::join_all(all).await.into_iter().zip(&alone) {
            let said = said.expect("an answer");
            assert_eq!((&said.text, &said.adapter_digest), (&alone.text, &alone.adapter_digest));
        }
        let request = UnloadRequest { digest: alone[0].adapter_digest.clone() };
        // By order, too, in the middle of a neighbour's answers; gone already is as good.
        let _ = at.admin().unload(request).await;
    }
    neighbours.held(&stage.called("evicted and unloaded while in use"), "40 answers as if alone").await;
    // An adapter leaves when another comes to where it is.
    eventually("what nobody uses has left", async || {
        for (number, version) in versions.iter().enumerate() {
            ask(at, version, number).await.expect("an answer");
        }
        (list(at).await.adapters.len() <= 2 * stage.engines()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_that_push_each_other_out_while_they_are_in_use_answer_as_if_alone() {
    pushed_out(Served::ByOne).await;
}

async fn replaced(served: Served) {
    const STREAMS: usize = 6;
    let stage = Stage::with(served, 2, &[]).await;
    let at = &stage.at;
    // So long that the alias moves in their middle.
    let long = |reference: &str| GenerateRequest { max_new_tokens: 120, ..request(reference, 0) };
    let mut alone = Vec::new();
    for version in [1, 2] {
        alone.push(answers::ask(at, long(&format!("grammar@{version}"))).await.expect("an answer").text);
    }
    assert_ne!(alone[0], alone[1], "the versions can be told apart");
    let neighbours = Neighbours::start(at, "grammar@1").await;
    at.point(1, "").await;
    let mut seen = [0u32; 2];
    for moves in 0..6u64 {
        let begun = Arc::new(AtomicUsize::new(0));
        let begin = |_| tokio::spawn(stream(at.clone(), long("grammar@production"), begun.clone()));
        let streams: Vec<_> = (0..STREAMS).map(begin).collect();
        eventually("all have begun", async || (begun.load(Ordering::SeqCst) == STREAMS).then_some(())).await;
        at.point(2 - moves % 2, "").await;
        for stream in streams {
            let said = stream.await.expect("no stream is forgotten");
            let which = said.end.expect("an answer").adapter_version as usize - 1;
            assert_eq!(said.text, alone[which], "what it says is what version {} says", which + 1);
            seen[which] += 1;
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
    let callers = format!("{} answers of version 1, {} of version 2, each whole", seen[0], seen[1]);
    neighbours.held(&stage.called("replaced while streaming"), &callers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_that_moves_in_the_middle_of_streams_mixes_no_two_versions() {
    replaced(Served::ByOne).await;
}

async fn loaded_at_once(served: Served, loads: u32) {
    let stage = Stage::with(served, 1, &[]).await;
    let at = &stage.at;
    for version in 2..=loads {
        stage.versions.write(version, |manifest| manifest["prompt_template"] = format!("{version}: {{input}}").into());
    }
    at.registry()
        .get_version(GetVersionRequest { adapter: "grammar".into(), version: u64::from(loads) })
        .await
        .expect("the registry has them");
    let neighbours = Neighbours::start(at, "grammar@1").await;
    // Calls, not connections, are what there are so many of.
    let admins: Vec<_> = (0..4).map(|_| stage.fleet.admin(0)).collect();
    let all = (1..=loads).map(|version| {
        let mut admin = admins[version as usize % admins.len()].clone();
        async move {
            let request = LoadRequest { adapter: format!("grammar@{version}") };
            admin.load(request).await.map(|loaded| loaded.into_inner().digest)
        }
    });
    let mut digests = Vec::new();
    for loaded in futures::future::join_all(all).await {
        digests.push(loaded.expect("loaded"));
    }
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), loads as usize);
    let mut resident: Vec<_> = list(at).await.adapters.iter().map(|adapter| adapter.version).collect();
    resident.sort_unstable();
    // The neighbours' own may be on every engine, if one has much more to do than the others.
    let neighbours_own = resident.iter().filter(|version| **version == 1).count();
    assert!((1..=stage.engines()).contains(&neighbours_own), "{neighbours_own}");
    let others: Vec<_> = resident.into_iter().filter(|version| *version != 1).collect();
    assert_eq!(others, (2..=u64::from(loads)).collect::<Vec<_>>(), "each is loaded, and once");
    let fault = stage.called(&format!("{loads} loads at once"));
    neighbours.held(&fault, &format!("{loads} adapters resident")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_loads_at_once_load_each_adapter_once() {
    loaded_at_once(Served::ByOne, 1000).await;
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
