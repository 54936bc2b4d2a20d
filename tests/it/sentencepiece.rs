//! Bases that ship a SentencePiece model and no tokenizer.json, from `base add` to an answer.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tailor_testkit::{LlamaShape, T5Shape};

use crate::support::{Up, repository, rows};

/// As many as the larger of the models has, rounded up.
const VOCABULARY: usize = 512;

fn sentencepiece(model: &str) -> PathBuf {
    repository().join("tests/golden/text/sentencepiece").join(model)
}

fn t5(parent: &Path, name: &str, model: &str) -> String {
    let folder = parent.join(name);
    std::fs::create_dir_all(&folder).expect("make a folder");
    T5Shape { vocab: VOCABULARY, ..T5Shape::default() }.write(&folder, 5).expect("write a base");
    std::fs::copy(sentencepiece(model), folder.join("spiece.model")).expect("copy the model");
    folder.display().to_string()
}

fn llama(parent: &Path, model: &str) -> String {
    let folder = parent.join("llama");
    std::fs::create_dir_all(&folder).expect("make a folder");
    LlamaShape { vocab: VOCABULARY, ..LlamaShape::default() }.write(&folder, 7).expect("write a base");
    std::fs::copy(sentencepiece(model), folder.join("tokenizer.model")).expect("copy the model");
    let settings = r#"{"tokenizer_class": "LlamaTokenizer", "legacy": false, "add_bos_token": true}"#;
    std::fs::write(folder.join("tokenizer_config.json"), settings).expect("write its settings");
    folder.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_with_sentencepiece_alone_is_added_tokenised_and_served() {
    let up = Up::start().await;
    let cli = up.cli();
    up.addresses.upload("rows", rows::csv(60).as_bytes()).await.expect("rows uploaded");
    let bases = [("t5", t5(up.folder.path(), "t5", "t5.model")), ("llama", llama(up.folder.path(), "llama.model"))];
    for (name, folder) in &bases {
        let added = cli.json(&["base", "add", folder, "--name", name, "--dtype", "f32"]);
        let files = added["files"].as_array().expect("files");
        assert!(files.iter().any(|file| file["name"] == "tokenizer.json"), "{name}: {files:?}");
        let preview = cli.json(&["dataset", "preview", "rows", "--base", name, "--rows", "1"]);
        let tokens = preview[0]["tokens"].as_array().expect("tokens");
        assert!(tokens.iter().any(|token| token["in_loss"] == true), "{name}: {tokens:?}");
        let answer = cli.json(&["generate", "--base", name, "--max-new-tokens", "4", "kalo miter"]);
        assert!(answer["completion_tokens"].as_u64().is_some_and(|tokens| tokens <= 4), "{name}: {answer}");
        let scored = cli.json(&["score", "--base", name, "--prompt", "kalo", "--text", "miter"]);
        assert!(scored["tokens"].as_array().is_some_and(|tokens| !tokens.is_empty()), "{name}: {scored}");
    }

    let fingerprint = |base: &Value| base["fingerprint"].as_str().expect("a fingerprint").to_owned();
    let other = t5(up.folder.path(), "other", "t5_symbols.model");
    let other = cli.json(&["base", "add", &other, "--name", "other", "--dtype", "f32"]);
    let listed = cli.json(&["base", "list"]);
    let first = listed.as_array().expect("a list").iter().find(|base| base["name"] == "t5").expect("is listed");
    assert_ne!(fingerprint(&other), fingerprint(first), "another tokenizer makes another base");
    let word = t5(up.folder.path(), "word", "word.model");
    cli.refused(&["base", "add", &word, "--name", "word"]).says("ERROR", &["spiece.model", "Word", "tokenizer.json"]);
}
