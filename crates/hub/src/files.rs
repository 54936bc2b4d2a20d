//! Which files of a repository are needed, and what the hub says of each.

use serde::Deserialize;

use crate::repo::RepoId;
use crate::{Error, Result};

/// The hub's answer for a revision.
#[derive(Debug, Deserialize)]
pub(crate) struct Listing {
    pub sha: String,
    #[serde(default)]
    pub siblings: Vec<Sibling>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sibling {
    #[serde(rename = "rfilename")]
    pub name: String,
    pub size: Option<u64>,
    /// The git object id: SHA-1 over `blob SIZE\0` and the content, of the pointer where there is `lfs`.
    #[serde(rename = "blobId")]
    pub blob_id: Option<String>,
    pub lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Lfs {
    pub sha256: String,
    pub size: u64,
}

/// How a file's content is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Checksum {
    Sha256(String),
    GitBlob(String),
}

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";

/// Beside the weights: what Tailor reads where it is there.
const SMALL_FILES: [&str; 14] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

impl Sibling {
    /// # Errors
    /// The hub states no checksum, or one of another form.
    pub fn checksum(&self) -> Result<Checksum> {
        let is_hex = |text: &str, length| text.len() == length && text.bytes().all(|letter| letter.is_ascii_hexdigit());
        match (&self.lfs, &self.blob_id) {
            (Some(lfs), _) if is_hex(&lfs.sha256, 64) => Ok(Checksum::Sha256(lfs.sha256.to_ascii_lowercase())),
            (None, Some(id)) if is_hex(id, 40) => Ok(Checksum::GitBlob(id.to_ascii_lowercase())),
            _ => Err(Error::content(&self.name, "the hub states no checksum, so that it cannot be verified")),
        }
    }

    pub fn size(&self) -> Option<u64> {
        self.lfs.as_ref().map(|lfs| lfs.size).or(self.size)
    }
}

impl Listing {
    pub fn find(&self, name: &str) -> Option<&Sibling> {
        self.siblings.iter().find(|sibling| sibling.name == name)
    }

    /// The files to fetch but shards, which the index names.
    ///
    /// # Errors
    /// No config.json; no safetensors, with the reason why pickled weights do not do.
    pub fn first_files(&self, repo: &RepoId) -> Result<Vec<Sibling>> {
        if self.find(CONFIG).is_none() {
            return Err(Error::content(
                repo.as_str(),
                "it has no config.json; it is no model in Hugging Face's format",
            ));
        }
        let mut wanted: Vec<Sibling> = SMALL_FILES.iter().filter_map(|name| self.find(name)).cloned().collect();
        match (self.find(INDEX), self.find(WEIGHTS)) {
            (Some(index), _) => wanted.push(index.clone()),
            (None, Some(weights)) => wanted.push(weights.clone()),
            (None, None) => return Err(Error::content(repo.as_str(), self.why_no_weights())),
        }
        Ok(wanted)
    }

    fn why_no_weights(&self) -> String {
        let is_pickled = |name: &str| [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|end| name.ends_with(end));
        match self.siblings.iter().find(|sibling| is_pickled(&sibling.name)) {
            Some(pickled) => format!(
                "its weights are pickled ({}), and loading a pickle runs whatever code it holds; Tailor reads safetensors: \
                 look for a revision that has them (--revision refs/pr/NUMBER), or convert them and give the folder",
                pickled.name
            ),
            None => "it has no model.safetensors".into(),
        }
    }
}

/// The shards that an index names, each once.
///
/// # Errors
/// The index is no JSON of its form, or names something that is no plain file name.
pub(crate) fn shards(index: &[u8]) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|error| Error::content(INDEX, error.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        if name.contains(['/', '\\', '\0']) || name.starts_with('.') || !name.ends_with(".safetensors") {
            let problem = format!("names {name:?}, which is no plain name of a .safetensors file");
            return Err(Error::content(INDEX, problem));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_leads_to_plain_files_only() {
        let index = |name: &str| format!(r#"{{"weight_map": {{"a": "{name}", "b": "model-1.safetensors"}}}}"#);
        assert_eq!(shards(index("model-2.safetensors").as_bytes()).expect("good").len(), 2);
        for bad in ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", ".x.safetensors", "pytorch.bin"] {
            let message = shards(index(bad).as_bytes()).expect_err(bad).to_string();
            assert!(message.contains(bad), "{message}");
        }
        assert!(shards(b"[]").is_err());
    }
}
