use super::*;

/// The published shapes that the promises are about.
fn published(name: &str) -> Shape {
    let config = match name {
        "llama-2-7b" => {
            r#"{"model_type":"llama","hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,
                "num_attention_heads":32,"vocab_size":32000}"#
        }
        "llama-2-70b" => {
            r#"{"model_type":"llama","hidden_size":8192,"intermediate_size":28672,"num_hidden_layers":80,
                "num_attention_heads":64,"num_key_value_heads":8,"vocab_size":32000}"#
        }
        "llama-3-8b" => {
            r#"{"model_type":"llama","hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,
                "num_attention_heads":32,"num_key_value_heads":8,"vocab_size":128256}"#
        }
        _ => {
            r#"{"model_type":"t5","d_model":4096,"d_kv":64,"d_ff":10240,"num_layers":24,"num_heads":64,
                "vocab_size":32128,"feed_forward_proj":"gated-gelu","tie_word_embeddings":false}"#
        }
    };
    Shape::parse(config.as_bytes()).expect("a known family")
}

#[test]
fn the_published_models_have_their_published_number_of_parameters() {
    // As transformers counts them.
    for (name, parameters) in [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("t5-v1_1-xxl", 11_135_332_352u64),
    ] {
        assert_eq!(published(name).parameters(), parameters, "{name}");
    }
}

#[test]
fn nested_nf4_takes_4_127_bits_a_parameter() {
    let shape = published("llama-2-7b");
    let linear_bytes = shape.weight_bytes(QuantCode::Nf4, 2) - shape.other_values * 2;
    let bits = linear_bytes as f64 * 8.0 / shape.coded_values() as f64;
    assert!((bits - 4.127).abs() < 0.001, "{bits}");
    let single = shape.weight_bytes(QuantCode::Nf4Single, 2) - shape.other_values * 2;
    assert!((single as f64 * 8.0 / shape.coded_values() as f64 - 4.5).abs() < 0.001);
}

#[test]
fn what_is_missing_or_absurd_is_refused_by_name() {
    for (config, word) in [
        ("[]", "JSON object"),
        (r#"{"model_type":"bert"}"#, "bert"),
        (r#"{"model_type":"llama","vocab_size":10}"#, "hidden_size is missing"),
        (r#"{"model_type":"llama","hidden_size":-3,"vocab_size":10}"#, "hidden_size -3 is no size"),
        (r#"{"model_type":"llama","hidden_size":99999999999,"vocab_size":10}"#, "not between 1 and"),
        (
            r#"{"model_type":"llama","hidden_size":64,"vocab_size":10,"num_hidden_layers":99999}"#,
            "num_hidden_layers 99999 is not between",
        ),
    ] {
        let error = Shape::parse(config.as_bytes()).expect_err(config).to_string();
        assert!(error.contains(word), "{error}");
    }
}
