//! Bases: a quantised Hugging Face folder under a name. Its files are blobs that were uploaded before; the manifest,
//! created last, makes them a base.

use std::collections::BTreeSet;

use serde::Deserialize;
use tailor_blobs::Creation;
use tailor_domain::{BaseManifest, BaseName, Digest, Family, FileRef, Invalid, MergedFrom, QuantCode};
use tailor_serverkit::Page;
use tailor_serverkit::hint::one_of;

use crate::{Error, Registry, Result, layers};

const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// Where a base keeps its chat template: a file of its own, or inside the tokenizer's settings.
pub(crate) const CHAT_TEMPLATES: [&str; 2] = ["chat_template.jinja", "tokenizer_config.json"];
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// More files than any model's folder has; a bound on look-ups.
const MAX_FILES: usize = 1000;
/// Formats that can run code when they are read.
const PICKLES: [&str; 5] = [".bin", ".pt", ".pth", ".pkl", ".ckpt"];

/// A base that is to be registered.
#[derive(Debug, Clone)]
pub struct NewBase {
    pub name: BaseName,
    pub fingerprint: Digest,
    pub quant: QuantCode,
    pub dtype: String,
    pub files: Vec<FileRef>,
    pub parameters: u64,
    /// Absent for one that is brought.
    pub merged_from: Option<MergedFrom>,
}

fn manifest_key(name: &BaseName) -> String {
    format!("bases/{name}/manifest.json")
}

impl Registry {
    /// Registers a base. The same fingerprint and files under the same name are registered already.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Base`]: the folder is incomplete, of an unknown family or damaged.
    /// [`Error::NotReady`]: a file was not uploaded. [`Error::AlreadyExists`]: the name belongs to another base.
    pub async fn register_base(&self, base: NewBase) -> Result<BaseManifest> {
        Ok(self.create_base(base).await?.0)
    }

    /// As [`Self::register_base`], and whether it was this call that did it.
    pub(crate) async fn create_base(&self, base: NewBase) -> Result<(BaseManifest, bool)> {
        let config = check_folder(&base)?;
        if let Some(existing) = self.find_base(&base.name).await? {
            return Ok((same_base(existing, &base)?, false));
        }
        for file in &base.files {
            let size = self.require_blob(&file.name, &file.digest).await?;
            if size != file.size_bytes {
                let problem = format!("blob {} has {size} bytes, not {}", file.digest, file.size_bytes);
                return Err(Invalid::new(format!("files.{}", file.name), problem).into());
            }
        }
        let model_type = self.model_type(&base, &config).await?;
        let family = family_of(&model_type)?;
        let linears = layers::read(&self.store, base.name.as_str(), &base.files).await?.linears;
        if linears.is_empty() {
            let problem = "the model's files hold no linear layer, so no adapter could fit".into();
            return Err(Error::Base { base: base.name.to_string(), file: "model*.safetensors".into(), problem });
        }
        let manifest = BaseManifest {
            name: base.name.clone(),
            fingerprint: base.fingerprint.clone(),
            family,
            model_type,
            quant: base.quant,
            dtype: base.dtype.clone(),
            parameters: base.parameters,
            files: base.files.clone(),
            created_at_ms: (self.clock)(),
            merged_from: base.merged_from.clone(),
        };
        match self.store.create_json(&manifest_key(&base.name), &manifest).await? {
            Creation::Created => {
                tracing::info!(base = %base.name, fingerprint = %base.fingerprint, layers = linears.len(), "registered");
                self.note("register-base", "", "", &manifest_key(&base.name), &manifest).await;
                Ok((manifest, true))
            }
            Creation::AlreadyExists(existing) => Ok((same_base(existing, &base)?, false)),
        }
    }

    /// The base of this name, if there is one.
    pub(crate) async fn find_base(&self, name: &BaseName) -> Result<Option<BaseManifest>> {
        Ok(self.store.find_json(&manifest_key(name)).await?)
    }

    /// # Errors
    /// [`Error::NotFound`] names the bases that exist.
    pub async fn base(&self, name: &BaseName) -> Result<BaseManifest> {
        match self.find_base(name).await? {
            Some(base) => Ok(base),
            None => {
                let existing = self.store.list_children("bases").await?.folders;
                let hint = one_of("the bases are", &existing, "register one first (tailor base add)");
                Err(Error::NotFound { what: format!("base {name} does not exist"), hint })
            }
        }
    }

