//! Who is let in at the gateway, over the wire: limits of tenants, when to come again, deadlines.

use std::time::Duration;

use tailor_pb::inference::{GenerateRequest, ListResidentRequest, PinRequest};
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::support::{Family, Up};

fn request(max_new_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        base: Family::Llama.base().into(),
        input: "anna sees a boat".into(),
        max_new_tokens,
        ..Default::default()
    }
}

fn of(tenant: &str, max_new_tokens: u32) -> Request<GenerateRequest> {
    let mut request = Request::new(request(max_new_tokens));
    request.metadata_mut().insert("x-tailor-tenant", tenant.parse().expect("a header"));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_has_used_up_its_tokens_is_told_when_to_come_again_and_others_are_served() {
    let up = Up::with(&[("TAILOR__GATEWAY__TENANT_TOKENS_PER_MINUTE", "100")]).await;
    up.add_base_and_rows(Family::Llama).await;
    let mut gateway = up.addresses.gateway();
    gateway.generate(of("a", 60)).await.expect("a minute's worth");
    let refused = loop {
        // What the answer did not use came back, so it may take some more.
        match gateway.generate(of("a", 60)).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains(r#"tenant "a""#), "{refused}");
    let retry = refused.get_details_retry_info().and_then(|info| info.retry_delay).expect("when to come again");
    assert!(retry > Duration::ZERO && retry <= Duration::from_secs(60), "{retry:?}");
    gateway.generate(of("b", 60)).await.expect("another tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_stream_that_is_being_made() {
    let up = Up::start().await;
    up.add_base_and_rows(Family::Llama).await;
    let mut gateway = up.addresses.gateway();
    gateway.generate(request(1)).await.expect("the base is there");
    // A stream's head comes at once, so that only the engine can keep its deadline.
    let mut short = Request::new(GenerateRequest { logit_bias: [(1, -1000.0)].into(), ..request(480) });
    short.set_timeout(Duration::from_millis(60));
    let ended = async {
        let mut stream = gateway.generate_stream(short).await?.into_inner();
        while let Some(chunk) = stream.message().await? {
            if let Some(end) = chunk.end {
                panic!("it was done before its deadline: {end:?}");
            }
        }
        Ok::<_, tonic::Status>(())
    };
    let status = ended.await.expect_err("too late");
    assert!([Code::Cancelled, Code::DeadlineExceeded].contains(&status.code()), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_used_adapter_leaves_when_memory_is_full_and_comes_back_when_it_is_asked_for() {
    let up = Up::with(&[("TAILOR__GATEWAY__ADAPTER_BYTES", "1")]).await;
    up.add_base_and_rows(Family::Llama).await;
    let cli = up.cli();
    for (adapter, rank) in [("one", "2"), ("two", "4")] {
        let job = ["train", "--base", Family::Llama.base(), "--dataset", "rows", "--adapter", adapter, "--rank", rank];
        cli.json(&[&job[..], &["--max-steps", "2", "--max-new-tokens", "2"]].concat());
    }
    let mut gateway = up.addresses.gateway();
    let ask = |adapter: &str| GenerateRequest { base: String::new(), adapter: adapter.into(), ..request(12) };
    let mut answers = Vec::new();
    for adapter in ["one", "two", "one", "two"] {
        answers.push(gateway.generate(ask(adapter)).await.expect("an answer").into_inner());
    }
    assert_eq!((&answers[0].text, &answers[1].text), (&answers[2].text, &answers[3].text), "eviction shows nowhere");
    assert_ne!(answers[0].adapter_digest, answers[1].adapter_digest);
    let mut admin = up.addresses.admin();
    let resident = admin.list_resident(ListResidentRequest {}).await.expect("a list").into_inner();
    assert_eq!(resident.adapters.len(), 1, "one at a time: {resident:?}");
    let digest = resident.adapters[0].digest.clone();
    let pinned = admin.pin(PinRequest { digest: digest.clone(), pinned: true }).await.expect("pinned").into_inner();
    assert!(pinned.pinned);
    gateway.generate(ask("one")).await.expect("an answer");
    let resident = admin.list_resident(ListResidentRequest {}).await.expect("a list").into_inner();
    assert!(resident.adapters.iter().any(|adapter| adapter.digest == digest), "what is pinned stays: {resident:?}");
}
