//! Why there is no GGUF file, by what the caller can do about it.

use std::path::{Path, PathBuf};

use tailor_domain::ErrorCode;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Adapter(#[from] tailor_peft::Error),
    #[error(transparent)]
    Weights(#[from] tailor_quant::Error),
    #[error(transparent)]
    Tokenizer(#[from] tailor_text::Error),
    #[error("config.json, {field}: {problem}")]
    Config { field: String, problem: String },
    /// Sound, and nothing that llama.cpp would compute in the same way.
    #[error("{what}: {problem}; {remedy}")]
    NotMapped { what: String, problem: String, remedy: String },
    /// A value that the type cannot hold.
    #[error("{tensor}: {problem}")]
    Value { tensor: String, problem: String },
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
            Self::Tokenizer(error) => error.code(),
            Self::NotMapped { .. } => ErrorCode::FailedPrecondition,
            Self::Config { .. } | Self::Value { .. } | Self::File { .. } => ErrorCode::InvalidArgument,
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

    pub(crate) fn config(field: &str, problem: impl Into<String>) -> Self {
        Self::Config { field: field.to_owned(), problem: problem.into() }
    }

    /// About a file of the folder by its name alone.
    pub(crate) fn config_of(file: &str, problem: &str) -> Self {
        Self::File { path: file.into(), problem: problem.to_owned() }
    }

    pub(crate) fn not_mapped(what: impl Into<String>, problem: impl Into<String>, remedy: &str) -> Self {
        Self::NotMapped { what: what.into(), problem: problem.into(), remedy: remedy.to_owned() }
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
