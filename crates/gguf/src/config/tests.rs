use serde_json::{Value, json};

use super::*;

pub(crate) fn llama() -> Value {
    json!({ "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "tie_word_embeddings": false })
}

pub(crate) fn with(model_type: &str, fields: Value) -> Value {
    let mut config = llama();
    config["model_type"] = model_type.into();
    if model_type.starts_with("gemma") {
        config["hidden_act"] = "gelu_pytorch_tanh".into();
        config["tie_word_embeddings"] = true.into();
        config["head_dim"] = 16.into();
        config["query_pre_attn_scalar"] = 16.into();
    }
    for (field, value) in fields.as_object().unwrap() {
        config[field] = value.clone();
    }
    config
}

pub(crate) fn parse(config: &Value) -> Result<DecoderConfig> {
    DecoderConfig::parse(config.to_string().as_bytes())
}

#[track_caller]
fn refused(config: &Value, words: &[&str]) {
    let message = parse(config).unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is missing in: {message}");
    }
}

#[test]
fn families_have_llama_cpps_names() {
    for (ours, theirs) in [
        ("llama", "llama"),
        ("mistral", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("gemma", "gemma"),
        ("gemma2", "gemma2"),
        ("gemma3_text", "gemma3"),
    ] {
        assert_eq!(parse(&with(ours, json!({}))).unwrap().architecture.name(), theirs);
    }
    refused(&with("t5", json!({})), &["\"t5\"", "gemma3_text", "transformers"]);
}

#[test]
fn a_window_that_llama_cpp_does_not_know_ends_the_context() {
    let mistral = parse(&with("mistral", json!({ "sliding_window": 128 }))).unwrap();
    assert_eq!((mistral.context, mistral.window), (128, None));
    assert!(mistral.notes[0].contains("128"), "{:?}", mistral.notes);
    let whole = parse(&with("mistral", json!({ "sliding_window": null }))).unwrap();
    assert_eq!((whole.context, whole.notes.len()), (512, 0));
    let qwen = json!({ "use_sliding_window": true, "sliding_window": 64, "max_window_layers": 1 });
    assert_eq!(parse(&with("qwen2", qwen)).unwrap().context, 64);
    let off = json!({ "use_sliding_window": false, "sliding_window": 64, "max_window_layers": 1 });
    assert_eq!(parse(&with("qwen2", off)).unwrap().context, 512);
}

#[test]
fn gemmas_windows_stay_and_the_unusual_ones_are_listed() {
    let usual = parse(&with("gemma2", json!({ "sliding_window": 128 }))).unwrap();
    assert_eq!((usual.context, usual.window, usual.slides.as_slice()), (512, Some(128), [true, false].as_slice()));
    let has_pattern = |config: &DecoderConfig| {
        crate::keys::hyperparameters(config).iter().any(|(key, _)| key.ends_with("sliding_window_pattern"))
    };
    assert!(!has_pattern(&usual));
    let types = json!({ "sliding_window": 128, "layer_types": ["full_attention", "sliding_attention"] });
    assert!(has_pattern(&parse(&with("gemma3_text", types)).unwrap()));
}

#[test]
fn gemmas_factor_of_embeddings_is_told_where_bf16_rounds_it() {
    let notes = |hidden: u32| parse(&with("gemma", json!({ "hidden_size": hidden }))).unwrap().notes;
    assert_eq!(notes(2304), Vec::<String>::new());
    assert!(notes(3072)[0].contains("55.4256") && notes(3072)[0].contains("55.5"), "{:?}", notes(3072));
}

#[test]
fn positions_are_read_from_old_and_new_configs() {
    let old = json!({ "rope_theta": 5e5, "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 256 } });
    let new = json!({ "rope_parameters": { "rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 256 } });
    let (old, new) = (parse(&with("llama", old)).unwrap(), parse(&with("llama", new)).unwrap());
    assert_eq!(old.rotary, new.rotary);
    assert!(matches!(old.rotary.scaling, Some(RotaryScaling::Llama3 { original: 256.0, .. })));
    let gemma3 = json!({ "sliding_window": 4, "rope_parameters": { "full_attention": { "rope_theta": 1e6, "rope_type": "linear",
        "factor": 8.0 }, "sliding_attention": { "rope_theta": 2e4, "rope_type": "default" } } });
    let gemma3 = parse(&with("gemma3_text", gemma3)).unwrap();
    assert_eq!((gemma3.rotary.theta, gemma3.local_theta), (1e6, Some(2e4)));
    assert_eq!(gemma3.rotary.scaling, Some(RotaryScaling::Linear { factor: 8.0 }));
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused_by_name() {
    let scaling = |kind: &str| json!({ "rope_scaling": { "rope_type": kind, "factor": 4.0 } });
    refused(&with("llama", scaling("yarn")), &["rope_type", "yarn"]);
    refused(&with("qwen3", scaling("llama3")), &["rope_type", "llama3", "qwen3"]);
    refused(
        &with("llama", json!({ "partial_rotary_factor": 0.5 , "rope_scaling": { "rope_type": "default" } })),
        &["partial_rotary"],
    );
    refused(&with("llama", json!({ "hidden_act": "gelu" })), &["hidden_act", "silu", "gelu"]);
    refused(&with("llama", json!({ "head_dim": 17 })), &["head_dim", "17", "odd"]);
    refused(&with("qwen2", json!({ "head_dim": 32 })), &["head_dim", "qwen2", "64"]);
    refused(&with("gemma2", json!({ "query_pre_attn_scalar": 24 })), &["query_pre_attn_scalar", "24", "16"]);
    refused(&with("gemma2", json!({ "attn_logit_softcapping": null })), &["attn_logit_softcapping", "gemma2"]);
    refused(&with("gemma3_text", json!({ "attn_logit_softcapping": 50.0 })), &["attn_logit_softcapping", "50"]);
    refused(&with("gemma", json!({ "use_bidirectional_attention": true })), &["use_bidirectional_attention"]);
}

#[test]
fn a_field_that_is_wrong_is_named() {
    refused(&with("llama", json!({ "vocab_size": -1 })), &["config.json, vocab_size", "-1"]);
    refused(&with("llama", json!({ "num_key_value_heads": 3 })), &["num_key_value_heads", "3", "4"]);
    refused(&with("llama", json!({ "rms_norm_eps": "x" })), &["rms_norm_eps"]);
    refused(&with("llama", json!({ "eos_token_id": [2, 300] })), &["eos_token_id", "300"]);
    assert!(DecoderConfig::parse(b"[]").is_err());
}
