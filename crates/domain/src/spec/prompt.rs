//! Prompt tuning: the base stays as it is, and a few learned vectors stand before each input.

use serde::{Deserialize, Serialize};

use super::within;
use crate::error::Invalid;

/// Prompt tuning (arXiv 2104.08691): P learned embeddings before each input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PromptTuningSpec {
    /// P: learned vectors before the input.
    pub virtual_tokens: u32,
    /// The prompt begins as the embeddings of this text, repeated or cut to fit; empty: as those of random tokens.
    pub init_text: String,
}

impl Default for PromptTuningSpec {
    fn default() -> Self {
        Self { virtual_tokens: 20, init_text: String::new() }
    }
}

impl PromptTuningSpec {
    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("prompt_tuning.virtual_tokens", self.virtual_tokens, 1, 4096)?;
        match self.init_text.len() {
            0..=65536 => Ok(()),
            bytes => Err(Invalid::new("prompt_tuning.init_text", format!("{bytes} bytes; the limit is 65536"))),
        }
    }
}
