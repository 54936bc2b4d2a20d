//! What a layer sees and how positions turn in it: the fields of config.json that differ between releases of transformers
//! and between llama.cpp's architectures.

use serde_json::Value;

use super::fields::Fields;
use super::{Architecture, DecoderConfig, Rotary, RotaryScaling, SERVE_FOLDER};
use crate::{Error, Result};

/// llama.cpp knows these models by their number of layers, and by it scales their queries by hidden/heads.
const GEMMA2_27B_LAYERS: u32 = 46;
const GEMMA3_27B_LAYERS: u32 = 62;
/// Where config.json does not say; `null` means none.
const DEFAULT_WINDOW: u32 = 4096;

/// llama.cpp takes the scale of the scores from the sizes alone.
pub(super) fn check_attention_scale(
    architecture: Architecture,
    fields: Fields<'_>,
    hidden: u32,
    layers: u32,
    heads: u32,
    head_dim: u32,
) -> Result<()> {
    let large = match architecture {
        Architecture::Gemma2 => GEMMA2_27B_LAYERS,
        Architecture::Gemma3 => GEMMA3_27B_LAYERS,
        _ => return Ok(()),
    };
    let scalar = fields.positive("query_pre_attn_scalar", 256.0)?;
    let theirs = if layers == large { hidden / heads } else { head_dim };
    if scalar == f64::from(theirs) {
        return Ok(());
    }
    let name = architecture.name();
    let problem = format!("{scalar}, and llama.cpp's {name} of {layers} layers takes {theirs}, whatever the file says");
    Err(Error::not_mapped("config.json, query_pre_attn_scalar", problem, SERVE_FOLDER))
}

/// The bounds of scores and of logits.
pub(super) fn softcaps(architecture: Architecture, fields: Fields<'_>) -> Result<(Option<f64>, Option<f64>)> {
    const FIELDS: (&str, &str) = ("attn_logit_softcapping", "final_logit_softcapping");
    match architecture {
        Architecture::Gemma2 => {
            for field in [FIELDS.0, FIELDS.1] {
                if fields.is_null(field) {
                    let problem = "null, and llama.cpp's gemma2 always bounds them";
                    return Err(Error::not_mapped(format!("config.json, {field}"), problem, SERVE_FOLDER));
                }
            }
            Ok((Some(fields.positive(FIELDS.0, 50.0)?), Some(fields.positive(FIELDS.1, 30.0)?)))
        }
        Architecture::Gemma3 => {
            if let Some(bound) = fields.get(FIELDS.0) {
                let problem = format!("{bound}, and llama.cpp's gemma3 does not bound scores");
                return Err(Error::not_mapped(format!("config.json, {}", FIELDS.0), problem, SERVE_FOLDER));
            }
            let bound = fields.get(FIELDS.1).map(|_| fields.positive(FIELDS.1, 30.0));
            Ok((None, bound.transpose()?))
        }
        _ => Ok((None, None)),
    }
}

/// The positions of layers that see everything, and θ of those with a window (Gemma 3).
pub(super) fn rotary(architecture: Architecture, fields: Fields<'_>, context: u32) -> Result<(Rotary, Option<f64>)> {
    // transformers 5 has `rope_parameters`, for Gemma 3 by kind of layer; before there were `rope_theta` and `rope_scaling`.
    let parameters = fields.nested("rope_parameters")?;
    if architecture != Architecture::Gemma3 {
        return Ok((one_rotary(architecture, parameters, fields, 1e4, context)?, None));
    }
    let (full, local) = match parameters {
        Some(parameters) => (parameters.nested("full_attention")?, parameters.nested("sliding_attention")?),
        None => (None, None),
    };
    let local_theta = fields.positive("rope_local_base_freq", 1e4)?;
    let local = match local {
        Some(local) => one_rotary(architecture, Some(local), fields, local_theta, context)?,
        None => Rotary { theta: local_theta, scaling: None },
    };
    if local.scaling.is_some() {
        let problem = "llama.cpp's gemma3 does not scale the positions of layers with a window";
        return Err(Error::not_mapped("config.json, rope_parameters.sliding_attention", problem, SERVE_FOLDER));
    }
    Ok((one_rotary(architecture, full, fields, 1e6, context)?, Some(local.theta)))
}

