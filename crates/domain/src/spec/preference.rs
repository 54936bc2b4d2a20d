//! Learning from pairs: of two answers to one prompt, which is the better.

use serde::{Deserialize, Serialize};

use super::within;
use crate::error::Invalid;

/// DPO (arXiv 2305.18290 eq. 7): −log σ(β·((π − π_ref)(chosen) − (π − π_ref)(rejected))), in log-probabilities. The
/// reference is the base with the adapter switched off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PreferenceSpec {
    /// β: how far the adapter may go from the base.
    pub beta: f64,
    /// Share of the pairs that may be the wrong way round (cDPO).
    pub label_smoothing: f64,
    /// Weight of the chosen answer's mean cross-entropy beside the loss of the pair (RPO); 0 leaves it out.
    pub sft_weight: f64,
}

impl Default for PreferenceSpec {
    fn default() -> Self {
        Self { beta: 0.1, label_smoothing: 0.0, sft_weight: 0.0 }
    }
}

impl PreferenceSpec {
    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("preference.beta", self.beta, 1e-4, 100.0)?;
        within("preference.label_smoothing", self.label_smoothing, 0.0, 0.499)?;
        within("preference.sft_weight", self.sft_weight, 0.0, 100.0)
    }
}
