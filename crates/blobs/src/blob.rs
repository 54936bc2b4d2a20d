//! Blobs: bytes named by their own sha256, under `blobs/sha256/<first two hex digits>/<hex>`.
//!
//! A blob is written once and checked on every read, so a blob that was read is the blob that was meant.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{GetResultPayload, ObjectStoreExt as _, PutPayload, WriteMultipart};
use sha2::{Digest as _, Sha256};
use tailor_domain::Digest;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::classify::file_error;
use crate::{Error, Result, Store};

/// Larger blobs go up in parts of this size; the buffer of every streaming path.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts that S3 takes of one object.
const MAX_PARTS: u64 = 10_000;
/// Parts under way at once.
const PARTS_AT_ONCE: usize = 4;

/// A blob's bytes, piece by piece. The last item is an error if they are not the blob that was asked for, so nothing may
/// be believed before the end.
pub type BlobStream = BoxStream<'static, Result<Bytes>>;

/// A blob that is now in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlob {
    pub digest: Digest,
    pub size_bytes: u64,
}

pub(crate) fn blob_key(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("blobs/sha256/{}/{hex}", &hex[..2])
}

impl Store {
    /// Stores bytes under their digest. Bytes that are there already are not sent again.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Full`], [`Error::Refused`]; the same call may be made again after any of them.
    pub async fn put_blob(&self, bytes: impl Into<Bytes>) -> Result<Digest> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let key = blob_key(&digest);
        if self.hold_blob(&digest).await? == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let path = self.path(&key)?;
        self.backend.put(&path, PutPayload::from_bytes(bytes)).await.map_err(|error| self.error(&key, error))?;
        Ok(digest)
    }

    /// Stores a file's bytes, never holding more than a few parts in memory. The file must not change meanwhile.
    ///
    /// # Errors
    /// As [`Store::put_blob`]; [`Error::File`] if the file cannot be read or changes.
    pub async fn put_blob_file(&self, file: &Path) -> Result<StoredBlob> {
        let (digest, size_bytes) = digest_of_file(file).await?;
        let key = blob_key(&digest);
        if self.hold_blob(&digest).await? != Some(size_bytes) {
            if size_bytes <= PART_BYTES as u64 {
                self.upload_whole(&key, file, &digest).await?;
            } else {
                self.upload_in_parts(&key, file, &digest, part_bytes(size_bytes)).await?;
            }
        }
        Ok(StoredBlob { digest, size_bytes })
    }

    /// Stores whatever a reader gives, by way of a temporary file: the name is known only at the end.
    ///
    /// # Errors
    /// As [`Store::put_blob_file`].
    pub async fn put_blob_reader(&self, mut reader: impl AsyncRead + Unpin) -> Result<StoredBlob> {
        let folder = std::env::temp_dir();
        let spool = tempfile::NamedTempFile::new_in(&folder).map_err(|error| file_error(&folder, &error))?;
        let failed = |error: io::Error| file_error(spool.path(), &error);
        let mut file = File::create(spool.path()).await.map_err(failed)?;
        tokio::io::copy(&mut reader, &mut file).await.map_err(failed)?;
        file.flush().await.map_err(failed)?;
        drop(file);
        self.put_blob_file(spool.path()).await
    }

    /// Whether the blob is there, by its size.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        self.size(&blob_key(digest)).await
    }

    /// Deletes a blob; one that is not there is deleted already. Only for bytes that nothing else can refer to.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    pub async fn delete_blob(&self, digest: &Digest) -> Result<()> {
        self.delete(&blob_key(digest)).await
    }

    /// Reads a whole blob into memory and checks it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`], [`Error::Unavailable`], [`Error::Refused`].
    pub async fn get_blob(&self, digest: &Digest) -> Result<Bytes> {
        let bytes = self.get(&blob_key(digest)).await?;
        check(digest, Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// As [`Store::get_blob`] for a blob of at most `limit_bytes`. Its size is looked at before its bytes are read, and of a store
    /// that sends more than it has said no more is taken than that.
    ///
    /// # Errors
    /// As [`Store::get_blob`]; [`Error::TooLarge`].
    pub async fn get_blob_within(&self, digest: &Digest, limit_bytes: u64) -> Result<Bytes> {
        let within = |size_bytes: u64| {
            if size_bytes > limit_bytes {
                return Err(Error::TooLarge { digest: digest.clone(), size_bytes, limit_bytes });
            }
            Ok(())
        };
        let key = blob_key(digest);
        let found = self.backend.get(&self.path(&key)?).await.map_err(|error| self.error(&key, error))?;
        within(found.meta.size)?;
        let bytes = if matches!(found.payload, GetResultPayload::Stream(_)) {
            let (mut pieces, mut bytes) = (found.into_stream(), Vec::new());
            while let Some(piece) = pieces.try_next().await.map_err(|error| self.error(&key, error))? {
                within((bytes.len() + piece.len()) as u64)?;
                bytes.extend_from_slice(&piece);
            }
            bytes.into()
        } else {
            // A file is read as far as the size goes that was looked at.
            found.bytes().await.map_err(|error| self.error(&key, error))?
        };
        check(digest, Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Reads a part of a blob, e.g. the header of a large file. A part has no digest: only the whole is checked, when it is
    /// read whole.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`] (also for a range beyond the end), [`Error::Refused`].
    pub async fn get_blob_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes> {
        let key = blob_key(digest);
        let path = self.path(&key)?;
        self.backend.get_range(&path, range).await.map_err(|error| self.error(&key, error))
    }

    /// Reads a blob piece by piece, checking at the end.
    ///
    /// # Errors
    /// As [`Store::get_blob`]; also as items of the stream.
    pub async fn open_blob_stream(&self, digest: &Digest) -> Result<BlobStream> {
        let key = blob_key(digest);
        let found = self.backend.get(&self.path(&key)?).await.map_err(|error| self.error(&key, error))?;
        let (store, digest) = (self.clone(), digest.clone());
        let pieces = found.into_stream();
        let checked = futures::stream::try_unfold((pieces, Some(Sha256::new())), move |(mut pieces, hasher)| {
            let (store, digest, key) = (store.clone(), digest.clone(), key.clone());
            async move {
                let Some(mut hasher) = hasher else { return Ok(None) };
                match pieces.try_next().await.map_err(|error| store.error(&key, error))? {
                    Some(piece) => {
                        hasher.update(&piece);
                        Ok(Some((piece, (pieces, Some(hasher)))))
                    }
                    None => {
                        check(&digest, Digest::from_sha256(&hasher.finalize().into()))?;
                        Ok(None)
                    }
                }
            }
        });
        Ok(checked.boxed())
    }

    /// Writes a blob to a file: checked, flushed to disk, and under its final name only when whole. Returns its size.
    ///
    /// # Errors
    /// As [`Store::get_blob`]; [`Error::Full`] and [`Error::File`] for the local side. The path is untouched then.
    pub async fn fetch_blob_to(&self, digest: &Digest, path: &Path) -> Result<u64> {
        let mut pieces = self.open_blob_stream(digest).await?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let failed = |error: io::Error| file_error(path, &error);
        tokio::fs::create_dir_all(&folder).await.map_err(failed)?;
        // Dropped on any error below, and the file with it.
        let partial = tempfile::NamedTempFile::new_in(&folder).map_err(failed)?;
        let mut file = File::from_std(partial.as_file().try_clone().map_err(failed)?);
        let mut size_bytes = 0;
        while let Some(piece) = pieces.try_next().await? {
            file.write_all(&piece).await.map_err(failed)?;
            size_bytes += piece.len() as u64;
        }
        file.flush().await.map_err(failed)?;
        file.sync_all().await.map_err(failed)?;
        drop(file);
        partial.persist(path).map_err(|error| failed(error.error))?;
        Ok(size_bytes)
    }

    async fn upload_whole(&self, key: &str, file: &Path, digest: &Digest) -> Result<()> {
        let bytes = tokio::fs::read(file).await.map_err(|error| file_error(file, &error))?;
        unchanged(file, digest, &Digest::of(&bytes))?;
        let path = self.path(key)?;
        self.backend.put(&path, PutPayload::from(bytes)).await.map(drop).map_err(|error| self.error(key, error))
    }

    async fn upload_in_parts(&self, key: &str, file: &Path, digest: &Digest, part_bytes: usize) -> Result<()> {
        let path = self.path(key)?;
        let mut reader = File::open(file).await.map_err(|error| file_error(file, &error))?;
        let upload = self.backend.put_multipart(&path).await.map_err(|error| self.error(key, error))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, part_bytes);
        let sent = self.send_parts(key, file, &mut reader, &mut upload, part_bytes).await;
        match sent.and_then(|found| unchanged(file, digest, &found)) {
            Ok(()) => upload.finish().await.map(drop).map_err(|error| self.error(key, error)),
            Err(error) => {
                // Best effort: what is left behind is parts without a name, which stores expire by themselves.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }

    async fn send_parts(
        &self,
        key: &str,
        file: &Path,
        reader: &mut File,
        upload: &mut WriteMultipart,
        part_bytes: usize,
    ) -> Result<Digest> {
        let mut hasher = Sha256::new();
        loop {
            upload.wait_for_capacity(PARTS_AT_ONCE).await.map_err(|error| self.error(key, error))?;
            let part = read_part(reader, part_bytes).await.map_err(|error| file_error(file, &error))?;
            if part.is_empty() {
                return Ok(Digest::from_sha256(&hasher.finalize().into()));
            }
            hasher.update(&part);
            upload.put(part);
        }
    }
}

/// Of a file that is sent in parts: as large as need be for a store that takes no more than [`MAX_PARTS`].
fn part_bytes(size_bytes: u64) -> usize {
    PART_BYTES.max(size_bytes.div_ceil(MAX_PARTS).next_multiple_of(1 << 20) as usize)
}

/// Up to so many bytes from the reader; none at its end.
async fn read_part(reader: &mut File, bytes: usize) -> io::Result<Bytes> {
    let mut part = Vec::with_capacity(bytes);
    reader.take(bytes as u64).read_to_end(&mut part).await?;
    Ok(part.into())
}

async fn digest_of_file(path: &Path) -> Result<(Digest, u64)> {
    let failed = |error: io::Error| file_error(path, &error);
    let mut reader = File::open(path).await.map_err(failed)?;
    let (mut hasher, mut size_bytes) = (Sha256::new(), 0);
    loop {
        let part = read_part(&mut reader, PART_BYTES).await.map_err(failed)?;
        if part.is_empty() {
            return Ok((Digest::from_sha256(&hasher.finalize().into()), size_bytes));
        }
        hasher.update(&part);
        size_bytes += part.len() as u64;
    }
}

/// Refuses a file that was one thing when its name was computed and another when it was sent.
fn unchanged(file: &Path, named: &Digest, sent: &Digest) -> Result<()> {
    if named == sent {
        return Ok(());
    }
    let problem = "it changed while it was read; leave it alone until the upload ends".to_owned();
    Err(Error::File { path: file.display().to_string(), problem })
}

fn check(wanted: &Digest, found: Digest) -> Result<()> {
    if *wanted == found { Ok(()) } else { Err(Error::Corrupt { digest: wanted.clone(), found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_has_more_parts_than_s3_takes() {
        for (gib, mib) in [(1, 8), (78, 8), (80, 9), (140, 15), (5 * 1024, 525)] {
            let size = gib << 30;
            assert_eq!(part_bytes(size), mib << 20, "{gib} GiB");
            assert!(size.div_ceil(part_bytes(size) as u64) <= MAX_PARTS);
        }
    }
}
