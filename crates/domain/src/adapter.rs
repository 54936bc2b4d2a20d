//! Adapter versions, aliases, and the ways to name one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::QuantCode;
use crate::error::Invalid;
use crate::ids::{AdapterName, AliasName, BaseName, Digest, JobId, Version};

/// `adapters/<name>/versions/<n>.json`. Never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterManifest {
    pub adapter: AdapterName,
    pub version: Version,
    /// `adapter_model.safetensors`.
    pub weights: Digest,
    pub weights_size_bytes: u64,
    /// `adapter_config.json`.
    pub config: Digest,
    /// The tokenizer the adapter was trained with.
    pub tokenizer: Digest,
    pub base: BaseName,
    pub base_fingerprint: Digest,
    pub quant: QuantCode,
    /// How an input becomes a prompt, e.g. `Correct the grammar: {input}`.
    pub prompt_template: String,
    /// `name@version` of the dataset; absent for an imported adapter.
    pub dataset: Option<String>,
    pub dataset_digest: Option<Digest>,
    /// The job that trained it and the attempt that published it; absent for an imported adapter.
    pub job: Option<JobId>,
    pub fence: u64,
    pub metrics: BTreeMap<String, f64>,
    pub notes: String,
    /// Who published it, as the caller says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub published_by: String,
    pub created_at_ms: u64,
}

impl AdapterManifest {
    /// What the version *is*, whatever it is called: the key of every cache.
    pub fn digest(&self) -> Digest {
        let identity =
            format!("{}\n{}\n{}\n{}", self.weights, self.config, self.base_fingerprint, self.prompt_template);
        Digest::of(identity.as_bytes())
    }
}

/// One entry of an alias' log: the log is the history, its last entry the present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasMove {
    pub alias: AliasName,
    /// Position in the alias' log, from 1.
    pub seq: u64,
    pub from: Option<Version>,
    pub to: Version,
    pub who: String,
    pub why: String,
    pub at_ms: u64,
    /// Whether this move undid the one before it.
    pub rollback: bool,
}

/// Which version of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    Latest,
    Version(Version),
    Alias(AliasName),
}

/// `name`, `name@3` or `name@production`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AdapterRef {
    pub adapter: AdapterName,
    pub selector: Selector,
}

impl FromStr for AdapterRef {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (name, selector) = match text.split_once('@') {
            None => (text, Selector::Latest),
            Some((name, at)) => (name, at.parse()?),
        };
        Ok(Self { adapter: AdapterName::try_new(name)?, selector })
    }
}

impl FromStr for Selector {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let number: u64 = text.parse().map_err(|_| Invalid::new("version", format!("{text} is too large")))?;
            if number == 0 {
                return Err(Invalid::new("version", "versions count from 1"));
            }
            return Ok(Self::Version(Version(number)));
        }
        Ok(Self::Alias(AliasName::try_new(text)?))
    }
}

impl fmt::Display for AdapterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Latest => write!(f, "{}", self.adapter),
            Selector::Version(version) => write!(f, "{}@{version}", self.adapter),
            Selector::Alias(alias) => write!(f, "{}@{alias}", self.adapter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_reads_back_as_it_is_written() {
        for text in ["grammar", "grammar@3", "grammar@production"] {
            let parsed: AdapterRef = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn version_zero_and_empty_selectors_are_refused() {
        for bad in ["grammar@0", "grammar@", "@1", "Gram@1", "g@99999999999999999999999"] {
            assert!(bad.parse::<AdapterRef>().is_err(), "{bad} must be refused");
        }
    }
}
