//! Server-sent events of answers that run side by side: what each says as it says it, then `[DONE]`.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;
use super::shape::{tell, usage_of};
use crate::answer::{Answer, Piece};
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

/// A reader that goes away drops the receiver, and with it all answers.
pub fn events(answers: Vec<Answer>, chunks: impl Chunks, include_usage: bool, turn: Option<Turn>) -> Response {
    let (sender, receiver) = mpsc::channel::<Value>(BUFFER);
    tokio::spawn(async move {
        let tasks = answers.into_iter().enumerate().map(|(index, answer)| {
            let (sender, chunks) = (sender.clone(), chunks.clone());
            async move { follow(index, answer, &chunks, &sender).await }
        });
        let figures = futures::future::join_all(tasks).await;
        // Of an answer that nobody has heard to its end, nothing can be said.
        match figures.iter().find_map(|figures| figures.as_ref().err()) {
            Some(Some(error)) => tell(turn, Err(error)),
            Some(None) => {}
            None => tell(turn, Ok(())),
        }
        let figures: Result<Vec<_>, _> = figures.into_iter().collect();
        if include_usage && let Ok(figures) = figures {
            let prompt = figures.first().map_or(0, |(prompt, ..)| *prompt);
            let cached = figures.first().map_or(0, |(_, _, cached)| *cached);
            let completion = figures.iter().map(|(_, completion, _)| completion).sum();
            let _ = sender.send(chunks.usage(usage_of(prompt, completion, cached))).await;
        }
    });
    let done = tokio_stream::once(Event::default().data("[DONE]"));
    let data = ReceiverStream::new(receiver).map(|chunk| Event::default().data(chunk.to_string()));
    Sse::new(data.chain(done).map(Ok::<_, Infallible>)).keep_alive(KeepAlive::default()).into_response()
}

/// Prompt, completion and cached tokens; what failed, or None when nobody listens.
async fn follow(
    index: usize,
    mut answer: Answer,
    chunks: &impl Chunks,
    sender: &mpsc::Sender<Value>,
) -> Result<(u32, u32, u32), Option<Error>> {
    if let Some(chunk) = chunks.begin(index) {
        sender.send(chunk).await.map_err(|_| None)?;
    }
    loop {
        let next = tokio::select! {
            next = answer.next() => next,
            () = sender.closed() => return Err(None),
        };
        match next {
            Ok(Some(piece)) => sender.send(chunks.piece(index, &piece)).await.map_err(|_| None)?,
            Ok(None) => {
                sender.send(chunks.end(index, answer.finish_reason)).await.map_err(|_| None)?;
                return Ok((answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens));
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
