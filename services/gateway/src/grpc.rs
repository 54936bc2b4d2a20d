//! InferenceService on the wire: parse, call, convert, return.

use std::sync::Arc;

use tailor_pb::inference as pb;
use tailor_pb::inference::inference_service_server::InferenceService;
use tailor_serverkit::status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use crate::answer::{self, Answer, Piece, STREAM_BUFFER};
use crate::ask::Ask;
use crate::caller::Caller;
use crate::catalog;
use crate::error::{Error, Result};
use crate::rollout::{Choice, Rollouts};
use crate::said::SaidToken;

pub struct Api {
    rollouts: Arc<Rollouts>,
}

/// An answer that has begun, and what it began from.
struct Begun {
    choice: Choice,
    answer: Answer,
}

impl Api {
    pub fn new(rollouts: Arc<Rollouts>) -> Self {
        Self { rollouts }
    }

    /// Chooses who answers, and lets it begin; the other side of a rollout where the first fails by its own fault.
    async fn begin(rollouts: &Arc<Rollouts>, request: Request<pb::GenerateRequest>) -> Result<(Begun, Ask)> {
        let mut sent = Caller::of(request.metadata());
        let mut request = request.into_inner();
        let (base, adapter) = (request.base.clone(), request.adapter.clone());
        let caller = sent.speaks_for(request.caller.take())?;
        let ask = Ask { tenant: sent.tenant, deadline: sent.deadline, ..request.try_into()? };
        let choice = rollouts.choose(&base, &adapter, &caller).await?;
        Ok((Self::begin_with(rollouts, choice, &ask).await?, ask))
    }

    async fn begin_with(rollouts: &Arc<Rollouts>, mut choice: Choice, ask: &Ask) -> Result<Begun> {
        loop {
            let error = match answer::generate(&choice.model, ask.clone()).await {
                Ok(answer) => return Ok(Begun { choice, answer }),
                Err(error) => error,
            };
            choice = instead(rollouts, choice, error).await?;
        }
    }

