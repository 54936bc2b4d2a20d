//! What can be wrong with a checkpoint, by what the caller can do about it.

use std::path::{Path, PathBuf};

use tailor_domain::ErrorCode;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("{}: tensor {tensor:?}: {problem}", path.display())]
    Tensor { path: PathBuf, tensor: String, problem: String },
    #[error("{0}")]
    Value(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::File { .. } | Self::Tensor { .. } | Self::Value(_) => ErrorCode::InvalidArgument,
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => ErrorCode::NotFound,
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::ResourceExhausted,
                std::io::ErrorKind::AlreadyExists => ErrorCode::AlreadyExists,
                _ => ErrorCode::Unavailable,
            },
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), problem: clip(&problem.into()) }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: &str) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: clip(tensor), problem: clip(problem) }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// Names and shapes come from the file and may be as long as it; a message goes into a log line and a gRPC status.
pub(crate) fn clip(text: &str) -> String {
    const LIMIT: usize = 1000;
    if text.len() <= LIMIT {
        return text.to_owned();
    }
    let end = (0..=LIMIT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}
