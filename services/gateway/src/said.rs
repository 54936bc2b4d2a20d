//! Tokens of an answer, each by itself, with their log-probabilities.

use tailor_engine::Logprobs;
use tailor_text::Tokenizer;

#[derive(Debug, Clone)]
pub struct SaidToken {
    pub token: Token,
    pub logprob: f32,
    /// The likeliest in its place, the likeliest first.
    pub top: Vec<(Token, f32)>,
    /// Characters of the answer before it.
    pub offset: usize,
}

/// What a token stands for, whatever stands beside it: with the blank in front of a word, and perhaps with a part of a
/// character alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub id: u32,
    pub bytes: Vec<u8>,
}

impl SaidToken {
    pub fn new(tokenizer: &Tokenizer, id: u32, logprobs: &Logprobs, offset: usize) -> Self {
        let token = |id: u32| Token { id, bytes: tokenizer.token_bytes(id).unwrap_or_default() };
        let top = logprobs.top.iter().map(|(id, logprob)| (token(*id), *logprob));
        Self { token: token(id), logprob: logprobs.chosen, top: top.collect(), offset }
    }
}

impl Token {
    /// What is no whole character is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// As OpenAI's older API names it, so that no two parts of characters have one name: `bytes:\xe2\x96`.
    pub fn name(&self) -> String {
        if let Ok(text) = std::str::from_utf8(&self.bytes) {
            return text.to_owned();
        }
        let shown = self.bytes.iter().map(|byte| match byte {
            b' '..=b'~' => char::from(*byte).to_string(),
            _ => format!(r"\x{byte:02x}"),
        });
        format!("bytes:{}", shown.collect::<String>())
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Map, Value, json};
    use tailor_text::TokenizerFiles;

    use super::*;

    /// `<unk>`, `▁the`, `the`, the bytes of `▁`, `<0x0A>`: what a Llama's tokenizer is made of.
    pub fn llama() -> Tokenizer {
        let pieces = ["<unk>", "▁the", "the", "<0xE2>", "<0x96>", "<0x81>", "<0x0A>"];
        let vocabulary: Map<String, Value> =
            pieces.iter().zip(0..).map(|(piece, id)| ((*piece).to_owned(), Value::from(id))).collect();
        let blank = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
        let decoders = json!([blank, { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }]);
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": { "type": "Sequence", "decoders": decoders },
            "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocabulary, "merges": [] },
        });
        let bytes = tokenizer.to_string();
        let files = TokenizerFiles { tokenizer: bytes.as_bytes(), settings: None, chat_template: None };
        Tokenizer::from_files(files).expect("a tokenizer")
    }

    #[test]
    fn a_token_keeps_its_blank_and_its_bytes() {
        let logprobs = Logprobs { chosen: -0.5, top: vec![(1, -0.5), (2, -1.0), (3, -2.0), (6, -3.0)] };
        let said = SaidToken::new(&llama(), 1, &logprobs, 7);
        assert_eq!((said.token.text().as_str(), said.token.bytes.as_slice(), said.offset), (" the", &b" the"[..], 7));
        let names: Vec<String> = said.top.iter().map(|(token, _)| token.name()).collect();
        assert_eq!(names, [" the", "the", r"bytes:\xe2", "\n"], "no two have one name");
        let part = &said.top[2].0;
        assert_eq!((part.text().as_str(), part.bytes.as_slice()), ("\u{FFFD}", &[0xe2][..]));
        let mixed = Token { id: 9, bytes: b" \xe2\x96".to_vec() };
        assert_eq!(mixed.name(), r"bytes: \xe2\x96");
    }
}
