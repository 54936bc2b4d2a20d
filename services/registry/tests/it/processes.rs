//! Several registry processes over one store, many publishers, and one process that is killed among them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tailor_blobs::{S3Options, Store};
use tailor_domain::JobId;
use tailor_pb::common::Page;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::registry::{AdapterVersion, ListVersionsRequest, PublishVersionRequest};
use tailor_serverkit::{Client, connect};
use tailor_testkit::{S3Server, TempDir, free_port, wait_for_port};
use tonic::{Code, Status};

use crate::support::{Service, job};

const PUBLISHERS: usize = 64;

/// A registry in a process of its own, which dies with the test.
struct Registry {
    child: Child,
    client: AdapterRegistryClient<Client>,
}

impl Registry {
    fn spawn(folder: &TempDir, settings: &[(String, String)]) -> Self {
        let port = free_port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailor-registry"));
        command.args(["--listen", &format!("127.0.0.1:{port}")]).envs(settings.iter().cloned());
        command.env("TAILOR__CACHE_DIR", folder.join(format!("cache-{port}"))).env("TAILOR__LOG__FILTER", "warn");
        let log = std::fs::File::create(folder.join(format!("{port}.log"))).expect("a log");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("started");
        assert!(wait_for_port(port, Duration::from_secs(60)), "the registry at {port} does not answer");
        let channel = connect("registry", &format!("http://127.0.0.1:{port}"), None).expect("address");
        Self { child, client: AdapterRegistryClient::new(channel) }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Fails only when it is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks one registry after the other, as a client behind a load balancer does, until one gives an answer that stands.
async fn publish(
    clients: &[AdapterRegistryClient<Client>],
    first: usize,
    request: &PublishVersionRequest,
) -> Result<AdapterVersion, Status> {
    let mut outcome = Err(Status::unavailable("nobody was asked"));
    for turn in 0..4 * clients.len() {
        let mut client = clients[(first + turn) % clients.len()].clone();
        outcome = client.publish_version(request.clone()).await.map(tonic::Response::into_inner);
        match &outcome {
            // Unknown: the connection broke in the middle of the call, with the process.
            Err(error) if matches!(error.code(), Code::Unavailable | Code::Unknown) => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            Err(_) | Ok(_) => break,
        }
    }
    outcome
}

async fn all_versions(client: &AdapterRegistryClient<Client>) -> Vec<AdapterVersion> {
    let (mut versions, mut token) = (Vec::new(), String::new());
    loop {
        let request = ListVersionsRequest {
            adapter: "grammar".into(),
            page: Some(Page { size: 50, token }),
            ..Default::default()
        };
        let answer = client.clone().list_versions(request).await.expect("listed").into_inner();
        versions.extend(answer.versions);
        token = answer.next_page_token;
        if token.is_empty() {
            return versions;
        }
    }
}

/// 64 jobs publish at once, each by two registries at once, each with a zombie of an earlier attempt beside it; one
/// registry is killed in the middle.
async fn many_publishers(store: Store, settings: &[(String, String)]) {
    let folder = TempDir::new();
    // What is published is prepared by a registry in this process.
    let service = Service::over(store).await;
    service.register_base().await;
    let mut work: Vec<(JobId, PublishVersionRequest)> = Vec::new();
    for number in 0..PUBLISHERS {
        let job = job(number as u128);
        service.new_attempt(&job).await;
        let fence = service.new_attempt(&job).await;
        let request = service.adapter_request("grammar", number as u32).await;
        work.push((job.clone(), PublishVersionRequest { job_id: job.to_string(), fence, ..request }));
    }
    let mut processes: Vec<Registry> = (0..4).map(|_| Registry::spawn(&folder, settings)).collect();
    let clients: Arc<[_]> = processes.iter().map(|process| process.client.clone()).collect();

    let started = std::time::Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for (number, (_, request)) in work.iter().enumerate() {
        for (first, fence) in [(number, request.fence), (number + 1, request.fence), (number + 2, request.fence - 1)] {
            let (clients, request) = (clients.clone(), PublishVersionRequest { fence, ..request.clone() });
            calls.spawn(async move { (fence, publish(&clients, first, &request).await) });
        }
    }
    let (mut published, mut refused) = (BTreeMap::<String, BTreeSet<u64>>::new(), 0);
    let mut answers = 0;
    while let Some(outcome) = calls.join_next().await {
        answers += 1;
        if answers == PUBLISHERS {
            drop(processes.pop());
        }
        match outcome.expect("no panic") {
            (1, outcome) => {
                let error = outcome.expect_err("a zombie published");
                assert_eq!(error.code(), Code::Aborted, "{error}");
                refused += 1;
            }
            (_, outcome) => {
                let version = outcome.expect("published");
                published.entry(version.job_id).or_default().insert(version.version);
            }
        }
    }
    assert_eq!((published.len(), refused), (PUBLISHERS, PUBLISHERS));
    assert!(published.values().all(|versions| versions.len() == 1), "one job, one version: {published:?}");
    let mut numbers: Vec<u64> = published.values().flatten().copied().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=PUBLISHERS as u64).collect::<Vec<_>>(), "no gap and no double");
    for process in &processes {
        let listed: Vec<u64> = all_versions(&process.client).await.iter().map(|version| version.version).collect();
        assert_eq!(listed, (1..=PUBLISHERS as u64).rev().collect::<Vec<_>>(), "every registry sees the same");
    }
    eprintln!(
        "{PUBLISHERS} publishers, {} processes, one killed: {answers} answers, {} versions, {refused} zombies refused, {:?}",
        clients.len(),
        numbers.len(),
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_publishers_on_four_processes_over_a_folder_make_versions_without_gap_or_double() {
    let folder = TempDir::new();
    let store = Store::open(&folder.display(), &S3Options::default()).expect("store");
    many_publishers(store, &[("TAILOR__STORE__URL".into(), folder.display())]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_publishers_on_four_processes_over_s3_make_versions_without_gap_or_double() {
    let Some(server) = S3Server::spawn() else { return };
    let options = S3Options {
        endpoint: Some(server.endpoint()),
        region: Some(server.region().into()),
        access_key_id: Some(server.access_key_id().into()),
        secret_access_key: Some(server.secret_access_key().into()),
        allow_http: true,
    };
    let store = Store::open(&server.url(), &options).expect("store");
    let settings = [
        ("URL", server.url()),
        ("ENDPOINT", server.endpoint()),
        ("REGION", server.region().into()),
        ("ACCESS_KEY_ID", server.access_key_id().into()),
        ("SECRET_ACCESS_KEY", server.secret_access_key().into()),
        ("ALLOW_HTTP", "true".into()),
    ];
    many_publishers(store, &settings.map(|(key, value)| (format!("TAILOR__STORE__{key}"), value))).await;
}

/// A store that never heard of `If-None-Match`: a relay before a real one that takes the condition out of every request.
async fn without_conditions(to: std::net::SocketAddr) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const CONDITION: &[u8] = b"if-none-match";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("free port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = tokio::net::TcpStream::connect(to).await else { continue };
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                    let piece = &mut buffer[..count];
                    if let Some(at) = piece.windows(CONDITION.len()).position(|window| window == CONDITION) {
                        piece[at..at + CONDITION.len()].copy_from_slice(b"x-uncondited-");
                    }
                    if to_server.write_all(piece).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_over_a_store_that_ignores_conditions_ends_at_start_with_the_reason() {
    let Some(server) = S3Server::spawn() else { return };
    let behind = server.endpoint().trim_start_matches("http://").parse().expect("address");
    let folder = TempDir::new();
    let settings = [
        ("STORE__URL", server.url()),
        ("STORE__ENDPOINT", format!("http://{}", without_conditions(behind).await)),
        ("STORE__REGION", server.region().into()),
        ("STORE__ACCESS_KEY_ID", server.access_key_id().into()),
        ("STORE__SECRET_ACCESS_KEY", server.secret_access_key().into()),
        ("STORE__ALLOW_HTTP", "true".into()),
        ("CACHE_DIR", folder.display()),
    ];
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tailor-registry"));
    command.args(["--listen", "127.0.0.1:0"]).kill_on_drop(true);
    command.envs(settings.map(|(key, value)| (format!("TAILOR__{key}"), value)));
    let output =
        tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("it ends").expect("it ran");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("cannot be used") && said.contains("racing creates"), "{said}");
    assert!(said.contains("If-None-Match"), "the remedy is named: {said}");
}
