use tailor_pb::registry::{
    AdapterVersion, Approval, ApproveVersionRequest, CheckPolicyRequest, Gates, GetAliasHistoryRequest,
    GetPolicyRequest, MetricGate, Policy, PublishVersionRequest, RollbackRequest, SetAliasRequest, SetPolicyRequest,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{Service, adapter_on, expect_status, pair, sound_adapter};

const QUANTISED: &str = crate::support::QUANTISED;

async fn publish(service: &Service, seed: u32, exact_match: f64, who: &str) -> AdapterVersion {
    let request = service.request_for("grammar", &sound_adapter(seed)).await;
    let metrics = [("exact_match".to_owned(), exact_match)].into();
    service.publish(PublishVersionRequest { metrics, who: who.into(), ..request }).await.expect("published")
}

async fn demand(service: &Service, gates: Gates) -> Result<Policy, Status> {
    let request = SetPolicyRequest {
        adapter: "grammar".into(),
        alias: "production".into(),
        gates: Some(gates),
        who: "ops".into(),
        why: "customers".into(),
    };
    Ok(service.client.clone().set_policy(request).await?.into_inner())
}

async fn promote(service: &Service, version: u64, who: &str) -> Result<u64, Status> {
    let (adapter, alias) = ("grammar".into(), "production".into());
    let request = SetAliasRequest { adapter, alias, version, who: who.into(), ..Default::default() };
    Ok(service.client.clone().set_alias(request).await?.into_inner().version)
}

async fn approve(service: &Service, version: u64, alias: &str, who: &str) -> Result<Approval, Status> {
    let request = ApproveVersionRequest {
        adapter: "grammar".into(),
        version,
        alias: alias.into(),
        who: who.into(),
        why: "read the answers".into(),
    };
    Ok(service.client.clone().approve_version(request).await?.into_inner())
}

fn exact_match(at_least: Option<f64>, max_drop: Option<f64>) -> MetricGate {
    MetricGate { metric: "exact_match".into(), at_least, max_drop, ..Default::default() }
}

#[tokio::test]
async fn a_refused_promotion_lists_every_gate_with_figure_and_threshold() {
    let service = Service::start().await;
    service.register_base().await;
    publish(&service, 1, 0.82, "ann").await;
    publish(&service, 2, 0.79, "ann").await;
    promote(&service, 1, "ops").await.expect("no policy yet");
    let gates = Gates {
        metrics: vec![exact_match(Some(0.8), Some(0.01))],
        signature: true,
        approvals: 1,
        same_base: true,
        serving: vec!["tailor".into(), "vllm".into()],
    };
    demand(&service, gates).await.expect("set");

    let refusal = promote(&service, 2, "ops").await.expect_err("refused");
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    println!("{}", refusal.message());
    for words in [
        "version 2 of adapter grammar was not put behind alias production",
        "exact_match is 0.79 (at least 0.8 demanded): not passed",
        "exact_match is 0.79 (not below the present 0.82 by more than 0.01 demanded): not passed",
        "signature is not there, or does not hold (one that holds demanded): not passed",
        "approvals is 0 (1 by others than its publisher, ann demanded): not passed",
        "same_base is sha256:",
        "tailor is able to serve it",
        "vllm is able to serve it",
    ] {
        assert!(refusal.message().contains(words), "{words:?} is missing in {:?}", refusal.message());
    }
    let failure = refusal.get_details_precondition_failure().expect("rich details");
    let kinds: Vec<_> = failure.violations.iter().map(|one| (one.r#type.as_str(), one.subject.as_str())).collect();
    let wanted =
        [("METRIC_AT_LEAST", "exact_match"), ("METRIC_MAX_DROP", "exact_match"), ("SIGNATURE", ""), ("APPROVALS", "")];
    assert_eq!(kinds, wanted, "only what is not passed");
    let request = GetAliasHistoryRequest { adapter: "grammar".into(), alias: "production".into() };
    let moves = service.client.clone().get_alias_history(request).await.expect("history").into_inner().moves;
    assert_eq!(moves.len(), 1, "a refused promotion leaves no trace in the alias");

    let check = CheckPolicyRequest { adapter: "grammar".into(), alias: "production".into(), version: 2 };
    let report = service.client.clone().check_policy(check).await.expect("checked").into_inner();
    assert!(!report.passed);
    assert_eq!(report.gates.iter().filter(|gate| gate.passed).count(), 3, "{report:?}");
}

#[tokio::test]
async fn a_version_that_passes_every_gate_is_promoted() {
    let service = Service::start().await;
    service.register_base().await;
    publish(&service, 1, 0.82, "ann").await;
    publish(&service, 2, 0.815, "ann").await;
    let serving = vec!["vllm".into()];
    let metrics = vec![exact_match(Some(0.8), Some(0.01))];
    demand(&service, Gates { metrics, approvals: 1, same_base: true, serving, ..Default::default() })
        .await
        .expect("set");
    for version in [1, 2] {
        approve(&service, version, "", "bob").await.expect("approved");
        assert_eq!(promote(&service, version, "ann").await.expect("passes"), version);
    }
}

#[tokio::test]
async fn an_approval_counts_from_another_than_the_publisher_and_for_its_alias() {
    let service = Service::start().await;
    service.register_base().await;
    publish(&service, 1, 0.9, "ann").await;
    demand(&service, Gates { approvals: 1, ..Default::default() }).await.expect("set");
    let own = approve(&service, 1, "", "ann").await;
    expect_status(own, Code::FailedPrecondition, &["ann published version 1", "somebody else"]);
    expect_status(approve(&service, 1, "", "").await, Code::InvalidArgument, &["who"]);
    expect_status(approve(&service, 9, "", "bob").await, Code::NotFound, &["no version 9"]);
    approve(&service, 1, "staging", "bob").await.expect("approved");
    expect_status(promote(&service, 1, "ops").await, Code::FailedPrecondition, &["approvals is 0"]);
    let given = approve(&service, 1, "production", "bob").await.expect("approved");
    let again = approve(&service, 1, "production", "bob").await.expect("approved before");
    assert_eq!(given, again, "one approval");
    assert_eq!(promote(&service, 1, "ops").await.expect("promoted"), 1);
}

#[tokio::test]
async fn whoever_moves_the_alias_is_no_second_pair_of_eyes_where_the_publisher_is_not_known() {
    let service = Service::start().await;
    service.register_base().await;
    publish(&service, 1, 0.9, "").await;
    demand(&service, Gates { approvals: 1, ..Default::default() }).await.expect("set");
    approve(&service, 1, "", "ops").await.expect("approved");
    expect_status(promote(&service, 1, "ops").await, Code::FailedPrecondition, &["approvals is 0"]);
    assert_eq!(promote(&service, 1, "bob").await.expect("promoted"), 1);
}

#[tokio::test]
async fn what_a_server_cannot_take_is_named() {
    let service = Service::start().await;
    service.register_base().await;
    let large = adapter_on(QUANTISED, pair(520, 16, 8, 1));
    let request = service.request_for("grammar", &large).await;
    service.publish(request).await.expect("published");
    demand(&service, Gates { serving: vec!["vllm".into()], ..Default::default() }).await.expect("set");
    expect_status(promote(&service, 1, "ops").await, Code::FailedPrecondition, &["rank 520 is above 512"]);
    demand(&service, Gates { serving: vec!["tailor".into()], ..Default::default() }).await.expect("set");
    promote(&service, 1, "ops").await.expect("Tailor serves it");
}

#[tokio::test]
async fn a_rollback_passes_no_gate() {
    let service = Service::start().await;
    service.register_base().await;
    publish(&service, 1, 0.5, "ann").await;
    publish(&service, 2, 0.9, "ann").await;
    promote(&service, 1, "ops").await.expect("promoted");
    promote(&service, 2, "ops").await.expect("promoted");
    demand(&service, Gates { metrics: vec![exact_match(Some(0.8), None)], ..Default::default() }).await.expect("set");
    expect_status(promote(&service, 1, "ops").await, Code::FailedPrecondition, &["exact_match is 0.5"]);
    let request = RollbackRequest { adapter: "grammar".into(), alias: "production".into(), ..Default::default() };
    let back = service.client.clone().rollback(request).await.expect("rolled back").into_inner();
    assert_eq!(back.version, 1);
}

#[tokio::test]
async fn a_policy_is_replaced_and_remembered() {
    let service = Service::with_versions("grammar", 1).await;
    let get = async |adapter: &str| {
        let request = GetPolicyRequest { adapter: adapter.into(), alias: "production".into() };
        service.client.clone().get_policy(request).await.map(tonic::Response::into_inner)
    };
    let none = get("grammar").await.expect("a policy");
    assert_eq!((none.sequence, none.gates), (0, Some(Gates::default())));
    let first = Gates { metrics: vec![exact_match(Some(0.8), None)], ..Default::default() };
    assert_eq!(demand(&service, first.clone()).await.expect("set").sequence, 1);
    assert_eq!(demand(&service, first.clone()).await.expect("the same again").sequence, 1);
    expect_status(promote(&service, 1, "ops").await, Code::FailedPrecondition, &["exact_match is not in the manifest"]);
    assert_eq!(demand(&service, Gates::default()).await.expect("set").sequence, 2);
    promote(&service, 1, "ops").await.expect("nothing is demanded any more");
    assert_eq!(get("grammar").await.expect("a policy").who, "ops");
    expect_status(get("spelling").await, Code::NotFound, &["spelling does not exist"]);
    let nan = Gates { metrics: vec![exact_match(Some(f64::NAN), None)], ..Default::default() };
    expect_status(demand(&service, nan).await, Code::InvalidArgument, &["exact_match.at_least", "no finite number"]);
    let unknown = Gates { serving: vec!["tgi".into()], ..Default::default() };
    expect_status(demand(&service, unknown).await, Code::InvalidArgument, &["tgi", "tailor", "vllm"]);
}

#[tokio::test]
async fn an_alias_that_demands_a_signature_takes_what_a_trusted_key_has_signed() {
    let signed = || Gates { signature: true, ..Gates::default() };
    let plain = Service::start().await;
    plain.register_base().await;
    publish(&plain, 1, 0.9, "trainer").await;
    demand(&plain, signed()).await.expect("a policy");
    expect_status(promote(&plain, 1, "ops").await, Code::FailedPrecondition, &["signature", "not passed"]);

    let key = |settings: &mut tailor_serverkit::Settings| settings.trust.signing_key = Some(crate::world::KEY.into());
    let signing = Service::with(tailor_blobs::Store::memory(), key).await;
    signing.register_base().await;
    publish(&signing, 1, 0.9, "trainer").await;
    demand(&signing, signed()).await.expect("a policy");
    assert_eq!(promote(&signing, 1, "ops").await.expect("signed"), 1);
}

#[tokio::test]
async fn what_is_demanded_and_who_approved_stands_in_the_audit_log() {
    let service = Service::start().await;
    service.register_base().await;
    publish(&service, 1, 0.9, "trainer").await;
    demand(&service, Gates { approvals: 1, ..Gates::default() }).await.expect("a policy");
    let request = ApproveVersionRequest {
        adapter: "grammar".into(),
        version: 1,
        who: "reader".into(),
        why: "read 50 answers".into(),
        ..Default::default()
    };
    service.client.clone().approve_version(request).await.expect("approved");
    let request = tailor_pb::registry::ExportAuditRequest { from_sequence: 0 };
    let mut stream = service.client.clone().export_audit(request).await.expect("exported").into_inner();
    let mut deeds = Vec::new();
    while let Some(entry) = stream.message().await.expect("an entry") {
        let link: serde_json::Value = serde_json::from_slice(&entry.record).expect("json");
        let list = link["deeds"].as_array().cloned().unwrap_or_default();
        deeds.extend(list.iter().map(|deed| (deed["what"].to_string(), deed["who"].to_string())));
    }
    for wanted in [("set-policy", "ops"), ("approve", "reader")] {
        let wanted = (format!("{:?}", wanted.0), format!("{:?}", wanted.1));
        assert!(deeds.contains(&wanted), "{wanted:?} is not in {deeds:?}");
    }
}
