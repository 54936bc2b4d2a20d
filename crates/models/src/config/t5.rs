//! T5's config: v1.1 and mT5 (gated GELU), and the first T5 (ReLU).

use super::Fields;
use crate::config::Activation;
use crate::{Error, Result};

#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    pub model_type: String,
    pub vocab_size: i64,
    pub d_model: i64,
    pub d_kv: i64,
    pub d_ff: i64,
    pub num_layers: i64,
    pub num_decoder_layers: i64,
    pub num_heads: i64,
    pub relative_attention_num_buckets: i64,
    pub relative_attention_max_distance: i64,
    pub activation: Activation,
    pub gated: bool,
    pub layer_norm_epsilon: f64,
    pub initializer_factor: f64,
    /// Whether a new model shares the head with the embeddings. A loaded one shares it when it has no `lm_head`.
    pub tie_word_embeddings: bool,
    /// Whether the decoder's output is multiplied by d_model^-0.5 before the head.
    pub scale_decoder_outputs: bool,
    pub pad_token_id: u32,
    pub decoder_start_token_id: u32,
    pub eos_token_ids: Vec<u32>,
}

impl T5Config {
    pub(super) fn of(model_type: &str, fields: &Fields<'_>) -> Result<Self> {
        let vocab_size = fields.size("vocab_size", 4 << 20)?;
        let num_layers = fields.size("num_layers", 1024)?;
        let relative_attention_num_buckets = fields.size_or("relative_attention_num_buckets", Some(32), 4096)?;
        let relative_attention_max_distance = fields.size_or("relative_attention_max_distance", Some(128), 1 << 20)?;
        if relative_attention_num_buckets % 4 != 0 || relative_attention_max_distance < relative_attention_num_buckets {
            let problem = format!(
                "{relative_attention_num_buckets} is not a multiple of 4 up to relative_attention_max_distance \
                 {relative_attention_max_distance}"
            );
            return Err(Error::config("relative_attention_num_buckets", problem));
        }
        let projection = fields.get("feed_forward_proj").and_then(|value| value.as_str()).unwrap_or("relu");
        let (gated, activation) = match projection {
            "gated-gelu" => (true, Activation::GeluTanh),
            "gated-silu" => (true, Activation::Silu),
            "relu" => (false, Activation::Relu),
            other => {
                let problem = format!("{other:?} is not supported; supported are gated-gelu, gated-silu, relu");
                return Err(Error::config("feed_forward_proj", problem));
            }
        };
        let tied = fields.flag("tie_word_embeddings", true)?;
        let scaled = match model_type {
            "mt5" => false,
            _ => fields.flag("scale_decoder_outputs", tied)?,
        };
        let one_id = |field: &str, default: u32| -> Result<u32> {
            Ok(fields.token_ids(field, vocab_size)?.first().copied().unwrap_or(default))
        };
        let pad_token_id = one_id("pad_token_id", 0)?;
        Ok(Self {
            model_type: model_type.to_owned(),
            vocab_size,
            d_model: fields.size("d_model", 1 << 17)?,
            d_kv: fields.size("d_kv", 4096)?,
            d_ff: fields.size("d_ff", 1 << 20)?,
            num_layers,
            num_decoder_layers: fields.size_or("num_decoder_layers", Some(num_layers), 1024)?,
            num_heads: fields.size("num_heads", 1024)?,
            relative_attention_num_buckets,
            relative_attention_max_distance,
            activation,
            gated,
            layer_norm_epsilon: fields.positive("layer_norm_epsilon", 1e-6)?,
            initializer_factor: fields.positive("initializer_factor", 1.0)?,
            tie_word_embeddings: tied,
            scale_decoder_outputs: scaled,
            pad_token_id,
            decoder_start_token_id: one_id("decoder_start_token_id", pad_token_id)?,
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
        })
    }
}
