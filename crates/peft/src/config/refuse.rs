//! The settings of PEFT that change what an adapter computes and that Tailor does not reproduce.

use serde_json::{Map, Value};

use super::clip;
use crate::error::{self, Error, Result};

/// Fields that must be null, false or empty, and what they would mean.
const MUST_BE_OFF: [(&str, &str); 14] = [
    ("trainable_token_indices", "trained token embeddings are not supported; train without them"),
    ("layer_replication", "replicated layers change the base; merge the adapter into its base"),
    ("target_parameters", "LoRA on bare parameters is not supported; use target_modules"),
    ("use_qalora", "QA-LoRA pools the input before lora_A and is not supported"),
    ("use_bdlora", "block-diagonal LoRA is not supported"),
    ("alora_invocation_tokens", "activated LoRA is not supported"),
    ("arrow_config", "Arrow routing is not supported"),
    ("kasa_config", "KaSA adapters are not supported"),
    ("monteclora_config", "MonteCLoRA adapters are not supported"),
    ("velora_config", "VeLoRA adapters are not supported"),
    ("lora_ga_config", "LoRA-GA changes the base; convert to a plain LoRA when saving"),
    ("megatron_config", "Megatron's parallel layers are not supported"),
    ("corda_config", "CorDA changes the base; convert to a plain LoRA when saving"),
    ("ensure_weight_tying", "adapters on tied weights are not supported"),
];

/// Fields without influence on what the saved adapter computes: kept as they are.
const INERT: [&str; 11] = [
    "auto_mapping",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "ephemeral_gpu_offload",
];

/// Fields that `AdapterConfig` or this module reads.
const READ: [&str; 18] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_rslora",
    "use_dora",
];

/// Initialisations that leave the base as it was.
const HARMLESS_INITS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

pub(super) fn unsupported(raw: &Map<String, Value>) -> Result<()> {
    let refuse = |field: &str, value: &Value, reason: &str| {
        Err(Error::Unsupported { field: error::clip(field, 200), value: clip(value), reason: reason.to_owned() })
    };
    match raw.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(other) => return refuse("peft_type", other, "only LORA and PROMPT_TUNING adapters are supported"),
        None => return Err(Error::config("peft_type", "missing; this is no PEFT adapter")),
    }
    if let (Some(bias), Some(Value::Bool(true))) = (raw.get("lora_bias"), raw.get("use_dora"))
        && !is_off(bias)
    {
        return refuse(
            "lora_bias",
            bias,
            "PEFT knows no bias of lora_B together with use_dora; train with one of them",
        );
    }
    match raw.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => {}
        Some(Value::String(init)) if HARMLESS_INITS.contains(&init.as_str()) => {}
        Some(other) => {
            let reason = "this initialisation changes the base; save with path_initial_model_for_weight_conversion \
                          to get a plain LoRA";
            return refuse("init_lora_weights", other, reason);
        }
    }
    for (field, reason) in MUST_BE_OFF {
        if let Some(value) = raw.get(field).filter(|value| !is_off(value)) {
            return refuse(field, value, reason);
        }
    }
    for (field, value) in raw {
        let known = READ.contains(&field.as_str()) || INERT.contains(&field.as_str());
        if !known && !is_off(value) && !MUST_BE_OFF.iter().any(|(name, _)| name == field) {
            return refuse(field, value, "this setting is not known to Tailor; remove it if the adapter needs it not");
        }
    }
    Ok(())
}

pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(values) => values.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) | Value::String(_) => false,
    }
}
