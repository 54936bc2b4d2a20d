use tailor_pb::common::Page;
use tailor_pb::registry::{
    Alias, GetAliasHistoryRequest, ListAdaptersRequest, ListVersionsRequest, ResolveRequest, RollbackRequest,
    SetAliasRequest,
};
use tonic::{Code, Status};

use crate::support::{Service, expect_status};

async fn resolve(service: &Service, reference: &str) -> Result<u64, Status> {
    let request = ResolveRequest { reference: reference.into() };
    Ok(service.client.clone().resolve(request).await?.into_inner().version)
}

async fn rollback(service: &Service) -> Result<Alias, Status> {
    let (adapter, alias) = ("grammar".into(), "production".into());
    let request = RollbackRequest { adapter, alias, who: "ops".into(), why: "worse".into() };
    Ok(service.client.clone().rollback(request).await?.into_inner())
}

async fn history(service: &Service) -> Result<Vec<Alias>, Status> {
    let request = GetAliasHistoryRequest { adapter: "grammar".into(), alias: "production".into() };
    Ok(service.client.clone().get_alias_history(request).await?.into_inner().moves)
}

#[tokio::test]
async fn an_alias_moves_rolls_back_and_remembers() {
    let service = Service::with_versions("grammar", 2).await;
    service.set_alias(1, Some(0)).await.expect("new alias");
    service.set_alias(2, Some(1)).await.expect("moved");
    assert_eq!(resolve(&service, "grammar@production").await.expect("resolved"), 2);
    let back = rollback(&service).await.expect("rolled back");
    assert_eq!((back.version, back.previous_version, back.rollback), (1, 2, true));
    assert_eq!(resolve(&service, "grammar@production").await.expect("resolved"), 1);
    let moves = history(&service).await.expect("history");
    let told: Vec<_> = moves.iter().map(|entry| (entry.sequence, entry.version, entry.rollback)).collect();
    assert_eq!(told, [(3, 1, true), (2, 2, false), (1, 1, false)]);
    assert_eq!((moves[0].who.as_str(), moves[0].why.as_str()), ("ops", "worse"));
    assert_eq!(rollback(&service).await.expect("a rollback is undone by the next").version, 2);
}

#[tokio::test]
async fn an_unknown_alias_is_answered_with_the_known_ones() {
    let service = Service::with_versions("grammar", 1).await;
    expect_status(resolve(&service, "grammar@prod").await, Code::NotFound, &["no alias prod", "it has none"]);
    service.set_alias(1, None).await.expect("set");
    let says = ["adapter grammar has no alias prod; it has production"];
    expect_status(resolve(&service, "grammar@prod").await, Code::NotFound, &says);
    let other = GetAliasHistoryRequest { adapter: "grammar".into(), alias: "canary".into() };
    let outcome = service.client.clone().get_alias_history(other).await;
    expect_status(outcome, Code::NotFound, &["no alias canary; it has production"]);
}

#[tokio::test]
async fn an_alias_needs_a_version_and_a_name_that_is_no_number() {
    let service = Service::with_versions("grammar", 2).await;
    expect_status(service.set_alias(3, None).await, Code::NotFound, &["no version 3", "versions 1 to 2"]);
    let request = |adapter: &str, alias: &str| {
        let request =
            SetAliasRequest { adapter: adapter.into(), alias: alias.into(), version: 1, ..Default::default() };
        let mut client = service.client.clone();
        async move { client.set_alias(request).await }
    };
    expect_status(request("grammar", "7").await, Code::InvalidArgument, &["would read as a version"]);
    expect_status(request("grammar", "a/b").await, Code::InvalidArgument, &["alias"]);
    expect_status(request("spelling", "production").await, Code::NotFound, &["adapter spelling does not exist"]);
}

