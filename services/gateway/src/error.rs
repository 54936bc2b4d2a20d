//! What can go wrong with a request for text, by what its sender can do about it.

use tailor_domain::{BaseName, Digest, ErrorCode, Invalid};
use tailor_serverkit::Coded;
use tailor_serverkit::status::{self, code_of};
use tonic_types::StatusExt as _;

use crate::failures::Told;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Of an attempt that this caller has waited for.
    #[error(transparent)]
    Told(#[from] Told),
    #[error("name a model: base, adapter, or both")]
    NoModel,
    #[error("adapter {adapter} was made for base {its_base}, not for {asked}; leave the base out, or name {its_base}")]
    OtherBase { adapter: String, its_base: BaseName, asked: BaseName },
    /// The base was registered anew under its name since the adapter was published.
    #[error("adapter {adapter} was made for another {base} (fingerprint {wanted}); the one here has {found}")]
    OtherFingerprint { adapter: String, base: BaseName, wanted: String, found: String },
    #[error("base {base} is now another one: {wanted} was asked for, {found} is here; send the request again")]
    OtherBaseNow { base: BaseName, wanted: Digest, found: Digest },
    #[error("adapter {adapter} cannot be used: {problem}")]
    BadAdapter { adapter: String, problem: String },
    #[error(
        "adapter {adapter} cannot be used: its {file} has {size_bytes} bytes, the limit is {limit_bytes}; publish a version of a \
         lower rank or with fewer modules"
    )]
    TooLarge { adapter: String, file: &'static str, size_bytes: u64, limit_bytes: u64 },
    #[error(
        "adapter {adapter} ({digest}) is quarantined, since it failed its checks: {reason}; publish another version"
    )]
    Quarantined { adapter: String, digest: Digest, reason: String },
    #[error(
        "base {base} takes {needed} bytes; bases may take {limit_bytes} bytes (gateway.base_bytes), and what is resident stays: \
         {beside}; come again when one of them is idle, or raise the limit"
    )]
    NoRoomForBase { base: BaseName, needed: u64, limit_bytes: u64, beside: String },
    /// Nobody asked for it with enough weight that another should leave.
    #[error("base {0} does not fit beside those that are resident")]
    NoFreeRoom(String),
    #[error("no adapter with digest {0} is resident")]
    NotResident(String),
    #[error(
        "adapter {adapter} was loaded {tries} times and taken off each time (AdapterAdmin.Unload); load it again when that is over"
    )]
    TakenOff { adapter: String, tries: u32 },
    #[error("adapter {digest} stays resident: {why}; end that first")]
    Held { digest: String, why: String },
    #[error("digest {0} is no side of a rollout that runs; take it from an answer's adapter_digest")]
    NotASide(String),
    /// It answers, but not as it must.
    #[error("adapter {adapter} answers the golden prompt with {said:?}, where {expect:?} is demanded")]
    Golden { adapter: String, said: String, expect: String },
    #[error("{service}: {}", .status.message())]
    Service { service: &'static str, status: Box<tonic::Status> },
    #[error(transparent)]
    Address(#[from] tailor_serverkit::client::Error),
    #[error(transparent)]
    Settings(#[from] tailor_serverkit::settings::Error),
    #[error(transparent)]
    Store(#[from] tailor_blobs::Error),
    #[error(transparent)]
    Text(#[from] tailor_text::Error),
    #[error(transparent)]
    Engine(#[from] tailor_engine::Error),
    #[error(transparent)]
    Constrain(#[from] tailor_constrain::Error),
    #[error(
        "tenant {tenant:?} asks for {asked} {what} and has used up most of its {limit} a minute; come again in {} s",
        .retry_after.as_secs_f64().ceil()
    )]
    TenantLimit { tenant: String, what: &'static str, asked: u64, limit: u64, retry_after: std::time::Duration },
    #[error(
        "caller.tenant: {named:?} is named by a call of tenant {own:?} (header x-tailor-tenant); leave it out, or name {own:?}"
    )]
    OtherTenant { own: String, named: String },
    #[error("the work was cut off; send the request again")]
    Cut,
    #[error("this engine is about to stop; send the request to another")]
    Stopping,
    #[error("none of the {engines} engines can take the request ({problem}); come again, or see gateway.engines")]
    NoEngine { engines: usize, problem: String },
    /// Too late for another engine: the caller has heard part of it.
    #[error("engine {engine} was lost after {tokens} tokens of this answer ({problem}); send the request again")]
    EngineLost { engine: String, tokens: u32, problem: String },
    #[error("the listener has no address: {0}")]
    Listen(std::io::Error),
}

impl Error {
    pub fn service(service: &'static str) -> impl FnOnce(tonic::Status) -> Self {
        move |status| Self::Service { service, status: Box::new(status) }
    }

    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(error) => error.code(),
            Self::Told(told) => told.code,
            Self::NoModel | Self::Address(_) | Self::Settings(_) => ErrorCode::InvalidArgument,
            Self::OtherBase { .. }
            | Self::OtherFingerprint { .. }
            | Self::OtherBaseNow { .. }
            | Self::BadAdapter { .. }
            | Self::TooLarge { .. }
            | Self::Quarantined { .. }
            | Self::Held { .. }
            | Self::Golden { .. } => ErrorCode::FailedPrecondition,
            Self::NotResident(_) | Self::NotASide(_) => ErrorCode::NotFound,
            Self::TakenOff { .. } => ErrorCode::Aborted,
            Self::Service { status, .. } => code_of(status),
            Self::Store(error) => error.code(),
            Self::Text(error) => error.code(),
            Self::Engine(error) => error.code(),
            Self::Constrain(error) => error.code(),
            Self::TenantLimit { .. } | Self::NoRoomForBase { .. } | Self::NoFreeRoom(_) => ErrorCode::ResourceExhausted,
            Self::OtherTenant { .. } => ErrorCode::PermissionDenied,
            Self::Cut | Self::Stopping | Self::NoEngine { .. } | Self::EngineLost { .. } => ErrorCode::Unavailable,
            Self::Listen(_) => ErrorCode::Internal,
        }
    }
}

impl Coded for Error {
    fn code(&self) -> ErrorCode {
        self.code()
    }

    fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Engine(error) => error.retry_after(),
            Self::Told(told) => told.retry_after,
            Self::TenantLimit { retry_after, .. } => Some(*retry_after),
            Self::Service { status, .. } => status.get_details_retry_info().and_then(|info| info.retry_delay),
            _ => None,
        }
    }

    fn lacks_memory(&self) -> bool {
        match self {
            Self::NoRoomForBase { .. } | Self::NoFreeRoom(_) | Self::Engine(tailor_engine::Error::OutOfMemory(_)) => {
                true
            }
            Self::Service { status, .. } => status::lacks_memory(status),
            Self::Told(told) => told.lacks_memory,
            _ => false,
        }
    }
}
