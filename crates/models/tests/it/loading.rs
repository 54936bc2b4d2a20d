//! Folders in and out, and what is refused before memory is taken.

use std::cell::Cell;
use std::fs;

use serde_json::{Value, json};
use tailor_models::{Base, Config, Error, LoadOptions, Pass};
use tailor_quant::Float;
use tch::Device;

use crate::{Golden, load, logits, model_folder, relative_difference};

fn config(name: &str) -> Value {
    serde_json::from_slice(&fs::read(model_folder(name).join("config.json")).unwrap()).unwrap()
}

#[test]
fn unsupported_or_inconsistent_config_is_refused_by_field() {
    let refused = |name: &str, field: &str, value: Value| {
        let mut config = config(name);
        config[field] = value;
        Config::parse(config.to_string().as_bytes()).unwrap_err().to_string()
    };
    for (name, field, value) in [
        ("llama-gqa", "model_type", json!("mamba")),
        ("llama-gqa", "vocab_size", json!(0)),
        ("llama-gqa", "vocab_size", json!("many")),
        ("llama-gqa", "hidden_size", json!(1_000_000_000)),
        ("llama-gqa", "num_key_value_heads", json!(3)),
        ("llama-gqa", "hidden_act", json!("tanh")),
        ("llama-gqa", "rms_norm_eps", json!(-1.0)),
        ("llama-gqa", "head_dim", json!(7)),
        ("llama-gqa", "eos_token_id", json!([2, 96])),
        ("llama-gqa", "rope_parameters", json!([])),
        ("qwen3-window", "layer_types", json!(["full_attention"])),
        ("qwen3-window", "layer_types", json!(["full_attention", "linear_attention"])),
        ("qwen2", "layer_types", json!(["full_attention", "sliding_attention"])),
        ("mistral-window", "sliding_window", json!(0)),
        ("gemma2", "attn_logit_softcapping", json!(-1.0)),
        ("gemma2", "hidden_activation", json!("tanh")),
        ("gemma3", "use_bidirectional_attention", json!(true)),
        ("gemma3", "model_type", json!("gemma3")),
        ("t5-v11", "feed_forward_proj", json!("gated-tanh")),
        ("t5-v11", "relative_attention_num_buckets", json!(7)),
        ("t5-v11", "d_kv", json!(null)),
    ] {
        let message = refused(name, field, value.clone());
        assert!(message.contains(field), "{field} = {value}: {message}");
    }
    let message = refused("llama-gqa", "rope_parameters", json!({"rope_type": "yarn", "factor": 2.0}));
    assert!(message.contains("rope_type") && message.contains("yarn"), "{message}");
    assert!(Config::parse(b"[1]").unwrap_err().to_string().contains("not a JSON object"));
}

