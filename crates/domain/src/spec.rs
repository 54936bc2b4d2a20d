//! What a user asks of a training job, with every limit checked before anything is spent.

use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::ids::{AdapterName, BaseName, DatasetName, Version};

/// LoRA (arXiv 2106.09685): h = W0·x + (α/r)·B·A·x.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSpec {
    pub rank: u32,
    pub alpha: f32,
    pub dropout: f32,
    /// Module name endings as in PEFT, e.g. `q_proj`; empty means every linear layer but the head.
    pub target_modules: Vec<String>,
}

impl Default for LoraSpec {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, dropout: 0.0, target_modules: Vec::new() }
    }
}

/// How to train: optimizer, schedule, budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSpec {
    pub learning_rate: f64,
    /// Steps of linear warm-up as a share of all steps; cosine decay to a tenth follows.
    pub warmup_ratio: f64,
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down.
    pub max_grad_norm: f64,
    pub epochs: f64,
    /// Upper bound on optimizer steps; 0 means no bound but the epochs.
    pub max_steps: u64,
    /// Rows in one optimizer step.
    pub batch_rows: u32,
    /// Rows in one forward pass; the rest of the batch is accumulated.
    pub micro_batch_rows: u32,
    /// Longest row in tokens, prompt and target together; longer rows are dropped and reported.
    pub max_tokens: u32,
    /// Training stops when the mean loss of the last 20 steps is at most this ("acceptable"); 0 switches it off.
    pub target_loss: f64,
    pub seed: u64,
    /// Greedy tokens generated per validation row.
    pub max_new_tokens: u32,
    /// Validation rows predicted at the end; 0 means all.
    pub max_validation_rows: u32,
}

impl Default for TrainSpec {
    fn default() -> Self {
        Self {
            learning_rate: 2e-3,
            warmup_ratio: 0.05,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            epochs: 3.0,
            max_steps: 0,
            batch_rows: 32,
            micro_batch_rows: 32,
            max_tokens: 512,
            target_loss: 0.0,
            seed: 0,
            max_new_tokens: 64,
            max_validation_rows: 0,
        }
    }
}

/// `jobs/<job>/spec.json`. Never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    pub base: BaseName,
    pub dataset: DatasetName,
    pub dataset_version: Version,
    pub adapter: AdapterName,
    #[serde(default)]
    pub lora: LoraSpec,
    #[serde(default)]
    pub train: TrainSpec,
    /// W3C traceparent of the request that made the job, so that one trace follows it to the end.
    #[serde(default)]
    pub traceparent: Option<String>,
    pub created_at_ms: u64,
}

fn within<T: PartialOrd + std::fmt::Display>(field: &str, value: T, low: T, high: T) -> Result<(), Invalid> {
    // Written so that a NaN fails too.
    if value >= low && value <= high {
        return Ok(());
    }
    Err(Invalid::new(field, format!("{value} is outside {low} to {high}")))
}

impl LoraSpec {
    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("lora.rank", self.rank, 1, 1024)?;
        within("lora.alpha", self.alpha, 1e-3, 65536.0)?;
        within("lora.dropout", self.dropout, 0.0, 0.9)?;
        if let Some(empty) = self.target_modules.iter().position(|name| name.trim().is_empty()) {
            return Err(Invalid::new(format!("lora.target_modules[{empty}]"), "empty; name a module such as q_proj"));
        }
        Ok(())
    }
}

impl TrainSpec {
    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("train.learning_rate", self.learning_rate, 1e-8, 1.0)?;
        within("train.warmup_ratio", self.warmup_ratio, 0.0, 0.9)?;
        within("train.weight_decay", self.weight_decay, 0.0, 10.0)?;
        within("train.max_grad_norm", self.max_grad_norm, 1e-3, 1e6)?;
        within("train.epochs", self.epochs, 0.001, 1000.0)?;
        within("train.batch_rows", self.batch_rows, 1, 65536)?;
        within("train.micro_batch_rows", self.micro_batch_rows, 1, self.batch_rows)?;
        within("train.max_tokens", self.max_tokens, 8, 1 << 20)?;
        within("train.target_loss", self.target_loss, 0.0, 1e3)?;
        within("train.max_new_tokens", self.max_new_tokens, 1, 8192)
    }
}

impl JobSpec {
    /// # Errors
    /// The first field that breaks its limit.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.lora.validate()?;
        self.train.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(LoraSpec::default().validate(), Ok(()));
        assert_eq!(TrainSpec::default().validate(), Ok(()));
    }

    #[test]
    fn a_bad_value_is_refused_by_field_value_and_limit() {
        let error = LoraSpec { rank: 0, ..Default::default() }.validate().expect_err("rank 0");
        assert_eq!(error.to_string(), "lora.rank: 0 is outside 1 to 1024");
        let nan = TrainSpec { learning_rate: f64::NAN, ..Default::default() };
        assert!(nan.validate().is_err(), "NaN passes no limit");
        let micro = TrainSpec { batch_rows: 8, micro_batch_rows: 9, ..Default::default() };
        assert!(micro.validate().is_err(), "a micro-batch is part of a batch");
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = serde_json::from_str::<LoraSpec>(r#"{"rnak": 8}"#).expect_err("unknown key");
        assert!(error.to_string().contains("rnak"), "{error}");
    }
}
