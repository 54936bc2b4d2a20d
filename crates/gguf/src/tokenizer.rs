//! A folder's tokenizer as llama.cpp's `tokenizer.*` metadata: byte-level BPE (`gpt2`) with a pre-tokenizer that llama.cpp
//! has a name for, or SentencePiece's BPE (`llama`) with the order of its merges as scores. Anything else is refused.

mod bpe;
mod chat;
mod pre;
mod special;
mod spm;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value as Json};
use tailor_text::Tokenizer;

use crate::config::{DecoderConfig, SERVE_FOLDER};
use crate::format::{Array, Value};
use crate::keys::Metadata;
use crate::{Error, Result};

const FILE: &str = "tokenizer.json";

/// llama.cpp's kinds of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    /// Found in a text only where special tokens are asked for; not printed.
    Control = 3,
    /// Found in every text before it is cut.
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// What the kinds of tokenizer say in their own ways.
struct Algorithm {
    model: &'static str,
    pre: &'static str,
    add_space_prefix: bool,
    merges: Option<Vec<String>>,
    /// By the token's text.
    scores: Option<HashMap<String, f32>>,
}

/// `tokenizer.json`, parsed.
struct Source<'a> {
    model: &'a Map<String, Json>,
    normalizer: Option<&'a Json>,
    pre_tokenizer: Option<&'a Json>,
    added: Vec<Added<'a>>,
}

struct Added<'a> {
    id: u64,
    text: &'a str,
    special: bool,
    /// Looked for in the text as the normalizer left it.
    normalized: bool,
    /// Takes blanks beside it, or is found between words only.
    greedy: bool,
}

/// # Errors
/// A tokenizer that llama.cpp would not follow, by what it cannot do.
pub(crate) fn metadata(
    folder: &Path,
    tokenizer: &Tokenizer,
    config: &DecoderConfig,
    ends: &[u32],
    notes: &mut Vec<String>,
) -> Result<Metadata> {
    let text = tokenizer.to_json()?;
    let json: Json = serde_json::from_str(&text).map_err(|error| malformed(&format!("not JSON: {error}")))?;
    let source = Source::of(&json)?;
    let is_spm = source.flag("byte_fallback");
    let algorithm = if is_spm { spm::algorithm(&source, notes)? } else { bpe::algorithm(&source, notes)? };
    let (tokens, kinds) = tokens(&source, config, is_spm, notes)?;
    if let Some(greedy) = source.added.iter().find(|token| token.greedy) {
        notes.push(format!(
            "the tokenizer takes blanks beside tokens such as {:?}, or finds them between words only; llama.cpp does neither",
            greedy.text
        ));
    }
    let mut metadata: Metadata = Vec::new();
    let mut add = |key: &str, value: Value| metadata.push((format!("tokenizer.ggml.{key}"), value));
    add("model", algorithm.model.into());
    add("pre", algorithm.pre.into());
    if let Some(scores) = &algorithm.scores {
        let lowest = scores.values().copied().fold(0.0, f32::min) - 1.0;
        let of = |token: &String| scores.get(token).copied().unwrap_or(lowest);
        add("scores", Value::Array(Array::F32(tokens.iter().map(of).collect())));
        add("add_space_prefix", algorithm.add_space_prefix.into());
    }
    if let Some(merges) = algorithm.merges {
        add("merges", Value::Array(Array::Text(merges)));
    }
    for (key, value) in special::keys(tokenizer, config, ends, &tokens, notes)? {
        add(key, value);
    }
    add("token_type", Value::Array(Array::I32(kinds.into_iter().map(|kind| kind as i32).collect())));
    add("tokens", Value::Array(Array::Text(tokens)));
    metadata.extend(chat::templates(folder)?);
    Ok(metadata)
}

/// Texts and kinds by id; ids that the tokenizer has not are marked unused.
fn tokens(
    source: &Source<'_>,
    config: &DecoderConfig,
    is_spm: bool,
    notes: &mut Vec<String>,
) -> Result<(Vec<String>, Vec<Kind>)> {
    let size = config.vocab_size as usize;
    let mut tokens: Vec<Option<(String, Kind)>> = vec![None; size];
    let within = |text: &str, id: u64| match usize::try_from(id).ok().filter(|id| *id < size) {
        Some(id) => Ok(id),
        None => {
            let problem = format!("token {text:?} has id {id}, and the embedding ends with {size} rows");
            Err(Error::not_mapped(FILE, problem, "give the model a row for each token"))
        }
    };
    let unknown = source.model.get("unk_token").and_then(Json::as_str);
    for (text, id) in source.vocabulary()? {
        let kind = match text {
            _ if Some(text) == unknown => Kind::Unknown,
            _ if is_spm && spm::byte_of(text).is_some() => Kind::Byte,
            _ => Kind::Normal,
        };
        let id = within(text, id)?;
        if let Some((other, _)) = tokens[id].replace((text.to_owned(), kind)) {
            return Err(malformed(&format!("{text:?} and {other:?} have the same id {id}")));
        }
    }
    for added in &source.added {
        if added.id >= size as u64 {
            notes
                .push(format!("the tokenizer knows {:?}, and the model has no row for it; it is left out", added.text));
            continue;
        }
        let kind = match added.special {
            _ if Some(added.text) == unknown => Kind::Unknown,
            true => Kind::Control,
            // Its text is found by merging too, and printed with blanks then.
            false if is_spm && added.text.contains(spm::BLANK) && !added.normalized => Kind::Normal,
            false => Kind::UserDefined,
        };
        let unescaped = is_spm && kind == Kind::UserDefined && added.normalized;
        let text = if unescaped { added.text.replace(spm::BLANK, " ") } else { added.text.to_owned() };
        tokens[within(added.text, added.id)?] = Some((text, kind));
    }
    let named: HashSet<String> = tokens.iter().flatten().map(|(text, _)| text.clone()).collect();
    let mut seen = HashSet::new();
    let filled = tokens.into_iter().enumerate().map(|(id, token)| {
        let (text, kind) = token.unwrap_or_else(|| (unused(id, &named), Kind::Unused));
        match text.is_empty() || !seen.insert(text.clone()) {
            false => Ok((text, kind)),
            // llama.cpp ends its process when it meets one.
            true => Err(malformed(&format!("token {id} is {text:?}, which is empty or there twice"))),
        }
    });
    Ok(filled.collect::<Result<Vec<_>>>()?.into_iter().unzip())
}

