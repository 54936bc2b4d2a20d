//! What can go wrong with a job, by what its owner can do about it.

use tailor_domain::{ErrorCode, Invalid, JobId};
use tailor_serverkit::Coded;
use tailor_serverkit::status::code_of;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("job {0} does not exist; `tailor job list` shows those that do")]
    NoSuchJob(JobId),
    #[error("idempotency key {key:?} was used for another request (job {job}); use a new key")]
    KeyReused { key: String, job: JobId },
    #[error("job {job} is {state} and cannot be cancelled any more")]
    Finished { job: JobId, state: &'static str },
    #[error("job {job} is {state} and cannot be paused any more; only a job that waits or trains can")]
    PastPausing { job: JobId, state: &'static str },
    #[error("job {job} is {state} and cannot be resumed; create it anew to train once more")]
    PastResuming { job: JobId, state: &'static str },
    #[error("job {job} is {state}; its predictions are shown once it has succeeded")]
    NotSucceeded { job: JobId, state: &'static str },
    #[error("job {0} predicted no rows; create one on a dataset with held-out rows (evaluate.max_validation_rows)")]
    NoPredictions(JobId),
    #[error(transparent)]
    Store(#[from] tailor_blobs::Error),
    #[error(transparent)]
    Queue(#[from] tailor_queue::Error),
    /// What another service answered; its words are for our caller too.
    #[error("{service}: {}", .status.message())]
    Service { service: &'static str, status: Box<tonic::Status> },
    #[error(transparent)]
    Address(#[from] tailor_serverkit::client::Error),
    #[error("the listener has no address: {0}")]
    Listen(std::io::Error),
    #[error(transparent)]
    Plan(#[from] tailor_plan::Error),
    /// Refused before anything was created.
    #[error("{0}")]
    DoesNotFit(String),
    #[error(transparent)]
    Train(#[from] tailor_train::Error),
    #[error(transparent)]
    Model(#[from] tailor_models::Error),
    #[error(transparent)]
    Text(#[from] tailor_text::Error),
    #[error(transparent)]
    Adapter(#[from] tailor_peft::Error),
    /// The workers of one job did not find each other, or one of them is gone.
    #[error("ranks: {0}")]
    Ranks(String),
    #[error("the device thread ended without an answer; the job can be started again")]
    DeviceGone,
}

impl Error {
    pub fn service(service: &'static str) -> impl FnOnce(tonic::Status) -> Self {
        move |status| Self::Service { service, status: Box::new(status) }
    }

    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(error) => error.code(),
            Self::NoSuchJob(_) | Self::NoPredictions(_) => ErrorCode::NotFound,
            Self::KeyReused { .. } => ErrorCode::AlreadyExists,
            Self::Finished { .. }
            | Self::PastPausing { .. }
            | Self::PastResuming { .. }
            | Self::NotSucceeded { .. }
            | Self::DoesNotFit(_) => ErrorCode::FailedPrecondition,
            Self::Plan(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Queue(error) => error.code(),
            Self::Service { status, .. } => code_of(status),
            Self::Address(_) => ErrorCode::InvalidArgument,
            Self::Ranks(_) => ErrorCode::Unavailable,
            Self::Listen(_) | Self::DeviceGone => ErrorCode::Internal,
            Self::Train(error) => error.code(),
            Self::Model(error) => error.code(),
            Self::Text(error) => error.code(),
            Self::Adapter(error) => error.code(),
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    /// Whether no job can run on this process's device any more.
    pub fn is_device_lost(&self) -> bool {
        match self {
            Self::Train(error) => error.is_device_lost(),
            Self::Model(error) => error.is_device_lost(),
            _ => false,
        }
    }
}

impl Coded for Error {
    fn code(&self) -> ErrorCode {
        self.code()
    }
}
