//! The tiers between object storage and the device: what is where, what outlives a restart, what is fetched ahead.

mod open_again;

use tailor_pb::inference::{GenerateRequest, ListResidentRequest, ListResidentResponse, LoadRequest, PinRequest};
use tonic::{Code, Status};

use crate::support::clients::Addresses;
use crate::support::fleet::Fleet;
use crate::support::http::{body_of, http};
use crate::support::{Family, eventually};

async fn list(at: &Addresses) -> ListResidentResponse {
    at.admin().list_resident(ListResidentRequest {}).await.expect("a list").into_inner()
}

fn versions(list: &ListResidentResponse) -> Vec<(u64, bool)> {
    list.adapters.iter().map(|adapter| (adapter.version, adapter.pinned)).collect()
}

fn count(list: &ListResidentResponse, tier: &str) -> u64 {
    list.tiers.iter().find(|one| one.tier == tier).map_or(0, |one| one.count)
}

async fn load(at: &Addresses, version: u64) -> String {
    let request = LoadRequest { adapter: format!("grammar@{version}") };
    at.admin().load(request).await.expect("loaded").into_inner().digest
}

async fn say(at: &Addresses, version: u64) -> String {
    let request = GenerateRequest {
        adapter: format!("grammar@{version}"),
        input: "anna sees".into(),
        max_new_tokens: 12,
        ..Default::default()
    };
    at.gateway().generate(request).await.expect("an answer").into_inner().text
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_resident_is_resident_again_after_a_restart_even_without_its_files_in_the_store() {
    let mut fleet = Fleet::start(1, &[0], &[]).await;
    fleet.publish(3);
    let at = fleet.at(0, 0);
    let pinned = load(&at, 1).await;
    load(&at, 3).await;
    at.admin().pin(PinRequest { digest: pinned, pinned: true }).await.expect("pinned");
    let before = (say(&at, 1).await, say(&at, 3).await);
    let file = fleet.cache_of_gateway(0).join("adapters/resident.json");
    eventually("it is written down", async || {
        let text = std::fs::read_to_string(&file).ok()?;
        (text.matches("grammar").count() == 2 && text.contains("true")).then_some(())
    })
    .await;
    // The disk has what it takes: of the store only the base's files and the records are left.
    let weights = fleet.folder.join("store/blobs");
    let mut gone = 0;
    for entry in walk(&weights) {
        if std::fs::metadata(&entry).expect("a blob").len() < 3000 && is_adapter(&entry) {
            std::fs::remove_file(entry).expect("removed");
            gone += 1;
        }
    }
    assert_eq!(gone, 3, "three versions' weights");
    fleet.replace_gateway(0, 0).await;
    let now = eventually("they are back, and nobody has asked", async || {
        let list = list(&at).await;
        (list.adapters.len() == 2).then_some(list)
    })
    .await;
    assert_eq!(versions(&now), [(1, true), (3, false)]);
    assert_eq!((say(&at, 1).await, say(&at, 3).await), before);
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() { files.extend(walk(&entry)) } else { files.push(entry) }
    }
    files
}