    /// The whole of an answer, its pieces sent as they come. Begins anew where the first side fails before its first piece.
    async fn answer(
        rollouts: &Arc<Rollouts>,
        mut begun: Begun,
        ask: &Ask,
        to: &mpsc::Sender<Piece>,
    ) -> Result<pb::GenerateResponse> {
        loop {
            let Begun { choice, mut answer } = begun;
            let (mut whole, mut is_heard) = (String::new(), false);
            let end = loop {
                // A reader that is gone ends the work, also while nothing is there to be sent.
                let next = tokio::select! {
                    next = answer.next() => next,
                    () = to.closed() => break Ok(()),
                };
                match next {
                    Ok(Some(piece)) => {
                        whole.push_str(&piece.text);
                        is_heard = true;
                        if to.send(piece).await.is_err() {
                            break Ok(());
                        }
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            match end {
                Ok(()) => {
                    let end = figures(&choice, &answer);
                    // Of an answer that nobody has heard to its end, nothing can be said.
                    if let Some(turn) = choice.turn.filter(|_| !to.is_closed()) {
                        let ask = ask.clone();
                        turn.answered(whole, move |model| async move { answer::unheard(&model, ask).await });
                    }
                    return Ok(end);
                }
                Err(error) if !is_heard => {
                    drop(answer);
                    let other = instead(rollouts, choice, error).await?;
                    begun = Self::begin_with(rollouts, other, ask).await?;
                }
                Err(error) => {
                    // Too late for the other side: it is counted, and told.
                    if let Some(turn) = choice.turn {
                        turn.failed(&error);
                    }
                    return Err(error);
                }
            }
        }
    }
}

/// Who answers after a failure, or the failure.
pub async fn instead(rollouts: &Arc<Rollouts>, choice: Choice, error: Error) -> Result<Choice> {
    let Some(turn) = choice.turn else { return Err(error) };
    match rollouts.instead(turn, &error).await? {
        Some(other) => Ok(other),
        None => Err(error),
    }
}

#[tonic::async_trait]
impl InferenceService for Api {
    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<pb::GenerateResponse>, Status> {
        let (begun, ask) = Self::begin(&self.rollouts, request).await.map_err(|error| status(&error))?;
        let (pieces, mut said) = mpsc::channel::<Piece>(STREAM_BUFFER);
        let collect = async {
            let (mut text, mut tokens) = (String::new(), Vec::new());
            while let Some(piece) = said.recv().await {
                text.push_str(&piece.text);
                tokens.extend(piece.tokens.into_iter().map(wire));
            }
            (text, tokens)
        };
        let answer = async {
            let end = Self::answer(&self.rollouts, begun, &ask, &pieces).await;
            drop(pieces);
            end
        };
        let (end, (text, tokens)) = tokio::join!(answer, collect);
        let end = end.map_err(|error| status(&error))?;
        Ok(Response::new(pb::GenerateResponse { text, tokens, ..end }))
    }

    type GenerateStreamStream = ReceiverStream<Result<pb::GenerateChunk, Status>>;

    async fn generate_stream(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (begun, ask) = Self::begin(&self.rollouts, request).await.map_err(|error| status(&error))?;
        let (chunks, stream) = mpsc::channel(STREAM_BUFFER);
        let rollouts = self.rollouts.clone();
        let stream_answer = async move {
            let (pieces, mut said) = mpsc::channel::<Piece>(STREAM_BUFFER);
            let forward = async {
                while let Some(Some(piece)) = tokio::select! {
                    piece = said.recv() => Some(piece),
                    // Dropping `said` ends the work.
                    () = chunks.closed() => None,
                } {
                    let tokens = piece.tokens.into_iter().map(wire).collect();
                    if chunks.send(Ok(pb::GenerateChunk { text: piece.text, end: None, tokens })).await.is_err() {
                        break;
                    }
                }
                drop(said);
            };
            let answer = async {
                let end = Self::answer(&rollouts, begun, &ask, &pieces).await;
                drop(pieces);
                end
            };
            let (end, ()) = tokio::join!(answer, forward);
            let last = match end {
                Ok(end) => Ok(pb::GenerateChunk { end: Some(end), ..Default::default() }),
                Err(error) => Err(status(&error)),
            };
            let _ = chunks.send(last).await;
        };
        // An answer that begins anew on the other side of a rollout stays in its request's trace.
        tokio::spawn(stream_answer.in_current_span());
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn score(&self, request: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        let mut sent = Caller::of(request.metadata());
        let mut request = request.into_inner();
        let scored = async {
            let caller = sent.speaks_for(request.caller.take())?;
            let mut choice = self.rollouts.choose(&request.base, &request.adapter, &caller).await?;
            let tokens = loop {
                match answer::score(&choice.model, &request, &sent).await {
                    Ok(tokens) => break tokens,
                    Err(error) => choice = instead(&self.rollouts, choice, error).await?,
                }
            };
            if let Some(turn) = &choice.turn {
                turn.scored();
            }
            let model = choice.model;
            Ok::<_, Error>(pb::ScoreResponse {
                tokens,
                adapter_digest: model.adapter.as_ref().map(|v| v.digest.to_string()).unwrap_or_default(),
                adapter_version: model.adapter.as_ref().map_or(0, |v| v.version.0),
                base_fingerprint: model.base.manifest.fingerprint.to_string(),
            })
        };
        Ok(Response::new(scored.await.map_err(|error| status(&error))?))
    }

    async fn list_models(&self, _: Request<pb::ListModelsRequest>) -> Result<Response<pb::ListModelsResponse>, Status> {
        let models = catalog::list(self.rollouts.models()).await.map_err(|error| status(&error))?;
        Ok(Response::new(pb::ListModelsResponse { models }))
    }
}

fn wire(token: SaidToken) -> pb::GeneratedToken {
    let top = token.top.iter().map(|(token, logprob)| pb::ScoredToken {
        id: token.id,
        text: token.text(),
        logprob: Some((*logprob).into()),
    });
    let SaidToken { token: said, logprob, .. } = &token;
    pb::GeneratedToken { id: said.id, text: said.text(), logprob: (*logprob).into(), top: top.collect() }
}

/// The figures of the whole answer, its text left out.
fn figures(choice: &Choice, answer: &Answer) -> pb::GenerateResponse {
    let model = &choice.model;
    pb::GenerateResponse {
        text: String::new(),
        finish_reason: answer.finish_reason.into(),
        prompt_tokens: answer.prompt_tokens,
        completion_tokens: answer.completion_tokens,
        adapter_digest: model.adapter.as_ref().map(|v| v.digest.to_string()).unwrap_or_default(),
        adapter_version: model.adapter.as_ref().map_or(0, |v| v.version.0),
        base_fingerprint: model.base.manifest.fingerprint.to_string(),
        cached_tokens: answer.cached_tokens,
        tokens: Vec::new(),
        rollout_side: choice.side().to_owned(),
    }
}