fn one_rotary(
    architecture: Architecture,
    parameters: Option<Fields<'_>>,
    fields: Fields<'_>,
    theta: f64,
    context: u32,
) -> Result<Rotary> {
    let theta = match parameters {
        Some(parameters) if parameters.get("rope_theta").is_some() => parameters.positive("rope_theta", theta)?,
        _ => fields.positive("rope_theta", theta)?,
    };
    let scaling = match parameters {
        Some(parameters) => Some(parameters),
        None => fields.nested("rope_scaling")?,
    };
    let Some(scaling) = scaling else { return Ok(Rotary { theta, scaling: None }) };
    let partial =
        |fields: Fields<'_>| fields.get("partial_rotary_factor").is_some_and(|part| part.as_f64() != Some(1.0));
    if partial(scaling) || partial(fields) {
        return Err(Error::not_mapped("config.json, partial_rotary_factor", "only 1 is mapped", SERVE_FOLDER));
    }
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
    let scaling = match kind {
        None | Some("default") => None,
        Some("linear") => Some(RotaryScaling::Linear { factor: scaling.positive("factor", 1.0)? }),
        Some("llama3") if architecture == Architecture::Llama => {
            let (low, high) = (scaling.positive("low_freq_factor", 1.0)?, scaling.positive("high_freq_factor", 4.0)?);
            if high <= low {
                let problem = format!("{high} is not above low_freq_factor {low}");
                return Err(Error::config("rope_scaling.high_freq_factor", problem));
            }
            let original = scaling.positive("original_max_position_embeddings", f64::from(context))?;
            Some(RotaryScaling::Llama3 { factor: scaling.positive("factor", 8.0)?, low, high, original })
        }
        Some(other) => {
            let problem = format!("{other:?} is not mapped for llama.cpp's {}", architecture.name());
            return Err(Error::not_mapped("config.json, rope_type", problem, SERVE_FOLDER));
        }
    };
    Ok(Rotary { theta, scaling })
}

/// Which layers look back on a window only. Gemma 2 and 3 have them in llama.cpp; elsewhere the context ends where the
/// window does, so that nothing is seen that transformers would not see.
pub(super) fn windows(config: &mut DecoderConfig, model_type: &str, fields: Fields<'_>) -> Result<()> {
    let slides = sliding_layers(config, model_type, fields)?;
    if !slides.contains(&true) {
        return Ok(());
    }
    let window = fields.size("sliding_window", Some(DEFAULT_WINDOW), 1 << 30)?;
    match config.architecture {
        Architecture::Gemma2 | Architecture::Gemma3 => {
            config.window = Some(window);
            config.slides = slides;
        }
        _ if window < config.context => {
            config.notes.push(format!(
                "the model looks back on {window} tokens and llama.cpp's {} on all; the file says a context of {window} \
                 instead of {}, within which both see the same",
                config.architecture.name(),
                config.context
            ));
            config.context = window;
        }
        _ => {}
    }
    Ok(())
}

fn sliding_layers(config: &DecoderConfig, model_type: &str, fields: Fields<'_>) -> Result<Vec<bool>> {
    let by_rule = |slides: &dyn Fn(u32) -> bool| Ok((0..config.layers).map(slides).collect());
    let is_qwen = matches!(config.architecture, Architecture::Qwen2 | Architecture::Qwen3);
    let by_layer = is_qwen || matches!(config.architecture, Architecture::Gemma2 | Architecture::Gemma3);
    let has_window = !fields.is_null("sliding_window") && (!is_qwen || fields.flag("use_sliding_window", false)?);
    if let Some(listed) = fields.get("layer_types").filter(|_| by_layer) {
        let kinds: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let known = kinds.iter().all(|kind| matches!(*kind, "full_attention" | "sliding_attention"));
        if kinds.len() != config.layers as usize || !known {
            let problem = format!("{} texts full_attention or sliding_attention are needed", config.layers);
            return Err(Error::config("layer_types", problem));
        }
        return Ok(kinds.iter().map(|kind| *kind == "sliding_attention").collect());
    }
    match (config.architecture, model_type) {
        (Architecture::Llama, "mistral") => by_rule(&|_| has_window),
        (Architecture::Qwen2 | Architecture::Qwen3, _) => {
            let first = fields.get("max_window_layers").map_or(Some(28), Value::as_u64);
            let first = first.ok_or_else(|| Error::config("max_window_layers", "is no whole number"))?;
            by_rule(&|layer| has_window && u64::from(layer) >= first)
        }
        (Architecture::Gemma2, _) => by_rule(&|layer| layer % 2 == 0),
        (Architecture::Gemma3, _) => {
            let pattern = fields.size("sliding_window_pattern", Some(6), 1024)?;
            by_rule(&|layer| (layer + 1) % pattern != 0)
        }
        _ => by_rule(&|_| false),
    }
}
