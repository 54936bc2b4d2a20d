//! Why something is not trusted.

use tailor_domain::ErrorCode;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Never says what was given: it may be a secret.
    #[error(
        "{what} is no ed25519 key: {problem}; give 64 hex digits, or a PEM block as `openssl genpkey -algorithm ed25519` writes it"
    )]
    BadKey { what: &'static str, problem: String },

    #[error(
        "{subject} is not signed, and only what is signed by {trusted} is trusted; publish it by a registry with a key (trust.signing_key)"
    )]
    Unsigned { subject: String, trusted: String },

    #[error("{subject} is signed by {signers}, of which none is trusted ({trusted})")]
    Untrusted { subject: String, signers: String, trusted: String },

    /// The signature or what it covers is not what was signed.
    #[error(
        "{subject} was changed after it was signed: {problem}; do not use it, restore it from a backup or publish it again"
    )]
    Tampered { subject: String, problem: String },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::BadKey { .. } => ErrorCode::InvalidArgument,
            Self::Unsigned { .. } | Self::Untrusted { .. } => ErrorCode::FailedPrecondition,
            Self::Tampered { .. } => ErrorCode::DataLoss,
        }
    }
}
