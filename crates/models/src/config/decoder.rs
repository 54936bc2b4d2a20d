//! A decoder's config: Llama 2 and 3, Mistral, Qwen2, Qwen3, Gemma 1 to 3, told apart by data alone.

use super::Fields;
use crate::config::Activation;
use crate::{Error, Result};

#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub model_type: String,
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_attention_heads: i64,
    pub num_key_value_heads: i64,
    pub head_dim: i64,
    pub max_position_embeddings: i64,
    pub activation: Activation,
    pub rms_norm_eps: f64,
    pub initializer_range: f64,
    pub tie_word_embeddings: bool,
    /// Bias on q, k and v; on o; on the feed-forward.
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// Norm of each head's queries and keys before RoPE (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// Norms multiply by 1 + w and embeddings are multiplied by √D (Gemma).
    pub gemma_scaling: bool,
    /// A norm after attention and feed-forward as well as before (Gemma 2 and 3).
    pub post_norms: bool,
    /// What scores are multiplied by.
    pub attention_scale: f64,
    /// Bounds of the scores and of the logits (Gemma 2).
    pub attention_softcap: Option<f64>,
    pub logit_softcap: Option<f64>,
    /// The kinds of attention, and which of them each layer has.
    pub attention_kinds: Vec<AttentionKind>,
    pub layers: Vec<usize>,
    pub eos_token_ids: Vec<u32>,
    pub bos_token_id: Option<u32>,
}

/// What a layer sees, and how positions turn in it.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionKind {
    /// Tokens a query can look back on, itself included.
    pub sliding_window: Option<i64>,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
}

/// Frequencies changed for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// All positions divided by a factor.
    Linear { factor: f64 },
    /// Llama 3.1: long wavelengths divided, short ones kept, a smooth passage between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: f64 },
}

/// What the model type says and config.json does not.
struct Traits {
    gemma: bool,
    head_dim: Option<i64>,
    max_position_embeddings: i64,
    rope_theta: f64,
}

impl DecoderConfig {
    pub(super) fn of(model_type: &str, fields: &Fields<'_>) -> Result<Self> {
        let traits = Traits::of(model_type);
        let vocab_size = fields.size("vocab_size", 4 << 20)?;
        let hidden_size = fields.size("hidden_size", 1 << 17)?;
        let num_attention_heads = fields.size("num_attention_heads", 1024)?;
        let num_key_value_heads = fields.size_or("num_key_value_heads", Some(num_attention_heads), 1024)?;
        if num_attention_heads % num_key_value_heads != 0 {
            let problem = format!("{num_key_value_heads} does not divide num_attention_heads {num_attention_heads}");
            return Err(Error::config("num_key_value_heads", problem));
        }
        let head_dim_known = fields.get("head_dim").is_some() || traits.head_dim.is_some();
        if !head_dim_known && hidden_size % num_attention_heads != 0 {
            let problem = format!("{num_attention_heads} does not divide hidden_size {hidden_size}");
            return Err(Error::config("num_attention_heads", problem));
        }
        let default_head_dim = traits.head_dim.unwrap_or((hidden_size / num_attention_heads).max(1));
        let head_dim = fields.size_or("head_dim", Some(default_head_dim), 1024)?;
        if head_dim % 2 != 0 {
            return Err(Error::config("head_dim", format!("{head_dim} is odd; rotary positions need pairs")));
        }
        let default_positions = Some(traits.max_position_embeddings);
        let max_position_embeddings = fields.size_or("max_position_embeddings", default_positions, 1 << 24)?;
        if fields.flag("use_bidirectional_attention", false)? {
            return Err(Error::config(
                "use_bidirectional_attention",
                "true is not supported: a decoder looks back only",
            ));
        }
        let (attention_kinds, layers) = attention_kinds(model_type, fields, &traits, max_position_embeddings)?;
        let bias = fields.flag("attention_bias", false)?;
        let (qkv_bias, o_bias) = if model_type == "qwen2" { (true, false) } else { (bias, bias) };
        let scaled_by_field = matches!(model_type, "gemma2" | "gemma3_text");
        let attention_scale = match scaled_by_field {
            true => fields.positive("query_pre_attn_scalar", 256.0)?,
            false => head_dim as f64,
        };
        let softcap = |field: &str, default: f64| {
            let by_default = model_type == "gemma2" && !fields.is_null(field);
            let given = scaled_by_field && fields.get(field).is_some();
            if by_default || given { fields.positive(field, default).map(Some) } else { Ok(None) }
        };
        Ok(Self {
            model_type: model_type.to_owned(),
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", 1 << 20)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            activation: activation(model_type, fields)?,
            rms_norm_eps: fields.positive("rms_norm_eps", 1e-6)?,
            initializer_range: fields.positive("initializer_range", 0.02)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", traits.gemma)?,
            qkv_bias,
            o_bias,
            mlp_bias: fields.flag("mlp_bias", false)?,
            qk_norm: matches!(model_type, "qwen3" | "gemma3_text"),
            gemma_scaling: traits.gemma,
            post_norms: scaled_by_field,
            attention_scale: attention_scale.powf(-0.5),
            attention_softcap: softcap("attn_logit_softcapping", 50.0)?,
            logit_softcap: softcap("final_logit_softcapping", 30.0)?,
            attention_kinds,
            layers,
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
            bos_token_id: fields.token_ids("bos_token_id", vocab_size)?.first().copied(),
        })
    }
}

