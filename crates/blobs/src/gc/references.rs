//! Which blobs the records name. A record names a blob by writing its digest, in whatever field: reading the text and not
//! the fields means that a record of tomorrow, of a service that this crate has never heard of, keeps its blobs too.

use std::collections::HashSet;

use futures::{StreamExt as _, TryStreamExt as _};
use tailor_domain::Digest;

use crate::{Error, Result, Store};

/// Folders whose records keep nothing alive: the blobs themselves, the collection's own, scratch, and the log of deeds, which
/// names what is gone as well.
const NOT_READ: [&str; 4] = ["blobs", "gc", "probe", "audit"];
const READS_AT_ONCE: usize = 32;
const PREFIX: &[u8] = b"sha256:";
const HEX_DIGITS: usize = 64;

impl Store {
    /// Every digest in every record for whose key `counts` says so.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`]. A record that vanishes meanwhile names nothing.
    pub async fn references(&self, counts: impl Fn(&str) -> bool) -> Result<HashSet<Digest>> {
        let mut found = HashSet::new();
        for folder in self.folders().await?.into_iter().filter(|folder| !NOT_READ.contains(&folder.as_str())) {
            let keys: Vec<String> = self.list(&folder).await?.into_iter().filter(|key| counts(key)).collect();
            let mut texts = futures::stream::iter(keys)
                .map(|key| async move {
                    match self.get(&key).await {
                        Ok(bytes) => Ok(digests_in(&bytes)),
                        Err(Error::NotFound { .. }) => Ok(Vec::new()),
                        Err(error) => Err(error),
                    }
                })
                .buffer_unordered(READS_AT_ONCE);
            while let Some(digests) = texts.try_next().await? {
                found.extend(digests);
            }
        }
        Ok(found)
    }
}

fn digests_in(text: &[u8]) -> Vec<Digest> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(PREFIX.len()).position(|window| window == PREFIX) {
        rest = &rest[at + PREFIX.len()..];
        let hex = rest.get(..HEX_DIGITS).and_then(|hex| std::str::from_utf8(hex).ok());
        found.extend(hex.and_then(|hex| Digest::try_new(hex).ok()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_wherever_they_stand() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let text = format!(r#"{{"weights":"{one}","deep":[{{"x":"see {two}!"}}],"short":"sha256:abc","sha256:":1}}"#);
        assert_eq!(digests_in(text.as_bytes()), [one, two]);
        assert_eq!(digests_in(b"sha256:"), []);
        assert_eq!(digests_in(b""), []);
    }
}
