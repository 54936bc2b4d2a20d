//! Following the registry's watch: from where it broke off, for as long as the gateway runs.

use std::sync::Arc;
use std::time::Duration;

use tailor_pb::registry::WatchRequest;
use tailor_pb::registry::watch_response::What;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::Routes;
use super::table::Snapshot;

/// A registry that watches says something many times a second; silence for so long is a connection that is dead.
const SILENCE: Duration = Duration::from_secs(2);
/// A snapshot of many adapters takes a while to be read.
const SILENCE_IN_SNAPSHOT: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

impl Routes {
    /// Keeps the table until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut after = 0;
        let mut wait = FIRST_WAIT;
        loop {
            let begun_after = after;
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.watch(&mut after) => outcome,
            };
            if after != begun_after {
                wait = FIRST_WAIT;
            }
            if let Err(status) = outcome {
                if status.code() == Code::FailedPrecondition {
                    // Another store, or one that was put back: what is known may be of no worth.
                    after = 0;
                }
                if status.code() == Code::DeadlineExceeded {
                    // It was waited for already, and whoever asks is to know soon when it speaks again.
                    wait = FIRST_WAIT;
                }
                tracing::debug!(code = ?status.code(), problem = status.message(), after, "the watch broke off");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
            }
        }
    }

    /// One stream, to its end. `after` is how far the table is.
    async fn watch(&self, after: &mut u64) -> Result<(), Status> {
        let request = WatchRequest { after_sequence: *after };
        let mut registry = self.registry();
        // That there is a stream is no word yet: a registry whose store hangs opens one, too.
        let mut stream = self.listen(SILENCE, registry.watch(request)).await?.into_inner();
        let mut snapshot = (*after == 0).then(Snapshot::default);
        loop {
            let patience = if snapshot.is_some() { SILENCE_IN_SNAPSHOT } else { SILENCE };
            let Some(message) = self.listen(patience, stream.message()).await? else { return Ok(()) };
            self.silence.heard();
            match (message.what, &mut snapshot) {
                (Some(What::SnapshotEnd(_)), snapshot) => {
                    if let Some(whole) = snapshot.take() {
                        self.table().replace(whole);
                        tracing::info!(sequence = message.sequence, "following the registry's aliases and rollouts");
                    }
                }
                (Some(what), Some(snapshot)) => snapshot.take(what),
                (Some(What::Confirmation(_)), None) => self.table().confirm(),
                (Some(what), None) => self.table().apply(what),
                (None, _) => {}
            }
            if snapshot.is_none() {
                *after = message.sequence;
            }
        }
    }

    /// What comes of the watch. Where nothing comes for so long, all who ask are told that the registry is silent, once the next
    /// of them has found so too.
    async fn listen<T>(&self, patience: Duration, word: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let begun = Instant::now();
        timeout(patience, word).await.unwrap_or_else(|_| {
            self.silence.nothing_since(begun, Duration::ZERO);
            Err(Status::deadline_exceeded("the registry has fallen silent"))
        })
    }
}