#[tokio::test]
async fn a_move_from_a_place_where_the_alias_is_not_is_aborted() {
    let service = Service::with_versions("grammar", 3).await;
    expect_status(service.set_alias(2, Some(1)).await, Code::Aborted, &["does not exist", "version 1 was expected"]);
    service.set_alias(1, Some(0)).await.expect("new alias");
    expect_status(service.set_alias(3, Some(2)).await, Code::Aborted, &["points to version 1", "version 2"]);
    expect_status(service.set_alias(3, Some(0)).await, Code::Aborted, &["no alias was expected"]);
    assert_eq!(history(&service).await.expect("history").len(), 1, "refused moves leave no trace");
}

#[tokio::test]
async fn of_racing_compare_and_swaps_one_wins() {
    let service = Service::with_versions("grammar", 9).await;
    service.set_alias(1, Some(0)).await.expect("new alias");
    let calls = (2..=9).map(|version| {
        let service = &service;
        async move { service.set_alias(version, Some(1)).await }
    });
    let outcomes = futures::future::join_all(calls).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().flat_map(|outcome| outcome.as_ref().err()).all(|error| error.code() == Code::Aborted));
    assert_eq!(history(&service).await.expect("history").len(), 2);
}

#[tokio::test]
async fn moves_without_expectation_all_happen_one_after_the_other() {
    let service = Service::with_versions("grammar", 8).await;
    let calls = (1..=8).map(|version| service.set_alias(version, None));
    futures::future::join_all(calls).await.into_iter().for_each(|outcome| {
        outcome.expect("moved");
    });
    let moves = history(&service).await.expect("history");
    assert_eq!(moves.len(), 8);
    for pair in moves.windows(2) {
        assert_eq!(pair[0].previous_version, pair[1].version, "each move starts where the one before it ended");
    }
}

#[tokio::test]
async fn the_same_move_asked_for_again_is_made_once() {
    let service = Service::with_versions("grammar", 2).await;
    assert_eq!(service.set_alias(1, Some(0)).await.expect("set"), 1);
    assert_eq!(service.set_alias(1, Some(0)).await.expect("its answer was lost"), 1);
    assert_eq!(service.set_alias(1, None).await.expect("still the same"), 1);
}

#[tokio::test]
async fn an_alias_with_one_target_has_nothing_to_roll_back_to() {
    let service = Service::with_versions("grammar", 1).await;
    expect_status(rollback(&service).await, Code::NotFound, &["no alias production"]);
    service.set_alias(1, None).await.expect("set");
    expect_status(rollback(&service).await, Code::FailedPrecondition, &["version 1 only", "nothing to roll back"]);
}

#[tokio::test]
async fn lists_show_where_aliases_point_now() {
    let service = Service::with_versions("grammar", 3).await;
    let spelling = service.adapter_request("spelling", 1).await;
    service.publish(spelling).await.expect("published");
    service.set_alias(2, None).await.expect("set");
    let page = Some(Page { size: 1, token: String::new() });
    let first = service.client.clone().list_adapters(ListAdaptersRequest { page }).await.expect("listed").into_inner();
    assert_eq!((first.adapters[0].name.as_str(), first.adapters[0].latest_version), ("grammar", 3));
    assert_eq!(first.adapters[0].aliases.get("production"), Some(&2));
    let page = Some(Page { size: 1, token: first.next_page_token });
    let rest = service.client.clone().list_adapters(ListAdaptersRequest { page }).await.expect("listed").into_inner();
    assert_eq!((rest.adapters[0].name.as_str(), rest.next_page_token.as_str()), ("spelling", ""));

    let request = ListVersionsRequest { adapter: "grammar".into(), page: None, ..Default::default() };
    let versions = service.client.clone().list_versions(request).await.expect("listed").into_inner().versions;
    let told: Vec<_> = versions.iter().map(|version| (version.version, version.aliases.as_slice())).collect();
    assert_eq!(told, [(3, &[][..]), (2, &["production".to_owned()][..]), (1, &[][..])]);
    let page = Some(Page { size: 1, token: "x".into() });
    let bad = service
        .client
        .clone()
        .list_versions(ListVersionsRequest { adapter: "grammar".into(), page, ..Default::default() })
        .await;
    expect_status(bad, Code::InvalidArgument, &["page.token"]);
}
