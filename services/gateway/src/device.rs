//! Where tokens are made: on this process' own engine, or on one of the engines that this edge sends its requests to.

use std::sync::Arc;
use std::time::Instant;

use tailor_constrain::{Constraints, Follower, Format};
use tailor_engine::{Constraint, Engine, Event, GenerateJob, Sampling, ScoreJob};
use tailor_text::Tokenizer;
use tokio::sync::{OnceCell, mpsc};

use crate::bases::InUse;
use crate::error::{Error, Result};
use crate::fleet::{Fleet, Remote};
use crate::models::Model;

/// One answer as tokens.
#[derive(Debug, Clone)]
pub struct TokenJob {
    pub prompt_ids: Vec<u32>,
    pub max_new_tokens: u32,
    pub sampling: Sampling,
    pub top_logprobs: Option<u8>,
    pub format: Option<Format>,
    pub tenant: String,
    pub deadline: Option<Instant>,
    pub span: tracing::Span,
}

/// Tokens that are to be scored.
#[derive(Debug, Clone)]
pub struct ScoreTokens {
    pub prompt_ids: Vec<u32>,
    pub token_ids: Vec<u32>,
    pub tenant: String,
    pub deadline: Option<Instant>,
}

/// What computes a base's sequences.
pub enum Device {
    Here(Local),
    There { fleet: Arc<Fleet>, max_context: usize },
}

pub struct Local {
    pub engine: Engine,
    constraints: OnceCell<Arc<Constraints>>,
}

/// The tokens of an answer on their way. Dropping them stops the work.
pub enum Tokens {
    Here {
        events: mpsc::Receiver<std::result::Result<Event, tailor_engine::Error>>,
        /// The base stays until they have come.
        _base: InUse,
    },
    There(Box<Remote>),
}

impl Device {
    pub fn here(engine: Engine) -> Self {
        Self::Here(Local { engine, constraints: OnceCell::new() })
    }

    /// Longest sequence in tokens; for an encoder-decoder of either side.
    pub fn max_context(&self) -> usize {
        match self {
            Self::Here(local) => local.engine.info().max_context,
            Self::There { max_context, .. } => *max_context,
        }
    }

    /// This process' own engine, if that is where.
    pub fn engine(&self) -> Option<&Engine> {
        match self {
            Self::Here(local) => Some(&local.engine),
            Self::There { .. } => None,
        }
    }
}

impl Local {
    /// Begins to follow a format. What a base's answers can be held to is made at its first use, since few need it and a large
    /// vocabulary takes a while; a schema may take one to compile.
    async fn follow(&self, tokenizer: &Tokenizer, format: Format) -> Result<Box<dyn Constraint>> {
        let make = || async {
            let (tokenizer, info) = (tokenizer.clone(), self.engine.info());
            let made = move || Constraints::new(&tokenizer, info.vocab_size, &info.eos_ids);
            Ok::<_, Error>(Arc::new(tokio::task::spawn_blocking(made).await.map_err(|_| Error::Cut)??))
        };
        let constraints = self.constraints.get_or_try_init(make).await?.clone();
        let compiled = tokio::task::spawn_blocking(move || constraints.begin(&format)).await;
        Ok(Box::new(Following(compiled.map_err(|_| Error::Cut)??)))
    }

    async fn generate(&self, model: &Model, job: TokenJob) -> Result<Tokens> {
        let lease = model.lease().await?;
        let constraint = match job.format {
            None => None,
            Some(format) => Some(self.follow(&model.base.tokenizer, format).await?),
        };
        let adapter = model.adapter.as_ref().map(|version| version.digest.clone());
        let job = GenerateJob {
            sampling: job.sampling,
            constraint,
            top_logprobs: job.top_logprobs,
            tenant: job.tenant,
            deadline: job.deadline,
            lease,
            span: job.span,
            ..GenerateJob::new(job.prompt_ids, adapter, job.max_new_tokens)
        };
        Ok(Tokens::Here { events: self.engine.generate(job).await?, _base: model.base.clone() })
    }
}

impl Model {
    /// Starts an answer, its adapter made resident first.
    ///
    /// # Errors
    /// The adapter's; the job is out of its limits, or there is no room for it.
    pub async fn generate(&self, job: TokenJob) -> Result<Tokens> {
        match &self.base.device {
            Device::Here(local) => local.generate(self, job).await,
            Device::There { fleet, .. } => Ok(Tokens::There(Box::new(fleet.clone().decode(self.target(), job).await?))),
        }
    }

    /// Natural log-probability of each of `token_ids`.
    ///
    /// # Errors
    /// As for [`Self::generate`].
    pub async fn score(&self, job: ScoreTokens) -> Result<Vec<Option<f32>>> {
        match &self.base.device {
            Device::Here(local) => {
                let lease = self.lease().await?;
                let adapter = self.adapter.as_ref().map(|version| version.digest.clone());
                let ScoreTokens { prompt_ids, token_ids, tenant, deadline } = job;
                let span = tracing::Span::current();
                let job = ScoreJob { tenant, deadline, lease, span, ..ScoreJob::new(prompt_ids, token_ids, adapter) };
                Ok(local.engine.score(job).await?)
            }
            Device::There { fleet, .. } => fleet.score(self.target(), job).await,
        }
    }
}

impl Tokens {
    /// The next event; None after the last.
    ///
    /// # Errors
    /// The engine gave the sequence up, or is gone.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        match self {
            Self::Here { events, .. } => Ok(events.recv().await.transpose()?),
            Self::There(remote) => remote.next().await,
        }
    }
}

/// A follower as the engine knows it.
#[derive(Debug)]
struct Following(Follower);

impl Constraint for Following {
    fn mask(&mut self, logits: &mut [f32]) -> std::result::Result<(), String> {
        self.0.mask(logits)
    }

    fn accept(&mut self, token: u32) -> std::result::Result<bool, String> {
        self.0.accept(token)
    }
}
