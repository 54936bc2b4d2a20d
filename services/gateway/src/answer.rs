//! One answer: the input becomes ids, the engine's ids become text.

use std::time::Instant;

use tailor_domain::ErrorCode;
use tailor_engine::Event;
use tailor_pb::inference as pb;
use tailor_serverkit::meter::AnswerMeter;
use tailor_serverkit::{Coded as _, status};
use tailor_text::Tokenizer;
use tailor_text::tokenizer::TextStream;

use crate::ask::{Ask, MaxNew, Prompt, check_size};
use crate::bases::Base;
use crate::caller::Caller;
use crate::device::{ScoreTokens, TokenJob, Tokens};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::said::SaidToken;
use crate::stop::StopScanner;
use crate::tenants::Reservation;

/// Pieces of text on their way to one reader.
pub const STREAM_BUFFER: usize = 32;

/// Tokens made when the caller does not say.
const DEFAULT_NEW_TOKENS: u32 = 128;

/// A running answer: text piece by piece, then the figures. Dropping it stops the work.
pub struct Answer {
    /// None when nothing more is wanted of the engine.
    events: Option<Tokens>,
    tokenizer: Tokenizer,
    text: Option<TextStream>,
    stop: StopScanner,
    reservation: Reservation,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub cached_tokens: u32,
    pub finish_reason: &'static str,
    begun: Instant,
    meter: AnswerMeter,
    /// The code of what it failed with.
    failed: Option<ErrorCode>,
    /// The answer from its acceptance to its end, under OpenTelemetry's gen_ai conventions.
    span: tracing::Span,
}

/// What came since the piece before.
#[derive(Debug, Default)]
pub struct Piece {
    pub text: String,
    /// Where log-probabilities were asked for.
    pub tokens: Vec<SaidToken>,
}

/// Whose budget an answer is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payer {
    Tenant,
    Nobody,
}

/// Starts generating.
pub async fn generate(model: &Model, ask: Ask) -> Result<Answer> {
    start(model, ask, Payer::Tenant).await
}

async fn start(model: &Model, ask: Ask, payer: Payer) -> Result<Answer> {
    let operation = match &ask.prompt {
        Prompt::Messages { .. } => "chat",
        Prompt::Raw(_) | Prompt::Ids(_) | Prompt::Input { .. } => "text_completion",
    };
    let asked = model.asked(operation);
    let meter = model.meters().answers.begin(&asked);
    let begun = begin(model, ask, operation, meter, payer).await;
    if let Err(error) = &begun {
        model.meters().answers.refused(&asked, status::reason(error.code()));
    }
    begun
}

async fn begin(model: &Model, ask: Ask, operation: &'static str, meter: AnswerMeter, payer: Payer) -> Result<Answer> {
    let begun = Instant::now();
    let prompt_ids = ask.prompt.ids(model)?;
    let prompt_tokens = prompt_ids.len() as u32;
    let max_new_tokens = new_tokens(&model.base, ask.max_new_tokens, prompt_tokens);
    let tokens = u64::from(prompt_tokens) + u64::from(max_new_tokens);
    let reservation = match payer {
        Payer::Tenant => model.tenants().reserve(&ask.tenant, tokens, Instant::now())?,
        Payer::Nobody => model.tenants().free(),
    };
    let tokenizer = model.base.tokenizer.clone();
    let span = tracing::info_span!(
        "gateway.answer",
        gen_ai.operation.name = operation,
        gen_ai.provider.name = "tailor",
        gen_ai.request.model = %model.base.manifest.name,
        gen_ai.request.max_tokens = max_new_tokens,
        gen_ai.usage.input_tokens = prompt_tokens,
        gen_ai.usage.output_tokens = tracing::field::Empty,
        gen_ai.response.finish_reasons = tracing::field::Empty,
        tailor.adapter.digest = model.adapter.as_ref().map(|version| version.digest.to_string()),
        tailor.cached_tokens = tracing::field::Empty,
        tailor.time_to_first_token_ms = tracing::field::Empty,
    );
    let job = TokenJob {
        prompt_ids,
        max_new_tokens,
        sampling: ask.sampling,
        top_logprobs: ask.top_logprobs,
        format: ask.format,
        tenant: ask.tenant,
        deadline: ask.deadline,
        span: span.clone(),
    };
    Ok(Answer {
        events: Some(model.generate(job).await?),
        text: Some(tokenizer.stream(true)),
        tokenizer,
        stop: StopScanner::new(ask.stop),
        reservation,
        prompt_tokens,
        completion_tokens: 0,
        cached_tokens: 0,
        finish_reason: "stop",
        begun,
        meter,
        failed: None,
        span,
    })
}

/// The text of a whole answer that no caller hears, and none pays for: a rollout's trial, or its shadow.
pub async fn unheard(model: &Model, ask: Ask) -> Result<String> {
    let mut answer = start(model, ask, Payer::Nobody).await?;
    let mut whole = String::new();
    while let Some(piece) = answer.next().await? {
        whole.push_str(&piece.text);
    }
    Ok(whole)
}

fn new_tokens(base: &Base, asked: MaxNew, prompt_tokens: u32) -> u32 {
    match asked {
        MaxNew::Exactly(0) => DEFAULT_NEW_TOKENS,
        MaxNew::Exactly(count) => count,
        MaxNew::UpTo(count) => {
            let context = base.device.max_context() as u32;
            let taken = if base.is_encoder_decoder() { 0 } else { prompt_tokens };
            // A prompt without room after it is refused with its figures.
            count.min(context.saturating_sub(taken)).max(1)
        }
    }
}

