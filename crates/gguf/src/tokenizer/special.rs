//! The tokens with a meaning of their own: what begins a text, what ends an answer.

use tailor_text::Tokenizer;

use super::not_mapped;
use crate::Result;
use crate::config::DecoderConfig;
use crate::format::Value;

/// Texts that end an answer in llama.cpp whatever the file says.
const KNOWN_ENDS: [&str; 9] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
];

/// Keys below `tokenizer.ggml.`.
pub(super) fn keys(
    tokenizer: &Tokenizer,
    config: &DecoderConfig,
    ends: &[u32],
    tokens: &[String],
    notes: &mut Vec<String>,
) -> Result<Vec<(&'static str, Value)>> {
    let mut keys = Vec::new();
    let (bos, eos) = (tokenizer.bos().or(config.bos), tokenizer.eos().or(ends.first().copied()));
    let named = [
        ("bos_token_id", bos),
        ("eos_token_id", eos),
        ("unknown_token_id", tokenizer.unk()),
        ("padding_token_id", tokenizer.pad()),
    ];
    let named = named.map(|(key, id)| (key, id.filter(|id| *id < config.vocab_size)));
    keys.extend(named.into_iter().filter_map(|(key, id)| Some((key, Value::U32(id?)))));
    keys.push(("add_bos_token", around("before", tokenizer.prefix(), bos)?.into()));
    keys.push(("add_eos_token", around("behind", tokenizer.suffix(), eos)?.into()));

    let mut others: Vec<u32> = ends.iter().copied().filter(|end| Some(*end) != eos).collect();
    others.sort_unstable();
    others.dedup();
    others.retain(|end| tokens.get(*end as usize).is_some_and(|text| !KNOWN_ENDS.contains(&text.as_str())));
    let mut others = others.into_iter();
    keys.extend(["eot_token_id", "eom_token_id"].into_iter().zip(&mut others).map(|(key, id)| (key, Value::U32(id))));
    for end in others {
        notes.push(format!("{:?} ends an answer too, and the file has no more room to say so", tokens[end as usize]));
    }
    Ok(keys)
}

/// Whether the one token that can stand there does.
fn around(place: &str, found: &[u32], token: Option<u32>) -> Result<bool> {
    match found {
        [] => Ok(false),
        [one] if Some(*one) == token => Ok(true),
        more => {
            let problem =
                format!("tokens {more:?} stand {place} every text; llama.cpp puts its begin or end token there");
            Err(not_mapped("post_processor", problem))
        }
    }
}