impl Traits {
    fn of(model_type: &str) -> Self {
        let gemma = model_type.starts_with("gemma");
        Self {
            gemma,
            head_dim: match model_type {
                "qwen3" => Some(128),
                _ if gemma => Some(256),
                _ => None,
            },
            max_position_embeddings: match model_type {
                "gemma" | "gemma2" => 8192,
                "gemma3_text" => 131_072,
                _ => 2048,
            },
            rope_theta: if model_type == "gemma3_text" { 1e6 } else { 1e4 },
        }
    }
}

fn activation(model_type: &str, fields: &Fields<'_>) -> Result<Activation> {
    match model_type {
        // The first Gemma's configs say "gelu" and mean its tanh approximation.
        "gemma" if fields.get("hidden_act").is_some_and(|name| name == "gelu") => Ok(Activation::GeluTanh),
        "gemma" => fields.activation("hidden_act", "gelu_pytorch_tanh"),
        "gemma2" | "gemma3_text" => fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        _ => fields.activation("hidden_act", "silu"),
    }
}

/// The kinds of attention, and each layer's.
fn attention_kinds(
    model_type: &str,
    fields: &Fields<'_>,
    traits: &Traits,
    max_positions: i64,
) -> Result<(Vec<AttentionKind>, Vec<usize>)> {
    let sliding = sliding_layers(model_type, fields)?;
    let window = match sliding.contains(&true) {
        true => Some(fields.size_or("sliding_window", Some(DEFAULT_WINDOW), 1 << 24)?),
        false => None,
    };
    let (full_rope, local_rope) = ropes(model_type, fields, traits, max_positions)?;
    let kind = |(rope_theta, rope_scaling), sliding_window| AttentionKind { sliding_window, rope_theta, rope_scaling };
    let mut kinds = Vec::new();
    if sliding.contains(&false) {
        kinds.push(kind(full_rope, None));
    }
    if window.is_some() {
        kinds.push(kind(local_rope, window));
    }
    let last = kinds.len() - 1;
    Ok((kinds, sliding.into_iter().map(|slides| if slides { last } else { 0 }).collect()))
}

/// Where config.json does not say, in every family that has windows; `null` means none.
const DEFAULT_WINDOW: i64 = 4096;

