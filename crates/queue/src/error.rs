//! What can go wrong with a queue, by what the caller can do about it.

use tailor_domain::{ErrorCode, JobId};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Stop working on the job: it is, or will be, somebody else's.
    #[error(
        "job {job}: lease with epoch {epoch} is no longer held; it expired, was taken over, or the queue lost its data; \
         stop this run, the job is queued again by itself"
    )]
    LeaseLost { job: JobId, epoch: u64 },

    /// The queue is away; the same call may work later.
    #[error(
        "job queue at {address} does not answer: {problem}; check that the server runs and that the address is right"
    )]
    Unavailable { address: String, problem: String },

    /// The queue answers, and will not serve us until somebody changes its settings or ours.
    #[error("job queue at {address} refuses the request: {problem}; check user, password and the server's version")]
    Refused { address: String, problem: String },

    /// The address cannot be one.
    #[error("queue address {address:?} is not valid: {problem}; write redis://[user:password@]host:port[/database]")]
    BadAddress { address: String, problem: String },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::LeaseLost { .. } | Self::Refused { .. } => ErrorCode::FailedPrecondition,
            Self::Unavailable { .. } => ErrorCode::Unavailable,
            Self::BadAddress { .. } => ErrorCode::InvalidArgument,
        }
    }

    /// Whether the very same call can succeed later without anybody changing anything.
    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }
}
