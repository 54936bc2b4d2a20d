//! Snapshots of a version log, so that reading a long one costs a request for every [`SEGMENT`] versions and not for each.
//!
//! `adapters/<name>/segments/<k>.json` holds versions (k−1)·500+1 to k·500. Versions never change and have no gaps, so a
//! segment is a function of the log: whoever reads the log writes it, once, and two writers write the same. A segment that is
//! missing costs time, never an answer.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tailor_blobs::numbered_key;
use tailor_domain::{AdapterManifest, AdapterName, Version};

use crate::versions::versions_prefix;
use crate::{Registry, Result};

pub(crate) const SEGMENT: u64 = 500;
const READS_AT_ONCE: usize = 16;

fn segments_prefix(adapter: &AdapterName) -> String {
    format!("adapters/{adapter}/segments")
}

impl Registry {
    /// Shows every version of an adapter, deleted ones too, in order; none if there is no such adapter.
    pub(crate) async fn each_manifest(
        &self,
        adapter: &AdapterName,
        mut see: impl FnMut(&AdapterManifest) + Send,
    ) -> Result<()> {
        let newest = self.store.last_number(&versions_prefix(adapter)).await?;
        let whole = newest / SEGMENT;
        for number in 1..=whole {
            self.segment(adapter, number).await?.iter().for_each(&mut see);
        }
        let rest = self.read_range(adapter, whole * SEGMENT + 1, newest).await?;
        rest.iter().for_each(|manifest| see(manifest));
        Ok(())
    }

    async fn segment(&self, adapter: &AdapterName, number: u64) -> Result<Arc<Vec<AdapterManifest>>> {
        let key = numbered_key(&segments_prefix(adapter), number);
        if let Some(segment) = self.segments.find(&self.store, &key).await? {
            return Ok(segment);
        }
        let versions = self.read_range(adapter, (number - 1) * SEGMENT + 1, number * SEGMENT).await?;
        let segment: Arc<Vec<AdapterManifest>> =
            Arc::new(versions.iter().map(|manifest| AdapterManifest::clone(manifest)).collect());
        // Best effort: it is there to save time.
        if let Err(error) = self.store.create_json(&key, &*segment).await {
            tracing::warn!(%adapter, %key, %error, "could not keep a segment of the log");
        }
        self.segments.learn(&key, &segment);
        Ok(segment)
    }

    async fn read_range(&self, adapter: &AdapterName, first: u64, last: u64) -> Result<Vec<Arc<AdapterManifest>>> {
        futures::stream::iter(first..=last)
            .map(|number| async move { self.manifest(adapter, Version(number)).await })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await
    }
}
