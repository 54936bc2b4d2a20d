//! Bytes in and out. An upload waits in a local file until it is whole and its digest agrees: only then is it stored, so
//! half a blob is never visible. One that broke off is gone on with where it ended.

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use tailor_blobs::BlobStream;
use tailor_domain::{Digest, Invalid};
use tailor_serverkit::spool::{self, Partial};

use crate::{Error, Registry, Result};

/// A part of a blob is read in pieces of this size.
const PIECE_BYTES: u64 = 4 << 20;

/// What an upload says it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    pub digest: Digest,
    pub size_bytes: u64,
    /// Bytes that an earlier upload brought; the chunks go on from there.
    pub offset: u64,
}

/// What there is of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes that need not be sent again.
    pub bytes: u64,
    /// Whether it is stored.
    pub stored: bool,
}

impl Registry {
    /// Receives and stores a blob. One that is in the store already is not received again.
    ///
    /// # Errors
    /// [`Error::WrongBytes`], [`Error::Spool`] (too large, disk full), [`Error::BrokenOff`], [`Error::NotReady`] (an offset at
    /// which nothing ended), [`Error::Store`].
    pub async fn upload_blob(
        &self,
        announced: Announced,
        chunks: impl Stream<Item = Result<Vec<u8>>>,
    ) -> Result<Digest> {
        if announced.size_bytes > self.blob_limit.bytes {
            let (limit_bytes, setting) = (self.blob_limit.bytes, self.blob_limit.setting);
            return Err(spool::Error::TooLarge { limit_bytes, setting }.into());
        }
        if self.store.hold_blob(&announced.digest).await? == Some(announced.size_bytes) {
            return Ok(announced.digest);
        }
        let mut partial = self.partial(&announced).await?;
        let mut received = announced.offset;
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await.transpose()? {
            received += chunk.len() as u64;
            if received > announced.size_bytes {
                partial.forget();
                return Err(wrong(announced, |size| format!("more than the announced {size} bytes arrived")));
            }
            if let Err(error) = partial.write(&chunk).await {
                // Kept, it would take the room that others need.
                if matches!(error, spool::Error::Full { .. }) {
                    partial.forget();
                }
                return Err(error.into());
            }
        }
        if received < announced.size_bytes {
            // A caller that dies can look like one that ended: this may be gone on with too.
            return Err(wrong(announced, |size| format!("{received} of the announced {size} bytes arrived")));
        }
        let digest = partial.digest().await?;
        if digest != announced.digest {
            partial.forget();
            return Err(wrong(announced, |_| format!("the bytes that arrived have {digest}")));
        }
        let stored = self.store.put_blob_file(partial.path()).await?;
        partial.forget();
        Ok(stored.digest)
    }

    /// What an upload that broke off has left here. Another registry beside this one may have more.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn received(&self, digest: &Digest) -> Result<Received> {
        match self.store.hold_blob(digest).await? {
            Some(bytes) => Ok(Received { bytes, stored: true }),
            None => Ok(Received { bytes: Partial::length(&self.spool_dir, digest).await, stored: false }),
        }
    }

    async fn partial(&self, announced: &Announced) -> Result<Partial> {
        let Announced { digest, offset, .. } = announced;
        let mut partial = Partial::open(&self.spool_dir, digest, self.blob_limit).await?;
        if *offset == 0 {
            partial.restart().await?;
        } else if partial.size_bytes() != *offset {
            return Err(Error::NotReady {
                what: format!(
                    "blob {digest}: {} bytes of it are here, the upload goes on from {offset}",
                    partial.size_bytes()
                ),
                remedy: "ask GetUpload and go on from there".into(),
            });
        }
        Ok(partial)
    }

    /// An address of the store itself that reads the blob for a while.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotReady`] where the store signs none, [`Error::Store`].
    pub async fn sign_download(&self, digest: &Digest, lifetime: std::time::Duration) -> Result<String> {
        if self.store.blob_size(digest).await?.is_none() {
            return Err(no_blob(digest));
        }
        let url = self.store.signed_blob_url(digest, lifetime).await?;
        url.ok_or_else(|| Error::NotReady {
            what: format!("the store {} signs no addresses", self.store.url()),
            remedy: "read the blob by DownloadBlob".into(),
        })
    }

    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`]; damage is found at the end of the stream.
    pub async fn download_blob(&self, digest: &Digest) -> Result<BlobStream> {
        self.store.open_blob_stream(digest).await.map_err(|error| match error {
            tailor_blobs::Error::NotFound { .. } => no_blob(digest),
            other => other.into(),
        })
    }

    /// The rest of a blob from `offset` on. Only a whole blob is checked here: whoever puts the parts together compares the
    /// digest.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Invalid`]: an offset beyond its end; [`Error::Store`], also as items.
    pub async fn download_rest(&self, digest: &Digest, offset: u64) -> Result<BoxStream<'static, Result<Bytes>>> {
        let size = self.store.blob_size(digest).await?.ok_or_else(|| no_blob(digest))?;
        if offset > size {
            return Err(Invalid::new("offset", format!("{offset}; the blob has {size} bytes")).into());
        }
        Ok(self.part(digest, offset, size))
    }

    /// The bytes from `start` to `end`, piece by piece.
    pub(crate) fn part(&self, digest: &Digest, start: u64, end: u64) -> BoxStream<'static, Result<Bytes>> {
        let (registry, digest) = (self.clone(), digest.clone());
        let pieces = futures::stream::try_unfold(start, move |at| {
            let (registry, digest) = (registry.clone(), digest.clone());
            async move {
                if at >= end {
                    return Ok(None);
                }
                let next = end.min(at + PIECE_BYTES);
                Ok(Some((registry.store.get_blob_range(&digest, at..next).await?, next)))
            }
        });
        pieces.boxed()
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
        self.store.hold_blob(digest).await?.ok_or_else(|| Error::NotReady {
            what: format!("{field}: blob {digest} is not in the store"),
            remedy: "upload it first (UploadBlob)".into(),
        })
    }
}

fn no_blob(digest: &Digest) -> Error {
    Error::NotFound {
        what: format!("blob {digest} is not in the store"),
        hint: "take the digest from a base's files or an adapter version".into(),
    }
}

fn wrong(announced: Announced, problem: impl FnOnce(u64) -> String) -> Error {
    Error::WrongBytes { problem: problem(announced.size_bytes), digest: announced.digest }
}
