//! Whatever a model prefers, what it says is what was asked for.

use serde_json::{Value, json};
use tailor_constrain::{Constraints, Format};
use tailor_text::{Tokenizer, TokenizerFiles};

const EOS: u32 = 1;
/// One more than the tokenizer's, as models have.
const VOCABULARY: usize = 120;

/// Specials, and a token for each printable character.
fn tokenizer() -> Tokenizer {
    let special = |(id, text): (usize, &&str)| {
        json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true })
    };
    let specials = ["<pad>", "</s>", "<unk>"];
    let texts = specials.iter().map(|text| (*text).to_owned()).chain((' '..='~').map(String::from));
    let vocabulary: serde_json::Map<String, Value> = texts.zip(0..).map(|(text, id)| (text, Value::from(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": { "type": "Fuse" },
        "added_tokens": specials.iter().enumerate().map(special).collect::<Vec<_>>(),
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [] },
    });
    let bytes = tokenizer.to_string();
    let files = TokenizerFiles { tokenizer: bytes.as_bytes(), settings: None, chat_template: None };
    Tokenizer::from_files(files).expect("a tokenizer")
}

/// What a model says that likes tokens by `seed` and by nothing else.
fn say(constraints: &Constraints, format: &Format, seed: u32) -> String {
    let tokenizer = tokenizer();
    let mut follower = constraints.begin(format).expect("can be followed");
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut said = Vec::new();
    for _ in 0..2000 {
        let mut logits: Vec<f32> = (0..VOCABULARY)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state >> 8) as f32
            })
            .collect();
        // It would rather end, so that answers stay short where they may.
        logits[EOS as usize] = f32::MAX;
        follower.mask(&mut logits).expect("something may come next");
        let best = (0..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).map(|(token, _)| token);
        let token: u32 = best.expect("a token");
        assert!(logits[token as usize].is_finite());
        if token == EOS {
            return tokenizer.decode(&said, true).expect("text");
        }
        said.push(token);
        if !follower.accept(token).expect("it was allowed") {
            return tokenizer.decode(&said, true).expect("text");
        }
    }
    panic!("no end: {:?}", tokenizer.decode(&said, true));
}

fn constraints() -> Constraints {
    Constraints::new(&tokenizer(), VOCABULARY, &[EOS]).expect("a tokenizer that can be used")
}

#[test]
fn a_schema_gives_json_of_that_schema() {
    let constraints = constraints();
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 8 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "kind": { "enum": ["cat", "dog"] },
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": false,
    });
    for seed in 1..12 {
        let said = say(&constraints, &Format::JsonSchema(schema.clone()), seed);
        let value: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{said:?}: {error}"));
        assert!(value["name"].as_str().expect("a name").chars().count() <= 8, "{said}");
        assert!(value["age"].as_u64().expect("an age") <= 150, "{said}");
        assert!(value["kind"] == "cat" || value["kind"] == "dog", "{said}");
    }
}

#[test]
fn a_model_that_likes_blanks_gets_to_the_end_all_the_same() {
    let (constraints, tokenizer) = (constraints(), tokenizer());
    let blank = tokenizer.token_id(" ").expect("a blank");
    let schema = json!({ "type": "array", "items": { "enum": [7] }, "minItems": 2, "maxItems": 2 });
    let mut follower = constraints.begin(&Format::JsonSchema(schema)).expect("can be followed");
    let mut said = Vec::new();
    for _ in 0..200 {
        let mut logits = vec![0.0; VOCABULARY];
        logits[blank as usize] = 1.0;
        follower.mask(&mut logits).expect("something may come next");
        let best = (0..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).map(|(token, _)| token).expect("a token");
        said.push(best);
        if best == EOS || !follower.accept(best).expect("it was allowed") {
            let text = tokenizer.decode(&said, true).expect("text");
            assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), json!([7, 7]), "{text:?}");
            return;
        }
    }
    panic!("no end: {:?}", tokenizer.decode(&said, true));
}

#[test]
fn a_pattern_is_matched_as_a_whole() {
    let constraints = constraints();
    for seed in 1..12 {
        let said = say(&constraints, &Format::Regex("[A-F]{3}-[0-9]{2,4}".into()), seed);
        let (letters, digits) = said.split_once('-').unwrap_or_else(|| panic!("{said:?}"));
        assert!(letters.len() == 3 && letters.chars().all(|c| ('A'..='F').contains(&c)), "{said:?}");
        assert!((2..=4).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_digit()), "{said:?}");
    }
}

#[test]
fn a_grammar_is_followed() {
    let said = say(&constraints(), &Format::Lark("start: \"(\" start \")\" | \"x\"".into()), 3);
    let depth = said.chars().take_while(|c| *c == '(').count();
    assert_eq!(said, format!("{}x{}", "(".repeat(depth), ")".repeat(depth)));
}

#[test]
fn what_cannot_be_followed_is_refused_at_the_beginning() {
    let constraints = constraints();
    let refused = |format: Format| constraints.begin(&format).expect_err("refused").to_string();
    assert!(refused(Format::Regex("(".into())).starts_with("the pattern cannot be followed"));
    assert!(refused(Format::JsonSchema(json!({ "type": "nonsense" }))).starts_with("the JSON schema"));
    assert!(refused(Format::Lark("start: nowhere".into())).starts_with("the grammar"));
    let long = refused(Format::Regex("a".repeat(300_000)));
    assert!(long.contains("300000 bytes, the limit is 262144"), "{long}");
}

#[test]
fn a_model_without_an_end_token_is_refused() {
    assert!(Constraints::new(&tokenizer(), VOCABULARY, &[]).expect_err("refused").to_string().contains("no end token"));
}
