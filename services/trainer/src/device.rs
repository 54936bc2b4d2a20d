//! The device belongs to one named OS thread at a time. Async code hands it a closure and waits for the answer.

use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// Runs `work` on a thread of its own and returns what it returns. A panic in it fails the job, not the process.
pub async fn run<T: Send + 'static>(
    name: &str,
    span: tracing::Span,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (answer, done) = oneshot::channel();
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let outcome = span.in_scope(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        // Nobody waits any more only when the process is stopping.
        let _ = answer.send(outcome.unwrap_or(Err(Error::DeviceGone)));
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "cannot start the device thread");
        return Err(Error::DeviceGone);
    }
    done.await.unwrap_or(Err(Error::DeviceGone))
}
