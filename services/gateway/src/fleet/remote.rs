//! One answer of an engine elsewhere: begun on the first engine that takes it, begun again on another while no token has been
//! heard, ended with a clear error after that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tailor_constrain::Format;
use tailor_engine::{EndReason, Event, Logprobs};
use tailor_pb::inference as pb;
use tailor_pb::inference::decode_event::What;
use tailor_pb::inference::decode_request::Format as Wire;
use tonic::{Code, Request, Status, Streaming};
use tracing::Instrument as _;

use super::member::{AtWork, Member};
use super::{Fleet, may_go_elsewhere};
use crate::device::TokenJob;
use crate::error::{Error, Result};

pub struct Remote {
    fleet: Arc<Fleet>,
    request: pb::DecodeRequest,
    deadline: Option<Instant>,
    /// Engines that have not been tried.
    untried: VecDeque<Arc<Member>>,
    running: Option<Running>,
    tokens: u32,
    /// The answer's: whichever engine makes it, and whoever waits for it when it moves, what that engine does is told under it.
    span: tracing::Span,
}

struct Running {
    engine: Arc<Member>,
    events: Streaming<pb::DecodeEvent>,
    _at_work: AtWork,
}

impl Remote {
    pub(super) async fn begin(fleet: Arc<Fleet>, target: pb::Target, job: TokenJob) -> Result<Self> {
        let untried = fleet.order(&target.base_fingerprint, &target.digest).into();
        let (deadline, span) = (job.deadline, job.span.clone());
        let request = request(target, job);
        let mut remote = Self { fleet, request, deadline, untried, running: None, tokens: 0, span };
        remote.start(None).await?;
        Ok(remote)
    }

    /// Gives the request to the next engine that takes it. `last` is why it is looked for.
    async fn start(&mut self, mut last: Option<Status>) -> Result<()> {
        while let Some(engine) = self.untried.pop_front() {
            let at_work = engine.begin();
            let mut request = Request::new(self.request.clone());
            if let Some(deadline) = self.deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(tailor_engine::Error::Deadline.into());
                }
                request.set_timeout(left);
            }
            let mut client = engine.engine();
            let decode = client.decode(request).instrument(self.span.clone());
            match engine.or_silence(!self.untried.is_empty(), decode).await {
                Ok(events) => {
                    self.running = Some(Running { engine, events: events.into_inner(), _at_work: at_work });
                    return Ok(());
                }
                Err(status) if may_go_elsewhere(&status) => {
                    tracing::debug!(engine = engine.url, problem = status.message(), "the request goes elsewhere");
                    last = Some(status);
                }
                Err(status) => return Err(Error::service("engine")(status)),
            }
        }
        Err(self.fleet.nowhere(last))
    }

    /// The next event; None after the last.
    ///
    /// # Errors
    /// The engine gave the sequence up; [`Error::EngineLost`] where it is gone and part of the answer has been heard.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            let Some(running) = &mut self.running else { return Ok(None) };
            // Of what has begun to answer nothing is given up before its connection is.
            let may_move = self.tokens == 0 && !self.untried.is_empty();
            let Running { engine, events, .. } = running;
            let status = match engine.or_silence(may_move, events.message()).await {
                Ok(Some(pb::DecodeEvent { what: Some(what) })) => return Ok(Some(self.heard(what))),
                Ok(Some(pb::DecodeEvent { what: None })) => continue,
                Ok(None) => Status::unavailable("its answer broke off"),
                Err(status) => status,
            };
            let engine = running.engine.url.clone();
            self.running = None;
            if status.code() == Code::DeadlineExceeded {
                return Err(tailor_engine::Error::Deadline.into());
            }
            // One that is out of memory in the middle of an answer is there, and says so itself.
            let is_lost = may_go_elsewhere(&status) && (self.tokens == 0 || status.code() != Code::ResourceExhausted);
            if !is_lost {
                return Err(Error::service("engine")(status));
            }
            if self.tokens > 0 {
                let problem = status.message().to_owned();
                return Err(Error::EngineLost { engine, tokens: self.tokens, problem });
            }
            tracing::info!(engine, problem = status.message(), "an engine is lost; a request that had not begun moves");
            self.start(Some(status)).await?;
        }
    }

    fn heard(&mut self, what: What) -> Event {
        match what {
            What::Token(token) => {
                self.tokens += 1;
                let top = token.top.iter().map(|other| (other.id, other.logprob)).collect();
                let logprobs = token.logprob.map(|chosen| Box::new(Logprobs { chosen, top }));
                Event::Token { id: token.id, logprobs }
            }
            What::End(end) => {
                self.running = None;
                let is_length = end.reason == EndReason::Length.as_str();
                let reason = if is_length { EndReason::Length } else { EndReason::Stop };
                Event::End { reason }
            }
            What::Begun(begun) => Event::Begun { cached_tokens: begun.cached_tokens },
        }
    }
}

fn request(target: pb::Target, job: TokenJob) -> pb::DecodeRequest {
    let sampling = job.sampling;
    let bias = sampling.logit_bias.into_iter().map(|(id, bias)| pb::TokenBias { id, bias });
    pb::DecodeRequest {
        target: Some(target),
        prompt_ids: job.prompt_ids,
        max_new_tokens: job.max_new_tokens,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        logit_bias: bias.collect(),
        seed: sampling.seed,
        top_logprobs: job.top_logprobs.map(u32::from),
        format: job.format.map(|format| match format {
            Format::JsonObject => Wire::JsonObject(true),
            Format::JsonSchema(schema) => Wire::JsonSchema(schema.to_string()),
            Format::Regex(pattern) => Wire::Regex(pattern),
            Format::Lark(grammar) => Wire::Lark(grammar),
        }),
        tenant: job.tenant,
    }
}