fn unused(id: usize, named: &HashSet<String>) -> String {
    let mut text = format!("[UNUSED{id}]");
    while named.contains(&text) {
        text.push('_');
    }
    text
}

impl<'a> Source<'a> {
    fn of(json: &'a Json) -> Result<Self> {
        let model = json.get("model").and_then(Json::as_object).ok_or_else(|| malformed("has no model"))?;
        match model.get("type").and_then(Json::as_str) {
            Some("BPE") => {}
            other => {
                let problem = format!("a {} tokenizer is not mapped, only BPE is", other.unwrap_or("nameless"));
                return Err(not_mapped("model.type", problem));
            }
        }
        let present = |field: &str| json.get(field).filter(|value| !value.is_null());
        let source = Self {
            model,
            normalizer: present("normalizer"),
            pre_tokenizer: present("pre_tokenizer"),
            added: added(json)?,
        };
        for field in ["continuing_subword_prefix", "end_of_word_suffix", "dropout"] {
            if source.model.get(field).is_some_and(|value| !value.is_null() && value != "") {
                return Err(not_mapped(&format!("model.{field}"), "llama.cpp has none".into()));
            }
        }
        Ok(source)
    }

    fn flag(&self, field: &str) -> bool {
        self.model.get(field).and_then(Json::as_bool).unwrap_or(false)
    }

    fn vocabulary(&self) -> Result<impl Iterator<Item = (&'a str, u64)>> {
        let vocabulary = self.model.get("vocab").and_then(Json::as_object);
        let vocabulary = vocabulary.ok_or_else(|| malformed("model.vocab is no object"))?;
        if let Some((text, id)) = vocabulary.iter().find(|(_, id)| id.as_u64().is_none()) {
            return Err(malformed(&format!("model.vocab: {text:?} has {id} for an id")));
        }
        Ok(vocabulary.iter().map(|(text, id)| (text.as_str(), id.as_u64().unwrap_or_default())))
    }

    /// Pairs, written as two texts or as one with a blank between them.
    fn merges(&self) -> Result<Vec<(&'a str, &'a str)>> {
        let merges = self.model.get("merges").and_then(Json::as_array);
        let merges = merges.ok_or_else(|| malformed("model.merges is no list"))?;
        let pair = |merge: &'a Json| match merge {
            Json::String(text) => text.split_once(' '),
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(left), Json::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        let checked = |merge| pair(merge).ok_or_else(|| malformed(&format!("model.merges: {merge} is no pair")));
        merges.iter().map(checked).collect()
    }
}

fn added(json: &Json) -> Result<Vec<Added<'_>>> {
    let one = |token| {
        let flag = |field: &str| json_flag(token, field);
        let id = token.get("id").and_then(Json::as_u64);
        let text = token.get("content").and_then(Json::as_str);
        let (Some(id), Some(text)) = (id, text) else {
            return Err(malformed("added_tokens: one lacks its id or its content"));
        };
        let greedy = flag("lstrip") || flag("rstrip") || flag("single_word");
        Ok(Added { id, text, special: flag("special"), normalized: flag("normalized"), greedy })
    };
    json.get("added_tokens").and_then(Json::as_array).into_iter().flatten().map(one).collect()
}

fn json_flag(value: &Json, field: &str) -> bool {
    value.get(field).and_then(Json::as_bool).unwrap_or(false)
}

fn kind_of(value: &Json) -> &str {
    value.get("type").and_then(Json::as_str).unwrap_or("(nameless)")
}

/// A step, or the steps of a sequence.
fn steps<'a>(value: Option<&'a Json>, field: &str) -> Vec<&'a Json> {
    match value {
        None => Vec::new(),
        Some(value) => match value.get(field).and_then(Json::as_array) {
            Some(list) if kind_of(value) == "Sequence" => {
                list.iter().flat_map(|step| steps(Some(step), field)).collect()
            }
            _ => vec![value],
        },
    }
}

fn malformed(problem: &str) -> Error {
    Error::config_of(FILE, problem)
}

fn not_mapped(field: &str, problem: String) -> Error {
    Error::not_mapped(format!("{FILE}, {field}"), problem, SERVE_FOLDER)
}

#[cfg(test)]
mod tests;
