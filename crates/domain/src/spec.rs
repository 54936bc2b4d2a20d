//! What a user asks of a training job, with every limit checked before anything is spent.
//!
//! The same types are the job file (`tailor train -f job.yaml`), the stored `spec.json` and, by way of `pb`, the wire. An
//! unknown key is refused by name.

mod evaluate;
mod lora;
mod preference;
mod prompt_tuning;
mod stop;
mod train;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::ids::{AdapterName, BaseName, DatasetName, Version};

pub use evaluate::EvaluateSpec;
pub use lora::{LoraInit, LoraSpec};
pub use preference::PreferenceSpec;
pub use prompt_tuning::{PromptInit, PromptTuningSpec};
pub use stop::StopSpec;
pub use train::{Checkpointing, Grouping, LossOn, Objective, Optimizer, Precision, Schedule, TrainSpec, UnfreezeStage};

/// How to make an adapter: everything but what it is made from and what it is called.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    pub lora: LoraSpec,
    pub prompt_tuning: PromptTuningSpec,
    pub train: TrainSpec,
    pub evaluate: EvaluateSpec,
    pub stop: StopSpec,
    pub preference: PreferenceSpec,
}

/// `jobs/<job>/spec.json`. Never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    pub base: BaseName,
    pub dataset: DatasetName,
    pub dataset_version: Version,
    pub adapter: AdapterName,
    pub recipe: Recipe,
    /// W3C traceparent of the request that made the job, so that one trace follows it to the end.
    #[serde(default)]
    pub traceparent: Option<String>,
    pub created_at_ms: u64,
}

impl Recipe {
    /// # Errors
    /// The first field that breaks its limit, or two that exclude each other.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.lora.validate()?;
        self.train.validate()?;
        self.evaluate.validate()?;
        self.stop.validate()?;
        self.preference.validate()?;
        self.prompt_tuning.validate(self)?;
        self.stop.validate_with(&self.evaluate)
    }
}

pub(crate) fn within<T: PartialOrd + std::fmt::Display>(field: &str, value: T, low: T, high: T) -> Result<(), Invalid> {
    // Written so that a NaN fails too.
    if value >= low && value <= high {
        return Ok(());
    }
    Err(Invalid::new(field, format!("{value} is outside {low} to {high}")))
}

/// Reads an enum from the text that the wire and the job file share; lists what there is when it is none of them.
macro_rules! named {
    ($name:ident, $field:literal, { $($variant:ident => $text:literal),+ $(,)? }) => {
        impl $name {
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::error::Invalid;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => {
                        let problem = format!("{other:?} is none of {}", Self::NAMES.join(", "));
                        Err($crate::error::Invalid::new($field, problem))
                    }
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use named;
