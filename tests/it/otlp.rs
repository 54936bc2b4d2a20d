//! One trace follows a job from the command line through the queue to the trainer, the dataset service and the registry;
//! metrics say how it goes.

use crate::support::spans::{Receiver, Span};
use crate::support::{Cluster, Family, Up, eventually, rows};

const TRAIN: [&str; 17] = [
    "train",
    "--base",
    "little-t5",
    "--dataset",
    "rows",
    "--adapter",
    "traced",
    "--rank",
    "4",
    "--epochs",
    "1000",
    "--max-steps",
    "3",
    "--max-new-tokens",
    "4",
    "--max-validation-rows",
    "2",
];

/// (process, span) in the order in which the job meets them.
const PATH: [(&str, &str); 5] = [
    ("tailor", "tailor.cli"),
    ("tailor-trainer", "tailor.training.v1.TrainingService/CreateJob"),
    ("tailor-trainer", "job.run"),
    ("tailor-dataset", "tailor.dataset.v1.DatasetService/PrepareShards"),
    ("tailor-registry", "tailor.registry.v1.AdapterRegistry/PublishVersion"),
];

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_follows_a_job_through_four_processes_and_redis() {
    let Some(mut cluster) = Cluster::prepare() else { return };
    let receiver = Receiver::start().await;
    cluster.set("TELEMETRY__OTLP_ENDPOINT", receiver.endpoint());
    cluster.start_all().await;
    cluster.add_base_and_rows(Family::T5).await;
    cluster.cli().env("TAILOR__TELEMETRY__OTLP_ENDPOINT", receiver.endpoint()).text(&TRAIN);
    let spans = whole_path(&receiver, |process| process.to_owned()).await;

    let find = |name: &str| spans.iter().find(|span| span.name == name).expect("a span of the path");
    let (root, created, run) = (find(PATH[0].1), find(PATH[1].1), find(PATH[2].1));
    assert!(root.parent.is_empty(), "the command line begins the trace: {root:?}");
    assert_eq!(created.parent, root.id, "the service's span is the child of the caller's");
    assert_eq!(run.parent, created.id, "the queue carries the trace to the worker");
    for (process, name) in &PATH[3..] {
        assert!(descends(&spans, find(name), &run.id), "{process}'s {name} is part of the run");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_follows_a_job_through_the_embedded_system() {
    let receiver = Receiver::start().await;
    let endpoint = receiver.endpoint();
    let up = Up::with(&[("TAILOR__TELEMETRY__OTLP_ENDPOINT", &endpoint)]).await;
    up.add_base_and_rows(Family::T5).await;
    up.cli().env("TAILOR__TELEMETRY__OTLP_ENDPOINT", endpoint).text(&TRAIN);
    whole_path(&receiver, |_| "tailor".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_a_process_while_no_receiver_is_named() {
    let receiver = Receiver::start().await;
    let up = Up::start().await;
    let file = up.folder.join("rows.csv");
    std::fs::write(&file, rows::csv(20)).expect("write rows");
    // The variable that OpenTelemetry's own libraries read switches nothing on.
    let cli = up.cli().env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint());
    cli.text(&["dataset", "push", &file.display().to_string(), "--name", "rows"]);
    let mut up = up;
    assert_eq!(up.stop(), Some(0), "everything that was buffered would have been sent by now");
    assert_eq!((receiver.spans().len(), receiver.measured().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_told_how_training_goes_and_what_came_of_it() {
    let receiver = Receiver::start().await;
    let endpoint = receiver.endpoint();
    let settings = [("TAILOR__TELEMETRY__OTLP_ENDPOINT", endpoint.as_str()), ("TAILOR__TELEMETRY__METRICS_MS", "300")];
    let mut up = Up::with(&settings).await;
    up.add_base_and_rows(Family::T5).await;
    let job = up.cli().json(&TRAIN);
    assert_eq!(up.stop(), Some(0), "what was not sent yet is sent now");
    let measured = receiver.measured();
    let newest = |name: &str| {
        let found = measured.iter().rev().find(|found| found.name == name);
        found.unwrap_or_else(|| panic!("no {name} in {measured:?}"))
    };
    let steps = newest("tailor.train.steps");
    assert_eq!((steps.value, steps.unit.as_str(), steps.process.as_str()), (3.0, "{step}", "tailor"));
    let attributes = ["tailor.job", "tailor.base", "tailor.adapter", "tailor.dataset"];
    let found = attributes.map(|name| steps.attributes[name].as_str());
    assert_eq!(found, [job["id"].as_str().expect("id"), "little-t5", "traced", "rows@1"]);
    let last = &job["last_step"];
    for name in ["loss", "grad_norm", "learning_rate", "tokens_per_second"] {
        assert_eq!(Some(newest(&format!("tailor.train.{name}")).value), last[name].as_f64(), "{name}");
    }
    assert!(newest("tailor.train.tokens").value >= last["tokens"].as_f64().expect("tokens"));
    if let Some(loss) = job["last_tuning"]["loss"].as_f64() {
        assert_eq!(newest("tailor.tuning.loss").value, loss);
    }
    for (name, value) in job["metrics"].as_object().expect("figures") {
        let held_out = measured.iter().rev().find(|found| found.attributes.get("tailor.metric") == Some(name));
        assert_eq!(held_out.map(|found| found.value), value.as_f64(), "{name}");
    }
}

/// Waits until every span of the path has arrived, in one trace; `named` says what a process calls itself here.
async fn whole_path(receiver: &Receiver, named: impl Fn(&str) -> String) -> Vec<Span> {
    let wanted: Vec<_> = PATH.iter().map(|(process, name)| (named(process), *name)).collect();
    eventually("a trace with every span of the path", async || {
        let spans = receiver.spans();
        let roots = spans.iter().filter(|span| span.name == "job.run");
        let traces =
            roots.map(|root| spans.iter().filter(|span| span.trace == root.trace).cloned().collect::<Vec<_>>());
        let has = |trace: &[Span], process: &str, name: &str| {
            trace.iter().any(|span| span.name == name && span.process == process)
        };
        let mut traces = traces;
        traces.find(|trace| wanted.iter().all(|(process, name)| has(trace, process, name)))
    })
    .await
}

fn descends(spans: &[Span], span: &Span, ancestor: &str) -> bool {
    let mut at = span;
    loop {
        if at.parent == ancestor {
            return true;
        }
        match spans.iter().find(|other| other.id == at.parent) {
            Some(parent) => at = parent,
            None => return false,
        }
    }
}
