//! What makes two bases the same: sha256 over config, tokenizer, how it was quantised, and every source tensor.

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use tailor_domain::Digest;

use crate::TensorRef;

/// Collects the parts in a fixed order; each is preceded by its length, so no two sequences of parts run together.
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(crate) fn new(config: &[u8], tokenizer: &[u8], coding: &str) -> Self {
        let mut fingerprint = Self(Sha256::new_with_prefix(b"tailor-base-1\n"));
        for part in [config, tokenizer, coding.as_bytes()] {
            fingerprint.part(part);
        }
        fingerprint
    }

    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Tensors must come sorted by name; `content` is [`content`] of its bytes.
    pub(crate) fn tensor(&mut self, name: &str, tensor: &TensorRef, content: &[u8; 32]) {
        self.part(name.as_bytes());
        self.part(format!("{:?} {:?}", tensor.dtype, tensor.shape).as_bytes());
        self.part(content);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::from_sha256(&self.0.finalize().into())
    }
}

pub(crate) fn content(tensor: &TensorRef) -> [u8; 32] {
    Sha256::digest(&*tensor.bytes).into()
}

/// The fingerprint of a folder as it would be after quantising it with `coding` (see [`crate::QuantOptions::coding`]).
///
/// # Errors
/// The folder cannot be read.
pub fn fingerprint(folder: &std::path::Path, coding: &str) -> crate::Result<Digest> {
    let checkpoint = crate::Checkpoint::open(folder)?;
    let (config, tokenizer) = crate::folder::identity_files(folder)?;
    let names: Vec<&str> = checkpoint.names().collect();
    let digested = names.par_iter().map(|name| {
        let tensor = checkpoint.tensor(name)?;
        let content = content(&tensor);
        tensor.bytes.evict();
        Ok((tensor, content))
    });
    let digested: Vec<_> = digested.collect::<crate::Result<_>>()?;
    let mut fingerprint = Fingerprint::new(&config, &tokenizer, coding);
    for (name, (tensor, content)) in names.iter().zip(&digested) {
        fingerprint.tensor(name, tensor, content);
    }
    Ok(fingerprint.finish())
}
