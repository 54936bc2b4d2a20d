//! How to train: objective, batches, optimizer, schedule, budget.

use serde::{Deserialize, Serialize};

use super::{named, within};
use crate::base::QuantCode;
use crate::error::Invalid;

/// More workers than this on one job are a slip of the pen.
const MAX_RANKS: u32 = 256;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TrainSpec {
    /// What is made small.
    pub objective: Objective,
    /// Which tokens of a row count in the loss.
    pub loss_on: LossOn,
    /// The highest, after the warm-up.
    pub learning_rate: f64,
    /// How the learning rate falls after the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up as a share of all steps.
    pub warmup_ratio: f64,
    /// What is left of the learning rate at the last step, where the schedule falls.
    pub final_ratio: f64,
    /// What turns gradients into updates.
    pub optimizer: Optimizer,
    /// Share of each weight, times the learning rate, taken off at each step.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down.
    pub max_grad_norm: f64,
    /// Passes over the training rows.
    pub epochs: f64,
    /// Upper bound on optimizer steps; 0 means no bound but the epochs.
    pub max_steps: u64,
    /// Upper bound on tokens trained on, padding not counted; 0 means no bound.
    pub max_train_tokens: u64,
    /// Rows in one optimizer step.
    pub batch_rows: u32,
    /// Rows in one forward pass, the rest of the batch is accumulated; 0 finds the most that fit into memory.
    pub micro_batch_rows: u32,
    /// Workers that train the job together, each a share of every batch; the result is that of one, up to rounding.
    pub ranks: u32,
    /// Longest row in tokens, prompt and target together; longer rows are dropped and reported. Also the length of a
    /// packed sequence.
    pub max_tokens: u32,
    /// Which rows share a forward pass.
    pub grouping: Grouping,
    /// NEFTune (arXiv 2310.05914): strength of the noise on the embeddings in training; 0 switches it off.
    pub neftune_alpha: f64,
    /// What the backward pass finds in memory.
    pub checkpointing: Checkpointing,
    /// What the base computes in.
    pub precision: Precision,
    /// The code that the base must be in; unset takes it as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<QuantCode>,
    /// Gradual unfreezing (arXiv 1801.06146): from which share of the run on which layers learn. Layers that no stage
    /// names learn from the beginning.
    pub unfreeze: Vec<UnfreezeStage>,
    /// Decides the order of rows, the first values and dropout.
    pub seed: u64,
}

/// From `from` (a share of all steps, 0 to 1) on the layers with these numbers learn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UnfreezeStage {
    /// Share of all steps, 0 to 1.
    pub from: f64,
    /// Layer numbers, counted from 0.
    pub layers: Vec<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Cross-entropy of the target.
    #[default]
    Sft,
    /// Preference pairs (arXiv 2305.18290); the dataset must hold chosen and rejected answers.
    Dpo,
}

named!(Objective, "train.objective", { Sft => "sft", Dpo => "dpo" });

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// What follows the last prompt.
    #[default]
    Completion,
    /// All that the assistant says, in each turn of a conversation.
    Assistant,
    /// Every token, the prompt's too.
    Everything,
}

named!(LossOn, "train.loss_on", { Completion => "completion", Assistant => "assistant", Everything => "everything" });

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Down a half cosine (arXiv 1608.03983) to `final_ratio`.
    #[default]
    Cosine,
    /// Down a line to `final_ratio`.
    Linear,
    Constant,
}

named!(Schedule, "train.schedule", { Cosine => "cosine", Linear => "linear", Constant => "constant" });

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Optimizer {
    /// AdamW (arXiv 1711.05101) with f32 moments.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// AdamW with moments in 8 bits, block-wise (arXiv 2110.02861).
    #[serde(rename = "adamw8bit")]
    AdamW8bit,
    /// As `adamw`, the moments in memory that moves between GPU and host page by page. GPUs only.
    #[serde(rename = "paged_adamw")]
    PagedAdamW,
    /// As `adamw8bit`, paged. GPUs only.
    #[serde(rename = "paged_adamw8bit")]
    PagedAdamW8bit,
}

named!(Optimizer, "train.optimizer", {
    AdamW => "adamw",
    AdamW8bit => "adamw8bit",
    PagedAdamW => "paged_adamw",
    PagedAdamW8bit => "paged_adamw8bit",
});

impl Optimizer {
    /// Whether the moments are in 8 bits.
    pub fn in_8_bits(self) -> bool {
        matches!(self, Self::AdamW8bit | Self::PagedAdamW8bit)
    }

    /// Whether the moments may leave the GPU.
    pub fn is_paged(self) -> bool {
        matches!(self, Self::PagedAdamW | Self::PagedAdamW8bit)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// Rows of like length share a batch.
    #[default]
    Length,
    /// Rows are packed into sequences of `max_tokens`, best fit decreasing; none sees another. Decoders only.
    Packed,
}

named!(Grouping, "train.grouping", { Length => "length", Packed => "packed" });

/// What the backward pass finds in memory and what it makes again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Checkpointing {
    /// Everything is kept.
    #[default]
    None,
    /// Each layer's input is kept, and what its products and its attention give (arXiv 2205.05198); what stands between
    /// them is made once more.
    Selective,
    /// Each layer's input is kept (arXiv 1604.06174); the layer runs once more.
    Layers,
    /// As `layers`, the inputs waiting in the host's memory. GPUs only.
    LayersOnHost,
}