fn is_adapter(blob: &std::path::Path) -> bool {
    let bytes = std::fs::read(blob).expect("a blob");
    bytes.windows(13).any(|window| window == b"o_proj.lora_A")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_alias_comes_to_mean_is_fetched_before_it_is_asked_for() {
    let fleet = Fleet::start(1, &[0], &[]).await;
    fleet.publish(3);
    let at = fleet.at(0, 0);
    at.point(1, "").await;
    eventually("it is in memory", async || (count(&list(&at).await, "memory") == 1).then_some(())).await;
    assert_eq!(versions(&list(&at).await), [], "and not on the device: nobody uses it");
    say(&at, 1).await;
    at.point(2, "").await;
    eventually("it follows the version that is in use", async || {
        (versions(&list(&at).await) == [(1, false), (2, false)]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tier_keeps_within_its_budget_and_what_left_comes_back() {
    // An adapter's weights have some 1200 bytes, on the device twice as many: room for one each, and on disk for two.
    let settings = [
        ("GATEWAY__ADAPTER_BYTES", "1"),
        ("GATEWAY__ADAPTER_MEMORY_BYTES", "2000"),
        ("GATEWAY__ADAPTER_DISK_BYTES", "3400"),
    ];
    let fleet = Fleet::start(1, &[0], &settings).await;
    fleet.publish(4);
    let at = fleet.at(0, 0);
    let mut alone = Vec::new();
    for version in 1..=4 {
        alone.push(say(&at, version).await);
    }
    for round in 0..3 {
        for version in 1..=4u64 {
            assert_eq!(say(&at, version).await, alone[version as usize - 1], "round {round}");
            let list = list(&at).await;
            assert!(list.adapters.len() <= 2 && count(&list, "memory") <= 1, "{list:?}");
            let disk = list.tiers.iter().find(|tier| tier.tier == "disk").expect("a tier");
            assert!(disk.size_bytes <= 3400 && disk.count >= 1, "{disk:?}");
        }
    }
}

/// A little base takes some 400 kB, most of it for the keys and values of one longest sequence: there is room for one.
const ROOM_FOR_ONE: [(&str, &str); 2] = [("GATEWAY__KV_BYTES", "1"), ("GATEWAY__BASE_BYTES", "600000")];

/// What a base alone says.
async fn ask(at: &Addresses, base: &str) -> Result<String, Status> {
    let request =
        GenerateRequest { base: base.into(), input: "anna sees".into(), max_new_tokens: 12, ..Default::default() };
    Ok(at.gateway().generate(request).await?.into_inner().text)
}

async fn ask_again(at: &Addresses, base: &str) -> String {
    eventually("there is room", async || ask(at, base).await.ok()).await
}

fn bases(list: &ListResidentResponse) -> Vec<&str> {
    list.bases.iter().map(|base| base.base.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_leaves_for_another_and_what_left_comes_back_as_it_was() {
    let fleet = Fleet::start(1, &[0], &ROOM_FOR_ONE).await;
    fleet.publish(1);
    fleet.add_base("second", 160);
    fleet.add_base("third", 192);
    let at = fleet.at(0, 0);
    let tuned = say(&at, 1).await;
    assert_eq!((bases(&list(&at).await), versions(&list(&at).await)), (vec![Family::Llama.base()], vec![(1, false)]));
    let mut alone = Vec::new();
    for base in ["second", "third"] {
        alone.push(ask(&at, base).await.expect("an answer"));
        let list = list(&at).await;
        assert_eq!((bases(&list), versions(&list)), (vec![base], vec![]), "the adapter has gone with its base");
    }
    // All at once: who finds no room while another is being loaded comes again.
    let all = tokio::join!(ask_again(&at, "second"), ask_again(&at, "third"), ask_again(&at, Family::Llama.base()));
    assert_eq!(alone, [all.0, all.1]);
    assert_eq!(say(&at, 1).await, tuned);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_with_a_pinned_adapter_stays_and_the_refusal_says_what_is_there() {
    let fleet = Fleet::start(1, &[0], &ROOM_FOR_ONE).await;
    fleet.publish(1);
    fleet.add_base("second", 160);
    let at = fleet.at(0, 0);
    let digest = load(&at, 1).await;
    let tuned = say(&at, 1).await;
    at.admin().pin(PinRequest { digest: digest.clone(), pinned: true }).await.expect("pinned");
    let refused = ask(&at, "second").await.expect_err("no room");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    for part in ["base second takes ", "600000 bytes (gateway.base_bytes)", "little-llama with ", "pinned", "raise"] {
        assert!(refused.message().contains(part), "{part:?} is not in {:?}", refused.message());
    }
    let head = "POST /v1/completions HTTP/1.1\r\n";
    let answer = http(&at.gateway, head, br#"{"model": "second", "prompt": "anna sees"}"#).await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    let body: serde_json::Value = serde_json::from_str(body_of(&answer)).expect("an error in JSON");
    assert_eq!(body["error"]["code"], "rate_limit_exceeded", "{body}");
    assert_eq!(say(&at, 1).await, tuned, "who uses what is there notices nothing");
    at.admin().pin(PinRequest { digest, pinned: false }).await.expect("let go");
    ask(&at, "second").await.expect("now there is room");
    assert_eq!(bases(&list(&at).await), ["second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preloaded_base_stays() {
    let fleet = Fleet::start(1, &[0], &ROOM_FOR_ONE).await;
    fleet.publish(0);
    fleet.add_base("second", 160);
    let gateway = fleet.another_gateway_with(&[("GATEWAY__PRELOAD", Family::Llama.base())]).await;
    let at = &gateway.addresses;
    let refused = ask(at, "second").await.expect_err("no room");
    for part in ["little-llama with ", "named in gateway.preload"] {
        assert!(refused.message().contains(part), "{part:?} is not in {:?}", refused.message());
    }
    ask(at, Family::Llama.base()).await.expect("it is there");
}
