//! One small vocabulary of failure, shared by gRPC, HTTP and the command line.

/// What a caller can do about an error. `serverkit` maps each to a gRPC status once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request is wrong whatever the state of the system: correct it.
    InvalidArgument,
    /// The named thing does not exist.
    NotFound,
    /// The name is taken by something different.
    AlreadyExists,
    /// The request is fine, the state is not: change the state first.
    FailedPrecondition,
    /// Another writer was faster: read again, then retry.
    Aborted,
    /// Too much work or too little room: wait, or ask for less.
    ResourceExhausted,
    /// A dependency is away: the same call may work later.
    Unavailable,
    /// The caller is not who it must be.
    Unauthenticated,
    /// The caller is known, and may not do this.
    PermissionDenied,
    /// The caller gave up.
    Cancelled,
    /// The caller's deadline passed first.
    DeadlineExceeded,
    /// Stored bytes are not what was written.
    DataLoss,
    /// A defect of ours.
    Internal,
}

impl ErrorCode {
    /// Whether the very same call can succeed later without anybody changing anything.
    pub fn retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::Aborted | Self::ResourceExhausted)
    }
}

/// A value that breaks a rule of the domain: which field, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    pub field: String,
    pub problem: String,
}

impl Invalid {
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    pub fn code(&self) -> ErrorCode {
        ErrorCode::InvalidArgument
    }
}
