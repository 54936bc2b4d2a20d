//! Settings of all services: defaults, then a TOML file, then the environment (`TAILOR__STORE__URL=…`), then flags.
//!
//! One file serves the whole system; a service reads what concerns it. Everything is checked at start, and an error names
//! the key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tailor_domain::BaseName;

/// Prefix of environment variables; `__` separates the levels of a key.
pub const ENV_PREFIX: &str = "TAILOR";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("settings: {problem}; keys come from {sources}")]
    Unreadable { problem: String, sources: String },
    #[error("settings: {key}: {problem}")]
    Invalid { key: &'static str, problem: String },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where this service listens.
    pub listen: SocketAddr,
    /// How long a service goes on taking requests after a stop signal, when its health says already that it does not: balancers
    /// take a moment to see that.
    pub shutdown_wait_ms: u64,
    /// How long requests in flight may take to finish after that.
    pub shutdown_grace_ms: u64,
    /// Where bases and scratch files live on this machine. May be lost at any time.
    pub cache_dir: PathBuf,
    pub log: Log,
    pub telemetry: Telemetry,
    pub auth: Auth,
    pub store: Store,
    pub queue: Queue,
    pub services: Services,
    pub dataset: Dataset,
    pub registry: Registry,
    pub trust: Trust,
    pub trainer: Trainer,
    pub gateway: Gateway,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A tracing filter, e.g. `info,tailor_trainer=debug`.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// An OTLP/gRPC receiver, e.g. `http://127.0.0.1:4317`. Absent: no traces and no metrics leave the process.
    pub otlp_endpoint: Option<String>,
    /// How often metrics are sent there.
    pub metrics_ms: u64,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// When set, every call but health must carry `authorization: Bearer <token>`, and our own calls do.
    pub token: Option<String>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("token", &self.token.as_ref().map(|_| "…")).finish()
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `file:///path`, a plain path, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: String,
    /// For S3: the server's address, e.g. `http://store:9000`; absent means AWS.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    /// Whether plain HTTP is acceptable.
    pub allow_http: bool,
    /// Whether to make the S3 bucket at start if it is not there, for a store of one's own such as compose's.
    pub create_bucket: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("url", &self.url).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// `redis://host:port/db`.
    pub url: Option<String>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address may carry a password.
        f.debug_struct("Queue").field("url", &self.url.as_ref().map(|_| "redis://…")).finish()
    }
}

/// Where the services find each other.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Services {
    pub dataset: String,
    pub trainer: String,
    pub registry: String,
    pub gateway: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dataset {
    pub max_upload_bytes: u64,
    pub max_line_bytes: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Largest blob taken: one file of a base's folder.
    pub max_blob_bytes: u64,
    /// Versions that an adapter may have, deleted ones not counted; 0: any number.
    pub quota_versions: u64,
    /// Bytes that an adapter's weights may take; 0: any number.
    pub quota_bytes: u64,
    /// How long a deleted version can be undeleted.
    pub undelete_ms: u64,
    /// How old a blob that nothing names must be to be marked as garbage, and how long a mark waits.
    pub collect_grace_ms: u64,
    /// How often garbage is collected without being asked; 0: never.
    pub collect_every_ms: u64,
    /// How often the log of changes is looked at while somebody watches. Changes made by this registry itself are told at
    /// once; this is for those of others on the same store, and for telling watchers that they are up to date.
    pub watch_poll_ms: u64,
}

