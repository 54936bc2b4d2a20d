//! One trace leads from a caller through the edge's process into the engine's, down to its steps; also where the engine is lost.

use tailor_pb::inference::GenerateRequest;
use tonic::Request;

use super::{LONG, ready_on_all, request};
use crate::support::spans::{Receiver, Span};
use crate::support::{Fleet, eventually};

const GENERATE: &str = "tailor.inference.v1.InferenceService/Generate";
const STREAM: &str = "tailor.inference.v1.InferenceService/GenerateStream";
const DECODE: &str = "tailor.inference.v1.EngineService/Decode";
/// The caller's span.
const CALLER: &str = "00f067aa0ba902b7";

/// A request of a trace that its caller has begun.
fn traced(trace: &str, request: GenerateRequest) -> Request<GenerateRequest> {
    let mut call = Request::new(request);
    call.metadata_mut().insert("traceparent", format!("00-{trace}-{CALLER}-01").parse().expect("a header"));
    call
}

/// The spans of a trace, once those of these names have come.
async fn spans_of(receiver: &Receiver, trace: &str, names: &[&str]) -> Vec<Span> {
    eventually(&format!("{names:?} in trace {trace}"), async || {
        let spans: Vec<_> = receiver.spans().into_iter().filter(|span| span.trace == trace).collect();
        let has = |name: &&str| spans.iter().any(|span| span.name == *name);
        names.iter().all(has).then_some(spans)
    })
    .await
}

fn find<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} in {spans:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_follows_a_request_from_the_edge_through_the_engines_process_to_its_steps() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let receiver = Receiver::start().await;
    let endpoint = receiver.endpoint();
    let fleet = Fleet::with_engines(2, &[("TELEMETRY__OTLP_ENDPOINT", endpoint.as_str())]).await;
    fleet.publish(1);
    let at = fleet.at(0, 0);
    let said = at.gateway().generate(traced(TRACE, request("grammar@1", 1, 24))).await.expect("an answer").into_inner();

    let inside = ["gateway.load_adapter", "engine.queue", "engine.prefill", "engine.decode"];
    let names = [&[GENERATE, "gateway.answer", DECODE, "engine.step"][..], &inside].concat();
    let spans = spans_of(&receiver, TRACE, &names).await;
    let (edge, answer, engine) = (find(&spans, GENERATE), find(&spans, "gateway.answer"), find(&spans, DECODE));
    assert_eq!(edge.parent, CALLER);
    assert_eq!(answer.parent, edge.id);
    assert_eq!(engine.parent, answer.id, "the engine's process works on the edge's answer");
    for name in inside {
        assert_eq!(find(&spans, name).parent, engine.id, "{name}");
        assert_eq!(find(&spans, name).instance, engine.instance, "{name}");
    }
    let step = find(&spans, "engine.step");
    assert_eq!((&step.parent, &step.instance), (&find(&spans, "engine.prefill").id, &engine.instance));
    assert_eq!(edge.instance, answer.instance);
    assert!(!edge.instance.is_empty() && edge.instance != engine.instance, "two processes: {edge:?} {engine:?}");
    // Both sides tell of the same answer.
    assert_eq!(answer.attributes["gen_ai.usage.output_tokens"], said.completion_tokens.to_string());
    let steps: u32 = find(&spans, "engine.decode").attributes["tailor.steps"].parse().expect("a number");
    assert_eq!(steps, said.completion_tokens - 1, "the first token came with the prompt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_moves_to_another_engine_stays_in_its_trace() {
    const TRACES: [&str; 2] = ["5bf92f3577b34da6a3ce929d0e0e4736", "6bf92f3577b34da6a3ce929d0e0e4736"];
    let receiver = Receiver::start().await;
    let endpoint = receiver.endpoint();
    let settings = [("TELEMETRY__OTLP_ENDPOINT", endpoint.as_str()), ("GATEWAY__MAX_BATCH", "1")];
    let mut fleet = Fleet::with_engines(2, &settings).await;
    fleet.publish(1);
    ready_on_all(&fleet).await;
    let at = fleet.at(0, 0);
    // Each engine is given one to work on, and one that waits behind it. The base alone goes to whoever has less to do.
    let mut busy = Vec::new();
    for number in 0..2 {
        let mut stream = at.gateway().generate_stream(request("", number, LONG)).await.expect("taken").into_inner();
        stream.message().await.expect("a piece").expect("it has begun");
        busy.push(stream);
    }
    let mut waiting = Vec::new();
    for (number, trace) in TRACES.iter().enumerate() {
        let call = traced(trace, request("", number, 8));
        waiting.push(at.gateway().generate_stream(call).await.expect("taken").into_inner());
    }
    // Without a last word, so that what is told of the engines is told by the other one.
    fleet.engine(0).kill();
    for mut stream in waiting {
        while stream.message().await.expect("a piece").is_some() {}
    }
    let mut engines = Vec::new();
    for trace in TRACES {
        let spans = spans_of(&receiver, trace, &[STREAM, "gateway.answer", DECODE, "engine.decode"]).await;
        let (edge, answer, engine) = (find(&spans, STREAM), find(&spans, "gateway.answer"), find(&spans, DECODE));
        assert_eq!((edge.parent.as_str(), &answer.parent), (CALLER, &edge.id));
        assert_eq!(engine.parent, answer.id, "whichever engine it is");
        engines.push(engine.instance.clone());
    }
    assert_eq!(engines[0], engines[1], "one of the two has moved");
    drop(busy);
}
