use serde_json::{Value, json};

use super::*;

const SPECIAL: [&str; 4] = ["<pad>", "<s>", "</s>", "<unk>"];

fn added(texts: &[&str]) -> Value {
    let token = |(id, text): (usize, &&str)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    texts.iter().enumerate().map(token).collect()
}

fn build(tokenizer: &Value, settings: &Value) -> Result<Tokenizer> {
    let (tokenizer, settings) = (tokenizer.to_string(), settings.to_string());
    Tokenizer::from_files(TokenizerFiles {
        tokenizer: tokenizer.as_bytes(),
        settings: Some(settings.as_bytes()),
        chat_template: None,
    })
}

fn template(single: Value) -> Value {
    json!({"type": "TemplateProcessing", "single": single, "pair": [{"Sequence": {"id": "A", "type_id": 0}},
           {"Sequence": {"id": "B", "type_id": 0}}],
           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                              "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}})
}

/// The letters by which GPT-2's byte-level tokenizers write bytes.
fn byte_letters() -> Vec<char> {
    let printable =
        |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..=255).contains(&byte);
    let mut next = 256;
    (0..256)
        .filter_map(|byte| {
            if printable(byte) {
                return char::from_u32(byte);
            }
            next += 1;
            char::from_u32(next - 1)
        })
        .collect()
}

/// One token a byte, a begin token in front: a decoder's tokenizer.
pub(crate) fn byte_level_json() -> Value {
    let mut vocabulary = serde_json::Map::new();
    let letters = byte_letters();
    for token in SPECIAL.iter().map(|s| (*s).to_owned()).chain(letters.iter().map(char::to_string)) {
        let id = vocabulary.len();
        vocabulary.insert(token, id.into());
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({"version": "1.0", "added_tokens": added(&SPECIAL), "normalizer": null, "pre_tokenizer": byte_level,
           "post_processor": template(json!([{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                             {"Sequence": {"id": "A", "type_id": 0}}])),
           "decoder": byte_level, "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
           "stride": 0}, "padding": null, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
}

pub(crate) fn byte_level(chat_template: Option<&str>) -> Tokenizer {
    let settings = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": "<pad>",
                          "chat_template": chat_template});
    build(&byte_level_json(), &settings).expect("a valid tokenizer")
}

/// Pieces with `▁` for blanks and an end token after the text: T5's kind.
pub(crate) fn unigram() -> Tokenizer {
    let mut pieces: Vec<Value> = SPECIAL.iter().map(|text| json!([text, 0.0])).collect();
    for (piece, score) in
        [("▁the", -1.0), ("▁cat", -1.5), ("s", -2.0), ("▁", -3.0), ("c", -5.0), ("a", -5.0), ("t", -5.0)]
    {
        pieces.push(json!([piece, score]));
    }
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let tokenizer = json!({"version": "1.0", "added_tokens": added(&SPECIAL), "normalizer": null,
        "pre_tokenizer": metaspace, "post_processor": template(json!([{"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}}])), "decoder": metaspace, "truncation": null, "padding": null,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": false}});
    build(&tokenizer, &json!({"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})).expect("valid")
}

/// Whole words, lower-cased.
pub(crate) fn word_level() -> Tokenizer {
    let mut vocabulary = serde_json::Map::new();
    for word in SPECIAL.into_iter().chain(["hello", "un", "do", "undo"]) {
        let id = vocabulary.len();
        vocabulary.insert(word.to_owned(), id.into());
    }
    let tokenizer = json!({"version": "1.0", "added_tokens": added(&SPECIAL), "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, "truncation": null,
        "padding": null, "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}});
    build(&tokenizer, &json!({"eos_token": "</s>"})).expect("valid")
}

#[test]
fn special_tokens_and_what_stands_around_a_text_are_found() {
    let decoder = byte_level(None);
    assert_eq!((decoder.pad(), decoder.bos(), decoder.eos(), decoder.unk()), (Some(0), Some(1), Some(2), None));
    assert_eq!(decoder.prefix(), [1]);
    assert_eq!(decoder.encode_with_special("a").expect("encodes").len(), 2);
    assert_eq!(decoder.vocabulary_size(), 260);
    let seq2seq = unigram();
    assert!(seq2seq.prefix().is_empty());
    assert_eq!(seq2seq.encode_with_special("the cats").expect("encodes"), [4, 5, 6, 2]);
    assert_eq!(seq2seq.encode("the cats").expect("encodes"), [4, 5, 6]);
}

#[test]
fn truncation_set_in_the_file_cuts_no_row() {
    assert_eq!(byte_level(None).encode("longer than four").expect("encodes").len(), 16);
}

#[test]
fn an_uncased_tokenizer_gives_one_token_for_both_cases() {
    let tokenizer = word_level();
    let lower = tokenizer.encode("hello").expect("encodes");
    assert_eq!(lower.len(), 1);
    assert_eq!(tokenizer.encode("HELLO").expect("encodes"), lower);
    assert_eq!(tokenizer.encode("Hello").expect("encodes"), lower);
}

#[test]
fn what_stands_around_a_text_is_the_tokenizer_files_business_alone() {
    let settings = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false, "add_eos_token": true});
    let tokenizer = build(&byte_level_json(), &settings).expect("valid");
    assert_eq!(tokenizer.encode_with_special("").expect("encodes"), [1]);
}

#[test]
fn text_comes_back_in_whole_characters_as_ids_come() {
    let tokenizer = byte_level(None);
    let text = "Größe 🙂 日本語 ok";
    let mut stream = tokenizer.stream(true);
    let mut whole = String::new();
    let mut waits = 0;
    for id in tokenizer.encode(text).expect("encodes") {
        let piece = stream.push(id).expect("decodes");
        assert!(!piece.contains('\u{FFFD}'), "half a character in {piece:?}");
        waits += usize::from(piece.is_empty());
        whole.push_str(&piece);
    }
    whole.push_str(&stream.finish().expect("decodes"));
    assert_eq!(whole, text);
    assert!(waits > 5, "characters of several bytes wait");
}

#[test]
fn a_stream_that_breaks_off_gives_its_rest_at_the_end() {
    let tokenizer = byte_level(None);
    let ids = tokenizer.encode("aß").expect("encodes");
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(ids[0]).expect("decodes"), "a");
    assert_eq!(stream.push(ids[1]).expect("decodes"), "");
    assert_eq!(stream.finish().expect("decodes"), "\u{FFFD}");
}

#[test]
fn a_stream_keeps_the_blanks_between_pieces() {
    let tokenizer = unigram();
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = [4, 5, 6, 2, 5].iter().map(|id| stream.push(*id).expect("decodes")).collect();
    assert_eq!(pieces.concat(), tokenizer.decode(&[4, 5, 6, 2, 5], true).expect("decodes"));
    assert_eq!(pieces.concat(), "the cats cat");
}

#[test]
fn a_token_stands_for_its_own_bytes_wherever_it_stands() {
    let seq2seq = unigram();
    assert_eq!(seq2seq.decode(&[4], false).expect("decodes"), "the", "where a text begins the blank is dropped");
    assert_eq!(seq2seq.token_bytes(4).as_deref(), Some(&b" the"[..]));
    assert_eq!(seq2seq.token_bytes(2).as_deref(), Some(&b"</s>"[..]), "a special token is called so");
    assert_eq!((seq2seq.is_special(2), seq2seq.is_special(4)), (true, false));
    assert_eq!(seq2seq.token_bytes(1000), None);
    let decoder = byte_level(None);
    let ids = decoder.encode("▁").expect("encodes");
    let bytes: Vec<u8> = ids.iter().flat_map(|id| decoder.token_bytes(*id).expect("a token")).collect();
    assert_eq!((ids.len(), bytes.as_slice()), (3, "▁".as_bytes()), "a third of a character each");
    assert_eq!((decoder.joined_by(), seq2seq.joined_by(), word_level().joined_by()), (None, None, None));
}

#[test]
fn a_stream_says_where_the_next_token_begins() {
    let tokenizer = byte_level(None);
    let mut stream = tokenizer.stream(true);
    let mut offsets = Vec::new();
    for id in tokenizer.encode("aßb").expect("encodes") {
        offsets.push(stream.characters());
        stream.push(id).expect("decodes");
    }
    assert_eq!(offsets, [0, 1, 1, 2], "both bytes of one character are at its place");
    let mut stream = unigram().stream(true);
    let mut offset = |id| {
        let at = stream.characters();
        stream.push(id).expect("decodes");
        at
    };
    assert_eq!([4, 5, 6].map(&mut offset), [0, 3, 7], "the first blank is not in the text");
}

#[test]
fn what_is_wrong_is_named_by_file_and_field() {
    let good = byte_level_json();
    for (settings, wanted) in [
        (json!([]), "tokenizer_config.json: must be"),
        (json!({"eos_token": 3}), "tokenizer_config.json: field eos_token"),
        (json!({"eos_token": {"id": 1}}), "field eos_token"),
        (json!({"eos_token": "<end>"}), "\"<end>\" is not in the vocabulary"),
        (json!({"add_bos_token": "yes"}), "field add_bos_token"),
        (json!({"chat_template": 3}), "field chat_template"),
        (json!({"chat_template": [{"name": "tools", "template": "x"}]}), "named default"),
        (json!({"chat_template": "{% if %}"}), "chat template"),
    ] {
        let error = build(&good, &settings).err().unwrap_or_else(|| panic!("{settings} must be refused"));
        assert!(error.to_string().contains(wanted), "{settings}: {error}");
    }
    for tokenizer in
        [json!({}), json!([]), json!({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}})]
    {
        let error = build(&tokenizer, &json!({})).err().unwrap_or_else(|| panic!("{tokenizer} must be refused"));
        assert!(error.to_string().starts_with("tokenizer.json"), "{error}");
    }
    let error = build(&good, &json!({})).expect("no eos is fine").required_eos().expect_err("but not for training");
    assert!(error.to_string().contains("eos_token"), "{error}");
}

#[test]
fn a_template_file_wins_over_the_one_in_the_settings() {
    let (tokenizer, settings) = (byte_level_json().to_string(), json!({"chat_template": "old"}).to_string());
    let files = TokenizerFiles {
        tokenizer: tokenizer.as_bytes(),
        settings: Some(settings.as_bytes()),
        chat_template: Some(b"new"),
    };
    let tokenizer = Tokenizer::from_files(files).expect("valid");
    assert_eq!(
        tokenizer
            .chat_template()
            .expect("has one")
            .render(&[crate::Message::new("user", "x")], false)
            .expect("renders"),
        "new"
    );
}
