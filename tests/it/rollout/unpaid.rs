//! What a rollout does of itself, trials and shadows, is taken out of no tenant's budget.

use tailor_pb::inference::Caller;
use tailor_pb::registry::GetRolloutRequest;
use tonic::Code;

use super::{ALIAS, FOLLOWED, generate, point};
use crate::support::{Fleet, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn trials_and_shadows_take_nothing_of_what_tenants_may_use() {
    let fleet = Fleet::start(1, &[0, 0], &[("GATEWAY__TENANT_REQUESTS_PER_MINUTE", "2")]).await;
    fleet.publish(2);
    point(&fleet, 0, 1, "").await;
    // Whoever does not say who he is has used up the budget of such, at the gateway that is asked in what follows.
    for _ in 0..2 {
        generate(&fleet, 1, "grammar@1", None).await.expect("two in a minute");
    }
    let refused = generate(&fleet, 1, "grammar@1", None).await.expect_err("a third");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");

    let set = ["rollout", "set", "grammar", "production", "--canary", "2", "--percent", "0"];
    let shadow = ["--shadow-percent", "100", "--max-latency-ratio", "0"];
    fleet.cli(0, 0).json(&[&set[..], &shadow].concat());
    tokio::time::sleep(FOLLOWED).await;
    let status = async || {
        let request = GetRolloutRequest { adapter: "grammar".into(), alias: "production".into() };
        fleet.rollouts(1).get_rollout(request).await.expect("the rollout").into_inner()
    };
    let tenant = Caller { tenant: "a".into(), ..Caller::default() };
    for number in 1..=2 {
        let said = generate(&fleet, 1, ALIAS, Some(tenant.clone())).await.expect("two in a minute");
        assert_eq!(said.adapter_version, 1);
        eventually("the canary has been tried, and has answered in the shadow", async || {
            (status().await.shadow?.compared == number).then_some(())
        })
        .await;
    }
    let refused = generate(&fleet, 1, ALIAS, Some(tenant)).await.expect_err("a third");
    assert!(refused.message().contains("2 a minute"), "{refused}");
    assert_eq!(status().await.rollout.expect("a rollout").state, "RUNNING");
}
