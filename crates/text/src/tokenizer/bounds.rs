//! What a `tokenizer.json` may make of a text, worked out before the library sees it.
//!
//! A file of some hundred bytes can ask for more than any machine has: a chain of replacements multiplies, a template
//! repeats, a compiled table claims a size. Here each step's growth is bounded from above by its own fields, and a
//! chain's is the product. Not bounded is the time that a hostile regular expression takes on a hostile text: the
//! library's engine backtracks, as the look-ahead of real files needs.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::TOKENIZER_FILE;
use crate::error::{Error, Result};

/// Times that a text may grow. By this reckoning T5's own steps come to 660: its table has an entry of 33 bytes.
const MAX_GROWTH: u64 = 1024;
/// Bytes that the added tokens may take after the normaliser; each is normalised when the file is read.
const MAX_ADDED_BYTES: u64 = 256 << 20;
/// Gemma's, the largest in use, has 3 million.
const MAX_VALUES: usize = 8_000_000;
/// Of a regular expression, in bytes; GPT-4's has 250.
const MAX_PATTERN_BYTES: usize = 8192;
/// Steps of a chain, pieces of a template, ids of one of its tokens; real ones have some eight, three and one.
const MAX_PIECES: usize = 64;
/// WordPiece tries every part of a word: the work is the square of this.
const MAX_WORD: u64 = 10_000;

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Option<Model>,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

/// Besides what is read here, the vocabulary: it stays where it is.
#[derive(Deserialize)]
struct Model {
    max_input_chars_per_word: Option<u64>,
    continuing_subword_prefix: Option<String>,
    #[serde(rename = "vocab")]
    _vocab: Option<IgnoredAny>,
}

/// How many times as long the normaliser may make a text.
///
/// # Errors
/// A part of the file asks for more than its limit; says which.
pub(super) fn check(file: &[u8]) -> Result<u64> {
    let values = file.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if values > MAX_VALUES {
        return Err(wrong("", format!("some {values} values, the limit is {MAX_VALUES}")));
    }
    let parts: Parts = serde_json::from_slice(file).map_err(|error| wrong("", format!("not a tokenizer: {error}")))?;
    let normalizer = growth("normalizer", &parts.normalizer)?;
    let text = normalizer.saturating_mul(growth("pre_tokenizer", &parts.pre_tokenizer)?);
    for (field, growth) in [("normalizer", text), ("decoder", growth("decoder", &parts.decoder)?)] {
        if growth > MAX_GROWTH {
            let problem = format!("its steps may make a text {growth} times as long, the limit is {MAX_GROWTH}");
            return Err(wrong(field, problem));
        }
    }
    let bytes = parts.added_tokens.iter().map(|token| token.content.len() as u64).sum();
    check_added(TOKENIZER_FILE, "added_tokens", bytes, normalizer)?;
    template(&parts.post_processor)?;
    let Some(model) = parts.model else { return Ok(normalizer) };
    if let Some(letters) = model.max_input_chars_per_word.filter(|letters| *letters > MAX_WORD) {
        return Err(wrong("model.max_input_chars_per_word", format!("{letters}, the limit is {MAX_WORD}")));
    }
    match model.continuing_subword_prefix.map_or(0, |prefix| prefix.len()) {
        length if length > MAX_PIECES => {
            Err(wrong("model.continuing_subword_prefix", format!("{length} bytes, the limit is {MAX_PIECES}")))
        }
        _ => Ok(normalizer),
    }
}

/// # Errors
/// Added tokens of so many bytes are too long for a normaliser with this growth.
pub(super) fn check_added(file: &str, field: &str, bytes: u64, growth: u64) -> Result<()> {
    if bytes.saturating_mul(growth) <= MAX_ADDED_BYTES {
        return Ok(());
    }
    let problem = format!("{bytes} bytes, which may become {growth} times as long; the limit is {MAX_ADDED_BYTES}");
    Err(Error::tokenizer(file, field, problem))
}

