//! What can be wrong with a model folder, an adapter or a request.

use std::path::Path;

use tailor_domain::ErrorCode;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// config.json is not one this crate can run.
    #[error("config.json: {field}: {problem}")]
    Config { field: String, problem: String },
    /// A tensor that does not fit the config.
    #[error("tensor {name:?}: {problem}")]
    Tensor { name: String, problem: String },
    /// An adapter that does not fit the base.
    #[error("adapter: {0}")]
    Adapter(String),
    /// Tokens that the model cannot take.
    #[error("{0}")]
    Request(String),
    #[error(transparent)]
    Checkpoint(#[from] tailor_quant::Error),
    #[error(transparent)]
    Torch(#[from] tailor_torch::Error),
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    /// Whoever wanted the base does not want to wait for it any more.
    #[error("stopped before the base was loaded")]
    Stopped,
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Config { .. } | Self::Tensor { .. } | Self::Adapter(_) | Self::Request(_) => {
                ErrorCode::InvalidArgument
            }
            Self::Checkpoint(error) => error.code(),
            Self::Torch(error) => error.code(),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => ErrorCode::NotFound,
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::ResourceExhausted,
                _ => ErrorCode::Unavailable,
            },
            Self::Stopped => ErrorCode::Cancelled,
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    /// As [`tailor_torch::Error::is_device_lost`].
    pub fn is_device_lost(&self) -> bool {
        matches!(self, Self::Torch(error) if error.is_device_lost())
    }

    pub(crate) fn config(field: &str, problem: impl Into<String>) -> Self {
        Self::Config { field: field.to_owned(), problem: clipped(problem.into()) }
    }

    pub(crate) fn tensor(name: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { name: clipped(name.to_owned()), problem: clipped(problem.into()) }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.display().to_string(), source }
    }
}

/// Names and values come from the file and may be as long as it; a message goes into a log line and a gRPC status.
fn clipped(mut text: String) -> String {
    const LIMIT: usize = 1000;
    if text.len() > LIMIT {
        let end = (0..=LIMIT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}