/// Each is refused by the parser, so before a tensor is looked at.
#[test]
fn absurd_numbers_in_a_config_are_refused_by_field_value_and_limit() {
    let sizes: [(&str, &[(&str, i64)]); 4] = [
        (
            "llama-gqa",
            &[
                ("num_hidden_layers", 1024),
                ("vocab_size", 4 << 20),
                ("hidden_size", 1 << 17),
                ("intermediate_size", 1 << 20),
                ("num_attention_heads", 1024),
                ("num_key_value_heads", 1024),
                ("head_dim", 1024),
                ("max_position_embeddings", 1 << 24),
            ],
        ),
        ("mistral-window", &[("sliding_window", 1 << 24)]),
        ("qwen3", &[("head_dim", 1024)]),
        (
            "t5-v11",
            &[
                ("num_layers", 1024),
                ("num_decoder_layers", 1024),
                ("vocab_size", 4 << 20),
                ("d_model", 1 << 17),
                ("d_kv", 4096),
                ("d_ff", 1 << 20),
                ("num_heads", 1024),
                ("relative_attention_num_buckets", 4096),
                ("relative_attention_max_distance", 1 << 20),
            ],
        ),
    ];
    for (name, fields) in sizes {
        for &(field, limit) in fields {
            let numbers = ["1000000000", "1000000000000", "9223372036854775807", "-1", "0"];
            let no_numbers = ["9223372036854775808", "1e400", "1e12", "12.5", "\"12\"", "[12]", "{}", "true"];
            for (value, is_whole) in
                numbers.map(|value| (value, true)).into_iter().chain(no_numbers.map(|v| (v, false)))
            {
                let mut config = config(name);
                config[field] = json!("HERE");
                let text = config.to_string().replace("\"HERE\"", value);
                let message = Config::parse(text.as_bytes()).unwrap_err().to_string();
                if value == "1e400" {
                    assert!(message.contains("number out of range"), "{message}");
                    continue;
                }
                assert!(message.contains(field), "{name}: {field} = {value}: {message}");
                let shown = if value == "1e12" { "1000000000000.0" } else { value };
                assert!(message.contains(shown), "{name}: {field} = {value}: {message}");
                assert!(!is_whole || message.contains(&limit.to_string()), "{name}: {field} = {value}: {message}");
            }
        }
    }
    let mut many = config("llama-gqa");
    many["eos_token_id"] = json!(vec![1; 2000]);
    let message = Config::parse(many.to_string().as_bytes()).unwrap_err().to_string();
    assert!(message.contains("eos_token_id") && message.contains("2000") && message.contains("1024"), "{message}");
    many["eos_token_id"] = json!("x".repeat(100_000));
    assert!(Config::parse(many.to_string().as_bytes()).unwrap_err().to_string().len() < 2000);
    assert!(Config::parse("[".repeat(100_000).as_bytes()).is_err());
    let nested = format!("{}{}", r#"{"model_type":"#.repeat(1000), "}".repeat(1000));
    assert!(Config::parse(nested.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
}

/// The largest that the parser takes, on a small file: the first tensor says no, nothing of the claimed size is made.
#[test]
fn a_config_as_large_as_may_be_over_a_small_file_is_refused_by_tensor() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(model_folder("llama-gqa").join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let mut config = config("llama-gqa");
    for (field, value) in [
        ("num_hidden_layers", 1024),
        ("vocab_size", 4 << 20),
        ("hidden_size", 1 << 17),
        ("intermediate_size", 1 << 20),
        ("max_position_embeddings", 1 << 24),
    ] {
        config[field] = json!(value);
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let error = Base::load(folder.path(), &Default::default()).err().expect("refused").to_string();
    assert!(error.contains("model.embed_tokens.weight") && error.contains("[4194304, 131072]"), "{error}");
    fs::write(folder.path().join("config.json"), vec![b' '; 2 << 20]).unwrap();
    let error = Base::load(folder.path(), &Default::default()).err().expect("refused").to_string();
    assert!(error.contains("2097152 bytes") && error.contains("1048576"), "{error}");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    fs::create_dir(folder.path().join("config.json")).unwrap();
    let error = Base::load(folder.path(), &Default::default()).err().expect("refused").to_string();
    assert!(error.contains("no regular file"), "{error}");
}

#[test]
fn a_dense_tensor_that_is_not_finite_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let source = model_folder("llama-gqa");
    fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut bytes = fs::read(source.join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let described: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let start = header + described["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start + 8..start + 12].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let error = Base::load(folder.path(), &Default::default()).err().expect("refused").to_string();
    assert!(error.contains("model.norm.weight") && error.contains("value 2 is not finite"), "{error}");
}

#[test]
fn config_that_does_not_match_the_tensors_is_refused_by_tensor() {
    let refused = |field: &str, value: Value| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config("llama-gqa-nf4");
        config[field] = value;
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let weights = "model.safetensors";
        fs::copy(model_folder("llama-gqa-nf4").join(weights), folder.path().join(weights)).unwrap();
        match Base::load(folder.path(), &Default::default()) {
            Ok(_) => panic!("must be refused"),
            Err(error) => error.to_string(),
        }
    };
    let message = refused("vocab_size", json!(97));
    assert!(message.contains("model.embed_tokens.weight") && message.contains("[97, 32]"), "{message}");
    let message = refused("intermediate_size", json!(128));
    assert!(message.contains("mlp.gate_proj.weight") && message.contains("[128, 32]"), "{message}");
    let message = refused("num_hidden_layers", json!(3));
    assert!(message.contains("model.layers.2"), "{message}");
    let message = refused("num_hidden_layers", json!(1));
    assert!(message.contains("model.layers.1") && message.contains("no place"), "{message}");
}

#[test]
fn a_load_that_nobody_waits_for_ends_before_the_next_tensor() {
    for name in ["llama-gqa-nf4", "t5-v11"] {
        let asked = Cell::new(0);
        let load = |most: u32| {
            asked.set(0);
            let should_stop = || {
                asked.set(asked.get() + 1);
                asked.get() > most
            };
            Base::load_unless(&model_folder(name), &LoadOptions::default(), &should_stop).map(drop)
        };
        load(u32::MAX).expect("loads");
        let all = asked.get();
        assert!(all > 10, "{name}: asked {all} times");
        for most in [0, all / 2, all - 1] {
            let error = load(most).expect_err("stopped");
            assert!(matches!(error, Error::Stopped), "{name}: {error}");
            assert_eq!(asked.get(), most + 1, "{name}");
        }
    }
}

#[test]
fn older_rope_fields_mean_the_same() {
    let new = config("llama-gqa");
    let mut old = new.clone();
    let rope = old.as_object_mut().unwrap().remove("rope_parameters").unwrap();
    old["rope_theta"] = rope["rope_theta"].clone();
    old["rope_scaling"] = rope;
    let parse = |config: &Value| Config::parse(config.to_string().as_bytes()).unwrap();
    assert_eq!(parse(&new), parse(&old));
}

#[test]
fn gemma_3_of_older_transformers_means_the_same() {
    let new = config("gemma3");
    let mut old = new.clone();
    let fields = old.as_object_mut().unwrap();
    let rope = fields.remove("rope_parameters").unwrap();
    for absent in ["layer_types", "_sliding_window_pattern"] {
        fields.remove(absent);
    }
    fields.insert("sliding_window_pattern".into(), json!(2));
    fields.insert("rope_theta".into(), rope["full_attention"]["rope_theta"].clone());
    fields.insert("rope_scaling".into(), json!({"rope_type": "linear", "factor": 4.0}));
    fields.insert("rope_local_base_freq".into(), rope["sliding_attention"]["rope_theta"].clone());
    let parse = |config: &Value| Config::parse(config.to_string().as_bytes()).unwrap();
    assert_eq!(parse(&new), parse(&old));
}

#[test]
fn a_window_that_is_not_said_is_the_reference_s_and_null_is_none() {
    let window = |value: Option<Value>| {
        let mut config = config("mistral-window");
        config.as_object_mut().unwrap().remove("sliding_window");
        if let Some(value) = value {
            config["sliding_window"] = value;
        }
        let Config::Decoder(parsed) = Config::parse(config.to_string().as_bytes()).unwrap() else {
            panic!("a decoder")
        };
        parsed.attention_kinds[0].sliding_window
    };
    assert_eq!(window(None), Some(4096));
    assert_eq!(window(Some(Value::Null)), None);
    assert_eq!(window(Some(json!(7))), Some(7));
}

#[test]
fn random_base_trains_saves_and_loads_again() {
    for name in ["llama-tied", "gemma3", "t5-v11", "t5-tied"] {
        let mut text = config(name);
        if name == "t5-v11" {
            text["tie_word_embeddings"] = json!(false);
        }
        let base = Base::random(text.to_string().as_bytes(), Device::Cpu, 7).unwrap();
        let golden = Golden::of(name);
        let before = logits(&base, &golden, &Pass::base());
        let loss = before.logsumexp([-1i64].as_slice(), false).mean(tch::Kind::Float);
        tailor_torch::backward(&[(&loss, None)], false).unwrap();
        for parameter in base.parameters() {
            assert!(parameter.tensor.grad().defined(), "{name}: {} has no gradient", parameter.name);
        }
        let folder = tempfile::tempdir().unwrap();
        base.save_folder(folder.path(), Float::F32).unwrap();
        let again = Base::load(folder.path(), &Default::default()).unwrap();
        // Not to the bit: a trainable position bias takes another attention kernel than a frozen one.
        assert!(relative_difference(&logits(&again, &golden, &Pass::base()), &before) < 1e-5, "{name}");
        assert_eq!(again.parameter_count(), base.parameter_count());

        let same_seed = Base::random(text.to_string().as_bytes(), Device::Cpu, 7).unwrap();
        assert_eq!(relative_difference(&logits(&same_seed, &golden, &Pass::base()), &before), 0.0, "{name}");
    }
}

#[test]
fn base_in_4_bits_is_not_saved_as_dense() {
    let folder = tempfile::tempdir().unwrap();
    let message = load("llama-gqa-nf4").save_folder(folder.path(), Float::F32).unwrap_err().to_string();
    assert!(message.contains("in 4 bits"), "{message}");
}
