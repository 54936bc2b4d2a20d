//! The bytes that each token stands for, in a trie.
//!
//! A token's spelling is not its text: byte-level vocabularies spell each byte as a letter (GPT-2), SentencePiece's write `▁`
//! for a blank and `<0x0A>` for a byte. The tokenizer's decoder says which it is.

use std::collections::HashMap;
use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use serde_json::Value;
use tailor_text::Tokenizer;

use crate::Error;

pub fn environment(tokenizer: &Tokenizer, vocabulary: usize, eos: &[u32]) -> Result<TokEnv, Error> {
    let failed = |problem: String| Error::Tokenizer(problem);
    let json = tokenizer.to_json().map_err(|error| failed(error.to_string()))?;
    let json: Value = serde_json::from_str(&json).map_err(|error| failed(error.to_string()))?;
    let spelling = Spelling::of(&json["decoder"]).map_err(failed)?;
    let added = added(&json);
    let tokens: Vec<Vec<u8>> = (0..vocabulary as u32)
        .map(|id| match (added.get(&id), tokenizer.token(id)) {
            (Some((content, false)), _) => content.as_bytes().to_vec(),
            (Some((content, true)), _) => special(content),
            (None, Some(token)) => spelling.bytes(&token),
            // What the model has beside the tokenizer's tokens is never text.
            (None, None) => special(&format!("<[{id}]>")),
        })
        .collect();
    let known: Vec<u32> = eos.iter().copied().filter(|id| (*id as usize) < vocabulary).collect();
    let Some(first) = known.first() else { return Err(failed("the model has no end token".into())) };
    let trie = TokTrie::from(&TokRxInfo::new(vocabulary as u32, *first), &tokens).with_eos_tokens(&known);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

fn special(name: &str) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
}

/// Tokens that were added to the vocabulary, and whether they are no text.
fn added(json: &Value) -> HashMap<u32, (String, bool)> {
    let tokens = json["added_tokens"].as_array().into_iter().flatten();
    let read = |token: &Value| {
        let id = u32::try_from(token["id"].as_u64()?).ok()?;
        Some((id, (token["content"].as_str()?.to_owned(), token["special"].as_bool().unwrap_or(true))))
    };
    tokens.filter_map(read).collect()
}

enum Spelling {
    /// Each byte as a letter.
    Bytes(HashMap<char, u8>),
    /// As text, but for the letter that stands for a blank; perhaps with `<0x0A>` for single bytes.
    Text { blank: Option<String>, bytes: bool },
}

impl Spelling {
    fn of(decoder: &Value) -> Result<Self, String> {
        let mut found = Self::Text { blank: None, bytes: false };
        let parts = match decoder["decoders"].as_array() {
            Some(parts) => parts.iter().collect(),
            None => vec![decoder],
        };
        for part in parts {
            match (part["type"].as_str(), &mut found) {
                (Some("ByteLevel"), _) => return Ok(Self::Bytes(letters_of_bytes())),
                (Some("ByteFallback"), Self::Text { bytes, .. }) => *bytes = true,
                (Some("Metaspace"), Self::Text { blank, .. }) => {
                    *blank = part["replacement"].as_str().map(str::to_owned);
                }
                (Some("Replace"), Self::Text { blank, .. }) if part["content"].as_str() == Some(" ") => {
                    *blank = part["pattern"]["String"].as_str().map(str::to_owned);
                }
                (None | Some("Fuse" | "Strip" | "Replace"), _) => {}
                (Some(other), _) => return Err(format!("it decodes by {other}, which joins tokens by rules")),
            }
        }
        Ok(found)
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::Bytes(letters) => {
                let mut buffer = [0; 4];
                let mut bytes = Vec::with_capacity(token.len());
                for letter in token.chars() {
                    match letters.get(&letter) {
                        Some(byte) => bytes.push(*byte),
                        None => bytes.extend(letter.encode_utf8(&mut buffer).as_bytes()),
                    }
                }
                bytes
            }
            Self::Text { blank, bytes } => {
                let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|_| *bytes);
                if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    return vec![byte];
                }
                match blank {
                    Some(blank) if !blank.is_empty() => token.replace(blank.as_str(), " ").into_bytes(),
                    _ => token.as_bytes().to_vec(),
                }
            }
        }
    }
}

/// GPT-2's table: printable bytes are their own letters, the others follow from U+0100 on.
fn letters_of_bytes() -> HashMap<char, u8> {
    let own = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    let letters = (0..=255u8).filter_map(|byte| {
        if own(byte) {
            return Some((char::from(byte), byte));
        }
        let letter = char::from_u32(next)?;
        next += 1;
        Some((letter, byte))
    });
    letters.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_spelt_by_the_decoder() {
        let of = |decoder: Value, token: &str| Spelling::of(&decoder).expect("known").bytes(token);
        assert_eq!(of(json!({ "type": "ByteLevel" }), "ĠÃ¤Ċ"), " ä\n".as_bytes());
        let llama = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" },
        ] });
        assert_eq!(of(llama.clone(), "▁so"), b" so");
        assert_eq!(of(llama, "<0x0A>"), b"\n");
        assert_eq!(of(json!({ "type": "Metaspace", "replacement": "▁" }), "▁<0x0A>"), b" <0x0A>");
        assert_eq!(of(Value::Null, "plain"), b"plain");
        assert!(Spelling::of(&json!({ "type": "WordPiece" })).is_err());
    }
}
