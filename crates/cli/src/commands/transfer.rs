//! Files in the messages of a stream, and when a transfer that broke off is gone on with.

use std::time::Duration;

use indicatif::ProgressBar;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

const CHUNK: usize = 512 << 10;
/// Times that a transfer which broke off is gone on with.
const CONTINUATIONS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Attempts at one transfer.
#[derive(Default)]
pub struct Attempts(u32);

impl Attempts {
    /// Waits before the next one, the longer the more there were.
    ///
    /// # Errors
    /// `error`, where another attempt would get no further or there have been enough.
    pub async fn after(&mut self, error: Status) -> Result<(), Status> {
        // The service or the connection went away in the middle.
        let broke_off = matches!(error.code(), Code::Unavailable | Code::Cancelled | Code::Unknown);
        if self.0 == CONTINUATIONS || !broke_off {
            return Err(error);
        }
        self.0 += 1;
        tokio::time::sleep(PAUSE * self.0).await;
        Ok(())
    }
}

/// Sends `header`, and the source's bytes in messages that `wrap` makes of them, by `call`.
pub async fn send<M: Send + 'static, T>(
    header: M,
    mut source: impl AsyncRead + Unpin + Send + 'static,
    wrap: fn(Vec<u8>) -> M,
    bar: &ProgressBar,
    call: impl AsyncFnOnce(ReceiverStream<M>) -> Result<Response<T>, Status>,
) -> Result<T, Status> {
    let (parts, stream) = mpsc::channel(4);
    let bar = bar.clone();
    let reading = tokio::spawn(async move {
        let mut next = header;
        // The server hangs up when it needs no more; its answer says why.
        while parts.send(next).await.is_ok() {
            let mut chunk = vec![0; CHUNK];
            let count = source.read(&mut chunk).await?;
            if count == 0 {
                break;
            }
            chunk.truncate(count);
            bar.inc(count as u64);
            next = wrap(chunk);
        }
        std::io::Result::Ok(())
    });
    let answer = call(ReceiverStream::new(stream)).await?.into_inner();
    let read = reading.await.map_err(|error| Status::internal(error.to_string()))?;
    read.map_err(|error| Status::internal(format!("the file cannot be read: {error}")))?;
    Ok(answer)
}
