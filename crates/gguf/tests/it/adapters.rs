use std::fs;
use std::path::Path;

use tailor_gguf::{AdapterOptions, AdapterReport, Error, write_adapter};
use tailor_peft::{Adapter, AdapterConfig, Limits, LoraPair};

use crate::reader::Gguf;
use crate::repository;

/// config.json of the base of the adapters that name none.
const LITTLE: &str = r#"{"model_type":"llama","vocab_size":40,"hidden_size":16,"intermediate_size":24,
"num_hidden_layers":2,"num_attention_heads":2,"num_key_value_heads":1}"#;

fn read(name: &str) -> (Vec<u8>, Adapter) {
    let adapter = Adapter::read_dir(&repository("tests/golden/peft").join(name), &Limits::default()).unwrap();
    let config = match &adapter.config().base_model_name_or_path {
        Some(base) => fs::read(repository("tests/golden/models").join(base).join("config.json")).unwrap(),
        None => LITTLE.into(),
    };
    (config, adapter)
}

fn write(name: &str, target: &Path) -> Result<AdapterReport, Error> {
    let (config, adapter) = read(name);
    write_adapter(&config, &adapter, target, &AdapterOptions::default())
}

fn written(name: &str) -> (Adapter, AdapterReport, Gguf) {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("adapter.gguf");
    let report = write(name, &target).unwrap();
    (read(name).1, report, Gguf::read(&fs::read(target).unwrap()))
}

/// llama.cpp's α/r of the layer, times B: what stands before A·x.
fn scaled_b(file: &Gguf, name: &str) -> Vec<f32> {
    let b = &file.tensors[&format!("{name}.lora_b")];
    let scale = file.number("adapter.lora.alpha") as f32 / b.shape[1] as f32;
    b.values.iter().map(|value| value * scale).collect()
}

#[test]
fn a_and_b_are_there_under_the_names_of_their_weights() {
    let (adapter, report, file) = written("llama-all-linear");
    assert_eq!((file.text("general.type"), file.text("adapter.type")), ("adapter", "lora"));
    assert_eq!((report.layers, file.tensors.len()), (adapter.pairs().len(), 2 * adapter.pairs().len()));
    let pair = &adapter.pairs()["model.layers.0.mlp.up_proj"];
    let (a, b) = (&file.tensors["blk.0.ffn_up.weight.lora_a"], &file.tensors["blk.0.ffn_up.weight.lora_b"]);
    assert_eq!((a.shape.as_slice(), &a.values), ([pair.rank, pair.in_features].as_slice(), &pair.a));
    assert_eq!((b.shape.as_slice(), &b.values), ([pair.out_features, pair.rank].as_slice(), &pair.b));
}

#[test]
fn bs_rows_change_places_as_the_weights_do_and_as_rows_stay() {
    let (adapter, _, file) = written("llama-all-linear");
    let pair = &adapter.pairs()["model.layers.0.self_attn.q_proj"];
    assert_eq!(file.tensors["blk.0.attn_q.weight.lora_a"].values, pair.a);
    let theirs = &file.tensors["blk.0.attn_q.weight.lora_b"].values;
    let head_dim = pair.out_features / 2;
    for row in 0..pair.out_features {
        let (head, within) = (row / head_dim, row % head_dim);
        let from = head * head_dim + within % 2 * (head_dim / 2) + within / 2;
        assert_eq!(theirs[row * pair.rank..][..pair.rank], pair.b[from * pair.rank..][..pair.rank], "row {row}");
    }
}

#[test]
fn one_alpha_and_b_together_are_every_layers_own_scale() {
    let mut folded = 0;
    for name in ["llama-all-linear", "llama-patterns", "patterns-qwen3"] {
        let (adapter, report, file) = written(name);
        folded += report.folded;
        for (path, pair) in adapter.pairs().iter().filter(|(path, _)| path.contains(".mlp.")) {
            let parts: Vec<&str> = path.split('.').collect();
            let theirs = format!("blk.{}.ffn_{}.weight", parts[2], parts[4].trim_end_matches("_proj"));
            let scale = adapter.scale_for(path) as f32;
            for (ours, theirs) in pair.b.iter().zip(scaled_b(&file, &theirs)) {
                assert!((ours * scale - theirs).abs() <= 1e-6 * (ours * scale).abs(), "{name} {path}");
            }
        }
    }
    assert!(folded > 0, "none of them has patterns");
}

#[test]
fn what_such_a_file_cannot_hold_is_refused_by_name_with_a_remedy() {
    for (name, words) in [
        ("dora-llama", vec!["use_dora", "merge"]),
        ("lora-bias", vec!["lora_bias", "merge"]),
        ("saved-biases", vec!["bias", "merge"]),
        ("saved-llama", vec!["modules_to_save", "merge"]),
        ("head-tied", vec!["lm_head", "embedding", "merge"]),
        ("patterns-t5", vec!["model_type", "t5"]),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let message = write(name, &scratch.path().join("adapter.gguf")).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{name}: {words:?} in: {message}");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn a_head_of_its_own_can_have_an_adapter_and_one_that_is_the_embedding_cannot() {
    let pair = LoraPair { rank: 1, in_features: 16, out_features: 40, a: vec![1.0; 16], b: vec![1.0; 40] };
    let config = AdapterConfig::new("CAUSAL_LM", 1, 2.0, 0.0, &["lm_head".to_owned()]).unwrap();
    let adapter = Adapter::new(config, [("lm_head".to_owned(), pair)].into()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("adapter.gguf");
    let options = AdapterOptions::default();
    let untied = LITTLE.replace("}", r#","tie_word_embeddings":false}"#);
    assert_eq!(write_adapter(untied.as_bytes(), &adapter, &target, &options).unwrap().alpha, 2.0);
    assert!(Gguf::read(&fs::read(&target).unwrap()).tensors.contains_key("output.weight.lora_a"));
    let tied = LITTLE.replace("}", r#","tie_word_embeddings":true}"#);
    let message = write_adapter(tied.as_bytes(), &adapter, &target, &options).unwrap_err().to_string();
    assert!(message.contains("lm_head") && message.contains("embedding"), "{message}");
}

#[test]
fn an_adapter_for_another_base_is_refused_by_its_shapes() {
    let (_, adapter) = read("llama-all-linear");
    let (other, _) = read("patterns-qwen3");
    let scratch = tempfile::tempdir().unwrap();
    let refused = write_adapter(&other, &adapter, &scratch.path().join("x.gguf"), &AdapterOptions::default());
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("model.layers.0") && message.contains("config.json"), "{message}");
}
