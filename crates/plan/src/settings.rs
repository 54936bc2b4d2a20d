//! What is planned: sizes of a pass, the type of the arithmetic, and the recipe's choices that cost memory or time.

use tailor_domain::spec::{Checkpointing, Grouping, LoraInit, Objective, Optimizer, Precision};
use tailor_domain::{Family, Invalid, QuantCode, Recipe};

use crate::device::DeviceKind;

/// The type of activations and of dequantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compute {
    Bf16,
    F32,
}

impl Compute {
    pub const ALL: [Self; 2] = [Self::Bf16, Self::F32];

    /// What a job computes in, on a base that was added with `dtype`.
    ///
    /// # Errors
    /// The base's type is neither bf16 nor f32.
    pub fn of(precision: Precision, dtype: &str) -> Result<Self, Invalid> {
        match (precision, dtype) {
            (Precision::Bf16, _) | (Precision::Base, "bf16") => Ok(Self::Bf16),
            (Precision::F32, _) | (Precision::Base, "f32") => Ok(Self::F32),
            (Precision::Base, other) => Err(Invalid::new("dtype", format!("{other:?} is neither bf16 nor f32"))),
        }
    }

    /// Bytes a value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// Rows to train on, as they are tokenised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    pub count: u64,
    /// Of all rows together, both streams.
    pub tokens: u64,
    /// Of the longest row, both streams.
    pub longest: u64,
    /// Of the longest input and the longest answer, of any rows. A decoder's row is one stream: its input is the whole.
    pub longest_input: u64,
    pub longest_target: u64,
    /// Labels that the longest row can have; what stands before the answer has none.
    pub most_labels: u64,
}

/// One forward and backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// B: sequences; of preference pairs both answers count.
    pub sequences: u64,
    /// T of a decoder, Se of an encoder.
    pub input: u64,
    /// T of an encoder-decoder's decoder, else 0.
    pub target: u64,
    /// Labels of all sequences.
    pub labels: u64,
    /// Texts share a sequence, so that attention takes a mask.
    pub masked: bool,
    /// The base alone runs first, for its log-probabilities.
    pub reference: bool,
}

/// Everything that decides what a step costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub code: QuantCode,
    pub compute: Compute,
    pub checkpointing: Checkpointing,
    pub optimizer: Optimizer,
    /// A copy of the best parameters is kept, and of a few other things.
    pub measures: bool,
    /// Some parameters learn at another rate than others (LoRA+).
    pub own_rates: bool,
    /// Layers are set free one after the other.
    pub unfreezes: bool,
    /// The adapter begins as a part of the weights, which is taken off them in every pass (PiSSA).
    pub takes_off: bool,
    pub pass: Pass,
    /// Tokens of prompt and of answer of a held-out row, whose prompt is taken to be no longer than what is learnt from.
    pub answer: (u64, u64),
}

impl Settings {
    /// The costliest pass of a run with this many sequences in it.
    pub fn of(recipe: &Recipe, family: Family, code: QuantCode, compute: Compute, rows: &Rows, sequences: u64) -> Self {
        let train = &recipe.train;
        let limit = u64::from(train.max_tokens);
        let packed = train.grouping == Grouping::Packed;
        let answers = if train.objective == Objective::Dpo { 2 } else { 1 };
        let sequences = sequences.min(rows.count.max(1));
        let within = |tokens: u64| if tokens == 0 { limit } else { tokens.min(limit) };
        let (input, target) = match family {
            // The last token is no input.
            Family::Decoder if packed => (limit.saturating_sub(1).min(rows.tokens.max(1)), 0),
            Family::Decoder => (within(rows.longest_input).saturating_sub(1).max(1), 0),
            Family::EncoderDecoder => (within(rows.longest_input), within(rows.longest_target)),
        };
        let most = match family {
            Family::Decoder if packed => input,
            Family::Decoder => within(rows.most_labels).min(input),
            Family::EncoderDecoder => target,
        };
        let sequences = sequences * answers;
        let virtual_tokens = u64::from(recipe.prompt_tuning.virtual_tokens);
        let input = input + virtual_tokens;
        let lora = &recipe.lora;
        let has_lora = !recipe.prompt_tuning.is_on();
        Self {
            code,
            compute,
            checkpointing: train.checkpointing,
            optimizer: train.optimizer,
            measures: recipe.evaluate.tuning_fraction > 0.0,
            own_rates: has_lora && lora.plus_ratio != 1.0,
            unfreezes: !train.unfreeze.is_empty(),
            takes_off: has_lora && lora.init == LoraInit::Pissa,
            pass: Pass {
                sequences,
                input,
                target,
                labels: sequences * most,
                masked: packed,
                reference: train.objective == Objective::Dpo,
            },
            answer: (within(rows.longest_input) + virtual_tokens, u64::from(recipe.evaluate.max_new_tokens)),
        }
    }

    /// The same as a device of this kind goes by them.
    pub fn on(&self, kind: DeviceKind) -> Self {
        let mut settings = self.clone();
        match kind {
            // Attention goes by where texts begin, whatever shares a sequence.
            DeviceKind::Gpu => settings.pass.masked = false,
            // There is no other host.
            DeviceKind::Cpu | DeviceKind::CpuF32 => {
                if settings.checkpointing == Checkpointing::LayersOnHost {
                    settings.checkpointing = Checkpointing::Layers;
                }
            }
        }
        settings
    }
}
