//! The four binaries as processes, over a real Redis and a real S3-compatible store behind a gate.

use std::process::Command;

use tailor_testkit::{RedisServer, S3Server, TempDir, free_port};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::clients::{Addresses, channel};
use super::process::{Process, command};
use super::{Cli, Family, Gate, eventually};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Dataset,
    Trainer,
    Registry,
    Gateway,
}

impl Service {
    pub const ALL: [Self; 4] = [Self::Dataset, Self::Trainer, Self::Registry, Self::Gateway];

    pub fn program(self) -> &'static str {
        match self {
            Self::Dataset => "tailor-dataset",
            Self::Trainer => "tailor-trainer",
            Self::Registry => "tailor-registry",
            Self::Gateway => "tailor-gateway",
        }
    }
}

pub struct Cluster {
    // Dropped first to last: the services before what they stand on.
    processes: Vec<(Service, Process)>,
    pub addresses: Addresses,
    pub redis: RedisServer,
    /// Between the services and the store.
    pub store: Gate,
    s3: S3Server,
    settings: Vec<(String, String)>,
    pub folder: TempDir,
}

/// Several processes, of this test and of another beside it, compute on the same few cores: threads of one that wait for each
/// other, at full speed, would keep those of another from what they wait for.
pub const ONE_THREAD: [(&str, &str); 1] = [("OMP_NUM_THREADS", "1")];

impl Cluster {
    /// Redis and the store run, no service does. `None` where one of the two is not installed.
    pub fn prepare() -> Option<Self> {
        let (redis, s3) = (RedisServer::spawn()?, S3Server::spawn()?);
        let port = s3.endpoint().rsplit(':').next().and_then(|port| port.parse().ok()).expect("port of the store");
        let url = || format!("http://127.0.0.1:{}", free_port());
        let addresses = Addresses { dataset: url(), trainer: url(), registry: url(), gateway: url() };
        let (processes, store) = (Vec::new(), Gate::before(port));
        let mut cluster = Self { processes, addresses, redis, store, s3, settings: Vec::new(), folder: TempDir::new() };
        cluster.settings = cluster.own_settings();
        Some(cluster)
    }

    /// All of it, serving.
    pub async fn start() -> Option<Self> {
        let mut cluster = Self::prepare()?;
        cluster.start_all().await;
        Some(cluster)
    }

    fn own_settings(&self) -> Vec<(String, String)> {
        let settings = [
            ("STORE__URL", self.s3.url()),
            ("STORE__ENDPOINT", format!("http://127.0.0.1:{}", self.store.port())),
            ("STORE__REGION", self.s3.region().to_owned()),
            ("STORE__ACCESS_KEY_ID", self.s3.access_key_id().to_owned()),
            ("STORE__SECRET_ACCESS_KEY", self.s3.secret_access_key().to_owned()),
            ("STORE__ALLOW_HTTP", "true".to_owned()),
            ("QUEUE__URL", self.redis.url()),
            ("SERVICES__DATASET", self.addresses.dataset.clone()),
            ("SERVICES__TRAINER", self.addresses.trainer.clone()),
            ("SERVICES__REGISTRY", self.addresses.registry.clone()),
            ("SERVICES__GATEWAY", self.addresses.gateway.clone()),
            // So that a dead worker's job is somebody else's within two seconds.
            ("TRAINER__LEASE_MS", "1500".to_owned()),
            ("TRAINER__RECONCILE_MS", "500".to_owned()),
            ("LOG__FILTER", "info".to_owned()),
        ];
        settings.into_iter().map(|(key, value)| (format!("TAILOR__{key}"), value)).collect()
    }

    /// A setting for every service that starts from now on, e.g. `AUTH__TOKEN`.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.settings.push((format!("TAILOR__{key}"), value.into()));
    }

    pub fn url(&self, service: Service) -> &str {
        match service {
            Service::Dataset => &self.addresses.dataset,
            Service::Trainer => &self.addresses.trainer,
            Service::Registry => &self.addresses.registry,
            Service::Gateway => &self.addresses.gateway,
        }
    }

    /// `host:port` of a service.
    pub fn address(&self, service: Service) -> String {
        self.url(service).trim_start_matches("http://").to_owned()
    }

    /// The command that runs a service with this cluster's settings.
    pub fn command(&self, service: Service) -> Command {
        let mut command = command(service.program());
        command.args(["--listen", &self.address(service)]);
        command.envs(self.settings.iter().cloned());
        command.envs(ONE_THREAD);
        command.env("TAILOR__CACHE_DIR", self.folder.join(service.program()));
        command
    }

    /// The command of a trainer that only trains, with a cache of its own.
    pub fn worker_command(&self, name: &str, port: u16) -> Command {
        let mut command = command(Service::Trainer.program());
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.envs(self.settings.iter().cloned());
        command.envs([("TAILOR__TRAINER__API", "false"), ("TAILOR__TRAINER__WORKER", "true")]);
        command.envs(ONE_THREAD);
        command.env("TAILOR__CACHE_DIR", self.folder.join(name));
        command
    }

    /// Loopback ports that a worker calls.
    pub fn ports(&self) -> Vec<u16> {
        let of = |url: &str| url.rsplit(':').next().and_then(|port| port.trim_end_matches("/0").parse().ok());
        let urls = [&self.addresses.dataset, &self.addresses.registry, &self.redis.url()].map(|url| of(url));
        urls.into_iter().flatten().chain([self.store.port()]).collect()
    }

    pub async fn start_all(&mut self) {
        for service in Service::ALL {
            self.spawn(service);
        }
        for service in Service::ALL {
            self.serving(service).await;
        }
    }

    /// Starts a service without waiting for it.
    pub fn spawn(&mut self, service: Service) {
        let process = Process::spawn(service.program(), self.command(service), self.folder.path());
        self.processes.push((service, process));
    }

    /// Waits until a service says SERVING.
    pub async fn serving(&mut self, service: Service) {
        let url = self.url(service).to_owned();
        let process = self.process(service);
        eventually(&format!("{service:?} serves"), async || {
            let ended = process.has_ended();
            assert!(ended.is_none(), "{service:?} ended with {ended:?}:\n{}", process.log());
            (health(&url).await.as_deref() == Some("SERVING")).then_some(())
        })
        .await;
    }

    /// The newest process of a service.
    pub fn process(&mut self, service: Service) -> &mut Process {
        let found = self.processes.iter_mut().rev().find(|(other, _)| *other == service);
        &mut found.expect("a process of the service").1
    }

    /// SIGKILL, then a new process in its place, serving.
    pub async fn replace(&mut self, service: Service) {
        self.process(service).kill();
        self.spawn(service);
        self.serving(service).await;
    }

    pub fn cli(&self) -> Cli {
        let cli = Cli::new(self.folder.path()).at(&self.addresses);
        cli.env("TAILOR_STATE", self.folder.join("state").display().to_string())
    }

    /// Registers a random base and uploads rows under the name `rows`.
    pub async fn add_base_and_rows(&self, family: Family) {
        let folder = family.write(self.folder.path());
        self.cli().text(&["base", "add", &folder.display().to_string(), "--name", family.base(), "--dtype", "f32"]);
        self.addresses.upload("rows", super::rows::csv(60).as_bytes()).await.expect("rows uploaded");
    }
}

/// What a service says of itself; `None` where nobody answers.
pub async fn health(url: &str) -> Option<String> {
    let mut client = HealthClient::new(channel(url));
    let answer = client.check(HealthCheckRequest { service: String::new() }).await.ok()?;
    Some(answer.into_inner().status().as_str_name().to_owned())
}
