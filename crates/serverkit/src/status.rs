//! From an error's code to a gRPC status with details, once for all services.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use tailor_domain::{ErrorCode, Invalid};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// An error that says what its caller can do about it.
pub trait Coded: Display {
    fn code(&self) -> ErrorCode;

    /// When the same request may succeed, where that is known better than by its code.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// The setting whose limit the request itself exceeds: however often it is sent, it never fits. Sent in
    /// `google.rpc.QuotaFailure`, by which it is told from what only has to wait.
    fn exceeds(&self) -> Option<&'static str> {
        None
    }

    /// For exhausted resources: whether the very thing that was asked for finds no memory, where another may find some. Sent in
    /// `google.rpc.ErrorInfo`, by which it is told from a full queue.
    fn lacks_memory(&self) -> bool {
        false
    }

    /// For a failed precondition: which conditions do not hold, for programs to read.
    fn violations(&self) -> Vec<Violation> {
        Vec::new()
    }
}

/// One condition that does not hold, sent in `google.rpc.PreconditionFailure`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// E.g. `METRIC_AT_LEAST`.
    pub kind: String,
    pub subject: String,
    pub description: String,
}

impl Coded for Invalid {
    fn code(&self) -> ErrorCode {
        self.code()
    }
}

impl Coded for tailor_blobs::Error {
    fn code(&self) -> ErrorCode {
        self.code()
    }
}

/// What an error's info says where something finds no memory.
const LACKS: &str = "lacks";
const MEMORY: &str = "memory";
/// How long a caller should wait before it sends a retryable request again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The one mapping from our codes to gRPC's.
pub fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidArgument => Code::InvalidArgument,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::AlreadyExists => Code::AlreadyExists,
        ErrorCode::FailedPrecondition => Code::FailedPrecondition,
        ErrorCode::Aborted => Code::Aborted,
        ErrorCode::ResourceExhausted => Code::ResourceExhausted,
        ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::Cancelled => Code::Cancelled,
        ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorCode::DataLoss => Code::DataLoss,
        ErrorCode::Internal => Code::Internal,
    }
}

/// The machine-readable name of a code, sent as `google.rpc.ErrorInfo.reason`.
pub fn reason(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidArgument => "INVALID_ARGUMENT",
        ErrorCode::NotFound => "NOT_FOUND",
        ErrorCode::AlreadyExists => "ALREADY_EXISTS",
        ErrorCode::FailedPrecondition => "FAILED_PRECONDITION",
        ErrorCode::Aborted => "ABORTED",
        ErrorCode::ResourceExhausted => "RESOURCE_EXHAUSTED",
        ErrorCode::Unavailable => "UNAVAILABLE",
        ErrorCode::Unauthenticated => "UNAUTHENTICATED",
        ErrorCode::PermissionDenied => "PERMISSION_DENIED",
        ErrorCode::Cancelled => "CANCELLED",
        ErrorCode::DeadlineExceeded => "DEADLINE_EXCEEDED",
        ErrorCode::DataLoss => "DATA_LOSS",
        ErrorCode::Internal => "INTERNAL",
    }
}

/// An error as a `google.rpc.Status`: its message, its reason, and when to come again where that helps.
pub fn status<E: Coded + ?Sized>(error: &E) -> Status {
    let code = error.code();
    if code == ErrorCode::Internal || code == ErrorCode::DataLoss {
        tracing::error!(%error, "request failed by a defect of ours");
    }
    let mut details = ErrorDetails::new();
    let lacks = error.lacks_memory().then(|| (LACKS.to_owned(), MEMORY.to_owned()));
    details.set_error_info(reason(code), "tailor", lacks.into_iter().collect::<HashMap<_, _>>());
    match error.exceeds() {
        Some(setting) => {
            details.add_quota_failure_violation(setting, error.to_string());
        }
        None if code.retryable() => {
            details.set_retry_info(Some(error.retry_after().unwrap_or(RETRY_AFTER)));
        }
        None => {}
    }
    for violation in error.violations() {
        details.add_precondition_failure_violation(violation.kind, violation.subject, violation.description);
    }
    Status::with_error_details(grpc_code(code), error.to_string(), details)
}

