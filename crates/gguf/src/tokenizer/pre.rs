//! How a text is cut before pairs are merged, and what llama.cpp calls that. It has the rules in its own code and knows
//! them by name alone, so that a cut is either one of these or cannot be said.

use serde_json::Value as Json;

use super::{Source, json_flag, kind_of, not_mapped, steps};
use crate::Result;

/// A cut by one expression: it, whether words of the vocabulary stand without being merged, and the name.
struct Cut {
    expression: &'static str,
    ignore_merges: bool,
    name: &'static str,
}

/// GPT-4's expression as Llama 3 and as Qwen 2 have it: numbers in threes, or by digits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CUTS: [Cut; 4] = [
    Cut { expression: LLAMA3, ignore_merges: true, name: "llama-bpe" },
    Cut { expression: LLAMA3, ignore_merges: false, name: "smaug-bpe" },
    Cut { expression: QWEN2, ignore_merges: false, name: "qwen2" },
    Cut { expression: TEKKEN, ignore_merges: true, name: "tekken" },
];
const GPT2: &str = "gpt-2";
/// Digits one by one, then GPT-2's expression.
const DIGITS: &str = "smollm";

/// # Errors
/// A cut that llama.cpp has no name for.
pub(super) fn name(source: &Source<'_>, notes: &mut Vec<String>) -> Result<&'static str> {
    let ignore_merges = source.flag("ignore_merges");
    let refused = || {
        let found = source.pre_tokenizer.map_or("null".to_owned(), Json::to_string);
        let found: String = found.chars().take(300).collect();
        let problem = format!("llama.cpp has no name for this cut, with ignore_merges {ignore_merges}: {found}");
        not_mapped("pre_tokenizer", problem)
    };
    let steps = steps(source.pre_tokenizer, "pretokenizers");
    let name = match steps.as_slice() {
        [bytes] if is_bytes(bytes, true) && !ignore_merges => GPT2,
        [digits, bytes] if is_digits(digits) && is_bytes(bytes, true) && !ignore_merges => DIGITS,
        [split, bytes] if is_bytes(bytes, false) => {
            let expression = expression(split).ok_or_else(refused)?;
            let fits = |cut: &&Cut| cut.expression == expression && cut.ignore_merges == ignore_merges;
            CUTS.iter().find(fits).ok_or_else(refused)?.name
        }
        _ => return Err(refused()),
    };
    if name == "tekken" {
        notes.push(
            "llama.cpp cuts words between small and capital letters by ASCII alone, the tokenizer by Unicode".into(),
        );
    }
    Ok(name)
}

/// `use_regex`, which is on where nothing is said, cuts by GPT-2's expression.
fn is_bytes(step: &Json, cuts: bool) -> bool {
    let use_regex = step.get("use_regex").and_then(Json::as_bool).unwrap_or(true);
    kind_of(step) == "ByteLevel" && use_regex == cuts && !json_flag(step, "add_prefix_space")
}

fn is_digits(step: &Json) -> bool {
    kind_of(step) == "Digits" && json_flag(step, "individual_digits")
}

fn expression(step: &Json) -> Option<&str> {
    let keeps = step.get("behavior").and_then(Json::as_str) == Some("Isolated") && !json_flag(step, "invert");
    let split = kind_of(step) == "Split" && keeps;
    step.get("pattern").filter(|_| split)?.get("Regex")?.as_str()
}
