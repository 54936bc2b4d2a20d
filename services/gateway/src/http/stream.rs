//! Server-sent events of answers that run side by side: what each says as it says it, then `[DONE]`.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;
use super::shape::{Begun, Spent, answered, usage};
use crate::answer::Piece;
use crate::ask::Ask;
use crate::error::Error;
use crate::rollout::Turn;

/// Chunks on their way to one reader.
const BUFFER: usize = 32;

/// How a protocol writes what happens.
pub trait Chunks: Clone + Send + Sync + 'static {
    /// Before the first piece of a choice; None writes nothing.
    fn begin(&self, index: usize) -> Option<Value>;
    fn piece(&self, index: usize, piece: &Piece) -> Value;
    fn end(&self, index: usize, finish_reason: &str) -> Value;
    fn usage(&self, usage: Value) -> Value;
}

/// What is told of an answer's end beside its pieces.
pub struct Ending {
    pub include_usage: bool,
    /// Answers to each prompt.
    pub count: u32,
    pub turn: Option<Turn>,
    /// What the first answer answers.
    pub ask: Ask,
}

/// A reader that goes away drops the receiver, and with it all answers.
pub fn events(begun: Vec<Begun>, chunks: impl Chunks, ending: Ending) -> Response {
    let Ending { include_usage, count, turn, ask } = ending;
    let (sender, receiver) = mpsc::channel::<Value>(BUFFER);
    tokio::spawn(async move {
        let tasks = begun.into_iter().enumerate().map(|(index, begun)| {
            let (sender, chunks) = (sender.clone(), chunks.clone());
            async move { follow(index, begun, &chunks, &sender).await }
        });
        let said: Result<Vec<Said>, Option<Error>> = futures::future::join_all(tasks).await.into_iter().collect();
        match said {
            Ok(said) => {
                if include_usage {
                    let _ = sender.send(chunks.usage(usage(said.iter().map(|said| said.spent), count))).await;
                }
                answered(turn, ask, said.into_iter().next().map(|said| said.text).unwrap_or_default());
            }
            // Too late for the other side: it is counted, and the caller has been told.
            Err(Some(error)) => drop(turn.and_then(|turn| turn.failed(&error))),
            // Of an answer that nobody has heard to its end, nothing can be said.
            Err(None) => {}
        }
    });
    let done = tokio_stream::once(Event::default().data("[DONE]"));
    let data = ReceiverStream::new(receiver).map(|chunk| Event::default().data(chunk.to_string()));
    Sse::new(data.chain(done).map(Ok::<_, Infallible>)).keep_alive(KeepAlive::default()).into_response()
}

/// One answer, to its end.
struct Said {
    text: String,
    spent: Spent,
}

/// What failed, or None when nobody listens.
async fn follow(
    index: usize,
    begun: Begun,
    chunks: &impl Chunks,
    sender: &mpsc::Sender<Value>,
) -> Result<Said, Option<Error>> {
    let Begun { mut answer, first } = begun;
    let mut text = String::new();
    if let Some(chunk) = chunks.begin(index) {
        sender.send(chunk).await.map_err(|_| None)?;
    }
    let mut waiting = first.map(|piece| Ok(Some(piece)));
    loop {
        let next = match waiting.take() {
            Some(first) => first,
            None => tokio::select! {
                next = answer.next() => next,
                () = sender.closed() => return Err(None),
            },
        };
        match next {
            Ok(Some(piece)) => {
                text.push_str(&piece.text);
                sender.send(chunks.piece(index, &piece)).await.map_err(|_| None)?;
            }
            Ok(None) => {
                sender.send(chunks.end(index, answer.finish_reason)).await.map_err(|_| None)?;
                return Ok(Said { text, spent: Spent::from(&answer) });
            }
            Err(error) => {
                // The status has gone out already; the client raises what it finds under `error`.
                let body = ApiError::from_ref(&error).body();
                let _ = sender.send(body).await;
                return Err(Some(error));
            }
        }
    }
}