/// Signatures: the registry signs, whoever loads or downloads an adapter checks.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// The registry's ed25519 key: 64 hex digits or PEM. Absent: nothing is signed.
    pub signing_key: Option<String>,
    /// A file with it.
    pub signing_key_file: Option<PathBuf>,
    /// Public keys in hex, parted by commas, or PEM. With any, only what one of them has signed is served and exported.
    pub trusted_keys: String,
    /// A file with more of them.
    pub trusted_keys_file: Option<PathBuf>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust")
            .field("signing_key", &self.signing_key.as_ref().map(|_| "…"))
            .field("signing_key_file", &self.signing_key_file)
            .field("trusted_keys", &self.trusted_keys)
            .field("trusted_keys_file", &self.trusted_keys_file)
            .finish()
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trainer {
    /// Answer the TrainingService.
    pub api: bool,
    /// Lease and train jobs.
    pub worker: bool,
    /// How long a worker may be silent before its job goes to another.
    pub lease_ms: u64,
    /// How often unfinished jobs are put back into the queue.
    pub reconcile_ms: u64,
    /// How often a run is saved, so that another attempt goes on from there.
    pub checkpoint_ms: u64,
    /// Attempts in a row that get no further before a job that keeps losing its worker is failed.
    pub max_attempts: u64,
    /// Measure, once for each kind of machine and store, what this worker does in a second, so that jobs can be planned.
    pub calibrate: bool,
    /// What jobs may take of this worker's memory; 0 means all that the machine or its control group has.
    pub memory_bytes: u64,
    /// Name or address of this machine for other workers of one job (`train.ranks`); empty: that of the network over which
    /// the registry is reached, or for a worker that joins, the first rank.
    pub rendezvous_host: String,
    /// How long a worker that leased a job with ranks waits for the others before it gives the job back.
    pub gather_ms: u64,
    /// How long ranks wait for one that is silent. One that ends is noticed at once.
    pub ranks_timeout_ms: u64,
    /// Most ranks of a job; 0: as many as jobs ask for.
    pub max_ranks: u32,
    /// Jobs that this worker trains at a time, in turns; those on the same base share it in memory.
    pub jobs_at_once: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GatewayRole {
    Both,
    Edge,
    Engine,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// `both`: it answers, and makes the tokens itself. `edge`: it answers, and engines elsewhere make the tokens. `engine`: it
    /// makes tokens for edges.
    pub role: GatewayRole,
    /// An edge's engines: addresses (`http://host:port`) parted by commas.
    pub engines: String,
    /// Sequences waiting for the device before callers are turned away.
    pub max_queue: usize,
    /// Tokens, prompts and answers together, that those may come to.
    pub max_queue_tokens: usize,
    /// Sequences in one step.
    pub max_batch: usize,
    /// What a tenant (`x-tailor-tenant`) may ask for; 0 is no limit. Tokens are prompts and answers together.
    pub tenant_requests_per_minute: u64,
    pub tenant_tokens_per_minute: u64,
    /// Memory for the keys and values of each base's sequences; one sequence of the greatest length fits always.
    pub kv_bytes: u64,
    /// Memory of the device for adapters; what is worth least (uses, time to load, bytes) leaves when it is full. What is in
    /// use or pinned stays.
    pub adapter_bytes: u64,
    /// The host's memory for the files of adapters, so that those that left the device come back without the store.
    pub adapter_memory_bytes: u64,
    /// Disk (`cache_dir`) for the files of adapters.
    pub adapter_disk_bytes: u64,
    /// How long after the registry last said so an alias' target may be taken for true. Later the registry is asked.
    pub alias_ttl_ms: u64,
    /// How long aliases go on meaning what they last meant while no registry answers; 0: not at all.
    pub outage_grace_ms: u64,
    /// Pages that may call from a browser: origins (`https://host[:port]`) parted by commas, or `*` for all. Empty: none.
    pub cors_origins: String,
    /// Bases that are loaded at the start, names parted by commas; the gateway is ready when they answer. Others are loaded at
    /// their first use.
    pub preload: String,
    /// How long a step may take. A device that is at work for longer without an end of it counts as hung, and the gateway says
    /// that it does not serve until the step ends.
    pub hang_ms: u64,
    /// Adapters that metrics name one by one; what comes after so many counts as `other`.
    pub metered_adapters: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            shutdown_wait_ms: 0,
            shutdown_grace_ms: 10_000,
            cache_dir: PathBuf::from(".tailor/cache"),
            log: Log::default(),
            telemetry: Telemetry::default(),
            auth: Auth::default(),
            store: Store::default(),
            queue: Queue::default(),
            services: Services::default(),
            dataset: Dataset::default(),
            registry: Registry::default(),
            trust: Trust::default(),
            trainer: Trainer::default(),
            gateway: Gateway::default(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: ".tailor/store".into(),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            allow_http: false,
            create_bucket: false,
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, metrics_ms: 10_000 }
    }
}

impl Default for Services {
    fn default() -> Self {
        Self {
            dataset: "http://127.0.0.1:50051".into(),
            trainer: "http://127.0.0.1:50052".into(),
            registry: "http://127.0.0.1:50053".into(),
            gateway: "http://127.0.0.1:50054".into(),
        }
    }
}

impl Default for Dataset {
    fn default() -> Self {
        Self { max_upload_bytes: 16 << 30, max_line_bytes: 1 << 20 }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            max_blob_bytes: 64 << 30,
            quota_versions: 0,
            quota_bytes: 0,
            undelete_ms: 7 * 86_400_000,
            collect_grace_ms: 86_400_000,
            collect_every_ms: 0,
            watch_poll_ms: 40,
        }
    }
}

