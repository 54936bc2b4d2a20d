//! Housekeeping in the words of the wire.

use tailor_domain::{AdapterName, Version};
use tailor_pb::registry as pb;

use crate::collect::{Collected, by_adapter};
use crate::house::House;
use crate::life::Gone;
use crate::retention::Retention;
use crate::usage::Usage;

pub(crate) fn deletion(gone: Gone) -> pb::Deletion {
    pb::Deletion { at_ms: gone.deleted_at_ms, who: gone.who, why: gone.why, purged: gone.purged }
}

pub(crate) fn retention(adapter: &AdapterName, entry: Retention) -> pb::Retention {
    let rules = entry.rules.map(|rules| pb::RetentionRules {
        keep_last: rules.keep_last,
        keep_ms: rules.keep_ms,
        keep_tags: rules.keep_tags.into_iter().collect(),
    });
    pb::Retention { adapter: adapter.to_string(), rules, who: entry.who, why: entry.why, at_ms: entry.at_ms }
}

pub(crate) fn collected(done: &Collected) -> pb::CollectResponse {
    let waiting = done.waiting.as_ref();
    pb::CollectResponse {
        expired: numbers(&done.expired),
        purged: numbers(&done.purged),
        deleted_blobs: done.swept.as_ref().map_or(0, |swept| swept.deleted),
        deleted_bytes: done.swept.as_ref().map_or(0, |swept| swept.deleted_bytes),
        kept_blobs: done.swept.as_ref().map_or(0, |swept| swept.kept),
        waiting_blobs: waiting.map_or(0, |waiting| waiting.blobs),
        waiting_bytes: waiting.map_or(0, |waiting| waiting.size_bytes),
        due_at_ms: waiting.map_or(0, |waiting| waiting.due_at_ms),
    }
}

fn numbers(versions: &[(AdapterName, Version)]) -> Vec<pb::AdapterNumbers> {
    let grouped = by_adapter(versions);
    grouped.into_iter().map(|(adapter, versions)| pb::AdapterNumbers { adapter, versions }).collect()
}

pub(crate) fn usage(usage: Usage, house: &House) -> pb::Usage {
    let adapters = usage.adapters.into_iter().map(|(adapter, share)| pb::AdapterUsage {
        adapter,
        live: share.live,
        deleted: share.deleted,
        purged: share.purged,
        size_bytes: share.size_bytes,
    });
    pb::Usage {
        adapters: adapters.collect(),
        blobs: usage.blobs,
        size_bytes: usage.size_bytes,
        base_bytes: usage.base_bytes,
        waiting_blobs: usage.waiting_blobs,
        waiting_bytes: usage.waiting_bytes,
        quota_versions: house.quota_versions,
        quota_bytes: house.quota_bytes,
    }
}
