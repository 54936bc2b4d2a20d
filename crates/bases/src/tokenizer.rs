//! The two tokenizers, built from the corpus alone.
//!
//! T5 gets a Unigram model in SentencePiece's manner (`▁` marks a space, `</s>` closes a text, sentinels for gaps), the
//! decoder a byte-level BPE as Llama 3 has, so that any text has tokens. Words of the corpus are whole tokens, in
//! T5's a stem and an ending where the dictionary lists them as forms of one another: a tiny model has no capacity to spare
//! for spelling.

pub mod bpe;
pub mod unigram;

pub mod stems;

use tokenizers::Tokenizer;

/// # Errors
/// The JSON is no tokenizer, which a test would have shown.
pub fn load(json: &str) -> anyhow::Result<Tokenizer> {
    json.parse().map_err(|error| anyhow::anyhow!("the tokenizer cannot be read back: {error}"))
}
