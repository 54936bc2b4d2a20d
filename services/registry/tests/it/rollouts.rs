use tailor_blobs::numbered_key;
use tailor_pb::registry::rollout_registry_client::RolloutRegistryClient;
use tailor_pb::registry::{
    AbortRolloutRequest, Gates, GetRolloutRequest, MetricGate, PromoteRolloutRequest, ResolveRequest, Rollout,
    RolloutLimits, SetPolicyRequest, SetRolloutRequest,
};
use tailor_serverkit::Client;
use tonic::{Code, Status};

use crate::support::{Service, expect_status};

fn client(service: &Service) -> RolloutRegistryClient<Client> {
    RolloutRegistryClient::new(service.channel())
}

fn wanted(canary_version: u64, percent: f64) -> SetRolloutRequest {
    let (adapter, alias) = ("grammar".into(), "production".into());
    SetRolloutRequest { adapter, alias, canary_version, percent, who: "ops".into(), ..Default::default() }
}

async fn set(service: &Service, request: SetRolloutRequest) -> Result<Rollout, Status> {
    Ok(client(service).set_rollout(request).await?.into_inner())
}

async fn get(service: &Service) -> Result<Rollout, Status> {
    let request = GetRolloutRequest { adapter: "grammar".into(), alias: "production".into() };
    Ok(client(service).get_rollout(request).await?.into_inner())
}

async fn abort(service: &Service, sequence: u64) -> Result<Rollout, Status> {
    let (adapter, alias) = ("grammar".into(), "production".into());
    let request = AbortRolloutRequest { adapter, alias, who: "ops".into(), why: "worse".into(), sequence };
    Ok(client(service).abort_rollout(request).await?.into_inner())
}

async fn promote(service: &Service) -> Result<Rollout, Status> {
    let (adapter, alias) = ("grammar".into(), "production".into());
    let request = PromoteRolloutRequest { adapter, alias, who: "ops".into(), why: "better".into() };
    Ok(client(service).promote_rollout(request).await?.into_inner())
}

async fn target(service: &Service) -> u64 {
    let request = ResolveRequest { reference: "grammar@production".into() };
    service.client.clone().resolve(request).await.expect("resolved").into_inner().version
}

async fn with_production(versions: u32) -> Service {
    let service = Service::with_versions("grammar", versions).await;
    service.set_alias(1, Some(0)).await.expect("set");
    service
}

#[tokio::test]
async fn a_rollout_is_begun_raised_and_promoted() {
    let service = with_production(2).await;
    let limits = RolloutLimits { max_error_rate: Some(0.1), ..Default::default() };
    let begun = set(&service, SetRolloutRequest { limits: Some(limits), ..wanted(2, 0.0) }).await.expect("begun");
    assert_eq!((begun.sequence, begun.id, begun.state.as_str()), (1, 1, "RUNNING"));
    assert_eq!((begun.stable_version, begun.canary_version), (1, 2));
    let raised = set(&service, wanted(2, 12.5)).await.expect("raised");
    assert_eq!((raised.sequence, raised.id), (2, 1), "the same rollout, so the same callers");
    assert_eq!(raised.limits.expect("limits").max_error_rate, Some(0.1), "what is not named stays");
    assert_eq!(set(&service, wanted(2, 12.5)).await.expect("the same again").sequence, 2);
    assert_eq!(target(&service).await, 1, "the alias has not moved");
    let promoted = promote(&service).await.expect("promoted");
    assert_eq!(promoted.state, "PROMOTED");
    assert_eq!(target(&service).await, 2);
    assert_eq!(promote(&service).await.expect("again").sequence, promoted.sequence);
    expect_status(abort(&service, 0).await, Code::FailedPrecondition, &["PROMOTED", "roll the alias back"]);
}

#[tokio::test]
async fn a_rollout_survives_every_registry() {
    let first = with_production(2).await;
    let begun = set(&first, wanted(2, 5.0)).await.expect("begun");
    let store = first.store.clone();
    drop(first);
    let second = Service::over(store).await;
    assert_eq!(get(&second).await.expect("still there"), begun);
}

