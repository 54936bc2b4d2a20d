//! The four binaries as processes with Redis Streams and an S3-compatible store over HTTP, used through gRPC from outside.

use tailor_pb::{dataset, inference, registry};

use crate::support::{Cluster, Family, Service, Training};

/// Steps of a job that lasts some seconds, long enough for something to happen to it.
const LONG: u64 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_loop_works_through_grpc_from_outside() {
    let Some(cluster) = Cluster::start().await else { return };
    let at = &cluster.addresses;
    for family in Family::ALL {
        cluster.add_base_and_rows(family).await;
        let adapter = format!("grammar-{}", family.base());
        let training = Training { base: family.base(), dataset: "rows", adapter: &adapter, steps: 10, key: &adapter };
        let job = at.create(&training).await;
        assert_eq!(at.create(&training).await.id, job.id, "the same key is the same job");

        let mut states = Vec::new();
        at.watch_until(&job.id, |event| {
            if states.last() != Some(&event.state) {
                states.push(event.state.clone());
            }
            event.state == "SUCCEEDED"
        })
        .await;
        let lived = ["QUEUED", "LEASED", "PREPARING", "TRAINING", "EVALUATING", "PUBLISHING", "SUCCEEDED"];
        assert_eq!(states, lived, "the log tells the job's whole life");

        let job = at.job(&job.id).await;
        assert_eq!((job.adapter_version, job.attempts), (1, 1));
        assert_eq!(job.last_step.expect("steps were made").step, 10);
        for metric in ["train_loss", "exact_match", "base_exact_match", "gleu"] {
            assert!(job.metrics.contains_key(metric), "{metric} is missing in {:?}", job.metrics);
        }
        serve(&cluster, family, &adapter, &job.id).await;
    }
    report_and_preview(&cluster).await;
}

/// From a version to answers that say which version gave them.
async fn serve(cluster: &Cluster, family: Family, adapter: &str, job: &str) {
    let at = &cluster.addresses;
    let request = registry::SetAliasRequest {
        adapter: adapter.into(),
        alias: "production".into(),
        version: 1,
        expected_version: Some(0),
        who: "test".into(),
        why: "first".into(),
    };
    at.registry().set_alias(request).await.expect("alias set");
    let reference = format!("{adapter}@production");
    let request = registry::ResolveRequest { reference: reference.clone() };
    let version = at.registry().resolve(request).await.expect("resolved").into_inner();
    assert_eq!((version.version, version.job_id.as_str()), (1, job));
    assert_eq!((version.dataset.as_str(), version.base.as_str()), ("rows@1", family.base()));

    let request = inference::GenerateRequest {
        adapter: reference.clone(),
        input: "anna sees a boat today".into(),
        max_new_tokens: 12,
        ..Default::default()
    };
    let answer = at.gateway().generate(request.clone()).await.expect("an answer").into_inner();
    assert_eq!((answer.adapter_digest.as_str(), answer.adapter_version), (version.digest.as_str(), 1));
    assert_eq!(answer.base_fingerprint, version.base_fingerprint);
    assert!(answer.completion_tokens >= 1 && answer.completion_tokens <= 12, "{answer:?}");
    let mut stream = at.gateway().generate_stream(request).await.expect("a stream").into_inner();
    let (mut text, mut end) = (String::new(), None);
    while let Some(chunk) = stream.message().await.expect("a chunk") {
        text.push_str(&chunk.text);
        end = chunk.end.or(end);
    }
    assert_eq!(text, answer.text, "the stream says the same, piece by piece");
    assert_eq!(end.expect("the last chunk has the figures").adapter_digest, version.digest);

    let score = async |adapter: &str| {
        let request = inference::ScoreRequest {
            base: family.base().into(),
            adapter: adapter.into(),
            prompt: "anna sees".into(),
            text: "Anna sees.".into(),
            ..Default::default()
        };
        at.gateway().score(request).await.expect("scores").into_inner().tokens
    };
    let (with, without) = (score(&reference).await, score("").await);
    assert_eq!(with.len(), without.len());
    assert!(with.iter().all(|token| token.logprob.is_none_or(|logprob| logprob <= 0.0)), "{with:?}");
    let differs = with.iter().zip(&without).any(|(a, b)| a.logprob != b.logprob);
    assert!(differs, "the adapter's answer is not the base's");
}

async fn report_and_preview(cluster: &Cluster) {
    let mut client = cluster.addresses.dataset();
    let request = dataset::GetReportRequest { name: "rows".into(), version: 1 };
    let report = client.get_report(request).await.expect("report").into_inner();
    let kept = report.dataset.expect("its dataset");
    assert_eq!((report.rows_read, kept.rows_train + kept.rows_validation, kept.rows_dropped), (60, 60, 0));
    for family in Family::ALL {
        let request = dataset::PreviewRequest {
            name: "rows".into(),
            version: 1,
            base: family.base().into(),
            rows: 2,
            ..Default::default()
        };
        let rows = client.preview(request).await.expect("preview").into_inner().rows;
        assert_eq!(rows.len(), 2);
        assert!(rows[0].prompt.contains("Correct: "), "the template is applied: {:?}", rows[0].prompt);
        assert!(rows[0].tokens.iter().any(|token| token.in_loss), "something is learnt");
        assert_eq!(rows[0].encoder_tokens.is_empty(), family == Family::Llama);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_killed_in_mid_training_costs_time_but_no_job_and_no_second_version() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.add_base_and_rows(Family::T5).await;
    let at = cluster.addresses.clone();
    let job = at.create(&long("killed")).await;
    at.wait_for_steps(&job.id).await;
    cluster.replace(Service::Trainer).await;
    let job = at.succeeded(&job.id).await;
    assert_eq!(job.attempts, 2, "another worker went on");
    assert_eq!((job.adapter_version, at.versions("killed").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_every_byte_in_redis_in_mid_job_loses_nothing() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.add_base_and_rows(Family::T5).await;
    let at = &cluster.addresses;
    // One runs, one waits in the queue.
    let running = at.create(&long("flushed")).await;
    let waiting = at.create(&Training { steps: 5, ..long("flushed") }).await;
    at.wait_for_steps(&running.id).await;
    assert!(cluster.redis.command("FLUSHALL").starts_with("+OK"));
    let (running, waiting) = (at.succeeded(&running.id).await, at.succeeded(&waiting.id).await);
    let mut published = [running.adapter_version, waiting.adapter_version];
    published.sort_unstable();
    assert_eq!(published, [1, 2], "one version each");
    assert_eq!(at.versions("flushed").await, 2);
}

fn long(adapter: &str) -> Training<'_> {
    Training { base: Family::T5.base(), dataset: "rows", adapter, steps: LONG, key: "" }
}
