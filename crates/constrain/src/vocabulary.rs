//! The bytes that each token stands for, in a trie.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use tailor_text::Tokenizer;

use crate::Error;

pub fn environment(tokenizer: &Tokenizer, vocabulary: usize, eos: &[u32]) -> Result<TokEnv, Error> {
    let failed = |problem: String| Error::Tokenizer(problem);
    if let Some(decoder) = tokenizer.joined_by() {
        return Err(failed(format!("it decodes by {decoder}, which joins tokens by rules")));
    }
    let tokens: Vec<Vec<u8>> = (0..vocabulary as u32)
        .map(|id| match tokenizer.token_bytes(id) {
            Some(name) if tokenizer.is_special(id) => special(&name),
            Some(bytes) => bytes,
            // What the model has beside the tokenizer's tokens is never text.
            None => special(format!("<[{id}]>").as_bytes()),
        })
        .collect();
    let known: Vec<u32> = eos.iter().copied().filter(|id| (*id as usize) < vocabulary).collect();
    let Some(first) = known.first() else { return Err(failed("the model has no end token".into())) };
    let trie = TokTrie::from(&TokRxInfo::new(vocabulary as u32, *first), &tokens).with_eos_tokens(&known);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

fn special(name: &[u8]) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat()
}
