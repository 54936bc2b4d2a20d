//! What callers ask of the engine and what comes back, and how both travel to the thread.

use std::sync::Arc;
use std::time::Instant;

use tailor_domain::Digest;
use tokio::sync::{mpsc, oneshot};

use crate::constraint::Constraint;
use crate::error::Error;
use crate::logprobs::{Logprobs, MAX_TOP_LOGPROBS};
use crate::options::{EngineInfo, ResidentAdapter};
use crate::places::Place;
use crate::sampling::Sampling;

#[derive(Debug)]
pub struct GenerateJob {
    /// A decoder's prefix; an encoder-decoder's input.
    pub prompt_ids: Vec<u32>,
    /// None is the base alone.
    pub adapter: Option<Digest>,
    pub sampling: Sampling,
    pub max_new_tokens: u32,
    /// Tokens that end the answer beside the model's own; not part of it.
    pub stop_ids: Vec<u32>,
    /// What the answer must be; None is anything.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Log-probabilities of each token, and of so many of the likeliest in its place.
    pub top_logprobs: Option<u8>,
    /// Whose request it is: tenants share the device fairly.
    pub tenant: String,
    /// When nobody will want the answer any more.
    pub deadline: Option<Instant>,
    pub lease: Lease,
    /// What the engine's spans of this job are told under; a disabled one tells nothing.
    pub span: tracing::Span,
}

impl GenerateJob {
    /// Greedy, up to `max_new_tokens`.
    pub fn new(prompt_ids: Vec<u32>, adapter: Option<Digest>, max_new_tokens: u32) -> Self {
        Self {
            prompt_ids,
            adapter,
            sampling: Sampling::GREEDY,
            max_new_tokens,
            stop_ids: Vec::new(),
            constraint: None,
            top_logprobs: None,
            tenant: String::new(),
            deadline: None,
            lease: None,
            span: tracing::Span::none(),
        }
    }

    /// Tokens that it may come to.
    pub fn cost(&self) -> usize {
        self.prompt_ids.len().saturating_add(self.max_new_tokens as usize)
    }
}

#[derive(Debug, Clone)]
pub struct ScoreJob {
    /// A decoder's prefix (may be empty); an encoder-decoder's input.
    pub prompt_ids: Vec<u32>,
    /// What is scored.
    pub token_ids: Vec<u32>,
    /// None is the base alone.
    pub adapter: Option<Digest>,
    /// As for an answer.
    pub tenant: String,
    pub deadline: Option<Instant>,
    pub lease: Lease,
    pub span: tracing::Span,
}

impl ScoreJob {
    pub fn new(prompt_ids: Vec<u32>, token_ids: Vec<u32>, adapter: Option<Digest>) -> Self {
        let (tenant, span) = (String::new(), tracing::Span::none());
        Self { prompt_ids, token_ids, adapter, tenant, deadline: None, lease: None, span }
    }

    /// Tokens that go through the model.
    pub fn cost(&self) -> usize {
        self.prompt_ids.len().saturating_add(self.token_ids.len())
    }
}

/// Whatever is held as long as the engine needs the job's adapter: until the sequence is over, whether or not anybody has read
/// what it said.
pub type Lease = Option<Arc<()>>;

/// Natural log-probabilities of tokens given what stands before each; None where nothing does.
pub type Scores = Vec<Option<f32>>;

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Work on the prompt begins. `cached_tokens`: of the prompt, those that an earlier request had computed already.
    Begun {
        cached_tokens: u32,
    },
    Token {
        id: u32,
        logprobs: Option<Box<Logprobs>>,
    },
    End {
        reason: EndReason,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The model ended its answer, or it is all that the constraint allows.
    Stop,
    /// `max_new_tokens` were made.
    Length,
}

impl EndReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl GenerateJob {
    pub(crate) fn validate(&self, info: &EngineInfo) -> Result<(), Error> {
        self.sampling.validate().map_err(Error::Invalid)?;
        if self.prompt_ids.is_empty() {
            return Err(Error::Invalid("the prompt has no token; give it at least one".into()));
        }
        if self.max_new_tokens == 0 {
            return Err(Error::Invalid("max_new_tokens is 0; ask for at least 1".into()));
        }
        if let Some(top) = self.top_logprobs.filter(|top| *top > MAX_TOP_LOGPROBS) {
            return Err(Error::Invalid(format!(
                "{top} top log-probabilities are asked for, at most {MAX_TOP_LOGPROBS} are given"
            )));
        }
        check_ids("prompt", &self.prompt_ids, info)?;
        check_length(self.prompt_ids.len(), self.max_new_tokens as usize, info)
    }
}

impl ScoreJob {
    pub(crate) fn validate(&self, info: &EngineInfo) -> Result<(), Error> {
        if self.token_ids.is_empty() {
            return Err(Error::Invalid("there is no token to score; give at least one".into()));
        }
        if self.prompt_ids.is_empty() && info.is_encoder_decoder() {
            return Err(Error::Invalid("the prompt is empty; an encoder-decoder scores tokens given an input".into()));
        }
        check_ids("prompt", &self.prompt_ids, info)?;
        check_ids("scored text", &self.token_ids, info)?;
        check_length(self.prompt_ids.len(), self.token_ids.len(), info)
    }
}

fn check_ids(what: &str, ids: &[u32], info: &EngineInfo) -> Result<(), Error> {
    match ids.iter().position(|id| *id as usize >= info.vocab_size) {
        None => Ok(()),
        Some(at) => Err(Error::Invalid(format!(
            "token {} at position {at} of the {what} is outside the base's vocabulary of {}",
            ids[at], info.vocab_size
        ))),
    }
}

/// A decoder's prompt and answer share its context; an encoder and its decoder have one each.
fn check_length(prompt: usize, answer: usize, info: &EngineInfo) -> Result<(), Error> {
    let longest = if info.is_encoder_decoder() { prompt.max(answer) } else { prompt.saturating_add(answer) };
    if longest <= info.max_context {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{prompt} prompt tokens and {answer} more exceed the context of {} tokens; shorten the prompt or ask for fewer",
        info.max_context
    )))
}

/// A request in the thread's queue.
pub(crate) struct Queued<J> {
    pub job: J,
    /// Its place in the bounded queue, given back when work on it begins.
    pub place: Place,
    /// Whether it is accepted.
    pub reply: oneshot::Sender<Result<(), Error>>,
}

pub(crate) type Events = mpsc::Sender<Result<Event, Error>>;
pub(crate) type ScoresTo = mpsc::Sender<Result<Scores, Error>>;

pub(crate) enum Command {
    Load(Load),
    Unload { digest: Digest, reply: oneshot::Sender<Result<(), Error>> },
    Generate(Queued<GenerateJob>, Events),
    Score(Queued<ScoreJob>, ScoresTo),
}

/// An adapter that is prepared and is to become resident.
pub(crate) struct Load {
    pub digest: Digest,
    /// The largest rank of its matrices.
    pub rank: u32,
    pub prepared: Box<tailor_models::Prepared>,
    pub reply: oneshot::Sender<Result<ResidentAdapter, Error>>,
}
