//! The folder's chat templates, as they stand: llama.cpp runs Jinja itself.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::Value as Json;
use tailor_text::tokenizer::{CHAT_TEMPLATE_FILE, SETTINGS_FILE};

use crate::format::{Array, Value};
use crate::keys::Metadata;
use crate::{Error, Result};

const MAX_BYTES: u64 = 4 << 20;
const KEY: &str = "tokenizer.chat_template";
/// The one that counts where there are several.
const DEFAULT: &str = "default";

pub(super) fn templates(folder: &Path) -> Result<Metadata> {
    let mut metadata = Metadata::new();
    if let Some(text) = read(folder, CHAT_TEMPLATE_FILE)? {
        metadata.push((KEY.to_owned(), Value::Text(text)));
        return Ok(metadata);
    }
    let Some(settings) = read(folder, SETTINGS_FILE)? else { return Ok(metadata) };
    let settings: Json = serde_json::from_str(&settings)
        .map_err(|error| Error::config_of(SETTINGS_FILE, &format!("not JSON: {error}")))?;
    match settings.get("chat_template") {
        Some(Json::String(text)) => metadata.push((KEY.to_owned(), Value::Text(text.clone()))),
        Some(Json::Array(list)) => {
            let mut others = Vec::new();
            for entry in list {
                let part = |field: &str| entry.get(field).and_then(Json::as_str);
                let (Some(name), Some(text)) = (part("name"), part("template")) else { continue };
                let key = if name == DEFAULT { KEY.to_owned() } else { format!("{KEY}.{name}") };
                metadata.push((key, text.into()));
                others.extend((name != DEFAULT).then(|| name.to_owned()));
            }
            if !others.is_empty() {
                metadata.push(("tokenizer.chat_templates".to_owned(), Value::Array(Array::Text(others))));
            }
        }
        _ => {}
    }
    Ok(metadata)
}

fn read(folder: &Path, name: &str) -> Result<Option<String>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let mut text = String::new();
    let size = File::open(&path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    match size.map_err(Error::io(&path))? as u64 > MAX_BYTES {
        false => Ok(Some(text)),
        true => Err(Error::file(&path, format!("more than {MAX_BYTES} bytes"))),
    }
}
