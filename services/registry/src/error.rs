//! What can go wrong in the registry, by what the caller can do about it.

use tailor_domain::policy::Gate;
use tailor_domain::{AdapterName, AliasName, Digest, ErrorCode, Invalid, Version};
use tailor_serverkit::status::Violation;
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

    /// The request is fine, but something must happen first.
    #[error("{what}; {remedy}")]
    NotReady { what: String, remedy: String },

    /// Another writer was faster, or a newer attempt took over.
    #[error("{what}; {remedy}")]
    Superseded { what: String, remedy: String },

    #[error("{what}; {remedy}")]
    OverQuota { what: String, remedy: String },
    /// At least one of the gates is not passed.
    #[error("version {version} of adapter {adapter} was not put behind alias {alias}: {}", listed(.gates))]
    Gates { adapter: AdapterName, version: Version, alias: AliasName, gates: Vec<Gate> },

    #[error("blob {digest} was not stored: {problem}; upload it again")]
    WrongBytes { digest: Digest, problem: String },

    /// The adapter is unsound, or was made for another base.
    #[error("adapter {adapter} was not published: {source}")]
    Adapter { adapter: String, source: tailor_peft::Error },

    /// Its ranks cannot be looked at, or not be made fewer so.
    #[error("adapter {version}: {source}")]
    Figures { version: String, source: tailor_peft::Error },

    /// Adapter and base cannot be made one.
    #[error("adapter {version} was not merged: {source}")]
    Merge { version: String, source: tailor_merge::Error },

    #[error("nobody waits for the base any more, so none was registered")]
    Abandoned,

    /// A file of the base is not what the base's format says.
    #[error("base {base}: file {file}: {problem}")]
    Base { base: String, file: String, problem: String },

    #[error(
        "the upload broke off: {problem}; what arrived is kept for a day, GetUpload says how much, go on from there"
    )]
    BrokenOff { problem: String },

    #[error(transparent)]
    Spool(#[from] spool::Error),

    #[error(transparent)]
    Store(#[from] tailor_blobs::Error),

    #[error(transparent)]
    Settings(#[from] tailor_serverkit::settings::Error),

    #[error("{problem}; this is a defect")]
    Defect { problem: String },

    #[error("the listener has no address: {0}")]
    Listener(std::io::Error),
}

impl Coded for Error {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(error) => error.code(),
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::AlreadyExists { .. } => ErrorCode::AlreadyExists,
            Self::NotReady { .. } | Self::Gates { .. } => ErrorCode::FailedPrecondition,
            Self::Superseded { .. } => ErrorCode::Aborted,
            Self::OverQuota { .. } => ErrorCode::ResourceExhausted,
            Self::WrongBytes { .. } | Self::Base { .. } => ErrorCode::InvalidArgument,
            // For a publish, what was sent is wrong, whichever way it is wrong.
            Self::Adapter { source, .. } => match source.code() {
                ErrorCode::FailedPrecondition => ErrorCode::InvalidArgument,
                other => other,
            },
            Self::Figures { source, .. } => source.code(),
            // What is not found is a file of this machine, and nothing that the caller has named.
            Self::Merge { source, .. } => match source.code() {
                ErrorCode::NotFound => ErrorCode::Unavailable,
                other => other,
            },
            Self::BrokenOff { .. } | Self::Abandoned => ErrorCode::Cancelled,
            Self::Spool(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Settings(_) => ErrorCode::InvalidArgument,
            Self::Listener(_) | Self::Defect { .. } => ErrorCode::Internal,
        }
    }

    fn exceeds(&self) -> Option<&'static str> {
        let Self::Spool(error) = self else { return None };
        error.exceeds()
    }

    fn violations(&self) -> Vec<Violation> {
        let Self::Gates { gates, .. } = self else { return Vec::new() };
        let violation = |gate: &Gate| Violation {
            kind: gate.kind.to_uppercase().replace('.', "_"),
            subject: gate.subject.clone(),
            description: gate.to_string(),
        };
        gates.iter().filter(|gate| !gate.passed).map(violation).collect()
    }
}

fn listed(gates: &[Gate]) -> String {
    gates.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// Whether the store, or what stands before it, is away.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self, Self::Store(error) if error.retryable())
    }
}
