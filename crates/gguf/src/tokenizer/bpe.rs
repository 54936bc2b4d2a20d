//! Byte-level BPE (GPT-2's, Llama 3's, Qwen's): llama.cpp's `gpt2`.

use super::{Algorithm, Source, kind_of, not_mapped, pre, steps};
use crate::Result;

pub(super) fn algorithm(source: &Source<'_>, notes: &mut Vec<String>) -> Result<Algorithm> {
    let pre = pre::name(source, notes)?;
    for step in steps(source.normalizer, "normalizers") {
        if kind_of(step) != "NFC" {
            return Err(not_mapped("normalizer", format!("llama.cpp has no {}", kind_of(step))));
        }
        notes.push("the tokenizer composes letters (NFC) and llama.cpp does not; give it texts in NFC".into());
    }
    let merges = source.merges()?;
    if let Some((left, right)) = merges.iter().find(|(left, right)| left.contains(' ') || right.contains(' ')) {
        return Err(not_mapped("model.merges", format!("{left:?} and {right:?}: a piece with a blank cannot be said")));
    }
    let merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
    Ok(Algorithm { model: "gpt2", pre, add_space_prefix: false, merges: Some(merges), scores: None })
}
