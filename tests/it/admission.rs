//! Who is let in at the gateway, over the wire: limits of tenants, when to come again, deadlines.

use std::time::Duration;

use tailor_pb::inference::{ChatMessage, GenerateRequest, ListResidentRequest, PinRequest, ScoreRequest};
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
async fn a_prompt_that_was_read_is_paid_for_also_where_nothing_was_said() {
    let up = Up::with(&[("TAILOR__GATEWAY__TENANT_TOKENS_PER_MINUTE", "1000")]).await;
    up.add_base_and_rows(Family::Llama).await;
    let mut gateway = up.addresses.gateway();
    // Its end comes first, whatever the model thinks.
    let silent =
        || GenerateRequest { input: "anna sees a boat. ".repeat(10), logit_bias: [(1, 1000.0)].into(), ..request(1) };
    let mut said = 0;
    let refused = loop {
        match gateway.generate(silent()).await {
            Ok(answer) => assert_eq!(answer.into_inner().completion_tokens, 0),
            Err(status) => break status,
        }
        said += 1;
        assert!(said < 100, "prompts cost nothing");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_moves_no_adapter_and_what_the_cache_gave_is_told_also_of_an_answer_that_is_cut() {
    let up = Up::with(&[("TAILOR__GATEWAY__TENANT_REQUESTS_PER_MINUTE", "2")]).await;
    up.add_base_and_rows(Family::Llama).await;
    let job = ["train", "--base", Family::Llama.base(), "--dataset", "rows", "--adapter", "one", "--rank", "2"];
    up.cli().json(&[&job[..], &["--max-steps", "2", "--max-new-tokens", "2"]].concat());
    let mut gateway = up.addresses.gateway();
    let cut = GenerateRequest {
        input: "anna sees a boat. ".repeat(10),
        stop: vec!["a".into(), "e".into(), " ".into(), "o".into()],
        logit_bias: [(1, -1000.0)].into(),
        ..request(100)
    };
    gateway.generate(cut.clone()).await.expect("an answer");
    let again = gateway.generate(cut).await.expect("an answer").into_inner();
    assert!(again.completion_tokens < 100, "it was cut: {again:?}");
    assert!(again.cached_tokens > 0, "{again:?}");
    let ask = GenerateRequest { base: String::new(), adapter: "one".into(), ..request(1) };
    let refused = gateway.generate(ask).await.expect_err("a third in a minute");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let resident = up.addresses.admin().list_resident(ListResidentRequest {}).await.expect("a list").into_inner();
    assert!(resident.adapters.is_empty(), "{resident:?}");
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_to_be_tokenised_is_refused_by_field_and_limit_whatever_is_asked_of_it() {
    const LIMIT: usize = 1 << 20;
    let up = Up::start().await;
    up.add_base_and_rows(Family::Llama).await;
    let mut gateway = up.addresses.gateway();
    let score = || ScoreRequest { base: Family::Llama.base().into(), text: "anna".into(), ..Default::default() };
    let long = "a".repeat(LIMIT + 1);
    for (field, request) in [
        ("text", ScoreRequest { text: long.clone(), ..score() }),
        ("text", ScoreRequest { token_ids: vec![5; LIMIT / 4], ..score() }),
        ("prompt", ScoreRequest { prompt: long.clone(), ..score() }),
        ("prompt", ScoreRequest { prompt_ids: vec![5; LIMIT / 4 + 1], ..score() }),
    ] {
        let refused = gateway.score(request).await.expect_err("too large");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let says = refused.message();
        assert!(says.starts_with(&format!("{field}: ")) && says.ends_with("the limit is 1048576"), "{field}: {says}");
    }
    // Small on its way, and large where the template says it a thousand times.
    let many = "{input}".repeat(1000);
    let turn = ChatMessage { role: "user".into(), content: "b".repeat(100) };
    for request in [
        GenerateRequest { input: long.clone(), ..request(1) },
        GenerateRequest { input: long.clone(), raw: true, ..request(1) },
        GenerateRequest { input: "b".repeat(2000), prompt_template: many.clone(), ..request(1) },
        GenerateRequest { messages: vec![turn; 20], prompt_template: many, ..request(1) },
    ] {
        let refused = gateway.generate(request).await.expect_err("too large");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let says = refused.message();
        assert!(says.starts_with("input: ") && says.ends_with("the limit is 1048576"), "{says}");
    }
    gateway.score(score()).await.expect("scores");
}
