//! Text of a growing sequence of ids, in whole characters.
//!
//! One character may take several tokens, and a token's text may depend on the one before it (a leading blank), so each
//! step decodes a short window twice: without and with the new ids. The texts given out join to the text of the whole.

use super::Tokenizer;
use crate::error::Result;

/// What decoders put where bytes are no whole character (yet).
const REPLACEMENT: char = '\u{FFFD}';

#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The ids of the window: first those whose text was given out, then those that wait.
    ids: Vec<u32>,
    given: usize,
    characters: usize,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), given: 0, characters: 0 }
    }

    /// Takes the next id; returns the text that is now certain, which may be empty.
    ///
    /// # Errors
    /// The tokenizer fails on the ids.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, with) = self.texts()?;
        if with.len() <= before.len() || with.ends_with(REPLACEMENT) {
            return Ok(String::new());
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        let text = added(&before, &with);
        self.characters += text.chars().count();
        Ok(text)
    }

    /// Characters given out so far: where the next token's text begins, or the character that it goes on with.
    pub fn characters(&self) -> usize {
        self.characters
    }

    /// The rest, for a sequence that ends in the middle of a character.
    ///
    /// # Errors
    /// The tokenizer fails on the ids.
    pub fn finish(mut self) -> Result<String> {
        let (before, with) = self.texts()?;
        self.ids.clear();
        Ok(added(&before, &with))
    }

    fn texts(&self) -> Result<(String, String)> {
        let given = self.ids.get(..self.given).unwrap_or_default();
        Ok((self.tokenizer.decode(given, self.skip_special)?, self.tokenizer.decode(&self.ids, self.skip_special)?))
    }
}

/// What `with` has more than `before`. Should the window's beginning read differently, its common part counts.
fn added(before: &str, with: &str) -> String {
    let common: usize = before.chars().zip(with.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    with.get(common..).unwrap_or_default().to_owned()
}