named!(Checkpointing, "train.checkpointing", {
    None => "none",
    Selective => "selective",
    Layers => "layers",
    LayersOnHost => "layers_on_host",
});

impl Checkpointing {
    /// Whether each layer's products are made once more in the backward pass.
    pub fn makes_products_again(self) -> bool {
        match self {
            Self::None | Self::Selective => false,
            Self::Layers | Self::LayersOnHost => true,
        }
    }
}

/// What the base computes in. The adapter and its optimizer are f32 always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As the base was added.
    #[default]
    Base,
    Bf16,
    F32,
}

named!(Precision, "train.precision", { Base => "base", Bf16 => "bf16", F32 => "f32" });

impl Default for TrainSpec {
    fn default() -> Self {
        Self {
            objective: Objective::Sft,
            loss_on: LossOn::Completion,
            learning_rate: 2e-3,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.05,
            final_ratio: 0.1,
            optimizer: Optimizer::AdamW,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            epochs: 3.0,
            max_steps: 0,
            max_train_tokens: 0,
            batch_rows: 32,
            micro_batch_rows: 0,
            ranks: 1,
            max_tokens: 512,
            grouping: Grouping::Length,
            neftune_alpha: 0.0,
            checkpointing: Checkpointing::None,
            precision: Precision::Base,
            quantization: None,
            unfreeze: Vec::new(),
            seed: 0,
        }
    }
}

impl TrainSpec {
    /// What only a GPU can do is asked of a GPU.
    ///
    /// # Errors
    /// The field that means nothing on a CPU, and what serves there.
    pub fn check_device(&self, is_gpu: bool) -> Result<(), Invalid> {
        if is_gpu {
            return Ok(());
        }
        if self.checkpointing == Checkpointing::LayersOnHost {
            let problem = "layers_on_host moves what a GPU keeps to the host, and this runs on a CPU; take layers";
            return Err(Invalid::new("train.checkpointing", problem));
        }
        if self.optimizer.is_paged() {
            let plain = if self.optimizer.in_8_bits() { "adamw8bit" } else { "adamw" };
            let problem = format!(
                "{} lets a GPU's memory move to the host, and this runs on a CPU; take {plain}",
                self.optimizer
            );
            return Err(Invalid::new("train.optimizer", problem));
        }
        Ok(())
    }

    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("train.learning_rate", self.learning_rate, 1e-8, 1.0)?;
        within("train.warmup_ratio", self.warmup_ratio, 0.0, 0.9)?;
        within("train.final_ratio", self.final_ratio, 0.0, 1.0)?;
        within("train.weight_decay", self.weight_decay, 0.0, 10.0)?;
        within("train.max_grad_norm", self.max_grad_norm, 1e-3, 1e6)?;
        within("train.epochs", self.epochs, 0.001, 1000.0)?;
        within("train.batch_rows", self.batch_rows, 1, 65536)?;
        within("train.micro_batch_rows", self.micro_batch_rows, 0, self.batch_rows)?;
        within("train.ranks", self.ranks, 1, MAX_RANKS)?;
        if self.ranks > self.batch_rows {
            let problem = format!("{} share a batch of {} rows; raise train.batch_rows", self.ranks, self.batch_rows);
            return Err(Invalid::new("train.ranks", problem));
        }
        within("train.max_tokens", self.max_tokens, 8, 1 << 20)?;
        within("train.neftune_alpha", self.neftune_alpha, 0.0, 1000.0)?;
        for (at, stage) in self.unfreeze.iter().enumerate() {
            within(&format!("train.unfreeze[{at}].from"), stage.from, 0.0, 1.0)?;
            if stage.layers.is_empty() {
                return Err(Invalid::new(format!("train.unfreeze[{at}].layers"), "empty; name the layers' numbers"));
            }
            let before = &self.unfreeze[..at];
            if let Some(twice) = stage.layers.iter().find(|layer| before.iter().any(|s| s.layers.contains(layer))) {
                let problem = format!("layer {twice} stands in an earlier stage; a layer learns from one moment on");
                return Err(Invalid::new(format!("train.unfreeze[{at}].layers"), problem));
            }
        }
        if self.objective == Objective::Dpo && self.loss_on == LossOn::Everything {
            let problem = "everything: dpo compares answers, not prompts; take completion";
            return Err(Invalid::new("train.loss_on", problem));
        }
        if self.objective == Objective::Dpo && self.grouping == Grouping::Packed {
            return Err(Invalid::new("train.grouping", "packed holds single rows; dpo takes length"));
        }
        Ok(())
    }
}