    /// One page of bases by name, and the next page's token.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list_bases(&self, page: &Page) -> Result<(Vec<BaseManifest>, String)> {
        let (names, next) = page.ascending(self.store.list_children("bases").await?.folders);
        let mut bases = Vec::with_capacity(names.len());
        for name in names {
            bases.extend(self.store.find_json(&manifest_key(&BaseName::try_new(name)?)).await?);
        }
        Ok((bases, next))
    }

    async fn model_type(&self, base: &NewBase, config: &FileRef) -> Result<String> {
        #[derive(Deserialize)]
        struct Config {
            model_type: String,
        }
        let json = self.read_small(CONFIG, &config.digest, MAX_CONFIG_BYTES).await?;
        let config: Config = serde_json::from_slice(&json).map_err(|error| Error::Base {
            base: base.name.to_string(),
            file: CONFIG.into(),
            problem: format!("it is no model's config: {error}"),
        })?;
        Ok(config.model_type)
    }
}

/// Checks the folder's list of files and returns the config.
fn check_folder(base: &NewBase) -> Result<FileRef, Invalid> {
    if base.dtype != "bf16" && base.dtype != "f32" {
        return Err(Invalid::new("dtype", format!("{:?} is neither bf16 nor f32", base.dtype)));
    }
    if base.files.len() > MAX_FILES {
        return Err(Invalid::new("files", format!("{} files; the limit is {MAX_FILES}", base.files.len())));
    }
    let mut names = BTreeSet::new();
    for file in &base.files {
        if !names.insert(file.name.as_str()) {
            return Err(Invalid::new("files", format!("{} is named twice", file.name)));
        }
        if PICKLES.iter().any(|ending| file.name.ends_with(ending)) {
            let problem = format!("{} may run code when it is read; convert the model to safetensors", file.name);
            return Err(Invalid::new("files", problem));
        }
    }
    let missing = |what: &str| Invalid::new("files", format!("{what} is missing from the folder"));
    if !base.files.iter().any(layers::is_weights) {
        return Err(missing("model.safetensors"));
    }
    if !names.contains(TOKENIZER) {
        return Err(missing(TOKENIZER));
    }
    base.files.iter().find(|file| file.name == CONFIG).cloned().ok_or_else(|| missing(CONFIG))
}

fn family_of(model_type: &str) -> Result<Family, Invalid> {
    Family::of_model_type(model_type).map_err(|problem| Invalid::new("config.json: model_type", problem))
}

fn same_base(existing: BaseManifest, new: &NewBase) -> Result<BaseManifest> {
    let by_name = |files: &[FileRef]| -> BTreeSet<(String, Digest)> {
        files.iter().map(|file| (file.name.clone(), file.digest.clone())).collect()
    };
    let same = existing.fingerprint == new.fingerprint && by_name(&existing.files) == by_name(&new.files);
    if same {
        return Ok(existing);
    }
    Err(Error::AlreadyExists {
        what: format!("base {} exists already with fingerprint {}", existing.name, existing.fingerprint),
        remedy: format!("a base never changes: register {} under another name", new.fingerprint),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(names: &[&str]) -> NewBase {
        let file = |name: &&str| FileRef { name: (*name).into(), digest: Digest::of(name.as_bytes()), size_bytes: 1 };
        NewBase {
            name: BaseName::try_new("tiny").expect("name"),
            fingerprint: Digest::of(b"tiny"),
            quant: QuantCode::Nf4,
            dtype: "bf16".into(),
            files: names.iter().map(file).collect(),
            parameters: 1,
            merged_from: None,
        }
    }

    #[test]
    fn an_incomplete_folder_is_refused_by_the_missing_file() {
        let whole = [CONFIG, TOKENIZER, "model.safetensors"];
        assert!(check_folder(&base(&whole)).is_ok());
        for missing in whole {
            let rest: Vec<&str> = whole.into_iter().filter(|name| *name != missing).collect();
            let error = check_folder(&base(&rest)).expect_err(missing);
            assert!(error.to_string().contains(missing), "{error}");
        }
    }

    #[test]
    fn pickles_and_names_given_twice_are_refused() {
        for extra in ["pytorch_model.bin", CONFIG] {
            let error = check_folder(&base(&[CONFIG, TOKENIZER, "model.safetensors", extra])).expect_err(extra);
            assert!(error.to_string().contains(extra), "{error}");
        }
    }

    #[test]
    fn a_family_that_is_not_known_is_refused_by_name() {
        assert_eq!(family_of("mt5"), Ok(Family::EncoderDecoder));
        assert_eq!(family_of("qwen2"), Ok(Family::Decoder));
        assert!(family_of("bert").expect_err("bert").to_string().contains("\"bert\" is not supported"));
    }
}
