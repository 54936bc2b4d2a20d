//! Our ids beside those of transformers (tests/golden/make_tokenizers.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tailor_text::tokenizer::Converted;
use tailor_text::{Tokenizer, TokenizerFiles};
use tempfile::TempDir;

use crate::golden;

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    sentencepiece: Vec<SentencePieceCase>,
    json: Vec<JsonCase>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct SentencePieceCase {
    name: String,
    model: String,
    file: String,
    settings: Option<Value>,
    others: BTreeMap<String, Value>,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Deserialize)]
struct JsonCase {
    name: String,
    tokenizer: Value,
    settings: Value,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Deserialize)]
struct Expected {
    size: usize,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    pad_id: Option<u32>,
    unk_id: Option<u32>,
    /// What stands around every text.
    before: Vec<u32>,
    after: Vec<u32>,
    /// For each text.
    rows: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Row {
    Alike(Vec<u32>, String),
    /// Decoded with special tokens, and without.
    Apart(Vec<u32>, String, String),
}

#[derive(Deserialize)]
struct Refused {
    name: String,
    model: String,
    file: String,
    settings: Option<Value>,
    says: Vec<String>,
}

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/text/sentencepiece").join(format!("{name}.model"))
}

fn folder(model_name: &str, file: &str, settings: Option<&Value>) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy(model(model_name), folder.path().join(file)).expect("the fixture is committed");
    if let Some(settings) = settings {
        std::fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).expect("written");
    }
    folder
}

#[track_caller]
fn same(name: &str, tokenizer: &Tokenizer, texts: &[String], expected: &Expected) {
    assert_eq!(tokenizer.vocabulary_size(), expected.size, "{name}");
    let special = (tokenizer.bos(), tokenizer.eos(), tokenizer.pad(), tokenizer.unk());
    assert_eq!(special, (expected.bos_id, expected.eos_id, expected.pad_id, expected.unk_id), "{name}");
    assert_eq!((texts.len(), tokenizer.prefix()), (expected.rows.len(), &expected.before[..]), "{name}");
    for (text, row) in texts.iter().zip(&expected.rows) {
        let (ids, decoded, spoken) = match row {
            Row::Alike(ids, decoded) => (ids, decoded, decoded),
            Row::Apart(ids, decoded, spoken) => (ids, decoded, spoken),
        };
        assert_eq!(&tokenizer.encode_with_special(text).expect("encodes"), ids, "{name}: {text:?}");
        let bare = &ids[expected.before.len()..ids.len() - expected.after.len()];
        assert_eq!(tokenizer.encode(text).expect("encodes"), bare, "{name}: {text:?} alone");
        assert_eq!(&tokenizer.decode(ids, false).expect("decodes"), decoded, "{name}: {text:?} back");
        assert_eq!(&tokenizer.decode(ids, true).expect("decodes"), spoken, "{name}: {text:?} back without specials");
    }
}

#[test]
fn folders_with_sentencepiece_alone_give_the_ids_of_transformers() {
    let golden: Golden = golden("tokenizers.json");
    assert!(golden.sentencepiece.len() > 15);
    for case in &golden.sentencepiece {
        let folder = folder(&case.model, &case.file, case.settings.as_ref());
        for (file, content) in &case.others {
            std::fs::write(folder.path().join(file), content.to_string()).expect("written");
        }
        let opened = Tokenizer::open(folder.path()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        same(&case.name, &opened, &golden.texts, &case.expected);
    }
}

fn of_json(case: &JsonCase) -> Tokenizer {
    let (tokenizer, settings) = (case.tokenizer.to_string(), case.settings.to_string());
    let files =
        TokenizerFiles { tokenizer: tokenizer.as_bytes(), settings: Some(settings.as_bytes()), chat_template: None };
    Tokenizer::from_files(files).unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

#[test]
fn added_tokens_of_the_file_and_of_the_settings_give_the_ids_of_transformers() {
    let golden: Golden = golden("tokenizers.json");
    assert!(golden.json.len() > 10);
    for case in &golden.json {
        same(&case.name, &of_json(case), &golden.texts, &case.expected);
    }
}

#[test]
fn an_uncased_bert_gives_one_id_for_both_cases_and_a_cased_one_does_not() {
    let golden: Golden = golden("tokenizers.json");
    let ids = |name: &str, text: &str| {
        let case = golden.json.iter().find(|case| case.name == name).expect("is in the table");
        of_json(case).encode(text).expect("encodes")
    };
    let hello = ids("bert uncased", "Hello");
    assert_eq!(hello.len(), 1, "one id: {hello:?}");
    for same in ["HELLO", "hello", "hElLo", "Héllo"] {
        assert_eq!(ids("bert uncased", same), hello, "{same}");
    }
    assert_ne!(ids("bert cased", "HELLO"), ids("bert cased", "hello"));
}

#[test]
fn a_converted_folder_reads_as_the_one_it_came_from() {
    let golden: Golden = golden("tokenizers.json");
    for case in &golden.sentencepiece {
        let folder = folder(&case.model, &case.file, case.settings.as_ref());
        for (file, content) in &case.others {
            std::fs::write(folder.path().join(file), content.to_string()).expect("written");
        }
        let converted = Converted::of_folder(folder.path()).expect("converts").expect("has a model to convert");
        let target = tempfile::tempdir().expect("a folder");
        converted.write(target.path()).expect("written");
        same(&case.name, &Tokenizer::open(target.path()).expect("opens"), &golden.texts, &case.expected);
        assert_eq!(Converted::of_folder(target.path()).expect("is converted"), None, "{}", case.name);
    }
}

#[test]
fn what_cannot_be_converted_is_refused_with_the_reason_and_the_remedy() {
    let golden: Golden = golden("tokenizers.json");
    for case in &golden.refused {
        let folder = folder(&case.model, &case.file, case.settings.as_ref());
        let error = Tokenizer::open(folder.path()).expect_err(&case.name).to_string();
        for wanted in &case.says {
            assert!(error.contains(wanted.as_str()), "{}: {error:?} should say {wanted:?}", case.name);
        }
    }
}

#[test]
fn a_broken_sentencepiece_file_is_named_wherever_it_breaks_off() {
    let whole = std::fs::read(model("t5")).expect("the fixture is committed");
    let folder = tempfile::tempdir().expect("a folder");
    for length in (0..whole.len()).step_by(7) {
        std::fs::write(folder.path().join("spiece.model"), &whole[..length]).expect("written");
        // Cut between two pieces it is a smaller model, which may be fine.
        if let Err(error) = Tokenizer::open(folder.path()) {
            assert!(error.to_string().starts_with("spiece.model"), "{length}: {error}");
        }
    }
    for (bytes, wanted) in [
        (&b"no model"[..], "no SentencePiece model"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7fx", "breaks off"),
        (b"\x0a\x03\x0a\x01\xff", "pieces[0]: not UTF-8"),
        (b"\x0a\x00", "pieces[0]: has no text"),
        (b"\x0a\x08\x0a\x01a\x15\x00\x00\xc0\x7f", "pieces[0]: its score is not finite"),
        (b"", "has none"),
        (b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01a", "pieces[1]: \"a\" is piece 0 already"),
    ] {
        std::fs::write(folder.path().join("spiece.model"), bytes).expect("written");
        let error = Tokenizer::open(folder.path()).expect_err("broken").to_string();
        assert!(error.contains(wanted), "{error:?} should say {wanted:?}");
    }
}
