//! What can go wrong when serving, by what the caller can do about it.

use std::time::Duration;

use tailor_domain::{Digest, ErrorCode};

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Invalid(String),
    #[error("adapter {digest} is not resident; load it first")]
    UnknownAdapter { digest: Digest },
    #[error("adapter {digest} is being unloaded; load it again once its last sequence has ended")]
    Unloading { digest: Digest },
    #[error("adapter {digest} does not fit the base: {problem}")]
    AdapterRefused { digest: Digest, problem: String },
    #[error("the base at {folder} cannot be loaded: {problem}")]
    Base { folder: String, code: ErrorCode, problem: String },
    #[error("{waiting} requests are waiting already, the limit is {limit}; try again later or raise max_queue")]
    QueueFull { waiting: usize, limit: usize, retry_after: Duration },
    #[error(
        "requests for {waiting} tokens are waiting already and this one may come to {asked}, the limit is {limit}; \
         try again later, ask for fewer, or raise max_queue_tokens"
    )]
    TokensFull { waiting: usize, asked: usize, limit: usize, retry_after: Duration },
    #[error(
        "{requests} requests of tenant {tenant:?} for {tokens} tokens are waiting already, which is its part of the queue while \
         others may come; try again later"
    )]
    ShareFull { tenant: String, requests: usize, tokens: usize, retry_after: Duration },
    #[error("the deadline passed before the answer was complete; allow more time or ask for fewer tokens")]
    Deadline,
    #[error("the answer cannot take the form that was asked for: {0}")]
    Constraint(String),
    #[error("the device ran out of memory: {0}; lower max_batch, or ask for fewer tokens")]
    OutOfMemory(String),
    #[error("the model failed on this sequence: {0}")]
    Step(String),
    #[error("the engine has stopped; restart the process")]
    Stopped,
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) => ErrorCode::InvalidArgument,
            Self::UnknownAdapter { .. } => ErrorCode::NotFound,
            Self::AdapterRefused { .. } => ErrorCode::FailedPrecondition,
            Self::Base { code, .. } => *code,
            Self::QueueFull { .. } | Self::TokensFull { .. } | Self::ShareFull { .. } | Self::OutOfMemory(_) => {
                ErrorCode::ResourceExhausted
            }
            Self::Unloading { .. } | Self::Stopped => ErrorCode::Unavailable,
            Self::Deadline => ErrorCode::DeadlineExceeded,
            Self::Constraint(_) => ErrorCode::InvalidArgument,
            Self::Step(_) => ErrorCode::Internal,
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    /// When to come again, where the engine knows better than anybody.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. }
            | Self::TokensFull { retry_after, .. }
            | Self::ShareFull { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    pub(crate) fn not_finite() -> Self {
        Self::Step("its logits are not finite; the adapter's weights may be too large".into())
    }

    /// What is wrong with an adapter, or with the device that was to take it.
    pub(crate) fn adapter(digest: &Digest, error: tailor_models::Error) -> Self {
        match error {
            tailor_models::Error::Torch(error) => Self::device(&error),
            other => Self::AdapterRefused { digest: digest.clone(), problem: other.to_string() },
        }
    }

    pub(crate) fn model(error: &tailor_models::Error) -> Self {
        match error {
            tailor_models::Error::Torch(error) => Self::device(error),
            tailor_models::Error::Request(problem) => Self::Invalid(problem.clone()),
            other => Self::Step(other.to_string()),
        }
    }

    pub(crate) fn device(error: &tailor_torch::Error) -> Self {
        match error.code() {
            ErrorCode::ResourceExhausted => Self::OutOfMemory(error.to_string()),
            _ => Self::Step(error.to_string()),
        }
    }
}
