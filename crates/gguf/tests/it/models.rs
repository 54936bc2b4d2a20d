use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};
use tailor_gguf::{Error, ModelOptions, ModelReport, Value, check_texts, write_model};
use tailor_quant::{Checkpoint, Float};

use crate::reader::{Found, Gguf};
use crate::repository;

const BASE: &str = "bases/tiny-llama";

/// The shipped base, to be changed.
fn copy(folder: &Path) {
    for entry in fs::read_dir(repository(BASE)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
}

fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Json)) {
    let mut json: Json = serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap();
    change(&mut json);
    fs::write(folder.join(file), json.to_string()).unwrap();
}

fn write(folder: &Path, target: &Path, float: Float) -> Result<ModelReport, Error> {
    write_model(folder, target, &ModelOptions { float, ..ModelOptions::default() }, &mut |_| {})
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.tensor(name).unwrap();
    tensor.float().unwrap().decode(&tensor.bytes)
}

#[test]
fn the_shipped_base_is_written_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("tiny.gguf");
    let extra = vec![("tailor.base".to_owned(), Value::from("tiny-llama"))];
    let options = ModelOptions { name: "tiny".into(), extra, ..ModelOptions::default() };
    let mut seen = 0;
    let report = write_model(&repository(BASE), &target, &options, &mut |at| seen = at.done).unwrap();
    let bytes = fs::read(&target).unwrap();
    assert_eq!((report.bytes, report.tensors, seen), (bytes.len() as u64, 39, 39));
    assert_eq!((report.architecture, report.notes.len()), ("llama", 0));

    let file = Gguf::read(&bytes);
    assert_eq!((file.text("general.architecture"), file.text("general.type")), ("llama", "model"));
    assert_eq!((file.text("general.name"), file.text("tailor.base")), ("tiny", "tiny-llama"));
    assert_eq!((file.number("general.file_type"), file.number("llama.block_count")), (32.0, 4.0));
    assert_eq!((file.number("llama.attention.head_count_kv"), file.number("llama.context_length")), (2.0, 512.0));
    assert_eq!((file.text("tokenizer.ggml.model"), file.text("tokenizer.ggml.pre")), ("gpt2", "gpt-2"));
    assert_eq!((file.number("tokenizer.ggml.bos_token_id"), file.number("tokenizer.ggml.eos_token_id")), (1.0, 2.0));
    assert_eq!(file.metadata["tokenizer.ggml.add_bos_token"], Found::Bool(true));
    assert!(file.text("tokenizer.chat_template").contains("<|assistant|>"));
    assert_eq!(file.list("tokenizer.ggml.tokens").len(), 1792);
    assert_eq!(file.list("tokenizer.ggml.merges")[1], Found::Text("e r".into()));

    let checkpoint = Checkpoint::open(&repository(BASE)).unwrap();
    let embedding = &file.tensors["token_embd.weight"];
    assert_eq!((embedding.kind, embedding.shape.as_slice()), (30, [1792, 128].as_slice()));
    assert_eq!(embedding.values, values(&checkpoint, "model.embed_tokens.weight"));
    let norm = &file.tensors["blk.3.ffn_norm.weight"];
    assert_eq!((norm.kind, &norm.values), (0, &values(&checkpoint, "model.layers.3.post_attention_layernorm.weight")));
}

#[test]
fn rows_of_keys_change_places_within_their_heads() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("tiny.gguf");
    write(&repository(BASE), &target, Float::F32).unwrap();
    let file = Gguf::read(&fs::read(&target).unwrap());
    let ours = values(&Checkpoint::open(&repository(BASE)).unwrap(), "model.layers.0.self_attn.k_proj.weight");
    let theirs = &file.tensors["blk.0.attn_k.weight"];
    let (columns, half) = (128, 16);
    for row in 0..64 {
        let (head, pair, side) = (row / 32, row % 32 / 2, row % 2);
        let from = head * 32 + side * half + pair;
        assert_eq!(theirs.values[row * columns..][..columns], ours[from * columns..][..columns], "row {row}");
    }
}

#[test]
fn values_are_rounded_to_the_type_and_vectors_are_not() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("tiny.gguf");
    write(&repository(BASE), &target, Float::F16).unwrap();
    let file = Gguf::read(&fs::read(&target).unwrap());
    let head = &file.tensors["output.weight"];
    let ours = values(&Checkpoint::open(&repository(BASE)).unwrap(), "lm_head.weight");
    assert_eq!(head.kind, 1);
    assert!(head.values.iter().zip(&ours).all(|(theirs, ours)| *theirs == half::f16::from_f32(*ours).to_f32()));
    assert!(file.tensors.iter().all(|(_, tensor)| (tensor.kind == 0) == (tensor.shape.len() == 1)));
}

#[test]
fn what_cannot_be_said_is_refused_and_leaves_no_file() {
    type Change = fn(&mut Json);
    let cases: [(&str, Change, &[&str]); 5] = [
        ("config.json", |json| json["model_type"] = "phi3".into(), &["phi3", "transformers"]),
        ("config.json", |json| json["num_hidden_layers"] = 3.into(), &["model.layers.3", "3 layers"]),
        ("config.json", |json| json["intermediate_size"] = 300.into(), &["mlp", "300", "320"]),
        (
            "tokenizer.json",
            |json| json["pre_tokenizer"] = json!({ "type": "Whitespace" }),
            &["pre_tokenizer", "Whitespace"],
        ),
        ("tokenizer.json", |json| json["normalizer"] = json!({ "type": "NFKC" }), &["normalizer", "NFKC"]),
    ];
    for (file, change, words) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let (folder, target) = (scratch.path().join("base"), scratch.path().join("tiny.gguf"));
        fs::create_dir(&folder).unwrap();
        copy(&folder);
        edit(&folder, file, change);
        let message = write(&folder, &target, Float::Bf16).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{words:?} in: {message}");
        let left: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["base"]);
        assert_eq!(check_texts(&folder).is_err(), file == "tokenizer.json" || message.contains("phi3"), "{message}");
    }
}

#[test]
fn an_end_that_llama_cpp_would_not_know_is_told_it() {
    let scratch = tempfile::tempdir().unwrap();
    copy(scratch.path());
    edit(scratch.path(), "generation_config.json", |json| json["eos_token_id"] = json!([2, 4]));
    let target = scratch.path().join("tiny.gguf");
    write(scratch.path(), &target, Float::Bf16).unwrap();
    assert_eq!(Gguf::read(&fs::read(&target).unwrap()).number("tokenizer.ggml.eot_token_id"), 4.0);
}

#[test]
fn a_file_that_exists_is_kept_and_a_folder_in_4_bits_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("tiny.gguf");
    fs::write(&target, "mine").unwrap();
    let message = write(&repository(BASE), &target, Float::Bf16).unwrap_err().to_string();
    assert!(message.contains("exists"), "{message}");
    assert_eq!(fs::read(&target).unwrap(), b"mine");

    let golden = repository("tests/golden/models/llama-gqa-nf4");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(repository(BASE).join(file), scratch.path().join(file)).unwrap();
    }
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), scratch.path().join(file)).unwrap();
    }
    let message = write(scratch.path(), &scratch.path().join("new.gguf"), Float::Bf16).unwrap_err().to_string();
    assert!(message.contains("4 bits") && message.contains("llama-quantize"), "{message}");
}
