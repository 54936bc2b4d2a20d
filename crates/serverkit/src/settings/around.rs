//! What stands around the services: the store, the queue, and the services to each other.

use serde::Deserialize;

use super::{Error, is_url};

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

impl Services {
    pub(super) fn check(&self) -> Result<(), Error> {
        for (key, url) in [
            ("services.dataset", &self.dataset),
            ("services.trainer", &self.trainer),
            ("services.registry", &self.registry),
            ("services.gateway", &self.gateway),
        ] {
            if !is_url(url) {
                let problem = format!("{url:?} is no address; write http://host:port");
                return Err(Error::Invalid { key, problem });
            }
        }
        Ok(())
    }
}
