//! Predictions as they are kept: one JSON object a line, in a blob that an attempt hands in.

use serde::{Deserialize, Serialize};

/// Largest blob of predictions that an attempt may hand in: the dataset service reads it into memory.
pub const MAX_PREDICTIONS_BYTES: u64 = 512 << 20;

/// What was answered to a held-out row, without and with the adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Index in the validation split.
    pub row: u32,
    pub base: String,
    pub adapter: String,
}
