//! What can go wrong with a dataset, by what the caller can do about it.

use tailor_domain::{Digest, ErrorCode, Invalid};
use tailor_serverkit::{Coded, spool};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),

    /// `hint` says what exists instead, or what to do.
    #[error("{what}; {hint}")]
    NotFound { what: String, hint: String },

    #[error("{what}; {remedy}")]
    AlreadyExists { what: String, remedy: String },

    /// The uploaded file cannot become a dataset.
    #[error("file {file:?}: {source}; nothing was stored")]
    File { file: String, source: tailor_text::Error },

    #[error("file {file:?} arrived with {found}, where sha256 says {announced}; send it again")]
    WrongBytes { file: String, announced: Digest, found: Digest },

    #[error(
        "file {file:?}: {here} bytes of it are here, the upload goes on from {offset}; ask GetUpload and go on from there"
    )]
    OtherOffset { file: String, offset: u64, here: u64 },

    #[error(
        "{url} lies in none of the places of dataset.import_from; add its folder or bucket there, or send the file (UploadDataset)"
    )]
    NotAllowed { url: String },

    #[error("base {base}: {source}")]
    Base { base: String, source: tailor_text::Error },

    #[error("dataset {dataset}: {source}")]
    Shard { dataset: String, source: tailor_text::Error },

    #[error("dataset {dataset}: line {line} of its rows cannot be read: {problem}; upload the dataset again")]
    Rows { dataset: String, line: u64, problem: String },

    #[error("the upload broke off: {problem}; nothing was stored")]
    BrokenOff { problem: String },

    #[error("{what} was stopped; try again")]
    Stopped { what: &'static str },

    #[error(transparent)]
    Spool(#[from] spool::Error),

    #[error(transparent)]
    Store(#[from] tailor_blobs::Error),

    #[error("the listener has no address: {0}")]
    Listener(std::io::Error),
}

impl Coded for Error {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(error) => error.code(),
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::AlreadyExists { .. } => ErrorCode::AlreadyExists,
            Self::File { source, .. } | Self::Base { source, .. } | Self::Shard { source, .. } => source.code(),
            Self::WrongBytes { .. } => ErrorCode::InvalidArgument,
            Self::NotAllowed { .. } => ErrorCode::PermissionDenied,
            Self::OtherOffset { .. } => ErrorCode::FailedPrecondition,
            Self::Rows { .. } => ErrorCode::DataLoss,
            Self::BrokenOff { .. } => ErrorCode::Cancelled,
            Self::Stopped { .. } => ErrorCode::Unavailable,
            Self::Spool(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Listener(_) => ErrorCode::Internal,
        }
    }

    fn exceeds(&self) -> Option<&'static str> {
        let Self::Spool(error) = self else { return None };
        error.exceeds()
    }
}
