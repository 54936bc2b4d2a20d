//! Health that means that an answer would come: bases loaded and warmed, aliases known, a device that moves.

use std::time::Duration;

use serde_json::Value;
use tailor_pb::inference::GenerateRequest;

use crate::support::cluster::health;
use crate::support::http::{body_of, try_http};
use crate::support::{Cluster, Family, Hang, Service, Up, eventually};

/// `/readyz`: the status code and what it says.
async fn readyz(url: &str) -> Option<(u16, Value)> {
    let answer = try_http(url, "GET /readyz HTTP/1.1\r\n", b"").await?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body_of(&answer)).ok()?))
}

fn hindrance(said: &Value) -> String {
    said["hindrances"].as_array().expect("a list").iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}

/// Waits until both say so; gives the reasons.
async fn waits_for(url: &str, serving: bool) -> String {
    let (words, code) = if serving { ("SERVING", 200) } else { ("NOT_SERVING", 503) };
    eventually(&format!("{url} says {words}"), async || {
        let (status, said) = readyz(url).await?;
        (status == code && health(url).await.as_deref() == Some(words)).then(|| hindrance(&said))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_ready_when_its_bases_have_answered_and_the_registry_has_spoken() {
    let Some(mut cluster) = Cluster::prepare() else { return };
    // Nobody has a secret to ask it with.
    cluster.set("AUTH__TOKEN", "hush");
    cluster.set("GATEWAY__PRELOAD", Family::Llama.base());
    cluster.set("GATEWAY__OUTAGE_GRACE_MS", "0");
    cluster.spawn(Service::Gateway);
    let gateway = cluster.addresses.gateway.clone();
    let alone = waits_for(&gateway, false).await;
    assert!(alone.contains("the registry has not said what aliases mean"), "{alone}");
    assert!(alone.contains("little-llama"), "{alone}");

    cluster.spawn(Service::Registry);
    cluster.serving(Service::Registry).await;
    eventually("the registry has spoken, and the base is missed by name", async || {
        let (status, said) = readyz(&gateway).await?;
        let why = hindrance(&said);
        (status == 503 && !why.contains("aliases") && why.contains("base little-llama is not there: registry: "))
            .then_some(())
    })
    .await;
    let folder = Family::Llama.write(cluster.folder.path()).display().to_string();
    let cli = cluster.cli().env("TAILOR_TOKEN", "hush");
    cli.text(&["base", "add", &folder, "--name", Family::Llama.base(), "--dtype", "f32"]);
    assert_eq!(waits_for(&gateway, true).await, "");

    // Without any grace, what aliases mean is not known for long.
    cluster.process(Service::Registry).kill();
    let why = waits_for(&gateway, false).await;
    assert!(why.contains("too long ago"), "{why}");
    cluster.replace(Service::Registry).await;
    waits_for(&gateway, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hangs_takes_the_gateway_out_of_service_until_it_moves_again() {
    let hang = Hang::build();
    let settings = [&hang.environment()[..], &[("TAILOR__GATEWAY__HANG_MS", "1500")]].concat();
    let up = Up::with(&settings).await;
    up.add_base_and_rows(Family::Llama).await;
    let gateway = up.addresses.gateway.clone();
    let ask = async || {
        let request = GenerateRequest {
            base: Family::Llama.base().into(),
            input: "anna sees a boat".into(),
            max_new_tokens: 20,
            ..Default::default()
        };
        up.addresses.gateway().generate(request).await.expect("an answer").into_inner().text
    };
    let before = ask().await;
    waits_for(&gateway, true).await;

    hang.hold();
    // Idle, it is not missed; with something to do it is.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(readyz(&gateway).await.map(|(status, _)| status), Some(200));
    let (during, why) = tokio::join!(ask(), async {
        let why = waits_for(&gateway, false).await;
        hang.let_go();
        why
    });
    assert!(why.contains("the device of base little-llama hangs") && why.contains("1.5 s"), "{why}");
    assert_eq!(during, before, "whoever waited has the answer");
    waits_for(&gateway, true).await;
}
