//! What a token stands for by itself, in bytes.
//!
//! A token's spelling is not its text: byte-level vocabularies spell each byte as a letter (GPT-2), SentencePiece's write `▁`
//! for a blank and `<0x0A>` for a byte. The tokenizer's decoder says which it is. To decode the one id instead would lose what
//! decoders drop where a text begins (the blank in front), and what is no whole character.

use std::collections::HashMap;

use serde_json::Value;

#[derive(Debug)]
pub(super) enum Spelling {
    /// Each byte as a letter.
    Bytes(HashMap<char, u8>),
    /// As text, but for the letter that stands for a blank; perhaps with `<0x0A>` for single bytes.
    Text { blank: Option<String>, bytes: bool },
    /// The decoder of this name joins tokens by rules: what one stands for depends on those beside it.
    Joined(String),
}

impl Spelling {
    /// By the decoder as `tokenizer.json` has it.
    pub fn of(decoder: &Value) -> Self {
        let mut found = Self::Text { blank: None, bytes: false };
        let parts = match decoder["decoders"].as_array() {
            Some(parts) => parts.iter().collect(),
            None => vec![decoder],
        };
        for part in parts {
            match (part["type"].as_str(), &mut found) {
                (Some("ByteLevel"), _) => return Self::Bytes(letters_of_bytes()),
                (Some("ByteFallback"), Self::Text { bytes, .. }) => *bytes = true,
                (Some("Metaspace"), Self::Text { blank, .. }) => {
                    *blank = part["replacement"].as_str().map(str::to_owned);
                }
                (Some("Replace"), Self::Text { blank, .. }) if part["content"].as_str() == Some(" ") => {
                    *blank = part["pattern"]["String"].as_str().map(str::to_owned);
                }
                (None | Some("Fuse" | "Strip" | "Replace"), _) => {}
                (Some(other), _) => return Self::Joined(other.to_owned()),
            }
        }
        found
    }

    pub fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::Bytes(letters) => {
                let bytes: Option<Vec<u8>> = token.chars().map(|letter| letters.get(&letter).copied()).collect();
                // As decoders do with what is no spelling of bytes.
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Text { blank, bytes } => {
                if let Some(byte) = byte_of(token).filter(|_| *bytes) {
                    return vec![byte];
                }
                match blank {
                    Some(blank) if !blank.is_empty() => token.replace(blank.as_str(), " ").into_bytes(),
                    _ => token.as_bytes().to_vec(),
                }
            }
            Self::Joined(_) => token.as_bytes().to_vec(),
        }
    }
}

/// The byte of `<0x0A>`.
fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
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
        let of = |decoder: Value, token: &str| Spelling::of(&decoder).bytes(token);
        assert_eq!(of(json!({ "type": "ByteLevel" }), "ĠÃ¤Ċ"), " ä\n".as_bytes());
        assert_eq!(of(json!({ "type": "ByteLevel" }), "âĸ"), [0xe2, 0x96], "part of a character");
        let llama = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] });
        assert_eq!(of(llama.clone(), "▁so"), b" so");
        assert_eq!(of(llama.clone(), "<0x0A>"), b"\n");
        assert_eq!(of(llama, "<0x0>"), b"<0x0>", "a byte has two digits");
        assert_eq!(of(json!({ "type": "Metaspace", "replacement": "▁" }), "▁<0x0A>"), b" <0x0A>");
        assert_eq!(of(Value::Null, "plain"), b"plain");
        assert!(matches!(Spelling::of(&json!({ "type": "WordPiece" })), Spelling::Joined(by) if by == "WordPiece"));
    }
}
