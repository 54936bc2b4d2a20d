//! Names and ids as types of their own, checked where they are made.
//!
//! A name becomes part of object keys, so its alphabet is closed: no separators, no dots at the front, bounded length.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::error::Invalid;

/// Longest name accepted anywhere.
pub const MAX_NAME_LEN: usize = 64;

fn check_name(kind: &str, name: &str) -> Result<(), Invalid> {
    let fail = |problem: String| Err(Invalid::new(kind, problem));
    if name.is_empty() {
        return fail("name is empty; give 1 to 64 of a-z, 0-9, '-', '_' or '.'".into());
    }
    if name.len() > MAX_NAME_LEN {
        return fail(format!("name has {} characters; the limit is {MAX_NAME_LEN}", name.len()));
    }
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let bad = name.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(*c)));
    match bad {
        Some(c) => fail(format!("name {name:?} has {c:?}; use a-z, 0-9, '-', '_' or '.'")),
        None if !starts_well => fail(format!("name {name:?} must start with a letter or a digit")),
        None => Ok(()),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// # Errors
            /// Empty, longer than [`MAX_NAME_LEN`], or with a character outside `a-z 0-9 - _ .`.
            pub fn try_new(name: impl Into<String>) -> Result<Self, Invalid> {
                let name = name.into();
                check_name($kind, &name)?;
                Ok(Self(name))
            }
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(s: &str) -> Result<Self, Invalid> { Self::try_new(s) }
        }
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(s: String) -> Result<Self, Invalid> { Self::try_new(s) }
        }
        impl From<$name> for String {
            fn from(n: $name) -> String { n.0 }
        }
    };
}

name_type!(
    /// A dataset's name; its versions count from 1.
    DatasetName, "dataset");
name_type!(
    /// A quantised base model's name.
    BaseName, "base");
name_type!(
    /// An adapter's name; its versions count from 1.
    AdapterName, "adapter");
name_type!(
    /// A movable pointer to a version, e.g. `production`.
    AliasName, "alias");

/// A training job's id: a ULID, so ids sort by creation time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// A new id for the given instant; `random` supplies the unpredictable part.
    pub fn from_parts(unix_ms: u64, random: u128) -> Self {
        Self(ulid::Ulid::from_parts(unix_ms, random).to_string().to_ascii_lowercase())
    }

    /// # Errors
    /// The text is not a ULID.
    pub fn try_new(id: impl Into<String>) -> Result<Self, Invalid> {
        let id = id.into();
        match ulid::Ulid::from_string(&id) {
            Ok(_) => Ok(Self(id.to_ascii_lowercase())),
            Err(_) => Err(Invalid::new("job", format!("{id:?} is not a job id (26 letters and digits)"))),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When the job was created, by the clock of who made the id.
    pub fn created_at_ms(&self) -> u64 {
        // It was read when the id was made.
        ulid::Ulid::from_string(&self.0).map_or(0, |ulid| ulid.timestamp_ms())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for JobId {
    type Error = Invalid;
    fn try_from(s: String) -> Result<Self, Invalid> {
        Self::try_new(s)
    }
}

impl FromStr for JobId {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        Self::try_new(s)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.0
    }
}

/// A version number; the first is 1, and there are no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The sha256 of some bytes, written `sha256:<64 hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_sha256(&sha2::Sha256::digest(bytes).into())
    }

    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        Self(format!("sha256:{}", hex::encode(hash)))
    }

    /// # Errors
    /// Not `sha256:` (optional) and 64 lower-case hex digits.
    pub fn try_new(text: impl Into<String>) -> Result<Self, Invalid> {
        let text = text.into();
        let hexits = text.strip_prefix("sha256:").unwrap_or(&text);
        let well_formed =
            hexits.len() == 64 && hexits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !well_formed {
            return Err(Invalid::new("digest", format!("{text:?} is not sha256:<64 lower-case hex digits>")));
        }
        Ok(Self(format!("sha256:{hexits}")))
    }

    /// The 64 hex digits without the prefix.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = Invalid;
    fn try_from(s: String) -> Result<Self, Invalid> {
        Self::try_new(s)
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> String {
        d.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_forms_a_path() {
        for bad in ["", "..", ".", "a/b", "../x", "A", "a b", "a\0", "-x", &"x".repeat(65)] {
            assert!(DatasetName::try_new(bad).is_err(), "{bad:?} must be refused");
        }
        for good in ["grammar", "tiny-t5", "qwen2.5_7b", "7b"] {
            assert!(DatasetName::try_new(good).is_ok(), "{good:?} must be accepted");
        }
    }

    #[test]
    fn a_digest_reads_back_with_and_without_its_prefix() {
        let digest = Digest::of(b"tailor");
        assert_eq!(Digest::try_new(digest.as_str()), Ok(digest.clone()));
        assert_eq!(Digest::try_new(digest.hex()), Ok(digest));
        assert!(Digest::try_new("sha256:xyz").is_err());
    }

    #[test]
    fn job_ids_sort_by_time() {
        let earlier = JobId::from_parts(1_000, u128::MAX >> 48);
        let later = JobId::from_parts(1_001, 0);
        assert!(earlier < later);
        assert_eq!((earlier.created_at_ms(), later.created_at_ms()), (1_000, 1_001));
        assert_eq!(JobId::try_new(later.as_str()), Ok(later));
    }
}
