//! What a gateway asks the registry for bases, and what it goes by while no registry answers.

use std::time::{Duration, Instant};

use tailor_pb::inference::{GenerateRequest, GenerateResponse};
use tailor_pb::registry::GetRetentionRequest;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::answers;
use crate::support::clients::Addresses;
use crate::support::http::{body_of, http};
use crate::support::spans::Receiver;
use crate::support::{Family, Fleet, eventually};

const GET_BASE: &str = "tailor.registry.v1.AdapterRegistry/GetBase";
/// What only these tests ask.
const MARK: &str = "tailor.registry.v1.AdapterRegistry/GetRetention";
/// An answer of before is too old by then.
const OLD: Duration = Duration::from_millis(300);

/// Of an adapter, or of a base alone.
fn request(base: &str, adapter: &str, number: usize) -> GenerateRequest {
    GenerateRequest { base: base.into(), ..answers::request(Family::Llama, adapter, number, 12) }
}

async fn ask(at: &Addresses, base: &str) -> Result<GenerateResponse, Status> {
    answers::ask(at, request(base, "", 0)).await
}

/// How often the registry has been asked for a base until now. `mark`: which of the marks this is.
async fn asked_for_bases(receiver: &Receiver, at: &Addresses, mark: usize) -> usize {
    // A process' spans come in the order in which they end.
    let _ = at.registry().get_retention(GetRetentionRequest { adapter: "grammar".into() }).await;
    let spans = eventually("what the registry was asked", async || {
        let spans = receiver.spans();
        (spans.iter().filter(|span| span.name == MARK).count() == mark).then_some(spans)
    })
    .await;
    spans.iter().filter(|span| span.name == GET_BASE).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_is_asked_for_a_base_once_in_a_while_and_each_time_for_one_that_it_does_not_have() {
    let receiver = Receiver::start().await;
    let endpoint = receiver.endpoint();
    let settings = [("TELEMETRY__OTLP_ENDPOINT", endpoint.as_str()), ("GATEWAY__ALIAS_TTL_MS", "600000")];
    let fleet = Fleet::start(1, &[0], &settings).await;
    fleet.publish(1);
    let at = fleet.at(0, 0);
    let before = asked_for_bases(&receiver, &at, 1).await;
    let all = (0..20).map(|number| {
        let adapter = if number % 2 == 0 { "" } else { "grammar@1" };
        answers::ask(&at, answers::request(Family::Llama, adapter, number, 4))
    });
    for said in futures::future::join_all(all).await {
        said.expect("an answer");
    }
    ask(&at, Family::Llama.base()).await.expect("an answer");
    let card = http(&at.gateway, &format!("GET /v1/models/{} HTTP/1.1\r\n", Family::Llama.base()), b"").await;
    assert!(card.starts_with("HTTP/1.1 200") && body_of(&card).contains("sha256:"), "{card}");
    let asked = asked_for_bases(&receiver, &at, 2).await;
    assert_eq!(asked - before, 1, "one question for 22 requests");

    for _ in 0..2 {
        let status = ask(&at, "second").await.expect_err("no such base");
        assert_eq!(status.code(), Code::NotFound, "{status}");
    }
    fleet.add_base("second", 160);
    ask(&at, "second").await.expect("it is there now");
    assert_eq!(asked_for_bases(&receiver, &at, 3).await - asked, 3, "that it is not there is not remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_known_answers_while_the_registry_is_away_also_where_it_has_to_be_opened_again() {
    let room_for_one = [("GATEWAY__KV_BYTES", "1"), ("GATEWAY__BASE_BYTES", "600000")];
    let mut fleet = Fleet::start(1, &[0], &room_for_one).await;
    fleet.publish(1);
    fleet.add_base("second", 160);
    let at = fleet.at(0, 0);
    let second = ask(&at, "second").await.expect("an answer").text;
    let first = ask(&at, Family::Llama.base()).await.expect("an answer").text;
    let tuned = answers::ask(&at, request("", "grammar@1", 0)).await.expect("an answer").text;
    fleet.kill_registry(0);
    tokio::time::sleep(OLD).await;
    for _ in 0..2 {
        assert_eq!(ask(&at, Family::Llama.base()).await.expect("it is known").text, first);
        let said = answers::ask(&at, request("", "grammar@1", 0)).await;
        assert_eq!(said.expect("it is known").text, tuned);
        assert_eq!(ask(&at, "second").await.expect("it was put away, and is known").text, second);
    }
    let card = http(&at.gateway, "GET /v1/models/second HTTP/1.1\r\n", b"").await;
    assert!(card.starts_with("HTTP/1.1 200"), "{card}");
    let status = ask(&at, "third").await.expect_err("nobody can say what it is");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    fleet.restart_registry(0).await;
    let status = eventually("the registry says so", async || {
        ask(&at, "third").await.err().filter(|status| status.code() == Code::NotFound)
    })
    .await;
    assert!(status.message().contains("base third does not exist"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_behind_an_edge_go_by_what_they_know_while_the_registry_is_away_as_a_single_gateway_does() {
    let mut fleet = Fleet::with_engines(1, &[]).await;
    fleet.publish(2);
    let at = fleet.at(0, 0);
    let asked = [request(Family::Llama.base(), "", 0), request("", "grammar@1", 0)];
    let mut before = Vec::new();
    for request in &asked {
        before.push(answers::ask(&at, request.clone()).await.expect("an answer").text);
    }
    fleet.kill_registry(0);
    tokio::time::sleep(OLD).await;
    for _ in 0..2 {
        for (request, before) in asked.iter().zip(&before) {
            assert_eq!(answers::ask(&at, request.clone()).await.expect("it is known").text, *before);
        }
    }
    let status = answers::ask(&at, request("", "grammar@2", 0)).await.expect_err("nobody has asked for it before");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_hangs_is_not_waited_for_by_whoever_asks_for_what_is_known() {
    let mut fleet = Fleet::start(1, &[0], &[]).await;
    fleet.publish(1);
    let at = fleet.at(0, 0);
    at.point(1, "").await;
    let asked =
        [request(Family::Llama.base(), "", 0), request("", "grammar@1", 0), request("", "grammar@production", 0)];
    let mut before = Vec::new();
    for request in &asked {
        before.push(answers::ask(&at, request.clone()).await.expect("an answer").text);
    }
    fleet.registry(0).signal("STOP");
    tokio::time::sleep(OLD).await;
    let begun = Instant::now();
    let again = asked.iter().map(|request| answers::ask(&at, request.clone()));
    for (said, before) in futures::future::join_all(again).await.into_iter().zip(&before) {
        assert_eq!(said.expect("it is known").text, *before);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "long before its connections are given up");
    // Now it is known to hang: of sixty that ask one after the other each waited for it on its own before.
    let begun = Instant::now();
    for _ in 0..20 {
        for (request, before) in asked.iter().zip(&before) {
            assert_eq!(answers::ask(&at, request.clone()).await.expect("it is known").text, *before);
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?} for sixty", begun.elapsed());
    // One in a while finds out whether it is back; the other of two is told at once.
    let mut quickest = Duration::MAX;
    for _ in 0..2 {
        let begun = Instant::now();
        let status = ask(&at, "third").await.expect_err("nobody can say what it is");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay).expect("when to come again");
        assert!(retry <= Duration::from_secs(4), "{retry:?}");
        quickest = quickest.min(begun.elapsed());
    }
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    fleet.registry(0).signal("CONT");
    let status = eventually("the registry says so", async || {
        ask(&at, "third").await.err().filter(|status| status.code() == Code::NotFound)
    })
    .await;
    assert!(status.message().contains("base third does not exist"), "{status}");
}
