//! Keys from the settings, and the check of a version that came over the wire.

use tailor_domain::Digest;
use tailor_pb::{convert, registry};
use tailor_trust::{Claims, PrivateKey, Result, Trusted, open};

use crate::settings::{Error as SettingsError, Settings};

/// A service's own key, if it has one, and the keys that it trusts: that one and those that the settings name.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    pub own: Option<PrivateKey>,
    pub trusted: Trusted,
}

impl Keys {
    /// # Errors
    /// A file that cannot be read, or what is no key. The message never repeats a key.
    pub fn of(settings: &Settings) -> Result<Self, SettingsError> {
        let trust = &settings.trust;
        let invalid = |key: &'static str| {
            move |error: tailor_trust::Error| SettingsError::Invalid { key, problem: error.to_string() }
        };
        let own = match (&trust.signing_key, &trust.signing_key_file) {
            (Some(key), _) => Some(PrivateKey::parse(key).map_err(invalid("trust.signing_key"))?),
            (None, Some(file)) => {
                let text = read("trust.signing_key_file", file)?;
                Some(PrivateKey::parse(&text).map_err(invalid("trust.signing_key_file"))?)
            }
            (None, None) => None,
        };
        let mut trusted = Trusted::parse(&trust.trusted_keys).map_err(invalid("trust.trusted_keys"))?;
        if let Some(file) = &trust.trusted_keys_file {
            let text = read("trust.trusted_keys_file", file)?;
            trusted.add(Trusted::parse(&text).map_err(invalid("trust.trusted_keys_file"))?);
        }
        trusted.add(Trusted::of(own.iter().map(PrivateKey::public).collect()));
        Ok(Self { own, trusted })
    }
}

fn read(key: &'static str, file: &std::path::Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(file)
        .map_err(|error| SettingsError::Invalid { key, problem: format!("{} cannot be read: {error}", file.display()) })
}

/// Checks that a version is what a trusted key has signed. To be called before its files are used; their bytes are checked
/// against the digests as they are read. With no trusted key nothing is checked.
///
/// # Errors
/// It is not signed, not by a trusted key, or not what was signed.
pub fn check_version(version: &registry::AdapterVersion, trusted: &Trusted) -> Result<()> {
    if trusted.is_empty() {
        return Ok(());
    }
    let digest = |text: &str| {
        Digest::try_new(text).map_err(|error| tailor_trust::Error::Tampered {
            subject: format!("adapter {}@{}", version.adapter, version.version),
            problem: error.to_string(),
        })
    };
    let (weights, config) = (digest(&version.weights_digest)?, digest(&version.config_digest)?);
    let base_fingerprint = digest(&version.base_fingerprint)?;
    let claims = Claims {
        adapter: &version.adapter,
        version: version.version,
        weights: &weights,
        config: &config,
        base_fingerprint: &base_fingerprint,
        prompt_template: &version.prompt_template,
        record: None,
    };
    let envelope = version.attestation.clone().map(convert::envelope);
    open(envelope.as_ref(), &claims, trusted).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Settings::load(None, &pairs).expect("settings")
    }

    #[test]
    fn a_key_comes_from_the_settings_or_a_file_and_is_trusted() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("key.pem");
        std::fs::write(&file, format!("{SEED}\n")).expect("written");
        let here = Keys::of(&settings(&[("trust.signing_key", SEED)])).expect("a key");
        let there = Keys::of(&settings(&[("trust.signing_key_file", &file.display().to_string())])).expect("a key");
        assert_eq!(here.trusted, there.trusted);
        assert!(!here.trusted.is_empty() && Keys::of(&settings(&[])).expect("none").trusted.is_empty());
    }

    #[test]
    fn a_bad_key_names_its_setting_and_not_itself() {
        let message = Keys::of(&settings(&[("trust.signing_key", "hunter2")])).expect_err("no key").to_string();
        assert!(message.contains("trust.signing_key") && !message.contains("hunter2"), "{message}");
        let message = Keys::of(&settings(&[("trust.trusted_keys_file", "/nowhere")])).expect_err("no file").to_string();
        assert!(message.contains("/nowhere") && message.contains("trust.trusted_keys_file"), "{message}");
        assert!(!format!("{:?}", settings(&[("trust.signing_key", SEED)])).contains(SEED));
    }
}
