//! Bases that were open when a gateway ended are open again after it was started anew, whether or not an adapter is on them.

use std::time::Duration;

use serde_json::Value;
use tailor_pb::inference::PinRequest;

use super::{ROOM_FOR_ONE, ask, bases, list, load, say, versions};
use crate::support::fleet::Fleet;
use crate::support::{Family, eventually};

/// As [`ROOM_FOR_ONE`], for all of them.
const ROOM_FOR_ALL: [(&str, &str); 2] = [("GATEWAY__KV_BYTES", "1"), ("GATEWAY__BASE_BYTES", "6000000")];
/// Longer than the gateway takes to write down what is there.
const WRITTEN: Duration = Duration::from_millis(1500);

/// What the gateway has written down, the last used first.
fn written(fleet: &Fleet) -> Vec<String> {
    let text = std::fs::read(fleet.cache_of_gateway(0).join("bases/open.json")).unwrap_or_default();
    let listed: Vec<Value> = serde_json::from_slice(&text).unwrap_or_default();
    listed.iter().filter_map(|one| one["base"].as_str().map(str::to_owned)).collect()
}

/// Uses the bases, one after the other, until it is written down that they were.
async fn use_all(fleet: &Fleet, names: &[&str]) -> Vec<String> {
    let mut said = Vec::new();
    for name in names {
        said.push(ask(&fleet.at(0, 0), name).await.expect("an answer"));
    }
    let wanted: Vec<_> = names.iter().rev().map(|name| (*name).to_owned()).collect();
    eventually("it is written down", async || (written(fleet) == wanted).then_some(())).await;
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn bases_without_an_adapter_are_open_again_after_a_restart_in_the_order_of_their_use() {
    let mut fleet = Fleet::start(1, &[0], &[]).await;
    fleet.publish(0);
    fleet.add_base("second", 160);
    fleet.add_base("third", 192);
    let at = fleet.at(0, 0);
    let names = ["third", Family::Llama.base(), "second"];
    let before = use_all(&fleet, &names).await;
    fleet.replace_gateway(0, 0).await;
    eventually("they are back, and nobody has asked", async || (bases(&list(&at).await).len() == 3).then_some(()))
        .await;
    tokio::time::sleep(WRITTEN).await;
    assert_eq!(written(&fleet), ["second", Family::Llama.base(), "third"], "to come back is no use");
    assert_eq!(use_all(&fleet, &names).await, before);

    // Told to stop instead of killed: what was used a moment ago counts, too.
    ask(&at, "third").await.expect("an answer");
    fleet.gateway(0).terminate();
    assert!(fleet.gateway(0).wait(Duration::from_secs(30)).success());
    assert_eq!(written(&fleet)[0], "third");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_less_room_than_before_the_last_used_comes_back_and_none_leaves_for_another() {
    let mut fleet = Fleet::start(1, &[0], &ROOM_FOR_ALL).await;
    fleet.publish(0);
    fleet.add_base("second", 160);
    fleet.add_base("third", 192);
    let at = fleet.at(0, 0);
    use_all(&fleet, &["third", Family::Llama.base(), "second"]).await;
    fleet.replace_gateway_with(0, 0, &ROOM_FOR_ONE).await;
    eventually("the others are told to have no room", async || {
        let log = fleet.gateway(0).log();
        ["third", Family::Llama.base()]
            .iter()
            .all(|base| log.contains(&format!("base {base} does not fit beside those that are resident")))
            .then_some(())
    })
    .await;
    assert_eq!(bases(&list(&at).await), ["second"]);
    // Who is asked for is there as ever.
    ask(&at, "third").await.expect("an answer");
    assert_eq!(bases(&list(&at).await), ["third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_settings_name_is_loaded_before_what_was_open_comes_back() {
    let mut fleet = Fleet::start(1, &[0], &ROOM_FOR_ALL).await;
    fleet.publish(0);
    fleet.add_base("second", 160);
    let at = fleet.at(0, 0);
    use_all(&fleet, &[Family::Llama.base(), "second"]).await;
    let preload = [&ROOM_FOR_ONE[..], &[("GATEWAY__PRELOAD", Family::Llama.base())]].concat();
    fleet.replace_gateway_with(0, 0, &preload).await;
    assert_eq!(bases(&list(&at).await), [Family::Llama.base()], "it serves, so this one is there");
    let log = eventually("the other one is told to have no room", async || {
        let log = fleet.gateway(0).log();
        log.contains("a base that was open is not opened again").then_some(log)
    })
    .await;
    assert_eq!(bases(&list(&at).await), [Family::Llama.base()]);
    assert!(!log.contains("a base that must be there cannot be loaded"), "nothing stood in its way: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_gone_is_told_and_left_out_and_the_others_come_back_with_their_adapters() {
    let mut fleet = Fleet::start(1, &[0], &[]).await;
    fleet.publish(1);
    fleet.add_base("second", 160);
    let at = fleet.at(0, 0);
    let digest = load(&at, 1).await;
    at.admin().pin(PinRequest { digest, pinned: true }).await.expect("pinned");
    let before = say(&at, 1).await;
    ask(&at, "second").await.expect("an answer");
    eventually("it is written down", async || {
        let adapters = std::fs::read_to_string(fleet.cache_of_gateway(0).join("adapters/resident.json")).ok()?;
        (written(&fleet) == ["second", Family::Llama.base()] && adapters.contains("true")).then_some(())
    })
    .await;
    std::fs::remove_dir_all(fleet.folder.join("store/bases/second")).expect("it was registered");
    fleet.replace_gateway(0, 0).await;
    let now = eventually("the other is back", async || {
        let list = list(&at).await;
        list.adapters.iter().any(|adapter| adapter.pinned).then_some(list)
    })
    .await;
    assert_eq!((bases(&now), versions(&now)), (vec![Family::Llama.base()], vec![(1, true)]));
    let log = fleet.gateway(0).log();
    assert!(log.contains("a base that was open is not opened again"), "{log}");
    assert!(log.contains("base second does not exist"), "{log}");
    assert_eq!(say(&at, 1).await, before);
}
