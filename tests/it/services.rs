//! What every service binary does, whatever it is for: health, an orderly end, tokens, settings.

use std::time::Duration;

use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::clients::channel;
use crate::support::cluster::health;
use crate::support::process::command;
use crate::support::{Cluster, Family, Service, Training};

#[tokio::test(flavor = "multi_thread")]
async fn each_service_says_how_it_is_and_ends_in_order_at_sigterm() {
    let Some(mut cluster) = Cluster::prepare() else { return };
    cluster.set("SHUTDOWN_GRACE_MS", "1000");
    cluster.start_all().await;
    for service in Service::ALL {
        let address = cluster.address(service);
        let probe = || command(service.program()).args(["health", "--addr", &address]).output().expect("probe");
        assert!(probe().status.success(), "{service:?} is healthy");

        // A watcher's call is in flight, so the service must tell it and then wait no longer than the grace period.
        let mut watcher = HealthClient::new(channel(cluster.url(service)));
        let request = HealthCheckRequest { service: String::new() };
        let mut changes = watcher.watch(request).await.expect("watch").into_inner();
        let mut next = async || changes.message().await.expect("a change").expect("a change").status();
        assert_eq!(next().await, ServingStatus::Serving);
        cluster.process(service).terminate();
        assert_eq!(next().await, ServingStatus::NotServing, "{service:?} tells load balancers first");
        let ended = cluster.process(service).wait(Duration::from_secs(15));
        assert_eq!(ended.code(), Some(0), "{service:?}:\n{}", cluster.process(service).log());

        let after = probe();
        assert_eq!(after.status.code(), Some(1));
        let said = String::from_utf8_lossy(&after.stderr).into_owned();
        assert!(said.contains(&format!("{address} does not answer")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_at_every_door_but_health() {
    let Some(mut cluster) = Cluster::prepare() else { return };
    cluster.set("AUTH__TOKEN", "open-sesame");
    cluster.start_all().await;
    let at = cluster.addresses.clone();
    for (_, url) in at.all() {
        assert_eq!(health(url).await.as_deref(), Some("SERVING"), "health has no lock");
    }
    let datasets = tailor_pb::dataset::ListDatasetsRequest::default();
    let jobs = tailor_pb::training::ListJobsRequest::default();
    let bases = tailor_pb::registry::ListBasesRequest::default();
    let models = tailor_pb::inference::ListModelsRequest::default();
    for token in [None, Some("Bearer wrong-sesame"), Some("open-sesame")] {
        let refusals = [
            at.dataset().list_datasets(with(token, datasets.clone())).await.expect_err("locked"),
            at.trainer().list_jobs(with(token, jobs.clone())).await.expect_err("locked"),
            at.registry().list_bases(with(token, bases.clone())).await.expect_err("locked"),
            at.gateway().list_models(with(token, models)).await.expect_err("locked"),
        ];
        for refusal in refusals {
            assert_eq!(refusal.code(), Code::Unauthenticated, "{refusal:?}");
            assert!(refusal.message().contains("token"), "{refusal:?}");
        }
    }
    let refused = cluster.cli().refused(&["dataset", "list"]);
    refused.says("UNAUTHENTICATED", &["no token given", "TAILOR_TOKEN"]);

    // With it the whole path works: the services show it to each other.
    let cli = cluster.cli().env("TAILOR_TOKEN", "open-sesame");
    let base = Family::T5.write(cluster.folder.path()).display().to_string();
    cli.text(&["base", "add", &base, "--name", Family::T5.base(), "--dtype", "f32"]);
    let rows = cluster.folder.join("rows.csv");
    std::fs::write(&rows, crate::support::rows::csv(40)).expect("write rows");
    cli.text(&["dataset", "push", &rows.display().to_string(), "--name", "rows"]);
    let training = Training { base: Family::T5.base(), dataset: "rows", adapter: "locked", steps: 3, key: "" };
    let request = with(Some("Bearer open-sesame"), training.request());
    let job = at.trainer().create_job(request).await.expect("created").into_inner();
    cli.text(&["job", "watch", &job.id]);
    let answer = cli.json(&["generate", "--adapter", "locked", "--max-new-tokens", "4", "anna"]);
    assert!(answer.is_object(), "{answer}");
    let log = cluster.process(Service::Trainer).log();
    assert!(!log.contains("open-sesame"), "the token is in the log:\n{log}");
}

fn with<T>(token: Option<&'static str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.parse().expect("ascii"));
    }
    request
}

#[test]
fn a_wrong_setting_is_refused_at_start_by_its_key() {
    let wrong = [
        (["--set", "trainer.lease_ms=5"], "settings: trainer.lease_ms: 5 ms is too short"),
        (["--set", "gateway.max_batch=many"], "max_batch"),
        (["--set", "store.bucket=x"], "bucket"),
        (["--set", "listen"], "write --set KEY=VALUE"),
        (["--set", "telemetry.otlp_endpoint=nonsense nonsense"], "telemetry.otlp_endpoint"),
    ];
    for service in Service::ALL {
        for (flags, wanted) in wrong {
            let done = command(service.program()).args(flags).output().expect("run a service");
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert_eq!(done.status.code(), Some(1), "{service:?} {flags:?}: {said}");
            assert!(said.contains(wanted), "{wanted:?} is missing in: {said}");
        }
    }
    let done = command("tailor-trainer").args(["--listen", "127.0.0.1:0"]).output().expect("run the trainer");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("queue.url") && said.contains("redis://host:port"), "{said}");
}

#[test]
fn settings_come_from_file_environment_and_flags_in_this_order() {
    let folder = tailor_testkit::TempDir::new();
    let file = folder.join("tailor.toml");
    std::fs::write(&file, "[trainer]\nlease_ms = 1\n").expect("write settings");
    let refused = |variable: Option<&str>, flag: Option<&str>| {
        let mut command = command("tailor-registry");
        command.arg("--config").arg(&file);
        if let Some(value) = variable {
            command.env("TAILOR__TRAINER__LEASE_MS", value);
        }
        if let Some(value) = flag {
            command.args(["--set", &format!("trainer.lease_ms={value}")]);
        }
        let done = command.output().expect("run the registry");
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    assert!(refused(None, None).contains("trainer.lease_ms: 1 ms"), "the file");
    assert!(refused(Some("2"), None).contains("trainer.lease_ms: 2 ms"), "the environment wins over the file");
    assert!(refused(Some("2"), Some("3")).contains("trainer.lease_ms: 3 ms"), "a flag wins over both");
}
