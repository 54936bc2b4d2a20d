//! Object keys. Every component is checked, so that no name, wherever it came from, can form a path.

use crate::{Error, Result};

/// Longest component; the longest in use is a sha256 in hex with an extension.
const MAX_NAME_LEN: usize = 128;
const MAX_KEY_LEN: usize = 512;
/// Digits of a number in a key; more numbers than that would break the sort order.
const NUMBER_DIGITS: usize = 8;
pub(crate) const MAX_NUMBER: u64 = 99_999_999;

/// Checks one component of a key: 1 to 128 of `a-z 0-9 - _ .`, not starting with a dot. Upper case is left out, so that
/// keys stay apart on file systems that do not tell it from lower case.
///
/// # Errors
/// [`Error::InvalidKey`].
pub fn validate_name(name: &str) -> Result<()> {
    let fail = |problem: String| Err(Error::InvalidKey { key: name.chars().take(MAX_NAME_LEN).collect(), problem });
    if name.is_empty() {
        return fail("a component is empty".into());
    }
    if name.len() > MAX_NAME_LEN {
        return fail(format!("a component has {} bytes; the limit is {MAX_NAME_LEN}", name.len()));
    }
    if name.starts_with('.') {
        return fail("a component starts with a dot".into());
    }
    match name.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(*c))) {
        Some(c) => fail(format!("{c:?} is not one of a-z, 0-9, '-', '_' or '.'")),
        None => Ok(()),
    }
}

/// Checks a whole key or prefix: components as in [`validate_name`], parted by single slashes, none at the ends.
///
/// # Errors
/// [`Error::InvalidKey`].
pub fn validate_key(key: &str) -> Result<()> {
    if key.len() > MAX_KEY_LEN {
        let problem = format!("it has {} bytes; the limit is {MAX_KEY_LEN}", key.len());
        return Err(Error::InvalidKey { key: key.chars().take(MAX_NAME_LEN).collect(), problem });
    }
    key.split('/').try_for_each(validate_name).map_err(|error| match error {
        Error::InvalidKey { problem, .. } => Error::InvalidKey { key: key.to_owned(), problem },
        other => other,
    })
}

/// `<prefix>/<number, 8 digits>.json`: numbers sort as text.
pub fn numbered_key(prefix: &str, number: u64) -> String {
    format!("{prefix}/{number:0NUMBER_DIGITS$}.json")
}

/// The number in a key made by [`numbered_key`] for this prefix.
pub(crate) fn number_of(prefix: &str, key: &str) -> Option<u64> {
    let digits = key.strip_prefix(prefix)?.strip_prefix('/')?.strip_suffix(".json")?;
    let well_formed = digits.len() == NUMBER_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    if well_formed { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_forms_a_path() {
        for bad in ["", "..", ".", ".hidden", "a/b", "../x", "A", "a b", "a\0", "a\\b", "ä", "a#1", &"x".repeat(129)] {
            assert!(validate_name(bad).is_err(), "{bad:?} must be refused");
        }
        for good in ["grammar", "00000001.json", "tiny-t5", "qwen2.5_7b", &"a".repeat(128)] {
            assert!(validate_name(good).is_ok(), "{good:?} must be accepted");
        }
    }

    #[test]
    fn a_key_has_no_empty_or_climbing_component() {
        for bad in ["", "/a", "a/", "a//b", "a/../b", "a/./b", &"a/".repeat(300)] {
            assert!(validate_key(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(validate_key("jobs/01abc/log/00000001.json").is_ok());
    }

    #[test]
    fn a_numbered_key_reads_back() {
        assert_eq!(numbered_key("jobs/a/log", 7), "jobs/a/log/00000007.json");
        assert_eq!(number_of("jobs/a/log", "jobs/a/log/00000007.json"), Some(7));
        for foreign in ["jobs/a/log/7.json", "jobs/a/log/x0000007.json", "jobs/b/log/00000007.json", "jobs/a/log"] {
            assert_eq!(number_of("jobs/a/log", foreign), None, "{foreign}");
        }
    }
}