impl Default for Trainer {
    fn default() -> Self {
        Self {
            api: true,
            worker: true,
            lease_ms: 30_000,
            reconcile_ms: 10_000,
            checkpoint_ms: 60_000,
            max_attempts: 5,
            calibrate: true,
            memory_bytes: 0,
            rendezvous_host: String::new(),
            gather_ms: 60_000,
            ranks_timeout_ms: 600_000,
            max_ranks: 0,
            jobs_at_once: 1,
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            role: GatewayRole::Both,
            engines: String::new(),
            max_queue: 256,
            max_queue_tokens: 1 << 20,
            max_batch: 32,
            tenant_requests_per_minute: 0,
            tenant_tokens_per_minute: 0,
            kv_bytes: 4 << 30,
            adapter_bytes: 8 << 30,
            adapter_memory_bytes: 1 << 30,
            adapter_disk_bytes: 32 << 30,
            alias_ttl_ms: 100,
            outage_grace_ms: 600_000,
            cors_origins: String::new(),
            preload: String::new(),
            hang_ms: 60_000,
            metered_adapters: 100,
        }
    }
}

impl Gateway {
    /// The addresses in `engines`.
    pub fn engine_urls(&self) -> impl Iterator<Item = &str> {
        self.engines.split(',').map(str::trim).filter(|url| !url.is_empty())
    }

    /// An edge has engines, nobody else.
    fn check_role(&self) -> Result<(), String> {
        if let Some(url) = self.engine_urls().find(|url| !is_url(url)) {
            return Err(format!("{url:?} is no address; write http://host:port"));
        }
        let has_engines = self.engine_urls().next().is_some();
        match self.role {
            GatewayRole::Edge if !has_engines => {
                Err("an edge (gateway.role) needs engines; name at least one, http://host:port".into())
            }
            GatewayRole::Both | GatewayRole::Engine if has_engines => {
                Err("only an edge sends requests to engines; set gateway.role to edge, or leave this out".into())
            }
            _ => Ok(()),
        }
    }

    /// The names in `preload`.
    ///
    /// # Errors
    /// What cannot be a base's name.
    pub fn preloaded(&self) -> Result<Vec<BaseName>, tailor_domain::Invalid> {
        let names = self.preload.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(BaseName::try_new).collect()
    }
}

impl Settings {
    /// Reads defaults, `file`, environment and `overrides` (dotted key, value), in this order, and checks the result.
    ///
    /// # Errors
    /// An unreadable file, an unknown key, a value of the wrong type or outside its limits; the message names the key.
    pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Self, Error> {
        let sources = match file {
            Some(path) => format!("{}, environment variables {ENV_PREFIX}__… and flags", path.display()),
            None => format!("environment variables {ENV_PREFIX}__… and flags"),
        };
        let unreadable =
            |error: config::ConfigError| Error::Unreadable { problem: error.to_string(), sources: sources.clone() };
        let mut builder = config::Config::builder();
        if let Some(path) = file {
            builder = builder.add_source(config::File::from(path).format(config::FileFormat::Toml));
        }
        let environment = config::Environment::with_prefix(ENV_PREFIX)
            .prefix_separator("__")
            .separator("__")
            .ignore_empty(true)
            .try_parsing(true);
        builder = builder.add_source(environment);
        for (key, value) in overrides {
            builder = builder.set_override(key, value.as_str()).map_err(unreadable)?;
        }
        let settings: Self = builder.build().map_err(unreadable)?.try_deserialize().map_err(unreadable)?;
        settings.validate()?;
        Ok(settings)
    }

