//! The fields of `tokenizer_config.json` that matter here.

use serde_json::{Map, Value};

use super::SETTINGS_FILE;
use super::added::AddedTokens;
use crate::chat::SpecialTexts;
use crate::error::{Error, Result};

/// T5 has 100. Each is a piece and an added token, so that a few digits become megabytes.
const MAX_EXTRA_IDS: u64 = 1000;

#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
    pub chat_template: Option<String>,
    /// The one for conversations with tools, where it is another.
    pub tool_template: Option<String>,
    pub added: AddedTokens,
    pub sentencepiece: SentencePieceSettings,
}

/// What decides how a SentencePiece model becomes a tokenizer; `tokenizer.json` says it itself.
#[derive(Debug, Clone, Default)]
pub(super) struct SentencePieceSettings {
    /// `tokenizer_class` without its `Fast`.
    pub class: Option<String>,
    pub legacy: Option<bool>,
    pub add_prefix_space: Option<bool>,
    pub extra_ids: Option<u64>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
}

impl Settings {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| Error::tokenizer(SETTINGS_FILE, "", format!("not JSON: {error}")))?;
        let Value::Object(map) = value else {
            return Err(Error::tokenizer(SETTINGS_FILE, "", "must be a JSON object"));
        };
        Self::of(&map)
    }

    pub fn of(map: &Map<String, Value>) -> Result<Self> {
        Ok(Self {
            bos: token(map, "bos_token")?,
            eos: token(map, "eos_token")?,
            pad: token(map, "pad_token")?,
            unk: token(map, "unk_token")?,
            chat_template: chat_template(map)?,
            tool_template: named_template(map, "tool_use").map(str::to_owned),
            added: AddedTokens::parse(map)?,
            sentencepiece: SentencePieceSettings::parse(map)?,
        })
    }

    pub fn special_texts(&self) -> SpecialTexts {
        self.added.named_texts()
    }
}

impl SentencePieceSettings {
    fn parse(map: &Map<String, Value>) -> Result<Self> {
        let class = match map.get("tokenizer_class") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.strip_suffix("Fast").unwrap_or(name).to_owned()),
            Some(_) => return Err(wrong("tokenizer_class", "a text")),
        };
        let extra_ids = match map.get("extra_ids") {
            None | Some(Value::Null) => None,
            Some(number) => match number.as_u64() {
                Some(count @ 0..=MAX_EXTRA_IDS) => Some(count),
                _ => return Err(wrong("extra_ids", &format!("a number from 0 to {MAX_EXTRA_IDS}"))),
            },
        };
        Ok(Self {
            class,
            legacy: flag(map, "legacy")?,
            add_prefix_space: flag(map, "add_prefix_space")?,
            extra_ids,
            add_bos: flag(map, "add_bos_token")?,
            add_eos: flag(map, "add_eos_token")?,
        })
    }
}

fn wrong(field: &str, wanted: &str) -> Error {
    Error::tokenizer(SETTINGS_FILE, field, format!("must be {wanted}"))
}

/// A text, or an object with the text as `content`.
fn token(map: &Map<String, Value>, field: &str) -> Result<Option<String>> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Object(token)) => match token.get("content") {
            Some(Value::String(text)) => Ok(Some(text.clone())),
            _ => Err(wrong(field, "a text or an object with the text as content")),
        },
        Some(_) => Err(wrong(field, "a text or an object with the text as content")),
    }
}

fn flag(map: &Map<String, Value>, field: &str) -> Result<Option<bool>> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(wrong(field, "true or false")),
    }
}

/// One template, or several with names, of which `default` counts.
fn chat_template(map: &Map<String, Value>) -> Result<Option<String>> {
    const FIELD: &str = "chat_template";
    const WANTED: &str = "a text, or a list of objects with name and template";
    match map.get(FIELD) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(_)) => named_template(map, "default")
            .map(|text| Some(text.to_owned()))
            .ok_or_else(|| wrong(FIELD, "a list with a template named default")),
        Some(_) => Err(wrong(FIELD, WANTED)),
    }
}

fn named_template<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    let named = map.get("chat_template")?.as_array()?;
    let entry = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?;
    entry.get("template").and_then(Value::as_str)
}
