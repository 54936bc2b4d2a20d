//! What can go wrong with a hub, by what the caller can do about it.

use std::path::{Path, PathBuf};

use tailor_domain::ErrorCode;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{given:?} is no repository id: {problem}; an id is NAME or OWNER/NAME, e.g. google/mt5-small")]
    Id { given: String, problem: String },
    #[error("{0}")]
    Setting(String),
    #[error("{what}: not found on {endpoint}; check the id and --revision (a private repository needs HF_TOKEN)")]
    NotFound { what: String, endpoint: String },
    #[error(
        "{what}: {endpoint} refuses access ({status}); set HF_TOKEN to a token that may read it and, where the model is gated, \
         accept its terms on the model's page"
    )]
    Access { what: String, endpoint: String, status: u16 },
    #[error(
        "{what}: {endpoint} asks to come back later ({status}) after {attempts} attempts; what was fetched is kept"
    )]
    Busy { what: String, endpoint: String, status: u16, attempts: u32 },
    #[error("{what}: {problem}; what was fetched is kept and the next call goes on from there")]
    Transfer { what: String, problem: String },
    #[error("{what}: {problem}")]
    Content { what: String, problem: String },
    #[error("{what} is not in the cache, and offline mode (HF_HUB_OFFLINE or --offline) forbids to fetch it")]
    Offline { what: String },
    #[error("nothing of {what} is in {}; `tailor hub list` shows what is", cache.display())]
    NotCached { what: String, cache: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Id { .. } | Self::Setting(_) => ErrorCode::InvalidArgument,
            Self::Content { .. } | Self::Access { .. } => ErrorCode::FailedPrecondition,
            Self::NotFound { .. } | Self::Offline { .. } | Self::NotCached { .. } => ErrorCode::NotFound,
            Self::Busy { .. } | Self::Transfer { .. } => ErrorCode::Unavailable,
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::ResourceExhausted,
                _ => ErrorCode::Unavailable,
            },
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn content(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Content { what: what.into(), problem: problem.into() }
    }
}