    fn validate(&self) -> Result<(), Error> {
        let positive = |key: &'static str, value: u64| match value {
            0 => Err(Error::Invalid { key, problem: "0 is not allowed; give a positive number".into() }),
            _ => Ok(()),
        };
        positive("telemetry.metrics_ms", self.telemetry.metrics_ms)?;
        positive("dataset.max_upload_bytes", self.dataset.max_upload_bytes)?;
        positive("dataset.max_line_bytes", self.dataset.max_line_bytes as u64)?;
        positive("registry.max_blob_bytes", self.registry.max_blob_bytes)?;
        positive("registry.watch_poll_ms", self.registry.watch_poll_ms)?;
        positive("trainer.reconcile_ms", self.trainer.reconcile_ms)?;
        positive("trainer.checkpoint_ms", self.trainer.checkpoint_ms)?;
        positive("trainer.max_attempts", self.trainer.max_attempts)?;
        positive("trainer.gather_ms", self.trainer.gather_ms)?;
        positive("trainer.ranks_timeout_ms", self.trainer.ranks_timeout_ms)?;
        positive("trainer.jobs_at_once", self.trainer.jobs_at_once)?;
        positive("gateway.max_queue", self.gateway.max_queue as u64)?;
        positive("gateway.max_queue_tokens", self.gateway.max_queue_tokens as u64)?;
        positive("gateway.max_batch", self.gateway.max_batch as u64)?;
        let least = tailor_blobs::gc::MIN_GRACE.as_millis() as u64;
        if self.registry.collect_grace_ms < least {
            let problem = format!(
                "{} ms is shorter than what a publish may take; the least is {least}",
                self.registry.collect_grace_ms
            );
            return Err(Error::Invalid { key: "registry.collect_grace_ms", problem });
        }
        positive("gateway.kv_bytes", self.gateway.kv_bytes)?;
        positive("gateway.hang_ms", self.gateway.hang_ms)?;
        if let Err(problem) = crate::cors::origins(&self.gateway.cors_origins) {
            return Err(Error::Invalid { key: "gateway.cors_origins", problem });
        }
        if let Err(problem) = self.gateway.check_role() {
            return Err(Error::Invalid { key: "gateway.engines", problem });
        }
        if let Err(problem) = self.gateway.preloaded() {
            return Err(Error::Invalid { key: "gateway.preload", problem: problem.to_string() });
        }
        if self.trainer.lease_ms < 300 {
            let problem = format!("{} ms is too short to heartbeat in; the least is 300", self.trainer.lease_ms);
            return Err(Error::Invalid { key: "trainer.lease_ms", problem });
        }
        if !self.trainer.api && !self.trainer.worker {
            return Err(Error::Invalid { key: "trainer.api", problem: "api and worker are both off".into() });
        }
        for (key, url) in [
            ("services.dataset", &self.services.dataset),
            ("services.trainer", &self.services.trainer),
            ("services.registry", &self.services.registry),
            ("services.gateway", &self.services.gateway),
        ] {
            if !is_url(url) {
                let problem = format!("{url:?} is no address; write http://host:port");
                return Err(Error::Invalid { key, problem });
            }
        }
        Ok(())
    }

    pub fn shutdown_wait(&self) -> Duration {
        Duration::from_millis(self.shutdown_wait_ms)
    }

    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_millis(self.shutdown_grace_ms)
    }
}

fn is_url(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(key: &str, value: &str) -> Result<Settings, Error> {
        Settings::load(None, &[(key.into(), value.into())])
    }

    #[test]
    fn a_flag_changes_one_key_and_leaves_the_others() {
        let settings = over("trainer.lease_ms", "1000").expect("valid");
        assert_eq!(settings.trainer.lease_ms, 1000);
        assert_eq!(settings.trainer.max_attempts, Trainer::default().max_attempts);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let message = over("trainer.leese_ms", "1").expect_err("unknown").to_string();
        assert!(message.contains("leese_ms"), "{message}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_by_its_key() {
        let message = over("gateway.max_batch", "many").expect_err("no number").to_string();
        assert!(message.contains("gateway.max_batch") || message.contains("max_batch"), "{message}");
    }

    #[test]
    fn a_value_outside_its_limits_is_named_by_its_key() {
        let message = over("trainer.lease_ms", "5").expect_err("too short").to_string();
        assert_eq!(message, "settings: trainer.lease_ms: 5 ms is too short to heartbeat in; the least is 300");
        assert!(over("gateway.max_queue", "0").is_err());
        assert!(over("services.dataset", "localhost:1").is_err());
        let message = over("gateway.cors_origins", "example.org").expect_err("no origin").to_string();
        assert!(message.starts_with("settings: gateway.cors_origins: \"example.org\""), "{message}");
        assert!(over("gateway.preload", "a, B!").expect_err("no name").to_string().contains("gateway.preload"));
    }

    #[test]
    fn the_sample_file_shows_the_defaults() {
        let sample = include_str!("../../../deploy/tailor.example.toml");
        let sample = config::File::from_str(sample, config::FileFormat::Toml);
        let sample = config::Config::builder().add_source(sample).build().expect("TOML");
        let sample: Settings = sample.try_deserialize().expect("known keys");
        assert_eq!(format!("{sample:#?}"), format!("{:#?}", Settings::default()));
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let mut settings = Settings::default();
        settings.auth.token = Some("hush".into());
        settings.store.secret_access_key = Some("hush".into());
        settings.queue.url = Some("redis://:hush@host".into());
        assert!(!format!("{settings:?}").contains("hush"));
    }
}