/// A compiled table of normalisation: the size of its trie in four bytes, the trie, and texts that end in a zero.
///
/// # Errors
/// The trie is larger than the table: the library would take the memory before it looks.
pub(super) fn longest_replacement(charsmap: &[u8]) -> Result<u64, String> {
    let Some((size, rest)) = charsmap.split_first_chunk::<4>() else {
        return Err(format!("{} bytes are no table", charsmap.len()));
    };
    let trie = u32::from_le_bytes(*size) as usize;
    let texts = rest
        .get(trie / 4 * 4..)
        .ok_or_else(|| format!("a table of {} bytes that claims {trie} for its trie", charsmap.len()))?;
    Ok(texts.split(|byte| *byte == 0).map(|text| text.len() as u64).max().unwrap_or(0))
}

/// How many times as long a text may become; steps are told by their fields, as the library tells those without a type.
fn growth(field: &str, part: &Value) -> Result<u64> {
    let (own, inner): (u64, Vec<&Value>) = match part {
        Value::Object(step) => (own_growth(field, step)?, step.values().collect()),
        Value::Array(steps) if steps.len() > MAX_PIECES => {
            return Err(wrong(field, format!("{} steps, the limit is {MAX_PIECES}", steps.len())));
        }
        Value::Array(steps) => (1, steps.iter().collect()),
        _ => return Ok(1),
    };
    inner.into_iter().try_fold(own, |product, part| Ok(product.saturating_mul(growth(field, part)?)))
}

fn own_growth(field: &str, step: &Map<String, Value>) -> Result<u64> {
    let text = |name: &str| step.get(name).and_then(Value::as_str);
    let mut growth = 1;
    let pattern = step.get("pattern").and_then(Value::as_object);
    let pattern = |kind: &str| pattern.and_then(|pattern| pattern.get(kind)).and_then(Value::as_str);
    let (literal, regex) = (pattern("String"), pattern("Regex"));
    if let Some(length) = literal.or(regex).map(str::len).filter(|length| *length > MAX_PATTERN_BYTES) {
        return Err(wrong(field, format!("a pattern of {length} bytes, the limit is {MAX_PATTERN_BYTES}")));
    }
    if let Some(content) = text("content") {
        growth = match literal {
            Some(literal) if !literal.is_empty() => content.len().div_ceil(literal.len()).max(1) as u64,
            // It may match one letter, or the nothing before one.
            _ => 1 + content.len() as u64,
        };
    }
    if let Some(charsmap) = text("precompiled_charsmap") {
        let problem = |problem: String| wrong(field, format!("precompiled_charsmap: {problem}"));
        let bytes = base64(charsmap).ok_or_else(|| problem("not base64".into()))?;
        growth = longest_replacement(&bytes).map_err(problem)?.max(1);
    }
    // Once for each piece of the text, and a piece may be a letter.
    for name in ["prepend", "replacement"] {
        growth = growth.saturating_mul(1 + text(name).map_or(0, str::len) as u64);
    }
    let has = |name: &str| step.contains_key(name);
    if text("type") == Some("ByteLevel") || has("add_prefix_space") && !has("replacement") {
        growth = growth.saturating_mul(3); // a byte becomes a letter of two, and a blank comes before it
    }
    if ["suffix", "prefix", "word_delimiter_token"].into_iter().any(has) {
        growth = growth.saturating_mul(2); // an empty one is found, and becomes a blank, before every letter
    }
    Ok(growth)
}

fn template(part: &Value) -> Result<()> {
    let inner: Vec<&Value> = match part {
        Value::Object(fields) => {
            for name in ["single", "pair", "ids"] {
                if let Some(pieces) = fields.get(name).and_then(Value::as_array).filter(|list| list.len() > MAX_PIECES)
                {
                    let problem = format!("{name} has {} entries, the limit is {MAX_PIECES}", pieces.len());
                    return Err(wrong("post_processor", problem));
                }
            }
            fields.values().collect()
        }
        Value::Array(parts) => parts.iter().collect(),
        _ => return Ok(()),
    };
    inner.into_iter().try_for_each(template)
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

fn wrong(field: &str, problem: String) -> Error {
    Error::tokenizer(TOKENIZER_FILE, field, problem)
}
