//! T5's tokenizer: Unigram over `▁`-marked words and stems, and endings.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};
use tailor_corpus::Generator;

use crate::tasks::{REQUEST_WORDS, SENTINELS, vocabulary};
use crate::tokenizer::stems::split_words;

pub const PAD: i64 = 0;
pub const EOS: i64 = 1;

/// Sentences whose word counts give the scores.
const COUNTED: usize = 60_000;
const COUNTED_SEED: u64 = 41;
/// Far below any word, so that a word is spelt only where it is unknown.
const LETTER_SCORE: f64 = -25.0;

/// `tokenizer.json`.
pub fn json() -> Value {
    let mut pieces: Vec<(String, f64)> = vec![("<pad>".into(), 0.0), ("</s>".into(), 0.0), ("<unk>".into(), 0.0)];
    pieces.extend(word_pieces());
    // Some letters are endings already.
    let endings: HashSet<String> = pieces.iter().map(|(piece, _)| piece.clone()).collect();
    let letters = (' '..='~').skip(1).map(|letter| letter.to_string()).filter(|letter| !endings.contains(letter));
    pieces.extend(letters.map(|letter| (letter, LETTER_SCORE)));
    pieces.push(("▁".into(), LETTER_SCORE + 1.0));
    // A sentence's marks follow a word without a space and are cheap.
    for piece in &mut pieces {
        if [".", ",", "?", ":"].contains(&piece.0.as_str()) {
            piece.1 = -4.0;
        }
    }
    pieces.push(("'s".into(), -5.0));
    // Sentinels stand at the end, the first one last, as in T5.
    pieces.extend((0..SENTINELS).rev().map(|index| (format!("<extra_id_{index}>"), 0.0)));

    let special = |token: &str, strips_space: bool| {
        let id = pieces.iter().position(|(piece, _)| piece == token);
        json!({"id": id, "content": token, "single_word": false, "lstrip": strips_space, "rstrip": false,
               "normalized": false, "special": true})
    };
    let mut added: Vec<Value> = ["<pad>", "</s>", "<unk>"].map(|token| special(token, false)).into();
    // A sentinel swallows the space before it; otherwise that space would be a token of its own.
    added.extend((0..SENTINELS).rev().map(|index| special(&format!("<extra_id_{index}>"), true)));

    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let close = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, close],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, close, {"Sequence": {"id": "B", "type_id": 0}}, close],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [EOS], "tokens": ["</s>"]}}
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false}
    })
}

/// `tokenizer_config.json`.
pub fn config() -> Value {
    let sentinels: Vec<String> = (0..SENTINELS).map(|index| format!("<extra_id_{index}>")).collect();
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
        "additional_special_tokens": sentinels, "model_max_length": 512, "clean_up_tokenization_spaces": false
    })
}

/// The pieces of the corpus's words, each with the logarithm of its share.
fn word_pieces() -> Vec<(String, f64)> {
    let split = split_words();
    let words = vocabulary().into_iter().chain(REQUEST_WORDS.map(str::to_owned));
    let mut counts: BTreeMap<String, u32> = words.map(|word| (word, 1)).collect();
    let mut sentences = Generator::new(COUNTED_SEED).with_us_percent(50);
    for _ in 0..COUNTED {
        for word in sentences.sentence().text.split(|letter: char| !letter.is_alphabetic()) {
            if let Some(count) = counts.get_mut(word) {
                *count += 1;
            }
        }
    }
    let mut pieces: BTreeMap<String, u32> = BTreeMap::new();
    for (word, count) in counts {
        let (start, ending) = split.get(&word).cloned().unwrap_or((word, String::new()));
        *pieces.entry(format!("▁{start}")).or_default() += count;
        if !ending.is_empty() {
            *pieces.entry(ending).or_default() += count;
        }
    }
    let total: u32 = pieces.values().sum();
    // Four digits: the logarithm's last bit may differ between platforms.
    let score = |count: u32| ((f64::from(count) / f64::from(total)).ln() * 1e4).round() / 1e4;
    pieces.into_iter().map(|(piece, count)| (piece, score(count))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::load;

    #[test]
    fn a_word_is_one_token_or_a_stem_and_its_ending() {
        let tokenizer = load(&json().to_string()).expect("load");
        let split = split_words();
        let words = vocabulary();
        let mut wrong = Vec::new();
        for word in words.iter().cloned() {
            let (start, ending) = split.get(&word).cloned().unwrap_or((word.clone(), String::new()));
            let wanted: Vec<String> =
                [format!("▁{start}"), ending].into_iter().filter(|piece| !piece.is_empty()).collect();
            let encoding = tokenizer.encode(word, false).expect("encode");
            if encoding.get_tokens() != wanted {
                wrong.push(encoding.get_tokens().to_vec());
            }
        }
        // A rare ending may be dearer than two common ones: `cho`, `s`, `e`.
        assert!(wrong.len() * 100 < words.len(), "{wrong:?}");
    }

    #[test]
    fn a_sentence_comes_back() {
        let tokenizer = load(&json().to_string()).expect("load");
        let text = "Yesterday, Anna's brother did not listen to anna.";
        let encoding = tokenizer.encode(text, true).expect("encode");
        assert_eq!(encoding.get_tokens().len(), 14, "{:?}", encoding.get_tokens());
        assert_eq!(encoding.get_ids().last(), Some(&(EOS as u32)));
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).expect("decode"), text);
    }

    #[test]
    fn a_gap_is_one_token() {
        let tokenizer = load(&json().to_string()).expect("load");
        let encoding = tokenizer.encode("She <extra_id_0> the park.", false).expect("encode");
        let gap = tokenizer.token_to_id("<extra_id_0>").expect("a sentinel");
        assert_eq!(encoding.get_ids().len(), 5, "{:?}", encoding.get_tokens());
        assert_eq!(encoding.get_ids()[1], gap);
    }

    #[test]
    fn an_unknown_word_is_spelt() {
        let tokenizer = load(&json().to_string()).expect("load");
        let encoding = tokenizer.encode("zebra 7", false).expect("encode");
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).expect("decode"), "zebra 7");
    }
}
