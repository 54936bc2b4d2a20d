//! config.json, read field by field: what is missing, out of range or unsupported is refused by name before any weight
//! is touched.

use serde_json::{Map, Value};
use tailor_domain::Family;
use tailor_torch::Gate;
use tailor_torch::device::{gated, has_kernels};

use crate::{Error, Result};

mod decoder;
mod fields;
mod t5;

pub use decoder::{AttentionKind, DecoderConfig, RopeScaling};
pub use t5::T5Config;

use fields::Fields;

/// A model this crate can build.
#[derive(Debug, Clone, PartialEq)]
pub enum Config {
    Decoder(DecoderConfig),
    T5(T5Config),
}

/// The function between the two halves of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU by its tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    Gelu,
    Relu,
}

impl Config {
    /// # Errors
    /// The text is no JSON object, or a field is missing, out of range or not supported.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let object: Map<String, Value> = serde_json::from_slice(text)
            .map_err(|error| Error::config("(file)", format!("not a JSON object: {error}")))?;
        let fields = Fields::new(&object);
        let kind = fields.text("model_type")?;
        match Family::of_model_type(kind).map_err(|problem| Error::config("model_type", problem))? {
            Family::Decoder => Ok(Self::Decoder(DecoderConfig::of(kind, &fields)?)),
            Family::EncoderDecoder => Ok(Self::T5(T5Config::of(kind, &fields)?)),
        }
    }

    pub fn family(&self) -> Family {
        match self {
            Self::Decoder(_) => Family::Decoder,
            Self::T5(_) => Family::EncoderDecoder,
        }
    }

    pub fn model_type(&self) -> &str {
        match self {
            Self::Decoder(config) => &config.model_type,
            Self::T5(config) => &config.model_type,
        }
    }

    pub fn hidden_size(&self) -> i64 {
        match self {
            Self::Decoder(config) => config.hidden_size,
            Self::T5(config) => config.d_model,
        }
    }

    pub fn vocab_size(&self) -> i64 {
        match self {
            Self::Decoder(config) => config.vocab_size,
            Self::T5(config) => config.vocab_size,
        }
    }

    /// Longest sequence the positions were made for; T5's relative positions have none.
    pub fn max_positions(&self) -> Option<i64> {
        match self {
            Self::Decoder(config) => Some(config.max_position_embeddings),
            Self::T5(_) => None,
        }
    }

    /// Tokens that end an answer, as config.json names them.
    pub fn eos_token_ids(&self) -> &[u32] {
        match self {
            Self::Decoder(config) => &config.eos_token_ids,
            Self::T5(config) => &config.eos_token_ids,
        }
    }
}

impl Activation {
    pub(crate) fn apply(self, x: &tch::Tensor) -> tch::Tensor {
        match self {
            Self::Silu => x.silu(),
            Self::GeluTanh => x.gelu("tanh"),
            Self::Gelu => x.gelu("none"),
            Self::Relu => x.relu(),
        }
    }

    /// act(gate)·up: what a gated feed-forward layer makes of its two halves.
    pub(crate) fn gate(self, gate: &tch::Tensor, up: &tch::Tensor) -> tch::Tensor {
        let kind = match self {
            Self::Silu => Some(Gate::Silu),
            Self::GeluTanh => Some(Gate::GeluTanh),
            Self::Gelu | Self::Relu => None,
        };
        match kind.filter(|_| gate.kind() == up.kind()) {
            Some(kind) if has_kernels(gate) => gated(gate, up, kind).unwrap_or_else(|error| panic!("{error}")),
            Some(kind) if tailor_torch::fused(gate) => {
                tailor_torch::gated(gate, up, kind).unwrap_or_else(|error| panic!("{error}"))
            }
            _ => self.apply(gate) * up,
        }
    }
}
