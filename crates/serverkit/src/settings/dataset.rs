//! The dataset service's: what it takes.

use serde::Deserialize;

use super::{Error, positive};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dataset {
    pub max_upload_bytes: u64,
    pub max_line_bytes: usize,
}

impl Default for Dataset {
    fn default() -> Self {
        Self { max_upload_bytes: 16 << 30, max_line_bytes: 1 << 20 }
    }
}

impl Dataset {
    pub(super) fn check(&self) -> Result<(), Error> {
        positive("dataset.max_upload_bytes", self.max_upload_bytes)?;
        positive("dataset.max_line_bytes", self.max_line_bytes as u64)
    }
}
