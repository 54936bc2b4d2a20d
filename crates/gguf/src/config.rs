//! config.json of a decoder, as far as llama.cpp's architectures can express it; everything else is refused by name.

mod attention;
mod fields;

use serde_json::{Map, Value};

use crate::{Error, Result};
use attention::{check_attention_scale, rotary, softcaps, windows};
use fields::Fields;

pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;
pub(crate) const SERVE_FOLDER: &str = "serve the folder with Tailor or transformers";

/// `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// Llama 2 and 3, and Mistral, which differs by data alone.
    Llama,
    Qwen2,
    Qwen3,
    Gemma,
    Gemma2,
    Gemma3,
}

impl Architecture {
    fn of(model_type: &str) -> Result<Self> {
        match model_type {
            "llama" | "mistral" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            "gemma" => Ok(Self::Gemma),
            "gemma2" => Ok(Self::Gemma2),
            "gemma3_text" => Ok(Self::Gemma3),
            other => {
                let problem = format!(
                    "a GGUF file of {other:?} is not written; llama, mistral, qwen2, qwen3, gemma, gemma2 and gemma3_text are"
                );
                Err(Error::not_mapped("config.json, model_type", problem, SERVE_FOLDER))
            }
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
        }
    }

    pub fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    /// Whether llama.cpp reads a head of its own; Gemma and Gemma 2 always use the embedding.
    pub fn has_head(self) -> bool {
        !matches!(self, Self::Gemma | Self::Gemma2)
    }
}

