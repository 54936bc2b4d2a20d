//! Prompt tuning: virtual tokens in the place of LoRA.

use serde::{Deserialize, Serialize};

use super::{LoraSpec, TrainSpec, named, within};
use crate::error::Invalid;
use crate::spec::{Grouping, Recipe};

/// Prompt tuning (arXiv 2104.08691): embeddings that stand before every input are all that is learned. The paper's learning
/// rate is 0.3, far above LoRA's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PromptTuningSpec {
    /// How many embeddings are learned; 0 trains LoRA, and this section says nothing else.
    pub virtual_tokens: u32,
    /// Where the embeddings begin.
    pub init: PromptInit,
}

/// Where virtual tokens begin (arXiv 2104.08691 §2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PromptInit {
    /// As embeddings of the vocabulary, drawn by the seed.
    #[default]
    Vocabulary,
    /// Uniform between -0.5 and 0.5.
    Uniform,
}

named!(PromptInit, "prompt_tuning.init", { Vocabulary => "vocabulary", Uniform => "uniform" });

impl PromptTuningSpec {
    pub fn is_on(&self) -> bool {
        self.virtual_tokens > 0
    }

    /// # Errors
    /// Names the field, its value and its limits, or what it does not go with.
    pub fn validate(&self, recipe: &Recipe) -> Result<(), Invalid> {
        within("prompt_tuning.virtual_tokens", self.virtual_tokens, 0, 4096)?;
        if !self.is_on() {
            let unused = self.init != PromptInit::default();
            let problem = format!("{} begins no virtual token; set prompt_tuning.virtual_tokens", self.init);
            return if unused { Err(Invalid::new("prompt_tuning.init", problem)) } else { Ok(()) };
        }
        let excluded = |field: &str| {
            let problem = format!("does not go with {field}; an adapter is a prompt or LoRA");
            Err(Invalid::new("prompt_tuning.virtual_tokens", problem))
        };
        if recipe.lora != LoraSpec::default() {
            return excluded("settings of lora");
        }
        let TrainSpec { grouping, unfreeze, .. } = &recipe.train;
        if *grouping == Grouping::Packed {
            let problem = "does not go with train.grouping packed: each text would need its own; use length";
            return Err(Invalid::new("prompt_tuning.virtual_tokens", problem));
        }
        if !unfreeze.is_empty() {
            return excluded("train.unfreeze");
        }
        Ok(())
    }
}
