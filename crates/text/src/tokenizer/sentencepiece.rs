//! A SentencePiece model as a tokenizer: what `transformers`' classes make of `spiece.model` and `tokenizer.model`.
//!
//! `tokenizer_class` says which class: T5 (and mT5) cuts by a unigram model with sentinels `<extra_id_N>` behind its
//! vocabulary, Llama and Gemma merge pairs and write what they do not know as bytes. Where none is named, a unigram model
//! is taken for T5's and a pair-merging one for Llama's. As there, a blank in front of the text comes from
//! `add_prefix_space` and `legacy` alone, not from the model's own `add_dummy_prefix`, and a begin token only from
//! `add_bos_token`.

mod proto;

use std::collections::HashMap;

use serde_json::{Value, json};
use tokenizers::AddedToken;
use tokenizers::normalizers::precompiled::Precompiled;
use tokenizers::processors::template::TemplateProcessing;

use super::settings::Settings;
use super::{SETTINGS_FILE, bounds};
use crate::error::{Error, Result};
use proto::{Algorithm, Model, PieceKind};

/// SentencePiece makes pieces of 16 characters; only symbols that a person names are longer.
const MAX_PIECE_BYTES: usize = 512;
/// A piece can be two others in as many ways as it has letters. Gemma's pieces make half a million merges.
const MAX_MERGES: usize = 2 << 20;
const MAX_MERGE_BYTES: usize = 16 << 20;
/// T5's unknown piece, whatever the model says of it.
const T5_UNK: usize = 2;
const DEFAULT_EXTRA_IDS: u64 = 100;
const REMEDY: &str = "give the folder a tokenizer.json \
                      (transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    T5,
    Llama,
    Gemma,
}

impl Class {
    fn of(file: &str, algorithm: Algorithm, named: Option<&str>) -> Result<Self> {
        let class = match (named, algorithm) {
            (Some("T5Tokenizer" | "MT5Tokenizer"), _) => Self::T5,
            (Some("LlamaTokenizer" | "CodeLlamaTokenizer"), _) => Self::Llama,
            (Some("GemmaTokenizer"), _) => Self::Gemma,
            (None | Some("PreTrainedTokenizer" | "TokenizersBackend"), Algorithm::Unigram) => Self::T5,
            (None | Some("PreTrainedTokenizer" | "TokenizersBackend"), _) => Self::Llama,
            (Some(other), _) => {
                let problem =
                    format!("{other} cannot be made from {file}, only those of T5, Llama and Gemma; {REMEDY}");
                return Err(Error::tokenizer(SETTINGS_FILE, "tokenizer_class", problem));
            }
        };
        let wanted = if class == Self::T5 { Algorithm::Unigram } else { Algorithm::Bpe };
        if algorithm != wanted {
            let problem = format!("{algorithm:?} cannot be converted, a {class:?} tokenizer is {wanted:?}; {REMEDY}");
            return Err(Error::tokenizer(file, "trainer_spec.model_type", problem));
        }
        Ok(class)
    }

    /// The special tokens that the class assumes where the settings name none.
    fn defaults(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::T5 => &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")],
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Self::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
        }
    }
}

/// `tokenizer.json` and the settings with every special token named.
pub(super) fn convert(
    file: &str,
    bytes: &[u8],
    mut settings: serde_json::Map<String, Value>,
) -> Result<(tokenizers::Tokenizer, serde_json::Map<String, Value>)> {
    let model = Model::parse(file, bytes)?;
    let class = Class::of(file, model.algorithm, Settings::of(&settings)?.sentencepiece.class.as_deref())?;
    for (field, token) in class.defaults() {
        if settings.get(*field).is_none() {
            settings.insert((*field).to_owned(), (*token).into());
        }
    }
    let wanted = Settings::of(&settings)?;
    let extra_ids = if class == Class::T5 { wanted.sentencepiece.extra_ids.unwrap_or(DEFAULT_EXTRA_IDS) } else { 0 };
    let skeleton = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": if class == Class::Gemma { replace(" ", "▁") } else { Value::Null },
        "pre_tokenizer": pre_tokenizer(class, &wanted),
        "post_processor": null,
        "decoder": decoder(class, &wanted),
        "model": match class {
            Class::T5 => unigram(file, &model, extra_ids)?,
            Class::Llama | Class::Gemma => pairs(file, &model, (class == Class::Gemma).then_some(&wanted.unk))?,
        },
    });
    let broken = |field: &str, error: tokenizers::Error| Error::tokenizer(file, field, error.to_string());
    let mut tokenizer =
        tokenizers::Tokenizer::from_bytes(skeleton.to_string()).map_err(|error| broken("pieces", error))?;
    let mut growth = 1;
    if class == Class::T5 && !model.charsmap.is_empty() {
        const FIELD: &str = "normalizer_spec.precompiled_charsmap";
        let longest = bounds::longest_replacement(model.charsmap);
        growth = longest.map_err(|problem| Error::tokenizer(file, FIELD, problem))?.max(growth);
        let charsmap = Precompiled::from(model.charsmap).map_err(|error| broken(FIELD, error.to_string().into()))?;
        tokenizer.with_normalizer(Some(charsmap)).map_err(|error| broken(FIELD, error))?;
    }
    bounds::check_added(SETTINGS_FILE, "added_tokens_decoder", wanted.added.bytes(), growth)?;
    wanted.added.clone().or_extra(extra_tokens(&model, extra_ids)).add_to(&mut tokenizer)?;
    let around = post_processor(class, &wanted, &tokenizer);
    let around: TemplateProcessing = serde_json::from_value(around)
        .map_err(|error| Error::tokenizer(SETTINGS_FILE, "add_bos_token", error.to_string()))?;
    tokenizer.with_post_processor(Some(around));
    Ok((tokenizer, settings))
}

