//! SentencePiece's BPE (Llama 2's, Mistral's, Gemma's): llama.cpp's `llama`.
//!
//! `tokenizer.json` ranks pairs, SentencePiece scores the pieces that pairs become: of all neighbours that make a piece, the
//! piece with the highest score is made. Both do the same exactly if every two pieces that make a third are a pair, and the
//! pairs of one piece stand together in the list; then a piece's score is minus the place of its first pair.

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;

use super::{Algorithm, Source, json_flag, kind_of, not_mapped, steps};
use crate::Result;

/// What stands for a blank in pieces.
pub(super) const BLANK: &str = "\u{2581}";
/// SentencePiece makes pieces of 16 characters. Each is tried at all its places, so that a long one would take long.
const MAX_PIECE_BYTES: usize = 1024;

pub(super) fn algorithm(source: &Source<'_>, notes: &mut Vec<String>) -> Result<Algorithm> {
    if source.flag("ignore_merges") {
        return Err(not_mapped("model.ignore_merges", "true cannot be said beside byte_fallback".into()));
    }
    let add_space_prefix = space_prefix(source, notes)?;
    let vocabulary: HashSet<&str> = source.vocabulary()?.map(|(text, _)| text).collect();
    let bytes: HashSet<u8> = vocabulary.iter().filter_map(|text| byte_of(text)).collect();
    if bytes.len() < 256 {
        let problem = format!("{} of 256 pieces such as <0x0A> are there, and llama.cpp needs all", bytes.len());
        return Err(not_mapped("model.vocab", problem));
    }
    let scores = scores(source, &vocabulary)?;
    Ok(Algorithm { model: "llama", pre: "default", add_space_prefix, merges: None, scores: Some(scores) })
}

/// The byte that a piece such as `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

fn scores(source: &Source<'_>, vocabulary: &HashSet<&str>) -> Result<HashMap<String, f32>> {
    let merges = source.merges()?;
    let pairs: HashSet<(&str, &str)> = merges.iter().copied().collect();
    let mut scores: HashMap<String, f32> = HashMap::with_capacity(vocabulary.len());
    let mut last = String::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        let piece = format!("{left}{right}");
        if piece == last {
            continue;
        }
        if scores.insert(piece.clone(), -(rank as f32)).is_some() {
            let problem = format!("the pairs of {piece:?} do not stand together, and scores cannot say such an order");
            return Err(not_mapped("model.merges", problem));
        }
        last = piece;
    }
    let added: HashSet<&str> = source.added.iter().map(|token| token.text).collect();
    for piece in vocabulary.iter().filter(|piece| !added.contains(**piece) && byte_of(piece).is_none()) {
        if piece.len() > MAX_PIECE_BYTES {
            return Err(not_mapped(
                "model.vocab",
                format!("a piece of {} bytes; the limit is {MAX_PIECE_BYTES}", piece.len()),
            ));
        }
        let halves = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let missing = |(left, right): &(&str, &str)| {
            vocabulary.contains(left) && vocabulary.contains(right) && !pairs.contains(&(left, right))
        };
        if let Some((left, right)) = halves.into_iter().find(missing) {
            let problem =
                format!("{left:?} and {right:?} are never merged, and llama.cpp would make {piece:?} of them");
            return Err(not_mapped("model.merges", problem));
        }
    }
    Ok(scores)
}

/// Whether a blank is put before a text, which the normalizer or the pre-tokenizer says.
fn space_prefix(source: &Source<'_>, notes: &mut Vec<String>) -> Result<bool> {
    let normalizer = steps(source.normalizer, "normalizers");
    let cut = steps(source.pre_tokenizer, "pretokenizers");
    let (mut prepends, mut replaces) = (false, false);
    for (at, step) in normalizer.iter().enumerate() {
        match kind_of(step) {
            "Prepend" if at == 0 && text(step, "prepend") == Some(BLANK) => prepends = true,
            "Replace" if !replaces && is_blank_replaced(step) => replaces = true,
            other => return Err(not_mapped("normalizer", format!("llama.cpp has no {other} here"))),
        }
    }
    let metaspace = match cut.as_slice() {
        [] => None,
        // Blanks are gone when it looks for them, or are cut from the word that they begin, where no piece has one inside.
        [split] if replaces && kind_of(split) == "Split" && is_string(split, " ") => None,
        [step] if kind_of(step) == "Metaspace" && !json_flag_or(step, "split", true) => Some(*step),
        [step, ..] => {
            let problem = format!("llama.cpp cuts no text before it merges, and {} would here", kind_of(step));
            return Err(not_mapped("pre_tokenizer", problem));
        }
    };
    match metaspace.map(|step| text(step, "prepend_scheme").unwrap_or("always")) {
        None if replaces => Ok(prepends),
        Some("never") if !prepends => Ok(false),
        Some(scheme @ ("always" | "first")) if !prepends => {
            let where_else = match scheme {
                "first" => "also behind special tokens, and ",
                _ => "",
            };
            notes.push(format!(
                "llama.cpp puts a blank before a text {where_else}also where it begins with one; the tokenizer does not"
            ));
            Ok(true)
        }
        _ => Err(not_mapped("normalizer", "how blanks are kept is not one of the ways of Llama and Gemma".into())),
    }
}

fn text<'a>(step: &'a Json, field: &str) -> Option<&'a str> {
    step.get(field).and_then(Json::as_str)
}

fn is_string(step: &Json, wanted: &str) -> bool {
    step.get("pattern").and_then(|pattern| text(pattern, "String")) == Some(wanted)
}

fn is_blank_replaced(step: &Json) -> bool {
    is_string(step, " ") && text(step, "content") == Some(BLANK)
}

fn json_flag_or(step: &Json, field: &str, default: bool) -> bool {
    if step.get(field).is_some() { json_flag(step, field) } else { default }
}
