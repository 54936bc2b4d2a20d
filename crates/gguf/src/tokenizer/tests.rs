use serde_json::json;

use super::*;
use crate::config::tests::{parse, with};

fn byte_level(use_regex: bool) -> Json {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn bpe() -> Json {
    json!({
        "added_tokens": [{ "id": 0, "content": "<s>", "special": true }, { "id": 4, "content": "<tool>", "special": false }],
        "normalizer": null, "pre_tokenizer": byte_level(true),
        "model": { "type": "BPE", "unk_token": null, "vocab": { "<s>": 0, "a": 1, "b": 2, "ab": 3 }, "merges": [["a", "b"]] },
    })
}

/// Pieces for every byte, then `▁`, `a`, `b`, `ab`, `▁ab`.
fn spm() -> Json {
    let mut vocab = Map::new();
    for text in ["<unk>", "<s>"] {
        vocab.insert(text.into(), vocab.len().into());
    }
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
    }
    for text in ["▁", "a", "b", "ab", "▁ab", "▁a"] {
        vocab.insert(text.into(), vocab.len().into());
    }
    json!({
        "added_tokens": [{ "id": 0, "content": "<unk>", "special": true }, { "id": 1, "content": "<s>", "special": true }],
        "normalizer": { "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] },
        "pre_tokenizer": null,
        "model": { "type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocab,
            "merges": ["a b", "▁ ab", "▁a b", "▁ a"] },
    })
}

fn algorithm(json: &Json, notes: &mut Vec<String>) -> Result<Algorithm> {
    let source = Source::of(json)?;
    if source.flag("byte_fallback") { spm::algorithm(&source, notes) } else { bpe::algorithm(&source, notes) }
}

#[track_caller]
fn refused(json: &Json, words: &[&str]) {
    let message = algorithm(json, &mut Vec::new()).err().expect("refused").to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is missing in: {message}");
    }
}

fn all_tokens(json: &Json, size: u32) -> Result<Vec<(String, Kind)>> {
    let config = parse(&with("llama", json!({ "vocab_size": size }))).unwrap();
    let source = Source::of(json)?;
    let (texts, kinds) = tokens(&source, &config, source.flag("byte_fallback"), &mut Vec::new())?;
    Ok(texts.into_iter().zip(kinds).collect())
}

#[test]
fn cuts_have_llama_cpps_names() {
    let name = |pre: Json, ignore: bool| {
        let mut json = bpe();
        json["pre_tokenizer"] = pre;
        json["model"]["ignore_merges"] = ignore.into();
        algorithm(&json, &mut Vec::new()).map(|found| found.pre).ok()
    };
    let split = |expression: &str| {
        let split =
            json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    };
    let qwen2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let llama3 = qwen2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?");
    assert_eq!(name(byte_level(true), false), Some("gpt-2"));
    assert_eq!(name(split(qwen2), false), Some("qwen2"));
    assert_eq!(name(split(&llama3), true), Some("llama-bpe"));
    assert_eq!(name(split(&llama3), false), Some("smaug-bpe"));
    assert_eq!(name(split(qwen2), true), None, "llama.cpp's qwen2 merges");
    assert_eq!(name(split(r"\p{L}+"), false), None);
    assert_eq!(name(Json::Null, false), None);
}

#[test]
fn an_unknown_cut_is_refused_with_what_it_is() {
    let mut json = bpe();
    json["pre_tokenizer"] = json!({ "type": "Whitespace" });
    refused(&json, &["pre_tokenizer", "Whitespace", "no name"]);
    json["pre_tokenizer"] = json!({ "type": "ByteLevel", "add_prefix_space": true, "use_regex": true });
    refused(&json, &["add_prefix_space"]);
}

#[test]
fn byte_level_merges_are_kept_in_order_and_normalizers_are_not_dropped_silently() {
    let mut json = bpe();
    let mut notes = Vec::new();
    json["normalizer"] = json!({ "type": "NFC" });
    let found = algorithm(&json, &mut notes).unwrap();
    assert_eq!((found.model, found.merges), ("gpt2", Some(vec!["a b".to_owned()])));
    assert!(notes[0].contains("NFC"), "{notes:?}");
    json["normalizer"] = json!({ "type": "Lowercase" });
    refused(&json, &["normalizer", "Lowercase"]);
}

