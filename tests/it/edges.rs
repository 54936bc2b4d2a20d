//! Edges and engines as processes: where requests go, what becomes of them when an engine is killed or told to stop.

mod encoder_decoder;
mod traces;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tailor_pb::inference::{
    GenerateRequest, GenerateResponse, ListResidentRequest, LoadRequest, PinRequest, ScoreRequest, generate_request,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::answers::{self, stream};
use crate::support::clients::Addresses;
use crate::support::cluster::health;
use crate::support::fleet::Fleet;
use crate::support::{Family, eventually};

const LONG: u32 = 400;

fn request(adapter: &str, number: usize, tokens: u32) -> GenerateRequest {
    answers::request(Family::Llama, adapter, number, tokens)
}

async fn ask(at: &Addresses, adapter: &str, number: usize, tokens: u32) -> Result<GenerateResponse, Status> {
    answers::ask(at, request(adapter, number, tokens)).await
}

async fn resident(fleet: &Fleet, engine: usize) -> Vec<u64> {
    let list = fleet.engine_admin(engine).list_resident(ListResidentRequest {}).await.expect("a list").into_inner();
    list.adapters.iter().map(|adapter| adapter.version).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_on_one_engine_and_answers_as_a_single_gateway_does() {
    const ADAPTERS: u32 = 6;
    let fleet = Fleet::with_engines(2, &[]).await;
    fleet.publish(ADAPTERS);
    let at = fleet.at(0, 0);
    // The same store, served by a process that is edge and engine in one.
    let alone = fleet.another_gateway().await;
    for round in 0..3 {
        for version in 1..=ADAPTERS {
            let name = format!("grammar@{version}");
            let said = ask(&at, &name, round, 30).await.expect("an answer");
            assert_eq!(
                said,
                ask(&alone.addresses, &name, round, 30)
                    .await
                    .map(|mut there| {
                        there.cached_tokens = said.cached_tokens;
                        there
                    })
                    .expect("an answer"),
                "{name}"
            );
        }
    }
    let (left, right) = (resident(&fleet, 0).await, resident(&fleet, 1).await);
    assert_eq!(left.len() + right.len(), ADAPTERS as usize, "each is on one engine: {left:?} {right:?}");
    assert!(!left.is_empty() && !right.is_empty(), "and they are spread: {left:?} {right:?}");
    // An edge shows and does what its engines hold.
    let all = at.admin().list_resident(ListResidentRequest {}).await.expect("a list").into_inner();
    assert_eq!((all.adapters.len(), all.bases.len()), (ADAPTERS as usize, 2));
    let digest = all.adapters[0].digest.clone();
    let pinned = at.admin().pin(PinRequest { digest, pinned: true }).await.expect("pinned").into_inner();
    assert!(pinned.pinned);
    at.admin().load(LoadRequest { adapter: "grammar@2".into() }).await.expect("loaded");
    let missing = at.admin().load(LoadRequest { adapter: "grammar@99".into() }).await.expect_err("no such version");
    assert_eq!(missing.code(), Code::NotFound);

    // Callers speak to edges: an engine has no limits of tenants, and knows no rollouts.
    let engine = Addresses { gateway: fleet.engine_url(0).to_owned(), ..at.clone() };
    assert_eq!(ask(&engine, "grammar@1", 0, 1).await.expect_err("no edge").code(), Code::Unimplemented);

    // What an engine alone can do goes there as it was asked.
    let held = GenerateRequest {
        format: Some(generate_request::Format::Regex("(yes|no)".into())),
        top_logprobs: Some(3),
        temperature: 0.7,
        seed: Some(7),
        ..request("grammar@1", 1, 10)
    };
    let said = at.gateway().generate(held.clone()).await.expect("an answer").into_inner();
    let there = alone.addresses.gateway().generate(held).await.expect("an answer").into_inner();
    assert!(["yes", "no"].contains(&said.text.as_str()), "{said:?}");
    assert_eq!((&said.tokens, &said.text), (&there.tokens, &there.text));
    let score = ScoreRequest { adapter: "grammar@1".into(), text: "anna sees".into(), ..Default::default() };
    let scored = at.gateway().score(score.clone()).await.expect("scores").into_inner();
    assert_eq!(scored, alone.addresses.gateway().score(score).await.expect("scores").into_inner());
    let wrong = at.gateway().generate(GenerateRequest { temperature: -1.0, ..request("grammar@1", 1, 1) }).await;
    let wrong = wrong.expect_err("out of its limits");
    assert_eq!((wrong.code(), wrong.message().contains("temperature")), (Code::InvalidArgument, true), "{wrong}");
}

/// So that neither of the two engines starts its base while the other is in the middle of an answer.
async fn ready_on_all(fleet: &Fleet) {
    for engine in 0..2 {
        let request = LoadRequest { adapter: "grammar@1".into() };
        fleet.engine_admin(engine).load(request).await.expect("loaded");
    }
}

/// So many streams at once on two engines that take three sequences each; one of them is killed in the middle of its answers.
async fn lose_an_engine(fleet: &mut Fleet, streams: usize, request: impl Fn(usize) -> GenerateRequest) {
    let at = fleet.at(0, 0);
    ready_on_all(fleet).await;
    let mut alone = Vec::new();
    for number in 0..streams {
        alone.push(answers::ask(&at, request(number)).await.expect("an answer").text);
    }
    let begun = Arc::new(AtomicUsize::new(0));
    let streaming: Vec<_> =
        (0..streams).map(|number| tokio::spawn(stream(at.clone(), request(number), begun.clone()))).collect();
    eventually("both engines have begun", async || (begun.load(Ordering::SeqCst) >= 5).then_some(())).await;
    fleet.engine(0).kill();
    let (mut whole, mut lost) = (0, 0);
    for (number, stream) in streaming.into_iter().enumerate() {
        let streamed = stream.await.expect("no stream is forgotten");
        match streamed.end {
            Ok(_) => {
                assert_eq!(streamed.text, alone[number], "stream {number}");
                whole += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                assert!(status.message().contains("was lost after"), "{status}");
                assert!(streamed.chunks > 0, "one that had said nothing moves: {status}");
                assert!(alone[number].starts_with(&streamed.text), "what was said was right");
                lost += 1;
            }
        }
    }
    assert!(lost > 0 && lost <= 3, "{lost} of {streams} were in the middle, three at most");
    assert_eq!(whole + lost, streams);
    println!("{whole} whole, {lost} lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engines_unstarted_requests_move_and_its_started_ones_end_with_a_clear_error() {
    let mut fleet = Fleet::with_engines(2, &[("GATEWAY__MAX_BATCH", "3")]).await;
    fleet.publish(2);
    lose_an_engine(&mut fleet, 24, |number| request(["", "grammar@1", "grammar@2"][number % 3], number, LONG)).await;
    // One engine is enough, and a new one is taken in.
    let at = fleet.at(0, 0);
    assert_eq!(health(fleet.gateway_url(0)).await.as_deref(), Some("SERVING"));
    let said = ask(&at, "grammar@1", 1, LONG).await.expect("an answer").text;
    fleet.restart_engine(0).await;
    fleet.engine(1).kill();
    eventually("the engine that is back answers", async || {
        ask(&at, "grammar@1", 1, LONG).await.ok().filter(|again| again.text == said)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_that_hangs_has_not_begun_moves_though_its_connections_stay() {
    const REQUESTS: usize = 8;
    let mut fleet = Fleet::with_engines(2, &[]).await;
    fleet.publish(1);
    let at = fleet.at(0, 0);
    let mut alone = Vec::new();
    for number in 0..REQUESTS {
        alone.push(ask(&at, "grammar@1", number, 20).await.expect("an answer").text);
    }
    let home = if resident(&fleet, 0).await.is_empty() { 1 } else { 0 };
    fleet.engine(home).signal("STOP");
    // It has the adapter, and has said a moment ago that all is well with it.
    let begun = std::time::Instant::now();
    let asked = (0..REQUESTS).map(|number| {
        let at = at.clone();
        tokio::spawn(async move { ask(&at, "grammar@1", number, 20).await })
    });
    let asked: Vec<_> = asked.collect();
    for (number, asked) in asked.into_iter().enumerate() {
        let said = asked.await.expect("no panic").expect("the other engine answers");
        assert_eq!(said.text, alone[number]);
    }
    let score = ScoreRequest { adapter: "grammar@1".into(), text: "anna sees".into(), ..Default::default() };
    at.gateway().score(score).await.expect("the other engine scores");
    let held = at.admin().list_resident(ListResidentRequest {}).await.expect("what the other holds").into_inner();
    assert_eq!(held.bases.len(), 1, "{held:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "long before its connections are given up");
    fleet.engine(home).signal("CONT");
    fleet.engine(1 - home).kill();
    eventually("the engine that goes on answers", async || {
        ask(&at, "grammar@1", 1, 20).await.ok().filter(|said| said.text == alone[1])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_told_to_stop_finishes_what_it_has_and_gets_nothing_new() {
    let mut fleet = Fleet::with_engines(2, &[("SHUTDOWN_GRACE_MS", "60000")]).await;
    fleet.publish(1);
    let at = fleet.at(0, 0);
    let mut alone = Vec::new();
    for number in 0..8 {
        alone.push(ask(&at, "", number, LONG).await.expect("an answer").text);
    }
    let begun = Arc::new(AtomicUsize::new(0));
    let streams: Vec<_> =
        (0..8).map(|number| tokio::spawn(stream(at.clone(), request("", number, LONG), begun.clone()))).collect();
    eventually("all have begun", async || (begun.load(Ordering::SeqCst) == 8).then_some(())).await;
    fleet.engine(0).terminate();
    let after: Vec<_> =
        (0..8).map(|number| tokio::spawn(stream(at.clone(), request("", number, LONG), begun.clone()))).collect();
    for (number, stream) in streams.into_iter().chain(after).enumerate() {
        let streamed = stream.await.expect("no stream is forgotten");
        streamed.end.expect("nobody notices");
        assert_eq!(streamed.text, alone[number % 8]);
    }
    assert!(fleet.engine(0).wait(Duration::from_secs(30)).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_told_to_stop_says_so_waits_and_finishes() {
    let mut fleet = Fleet::with_engines(1, &[("SHUTDOWN_WAIT_MS", "2000"), ("SHUTDOWN_GRACE_MS", "60000")]).await;
    fleet.publish(1);
    let at = fleet.at(0, 0);
    let alone = ask(&at, "", 0, LONG).await.expect("an answer").text;
    let begun = Arc::new(AtomicUsize::new(0));
    let running = tokio::spawn(stream(at.clone(), request("", 0, LONG), begun.clone()));
    eventually("it has begun", async || (begun.load(Ordering::SeqCst) == 1).then_some(())).await;
    let url = fleet.gateway_url(0).to_owned();
    fleet.gateway(0).terminate();
    eventually("it says so", async || (health(&url).await.as_deref() == Some("NOT_SERVING")).then_some(())).await;
    // Who has not seen it yet is answered.
    assert_eq!(ask(&at, "", 0, LONG).await.expect("an answer").text, alone);
    assert_eq!(running.await.expect("a stream").text, alone);
    assert!(fleet.gateway(0).wait(Duration::from_secs(20)).success());
    let refused = ask(&at, "", 0, 1).await.expect_err("nobody is there");
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_engines_says_what_is_missing_and_full_engines_say_when_to_come() {
    let mut fleet = Fleet::with_engines(1, &[("GATEWAY__MAX_BATCH", "1"), ("GATEWAY__MAX_QUEUE", "1")]).await;
    fleet.publish(1);
    let at = fleet.at(0, 0);
    ask(&at, "", 0, 1).await.expect("an answer");
    let many = futures::future::join_all((0..6).map(|number| ask(&at, "", number, LONG))).await;
    let refused: Vec<_> = many.iter().filter_map(|said| said.as_ref().err()).collect();
    assert!(!refused.is_empty() && refused.len() < 6, "{refused:?}");
    for status in refused {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay).expect("when to come again");
        assert!(retry >= Duration::from_millis(100), "{retry:?}");
    }
    fleet.engine(0).kill();
    let url = fleet.gateway_url(0).to_owned();
    eventually("it is not ready", async || (health(&url).await.as_deref() == Some("NOT_SERVING")).then_some(())).await;
    let status = ask(&at, "", 0, 1).await.expect_err("no engine");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("none of the 1 engines can take the request"), "{status}");
}
