//! The watch on the wire: one task a stream, which ends with its reader or with the service.

use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use tailor_domain::AdapterManifest;
use tailor_pb::convert;
use tailor_pb::registry::watch_response::What;
use tailor_pb::registry::{
    AdapterVersion, AliasTarget, Confirmation, RolloutTarget, SnapshotEnd, WatchRequest, WatchResponse,
};
use tailor_serverkit::status;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::watch::{Message, Told};
use crate::{Registry, Result};

/// Messages on their way to one watcher.
const BUFFER: usize = 64;

pub(super) type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

pub(super) fn watch(registry: &Registry, stop: &CancellationToken, request: &WatchRequest) -> WatchStream {
    let (registry, stop, after) = (registry.clone(), stop.clone(), request.after_sequence);
    let (messages, told) = mpsc::channel::<Message>(BUFFER);
    let end = tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => Some(Status::unavailable("the service is stopping; take the watch up where it ended")),
            outcome = registry.watch(after, &messages) => outcome.err().map(|error| status(&error)),
        }
    });
    let told = stream::unfold(told, |mut told| async move {
        let message = told.recv().await?;
        Some((Ok(wire(message)), told))
    });
    // Why it ended comes last, after all that was told before.
    let end = stream::once(end).filter_map(|end| std::future::ready(end.ok().flatten().map(Err)));
    told.chain(end).boxed()
}

fn wire((sequence, told): Message) -> WatchResponse {
    let version = |manifest: Option<AdapterManifest>| manifest.as_ref().map(AdapterVersion::from);
    let what = match told {
        Told::Alias { adapter, entry, target } => {
            What::Alias(AliasTarget { r#move: Some(convert::alias(&adapter, &entry)), target: version(target) })
        }
        Told::Rollout { adapter, rollout, alias_seq, canary } => {
            let rollout = convert::rollout(&adapter, &rollout, alias_seq);
            What::Rollout(RolloutTarget { rollout: Some(rollout), canary: version(canary) })
        }
        Told::SnapshotEnd => What::SnapshotEnd(SnapshotEnd {}),
        Told::Confirmation => What::Confirmation(Confirmation {}),
    };
    WatchResponse { sequence, what: Some(what) }
}
