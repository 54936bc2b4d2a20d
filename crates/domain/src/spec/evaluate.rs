//! What is measured while a job trains and when it ends.
//!
//! Three sets of rows are kept apart. The training rows are learned from. The TUNING rows are cut off them by the trainer
//! and decide when to stop and which checkpoint is the best. The held-out rows, whose targets the trainer never sees,
//! are what the published figures are of (docs/decisions/0002).

use serde::{Deserialize, Serialize};

use super::within;
use crate::error::Invalid;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSpec {
    /// Share of the training rows that is put aside to measure loss and token accuracy on; 0 puts none aside.
    pub tuning_fraction: f64,
    /// No more rows than this are put aside.
    pub max_tuning_rows: u32,
    /// Steps between two measurements; 0 means ten in the whole run. The last step is always measured.
    pub every_steps: u64,
    /// Greedy tokens generated per held-out row.
    pub max_new_tokens: u32,
    /// Held-out rows predicted at the end, without and with the adapter; 0 means all.
    pub max_validation_rows: u32,
}

impl Default for EvaluateSpec {
    fn default() -> Self {
        Self {
            tuning_fraction: 0.02,
            max_tuning_rows: 128,
            every_steps: 0,
            max_new_tokens: 64,
            // A share of them that is right is known to within three hundredths (95 %).
            max_validation_rows: 1000,
        }
    }
}

impl EvaluateSpec {
    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("evaluate.tuning_fraction", self.tuning_fraction, 0.0, 0.5)?;
        within("evaluate.max_tuning_rows", self.max_tuning_rows, 1, 1 << 20)?;
        within("evaluate.max_new_tokens", self.max_new_tokens, 1, 8192)
    }
}
