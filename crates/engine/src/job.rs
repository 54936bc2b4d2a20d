//! What callers ask of the engine and what comes back, and how both travel to the thread.

use tailor_domain::Digest;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::error::Error;
use crate::options::{EngineInfo, ResidentAdapter};
use crate::sampling::Sampling;

#[derive(Debug, Clone)]
pub struct GenerateJob {
    /// A decoder's prefix; an encoder-decoder's input.
    pub prompt_ids: Vec<u32>,
    /// None is the base alone.
    pub adapter: Option<Digest>,
    pub sampling: Sampling,
    pub max_new_tokens: u32,
}

#[derive(Debug, Clone)]
pub struct ScoreJob {
    /// A decoder's prefix (may be empty); an encoder-decoder's input.
    pub prompt_ids: Vec<u32>,
    /// What is scored.
    pub token_ids: Vec<u32>,
    /// None is the base alone.
    pub adapter: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Token { id: u32 },
    End { reason: EndReason },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The model ended its answer.
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
pub(crate) struct Queued<J, T> {
    pub job: J,
    /// Its place in the bounded queue, given back when work on it begins.
    pub place: OwnedSemaphorePermit,
    pub reply: oneshot::Sender<Result<T, Error>>,
}

pub(crate) type Events = mpsc::Sender<Result<Event, Error>>;

pub(crate) enum Command {
    Load { digest: Digest, adapter: Box<tailor_peft::Adapter>, reply: oneshot::Sender<Result<ResidentAdapter, Error>> },
    Unload { digest: Digest, reply: oneshot::Sender<Result<(), Error>> },
    Generate(Queued<GenerateJob, ()>, Events),
    Score(Queued<ScoreJob, Vec<Option<f32>>>),
}
