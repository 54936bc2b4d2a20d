//! Bytes of a file on their way to the spool. One whose sha256 was announced stays there when it breaks off, so that it can be gone
//! on with; any other is gone.

use std::path::Path;

use futures::{Stream, StreamExt as _};
use tailor_domain::{Digest, Invalid};
use tailor_serverkit::spool::{self, Partial, Spool, Spooled};

use crate::upload::Header;
use crate::{Datasets, Error, Result};

/// A file that has arrived whole.
#[derive(Debug)]
pub enum Arrived {
    /// It is deleted when this is dropped.
    Once(Spooled),
    /// It stays until it is forgotten.
    Kept(Box<Partial>),
}

impl Arrived {
    pub fn path(&self) -> &Path {
        match self {
            Self::Once(spooled) => spooled.path(),
            Self::Kept(partial) => partial.path(),
        }
    }

    /// Deletes it: it is stored, or it is no dataset.
    pub fn forget(self) {
        match self {
            Self::Once(spooled) => drop(spooled),
            Self::Kept(partial) => partial.forget(),
        }
    }
}

impl Datasets {
    /// # Errors
    /// [`Error::Spool`], [`Error::WrongBytes`], [`Error::BrokenOff`], [`Error::OtherOffset`].
    pub(crate) async fn receive(
        &self,
        header: &Header,
        chunks: impl Stream<Item = Result<Vec<u8>>>,
    ) -> Result<Arrived> {
        match &header.announced.sha256 {
            Some(digest) => self.receive_or_keep(header, digest, chunks).await,
            None => self.receive_once(header, chunks).await,
        }
    }

    /// Bytes of a file that an upload brought which broke off. Another service beside this one may have more.
    pub async fn received(&self, digest: &Digest) -> u64 {
        Partial::length(&self.spool_dir, digest).await
    }

    /// For a file that nobody goes on with.
    pub(crate) async fn receive_once(
        &self,
        header: &Header,
        chunks: impl Stream<Item = Result<Vec<u8>>>,
    ) -> Result<Arrived> {
        self.check_announced(header)?;
        let mut spool = Spool::create(&self.spool_dir, self.upload_limit)?;
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await.transpose()? {
            spool.write(&chunk).await?;
        }
        let spooled = spool.finish().await?;
        check_size(header, spooled.size_bytes)?;
        check_digest(header, &spooled.digest)?;
        Ok(Arrived::Once(spooled))
    }

    /// Said before gigabytes are sent.
    fn check_announced(&self, header: &Header) -> Result<()> {
        if header.announced.size_bytes.is_some_and(|size| size > self.upload_limit.bytes) {
            let (limit_bytes, setting) = (self.upload_limit.bytes, self.upload_limit.setting);
            return Err(spool::Error::TooLarge { limit_bytes, setting }.into());
        }
        Ok(())
    }

    async fn receive_or_keep(
        &self,
        header: &Header,
        digest: &Digest,
        chunks: impl Stream<Item = Result<Vec<u8>>>,
    ) -> Result<Arrived> {
        self.check_announced(header)?;
        let mut partial = Partial::open(&self.spool_dir, digest, self.upload_limit).await?;
        let (offset, here) = (header.announced.offset, partial.size_bytes());
        if offset == 0 {
            partial.restart().await?;
        } else if offset != here {
            if here == 0 {
                partial.forget();
            }
            return Err(Error::OtherOffset { file: header.file_name.clone(), offset, here });
        }
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await.transpose()? {
            if let Err(error) = partial.write(&chunk).await {
                // Kept, it would take the room that others need, or could never be whole.
                partial.forget();
                return Err(error.into());
            }
        }
        // A caller that dies can look like one that ended: this may be gone on with too.
        check_size(header, partial.size_bytes())?;
        if let Err(error) = check_digest(header, &partial.digest().await?) {
            partial.forget();
            return Err(error);
        }
        Ok(Arrived::Kept(Box::new(partial)))
    }
}

fn check_digest(header: &Header, found: &Digest) -> Result<()> {
    match &header.announced.sha256 {
        Some(announced) if announced != found => {
            let (file, announced, found) = (header.file_name.clone(), announced.clone(), found.clone());
            Err(Error::WrongBytes { file, announced, found })
        }
        Some(_) | None => Ok(()),
    }
}

fn check_size(header: &Header, arrived: u64) -> Result<()> {
    match header.announced.size_bytes {
        Some(size) if arrived < size => {
            Err(Error::BrokenOff { problem: format!("{arrived} of the announced {size} bytes arrived") })
        }
        Some(size) if arrived > size => {
            let problem = format!("{size}, and {arrived} bytes arrived; say what the whole file has, or leave it out");
            Err(Invalid::new("size_bytes", problem).into())
        }
        Some(_) | None => Ok(()),
    }
}
