//! The metadata that says what model it is: `general.*` and the architecture's own hyperparameters, by llama.cpp's names.

use tailor_quant::Float;

use crate::config::{Architecture, DecoderConfig, RotaryScaling};
use crate::format::{Array, Value, file_type};

/// In the order in which they are written.
pub(crate) type Metadata = Vec<(String, Value)>;

/// Every how many layers one sees everything, where llama.cpp is told nothing.
const GEMMA2_PATTERN: usize = 2;
const GEMMA3_PATTERN: usize = 6;

pub(crate) fn general(kind: &str, architecture: Architecture, name: &str, float: Float) -> Metadata {
    let mut metadata = vec![
        ("general.type".to_owned(), kind.into()),
        ("general.architecture".to_owned(), architecture.name().into()),
        ("general.file_type".to_owned(), file_type(float).into()),
    ];
    if !name.is_empty() {
        metadata.push(("general.name".to_owned(), name.into()));
    }
    metadata
}

pub(crate) fn hyperparameters(config: &DecoderConfig) -> Metadata {
    let mut metadata = Vec::new();
    let mut add = |key: &str, value: Value| metadata.push((format!("{}.{key}", config.architecture.name()), value));
    add("vocab_size", config.vocab_size.into());
    add("context_length", config.context.into());
    add("embedding_length", config.hidden.into());
    add("block_count", config.layers.into());
    add("feed_forward_length", config.feed_forward.into());
    add("attention.head_count", config.heads.into());
    add("attention.head_count_kv", config.kv_heads.into());
    add("attention.key_length", config.head_dim.into());
    add("attention.value_length", config.head_dim.into());
    add("attention.layer_norm_rms_epsilon", (config.rms_norm_eps as f32).into());
    add("rope.dimension_count", config.head_dim.into());
    add("rope.freq_base", (config.rotary.theta as f32).into());
    if let Some(RotaryScaling::Linear { factor }) = config.rotary.scaling {
        add("rope.scaling.type", "linear".into());
        add("rope.scaling.factor", (factor as f32).into());
    }
    if let Some(window) = config.window {
        add("attention.sliding_window", window.into());
        if let Some(theta) = config.local_theta {
            add("rope.freq_base_swa", (theta as f32).into());
        }
        if !is_usual(config) {
            add("attention.sliding_window_pattern", Value::Array(Array::Bool(config.slides.clone())));
        }
    }
    if let Some(bound) = config.attention_softcap {
        add("attn_logit_softcapping", (bound as f32).into());
    }
    if let Some(bound) = config.logit_softcap {
        add("final_logit_softcapping", (bound as f32).into());
    }
    metadata
}

/// Whether the layers with a window are those that llama.cpp takes without being told. Releases before it could be told
/// read such models all the same.
fn is_usual(config: &DecoderConfig) -> bool {
    let pattern = match config.architecture {
        Architecture::Gemma2 => GEMMA2_PATTERN,
        Architecture::Gemma3 => GEMMA3_PATTERN,
        _ => return false,
    };
    config.slides.iter().enumerate().all(|(layer, slides)| *slides == (layer % pattern < pattern - 1))
}