/// For each layer, whether it looks back on a window only.
fn sliding_layers(model_type: &str, fields: &Fields<'_>) -> Result<Vec<bool>> {
    let count = fields.size("num_hidden_layers", 1024)?;
    let by_rule = |slides: &dyn Fn(i64) -> bool| Ok((0..count).map(slides).collect());
    let qwen = matches!(model_type, "qwen2" | "qwen3");
    let by_layer = qwen || matches!(model_type, "gemma2" | "gemma3_text");
    let has_window = !fields.is_null("sliding_window") && (!qwen || fields.flag("use_sliding_window", false)?);
    if let Some(listed) = fields.get("layer_types").filter(|_| by_layer) {
        let listed = listed.as_array().ok_or_else(|| Error::config("layer_types", "is no list"))?;
        if listed.len() as i64 != count {
            let problem = format!("{} entries for num_hidden_layers {count}", listed.len());
            return Err(Error::config("layer_types", problem));
        }
        return listed
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") if qwen && !has_window => Err(Error::config(
                    "layer_types",
                    "\"sliding_attention\" needs use_sliding_window and sliding_window",
                )),
                Some("sliding_attention") => Ok(true),
                _ => {
                    let problem = format!("{kind} is not one of \"full_attention\", \"sliding_attention\"");
                    Err(Error::config("layer_types", problem))
                }
            })
            .collect();
    }
    match model_type {
        "mistral" => by_rule(&|_| has_window),
        "qwen2" | "qwen3" => {
            let first = fields.count_or("max_window_layers", 28, 1024)?;
            by_rule(&|layer| has_window && layer >= first)
        }
        "gemma2" => by_rule(&|layer| layer % 2 == 0),
        "gemma3_text" => {
            let pattern = fields.size_or("sliding_window_pattern", Some(6), 1024)?;
            by_rule(&|layer| (layer + 1) % pattern != 0)
        }
        _ => by_rule(&|_| false),
    }
}

type Rope = (f64, Option<RopeScaling>);

/// The positions of layers that see everything, and of those with a window.
///
/// transformers 5 has `rope_parameters` with everything in it, for Gemma 3 by kind of layer; before there were
/// `rope_theta`, `rope_local_base_freq` and `rope_scaling`.
fn ropes(model_type: &str, fields: &Fields<'_>, traits: &Traits, max_positions: i64) -> Result<(Rope, Rope)> {
    let parameters = fields.nested("rope_parameters")?;
    if model_type != "gemma3_text" {
        let rope = rope(parameters, fields, traits.rope_theta, max_positions)?;
        return Ok((rope.clone(), rope));
    }
    let (full, local) = match parameters {
        Some(parameters) => (parameters.nested("full_attention")?, parameters.nested("sliding_attention")?),
        None => (None, None),
    };
    let local_theta = fields.positive("rope_local_base_freq", 1e4)?;
    let local = match local {
        Some(local) => rope(Some(local), fields, local_theta, max_positions)?,
        None => (local_theta, None), // `rope_scaling` is for the full layers alone
    };
    Ok((rope(full, fields, traits.rope_theta, max_positions)?, local))
}

fn rope(parameters: Option<Fields<'_>>, fields: &Fields<'_>, theta: f64, max_positions: i64) -> Result<Rope> {
    let theta = match &parameters {
        Some(parameters) if parameters.get("rope_theta").is_some() => parameters.positive("rope_theta", theta)?,
        _ => fields.positive("rope_theta", theta)?,
    };
    let scaling = match parameters {
        Some(parameters) => Some(parameters),
        None => fields.nested("rope_scaling")?,
    };
    let Some(scaling) = scaling else { return Ok((theta, None)) };
    if scaling.get("partial_rotary_factor").is_some_and(|factor| factor.as_f64() != Some(1.0)) {
        return Err(Error::config("rope_parameters.partial_rotary_factor", "only 1 is supported"));
    }
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(|kind| kind.as_str());
    let scaling = match kind {
        None | Some("default") => None,
        Some("linear") => Some(RopeScaling::Linear { factor: scaling.positive("factor", 1.0)? }),
        Some("llama3") => {
            let (low, high) = (scaling.positive("low_freq_factor", 1.0)?, scaling.positive("high_freq_factor", 4.0)?);
            if high <= low {
                let problem = format!("{high} is not above low_freq_factor {low}");
                return Err(Error::config("rope_scaling.high_freq_factor", problem));
            }
            Some(RopeScaling::Llama3 {
                factor: scaling.positive("factor", 8.0)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: scaling
                    .positive("original_max_position_embeddings", max_positions as f64)?,
            })
        }
        Some(other) => {
            let problem = format!("{other:?} is not supported; supported are default, linear, llama3");
            return Err(Error::config("rope_scaling.rope_type", problem));
        }
    };
    Ok((theta, scaling))
}
