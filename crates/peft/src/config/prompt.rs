//! PEFT's prompt tuning (arXiv 2104.08691): embeddings of virtual tokens before the input, and no change of a weight.

use serde_json::{Map, Value};

use super::clip;
use super::fields::present;
use crate::error::{self, Error, Result};

/// Virtual tokens take part in every pass, so more than this is no prompt.
pub const MAX_VIRTUAL_TOKENS: u32 = 4096;

/// The value of `peft_type`.
pub(super) const TYPE: &str = "PROMPT_TUNING";

/// Fields that say how the embeddings began or describe the base: kept as they are.
const INERT: [&str; 13] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "num_attention_heads",
    "num_layers",
    "peft_type",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "revision",
    "task_type",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
];

const READ: [&str; 3] = ["num_transformer_submodules", "num_virtual_tokens", "token_dim"];

/// How many embeddings there are, and of what size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptTuning {
    /// P: embeddings that stand before the input.
    pub virtual_tokens: u32,
    /// D, where the file says it.
    pub token_dim: Option<u32>,
    /// PEFT keeps P embeddings for each; an encoder-decoder has two of them and uses the first alone.
    pub submodules: u32,
}

impl PromptTuning {
    pub(super) fn read(raw: &Map<String, Value>) -> Result<Self> {
        let number = |field: &str, low: u64, high: u64| match present(raw, field) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) if (low..=high).contains(&number) => Ok(Some(number as u32)),
                _ => Err(Error::config(field, format!("{} is outside {low} to {high}", clip(value)))),
            },
        };
        let sequence_to_sequence = raw.get("task_type").is_some_and(|task| task == "SEQ_2_SEQ_LM");
        let submodules = number("num_transformer_submodules", 1, 2)?;
        let read = Self {
            virtual_tokens: number("num_virtual_tokens", 1, u64::from(MAX_VIRTUAL_TOKENS))?
                .ok_or_else(|| Error::config("num_virtual_tokens", "missing; it says how many embeddings there are"))?,
            token_dim: number("token_dim", 1, 1 << 20)?,
            submodules: submodules.unwrap_or(if sequence_to_sequence { 2 } else { 1 }),
        };
        for (field, value) in raw {
            let known = READ.contains(&field.as_str()) || INERT.contains(&field.as_str());
            if !known && !super::refuse::is_off(value) {
                return Err(Error::Unsupported {
                    field: error::clip(field, 200),
                    value: clip(value),
                    reason: "this setting of a prompt is not known to Tailor; remove it if the adapter needs it not"
                        .into(),
                });
            }
        }
        Ok(read)
    }

    /// Rows of the stored matrix.
    pub fn rows(&self) -> usize {
        self.virtual_tokens as usize * self.submodules as usize
    }
}