impl Answer {
    /// The next piece; None when the answer is complete.
    ///
    /// # Errors
    /// The engine gave the sequence up.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        let next = self.advance().await;
        if let Err(error) = &next {
            self.failed = Some(error.code());
            // Nobody pays for what we could not do, nor twice for what another version goes on to answer.
            if is_ours(error) {
                self.reservation.used(0);
            }
        }
        next
    }

    async fn advance(&mut self) -> Result<Option<Piece>> {
        while let Some(events) = &mut self.events {
            let mut piece = Piece::default();
            match events.next().await? {
                // From here on the prompt is worked on: it is paid for whether or not its caller stays.
                Some(Event::Begun { cached_tokens }) => {
                    self.cached_tokens = cached_tokens;
                    self.reservation.used(u64::from(self.prompt_tokens));
                }
                Some(Event::Token { id, logprobs }) => {
                    if self.completion_tokens == 0 {
                        let waited = self.begun.elapsed().as_secs_f64() * 1e3;
                        self.span.record("tailor.time_to_first_token_ms", waited);
                    }
                    self.completion_tokens += 1;
                    self.meter.token();
                    self.reservation.used(u64::from(self.prompt_tokens) + u64::from(self.completion_tokens));
                    let offset = self.text.as_ref().map_or(0, TextStream::characters);
                    let said = logprobs.map(|logprobs| SaidToken::new(&self.tokenizer, id, &logprobs, offset));
                    piece.tokens.extend(said);
                    let text = match &mut self.text {
                        Some(stream) => stream.push(id)?,
                        None => String::new(),
                    };
                    let (certain, stopped) = self.stop.push(&text);
                    piece.text = certain;
                    if stopped {
                        self.events = None;
                    }
                }
                Some(Event::End { reason }) => {
                    self.finish_reason = reason.as_str();
                    piece.text = self.finish()?;
                }
                // What says no end is not the whole answer.
                None => return Err(tailor_engine::Error::Stopped.into()),
            }
            if !piece.text.is_empty() || !piece.tokens.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// What was held back.
    fn finish(&mut self) -> Result<String> {
        self.events = None;
        let rest = self.text.take().map_or(Ok(String::new()), TextStream::finish)?;
        let (mut text, stopped) = self.stop.push(&rest);
        if stopped {
            self.finish_reason = "stop";
        } else {
            text.push_str(&self.stop.finish());
        }
        Ok(text)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Whoever drops an answer before its end has cut it.
        let is_cut = self.events.is_some();
        let error = self.failed.map(status::reason).or(is_cut.then_some("cancelled"));
        let (prompt, cached) = (self.prompt_tokens.into(), self.cached_tokens.into());
        self.meter.end(prompt, cached, self.completion_tokens.into(), error);
        let finish_reason = if is_cut { "cancelled" } else { self.finish_reason };
        self.span.record("gen_ai.usage.output_tokens", self.completion_tokens);
        self.span.record("gen_ai.response.finish_reasons", finish_reason);
        self.span.record("tailor.cached_tokens", self.cached_tokens);
    }
}

/// Whether an answer failed by no fault of its caller.
fn is_ours(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::Internal | ErrorCode::Unavailable | ErrorCode::DataLoss) || error.lacks_memory()
}

/// The log-probability of each given token.
pub async fn score(model: &Model, request: &pb::ScoreRequest, caller: &Caller) -> Result<Vec<pb::ScoredToken>> {
    check_size("prompt", request.prompt.len() + size_of_val(&request.prompt_ids[..]))?;
    check_size("text", request.text.len() + size_of_val(&request.token_ids[..]))?;
    let tokenizer = &model.base.tokenizer;
    let prompt_ids = match (&request.prompt_ids[..], request.prompt.as_str()) {
        ([], "") => Vec::new(),
        ([], text) => tokenizer.encode_with_special(text)?,
        (ids, _) => ids.to_vec(),
    };
    let token_ids = match &request.token_ids[..] {
        [] if model.base.is_encoder_decoder() || !prompt_ids.is_empty() => tokenizer.encode(&request.text)?,
        [] => tokenizer.encode_with_special(&request.text)?,
        ids => ids.to_vec(),
    };
    let tokens = (prompt_ids.len() + token_ids.len()) as u64;
    let asked = model.asked("score");
    let meter = model.meters().answers.begin(&asked);
    let refused = |error: Error| {
        model.meters().answers.refused(&asked, status::reason(error.code()));
        error
    };
    let mut reservation = model.tenants().reserve(&caller.tenant, tokens, Instant::now()).map_err(refused)?;
    let job = ScoreTokens {
        prompt_ids,
        token_ids: token_ids.clone(),
        tenant: caller.tenant.clone(),
        deadline: caller.deadline,
    };
    let scores = model.score(job).await.map_err(refused)?;
    reservation.used(tokens);
    meter.end(tokens, 0, 0, None);
    let mut tokens = Vec::with_capacity(scores.len());
    for (id, logprob) in token_ids.into_iter().zip(scores) {
        tokens.push(pb::ScoredToken {
            id,
            text: tokenizer.token(id).unwrap_or_default(),
            logprob: logprob.map(f64::from),
        });
    }
    Ok(tokens)
}
