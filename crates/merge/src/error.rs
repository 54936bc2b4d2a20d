//! Why two cannot be made one, by what the caller can do about it.

use std::path::{Path, PathBuf};

use tailor_domain::ErrorCode;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Adapter(#[from] tailor_peft::Error),
    #[error(transparent)]
    Weights(#[from] tailor_quant::Error),
    /// A sound adapter that a single folder cannot express.
    #[error("{path}: {problem}; serve base and adapter apart, or train without it")]
    NotExpressible { path: String, problem: String },
    /// A merged value that the type cannot hold.
    #[error("{tensor}: {problem}")]
    Value { tensor: String, problem: String },
    #[error("stopped before it was whole")]
    Stopped,
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Adapter(error) => error.code(),
            Self::Weights(error) => error.code(),
            Self::Stopped => ErrorCode::Cancelled,
            Self::NotExpressible { .. } => ErrorCode::FailedPrecondition,
            Self::Value { .. } | Self::File { .. } => ErrorCode::InvalidArgument,
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => ErrorCode::NotFound,
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::ResourceExhausted,
                _ => ErrorCode::Unavailable,
            },
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub(crate) fn not_expressible(path: &str, problem: impl Into<String>) -> Self {
        Self::NotExpressible { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn value(tensor: &str, problem: impl Into<String>) -> Self {
        Self::Value { tensor: tensor.to_owned(), problem: problem.into() }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
