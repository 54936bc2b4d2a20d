//! A wheel's RECORD: the digest of each of its files (PyPA's "recording installed projects").
//!
//! The digest of RECORD itself is pinned in `set.rs`, so RECORD vouches for every file without pinning thousands.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Digest by path, in the notation of RECORD: `sha256=` and URL-safe base64 without padding.
pub struct Record {
    digests: HashMap<String, String>,
}

impl Record {
    /// Parses `path,hash,size` lines. Lines without a hash (RECORD's own) are left out.
    pub fn parse(text: &str) -> Result<Self> {
        let mut digests = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let mut fields = line.rsplitn(3, ',');
            let (Some(_size), Some(hash), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                bail!("RECORD, line {}: expected path,hash,size but found {line:?}", number + 1);
            };
            if hash.is_empty() {
                continue;
            }
            ensure!(hash.starts_with("sha256="), "RECORD, line {}: {path} has no sha256", number + 1);
            digests.insert(unquote(path), hash.to_owned());
        }
        Ok(Self { digests })
    }

    /// The recorded digest of a file.
    pub fn digest(&self, path: &str) -> Result<&str> {
        self.digests.get(path).map(String::as_str).with_context(|| format!("RECORD does not list {path}"))
    }
}

/// A path with a comma or a quote stands in quotes, as in any CSV file.
fn unquote(field: &str) -> String {
    match field.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => field.to_owned(),
    }
}

/// A finished digest in RECORD's notation.
pub fn notation(sha256: Sha256) -> String {
    let mut text = String::from("sha256=");
    for chunk in sha256.finalize().chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            let index = (bits >> (18 - 6 * place)) as usize & 63;
            text.push(char::from(URL_SAFE[index]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_written_as_in_a_real_record() {
        // sha256 of nothing, as pip writes it for an empty __init__.py.
        assert_eq!(notation(Sha256::new()), "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU");
    }

    #[test]
    fn record_gives_the_digest_of_a_listed_file() {
        let record = Record::parse("pkg/a.py,sha256=AAA,12\n\"pkg/b,c.py\",sha256=BBB,3\npkg/RECORD,,\n").unwrap();
        assert_eq!(record.digest("pkg/a.py").unwrap(), "sha256=AAA");
        assert_eq!(record.digest("pkg/b,c.py").unwrap(), "sha256=BBB");
    }

    #[test]
    fn unlisted_file_is_refused_by_name() {
        let record = Record::parse("pkg/a.py,sha256=AAA,12\npkg/RECORD,,\n").unwrap();
        assert!(record.digest("pkg/evil.so").unwrap_err().to_string().contains("pkg/evil.so"));
        assert!(record.digest("pkg/RECORD").is_err());
    }

    #[test]
    fn malformed_line_is_refused_by_number() {
        let message = Record::parse("pkg/a.py,sha256=AAA,12\nnonsense\n").err().unwrap().to_string();
        assert!(message.contains("line 2"), "{message}");
        assert!(Record::parse("pkg/a.py,md5=AAA,12\n").is_err());
    }
}
