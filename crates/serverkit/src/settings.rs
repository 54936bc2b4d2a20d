//! Settings of all services: defaults, then a TOML file, then the environment (`TAILOR__STORE__URL=…`), then flags.
//!
//! One file serves the whole system; a service reads what concerns it. Everything is checked at start, and an error names
//! the key. Each section of the file is a module here, with its defaults and its limits.

mod around;
mod dataset;
mod gateway;
mod process;
mod registry;
#[cfg(test)]
mod tests;
mod trainer;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use around::{Queue, Services, Store};
pub use dataset::Dataset;
pub use gateway::{Gateway, GatewayRole};
pub use process::{Auth, Log, LogFormat, Telemetry};
pub use registry::{Registry, Trust};
pub use trainer::Trainer;

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
        self.telemetry.check()?;
        self.dataset.check()?;
        self.registry.check()?;
        self.trainer.check()?;
        self.gateway.check()?;
        self.services.check()
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

fn positive(key: &'static str, value: u64) -> Result<(), Error> {
    match value {
        0 => Err(Error::Invalid { key, problem: "0 is not allowed; give a positive number".into() }),
        _ => Ok(()),
    }
}
