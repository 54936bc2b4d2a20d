use serde_json::json;

use super::*;
use crate::config::tests::{parse, with};

fn place(model_type: &str, fields: serde_json::Value, name: &str) -> Option<Place> {
    parse(&with(model_type, fields)).unwrap().place(name).unwrap()
}

fn name(model_type: &str, name: &str) -> String {
    place(model_type, json!({}), name).unwrap().name
}

#[test]
fn tensors_have_llama_cpps_names() {
    for (ours, theirs) in [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.1.self_attn.o_proj.weight", "blk.1.attn_output.weight"),
        ("model.layers.1.self_attn.v_proj.bias", "blk.1.attn_v.bias"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
    ] {
        assert_eq!(name("llama", ours), theirs);
    }
    assert_eq!(name("qwen3", "model.layers.0.self_attn.q_norm.weight"), "blk.0.attn_q_norm.weight");
}

#[test]
fn norms_behind_attention_are_told_from_norms_before_the_feed_forward() {
    for gemma in ["gemma2", "gemma3_text"] {
        let of = |ours: &str| name(gemma, &format!("model.layers.0.{ours}.weight"));
        assert_eq!(of("post_attention_layernorm"), "blk.0.post_attention_norm.weight");
        assert_eq!(of("pre_feedforward_layernorm"), "blk.0.ffn_norm.weight");
        assert_eq!(of("post_feedforward_layernorm"), "blk.0.post_ffw_norm.weight");
    }
}

#[test]
fn gemmas_norms_get_their_one_and_nobody_elses() {
    let turn = |model_type: &str, name: &str| place(model_type, json!({}), name).unwrap().turn;
    assert_eq!(turn("gemma", "model.norm.weight"), Turn::PlusOne);
    assert_eq!(turn("gemma3_text", "model.layers.0.self_attn.k_norm.weight"), Turn::PlusOne);
    assert_eq!(turn("gemma", "model.embed_tokens.weight"), Turn::AsIs);
    assert_eq!(turn("llama", "model.norm.weight"), Turn::AsIs);
}

#[test]
fn only_llamas_queries_and_keys_change_places() {
    let turn = |model_type: &str, part: &str| {
        place(model_type, json!({}), &format!("model.layers.0.self_attn.{part}")).unwrap().turn
    };
    assert_eq!(turn("mistral", "q_proj.weight"), Turn::Pairs { heads: 4 });
    assert_eq!(turn("llama", "k_proj.bias"), Turn::Pairs { heads: 2 });
    assert_eq!(turn("llama", "v_proj.weight"), Turn::AsIs);
    assert_eq!(turn("qwen2", "q_proj.weight"), Turn::AsIs);
}

#[test]
fn halves_of_a_head_become_neighbours() {
    // Two heads of six rows: row i of a head and row i + 3 turn together.
    let rows: Vec<usize> = (0..12).map(|row| Turn::Pairs { heads: 2 }.source_row(row, 12)).collect();
    assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
}

#[test]
fn a_head_that_is_the_embedding_is_written_once() {
    assert_eq!(place("llama", json!({ "tie_word_embeddings": true }), "lm_head.weight"), None);
    let untied = parse(&with("gemma2", json!({ "tie_word_embeddings": false }))).unwrap();
    let message = untied.place("lm_head.weight").unwrap_err().to_string();
    assert!(message.contains("lm_head.weight") && message.contains("gemma2"), "{message}");
}

#[test]
fn a_tensor_without_a_place_is_refused() {
    for (model_type, name) in [
        ("qwen3", "model.layers.0.self_attn.o_proj.bias"),
        ("llama", "model.layers.2.mlp.up_proj.weight"),
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ] {
        let message = parse(&with(model_type, json!({}))).unwrap().place(name).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn everything_required_has_a_place_and_a_shape_of_its_own() {
    for model_type in ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"] {
        let config = parse(&with(model_type, json!({}))).unwrap();
        let required = config.required();
        let places: std::collections::HashSet<String> =
            required.iter().map(|name| config.place(name).unwrap().unwrap().name).collect();
        assert_eq!(places.len(), required.len(), "{model_type}");
    }
}
