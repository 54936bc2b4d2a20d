//! Addresses at which a blob can be read for a while without any credential: what large files are handed out by where the
//! store can do so, past the service in front of it.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use object_store::signer::Signer;
use tailor_domain::Digest;

use crate::blob::blob_key;
use crate::{Result, Store};

impl Store {
    pub(crate) fn with_signer(mut self, signer: Arc<dyn Signer>) -> Self {
        self.signer = Some(signer);
        self
    }

    /// An address that reads this blob for `lifetime`; None where the store signs none, as a folder. It is a credential:
    /// whoever has it reads the blob. What is read there nobody checks: compare the digest.
    ///
    /// # Errors
    /// The store's key cannot be used.
    pub async fn signed_blob_url(&self, digest: &Digest, lifetime: Duration) -> Result<Option<String>> {
        let Some(signer) = &self.signer else { return Ok(None) };
        let key = blob_key(digest);
        let url = signer.signed_url(Method::GET, &self.path(&key)?, lifetime).await;
        Ok(Some(url.map_err(|error| self.error(&key, error))?.to_string()))
    }
}
