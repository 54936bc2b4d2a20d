//! Aliases and rollouts with several gateways and registries: who is answered by what, and how soon a move is followed.

mod unpaid;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tailor_pb::inference::{self, Caller, GenerateRequest, ReportQualityRequest, RouteRequest};
use tailor_pb::registry;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::support::{Fleet, eventually};

const ALIAS: &str = "grammar@production";
const SESSIONS: usize = 10_000;
/// Callers that ask at the same time.
const CALLERS: usize = 16;
/// What a move may take to be followed, with room for a busy machine.
const FOLLOWED: Duration = Duration::from_millis(300);

fn session(number: usize) -> Option<Caller> {
    Some(Caller { session: format!("session-{number}"), ..Caller::default() })
}

async fn route(fleet: &Fleet, gateway: usize, caller: Option<Caller>) -> Result<inference::RouteResponse, Status> {
    let request = RouteRequest { adapter: ALIAS.into(), caller };
    Ok(fleet.rollouts(gateway).route(request).await?.into_inner())
}

async fn point(fleet: &Fleet, registry: usize, version: u64, why: &str) -> Instant {
    fleet.at(registry, 0).point(version, why).await;
    Instant::now()
}

/// Which version each session meets; each is asked for at one gateway, in turn.
async fn ask_all(fleet: &Fleet, stage: usize) -> (Vec<u64>, usize, usize) {
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let clients = [fleet.rollouts(0), fleet.rollouts(1)];
        callers.spawn(async move {
            let (mut met, mut failed, mut from_table) = (Vec::new(), 0, 0);
            for number in (caller..SESSIONS).step_by(CALLERS) {
                let request = RouteRequest { adapter: ALIAS.into(), caller: session(number) };
                match clients[(number / CALLERS + stage) % 2].clone().route(request).await {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        from_table += usize::from(answer.from_table);
                        met.push((number, answer.version));
                    }
                    Err(_) => failed += 1,
                }
            }
            (met, failed, from_table)
        });
    }
    let (mut met, mut failed, mut from_table) = (vec![0; SESSIONS], 0, 0);
    while let Some(done) = callers.join_next().await {
        let (some, errors, table) = done.expect("a caller");
        some.into_iter().for_each(|(number, version)| met[number] = version);
        failed += errors;
        from_table += table;
    }
    (met, failed, from_table)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_sessions_go_through_a_rollout_and_back() {
    let mut fleet = Fleet::start(2, &[0, 1], &[]).await;
    fleet.publish(2);
    let cli = fleet.cli(0, 0);
    cli.text(&["adapter", "set-alias", "grammar", "production", "1"]);
    let set =
        |percent: &str| cli.json(&["rollout", "set", "grammar", "production", "--canary", "2", "--percent", percent]);
    let mut before: Vec<u64> = vec![1; SESSIONS];
    println!("stage      stable  canary  moved on  moved back  failed  from the table");
    for (stage, name) in ["0", "5", "50", "100", "promote", "rollback"].into_iter().enumerate() {
        match name {
            "promote" => drop(cli.json(&["rollout", "promote", "grammar", "production"])),
            "rollback" => drop(cli.json(&["adapter", "rollback", "grammar", "production", "--why", "worse"])),
            percent => assert_eq!(set(percent)["state"], "RUNNING"),
        }
        if name == "50" {
            // What is decided is not in any process' memory.
            fleet.replace_gateway(1, 1).await;
            fleet.kill_registry(1);
            fleet.restart_registry(1).await;
        }
        tokio::time::sleep(FOLLOWED).await;
        let (met, failed, from_table) = ask_all(&fleet, stage).await;
        let on = |version: u64| met.iter().filter(|met| **met == version).count();
        let moved = |from: u64, to: u64| before.iter().zip(&met).filter(|(b, a)| (**b, **a) == (from, to)).count();
        let (stable, canary, forth, back) = (on(1), on(2), moved(1, 2), moved(2, 1));
        println!("{name:>8} {stable:>8} {canary:>7} {forth:>9} {back:>11} {failed:>7} {from_table:>15}");
        assert_eq!((failed, stable + canary), (0, SESSIONS), "no request failed");
        // Five standard deviations of a binomial draw.
        let wanted = match name {
            "0" | "rollback" => 0..=0,
            "5" => 391..=609,
            "50" => 4750..=5250,
            _ => SESSIONS..=SESSIONS,
        };
        assert!(wanted.contains(&canary), "{name}: {canary} sessions on the canary, not {wanted:?}");
        if name != "rollback" {
            assert_eq!(back, 0, "{name}: raising the percent moves nobody back");
        }
        before = met;
        if name == "promote" {
            for gateway in [0, 1] {
                let digests = resident(&fleet, gateway).await;
                assert_eq!(digests.len(), 2, "gateway {gateway} keeps the way back: {digests:?}");
                let request = inference::UnloadRequest { digest: digests[0].clone() };
                let refused = fleet.admin(gateway).unload(request).await.expect_err("held");
                let says = "a rollback of grammar@production leads to it";
                assert!(refused.code() == Code::FailedPrecondition && refused.message().contains(says), "{refused:?}");
            }
        }
    }
}