#[tokio::test]
async fn an_aborted_rollout_stays_aborted_and_another_can_begin() {
    let service = with_production(3).await;
    expect_status(get(&service).await, Code::NotFound, &["has had no rollout"]);
    expect_status(abort(&service, 0).await, Code::NotFound, &["has had no rollout"]);
    set(&service, wanted(2, 5.0)).await.expect("begun");
    expect_status(abort(&service, 9).await, Code::Aborted, &["is at 1, not 9"]);
    let aborted = abort(&service, 1).await.expect("aborted");
    assert_eq!((aborted.state.as_str(), aborted.why.as_str()), ("ABORTED", "worse"));
    assert_eq!(abort(&service, 0).await.expect("again"), aborted);
    expect_status(promote(&service).await, Code::FailedPrecondition, &["is aborted", "begin another"]);
    let next = set(&service, wanted(3, 5.0)).await.expect("another");
    assert_eq!((next.sequence, next.id, next.canary_version), (3, 3, 3));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let service = with_production(3).await;
    expect_status(set(&service, wanted(1, 5.0)).await, Code::InvalidArgument, &["points to version 1 already"]);
    expect_status(set(&service, wanted(9, 5.0)).await, Code::NotFound, &["no version 9"]);
    expect_status(set(&service, wanted(2, 101.0)).await, Code::InvalidArgument, &["percent: 101"]);
    let sticky = SetRolloutRequest { sticky_by: "colour".into(), ..wanted(2, 5.0) };
    expect_status(set(&service, sticky).await, Code::InvalidArgument, &["colour", "tenant, session, user"]);
    let limits = RolloutLimits { min_requests: Some(0), ..Default::default() };
    let limits = SetRolloutRequest { limits: Some(limits), ..wanted(2, 5.0) };
    expect_status(set(&service, limits).await, Code::InvalidArgument, &["limits.min_requests"]);
    let alias = SetRolloutRequest { alias: "staging".into(), ..wanted(2, 5.0) };
    expect_status(set(&service, alias).await, Code::NotFound, &["no alias staging"]);
    set(&service, wanted(2, 5.0)).await.expect("begun");
    let says = ["a rollout of version 2 runs", "promote or abort it first"];
    expect_status(set(&service, wanted(3, 5.0)).await, Code::FailedPrecondition, &says);
}

#[tokio::test]
async fn a_move_of_the_alias_by_other_means_ends_a_rollout() {
    let service = with_production(3).await;
    set(&service, wanted(2, 5.0)).await.expect("begun");
    service.set_alias(3, Some(1)).await.expect("moved by hand");
    assert_eq!(get(&service).await.expect("there").state, "SUPERSEDED");
    expect_status(promote(&service).await, Code::FailedPrecondition, &["moved by other means"]);
    let next = set(&service, wanted(2, 5.0)).await.expect("another");
    assert_eq!((next.id, next.stable_version, next.state.as_str()), (2, 3, "RUNNING"));
}

#[tokio::test]
async fn a_policy_stands_before_a_rollout_too() {
    let service = with_production(2).await;
    let metrics = vec![MetricGate { metric: "exact_match".into(), at_least: Some(0.8), ..Default::default() }];
    let policy = SetPolicyRequest {
        adapter: "grammar".into(),
        alias: "production".into(),
        gates: Some(Gates { metrics, ..Default::default() }),
        ..Default::default()
    };
    service.client.clone().set_policy(policy.clone()).await.expect("set");
    let says = ["exact_match is not in the manifest", "at least 0.8"];
    expect_status(set(&service, wanted(2, 1.0)).await, Code::FailedPrecondition, &says);
    // A policy that came after the rollout stands before its promotion.
    let none = SetPolicyRequest { gates: None, ..policy.clone() };
    service.client.clone().set_policy(none).await.expect("set");
    set(&service, wanted(2, 1.0)).await.expect("begun");
    service.client.clone().set_policy(policy).await.expect("set");
    expect_status(promote(&service).await, Code::FailedPrecondition, &says);
    assert_eq!(target(&service).await, 1);
}

#[tokio::test]
async fn of_an_abort_and_a_promotion_at_the_same_moment_one_wins_and_the_alias_says_which() {
    for _ in 0..10 {
        let service = with_production(2).await;
        set(&service, wanted(2, 50.0)).await.expect("begun");
        let (promoted, aborted) = tokio::join!(promote(&service), abort(&service, 0));
        let state = get(&service).await.expect("there").state;
        match (promoted, aborted) {
            (Ok(_), Err(_)) => assert_eq!((target(&service).await, state.as_str()), (2, "PROMOTED")),
            (Err(_), Ok(_)) => assert_eq!((target(&service).await, state.as_str()), (1, "ABORTED")),
            both => panic!("{both:?}"),
        }
    }
}

#[tokio::test]
async fn a_promotion_that_was_broken_off_is_completed_by_the_next() {
    let service = with_production(2).await;
    set(&service, wanted(2, 50.0)).await.expect("begun");
    // What a registry leaves that is killed after it has moved the alias: the last entry is missing.
    let log = "adapters/grammar/rollouts/production";
    let mut entry: serde_json::Value = service.store.get_json(&numbered_key(log, 1)).await.expect("the entry");
    (entry["seq"], entry["state"]) = (2.into(), "promoting".into());
    service.store.create_json(&numbered_key(log, 2), &entry).await.expect("written");
    service.set_alias(2, Some(1)).await.expect("moved");
    assert_eq!(get(&service).await.expect("there").state, "PROMOTING");
    assert_eq!(promote(&service).await.expect("completed").state, "PROMOTED");
    assert_eq!(target(&service).await, 2);
}
