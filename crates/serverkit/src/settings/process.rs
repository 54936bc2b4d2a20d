//! What every process has: its log, its telemetry, the token that it asks for.

use serde::Deserialize;

use super::{Error, positive};

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

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, metrics_ms: 10_000 }
    }
}

impl Telemetry {
    pub(super) fn check(&self) -> Result<(), Error> {
        positive("telemetry.metrics_ms", self.metrics_ms)
    }
}
