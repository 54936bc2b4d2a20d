//! What can go wrong with the store, by what the caller can do about it. Each error names the object.

use tailor_domain::{Digest, ErrorCode};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{key} is not in the store")]
    NotFound { key: String },

    /// Another writer was first; read what is there.
    #[error("{key} is in the store already")]
    AlreadyExists { key: String },

    #[error("object key {key:?} is not valid: {problem}")]
    InvalidKey { key: String, problem: String },

    /// The store is away; the same call may work later.
    #[error("store {url} does not answer for {key}: {problem}; check that it runs and that the address is right")]
    Unavailable { url: String, key: String, problem: String },

    /// The store answers, and will not serve us until somebody changes its settings or ours.
    #[error("store {url} refuses {key}: {problem}; check the access key, its permissions and the bucket")]
    Refused { url: String, key: String, problem: String },

    /// No room. Nothing was written under the key.
    #[error("no room left to write {key}: {problem}; free some space or raise the quota, then try again")]
    Full { key: String, problem: String },

    #[error("blob {digest} is damaged: its bytes have {found}; restore it from a backup or upload it again")]
    Corrupt { digest: Digest, found: Digest },

    /// Nothing was read beyond the limit.
    #[error("blob {digest} has {size_bytes} bytes or more; no more than {limit_bytes} are read of it")]
    TooLarge { digest: Digest, size_bytes: u64, limit_bytes: u64 },

    /// Its deletion is under way; the same call works once that is over.
    #[error(
        "blob {digest} is being deleted by a collection; try again in a moment, or run the collection to its end (tailor adapter gc)"
    )]
    Collecting { digest: Digest },

    /// Somebody else is at work on it.
    #[error("{what} is another process' until {until_ms} (ms since 1970); let it finish, or come again after that")]
    Busy { what: String, until_ms: u64 },

    #[error("{key} cannot be read as {what}: {problem}; it was damaged or written by another version")]
    Malformed { key: String, what: String, problem: String },

    /// A file of ours outside the store.
    #[error("file {path}: {problem}")]
    File { path: String, problem: String },

    /// The store breaks the promise that everything rests on.
    #[error(
        "store {url} cannot be used: {problem}; use a store with conditional writes (If-None-Match), or a local folder"
    )]
    Unfit { url: String, problem: String },

    #[error(
        "store address {url:?} is not valid: {problem}; write file:///folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory://"
    )]
    BadAddress { url: String, problem: String },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::AlreadyExists { .. } => ErrorCode::AlreadyExists,
            Self::InvalidKey { .. } | Self::BadAddress { .. } => ErrorCode::InvalidArgument,
            Self::Unavailable { .. } | Self::Collecting { .. } => ErrorCode::Unavailable,
            Self::Busy { .. } => ErrorCode::Aborted,
            Self::Refused { .. } | Self::Unfit { .. } | Self::TooLarge { .. } => ErrorCode::FailedPrecondition,
            Self::Full { .. } => ErrorCode::ResourceExhausted,
            Self::Corrupt { .. } | Self::Malformed { .. } => ErrorCode::DataLoss,
            Self::File { .. } => ErrorCode::Internal,
        }
    }

    /// Whether the very same call can succeed later without anybody changing anything here.
    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
