//! A file that lies in object storage already: read from there instead of sent.

use futures::TryStreamExt as _;
use tailor_blobs::{ObjectUrl, S3Options};

use crate::upload::{Header, Uploaded};
use crate::{Datasets, Error, Result};

impl Datasets {
    /// Makes a dataset version of an object; as [`Datasets::upload`] for the rest.
    ///
    /// # Errors
    /// Those of an upload; [`Error::NotAllowed`]; [`Error::Store`]: no such object, or its store is away or refuses us.
    pub async fn import(&self, mut header: Header, url: &ObjectUrl) -> Result<Uploaded> {
        if !self.imports.places.iter().any(|place| url.is_in(place)) {
            return Err(Error::NotAllowed { url: url.to_string() });
        }
        let found = match &self.imports.own {
            (scheme, options) if scheme == url.scheme() => url.open(options).await?,
            _ => url.open(&S3Options::default()).await?,
        };
        // What it has now is what is read: it is refused before a byte where that is too much.
        header.announced.size_bytes.get_or_insert(found.size_bytes);
        let chunks = found.pieces.map_ok(|piece| piece.to_vec()).map_err(Error::from);
        let source = self.receive_once(&header, chunks).await?;
        self.make(&header, &source).await
    }
}
