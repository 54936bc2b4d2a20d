//! Bytes in and out. An upload waits in a local file until it is whole and its digest agrees: only then is it stored, so
//! half a blob is never visible.

use futures::{Stream, StreamExt as _};
use tailor_blobs::BlobStream;
use tailor_domain::{Digest, Invalid};
use tailor_serverkit::spool::{self, Spool};

use crate::{Error, Registry, Result};

/// What an upload says it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    pub digest: Digest,
    pub size_bytes: u64,
}

impl Registry {
    /// Receives and stores a blob. One that is in the store already is not received again.
    ///
    /// # Errors
    /// [`Error::WrongBytes`], [`Error::Spool`] (too large, disk full), [`Error::BrokenOff`], [`Error::Store`].
    pub async fn upload_blob(
        &self,
        announced: Announced,
        chunks: impl Stream<Item = Result<Vec<u8>>>,
    ) -> Result<Digest> {
        if announced.size_bytes > self.blob_limit.bytes {
            let (limit_bytes, setting) = (self.blob_limit.bytes, self.blob_limit.setting);
            return Err(spool::Error::TooLarge { limit_bytes, setting }.into());
        }
        if self.store.blob_size(&announced.digest).await? == Some(announced.size_bytes) {
            return Ok(announced.digest);
        }
        let mut spool = Spool::create(&self.spool_dir, self.blob_limit)?;
        let mut received = 0;
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await.transpose()? {
            received += chunk.len() as u64;
            if received > announced.size_bytes {
                return Err(wrong(announced, |size| format!("more than the announced {size} bytes arrived")));
            }
            spool.write(&chunk).await?;
        }
        if received < announced.size_bytes {
            return Err(wrong(announced, |size| format!("{received} of the announced {size} bytes arrived")));
        }
        let spooled = spool.finish().await?;
        if spooled.digest != announced.digest {
            return Err(wrong(announced, |_| format!("the bytes that arrived have {}", spooled.digest)));
        }
        Ok(self.store.put_blob_file(spooled.path()).await?.digest)
    }

    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`]; damage is found at the end of the stream.
    pub async fn download_blob(&self, digest: &Digest) -> Result<BlobStream> {
        self.store.open_blob_stream(digest).await.map_err(|error| match error {
            tailor_blobs::Error::NotFound { .. } => Error::NotFound {
                what: format!("blob {digest} is not in the store"),
                hint: "take the digest from a base's files or an adapter version".into(),
            },
            other => other.into(),
        })
    }

    /// Reads a small file of an adapter or a base into memory, refusing a large one before it is read.
    pub(crate) async fn read_small(&self, field: &str, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>> {
        let size = self.require_blob(field, digest).await?;
        if size > limit_bytes {
            let problem = format!("blob {digest} has {size} bytes; the limit is {limit_bytes}");
            return Err(Invalid::new(field, problem).into());
        }
        Ok(self.store.get_blob(digest).await?.to_vec())
    }

    /// The size of a blob that a request refers to.
    pub(crate) async fn require_blob(&self, field: &str, digest: &Digest) -> Result<u64> {
        self.store.blob_size(digest).await?.ok_or_else(|| Error::NotReady {
            what: format!("{field}: blob {digest} is not in the store"),
            remedy: "upload it first (UploadBlob)".into(),
        })
    }
}

fn wrong(announced: Announced, problem: impl FnOnce(u64) -> String) -> Error {
    Error::WrongBytes { problem: problem(announced.size_bytes), digest: announced.digest }
}
