//! The dataset service's: what it takes.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, positive};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dataset {
    pub max_upload_bytes: u64,
    pub max_line_bytes: usize,
    /// Places that datasets may be imported from, parted by commas: `s3://bucket`, `gs://bucket/prefix`, `az://container`,
    /// `file:///folder`. Those of the store's own kind are read as its settings say, by the same endpoint and with the same
    /// credentials, others with the usual variables of the environment. Whoever may call the service may read what lies there.
    pub import_from: String,
    /// A program of ours that reads Parquet files in processes of their own. Absent: the one that runs.
    pub parquet_reader: Option<PathBuf>,
}

impl Default for Dataset {
    fn default() -> Self {
        Self { max_upload_bytes: 16 << 30, max_line_bytes: 1 << 20, import_from: String::new(), parquet_reader: None }
    }
}

impl Dataset {
    pub(super) fn check(&self) -> Result<(), Error> {
        positive("dataset.max_upload_bytes", self.max_upload_bytes)?;
        positive("dataset.max_line_bytes", self.max_line_bytes as u64)?;
        const SCHEMES: [&str; 4] = ["s3://", "gs://", "az://", "file:///"];
        // A bucket, or a folder, is named.
        let is_place = |place: &str| {
            SCHEMES
                .iter()
                .any(|scheme| place.strip_prefix(scheme).is_some_and(|rest| !rest.trim_matches('/').is_empty()))
        };
        match self.import_places().find(|place| !is_place(place)) {
            Some(place) => {
                let problem =
                    format!("{place:?} is no place; write s3://bucket, gs://bucket, az://container or file:///folder");
                Err(Error::Invalid { key: "dataset.import_from", problem })
            }
            None => Ok(()),
        }
    }

    /// The places of [`Self::import_from`], one by one.
    pub fn import_places(&self) -> impl Iterator<Item = &str> {
        self.import_from.split(',').map(str::trim).filter(|place| !place.is_empty())
    }
}
