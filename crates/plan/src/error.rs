//! Why there is no plan.

use tailor_domain::{ErrorCode, Invalid};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("config.json of the base: {0}")]
    Config(String),
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Error {
    pub(crate) fn field(field: &str, problem: impl std::fmt::Display) -> Self {
        Self::Config(format!("{field} {problem}"))
    }

    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Config(_) => ErrorCode::FailedPrecondition,
            Self::Invalid(error) => error.code(),
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }
}