/// How positions turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rotary {
    pub theta: f64,
    pub scaling: Option<RotaryScaling>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RotaryScaling {
    Linear { factor: f64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DecoderConfig {
    pub architecture: Architecture,
    pub vocab_size: u32,
    pub hidden: u32,
    pub feed_forward: u32,
    pub layers: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Not more than any window that llama.cpp does not know of: within it, a window changes nothing.
    pub context: u32,
    pub rms_norm_eps: f64,
    pub tied: bool,
    pub rotary: Rotary,
    /// θ of the layers with a window, where it is another (Gemma 3).
    pub local_theta: Option<f64>,
    /// For llama.cpp to keep to, and which layers have it (Gemma 2 and 3).
    pub window: Option<u32>,
    pub slides: Vec<bool>,
    pub attention_softcap: Option<f64>,
    pub logit_softcap: Option<f64>,
    pub bos: Option<u32>,
    pub eos: Vec<u32>,
    pub notes: Vec<String>,
}

impl DecoderConfig {
    /// # Errors
    /// No JSON object; a field is missing or out of range; an architecture or a setting that llama.cpp cannot express.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let object: Map<String, Value> = serde_json::from_slice(text)
            .map_err(|error| Error::config("(file)", format!("not a JSON object: {error}")))?;
        Self::of(Fields(&object))
    }

    /// `eos_token_id` of another file of the folder.
    ///
    /// # Errors
    /// No JSON object, or no ids.
    pub fn ends_of(text: &[u8], file: &str, vocab_size: u32) -> Result<Vec<u32>> {
        let object: Map<String, Value> = serde_json::from_slice(text)
            .map_err(|error| Error::config_of(file, &format!("not a JSON object: {error}")))?;
        Fields(&object).token_ids("eos_token_id", vocab_size)
    }

    fn of(fields: Fields<'_>) -> Result<Self> {
        let model_type = fields.get("model_type").and_then(Value::as_str);
        let model_type = model_type.ok_or_else(|| Error::config("model_type", "a text is needed"))?;
        let architecture = Architecture::of(model_type)?;
        check_activation(architecture, fields)?;
        let vocab_size = fields.size("vocab_size", None, 4 << 20)?;
        let hidden = fields.size("hidden_size", None, 1 << 17)?;
        let layers = fields.size("num_hidden_layers", None, 512)?; // LLAMA_MAX_LAYERS
        let heads = fields.size("num_attention_heads", None, 1024)?;
        let kv_heads = fields.size("num_key_value_heads", Some(heads), heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(Error::config("num_key_value_heads", format!("{kv_heads} does not divide {heads} heads")));
        }
        let head_dim = head_dim(architecture, fields, hidden, heads)?;
        let positions = match architecture {
            Architecture::Gemma | Architecture::Gemma2 => 8192,
            Architecture::Gemma3 => 131_072,
            _ => 2048,
        };
        let context = fields.size("max_position_embeddings", Some(positions), 1 << 30)?;
        if fields.flag("use_bidirectional_attention", false)? {
            let problem = "true cannot be said to llama.cpp's decoders, which look back only";
            return Err(Error::not_mapped("config.json, use_bidirectional_attention", problem, SERVE_FOLDER));
        }
        check_attention_scale(architecture, fields, hidden, layers, heads, head_dim)?;
        let (attention_softcap, logit_softcap) = softcaps(architecture, fields)?;
        let (rotary, local_theta) = rotary(architecture, fields, context)?;
        let mut config = Self {
            architecture,
            vocab_size,
            hidden,
            feed_forward: fields.size("intermediate_size", None, 1 << 22)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            context,
            rms_norm_eps: fields.positive("rms_norm_eps", 1e-6)?,
            tied: fields.flag("tie_word_embeddings", architecture.is_gemma())?,
            rotary,
            local_theta,
            window: None,
            slides: Vec::new(),
            attention_softcap,
            logit_softcap,
            bos: fields.token_ids("bos_token_id", vocab_size)?.first().copied(),
            eos: fields.token_ids("eos_token_id", vocab_size)?,
            notes: Vec::new(),
        };
        windows(&mut config, model_type, fields)?;
        config.notes.extend(embedding_note(architecture, hidden));
        Ok(config)
    }
}

/// transformers rounds Gemma's √D to the type that it computes in.
fn embedding_note(architecture: Architecture, hidden: u32) -> Option<String> {
    let (exact, rounded) = (f64::from(hidden).sqrt(), half::bf16::from_f64(f64::from(hidden).sqrt()));
    (architecture.is_gemma() && rounded.to_f64() != exact).then(|| {
        format!("llama.cpp multiplies embeddings by {exact:.4}, and where the model runs in bf16 it is by {rounded}")
    })
}

fn check_activation(architecture: Architecture, fields: Fields<'_>) -> Result<()> {
    let (field, accepted): (_, &[&str]) = match architecture {
        // The first Gemma's configs say "gelu" and mean its tanh approximation.
        Architecture::Gemma => ("hidden_act", &["gelu", "gelu_new", "gelu_pytorch_tanh"]),
        Architecture::Gemma2 | Architecture::Gemma3 => ("hidden_activation", &["gelu_new", "gelu_pytorch_tanh"]),
        _ => ("hidden_act", &["silu", "swish"]),
    };
    match fields.get(field) {
        None => Ok(()),
        Some(Value::String(name)) if accepted.contains(&name.as_str()) => Ok(()),
        Some(other) => {
            let problem = format!("llama.cpp's {} has {} and not {other}", architecture.name(), accepted[0]);
            Err(Error::not_mapped(format!("config.json, {field}"), problem, SERVE_FOLDER))
        }
    }
}

fn head_dim(architecture: Architecture, fields: Fields<'_>, hidden: u32, heads: u32) -> Result<u32> {
    let default = match architecture {
        Architecture::Qwen3 => Some(128),
        _ if architecture.is_gemma() => Some(256),
        _ if hidden.is_multiple_of(heads) => Some(hidden / heads),
        _ => None,
    };
    let head_dim = fields.size("head_dim", default, 1024)?;
    if head_dim % 2 != 0 {
        return Err(Error::config("head_dim", format!("{head_dim} is odd; rotary positions need pairs")));
    }
    if architecture == Architecture::Qwen2 && head_dim * heads != hidden {
        let problem = format!("llama.cpp's qwen2 needs {heads} heads of {head_dim} to make hidden_size {hidden}");
        return Err(Error::not_mapped("config.json, head_dim", problem, SERVE_FOLDER));
    }
    Ok(head_dim)
}

#[cfg(test)]
pub(crate) mod tests;
