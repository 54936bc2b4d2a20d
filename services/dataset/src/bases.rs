//! What this service needs of a base: its manifest and its tokenizer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tailor_domain::{BaseManifest, BaseName, Digest, Invalid};
use tailor_serverkit::hint::one_of;
use tailor_text::tokenizer::{CHAT_TEMPLATE_FILE, SETTINGS_FILE, TOKENIZER_FILE};
use tailor_text::{ExampleBuilder, PromptTemplate, Tokenizer, TokenizerFiles};

use crate::{Datasets, Error, Result};

/// Checked before a file is read into memory; the tokenizer has limits of its own below this.
const MAX_FILE_BYTES: u64 = 128 << 20;
/// Tokenizers kept; a large one takes a hundred megabytes.
const MAX_REMEMBERED: usize = 8;

/// Tokenizers by the digests of their files.
#[derive(Debug, Clone, Default)]
pub struct Cache(Arc<Mutex<HashMap<Vec<Digest>, Tokenizer>>>);

impl Cache {
    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<Digest>, Tokenizer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Digests of the files that decide how text becomes tokens.
pub(crate) fn tokenizer_digests(base: &BaseManifest) -> Vec<Digest> {
    let files = [TOKENIZER_FILE, SETTINGS_FILE, CHAT_TEMPLATE_FILE];
    files.iter().filter_map(|name| base.file(name)).map(|file| file.digest.clone()).collect()
}

impl Datasets {
    /// # Errors
    /// [`Error::NotFound`] names the bases that exist.
    pub(crate) async fn base(&self, name: &BaseName) -> Result<BaseManifest> {
        match self.store.find_json(&format!("bases/{name}/manifest.json")).await? {
            Some(base) => Ok(base),
            None => {
                let existing = self.store.list_children("bases").await?.folders;
                let hint = one_of("the bases are", &existing, "register one first (tailor base add)");
                Err(Error::NotFound { what: format!("base {name} does not exist"), hint })
            }
        }
    }

    /// Makes a base's prompts and examples for one template.
    ///
    /// # Errors
    /// [`Error::Base`]: its tokenizer or chat template is unusable.
    pub(crate) async fn example_builder(&self, base: &BaseManifest, template: &str) -> Result<ExampleBuilder> {
        let unusable = |source| Error::Base { base: base.name.to_string(), source };
        let tokenizer = self.tokenizer(base).await?;
        let template = PromptTemplate::parse(template, None).map_err(unusable)?;
        ExampleBuilder::new(tokenizer, template, base.family).map_err(unusable)
    }

    async fn tokenizer(&self, base: &BaseManifest) -> Result<Tokenizer> {
        let key = tokenizer_digests(base);
        if let Some(known) = self.tokenizers.lock().get(&key) {
            return Ok(known.clone());
        }
        let tokenizer = self.base_file(base, TOKENIZER_FILE).await?.unwrap_or_default();
        let settings = self.base_file(base, SETTINGS_FILE).await?;
        let chat_template = self.base_file(base, CHAT_TEMPLATE_FILE).await?;
        let name = base.name.to_string();
        let built = self
            .off_thread(move || {
                let files = TokenizerFiles {
                    tokenizer: &tokenizer,
                    settings: settings.as_deref(),
                    chat_template: chat_template.as_deref(),
                };
                Tokenizer::from_files(files).map_err(|source| Error::Base { base: name, source })
            })
            .await?;
        let mut remembered = self.tokenizers.lock();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, built.clone());
        Ok(built)
    }

    async fn base_file(&self, base: &BaseManifest, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(file) = base.file(name) else { return Ok(None) };
        if file.size_bytes > MAX_FILE_BYTES {
            let problem = format!("{} bytes; the limit is {MAX_FILE_BYTES}", file.size_bytes);
            return Err(Invalid::new(format!("base {}: {name}", base.name), problem).into());
        }
        Ok(Some(self.store.get_blob(&file.digest).await?.to_vec()))
    }
}
