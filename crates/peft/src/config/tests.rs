use super::*;

fn parse(extra: &str) -> Result<AdapterConfig> {
    let separator = if extra.is_empty() { "" } else { "," };
    AdapterConfig::parse(
        format!(
            r#"{{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj","v_proj"]{separator}{extra}}}"#
        )
        .as_bytes(),
    )
}

#[test]
fn scale_is_alpha_over_rank_or_its_root() {
    let path = "model.layers.0.self_attn.q_proj";
    assert_eq!(parse("").expect("plain").scale_for(path), 2.0);
    assert_eq!(parse(r#""use_rslora":true"#).expect("rslora").scale_for(path), 4.0);
}

#[test]
fn rank_and_alpha_patterns_count_for_the_modules_they_match() {
    let config = parse(r#""rank_pattern":{"v_proj":16},"alpha_pattern":{"layers.1.self_attn.v_proj":64}"#).expect("ok");
    assert_eq!(config.rank_for("model.layers.0.self_attn.v_proj"), 16);
    assert_eq!(config.scale_for("model.layers.0.self_attn.v_proj"), 0.5);
    assert_eq!(config.scale_for("model.layers.1.self_attn.v_proj"), 4.0);
    assert_eq!(config.scale_for("model.layers.1.self_attn.q_proj"), 2.0);
}

#[test]
fn targets_follow_names_patterns_exclusions_and_layers() {
    let names = parse("").expect("names");
    assert!(names.targets("model.layers.0.self_attn.q_proj"));
    assert!(!names.targets("model.layers.0.self_attn.k_proj"));
    let layers = parse(r#""layers_to_transform":[1]"#).expect("layers");
    assert!(!layers.targets("model.layers.0.self_attn.q_proj"));
    assert!(layers.targets("model.layers.1.self_attn.q_proj"));
    let excluded = parse(r#""exclude_modules":"model\\.layers\\.0\\..*""#).expect("excluded");
    assert!(!excluded.targets("model.layers.0.self_attn.q_proj"));
    assert!(excluded.targets("model.layers.1.self_attn.q_proj"));
    let regex = AdapterConfig::parse(br#"{"peft_type":"LORA","target_modules":".*mlp.*"}"#).expect("regex");
    assert!(regex.targets("model.layers.0.mlp.up_proj"));
    assert!(!regex.targets("model.layers.0.self_attn.q_proj"));
    let all = AdapterConfig::parse(br#"{"peft_type":"LORA","target_modules":"all-linear"}"#).expect("all");
    assert!(all.targets("model.layers.0.mlp.up_proj"));
    assert!(!all.targets("lm_head"));
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    for (field, setting) in [
        ("lora_bias", r#""use_dora":true,"lora_bias":true"#),
        ("ensure_weight_tying", r#""modules_to_save":["embed_tokens"],"ensure_weight_tying":true"#),
        ("init_lora_weights", r#""init_lora_weights":"pissa_niter_16""#),
        ("init_lora_weights", r#""init_lora_weights":"loftq""#),
        ("trainable_token_indices", r#""trainable_token_indices":[1,2]"#),
        ("layer_replication", r#""layer_replication":[[0,4],[2,5]]"#),
        ("alora_invocation_tokens", r#""alora_invocation_tokens":[5]"#),
        ("a_setting_of_tomorrow", r#""a_setting_of_tomorrow":3"#),
    ] {
        let error = parse(setting).expect_err(setting);
        assert!(matches!(&error, Error::Unsupported { field: named, .. } if named == field), "{setting}: {error}");
    }
    let prefix = AdapterConfig::parse(br#"{"peft_type":"PREFIX_TUNING","target_modules":["q"]}"#).expect_err("prefix");
    assert!(prefix.to_string().contains("PREFIX_TUNING"), "{prefix}");
}

#[test]
fn lora_is_kept_off_modules_that_are_saved_whole() {
    let config = parse(r#""modules_to_save":["layers.0.self_attn.q_proj","lm_head"]"#).expect("saved");
    assert!(!config.targets("model.layers.0.self_attn.q_proj") && config.targets("model.layers.1.self_attn.q_proj"));
    assert!(config.saves_whole("lm_head.weight") && !config.saves_whole("model.embed_tokens.weight"));
}

#[test]
fn what_a_server_elsewhere_refuses_is_said() {
    assert!(parse("").expect("plain").portability_notes().is_empty());
    let all = parse(r#""use_dora":true,"modules_to_save":["lm_head"],"bias":"all","rank_pattern":{"q_proj":768}"#);
    let notes = all.expect("sound").portability_notes().join("; ");
    for setting in ["rank 768", "use_dora", "modules_to_save", "bias"] {
        assert!(notes.contains(setting), "{notes}");
    }
    let lora_bias = parse(r#""lora_bias":true"#).expect("sound").portability_notes();
    assert_eq!(lora_bias, ["vLLM refuses adapters with lora_bias"]);
}

#[test]
fn settings_that_are_off_are_accepted_and_kept() {
    let config =
        parse(r#""use_dora":false,"modules_to_save":null,"a_setting_of_tomorrow":null,"peft_version":"0.21.2""#)
            .expect("inert fields");
    let written: Value = serde_json::from_slice(&config.to_json()).expect("JSON");
    assert_eq!(written["peft_version"], "0.21.2");
    assert!(written.get("a_setting_of_tomorrow").is_some());
}

#[test]
fn broken_fields_are_named_with_their_value() {
    for (json, wanted) in [
        (r#"[1]"#, "object"),
        (r#"{"r":4}"#, "peft_type"),
        (r#"{"peft_type":"LORA"}"#, "target_modules"),
        (r#"{"peft_type":"LORA","target_modules":[]}"#, "target_modules"),
        (r#"{"peft_type":"LORA","target_modules":[3]}"#, "target_modules"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"r":0}"#, "rank 0"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"r":4096}"#, "rank 4096"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"r":"8"}"#, "rank \"8\""),
        (r#"{"peft_type":"LORA","target_modules":["q"],"lora_alpha":-1}"#, "lora_alpha"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"lora_dropout":2}"#, "lora_dropout"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"rank_pattern":{"q":0}}"#, "rank_pattern.q"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"rank_pattern":[1]}"#, "rank_pattern"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"use_rslora":"yes"}"#, "use_rslora"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"use_dora":1}"#, "use_dora"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"bias":"some"}"#, "\"some\" is none of"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"modules_to_save":[7]}"#, "modules_to_save"),
        (r#"{"peft_type":"LORA","target_modules":["q"],"modules_to_save":["(?=a)"]}"#, "modules_to_save"),
        ("not json", "not JSON"),
    ] {
        let error = AdapterConfig::parse(json.as_bytes()).expect_err(json);
        assert!(error.to_string().contains(wanted), "{json}: {error}");
    }
}

#[test]
fn a_new_config_reads_back_and_is_sorted_ascii() {
    let names = ["v_proj".to_owned(), "q_proj".to_owned(), "q_proj".to_owned()];
    let config = AdapterConfig::new("CAUSAL_LM", 16, 32.0, 0.05, &names).expect("valid").with_base("größe");
    let bytes = config.to_json();
    assert!(bytes.is_ascii());
    let text = String::from_utf8(bytes.clone()).expect("ASCII");
    assert!(text.starts_with("{\n  \"alpha_pattern\": {},\n  \"auto_mapping\": null"), "{text}");
    assert!(text.contains("\"lora_alpha\": 32,"), "{text}");
    let back = AdapterConfig::parse(&bytes).expect("our own output");
    assert!(back.same_settings(&config));
    assert_eq!(back.base_model_name_or_path.as_deref(), Some("größe"));
    assert_eq!(back.to_json(), bytes);
}
