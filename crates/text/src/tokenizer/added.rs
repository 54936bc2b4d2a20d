//! Tokens that `tokenizer_config.json` adds to a vocabulary, in the order in which `transformers` adds them: the order
//! decides the ids of those that the vocabulary lacks.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::SETTINGS_FILE;
use crate::error::{Error, Result};

/// The named tokens that every tokenizer may have, in order.
const STANDARD: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Real vocabularies reserve some thousand.
const MAX_ADDED: usize = 1 << 16;

#[derive(Debug, Clone, Default)]
pub(super) struct AddedTokens {
    /// `added_tokens_decoder`, by id. The id itself is not binding: a new token gets the next free one.
    decoder: Vec<(u64, AddedToken)>,
    /// `bos_token` and its like, and the model's own, e.g. `image_token`.
    named: Vec<(String, AddedToken)>,
    /// `extra_special_tokens`, once called `additional_special_tokens`.
    extra: Option<Vec<AddedToken>>,
}

impl AddedTokens {
    pub fn parse(map: &Map<String, Value>) -> Result<Self> {
        let mut tokens = Self { decoder: decoder(map)?, ..Self::default() };
        let own = map.keys().map(String::as_str).filter(|key| key.ends_with("_token") && !STANDARD.contains(key));
        for field in STANDARD.into_iter().chain(own) {
            if let Some(token @ (Value::String(_) | Value::Object(_))) = map.get(field) {
                tokens.named.push((field.to_owned(), token_of(field, token)?));
            }
        }
        const EXTRA: &str = "extra_special_tokens";
        const ADDITIONAL: &str = "additional_special_tokens";
        let filled = |field: &str| match map.get(field) {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(named)) => !named.is_empty(),
            Some(_) => true,
        };
        let field = if !filled(EXTRA) && map.contains_key(ADDITIONAL) { ADDITIONAL } else { EXTRA };
        match map.get(field) {
            None => {}
            Some(Value::Null) => tokens.extra = Some(Vec::new()),
            Some(Value::Array(list)) => {
                tokens.extra = Some(list.iter().map(|token| token_of(field, token)).collect::<Result<_>>()?);
            }
            Some(Value::Object(named)) => {
                for (name, token) in named {
                    tokens.named.push((name.clone(), token_of(field, token)?));
                }
            }
            Some(_) => return Err(Error::tokenizer(SETTINGS_FILE, field, "must be a list of tokens")),
        }
        let count = tokens.decoder.len() + tokens.named.len() + tokens.extra.as_ref().map_or(0, Vec::len);
        if count > MAX_ADDED {
            let problem = format!("{count} added tokens, the limit is {MAX_ADDED}");
            return Err(Error::tokenizer(SETTINGS_FILE, "added_tokens_decoder", problem));
        }
        Ok(tokens)
    }

    /// Bytes of all their texts.
    pub fn bytes(&self) -> u64 {
        let decoder = self.decoder.iter().map(|(_, token)| token);
        let named = self.named.iter().map(|(_, token)| token);
        decoder.chain(named).chain(self.extra.iter().flatten()).map(|token| token.content.len() as u64).sum()
    }

    /// Whether `added_tokens_decoder` has the token.
    pub fn defines(&self, text: &str) -> bool {
        self.decoder.iter().any(|(_, token)| token.content == text)
    }

    /// The named tokens as templates know them.
    pub fn named_texts(&self) -> BTreeMap<String, String> {
        self.named.iter().map(|(name, token)| (name.clone(), token.content.clone())).collect()
    }

    /// These extra tokens where the settings say nothing of any.
    pub fn or_extra(mut self, extra: Vec<AddedToken>) -> Self {
        self.extra.get_or_insert(extra);
        self
    }

    /// # Errors
    /// The tokenizer refuses a token.
    pub fn add_to(&self, tokenizer: &mut tokenizers::Tokenizer) -> Result<()> {
        let there = tokenizer.get_added_tokens_decoder();
        let by_content: HashMap<&str, &AddedToken> =
            there.values().map(|token| (token.content.as_str(), token)).collect();
        let same = |token: &AddedToken| by_content.get(token.content.as_str()).is_some_and(|there| *there == token);
        let mut known: HashSet<&str> = there.values().map(|token| token.content.as_str()).collect();
        known.extend(self.decoder.iter().map(|(_, token)| token.content.as_str()));
        let changed = self.decoder.iter().map(|(_, token)| token).filter(|token| !same(token));
        let mut adding: Vec<AddedToken> = changed.cloned().collect();
        for token in self.named.iter().map(|(_, token)| token).chain(self.extra.iter().flatten()) {
            if known.insert(&token.content) {
                adding.push(token.clone());
            }
        }
        let named: HashSet<&str> = self.named.iter().map(|(_, token)| token.content.as_str()).collect();
        for token in &mut adding {
            token.special |= named.contains(token.content.as_str());
        }
        let added = tokenizer.add_tokens(adding);
        added.map(|_| ()).map_err(|error| {
            Error::tokenizer(SETTINGS_FILE, "added_tokens_decoder", format!("cannot be added: {error}"))
        })
    }
}

fn decoder(map: &Map<String, Value>) -> Result<Vec<(u64, AddedToken)>> {
    const FIELD: &str = "added_tokens_decoder";
    let wrong = |problem: &str| Error::tokenizer(SETTINGS_FILE, FIELD, problem);
    let tokens = match map.get(FIELD) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(tokens)) => tokens,
        Some(_) => return Err(wrong("must be an object of tokens by id")),
    };
    let mut decoder = Vec::with_capacity(tokens.len());
    for (id, token) in tokens {
        let id = id.parse().map_err(|_| wrong(&format!("{id:?} is no id")))?;
        decoder.push((id, token_of(FIELD, token)?));
    }
    decoder.sort_by_key(|(id, _)| *id);
    Ok(decoder)
}

/// A text is a special token; an object says what it is.
fn token_of(field: &str, token: &Value) -> Result<AddedToken> {
    let wrong = |problem: String| Error::tokenizer(SETTINGS_FILE, field, problem);
    let content = match token {
        Value::String(text) => return Ok(AddedToken::from(text.clone(), true)),
        Value::Object(token) => token.get("content").and_then(Value::as_str),
        _ => None,
    };
    let content = content.ok_or_else(|| wrong("must be a text or an object with the text as content".into()))?;
    let flag = |name: &str| match token.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(wrong(format!("{name} of {content:?} must be true or false"))),
    };
    let special = flag("special")?.unwrap_or(false);
    Ok(AddedToken::from(content, special)
        .single_word(flag("single_word")?.unwrap_or(false))
        .lstrip(flag("lstrip")?.unwrap_or(false))
        .rstrip(flag("rstrip")?.unwrap_or(false))
        .normalized(flag("normalized")?.unwrap_or(!special)))
}