/// Whether another service said that the request exceeds one of its limits ([`Coded::exceeds`]).
pub fn is_too_large(status: &Status) -> bool {
    status.get_details_quota_failure().is_some()
}

/// Whether another service said so ([`Coded::lacks_memory`]).
pub fn lacks_memory(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.metadata.get(LACKS).is_some_and(|what| what == MEMORY))
}

/// The domain's code of a status that another service sent us, so that it can be passed on.
pub fn code_of(status: &Status) -> ErrorCode {
    // What the transport says has a source, and whatever code comes to its mind: a connection that breaks in the middle of a call
    // is UNKNOWN, CANCELLED or INTERNAL to it. To us its service is away.
    if std::error::Error::source(status).is_some() {
        return ErrorCode::Unavailable;
    }
    match status.code() {
        Code::Ok | Code::Unknown | Code::Internal | Code::Unimplemented => ErrorCode::Internal,
        Code::Cancelled => ErrorCode::Cancelled,
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
        // Our own deadline for a service that is slow is not our caller's.
        Code::DeadlineExceeded | Code::Unavailable => ErrorCode::Unavailable,
        Code::NotFound => ErrorCode::NotFound,
        Code::AlreadyExists => ErrorCode::AlreadyExists,
        Code::Unauthenticated => ErrorCode::Unauthenticated,
        Code::PermissionDenied => ErrorCode::PermissionDenied,
        Code::ResourceExhausted => ErrorCode::ResourceExhausted,
        Code::FailedPrecondition => ErrorCode::FailedPrecondition,
        Code::Aborted => ErrorCode::Aborted,
        Code::DataLoss => ErrorCode::DataLoss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_the_message_and_the_reason() {
        let sent = status(&Invalid::new("lora.rank", "0 is outside 1 to 1024"));
        assert_eq!(sent.code(), Code::InvalidArgument);
        assert_eq!(sent.message(), "lora.rank: 0 is outside 1 to 1024");
        let info = sent.get_details_error_info().expect("error info");
        assert_eq!(info.reason, "INVALID_ARGUMENT");
        assert!(sent.get_details_retry_info().is_none(), "the same request would fail again");
    }

    #[test]
    fn what_exceeds_a_limit_is_told_from_what_has_to_wait() {
        struct Large(Option<&'static str>);
        impl Display for Large {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("too much")
            }
        }
        impl Coded for Large {
            fn code(&self) -> ErrorCode {
                ErrorCode::ResourceExhausted
            }
            fn exceeds(&self) -> Option<&'static str> {
                self.0
            }
        }
        let large = status(&Large(Some("dataset.max_upload_bytes")));
        assert!(is_too_large(&large) && large.get_details_retry_info().is_none(), "it is never taken");
        let full = status(&Large(None));
        assert!(!is_too_large(&full) && full.get_details_retry_info().is_some(), "it may be taken later");
    }

    #[test]
    fn what_finds_no_memory_is_told_from_a_full_queue() {
        struct Full(bool);
        impl Display for Full {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("full")
            }
        }
        impl Coded for Full {
            fn code(&self) -> ErrorCode {
                ErrorCode::ResourceExhausted
            }
            fn lacks_memory(&self) -> bool {
                self.0
            }
        }
        assert!(lacks_memory(&status(&Full(true))) && !lacks_memory(&status(&Full(false))));
        assert!(!lacks_memory(&Status::resource_exhausted("said by a proxy")));
    }

    #[test]
    fn a_connection_that_breaks_is_a_service_that_is_away() {
        let broken = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        assert_eq!((broken.code(), code_of(&broken)), (Code::Unknown, ErrorCode::Unavailable));
        assert_eq!(code_of(&Status::unknown("said by a service")), ErrorCode::Internal);
    }

    #[test]
    fn codes_survive_the_wire() {
        for code in [ErrorCode::NotFound, ErrorCode::Aborted, ErrorCode::ResourceExhausted, ErrorCode::DataLoss] {
            assert_eq!(code_of(&Status::new(grpc_code(code), "")), code);
        }
    }
}