async fn resident(fleet: &Fleet, gateway: usize) -> Vec<String> {
    let answer = fleet.admin(gateway).list_resident(inference::ListResidentRequest {}).await.expect("residents");
    let mut adapters = answer.into_inner().adapters;
    adapters.sort_by_key(|adapter| adapter.version);
    adapters.into_iter().map(|adapter| adapter.digest).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_agree_and_follow_a_move_within_100_ms_also_once_their_registry_was_killed() {
    let mut fleet = Fleet::start(2, &[0, 1], &[]).await;
    fleet.publish(3);
    point(&fleet, 0, 1, "first").await;
    let follow = async |fleet: &Fleet, name: &str| {
        let mut took = [Vec::new(), Vec::new()];
        for n in 0..40_u64 {
            let version = n % 3 + 1;
            // Through either registry: one gateway's own, and the other's.
            let moved_at = point(fleet, (n % 2) as usize, version, &format!("{name} {n}")).await;
            for gateway in [0, 1] {
                while route(fleet, gateway, None).await.expect("an answer").version != version {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    assert!(moved_at.elapsed() < Duration::from_secs(20), "gateway {gateway} never follows");
                }
                took[gateway].push(moved_at.elapsed());
            }
        }
        for (gateway, took) in took.iter_mut().enumerate() {
            took.sort_unstable();
            let (median, p95, longest) = (took[20], took[37], took[39]);
            println!("{name}: gateway {gateway} follows: median {median:?}, p95 {p95:?}, longest {longest:?} of 40");
            assert!(median < Duration::from_millis(100), "gateway {gateway}: {median:?}");
        }
    };
    follow(&fleet, "as started").await;
    let known = route(&fleet, 1, None).await.expect("an answer").version;
    fleet.kill_registry(1);
    for _ in 0..20 {
        let answer = route(&fleet, 1, None).await.expect("no request fails while its registry is away");
        assert_eq!(answer.version, known);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Three moves while it is away, the last of which counts.
    for version in [2, 3, 1] {
        point(&fleet, 0, version, "away").await;
    }
    let back_at = Instant::now();
    fleet.restart_registry(1).await;
    eventually("the gateway follows again", async || {
        (route(&fleet, 1, None).await.expect("an answer").version == 1).then_some(())
    })
    .await;
    println!("followed again {:?} after the registry was started anew", back_at.elapsed());
    // Asked for often enough, its own table is in force again.
    eventually("the table is confirmed", async || {
        route(&fleet, 1, None).await.expect("an answer").from_table.then_some(())
    })
    .await;
    follow(&fleet, "after the kill").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grace_an_alias_means_nothing_while_no_registry_answers() {
    let mut fleet = Fleet::start(1, &[0], &[("GATEWAY__OUTAGE_GRACE_MS", "0")]).await;
    fleet.publish(1);
    point(&fleet, 0, 1, "").await;
    assert_eq!(route(&fleet, 0, None).await.expect("an answer").version, 1);
    fleet.kill_registry(0);
    tokio::time::sleep(FOLLOWED).await;
    let status = route(&fleet, 0, None).await.expect_err("nobody knows");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

async fn generate(
    fleet: &Fleet,
    gateway: usize,
    adapter: &str,
    caller: Option<Caller>,
) -> Result<inference::GenerateResponse, Status> {
    let request = GenerateRequest {
        adapter: adapter.into(),
        input: "anna sees a boat today".into(),
        max_new_tokens: 6,
        caller,
        ..Default::default()
    };
    Ok(fleet.at(0, gateway).gateway().generate(request).await?.into_inner())
}

/// What each version answers, asked for by its number.
async fn answers(fleet: &Fleet, versions: u64) -> BTreeMap<u64, inference::GenerateResponse> {
    let mut answers = BTreeMap::new();
    for version in 1..=versions {
        let answer = generate(fleet, 0, &format!("grammar@{version}"), None).await.expect("an answer");
        answers.insert(version, answer);
    }
    let texts: Vec<_> = answers.values().map(|answer| answer.text.clone()).collect();
    assert!(texts.iter().all(|text| texts.iter().filter(|other| *other == text).count() == 1), "{texts:?} differ");
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_alias_never_serves_stale_state_with_every_cache_warm() {
    let fleet = Fleet::start(1, &[0], &[]).await;
    fleet.publish(2);
    let warm = answers(&fleet, 2).await;
    point(&fleet, 0, 1, "").await;
    for n in 0..20_u64 {
        let version = n % 2 + 1;
        point(&fleet, 0, version, &n.to_string()).await;
        eventually("the move is followed", async || {
            let answer = generate(&fleet, 0, ALIAS, None).await.expect("an answer");
            // Whichever version answers, answers as itself: name, digest and text are of one piece.
            let own = &warm[&answer.adapter_version];
            assert_eq!((&answer.adapter_digest, &answer.text), (&own.adapter_digest, &own.text));
            (answer.adapter_version == version).then_some(())
        })
        .await;
        for _ in 0..3 {
            let answer = generate(&fleet, 0, ALIAS, None).await.expect("an answer");
            assert_eq!(answer.adapter_version, version, "once followed, it stays");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_of_real_answers_is_sticky_shadowed_and_fails_nobody() {
    let fleet = Fleet::start(1, &[0, 0], &[]).await;
    fleet.publish(2);
    let warm = answers(&fleet, 2).await;
    point(&fleet, 0, 1, "").await;
    let cli = fleet.cli(0, 0);
    // A version that does not answer as it must gets no traffic.
    let set = ["rollout", "set", "grammar", "production", "--canary", "2"];
    let golden = ["--percent", "50", "--golden", "anna sees a boat today", "--golden-expect"];
    let refused = cli.refused(&[&set[..], &golden, &["something else"]].concat());
    refused
        .says("FAILED_PRECONDITION", &["grammar@2 answers the golden prompt with", "\"something else\" is demanded"]);
    cli.refused(&["rollout", "status", "grammar", "production"]).says("NOT_FOUND", &["has had no rollout"]);

    let shadow = ["--shadow-percent", "100", "--max-latency-ratio", "0"];
    let begun = cli.json(&[&set[..], &["--percent", "50"], &shadow].concat());
    assert_eq!((&begun["state"], &begun["percent"]), (&"RUNNING".into(), &50.0.into()));
    tokio::time::sleep(FOLLOWED).await;
    let mut sides = [0, 0];
    for number in 0..30 {
        let mut met = Vec::new();
        for gateway in [0, 1, number % 2] {
            let answer = generate(&fleet, gateway, ALIAS, session(number)).await.expect("no request fails");
            let own = &warm[&answer.adapter_version];
            assert_eq!((&answer.adapter_digest, &answer.text), (&own.adapter_digest, &own.text), "never the shadow's");
            assert_eq!(answer.rollout_side, if answer.adapter_version == 2 { "canary" } else { "stable" });
            met.push(answer.adapter_version);
        }
        assert!(met.iter().all(|version| *version == met[0]), "session {number} met {met:?}");
        sides[usize::from(met[0] == 2)] += 1;
    }
    println!("of 30 sessions {} met the stable version and {} the canary", sides[0], sides[1]);
    assert!(sides.iter().all(|side| (5..=25).contains(side)), "{sides:?}");
    let seen = eventually("the shadow has answered", async || {
        let status = cli.json(&["rollout", "status", "grammar", "production"]);
        (status["seen"]["shadow"]["compared"].as_u64() > Some(0)).then_some(status)
    })
    .await;
    let shadow = &seen["seen"]["shadow"];
    assert_eq!(shadow["same"], 0, "two versions that never agree: {shadow}");
    assert!(shadow["mean_distance"].as_f64() > Some(0.0), "{shadow}");
    assert_eq!((&seen["seen"]["stable"]["errors"], &seen["seen"]["canary"]["errors"]), (&0.into(), &0.into()));

    let aborted = cli.json(&["rollout", "abort", "grammar", "production", "--why", "enough"]);
    assert_eq!(aborted["state"], "ABORTED");
    tokio::time::sleep(FOLLOWED).await;
    for number in 0..10 {
        let answer = generate(&fleet, number % 2, ALIAS, session(number)).await.expect("an answer");
        assert_eq!((answer.adapter_version, answer.rollout_side.as_str()), (1, ""));
    }
}

/// An answer over HTTP: its text, streamed or not.
fn complete(fleet: &Fleet, stream: bool) -> String {
    let body = serde_json::json!({
        "model": ALIAS, "prompt": "anna sees a boat today", "max_tokens": 6, "temperature": 0, "stream": stream,
    });
    let url = format!("{}/v1/completions", fleet.at(0, 0).gateway);
    let arguments = ["-s", "--fail", "--max-time", "30", "-H", "content-type: application/json", "-d"];
    let ended = std::process::Command::new("curl").args(arguments).args([&body.to_string(), &url]).output();
    let ended = ended.expect("curl runs");
    assert!(ended.status.success(), "no request fails");
    let said = String::from_utf8(ended.stdout).expect("text");
    let text = |document: &str| {
        let document: serde_json::Value = serde_json::from_str(document).expect("json");
        document["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
    };
    match stream {
        false => text(&said),
        true => said
            .lines()
            .filter_map(|line| line.strip_prefix("data: {"))
            .map(|rest| text(&format!("{{{rest}")))
            .collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_over_http_take_part_in_a_rollout_like_others() {
    let fleet = Fleet::start(1, &[0], &[]).await;
    fleet.publish(2);
    point(&fleet, 0, 1, "").await;
    let cli = fleet.cli(0, 0);
    tokio::time::sleep(FOLLOWED).await;
    let stable = complete(&fleet, false);
    assert_eq!(complete(&fleet, true), stable, "streamed or not");
    let set = ["rollout", "set", "grammar", "production", "--canary", "2", "--max-latency-ratio", "0", "--percent"];
    cli.json(&[&set[..], &["0", "--shadow-percent", "100"]].concat());
    tokio::time::sleep(FOLLOWED).await;
    for (number, stream) in [false, true, false, true].into_iter().enumerate() {
        assert_eq!(complete(&fleet, stream), stable, "the shadow is not heard");
        eventually("the shadow has answered", async || {
            let status = cli.json(&["rollout", "status", "grammar", "production"]);
            (status["seen"]["shadow"]["compared"].as_u64() > Some(number as u64)).then_some(())
        })
        .await;
    }
    cli.json(&[&set[..], &["100"]].concat());
    tokio::time::sleep(FOLLOWED).await;
    let canary = complete(&fleet, false);
    assert_ne!(canary, stable);
    assert_eq!(complete(&fleet, true), canary);
    let status = cli.json(&["rollout", "status", "grammar", "production"]);
    assert_eq!((&status["seen"]["stable"]["errors"], &status["seen"]["canary"]["errors"]), (&0.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_ends_by_itself_by_quality_by_shadow_and_where_a_gateway_cannot_load_it() {
    let fleet = Fleet::start(1, &[0, 0], &[]).await;
    fleet.publish(3);
    let warm = answers(&fleet, 3).await;
    point(&fleet, 0, 1, "").await;
    let cli = fleet.cli(0, 0);
    let set = ["rollout", "set", "grammar", "production", "--canary", "2", "--min-requests", "10", "--percent"];
    let ended = async |says: &str| {
        let status = eventually("the rollout ends by itself", async || {
            let status = cli.json(&["rollout", "status", "grammar", "production"]);
            (status["state"] == "ABORTED").then_some(status)
        })
        .await;
        let why = status["why"].as_str().expect("a reason").to_owned();
        println!("{why}");
        assert!(why.starts_with("automatic: ") && why.contains(says), "{says:?} is missing in {why:?}");
        assert_eq!(status["who"], "gateway");
        tokio::time::sleep(FOLLOWED).await;
        for gateway in [0, 1] {
            for number in 0..5 {
                let answer = generate(&fleet, gateway, ALIAS, session(number)).await.expect("no request fails");
                assert_eq!(answer.adapter_version, 1, "everybody is back, at every gateway");
            }
        }
    };

    cli.json(&[&set[..], &["100"]].concat());
    for version in [1, 2] {
        for _ in 0..10 {
            let (adapter_digest, score) = (warm[&version].adapter_digest.clone(), if version == 1 { 0.9 } else { 0.2 });
            let report = ReportQualityRequest { adapter_digest, score };
            // The tenth report on the canary ends it; nobody reports on what is over.
            let _ = fleet.rollouts(0).report_quality(report).await;
        }
    }
    ended("its mean score is 0.200, the stable version's 0.900").await;

    let shadow = ["0", "--shadow-percent", "100", "--max-shadow-distance", "0.01", "--max-latency-ratio", "0"];
    cli.json(&[&set[..], &shadow].concat());
    for number in 0..200 {
        let answer = generate(&fleet, 0, ALIAS, session(number)).await.expect("no request fails");
        assert_eq!(answer.text, warm[&1].text, "the shadow is not heard");
        if cli.json(&["rollout", "status", "grammar", "production"])["state"] == "ABORTED" {
            break;
        }
    }
    ended("shadow answers are").await;

    // Loaded by one gateway, gone from the store before the other can: that one ends it for both.
    let show = cli.json(&["adapter", "show", "grammar@3"]);
    let hex = show["weights_digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
    let blob = fleet.folder.join("store/blobs/sha256").join(&hex[..2]).join(hex);
    std::fs::remove_file(&blob).expect("a blob in the store");
    let before = registry::GetRolloutRequest { adapter: "grammar".into(), alias: "production".into() };
    let before = fleet.rollouts(1).get_rollout(before).await.expect("the last").into_inner();
    cli.json(&["rollout", "set", "grammar", "production", "--canary", "3", "--percent", "100"]);
    for number in 0..10 {
        generate(&fleet, 1, ALIAS, session(number)).await.expect("no request fails, whoever cannot load what");
    }
    ended("it did not pass its trial").await;
    let after = cli.json(&["rollout", "status", "grammar", "production"]);
    assert!(after["id"].as_u64() > before.rollout.map(|rollout| rollout.id), "it was another rollout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_set_checked_and_passed_from_the_command_line() {
    let fleet = Fleet::start(1, &[0], &[]).await;
    fleet.publish(2);
    let (ops, ann) = (fleet.cli(0, 0), fleet.cli(0, 0).env("USER", "ann"));
    let set = ["adapter", "policy", "set", "grammar", "production"];
    let demands =
        ["--min", "exact_match=0.8", "--max-drop", "exact_match=0.01", "--approvals", "1", "--serving", "vllm"];
    let policy = ops.json(&[&set[..], &demands].concat());
    let gate = &policy["gates"]["metrics"][0];
    assert_eq!(
        (&gate["metric"], &gate["at_least"], &gate["max_drop"]),
        (&"exact_match".into(), &0.8.into(), &0.01.into())
    );
    let shown = ops.text(&["adapter", "policy", "show", "grammar", "production"]);
    for part in ["exact_match at least 0.8", "not below the present version's by more than 0.01", "1 approvals", "vllm"]
    {
        assert!(shown.contains(part), "{part:?} is missing in:\n{shown}");
    }
    let refused = ops.refused(&["adapter", "set-alias", "grammar", "production", "1"]);
    let says = ["exact_match is not in the manifest (at least 0.8 demanded): not passed", "vllm is able to serve it"];
    refused.says("FAILED_PRECONDITION", &says);
    assert_eq!(refused.status, 1, "asking again would not help");
    let checked = ops.run(&["adapter", "policy", "check", "grammar", "production", "1"]);
    assert_eq!(checked.status, 1, "a script can ask");
    assert!(checked.output.contains("NOT PASSED") && checked.output.contains("not in the manifest"), "{checked:?}");

    ops.json(&[&set[..], &["--approvals", "1"]].concat());
    let own = ops.refused(&["adapter", "approve", "grammar", "1"]);
    own.says("FAILED_PRECONDITION", &["ops published version 1", "somebody else must approve it"]);
    let given = ann.json(&["adapter", "approve", "grammar", "1", "--alias", "production", "--why", "read 50 answers"]);
    assert_eq!((&given["who"], &given["alias"]), (&"ann".into(), &"production".into()));
    ops.text(&["adapter", "policy", "check", "grammar", "production", "1"]);
    ops.text(&["adapter", "set-alias", "grammar", "production", "1"]);
    // The policy stands before a rollout too, and its refusal comes through the gateway as it is.
    ops.json(&[&set[..], &demands].concat());
    let canary = ["rollout", "set", "grammar", "production", "--canary", "2", "--percent", "1"];
    ops.refused(&canary).says("FAILED_PRECONDITION", &says);
    let request = registry::SetRolloutRequest {
        adapter: "grammar".into(),
        alias: "production".into(),
        canary_version: 2,
        percent: 1.0,
        ..Default::default()
    };
    let refusal = fleet.rollouts(0).set_rollout(request).await.expect_err("refused");
    assert!(!refusal.details().is_empty(), "rich details: {refusal:?}");
    ops.refused(&[&set[..], &["--min", "exact_match"]].concat()).says("USAGE", &["METRIC=VALUE"]);
}
