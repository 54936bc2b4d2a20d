//! A folder's tokenizer files. One that has only a SentencePiece model gets its `tokenizer.json` made here: once, when it
//! becomes a base, so that everything that reads a base reads the same `tokenizer.json`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{
    CHAT_TEMPLATE_FILE, MAX_SETTINGS_BYTES, MAX_TOKENIZER_BYTES, SETTINGS_FILE, TOKENIZER_FILE, contained,
    sentencepiece, within,
};
use crate::error::{Error, Result};

/// SentencePiece models by the names under which they are shipped.
pub const SENTENCEPIECE_FILES: [&str; 2] = ["spiece.model", "tokenizer.model"];
/// Gemma's and mT5's, the largest in use, have 4 MB.
const MAX_SENTENCEPIECE_BYTES: usize = 32 << 20;
/// Where tokens were kept before `added_tokens_decoder`.
const SPECIAL_TOKENS_MAP_FILE: &str = "special_tokens_map.json";
const ADDED_TOKENS_FILE: &str = "added_tokens.json";

/// What [`super::Tokenizer::open`] reads.
pub(super) struct FolderFiles {
    pub tokenizer: Vec<u8>,
    pub settings: Option<Vec<u8>>,
    pub chat_template: Option<Vec<u8>>,
}

impl FolderFiles {
    pub fn read(folder: &Path) -> Result<Self> {
        let chat_template = read_bounded(folder, CHAT_TEMPLATE_FILE, MAX_SETTINGS_BYTES)?;
        if let Some(Converted { tokenizer, settings }) = Converted::of_folder(folder)? {
            return Ok(Self { tokenizer, settings: Some(settings), chat_template });
        }
        let tokenizer = read_bounded(folder, TOKENIZER_FILE, MAX_TOKENIZER_BYTES)?.ok_or_else(|| {
            let problem = format!(
                "folder {} has none, nor {}; a base needs its tokenizer",
                folder.display(),
                SENTENCEPIECE_FILES.join(" or ")
            );
            Error::tokenizer(TOKENIZER_FILE, "", problem)
        })?;
        Ok(Self { tokenizer, settings: read_bounded(folder, SETTINGS_FILE, MAX_SETTINGS_BYTES)?, chat_template })
    }
}

/// `tokenizer.json` and `tokenizer_config.json` made from a SentencePiece model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    pub tokenizer: Vec<u8>,
    /// The folder's own, with the special tokens that its class assumes written out.
    pub settings: Vec<u8>,
}

impl Converted {
    /// Nothing where the folder has a `tokenizer.json`, or no tokenizer at all.
    ///
    /// # Errors
    /// The model cannot be converted, or a file is wrong; names the file, the field and what helps.
    pub fn of_folder(folder: &Path) -> Result<Option<Self>> {
        if folder.join(TOKENIZER_FILE).exists() {
            return Ok(None);
        }
        for name in SENTENCEPIECE_FILES {
            if let Some(model) = read_bounded(folder, name, MAX_SENTENCEPIECE_BYTES)? {
                let settings = settings(folder)?;
                let convert = || sentencepiece::convert(name, &model, settings);
                let (tokenizer, settings) = contained(name, "cannot be converted", convert)?;
                let failed = |error: String| Error::tokenizer(name, "", format!("cannot be written: {error}"));
                let tokenizer = tokenizer.to_string(false).map_err(|error| failed(error.to_string()))?;
                let settings = serde_json::to_vec_pretty(&settings).map_err(|error| failed(error.to_string()))?;
                return Ok(Some(Self { tokenizer: tokenizer.into_bytes(), settings }));
            }
        }
        Ok(None)
    }

    /// Writes both files into `folder`.
    ///
    /// # Errors
    /// The disk.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::write(folder.join(TOKENIZER_FILE), &self.tokenizer)?;
        std::fs::write(folder.join(SETTINGS_FILE), &self.settings)?;
        Ok(())
    }
}

/// `tokenizer_config.json`, and into it the older files where it has no `added_tokens_decoder`.
fn settings(folder: &Path) -> Result<Map<String, Value>> {
    let mut settings = read_object(folder, SETTINGS_FILE)?.unwrap_or_default();
    if settings.contains_key("added_tokens_decoder") {
        return Ok(settings);
    }
    for (field, mut token) in read_object(folder, SPECIAL_TOKENS_MAP_FILE)?.unwrap_or_default() {
        // The extra tokens of a SentencePiece folder are its model's; transformers overwrites these too.
        if !field.ends_with("_token") {
            continue;
        }
        if let Value::Object(token) = &mut token {
            token.insert("special".into(), true.into());
            token.insert("__type".into(), "AddedToken".into());
        }
        settings.insert(field, token);
    }
    let Some(added) = read_object(folder, ADDED_TOKENS_FILE)? else { return Ok(settings) };
    let text_of = |token: &Value| token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned);
    let named: Vec<String> = settings
        .iter()
        .filter(|(field, _)| field.ends_with("_token"))
        .filter_map(|(_, token)| text_of(token))
        .collect();
    let mut decoder = Map::new();
    for (text, id) in added {
        let id = id.as_u64().ok_or_else(|| Error::tokenizer(ADDED_TOKENS_FILE, &text, format!("{id} is no id")))?;
        let special = named.contains(&text);
        let token = json!({"content": text, "lstrip": false, "rstrip": false, "normalized": !special,
                           "single_word": false, "special": special});
        decoder.insert(id.to_string(), token);
    }
    settings.insert("added_tokens_decoder".into(), decoder.into());
    Ok(settings)
}

fn read_object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = read_bounded(folder, name, MAX_SETTINGS_BYTES)? else { return Ok(None) };
    let object = serde_json::from_slice(&bytes);
    object.map(Some).map_err(|error| Error::tokenizer(name, "", format!("not a JSON object: {error}")))
}

fn read_bounded(folder: &Path, name: &str, limit: usize) -> Result<Option<Vec<u8>>> {
    let unreadable = |error: std::io::Error| Error::tokenizer(name, "", format!("cannot be read: {error}"));
    if std::fs::metadata(folder.join(name)).is_ok_and(|found| !found.is_file()) {
        return Err(Error::tokenizer(name, "", "is no regular file")); // a pipe would be waited for
    }
    let file = match File::open(folder.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    within(name, bytes.len(), limit)?;
    Ok(Some(bytes))
}
