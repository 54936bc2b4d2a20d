//! What a receiver is told of serving, and the digest that every answer carries.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tailor_pb::inference::{GenerateRequest, GenerateResponse, ListResidentRequest, ScoreRequest};
use tailor_pb::registry::ResolveRequest;

use crate::support::http::{body_of, http};
use crate::support::spans::{Measured, Receiver, Span};
use crate::support::{Family, Up, eventually};

fn request(adapter: &str) -> GenerateRequest {
    let base = if adapter.is_empty() { Family::Llama.base() } else { "" };
    GenerateRequest {
        base: base.into(),
        adapter: adapter.into(),
        input: "anna sees a boat".into(),
        max_new_tokens: 24,
        // So that it always goes on to its end.
        logit_bias: [(1, -1000.0)].into(),
        ..Default::default()
    }
}

fn train(up: &Up, adapter: &str, rank: &str) {
    let job = ["train", "--base", Family::Llama.base(), "--dataset", "rows", "--adapter", adapter, "--rank", rank];
    up.cli().json(&[&job[..], &["--max-steps", "2", "--max-new-tokens", "2", "--max-validation-rows", "2"]].concat());
}

/// The newest of a metric's values whose attributes are these among others.
fn newest<'a>(measured: &'a [Measured], name: &str, wanted: &[(&str, &str)]) -> &'a Measured {
    let is = |found: &&Measured| {
        found.name == name
            && wanted.iter().all(|(key, value)| found.attributes.get(*key).is_some_and(|found| found == value))
    };
    measured.iter().rev().find(is).unwrap_or_else(|| {
        let names: Vec<_> = measured.iter().filter(|found| found.name == name).map(|found| &found.attributes).collect();
        panic!("no {name} with {wanted:?}; there are {names:?}")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_told_what_callers_wait_for_and_what_engines_hold() {
    let receiver = Receiver::start().await;
    let endpoint = receiver.endpoint();
    let settings = [
        ("TAILOR__TELEMETRY__OTLP_ENDPOINT", endpoint.as_str()),
        ("TAILOR__TELEMETRY__METRICS_MS", "300"),
        // One adapter has a name, and one fits beside none other.
        ("TAILOR__GATEWAY__METERED_ADAPTERS", "1"),
        ("TAILOR__GATEWAY__ADAPTER_BYTES", "1"),
    ];
    let mut up = Up::with(&settings).await;
    up.add_base_and_rows(Family::Llama).await;
    train(&up, "one", "2");
    train(&up, "two", "4");
    let mut answers = BTreeMap::<&str, Vec<GenerateResponse>>::new();
    for adapter in ["", "one", "two", "one"] {
        let answer = up.addresses.gateway().generate(request(adapter)).await.expect("an answer").into_inner();
        answers.entry(adapter).or_default().push(answer);
    }
    let too_long = GenerateRequest { max_new_tokens: 100_000, ..request("one") };
    up.addresses.gateway().generate(too_long).await.expect_err("more than the context");
    let resident = up.addresses.admin().list_resident(ListResidentRequest {}).await.expect("a list").into_inner();
    let usage = resident.bases[0].usage.expect("what the engine holds");
    assert_eq!(up.stop(), Some(0), "what was not sent yet is sent now");
    let measured = receiver.measured();
    let of = |name: &str, wanted: &[(&str, &str)]| newest(&measured, name, wanted);

    let base = ("gen_ai.request.model", Family::Llama.base());
    let one = ("tailor.adapter", "one@1");
    let digest = answers["one"][0].adapter_digest.as_str();
    let first = of("gen_ai.server.time_to_first_token", &[base, one]);
    assert_eq!((first.unit.as_str(), first.count, first.process.as_str()), ("s", 2, "tailor"), "{first:?}");
    assert_eq!(first.attributes["tailor.adapter.digest"], digest);
    assert_eq!(first.attributes["gen_ai.operation.name"], "text_completion");
    assert_eq!(first.attributes["gen_ai.provider.name"], "tailor");
    assert!(first.value > 0.0 && first.bounds[..3] == [0.001, 0.005, 0.01], "{first:?}");
    let per_token = of("gen_ai.server.time_per_output_token", &[base, one]);
    assert_eq!((per_token.unit.as_str(), per_token.count), ("s", 2));
    let made = |adapter: &str| answers[adapter].iter().map(|answer| u64::from(answer.completion_tokens)).sum::<u64>();
    let asked = |adapter: &str| answers[adapter].iter().map(|answer| u64::from(answer.prompt_tokens)).sum::<u64>();
    let between = of("tailor.gateway.time_between_tokens", &[base, one]);
    assert_eq!(between.count, made("one") - 2, "each token but the first of each answer");
    assert!(
        (between.value / (made("one") as f64 / 2.0 - 1.0) - per_token.value).abs() < 1e-6,
        "both tell the same time"
    );
    let whole = of("gen_ai.server.request.duration", &[base, one]);
    assert!(whole.count == 2 && whole.value >= first.value, "{whole:?}");
    for (kind, count) in [("input", asked("one")), ("output", made("one"))] {
        let usage = of("gen_ai.client.token.usage", &[base, one, ("gen_ai.token.type", kind)]);
        assert_eq!((usage.unit.as_str(), usage.value, usage.count), ("{token}", count as f64, 2), "{kind}");
        let tokens = of("tailor.gateway.tokens", &[one, ("gen_ai.token.type", kind)]);
        assert_eq!(tokens.value, count as f64, "{kind}");
    }
    // The second adapter came too late for a name.
    let other = of("gen_ai.server.time_to_first_token", &[("tailor.adapter", "other")]);
    assert_eq!((other.attributes["tailor.adapter.digest"].as_str(), other.count), ("other", 1));
    assert!(!measured.iter().any(|found| found.attributes.get("tailor.adapter").is_some_and(|name| name == "two@1")));
    let refused = of("tailor.gateway.refused", &[one, ("error.type", "INVALID_ARGUMENT")]);
    assert_eq!(refused.value, 1.0);

    let here = ("tailor.base", Family::Llama.base());
    assert_eq!(of("tailor.bases.resident", &[]).value, 1.0);
    assert!(of("tailor.bases.bytes", &[here]).value > resident.bases[0].size_bytes as f64, "keys and values count too");
    assert!(usage.steps > 0 && usage.running == 0 && usage.kv_blocks_held == 0, "{usage:?}");
    assert_eq!(of("tailor.engine.steps", &[here]).value, usage.steps as f64);
    for (state, blocks) in [("held", 0), ("free", usage.kv_blocks)] {
        assert_eq!(of("tailor.engine.kv_blocks", &[here, ("tailor.state", state)]).value, blocks as f64, "{state}");
    }
    for name in ["tailor.engine.running", "tailor.engine.waiting", "tailor.engine.waiting_tokens"] {
        assert_eq!(of(name, &[here]).value, 0.0, "{name}");
    }
    assert_eq!(of("tailor.engine.tokens", &[here, ("gen_ai.token.type", "output")]).value, usage.made_tokens as f64);
    let device = ("tailor.tier", "device");
    let adapters = of("tailor.adapters.resident", &[here, device]);
    assert_eq!(adapters.value, 1.0);
    assert_eq!(of("tailor.adapters.bytes", &[here, device]).value, resident.adapters[0].size_bytes as f64);
    assert_eq!(of("tailor.adapters.load.duration", &[device]).count, 3, "one, two, and one again");
    assert_eq!(of("tailor.adapters.evictions", &[device]).value, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_leads_from_the_edge_to_the_engines_steps() {
    let receiver = Receiver::start().await;
    let endpoint = receiver.endpoint();
    let up = Up::with(&[("TAILOR__TELEMETRY__OTLP_ENDPOINT", &endpoint)]).await;
    up.add_base_and_rows(Family::Llama).await;
    let (trace, caller) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let mut call = tonic::Request::new(GenerateRequest { input: "anna ".repeat(20), ..request("") });
    call.metadata_mut().insert("traceparent", format!("00-{trace}-{caller}-01").parse().expect("a header"));
    up.addresses.gateway().generate(call).await.expect("an answer");
    let spans: Vec<Span> = eventually("the whole trace", async || {
        let spans: Vec<_> = receiver.spans().into_iter().filter(|span| span.trace == trace).collect();
        let has = |name: &&str| spans.iter().any(|span| span.name == *name);
        ["gateway.answer", "engine.queue", "engine.prefill", "engine.step", "engine.decode"]
            .iter()
            .all(has)
            .then_some(spans)
    })
    .await;
    let find = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:?}"));
    let edge = find("tailor.inference.v1.InferenceService/Generate");
    assert_eq!(edge.parent, caller);
    let answer = find("gateway.answer");
    assert_eq!(answer.parent, edge.id);
    let made: u64 = answer.attributes["gen_ai.usage.output_tokens"].parse().expect("a number");
    assert_eq!(made, 24);
    for name in ["engine.queue", "engine.prefill", "engine.decode"] {
        assert_eq!(find(name).parent, answer.id, "{name}");
    }
    assert_eq!(find("engine.step").parent, find("engine.prefill").id);
    let prompt = &answer.attributes["gen_ai.usage.input_tokens"];
    assert_eq!(&find("engine.step").attributes["tailor.tokens"], prompt, "read in one step");
    let steps: u64 = find("engine.decode").attributes["tailor.steps"].parse().expect("a number");
    assert_eq!(steps, made - 1, "the first token came with the prompt");
}

async fn post(up: &Up, path: &str, body: &Value) -> String {
    let head = format!("POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n");
    http(&up.addresses.gateway, &head, body.to_string().as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_which_weights_gave_it() {
    let up = Up::start().await;
    up.add_base_and_rows(Family::Llama).await;
    train(&up, "one", "2");
    up.cli().json(&["adapter", "set-alias", "one", "production", "1"]);
    let version = up.addresses.registry().resolve(ResolveRequest { reference: "one@1".into() }).await;
    let version = version.expect("resolved").into_inner();
    let (digest, base) = (version.digest.as_str(), version.base_fingerprint.as_str());

    // By whatever name it was asked for.
    for name in ["one", "one@1", "one@production"] {
        let mut gateway = up.addresses.gateway();
        let whole = gateway.generate(request(name)).await.expect("an answer").into_inner();
        assert_eq!((whole.adapter_digest.as_str(), whole.base_fingerprint.as_str()), (digest, base), "{name}");
        let mut stream = gateway.generate_stream(request(name)).await.expect("a stream").into_inner();
        let mut end = None;
        while let Some(chunk) = stream.message().await.expect("a chunk") {
            end = chunk.end.or(end);
        }
        let end = end.expect("the last chunk");
        assert_eq!((end.adapter_digest.as_str(), end.base_fingerprint.as_str()), (digest, base), "{name}");
        let score = ScoreRequest { adapter: name.into(), text: "Anna".into(), ..Default::default() };
        let scored = gateway.score(score).await.expect("scores").into_inner();
        assert_eq!((scored.adapter_digest.as_str(), scored.base_fingerprint.as_str()), (digest, base), "{name}");

        let model = format!("{}:{name}", Family::Llama.base());
        let fingerprint = format!("{base}+{digest}");
        let chat = json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 4 });
        let text = json!({ "model": model, "prompt": "hi", "max_tokens": 4 });
        for (path, mut body) in [("/v1/chat/completions", chat), ("/v1/completions", text)] {
            let whole = post(&up, path, &body).await;
            let said: Value = serde_json::from_str(body_of(&whole)).expect("JSON");
            assert_eq!(said["system_fingerprint"], *fingerprint, "{path}");
            body["stream"] = true.into();
            let stream = post(&up, path, &body).await;
            let chunks = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
            let mut count = 0;
            for chunk in chunks {
                let chunk: Value = serde_json::from_str(chunk).expect("JSON");
                assert_eq!(chunk["system_fingerprint"], *fingerprint, "{path}: {chunk}");
                count += 1;
            }
            // A model of random weights may say nothing at all: then the end is the only chunk.
            assert!(count >= 1, "{stream}");
        }
    }
}