#[test]
fn other_algorithms_and_parts_of_words_are_refused() {
    let mut json = bpe();
    json["model"]["end_of_word_suffix"] = "</w>".into();
    refused(&json, &["end_of_word_suffix"]);
    json["model"]["type"] = "Unigram".into();
    refused(&json, &["model.type", "Unigram", "BPE"]);
}

#[test]
fn tokens_have_their_kinds_and_every_row_has_a_name() {
    let found = all_tokens(&bpe(), 6).unwrap();
    let kinds: Vec<Kind> = found.iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, [Kind::Control, Kind::Normal, Kind::Normal, Kind::Normal, Kind::UserDefined, Kind::Unused]);
    assert_eq!((found[4].0.as_str(), found[5].0.as_str()), ("<tool>", "[UNUSED5]"));
    let found = all_tokens(&spm(), 264).unwrap();
    assert_eq!((found[0].1, found[1].1, found[12].1), (Kind::Unknown, Kind::Control, Kind::Byte));
}

#[test]
fn a_token_without_a_row_is_told() {
    let message = all_tokens(&bpe(), 3).unwrap_err().to_string();
    assert!(message.contains("\"ab\"") && message.contains("3 rows"), "{message}");
    let mut json = bpe();
    json["added_tokens"] = json!([{ "id": 7, "content": "<pad>", "special": true }]);
    assert_eq!(all_tokens(&json, 4).unwrap().len(), 4, "one that is only added is left out, with a note");
}

#[test]
fn two_tokens_of_one_name_are_refused() {
    let mut json = bpe();
    json["added_tokens"] = json!([{ "id": 5, "content": "ab", "special": false }]);
    assert!(all_tokens(&json, 6).unwrap_err().to_string().contains("\"ab\""));
}

#[test]
fn scores_are_the_order_of_the_merges() {
    let found = algorithm(&spm(), &mut Vec::new()).unwrap();
    let scores = found.scores.unwrap();
    assert_eq!((scores["ab"], scores["▁ab"], scores["▁a"]), (0.0, -1.0, -3.0));
    assert!(found.add_space_prefix && found.model == "llama");
}

#[test]
fn merges_that_scores_cannot_say_are_refused() {
    let mut json = spm();
    json["model"]["merges"] = json!(["▁ ab", "a b", "▁a b", "▁ a"]);
    refused(&json, &["model.merges", "\"▁ab\"", "together"]);
    json["model"]["merges"] = json!(["a b", "▁ ab", "▁ a"]);
    refused(&json, &["model.merges", "\"▁a\"", "\"b\"", "never merged"]);
    json["model"]["vocab"].as_object_mut().unwrap().remove("<0x0A>");
    refused(&json, &["model.vocab", "255 of 256"]);
}

#[test]
fn how_blanks_are_kept_is_said_or_refused() {
    let found = |normalizer: Json, pre: Json| {
        let (mut json, mut notes) = (spm(), Vec::new());
        (json["normalizer"], json["pre_tokenizer"]) = (normalizer, pre);
        algorithm(&json, &mut notes).map(|found| (found.add_space_prefix, notes.len())).ok()
    };
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let space = |scheme: &str, split: bool| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split });
    let split = json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious" });
    assert_eq!(found(replace.clone(), split), Some((false, 0)), "Gemma's");
    assert_eq!(found(Json::Null, space("never", false)), Some((false, 0)));
    assert_eq!(found(Json::Null, space("first", false)), Some((true, 1)));
    assert_eq!(found(Json::Null, space("first", true)), None);
    assert_eq!(found(json!({ "type": "NFKC" }), Json::Null), None);
    assert_eq!(found(Json::Null, Json::Null), None);
    assert_eq!(found(replace, space("always", false)), Some((true, 1)));
}
