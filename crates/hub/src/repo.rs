//! Repository ids and revisions: the only parts of an address that come from a person.

use std::fmt;

use crate::{Error, Result};

const LONGEST: usize = 96;

/// `NAME` or `OWNER/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId(String);

impl RepoId {
    /// # Errors
    /// More than two parts, an empty or too long one, a letter that ids do not have.
    pub fn parse(given: &str) -> Result<Self> {
        let wrong = |problem: &str| Error::Id { given: given.to_owned(), problem: problem.to_owned() };
        let parts: Vec<&str> = given.split('/').collect();
        if parts.len() > 2 {
            return Err(wrong("it has more than two parts"));
        }
        for part in parts {
            if part.is_empty() || part.len() > LONGEST {
                return Err(wrong("a part is empty or has more than 96 letters"));
            }
            if !part.bytes().all(|letter| letter.is_ascii_alphanumeric() || b"-_.".contains(&letter)) {
                return Err(wrong("only letters, digits, '-', '_' and '.' are allowed"));
            }
            if part.starts_with(['.', '-']) || part.ends_with(['.', '-']) || part.contains("..") {
                return Err(wrong("a part does not begin or end with '.' or '-', and has no '..'"));
            }
        }
        Ok(Self(given.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder's name in the cache: `models--OWNER--NAME`.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A branch, a tag, a commit, or `refs/pr/N`.
pub(crate) fn check_revision(given: &str) -> Result<()> {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|letter| letter.is_ascii_alphanumeric() || b"-_.+".contains(&letter))
    };
    if given.len() <= 2 * LONGEST && given.split('/').all(plain) {
        return Ok(());
    }
    Err(Error::Setting(format!("{given:?} is no revision; give a branch, a tag, a commit or refs/pr/NUMBER")))
}

pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|letter| letter.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_or_two_plain_parts() {
        for good in ["gpt2", "google/mt5-small", "meta-llama/Llama-3.2-1B", "a/b_c.d"] {
            assert_eq!(RepoId::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "a/b/c", "/a", "a/", "../a", "a/..", "a b", "a/b?c", "a/.b", "ä/b", "https://x/y"] {
            assert!(RepoId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn revisions_lead_nowhere_else() {
        for good in ["main", "refs/pr/3", "v1.0", "0123456789abcdef0123456789abcdef01234567"] {
            check_revision(good).expect(good);
        }
        for bad in ["", "../x", "a//b", "a?b", "a b", "refs/../x"] {
            assert!(check_revision(bad).is_err(), "{bad}");
        }
    }
}