/// Control pieces and those that a person named are found in the text before it is cut.
fn extra_tokens(model: &Model<'_>, extra_ids: u64) -> Vec<AddedToken> {
    let named = model
        .pieces
        .iter()
        .filter(|piece| piece.kind != PieceKind::Text)
        .map(|piece| AddedToken::from(piece.text, piece.kind == PieceKind::Control).normalized(false));
    named.chain((0..extra_ids).map(|id| AddedToken::from(sentinel(id), true))).collect()
}

fn sentinel(id: u64) -> String {
    format!("<extra_id_{id}>")
}

/// T5's vocabulary: the pieces, then the sentinels, the last of which comes first.
fn unigram(file: &str, model: &Model<'_>, extra_ids: u64) -> Result<Value> {
    by_text(file, model)?;
    if model.unk_id != T5_UNK || model.pieces.len() <= T5_UNK {
        let problem = format!("unknown piece {}, T5's is {T5_UNK}; {REMEDY}", model.unk_id);
        return Err(Error::tokenizer(file, "trainer_spec.unk_id", problem));
    }
    if let Some(piece) = model.pieces.iter().find(|piece| extra_ids > 0 && piece.text.starts_with("<extra_id_")) {
        let problem = format!("{extra_ids}, yet {file} has a piece {} of its own; set extra_ids to 0", piece.text);
        return Err(Error::tokenizer(SETTINGS_FILE, "extra_ids", problem));
    }
    let pieces = model.pieces.iter().map(|piece| json!([piece.text, f64::from(piece.score)]));
    let sentinels = (0..extra_ids).rev().map(|id| json!([sentinel(id), 0.0]));
    let vocabulary: Vec<Value> = pieces.chain(sentinels).collect();
    Ok(json!({"type": "Unigram", "unk_id": T5_UNK, "vocab": vocabulary, "byte_fallback": false}))
}

/// SentencePiece keeps no list of merges: any two pieces that join to a third may merge, earlier pieces first.
fn pairs(file: &str, model: &Model<'_>, unk: Option<&Option<String>>) -> Result<Value> {
    let ids = by_text(file, model)?;
    let mut merges = Vec::new();
    let mut bytes = 0;
    for piece in &model.pieces {
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push([left, right]);
                bytes += piece.text.len();
            }
        }
        if merges.len() > MAX_MERGES || bytes > MAX_MERGE_BYTES {
            let problem = format!("more than {MAX_MERGES} merges, or {MAX_MERGE_BYTES} bytes of them; {REMEDY}");
            return Err(Error::tokenizer(file, "pieces", problem));
        }
    }
    Ok(json!({"type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
              "vocab": ids, "merges": merges}))
}

fn by_text<'a>(file: &str, model: &Model<'a>) -> Result<HashMap<&'a str, usize>> {
    let mut ids = HashMap::with_capacity(model.pieces.len());
    for (id, piece) in model.pieces.iter().enumerate() {
        let wrong = |problem: String| Error::tokenizer(file, &format!("pieces[{id}]"), problem);
        if piece.text.len() > MAX_PIECE_BYTES {
            return Err(wrong(format!("{} bytes, the limit is {MAX_PIECE_BYTES}", piece.text.len())));
        }
        if let Some(first) = ids.insert(piece.text, id) {
            return Err(wrong(format!("{:?} is piece {first} already", piece.text)));
        }
    }
    Ok(ids)
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

fn metaspace(prepend_scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": split})
}

fn pre_tokenizer(class: Class, wanted: &Settings) -> Value {
    match class {
        Class::T5 => json!({"type": "Sequence",
                            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace("always", true)]}),
        // A legacy tokenizer puts a blank after every special token too, not before the text alone.
        Class::Llama => match (wanted.sentencepiece.add_prefix_space, wanted.sentencepiece.legacy) {
            (Some(false), _) => metaspace("never", false),
            (_, Some(true)) => metaspace("always", false),
            (_, Some(false) | None) => metaspace("first", false),
        },
        Class::Gemma => json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                               "invert": false}),
    }
}

fn decoder(class: Class, wanted: &Settings) -> Value {
    if class == Class::T5 {
        return metaspace("always", true);
    }
    let mut steps = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if class == Class::Llama && wanted.sentencepiece.add_prefix_space != Some(false) {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// The tokens around a text: T5's end token always, the others' by the settings.
fn post_processor(class: Class, wanted: &Settings, tokenizer: &tokenizers::Tokenizer) -> Value {
    let asked = |flag: Option<bool>, token: &Option<String>| token.clone().filter(|_| flag == Some(true));
    let (begin, end) = match class {
        Class::T5 => (None, wanted.eos.clone()),
        Class::Llama | Class::Gemma => {
            (asked(wanted.sentencepiece.add_bos, &wanted.bos), asked(wanted.sentencepiece.add_eos, &wanted.eos))
        }
    };
    let mut special = serde_json::Map::new();
    for token in begin.iter().chain(&end) {
        let ids = [tokenizer.token_to_id(token)];
        special.insert(token.clone(), json!({"id": token, "ids": ids, "tokens": [token]}));
    }
    let template = |sequence: &str, type_id: u32| {
        let token = |token: &String| json!({"SpecialToken": {"id": token, "type_id": type_id}});
        let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
        begin.iter().map(token).chain([text]).chain(end.iter().map(token)).collect::<Vec<Value>>()
    };
    let single = template("A", 0);
    let pair: Vec<Value> = single.iter().cloned().chain(template("B", u32::from(class != Class::T5))).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
}
