//! A dataset as it is kept: cleaned rows in blobs, a report of what was dropped and why.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{DatasetName, Digest, Version};

/// Why a row was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The line is no record of the format (unbalanced quote, broken JSON).
    Malformed,
    /// The record has more or fewer fields than the header.
    FieldCount,
    MissingField,
    EmptyInput,
    EmptyTarget,
    InvalidUtf8,
    /// Longer than the line limit.
    TooLong,
    /// The same input was seen before.
    Duplicate,
    /// The same input was seen before with another target.
    Conflict,
    /// Over the share that balancing leaves its label.
    Balanced,
}

impl DropReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::FieldCount => "field_count",
            Self::MissingField => "missing_field",
            Self::EmptyInput => "empty_input",
            Self::EmptyTarget => "empty_target",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::TooLong => "too_long",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Balanced => "balanced",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One row that was left out, for people to find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedRow {
    /// 1-based line of the uploaded file.
    pub line: u64,
    pub field: Option<String>,
    pub reason: DropReason,
    pub detail: String,
}

/// What became of the uploaded rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub rows_read: u64,
    pub rows_train: u64,
    pub rows_validation: u64,
    pub dropped: BTreeMap<DropReason, u64>,
    /// The first rows of each reason; the counts above are complete.
    pub examples: Vec<DroppedRow>,
    /// Rows by label before balancing; empty when the dataset has no label column.
    pub labels_before: BTreeMap<String, u64>,
    pub labels_after: BTreeMap<String, u64>,
    /// Characters in input and target together: upper bound of each bucket, rows in it.
    pub length_histogram: Vec<(u64, u64)>,
}

impl Report {
    pub fn rows_kept(&self) -> u64 {
        self.rows_train + self.rows_validation
    }

    pub fn rows_dropped(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// `datasets/<name>/<version>.json`. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetManifest {
    pub name: DatasetName,
    pub version: Version,
    /// The uploaded file, byte for byte.
    pub source: Digest,
    pub source_size_bytes: u64,
    /// JSON lines of cleaned rows, with targets.
    pub train: Digest,
    /// JSON lines of cleaned rows, with targets: read by the dataset service alone.
    pub validation: Digest,
    pub prompt_template: String,
    pub report: Report,
    pub created_at_ms: u64,
}

impl DatasetManifest {
    /// What the dataset is, whatever it is called.
    pub fn digest(&self) -> Digest {
        Digest::of(format!("{}\n{}\n{}", self.train, self.validation, self.prompt_template).as_bytes())
    }
}
